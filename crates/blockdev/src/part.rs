//! A part of a storage: `offset` and `size` of the raw driver.

use std::io;

use block::storage::{AnyStorage, Storage};
use block::{BlockError, IoBuf, Limits, Transfer, WriteFlags, ZeroFlags};
use nix::errno::Errno;

use crate::BlockdevError;

/// `size` bytes of a storage from `offset` on.
pub(crate) struct Part {
    whole: AnyStorage,
    offset: u64,
    size: u64,
}

impl Part {
    /// # Errors
    /// It is not within the storage, or not in whole sectors.
    pub(crate) fn new(
        whole: AnyStorage,
        offset: u64,
        size: Option<u64>,
    ) -> Result<Self, BlockdevError> {
        let all = Storage::size(&whole);
        let size = size.unwrap_or_else(|| all.saturating_sub(offset));
        let end = offset.checked_add(size).filter(|end| *end <= all);
        if end.is_none() || !offset.is_multiple_of(512) || !size.is_multiple_of(512) {
            return Err(BlockdevError::Options(format!(
                "offset={offset} and size={size} are no part of the file's {all} bytes in sectors \
                 of 512 bytes"
            )));
        }
        Ok(Self {
            whole,
            offset,
            size,
        })
    }

    fn place(&self, offset: u64, len: u64) -> io::Result<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(self.offset + offset),
            _ => Err(Errno::EINVAL.into()),
        }
    }
}

impl Storage for Part {
    async fn read(&self, buf: IoBuf, offset: u64) -> Transfer {
        match self.place(offset, buf.len() as u64) {
            Ok(at) => Storage::read(&self.whole, buf, at).await,
            Err(error) => (Err(error), buf),
        }
    }
    async fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> Transfer {
        match self.place(offset, buf.len() as u64) {
            Ok(at) => Storage::write(&self.whole, buf, at, flags).await,
            Err(error) => (Err(error), buf),
        }
    }
    async fn flush(&self) -> io::Result<()> {
        Storage::flush(&self.whole).await
    }
    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        Storage::discard(&self.whole, self.place(offset, len)?, len).await
    }
    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        Storage::write_zeroes(&self.whole, self.place(offset, len)?, len, flags).await
    }
    fn size(&self) -> u64 {
        self.size
    }
    async fn resize(&self, size: u64) -> Result<(), BlockError> {
        Err(BlockError::Resize {
            path: "a part of a file".into(),
            size,
            why: "it has the offset and the size that it was opened with".to_owned(),
        })
    }
    fn limits(&self) -> Limits {
        Storage::limits(&self.whole)
    }
    async fn extent(&self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        Storage::extent(&self.whole, self.place(offset, len)?, len).await
    }
    async fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        Storage::reserve(&self.whole, self.place(offset, len)?, len).await
    }
    fn grows_with_zeros(&self) -> bool {
        false
    }
    fn is_read_only(&self) -> bool {
        Storage::is_read_only(&self.whole)
    }
}
