use std::fmt;

use crate::LuksError;

/// A block cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// AES (FIPS 197).
    Aes,
    /// Serpent.
    Serpent,
    /// Twofish.
    Twofish,
}

impl Algorithm {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes => "aes",
            Self::Serpent => "serpent",
            Self::Twofish => "twofish",
        }
    }
}

/// How blocks become sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// XTS (IEEE Std 1619).
    Xts,
    /// Cipher block chaining.
    Cbc,
    /// Each block by itself: it shows which blocks are equal.
    Ecb,
}

impl Mode {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xts => "xts",
            Self::Cbc => "cbc",
            Self::Ecb => "ecb",
        }
    }
}

/// How the number of a sector becomes its IV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iv {
    /// There is none (ECB).
    None,
    /// The number's lower 32 bits.
    Plain,
    /// The number.
    Plain64,
    /// The number, encrypted with the SHA-256 of the key.
    EssivSha256,
}

/// How sectors are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CipherSpec {
    /// The block cipher.
    pub algorithm: Algorithm,
    /// How blocks become sectors.
    pub mode: Mode,
    /// How the number of a sector becomes its IV.
    pub iv: Iv,
}

/// LUKS' names of mode and IV.
const MODES: [(&str, Mode, Iv); 8] = [
    ("xts-plain64", Mode::Xts, Iv::Plain64),
    ("xts-plain", Mode::Xts, Iv::Plain),
    ("cbc-plain64", Mode::Cbc, Iv::Plain64),
    ("cbc-plain", Mode::Cbc, Iv::Plain),
    ("cbc-essiv:sha256", Mode::Cbc, Iv::EssivSha256),
    ("ecb", Mode::Ecb, Iv::None),
    // QEMU's name, which has an IV that is not used.
    ("ecb-plain64", Mode::Ecb, Iv::Plain64),
    ("ecb-plain", Mode::Ecb, Iv::Plain),
];

impl CipherSpec {
    /// `aes-xts-plain64`.
    pub const AES_XTS: Self = Self {
        algorithm: Algorithm::Aes,
        mode: Mode::Xts,
        iv: Iv::Plain64,
    };

    /// By the names in a LUKS header (LUKS1 section 2.5): `aes` and `xts-plain64`.
    ///
    /// # Errors
    /// It is not supported.
    pub fn parse(name: &str, mode: &str) -> Result<Self, LuksError> {
        let unknown = || LuksError::Cipher(format!("{name}-{mode}"));
        let algorithm = match name {
            "aes" => Algorithm::Aes,
            "serpent" => Algorithm::Serpent,
            "twofish" => Algorithm::Twofish,
            _ => return Err(unknown()),
        };
        let known = MODES.iter().find(|(known, ..)| *known == mode);
        let (_, mode, iv) = known.ok_or_else(unknown)?;
        Ok(Self {
            algorithm,
            mode: *mode,
            iv: *iv,
        })
    }

    /// LUKS' name of mode and IV.
    pub(crate) fn mode_name(&self) -> String {
        let known = MODES
            .iter()
            .find(|(_, mode, iv)| (*mode, *iv) == (self.mode, self.iv));
        known.map_or_else(
            || self.mode.name().to_owned(),
            |(name, ..)| (*name).to_owned(),
        )
    }

    /// QEMU's name of how IVs are made; `None`: there are none.
    #[must_use]
    pub fn iv_name(&self) -> Option<&'static str> {
        match self.iv {
            Iv::None => None,
            Iv::Plain => Some("plain"),
            Iv::Plain64 => Some("plain64"),
            Iv::EssivSha256 => Some("essiv"),
        }
    }

    /// The hash that makes IVs, if one does.
    #[must_use]
    pub fn iv_hash_name(&self) -> Option<&'static str> {
        (self.iv == Iv::EssivSha256).then_some("sha256")
    }

    /// The block cipher's name with the bits of its key, as QEMU writes it: `aes-256`. `key_bytes`
    /// are those of the master key.
    #[must_use]
    pub fn algorithm_name(&self, key_bytes: usize) -> String {
        let halves = if self.mode == Mode::Xts { 2 } else { 1 };
        format!("{}-{}", self.algorithm.name(), key_bytes * 8 / halves)
    }

    /// Whether there are keys of that size.
    pub(crate) fn check_key(&self, bytes: usize) -> Result<(), LuksError> {
        let is_named = MODES
            .iter()
            .any(|(_, mode, iv)| (*mode, *iv) == (self.mode, self.iv));
        if !is_named {
            return Err(LuksError::Cipher(format!("{self} with such IVs")));
        }
        let has = match self.mode {
            Mode::Xts => matches!(bytes, 32 | 64),
            Mode::Cbc | Mode::Ecb => matches!(bytes, 16 | 24 | 32),
        };
        match has {
            true => Ok(()),
            false => Err(LuksError::KeySize {
                cipher: self.to_string(),
                bits: (bytes as u64).saturating_mul(8),
            }),
        }
    }
}

impl fmt::Display for CipherSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.algorithm.name(), self.mode_name())
    }
}
