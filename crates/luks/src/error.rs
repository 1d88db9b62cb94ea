/// Why something encrypted cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LuksError {
    /// It does not begin like a LUKS header.
    #[error("there is no LUKS header")]
    NotLuks,
    /// Another version.
    #[error("LUKS version {0} is not supported, only version 1 is")]
    Version(u16),
    /// A cipher, mode or way to make IVs that is not known here.
    #[error(
        "the cipher {0:?} is not supported (aes, serpent and twofish are, with xts-plain64, \
         xts-plain, cbc-plain64, cbc-plain, cbc-essiv:sha256 and ecb)"
    )]
    Cipher(String),
    /// A hash that is not known here.
    #[error("the hash {0:?} is not supported (sha1, sha256 and sha512 are)")]
    Hash(String),
    /// A key of a size that the cipher does not have.
    #[error("the cipher {cipher} has no keys of {bits} bits")]
    KeySize {
        /// The cipher, as LUKS calls it.
        cipher: String,
        /// Bits of the key, for XTS of both halves.
        bits: u64,
    },
    /// Something in the header is impossible.
    #[error("the LUKS header is damaged: {0}")]
    Header(&'static str),
    /// The passphrase opens no key slot.
    #[error("the passphrase is wrong: it opens none of the key slots")]
    Passphrase,
    /// There is no such slot, or it cannot be used for that.
    #[error("key slot {slot} {why}")]
    Slot {
        /// Which one, from 0 on.
        slot: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// All slots have a key.
    #[error("all 8 key slots are in use: erase one first")]
    NoFreeSlot,
    /// There is no randomness.
    #[error("the host gives no random bytes: {0}")]
    Random(String),
    /// Sectors are encrypted as a whole.
    #[error("{0} bytes are no whole sectors")]
    NotSectors(usize),
}
