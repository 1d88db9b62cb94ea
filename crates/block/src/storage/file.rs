use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use event::{IoBuf, IoResult, WriteFlags};
use nix::errno::Errno;

use super::host::{self, Alignment};
use super::{Storage, lock, threads};
use crate::buffer;
use crate::spec::{Aio, Cache};
use crate::stripes::{self, Stripes};
use crate::{BlockError, Limits, Transfer, ZeroFlags};

/// Zeroes are written in pieces of this many bytes where the host has nothing better.
const ZERO_PIECE: u64 = 1 << 20;

/// What the path led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file.
    File,
    /// A host block device.
    Device,
}

/// An open image. Its locks last until the last operation on it is over, and no longer.
pub(super) struct Image {
    pub(super) file: File,
    pub(super) locked: bool,
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.locked {
            lock::unlock(&self.file);
        }
    }
}

/// An image file or a host block device, reached by io_uring.
pub struct FileStorage {
    pub(super) path: PathBuf,
    pub(super) image: Arc<Image>,
    pub(super) kind: Kind,
    pub(super) read_only: bool,
    pub(super) aio: Aio,
    pub(super) cache: Cache,
    /// Present under O_DIRECT.
    pub(super) direct: Option<Direct>,
    pub(super) unmap: bool,
    pub(super) limits: Limits,
    /// Bytes; not always a multiple of the block size.
    pub(super) size: AtomicU64,
    pub(super) can: Abilities,
    /// The error number of the first flush that failed, or 0.
    pub(super) lost_writes: AtomicI32,
}

/// What O_DIRECT takes.
pub(super) struct Direct {
    pub(super) alignment: Alignment,
    pub(super) stripes: Stripes,
}

/// What the host was not yet seen to refuse.
pub(super) struct Abilities {
    pub(super) punch_hole: AtomicBool,
    pub(super) zero_range: AtomicBool,
    pub(super) discard: AtomicBool,
}

impl Abilities {
    pub(super) fn all() -> Self {
        Self {
            punch_hole: AtomicBool::new(true),
            zero_range: AtomicBool::new(true),
            discard: AtomicBool::new(true),
        }
    }
}

impl FileStorage {
    /// Where the bytes are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn read_some(&self, buf: IoBuf, offset: u64) -> IoResult {
        match self.aio {
            Aio::IoUring => event::read_vectored_at(&self.image, buf, offset).await,
            Aio::Threads => threads::read(&self.image, buf, offset).await,
        }
    }

    async fn write_some(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> IoResult {
        match self.aio {
            Aio::IoUring => event::write_vectored_at(&self.image, buf, offset, flags).await,
            Aio::Threads => threads::write(&self.image, buf, offset, flags).await,
        }
    }

    /// Reads into all of `buf`; alignment is the caller's concern.
    pub(super) async fn read_all(&self, mut buf: IoBuf, mut offset: u64) -> Transfer {
        let block = self
            .direct
            .as_ref()
            .map_or(1, |d| d.alignment.request as usize);
        while !buf.is_empty() {
            let (result, back) = self.read_some(buf, offset).await;
            buf = back;
            match result {
                Ok(count) => {
                    buf.advance(count);
                    offset = offset.saturating_add(count as u64);
                    // Under O_DIRECT only the end of the file cuts a block short.
                    if count == 0 || count % block != 0 {
                        buffer::zero(&buf, buf.len());
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    /// Writes all of `buf`; alignment is the caller's concern.
    pub(super) async fn write_all(
        &self,
        mut buf: IoBuf,
        mut offset: u64,
        flags: WriteFlags,
    ) -> Transfer {
        while !buf.is_empty() {
            let (result, back) = self.write_some(buf, offset, flags).await;
            buf = back;
            match result {
                Ok(0) => return (Err(Errno::ENOSPC.into()), buf),
                Ok(count) => {
                    buf.advance(count);
                    offset = offset.saturating_add(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    /// A write ended at `end`.
    pub(super) fn reached(&self, end: u64) {
        // Read first: the line is shared by all I/O threads, and hardly ever changes.
        if end > self.size.load(Ordering::Relaxed) {
            self.size.fetch_max(end, Ordering::Relaxed);
        }
    }

    async fn write_and_grow(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> Transfer {
        let end = offset.saturating_add(buf.len() as u64);
        let done = self.write_all(buf, offset, flags).await;
        if done.0.is_ok() {
            self.reached(end);
        }
        done
    }

    async fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        event::fallocate(&self.image, mode | libc::FALLOC_FL_KEEP_SIZE, offset, len).await
    }

    /// Tries an operation that the host may not have. `false`: it has not, try something else.
    async fn try_allocate(
        &self,
        able: &AtomicBool,
        mode: i32,
        offset: u64,
        len: u64,
    ) -> io::Result<bool> {
        if !able.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match self.allocate(mode, offset, len).await {
            Ok(()) => Ok(true),
            // Block devices refuse what is not aligned to their blocks in this way too.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) if is_unsupported(&error) => {
                able.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn write_zero_bytes(
        &self,
        mut offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let end = offset.saturating_add(len);
        while offset < end {
            // Up to a boundary, so that only the first piece can be misaligned.
            let piece = (ZERO_PIECE - offset % ZERO_PIECE).min(end - offset);
            let zeroes = usize::try_from(piece)
                .ok()
                .and_then(|len| IoBuf::zeroed_aligned(len, 4096))
                .ok_or(Errno::ENOMEM)?;
            self.write(zeroes, offset, flags).await.0?;
            offset += piece;
        }
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        // The kernel reports a failed write-back once, drops the pages, and reports success
        // from then on, although what was written is lost. Only O_DIRECT has no such pages.
        let lost = self.lost_writes.load(Ordering::Relaxed);
        if lost != 0 {
            return Err(io::Error::from_raw_os_error(lost));
        }
        let synced = event::fsync(&self.image, true).await;
        if let Err(error) = &synced
            && self.direct.is_none()
        {
            let number = error.raw_os_error().unwrap_or(libc::EIO);
            self.lost_writes.store(number, Ordering::Relaxed);
            log::error!(
                "{}: the host lost writes: {error}; the disk fails every flush from now on",
                self.path.display()
            );
        }
        synced
    }
}

impl Storage for FileStorage {
    async fn read(&self, buf: IoBuf, offset: u64) -> Transfer {
        match &self.direct {
            // Boxed, so that the future of a request that needs no help stays small.
            Some(direct) if !direct.suits(&buf, offset) => {
                Box::pin(direct.read(self, buf, offset)).await
            }
            _ => self.read_all(buf, offset).await,
        }
    }

    async fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> Transfer {
        let flags = WriteFlags {
            fua: flags.fua && !self.cache.ignores_flush(),
        };
        let Some(direct) = &self.direct else {
            return self.write_and_grow(buf, offset, flags).await;
        };
        if buf.is_empty() {
            return (Ok(()), buf);
        }
        if direct.suits(&buf, offset) {
            let end = offset.saturating_add(buf.len() as u64);
            let _guard = direct.stripes.shared(offset..end).await;
            return self.write_and_grow(buf, offset, flags).await;
        }
        Box::pin(direct.write(self, buf, offset, flags)).await
    }

    async fn flush(&self) -> io::Result<()> {
        if self.read_only || self.cache.ignores_flush() {
            return Ok(());
        }
        self.sync().await
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.unmap || len == 0 || !self.can.discard.load(Ordering::Relaxed) {
            return Ok(());
        }
        let result = match self.kind {
            Kind::File => {
                let _guard = self.share(offset, len).await;
                self.allocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len).await
            }
            Kind::Device => {
                let block = u64::from(self.limits.logical_block_size);
                let start = offset.next_multiple_of(block);
                let end = offset.saturating_add(len);
                let end = end - end % block;
                if start >= end {
                    return Ok(());
                }
                let _guard = self.share(start, end - start).await;
                let image = Arc::clone(&self.image);
                event::unblock(move || host::device_discard(&image.file, start, end - start))
                    .await
                    .unwrap_or_else(|gone| Err(io::Error::other(gone)))
            }
        };
        match result {
            Err(error) if is_unsupported(&error) => {
                self.can.discard.store(false, Ordering::Relaxed);
                Ok(())
            }
            other => other,
        }
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let fua = flags.fua && !self.cache.ignores_flush();
        let zeroed = {
            let _guard = self.share(offset, len).await;
            // On a block device the kernel unmaps by FALLOC_FL_PUNCH_HOLE only where that
            // makes the range read as zeros.
            flags.may_unmap
                && self.unmap
                && self
                    .try_allocate(
                        &self.can.punch_hole,
                        libc::FALLOC_FL_PUNCH_HOLE,
                        offset,
                        len,
                    )
                    .await?
                || self
                    .try_allocate(
                        &self.can.zero_range,
                        libc::FALLOC_FL_ZERO_RANGE,
                        offset,
                        len,
                    )
                    .await?
        };
        if !zeroed {
            return self.write_zero_bytes(offset, len, WriteFlags { fua }).await;
        }
        if fua { self.sync().await } else { Ok(()) }
    }

    async fn extent(&self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        let size = self.size.load(Ordering::Relaxed);
        if offset >= size {
            return Ok((false, len));
        }
        if self.kind == Kind::Device {
            return Ok((true, len));
        }
        let image = Arc::clone(&self.image);
        event::unblock(move || host::extent(&image.file, offset, len))
            .await
            .unwrap_or_else(|gone| Err(io::Error::other(gone)))
    }

    async fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.kind == Kind::Device || len == 0 {
            return Ok(());
        }
        let allocated = event::fallocate(&self.image, 0, offset, len).await;
        match allocated {
            Ok(()) => self.reached(offset.saturating_add(len)),
            Err(error) if is_unsupported(&error) => {
                return self
                    .write_zero_bytes(offset, len, WriteFlags::default())
                    .await;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn grows_with_zeros(&self) -> bool {
        self.kind == Kind::File
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    async fn resize(&self, size: u64) -> Result<(), BlockError> {
        let fail = |source| BlockError::Host {
            what: "change the size of",
            path: self.path.clone(),
            source,
        };
        if self.read_only {
            return Err(BlockError::Resize {
                path: self.path.clone(),
                size,
                why: "it is open read-only".into(),
            });
        }
        match self.kind {
            Kind::File => {
                self.set_len(size).await.map_err(fail)?;
                self.size.store(size, Ordering::Relaxed);
            }
            Kind::Device => {
                let has = host::device_size(&self.image.file).map_err(fail)?;
                if size > has {
                    return Err(BlockError::Resize {
                        path: self.path.clone(),
                        size,
                        why: format!("the device has {has} bytes; grow the device first"),
                    });
                }
                self.size.store(size, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }
}

impl FileStorage {
    /// Keeps read-modify-writes of the range out.
    async fn share(&self, offset: u64, len: u64) -> Option<stripes::Guard<'_>> {
        match &self.direct {
            Some(direct) => {
                let range = offset..offset.saturating_add(len);
                Some(direct.stripes.shared(range).await)
            }
            None => None,
        }
    }

    pub(super) async fn set_len(&self, size: u64) -> io::Result<()> {
        let image = Arc::clone(&self.image);
        event::unblock(move || image.file.set_len(size))
            .await
            .unwrap_or_else(|gone| Err(io::Error::other(gone)))
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::ENODEV)
    )
}
