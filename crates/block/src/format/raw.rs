use std::io;

use event::{IoBuf, WriteFlags};
use nix::errno::Errno;

use crate::storage::Storage;
use crate::{
    BlockError, BlockStatus, Limits, Node, NodeFuture, SizeWatcher, SizeWatchers, StatusKind,
    Transfer, ZeroFlags,
};

/// The unit in which guests count.
const SECTOR: u64 = 512;

/// A raw image: the guest's byte n is the storage's byte n.
///
/// A storage whose size is no multiple of 512 is shown rounded up. What is beyond its end reads
/// as zeros, and comes into being when it is written.
pub struct Raw<S> {
    name: String,
    storage: S,
    /// The storage's bytes are those of a file.
    is_plain: bool,
    watchers: SizeWatchers,
}

impl<S: Storage> Raw<S> {
    /// The disk in `storage`.
    pub fn new(name: String, storage: S) -> Self {
        Self {
            name,
            storage,
            is_plain: true,
            watchers: SizeWatchers::default(),
        }
    }

    /// The disk in `storage`, whose bytes are in no file as they are.
    pub fn encrypted(name: String, storage: S) -> Self {
        Self {
            is_plain: false,
            ..Self::new(name, storage)
        }
    }

    /// Where the bytes are.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn check_change(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.storage.is_read_only() {
            return Err(Errno::EROFS.into());
        }
        self.check(offset, len)
    }
}

impl<S: Storage> Node for Raw<S>
where
    S: Sync,
{
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size(&self) -> u64 {
        // Storages are smaller than 2^63.
        self.storage.size().next_multiple_of(SECTOR)
    }

    fn limits(&self) -> Limits {
        self.storage.limits()
    }

    fn is_read_only(&self) -> bool {
        self.storage.is_read_only()
    }

    fn read_vectored(&self, buf: IoBuf, offset: u64) -> NodeFuture<'_, Transfer> {
        Box::pin(async move {
            match self.check(offset, buf.len() as u64) {
                Ok(()) => self.storage.read(buf, offset).await,
                Err(error) => (Err(error), buf),
            }
        })
    }

    fn write_vectored(
        &self,
        buf: IoBuf,
        offset: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'_, Transfer> {
        Box::pin(async move {
            match self.check_change(offset, buf.len() as u64) {
                Ok(()) => self.storage.write(buf, offset, flags).await,
                Err(error) => (Err(error), buf),
            }
        })
    }

    fn flush(&self) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(self.storage.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.check_change(offset, len)?;
            self.storage.discard(offset, len).await
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.check_change(offset, len)?;
            self.storage.write_zeroes(offset, len, flags).await
        })
    }

    fn block_status(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<BlockStatus>> {
        Box::pin(async move {
            self.check(offset, len)?;
            let (is_data, len) = self.storage.extent(offset, len).await?;
            Ok(BlockStatus {
                len,
                kind: if is_data {
                    StatusKind::Data
                } else {
                    StatusKind::Zero
                },
                host: self.is_plain.then_some(offset),
                depth: 0,
            })
        })
    }

    fn close(&self) -> NodeFuture<'_, io::Result<()>> {
        // Nothing is kept here.
        Box::pin(std::future::ready(Ok(())))
    }

    fn resize(&self, size: u64) -> NodeFuture<'_, Result<(), BlockError>> {
        Box::pin(async move {
            self.storage.resize(size).await?;
            self.watchers.tell(self.size());
            Ok(())
        })
    }

    fn watch_size(&self, watcher: std::sync::Weak<SizeWatcher>) {
        self.watchers.add(watcher);
    }
}
