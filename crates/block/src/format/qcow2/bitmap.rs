//! Persistent dirty bitmaps: the directory of them.

use super::header::BitmapsExtension;
use super::{Core, Qcow2Error};
use crate::storage::Storage;

/// Bitmaps that are accepted, as QEMU does.
const MAX_BITMAPS: u32 = 65535;
/// Bytes of the directory and of a bitmap's table that are accepted.
const MAX_DIRECTORY: u64 = 64 << 20;
const MAX_TABLE: u64 = 128 << 20;
/// Bytes of a directory entry before its extra data, and where its flags are.
const FIXED: usize = 24;
const FLAGS: u64 = 12;
/// Offsets in a bitmap's table; its lowest bit says that all bits are set where there is none.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
pub(super) const ALL_SET: u64 = 1;

/// Flags of a directory entry.
const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
/// The only type: one bit for each piece that was written.
const DIRTY_TRACKING: u8 = 1;

/// A persistent bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes that a bit stands for.
    pub granularity: u64,
    /// It was not written back, and is not to be believed.
    pub in_use: bool,
    /// Writes are to be recorded in it.
    pub auto: bool,
    pub(crate) table_offset: u64,
    pub(crate) table_entries: u32,
    /// Of a type, or with extra data, that we do not know.
    pub(crate) kind: u8,
    pub(crate) extra: Vec<u8>,
    pub(crate) other_flags: u32,
    /// Where its flags are on the disk.
    pub(crate) flags_offset: u64,
}

impl BitmapInfo {
    pub(crate) fn new(name: String, granularity: u64) -> Self {
        Self {
            name,
            granularity,
            in_use: false,
            auto: true,
            table_offset: 0,
            table_entries: 0,
            kind: DIRTY_TRACKING,
            extra: Vec::new(),
            other_flags: 0,
            flags_offset: 0,
        }
    }

    /// Whether we know all about it, and may use and change it.
    pub(crate) fn is_known(&self) -> bool {
        self.kind == DIRTY_TRACKING && self.extra.is_empty() && !self.in_use
    }

    pub(crate) fn flags(&self) -> u32 {
        let set = |yes: bool, bit: u32| if yes { bit } else { 0 };
        self.other_flags | set(self.in_use, IN_USE) | set(self.auto, AUTO)
    }

    /// Its entry in the directory.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.table_offset.to_be_bytes().to_vec();
        out.extend_from_slice(&self.table_entries.to_be_bytes());
        out.extend_from_slice(&self.flags().to_be_bytes());
        out.push(self.kind);
        out.push(self.granularity.trailing_zeros() as u8);
        out.extend_from_slice(&(self.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&(self.extra.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.extra);
        out.extend_from_slice(self.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }
}

impl<S: Storage> Core<S> {
    /// The bitmaps of the directory.
    pub(crate) async fn read_bitmaps(
        &self,
        extension: &BitmapsExtension,
    ) -> Result<Vec<BitmapInfo>, Qcow2Error> {
        const BAD: Qcow2Error = Qcow2Error::Corrupt("the bitmap directory is damaged");
        let count = extension.count;
        if count > MAX_BITMAPS || extension.directory_size > MAX_DIRECTORY {
            return Err(BAD);
        }
        let bytes = self
            .read_metadata(extension.directory_offset, extension.directory_size)
            .await
            .map_err(Qcow2Error::io("read the bitmap directory"))?;
        let mut bitmaps = Vec::new();
        let mut at = 0usize;
        for _ in 0..count {
            let rest = bytes.get(at..).unwrap_or_default();
            let fixed = rest.get(..FIXED).ok_or(BAD)?;
            let u32_at = |at: usize| {
                let field = fixed.get(at..at + 4).and_then(|f| f.try_into().ok());
                u32::from_be_bytes(field.unwrap_or_default())
            };
            let offset = u64::from(u32_at(0)) << 32 | u64::from(u32_at(4));
            let (entries, flags, extra) = (u32_at(8), u32_at(12), u32_at(20) as usize);
            let (granularity, name) = (fixed[17], (u32_at(16) & 0xffff) as usize);
            let from = FIXED.checked_add(extra).ok_or(BAD)?;
            let name = rest.get(from..from + name).ok_or(BAD)?;
            if !(9..=31).contains(&granularity) || u64::from(entries) * 8 > MAX_TABLE {
                return Err(BAD);
            }
            bitmaps.push(BitmapInfo {
                name: String::from_utf8_lossy(name).into_owned(),
                granularity: 1 << granularity,
                in_use: flags & IN_USE != 0,
                auto: flags & AUTO != 0,
                table_offset: offset,
                table_entries: entries,
                kind: fixed[16],
                extra: rest.get(FIXED..from).unwrap_or_default().to_vec(),
                other_flags: flags & !(IN_USE | AUTO),
                flags_offset: extension.directory_offset.saturating_add(at as u64 + FLAGS),
            });
            at += (from + name.len()).next_multiple_of(8);
        }
        Ok(bitmaps)
    }

    /// The table of a bitmap: offsets of its pieces, and the words as they are.
    pub(crate) async fn read_bitmap_table(
        &self,
        bitmap: &BitmapInfo,
    ) -> Result<Vec<(u64, u64)>, Qcow2Error> {
        let bytes = u64::from(bitmap.table_entries) * 8;
        let table = self
            .read_metadata(bitmap.table_offset, bytes)
            .await
            .map_err(Qcow2Error::io("read a bitmap's table"))?;
        let word = |word: &[u8]| u64::from_be_bytes(word.try_into().unwrap_or_default());
        let words = table.chunks_exact(8).map(word);
        Ok(words.map(|word| (word & OFFSET, word)).collect())
    }

    /// Offsets and lengths of what a bitmap occupies.
    pub(crate) async fn bitmap_places(
        &self,
        bitmap: &BitmapInfo,
    ) -> Result<Vec<(u64, u64)>, Qcow2Error> {
        let mut places = vec![(bitmap.table_offset, u64::from(bitmap.table_entries) * 8)];
        for (offset, _) in self.read_bitmap_table(bitmap).await? {
            if offset != 0 {
                places.push((offset, self.layout.cluster()));
            }
        }
        Ok(places)
    }

    /// Offsets and lengths of everything that bitmaps occupy.
    pub(crate) async fn bitmap_references(
        &self,
        extension: &BitmapsExtension,
    ) -> Result<Vec<(u64, u64)>, Qcow2Error> {
        let mut references = vec![(extension.directory_offset, extension.directory_size)];
        for bitmap in self.read_bitmaps(extension).await? {
            references.extend(self.bitmap_places(&bitmap).await?);
        }
        Ok(references)
    }
}
