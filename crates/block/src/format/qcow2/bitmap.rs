//! Persistent dirty bitmaps: what an image has of them.

use super::header::BitmapsExtension;
use super::{Core, Qcow2Error};
use crate::storage::Storage;

/// Bitmaps that are accepted, as QEMU does.
const MAX_BITMAPS: u32 = 65535;
/// Bytes of the directory and of a bitmap's table that are accepted.
const MAX_DIRECTORY: u64 = 64 << 20;
const MAX_TABLE: u64 = 128 << 20;
/// Bytes of a directory entry before its extra data.
const FIXED: usize = 24;

/// Flags of a directory entry.
const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;

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
        let mut rest = &bytes[..];
        for _ in 0..count {
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
            if granularity > 31 || u64::from(entries) * 8 > MAX_TABLE {
                return Err(BAD);
            }
            bitmaps.push(BitmapInfo {
                name: String::from_utf8_lossy(name).into_owned(),
                granularity: 1 << granularity,
                in_use: flags & IN_USE != 0,
                auto: flags & AUTO != 0,
                table_offset: offset,
                table_entries: entries,
            });
            let length = (from + name.len()).next_multiple_of(8);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(bitmaps)
    }

    /// Offsets and lengths of everything that bitmaps occupy.
    pub(crate) async fn bitmap_references(
        &self,
        extension: &BitmapsExtension,
    ) -> Result<Vec<(u64, u64)>, Qcow2Error> {
        let mut references = vec![(extension.directory_offset, extension.directory_size)];
        for bitmap in self.read_bitmaps(extension).await? {
            let bytes = u64::from(bitmap.table_entries) * 8;
            references.push((bitmap.table_offset, bytes));
            let table = self
                .read_metadata(bitmap.table_offset, bytes)
                .await
                .map_err(Qcow2Error::io("read a bitmap's table"))?;
            for word in table.chunks_exact(8) {
                let word = u64::from_be_bytes(word.try_into().unwrap_or_default());
                let offset = word & 0x00ff_ffff_ffff_fe00;
                if offset != 0 {
                    references.push((offset, self.layout.cluster()));
                }
            }
        }
        Ok(references)
    }
}
