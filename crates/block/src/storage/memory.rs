//! A storage in memory that remembers what was asked of it and fails on demand. (Feature
//! `testing`.)

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event::{IoBuf, WriteFlags};

use super::Storage;
use crate::{BlockError, Limits, Transfer, ZeroFlags, buffer};

/// It grows up to this number of bytes.
const LARGEST: u64 = 64 << 20;

/// The storage; clones are the same storage.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

struct Inner {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
    fail_with: AtomicI32,
    flushes: AtomicU64,
    stable_writes: AtomicU64,
    discarded: AtomicU64,
}

impl Memory {
    /// `size` zero bytes.
    #[must_use]
    pub fn new(size: usize, read_only: bool) -> Self {
        Self(Arc::new(Inner {
            bytes: Mutex::new(vec![0; size]),
            read_only,
            fail_with: AtomicI32::new(0),
            flushes: AtomicU64::new(0),
            stable_writes: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
        }))
    }

    /// From now on every request fails with this error number; 0 ends that.
    pub fn fail_with(&self, errno: i32) {
        self.0.fail_with.store(errno, Ordering::Relaxed);
    }

    /// How many flushes there were.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.0.flushes.load(Ordering::Relaxed)
    }

    /// How many writes were to be stable before their completion.
    #[must_use]
    pub fn stable_writes(&self) -> u64 {
        self.0.stable_writes.load(Ordering::Relaxed)
    }

    /// How many bytes were discarded.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.0.discarded.load(Ordering::Relaxed)
    }

    /// What is stored.
    pub fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every request takes a turn of the executor, as one to a file would.
    async fn begin(&self) -> io::Result<()> {
        event::yield_now().await;
        match self.0.fail_with.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Storage for Memory {
    async fn read(&self, buf: IoBuf, offset: u64) -> Transfer {
        let result = self.begin().await.map(|()| {
            let (bytes, from) = (self.bytes(), offset as usize);
            let to = bytes.len().min(from.saturating_add(buf.len()));
            buffer::zero(&buf, buf.len());
            buffer::scatter(&buf, bytes.get(from..to).unwrap_or_default());
        });
        (result, buf)
    }

    async fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> Transfer {
        let end = offset.saturating_add(buf.len() as u64);
        let fits = match end <= LARGEST {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::EFBIG)),
        };
        let result = self.begin().await.and(fits).map(|()| {
            let (mut bytes, from) = (self.bytes(), offset as usize);
            let to = from + buf.len();
            if bytes.len() < to {
                bytes.resize(to, 0);
            }
            buffer::gather(&buf, &mut bytes[from..to]);
            self.0
                .stable_writes
                .fetch_add(flags.fua.into(), Ordering::Relaxed);
        });
        (result, buf)
    }

    async fn flush(&self) -> io::Result<()> {
        self.begin().await?;
        self.0.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn discard(&self, _offset: u64, len: u64) -> io::Result<()> {
        self.begin().await?;
        self.0.discarded.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        self.begin().await?;
        let from = offset as usize;
        let mut bytes = self.bytes();
        let end = bytes.len().min(from.saturating_add(len as usize));
        bytes[from.min(end)..end].fill(0);
        drop(bytes);
        if flags.may_unmap {
            self.0.discarded.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn extent(&self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        Ok((offset < self.size(), len))
    }

    async fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = (offset + len) as usize;
        let mut bytes = self.bytes();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        Ok(())
    }

    fn grows_with_zeros(&self) -> bool {
        true
    }

    fn size(&self) -> u64 {
        self.bytes().len() as u64
    }

    async fn resize(&self, size: u64) -> Result<(), BlockError> {
        if size > LARGEST {
            return Err(BlockError::Resize {
                path: "memory".into(),
                size,
                why: "that is too large".into(),
            });
        }
        self.bytes().resize(size as usize, 0);
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            memory_alignment: 1,
            logical_block_size: 512,
            physical_block_size: 4096,
            discard_granularity: 4096,
            can_discard: !self.0.read_only,
        }
    }

    fn is_read_only(&self) -> bool {
        self.0.read_only
    }
}
