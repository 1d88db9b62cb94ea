//! Encryption of sectors of 512 bytes, each by itself, by its number.
//!
//! | file        | what                                                      |
//! |-------------|-----------------------------------------------------------|
//! | `spec.rs`   | which cipher, mode and IV, and their names                |
//! | `blocks.rs` | the block ciphers behind one interface                    |
//! | `modes.rs`  | XTS, CBC and ECB over many sectors at once                |

mod blocks;
mod modes;
mod spec;

use std::fmt;

use aes::cipher::KeyInit;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use self::blocks::{Block, Blocks, blocks};
use crate::{LuksError, Passphrase};

pub use self::spec::{Algorithm, CipherSpec, Iv, Mode};

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// Bytes of a block of every cipher here.
const BLOCK: usize = 16;

/// A cipher with its key, for any number of sectors from any thread.
pub struct SectorCipher {
    spec: CipherSpec,
    data: Box<dyn Blocks>,
    /// Of the tweaks of XTS, or of the IVs of ESSIV.
    second: Option<Box<dyn Blocks>>,
}

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SectorCipher({})", self.spec)
    }
}

impl SectorCipher {
    /// The cipher with a key.
    ///
    /// # Errors
    /// It has no keys of that size.
    pub(crate) fn new(spec: CipherSpec, key: &[u8]) -> Result<Self, LuksError> {
        spec.check_key(key.len())?;
        let wrong = || LuksError::KeySize {
            cipher: spec.to_string(),
            bits: key.len() as u64 * 8,
        };
        let make = |key: &[u8]| blocks(spec.algorithm, key).ok_or_else(wrong);
        let (data, second) = match spec.mode {
            Mode::Xts => {
                let (first, second) = key.split_at(key.len() / 2);
                (make(first)?, Some(make(second)?))
            }
            Mode::Cbc if spec.iv == Iv::EssivSha256 => {
                let mut digest = Zeroizing::new([0; 32]);
                digest.copy_from_slice(&Sha256::digest(key));
                (make(key)?, Some(make(&digest[..])?))
            }
            Mode::Cbc | Mode::Ecb => (make(key)?, None),
        };
        Ok(Self { spec, data, second })
    }

    /// The encryption of old qcow2 images (`crypt_method` 1, "AES"): AES-128 in CBC mode by the
    /// number of the guest's sector; the key is the passphrase's first 16 bytes, with zeros behind
    /// a shorter one. It is not secure.
    #[must_use]
    pub fn legacy_aes(passphrase: &Passphrase) -> Self {
        let mut key = Zeroizing::new([0; 16]);
        for (to, from) in key.iter_mut().zip(passphrase.bytes()) {
            *to = *from;
        }
        let spec = CipherSpec {
            algorithm: Algorithm::Aes,
            mode: Mode::Cbc,
            iv: Iv::Plain64,
        };
        Self {
            spec,
            data: Box::new(aes::Aes128::new((&*key).into())),
            second: None,
        }
    }

    /// Encrypts sectors, of which `first` is the number of the first one.
    ///
    /// # Errors
    /// They are not whole.
    pub fn encrypt(&self, first: u64, sectors: &mut [u8]) -> Result<(), LuksError> {
        self.apply(first, sectors, true)
    }

    /// Decrypts sectors, of which `first` is the number of the first one.
    ///
    /// # Errors
    /// They are not whole.
    pub fn decrypt(&self, first: u64, sectors: &mut [u8]) -> Result<(), LuksError> {
        self.apply(first, sectors, false)
    }

    fn apply(&self, first: u64, sectors: &mut [u8], encrypt: bool) -> Result<(), LuksError> {
        if !sectors.len().is_multiple_of(SECTOR) {
            return Err(LuksError::NotSectors(sectors.len()));
        }
        let batches = sectors.chunks_mut(modes::BATCH * SECTOR);
        for (batch, first) in batches.zip((first..).step_by(modes::BATCH)) {
            let count = batch.len() / SECTOR;
            let mut ivs = [Block::default(); modes::BATCH];
            let ivs = ivs.get_mut(..count).unwrap_or_default();
            self.ivs(first, ivs);
            let (data, _) = Block::slice_as_chunks_mut(batch);
            match (self.spec.mode, encrypt) {
                (Mode::Xts, _) => modes::xts(&*self.data, ivs, data, encrypt),
                (Mode::Cbc, true) => modes::cbc_encrypt(&*self.data, ivs, data),
                (Mode::Cbc, false) => modes::cbc_decrypt(&*self.data, ivs, data),
                (Mode::Ecb, true) => self.data.encrypt(data),
                (Mode::Ecb, false) => self.data.decrypt(data),
            }
        }
        Ok(())
    }

    /// The IVs, or the first tweaks, of sectors from `first` on.
    fn ivs(&self, first: u64, ivs: &mut [Block]) {
        for (iv, at) in ivs.iter_mut().zip(0..) {
            let mut number = first.wrapping_add(at);
            if self.spec.iv == Iv::Plain {
                number &= u64::from(u32::MAX);
            }
            let (low, high) = iv.split_at_mut(8);
            low.copy_from_slice(&number.to_le_bytes());
            high.fill(0);
        }
        if let Some(second) = &self.second {
            second.encrypt(ivs);
        }
    }
}

#[cfg(test)]
mod tests;
