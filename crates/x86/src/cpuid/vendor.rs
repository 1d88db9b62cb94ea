//! Who made the processor, and which one it is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::CpuError;

/// The 12 characters of CPUID leaf 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Vendor([u8; 12]);

impl Vendor {
    /// Intel.
    pub const INTEL: Vendor = Vendor(*b"GenuineIntel");
    /// AMD.
    pub const AMD: Vendor = Vendor(*b"AuthenticAMD");
    /// Hygon, whose processors are AMD's first EPYC.
    pub const HYGON: Vendor = Vendor(*b"HygonGenuine");

    /// From EBX, EDX and ECX (in this order the text reads) of leaf 0.
    pub fn from_registers([ebx, edx, ecx]: [u32; 3]) -> Self {
        let mut text = [0; 12];
        for (chunk, value) in text.chunks_exact_mut(4).zip([ebx, edx, ecx]) {
            chunk.copy_from_slice(&value.to_le_bytes());
        }
        Vendor(text)
    }

    /// EBX, EDX and ECX of leaf 0.
    pub fn registers(self) -> [u32; 3] {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.0;
        [
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
            u32::from_le_bytes([i, j, k, l]),
        ]
    }

    /// Whether CPUID's extended leaves follow AMD's manual.
    pub fn is_amd_like(self) -> bool {
        self == Self::AMD || self == Self::HYGON
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in &self.0 {
            if byte != 0 {
                write!(f, "{}", char::from(byte))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl FromStr for Vendor {
    type Err = CpuError;

    fn from_str(text: &str) -> Result<Self, CpuError> {
        let bytes = text.as_bytes();
        match <[u8; 12]>::try_from(bytes) {
            Ok(bytes) if bytes.iter().all(|b| matches!(b, b' '..=b'~')) && !text.contains(',') => {
                Ok(Vendor(bytes))
            }
            _ => Err(CpuError::BadValue {
                property: "vendor".to_owned(),
                value: text.to_owned(),
                expected: "12 ASCII characters without a comma, such as GenuineIntel".to_owned(),
            }),
        }
    }
}

impl TryFrom<String> for Vendor {
    type Error = CpuError;

    fn try_from(text: String) -> Result<Self, CpuError> {
        text.parse()
    }
}

impl From<Vendor> for String {
    fn from(vendor: Vendor) -> String {
        vendor.to_string()
    }
}

/// Family, model and stepping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Displayed family, 0 to 0x10e: base plus extended family.
    pub family: u16,
    /// Displayed model: extended and base model together.
    pub model: u8,
    /// Stepping, 0 to 15.
    pub stepping: u8,
}

impl Signature {
    /// Decodes EAX of leaf 1 (SDM vol. 2A figure 3-6).
    pub fn from_eax(eax: u32) -> Self {
        let base = (eax >> 8 & 0xf) as u16;
        let extended = (eax >> 20 & 0xff) as u16;
        Signature {
            family: if base == 0xf { base + extended } else { base },
            model: (eax >> 4 & 0xf | eax >> 12 & 0xf0) as u8,
            stepping: (eax & 0xf) as u8,
        }
    }

    /// Encodes EAX of leaf 1; families beyond 0x10e do not fit and are cut to it.
    pub fn to_eax(self) -> u32 {
        let family = u32::from(self.family.min(0x10e));
        let (base, extended) = if family > 0xf {
            (0xf, family - 0xf)
        } else {
            (family, 0)
        };
        let model = u32::from(self.model);
        extended << 20
            | (model >> 4) << 16
            | base << 8
            | (model & 0xf) << 4
            | u32::from(self.stepping & 0xf)
    }
}
