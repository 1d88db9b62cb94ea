//! Making headers, and the passphrases of their slots (LUKS1 section 4).

use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::header::{DIGEST, SALT, SLOTS};
use crate::secret::same;
use crate::{
    CipherSpec, Hash, Header, LuksError, MasterKey, Passphrase, SECTOR, SectorCipher, Slot, af,
};

/// Fills a slice with random bytes that nobody can foresee.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), LuksError>;

/// Stripes of a slot (LUKS1, `LUKS_STRIPES`).
const STRIPES: u32 = 4000;
/// Slots begin at multiples of so many bytes, and the encrypted sectors at multiples of so many.
const SLOT_ALIGNMENT: u64 = 4096;
const PAYLOAD_ALIGNMENT: u64 = 1 << 20;
/// LUKS1 has no fewer iterations, `LUKS_MKD_ITER` and section 4.1.
const MIN_ITERATIONS: u32 = 1000;
/// Nor more than what a header may say.
const MOST_ITERATIONS: u32 = 1 << 25;
/// Most time for measuring how fast this host is.
const MEASURE: Duration = Duration::from_millis(100);

/// What a new header is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHeader {
    /// How sectors are encrypted.
    pub cipher: CipherSpec,
    /// Bytes of the master key; for XTS, of both of its halves.
    pub key_bytes: usize,
    /// The hash of PBKDF2 and of the splitter.
    pub hash: Hash,
    /// How long trying a passphrase is to take on this host.
    pub iter_time: Duration,
}

impl Default for NewHeader {
    /// AES-256 in XTS mode, as QEMU and cryptsetup have it by default.
    fn default() -> Self {
        Self {
            cipher: CipherSpec::AES_XTS,
            key_bytes: 64,
            hash: Hash::Sha256,
            iter_time: Self::ITER_TIME,
        }
    }
}

/// What a header is to be like, in QEMU's names (qapi/crypto.json,
/// QCryptoBlockCreateOptionsLUKS). What is not said is as in [`NewHeader::default`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeaderNames<'a> {
    /// The cipher and the bits of its keys: aes-256.
    pub cipher_alg: Option<&'a str>,
    /// The mode: xts.
    pub cipher_mode: Option<&'a str>,
    /// How IVs are made: plain64.
    pub ivgen_alg: Option<&'a str>,
    /// The hash of essiv.
    pub ivgen_hash_alg: Option<&'a str>,
    /// The hash of PBKDF2.
    pub hash_alg: Option<&'a str>,
}

impl NewHeader {
    /// The header of that description.
    ///
    /// # Errors
    /// A name is not known, or the cipher has no such keys.
    pub fn named(names: &HeaderNames<'_>, iter_time: Duration) -> Result<Self, LuksError> {
        let algorithm = names.cipher_alg.unwrap_or("aes-256");
        let (cipher, bits) = algorithm
            .rsplit_once('-')
            .and_then(|(name, bits)| Some((name, bits.parse::<usize>().ok()?)))
            .ok_or_else(|| LuksError::Cipher(algorithm.to_owned()))?;
        let mode = names.cipher_mode.unwrap_or("xts");
        let iv = match (names.ivgen_alg, names.ivgen_hash_alg) {
            (Some("essiv"), hash) => format!("essiv:{}", hash.unwrap_or("sha256")),
            // Only essiv has a hash.
            (iv, Some(hash)) => {
                let iv = iv.unwrap_or("plain64");
                return Err(LuksError::Cipher(format!("{algorithm}-{mode}-{iv}:{hash}")));
            }
            (iv, None) => iv.unwrap_or("plain64").to_owned(),
        };
        let header = Self {
            cipher: CipherSpec::parse(cipher, &format!("{mode}-{iv}"))?,
            key_bytes: bits / 8 * if mode == "xts" { 2 } else { 1 },
            hash: names
                .hash_alg
                .map_or(Ok(Self::default().hash), Hash::parse)?,
            iter_time,
        };
        header.check()?;
        Ok(header)
    }

    /// How long trying a passphrase takes when the user does not say.
    pub const ITER_TIME: Duration = Duration::from_millis(2000);

    /// Whether a header can be like that.
    ///
    /// # Errors
    /// The cipher has no such keys.
    pub fn check(&self) -> Result<(), LuksError> {
        self.cipher.check_key(self.key_bytes)
    }

    /// Makes a header with a new master key, and no slot in use.
    ///
    /// # Errors
    /// The cipher has no such keys, or there is no randomness.
    pub fn create(&self, random: Random<'_>) -> Result<(Header, MasterKey), LuksError> {
        self.check()?;
        let mut key = Zeroizing::new(vec![0; self.key_bytes]);
        random(&mut key)?;
        let mut digest_salt = [0; SALT];
        random(&mut digest_salt)?;
        let digest_iterations = iterations(self.hash, DIGEST, self.iter_time / 8);
        let mut digest = [0; DIGEST];
        self.hash
            .pbkdf2(&key, &digest_salt, digest_iterations, &mut digest);
        let room = (self.key_bytes as u64 * u64::from(STRIPES)).next_multiple_of(SLOT_ALIGNMENT);
        let slot = |index: u64| Slot {
            active: false,
            iterations: 0,
            salt: [0; SALT],
            key_offset: ((SLOT_ALIGNMENT + index * room) / SECTOR as u64) as u32,
            stripes: STRIPES,
        };
        let end = SLOT_ALIGNMENT + SLOTS as u64 * room;
        let header = Header {
            cipher: self.cipher,
            hash: self.hash,
            payload_offset: (end.next_multiple_of(PAYLOAD_ALIGNMENT) / SECTOR as u64) as u32,
            key_bytes: self.key_bytes,
            digest,
            digest_salt,
            digest_iterations,
            uuid: uuid(random)?,
            slots: [0, 1, 2, 3, 4, 5, 6, 7].map(slot),
        };
        Ok((header, MasterKey::new(key)))
    }
}

impl Header {
    /// The slots in use.
    pub fn active(&self) -> impl Iterator<Item = usize> + '_ {
        let slots = self.slots.iter().enumerate();
        slots
            .filter(|(_, slot)| slot.active)
            .map(|(index, _)| index)
    }

    /// Tries a passphrase on a slot in use. `material` are the bytes at [`Header::material`].
    /// Takes as long as the header's maker wanted it to. `None`: it is another passphrase.
    ///
    /// # Errors
    /// There is no such slot, or it is not in use, or `material` is not all of it.
    pub fn open(
        &self,
        index: usize,
        passphrase: &Passphrase,
        material: &[u8],
    ) -> Result<Option<MasterKey>, LuksError> {
        let wrong = |why| LuksError::Slot { slot: index, why };
        let slot = self
            .slots
            .get(index)
            .ok_or_else(|| wrong("does not exist"))?;
        if !slot.active {
            return Err(wrong("is not in use"));
        }
        let size = self.material_size(slot);
        let cipher = self.slot_cipher(slot, passphrase)?;
        let mut material = Zeroizing::new(material.to_vec());
        cipher.decrypt(0, &mut material)?;
        let stripes = material
            .get(..size)
            .ok_or_else(|| wrong("has less key material than it should"))?;
        let key = af::merge(self.hash, stripes, self.key_bytes);
        let mut digest = [0; DIGEST];
        self.hash
            .pbkdf2(&key, &self.digest_salt, self.digest_iterations, &mut digest);
        Ok(same(&digest, &self.digest).then(|| MasterKey::new(key)))
    }

    /// Gives a slot a passphrase. The result are the bytes for [`Header::material`], which have to
    /// be stable on the disk before the header says that the slot is in use.
    ///
    /// # Errors
    /// There is no such slot, or there is no randomness.
    pub fn set_slot(
        &mut self,
        index: usize,
        key: &MasterKey,
        passphrase: &Passphrase,
        iter_time: Duration,
        random: Random<'_>,
    ) -> Result<Vec<u8>, LuksError> {
        let (hash, size) = (self.hash, self.key_bytes);
        let slot = self.slots.get(index).cloned();
        let mut slot = slot.ok_or(LuksError::Slot {
            slot: index,
            why: "does not exist",
        })?;
        slot.iterations = iterations(hash, size, iter_time);
        random(&mut slot.salt)?;
        slot.active = true;
        let cipher = self.slot_cipher(&slot, passphrase)?;
        let mut material = af::split(hash, key.bytes(), slot.stripes as usize, random)?;
        let whole = material.len().next_multiple_of(SECTOR);
        // Into memory of its final size: growing would leave a copy behind.
        let mut out = Zeroizing::new(vec![0; whole]);
        for (to, from) in out.iter_mut().zip(material.iter_mut()) {
            *to = *from;
        }
        cipher.encrypt(0, &mut out)?;
        if let Some(place) = self.slots.get_mut(index) {
            *place = slot;
        }
        Ok(std::mem::take(&mut *out))
    }

    /// The first slot that is free.
    ///
    /// # Errors
    /// There is none.
    pub fn free_slot(&self) -> Result<usize, LuksError> {
        let free = self.slots.iter().position(|slot| !slot.active);
        free.ok_or(LuksError::NoFreeSlot)
    }

    /// Marks a slot as free. Its key material has to be overwritten at [`Header::material`].
    ///
    /// # Errors
    /// There is no such slot.
    pub fn erase_slot(&mut self, index: usize) -> Result<(), LuksError> {
        let slot = self.slots.get_mut(index).ok_or(LuksError::Slot {
            slot: index,
            why: "does not exist",
        })?;
        slot.active = false;
        slot.iterations = 0;
        slot.salt = [0; SALT];
        Ok(())
    }

    /// The cipher of the sectors.
    ///
    /// # Errors
    /// The key has another size.
    pub fn sectors(&self, key: &MasterKey) -> Result<SectorCipher, LuksError> {
        SectorCipher::new(self.cipher, key.bytes())
    }

    fn material_size(&self, slot: &Slot) -> usize {
        self.key_bytes.saturating_mul(slot.stripes as usize)
    }

    /// What encrypts the key material of a slot.
    fn slot_cipher(&self, slot: &Slot, secret: &Passphrase) -> Result<SectorCipher, LuksError> {
        let mut key = Zeroizing::new(vec![0; self.key_bytes]);
        self.hash
            .pbkdf2(secret.bytes(), &slot.salt, slot.iterations, &mut key);
        SectorCipher::new(self.cipher, &key)
    }
}

/// Iterations of PBKDF2 that take `time` on this host for a key of `size` bytes.
fn iterations(hash: Hash, size: usize, time: Duration) -> u32 {
    let enough = MEASURE.min(time);
    let mut key = Zeroizing::new(vec![0; size]);
    let mut count = MIN_ITERATIONS;
    loop {
        let start = Instant::now();
        hash.pbkdf2(b"measured", &[0; SALT], count, &mut key);
        let took = start.elapsed();
        if took >= enough || count >= MOST_ITERATIONS {
            let wanted = u128::from(count) * time.as_nanos() / took.as_nanos().max(1);
            let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
            return wanted.clamp(MIN_ITERATIONS, MOST_ITERATIONS);
        }
        count *= 2;
    }
}

/// A random UUID (RFC 9562 section 5.4).
fn uuid(random: Random<'_>) -> Result<String, LuksError> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let number = u128::from_be_bytes(bytes);
    let part = |shift: u32, digits: u32| (number >> shift) & ((1 << (4 * digits)) - 1);
    Ok(format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        part(96, 8),
        part(80, 4),
        part(64, 4),
        part(48, 4),
        part(0, 12)
    ))
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
