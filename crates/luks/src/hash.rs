use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use crate::LuksError;

/// The hash of the key derivation and of the diffusion of key material.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1 (FIPS 180-4).
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Hash {
    /// The hash of that name (LUKS1, "hash-spec").
    ///
    /// # Errors
    /// It is another one.
    pub fn parse(name: &str) -> Result<Self, LuksError> {
        match name {
            "sha1" => Ok(Self::Sha1),
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            other => Err(LuksError::Hash(other.to_owned())),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Bytes of a digest.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Replaces `block`, which is at most a digest long, by the digest of `number` and itself.
    pub(crate) fn diffuse(self, number: u32, block: &mut [u8]) {
        fn digest<D: Digest>(number: u32, block: &mut [u8]) {
            let mut hash = D::new();
            hash.update(number.to_be_bytes());
            hash.update(&*block);
            for (to, from) in block.iter_mut().zip(hash.finalize()) {
                *to = from;
            }
        }
        match self {
            Self::Sha1 => digest::<Sha1>(number, block),
            Self::Sha256 => digest::<Sha256>(number, block),
            Self::Sha512 => digest::<Sha512>(number, block),
        }
    }

    /// PBKDF2 (RFC 8018 section 5.2) with the HMAC of this hash.
    pub(crate) fn pbkdf2(self, secret: &[u8], salt: &[u8], iterations: u32, key: &mut [u8]) {
        match self {
            Self::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(secret, salt, iterations, key),
            Self::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(secret, salt, iterations, key),
            Self::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(secret, salt, iterations, key),
        }
    }
}
