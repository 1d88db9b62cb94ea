//! The header on the disk (LUKS1 section 2.1, figure 1 and 2). All numbers are big-endian.

use std::fmt;
use std::ops::Range;

use crate::{CipherSpec, Hash, LuksError, SECTOR};

/// Key slots.
pub const SLOTS: usize = 8;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// What a slot's `active` says.
const ENABLED: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;

pub(crate) const DIGEST: usize = 20;
pub(crate) const SALT: usize = 32;

/// Hostile headers: a passphrase is tried for less than minutes, and a slot's key material is at
/// most 1 MiB.
const MAX_ITERATIONS: u32 = 1 << 26;
const MAX_STRIPES: u32 = 16000;

/// A key slot.
#[derive(Clone, PartialEq, Eq)]
pub struct Slot {
    /// Whether a passphrase opens it.
    pub active: bool,
    /// Of PBKDF2.
    pub iterations: u32,
    pub(crate) salt: [u8; SALT],
    /// Where the key material is, in sectors from the beginning of the header.
    pub key_offset: u32,
    /// Into how many pieces the key is split.
    pub stripes: u32,
}

/// A LUKS1 header.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// How sectors, and the key material, are encrypted.
    pub cipher: CipherSpec,
    /// The hash of PBKDF2 and of the splitter.
    pub hash: Hash,
    /// Where the encrypted sectors begin, in sectors; 0: elsewhere.
    pub payload_offset: u32,
    /// Bytes of the master key.
    pub key_bytes: usize,
    pub(crate) digest: [u8; DIGEST],
    pub(crate) digest_salt: [u8; SALT],
    /// PBKDF2's iterations in the digest of the master key.
    pub digest_iterations: u32,
    /// Name of this header.
    pub uuid: String,
    /// The slots.
    pub slots: [Slot; SLOTS],
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("active", &self.active)
            .field("iterations", &self.iterations)
            .field("key_offset", &self.key_offset)
            .field("stripes", &self.stripes)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("cipher", &self.cipher)
            .field("hash", &self.hash)
            .field("payload_offset", &self.payload_offset)
            .field("key_bytes", &self.key_bytes)
            .field("uuid", &self.uuid)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

/// Takes fields off the front of the header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], LuksError> {
        let cut = LuksError::Header("it is cut off");
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(cut)?;
        self.0 = rest;
        Ok(*field)
    }

    fn number(&mut self) -> Result<u32, LuksError> {
        self.take().map(u32::from_be_bytes)
    }

    /// Text that ends with a zero byte, or fills its field.
    fn text<const N: usize>(&mut self) -> Result<String, LuksError> {
        let field = self.take::<N>()?;
        let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
        let printable = |byte: &u8| byte.is_ascii_graphic();
        if !text.iter().all(printable) {
            return Err(LuksError::Header("a name in it is no plain text"));
        }
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

impl Header {
    /// Bytes of the header without the key material.
    pub const LENGTH: usize = 592;

    /// Whether bytes begin like a LUKS header.
    #[must_use]
    pub fn is_luks(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Understands a header's first [`Header::LENGTH`] bytes. Everything that it says about sizes
    /// and work is bounded, and no two slots overlap.
    ///
    /// # Errors
    /// It is no LUKS1 header, it is damaged, or its ciphers or hash are not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, LuksError> {
        if !Self::is_luks(bytes) {
            return Err(LuksError::NotLuks);
        }
        let mut fields = Fields(bytes);
        fields.take::<6>()?;
        match u16::from_be_bytes(fields.take()?) {
            1 => (),
            other => return Err(LuksError::Version(other)),
        }
        let (name, mode) = (fields.text::<32>()?, fields.text::<32>()?);
        let hash = fields.text::<32>()?;
        let payload_offset = fields.number()?;
        let key_bytes = fields.number()? as usize;
        let digest = fields.take()?;
        let digest_salt = fields.take()?;
        let digest_iterations = fields.number()?;
        let uuid = fields.text::<40>()?;
        let mut slot = |_| {
            let active = match fields.number()? {
                ENABLED => true,
                DISABLED => false,
                _ => return Err(LuksError::Header("a key slot is neither in use nor free")),
            };
            Ok(Slot {
                active,
                iterations: fields.number()?,
                salt: fields.take()?,
                key_offset: fields.number()?,
                stripes: fields.number()?,
            })
        };
        let slots = [
            slot(0)?,
            slot(1)?,
            slot(2)?,
            slot(3)?,
            slot(4)?,
            slot(5)?,
            slot(6)?,
            slot(7)?,
        ];
        let header = Self {
            cipher: CipherSpec::parse(&name, &mode)?,
            hash: Hash::parse(&hash)?,
            payload_offset,
            key_bytes,
            digest,
            digest_salt,
            digest_iterations,
            uuid,
            slots,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), LuksError> {
        let wrong = |why| Err(LuksError::Header(why));
        self.cipher.check_key(self.key_bytes)?;
        if self.digest_iterations == 0 || self.digest_iterations > MAX_ITERATIONS {
            return wrong("the number of iterations for the master key is impossible");
        }
        let mut places: Vec<Range<u64>> = Vec::with_capacity(SLOTS);
        for (index, slot) in self.slots.iter().enumerate() {
            // A free slot may say anything about what it does not have.
            if slot.active && (slot.iterations == 0 || slot.iterations > MAX_ITERATIONS) {
                return wrong("the number of iterations of a key slot is impossible");
            }
            if slot.stripes == 0 || slot.stripes > MAX_STRIPES {
                return wrong("the number of stripes of a key slot is impossible");
            }
            let Some(place) = self.material(index) else {
                return wrong("a key slot is where it cannot be");
            };
            if place.start < Self::LENGTH as u64 {
                return wrong("a key slot lies over the header");
            }
            if self.payload_offset != 0 && place.end > self.payload() {
                return wrong("a key slot lies over the encrypted sectors");
            }
            if places.iter().any(|other| overlap(other, &place)) {
                return wrong("two key slots overlap");
            }
            places.push(place);
        }
        Ok(())
    }

    /// The header's bytes, without the key material.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LENGTH);
        let text = |out: &mut Vec<u8>, text: &str, len: usize| {
            let end = out.len() + len;
            out.extend(text.bytes().take(len));
            out.resize(end, 0);
        };
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&1u16.to_be_bytes());
        text(&mut out, self.cipher.algorithm.name(), 32);
        text(&mut out, &self.cipher.mode_name(), 32);
        text(&mut out, self.hash.name(), 32);
        out.extend_from_slice(&self.payload_offset.to_be_bytes());
        out.extend_from_slice(&(self.key_bytes as u32).to_be_bytes());
        out.extend_from_slice(&self.digest);
        out.extend_from_slice(&self.digest_salt);
        out.extend_from_slice(&self.digest_iterations.to_be_bytes());
        text(&mut out, &self.uuid, 40);
        for slot in &self.slots {
            let active = if slot.active { ENABLED } else { DISABLED };
            out.extend_from_slice(&active.to_be_bytes());
            out.extend_from_slice(&slot.iterations.to_be_bytes());
            out.extend_from_slice(&slot.salt);
            out.extend_from_slice(&slot.key_offset.to_be_bytes());
            out.extend_from_slice(&slot.stripes.to_be_bytes());
        }
        out
    }

    /// Where the encrypted sectors begin, in bytes.
    #[must_use]
    pub fn payload(&self) -> u64 {
        u64::from(self.payload_offset) * SECTOR as u64
    }

    /// Where a slot's key material is, in bytes from the beginning of the header: whole sectors.
    /// `None`: there is no such slot.
    #[must_use]
    pub fn material(&self, slot: usize) -> Option<Range<u64>> {
        let slot = self.slots.get(slot)?;
        let start = u64::from(slot.key_offset) * SECTOR as u64;
        let bytes = u64::from(slot.stripes).checked_mul(self.key_bytes as u64)?;
        let end = start.checked_add(bytes.checked_next_multiple_of(SECTOR as u64)?)?;
        Some(start..end)
    }

    /// Bytes of the header with all key material.
    #[must_use]
    pub fn end(&self) -> u64 {
        let ends = (0..SLOTS).filter_map(|slot| self.material(slot));
        ends.map(|place| place.end)
            .max()
            .unwrap_or(Self::LENGTH as u64)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
