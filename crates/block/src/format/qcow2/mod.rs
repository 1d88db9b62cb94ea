//! qcow2 images, versions 2 and 3 (QEMU docs/interop/qcow2.txt).
//!
//! ```text
//!   guest offset ─▶ L1 (in memory) ─▶ L2 [slices] ─▶ [layout] entry ─▶ host offset
//!                                                        │
//!                              unallocated: the backing file or zeros; compressed: [compress]
//!
//!   [read]  [write]  [change: zeroes, discard]  [size]       who asks, under locks of its range
//!      └───────┴──────────┴─────────────────────┘
//!   [refcounts] takes clusters       [checkpoint] brings metadata to the disk, in order
//! ```
//!
//! `docs/design/block.md` says which locks there are, what is ordered before what, and why.

mod bitmap;
mod bitmaps;
mod change;
mod check;
mod checkpoint;
mod compress;
mod copy_up;
mod counts;
mod create;
mod error;
mod header;
mod layout;
mod mapping;
mod open;
mod read;
mod refcounts;
mod repair;
mod size;
mod slices;
mod snapshot;
mod snapshots;
#[cfg(test)]
mod tests;
mod write;

use std::io;
use std::sync::{Arc, OnceLock, PoisonError};

use event::{IoBuf, WriteFlags};
use nix::errno::Errno;

use self::bitmaps::Bitmaps;
use self::checkpoint::{Checkpoints, Free};
use self::compress::Decompressed;
use self::header::Header;
use self::layout::Layout;
use self::refcounts::Refcounts;
use self::slices::Slices;
use crate::crypt::Crypt;
use crate::graph::Edge;
use crate::storage::Storage;
use crate::stripes::Stripes;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::{
    BlockError, BlockStatus, Limits, Node, NodeFuture, SizeWatcher, SizeWatchers, Transfer,
    ZeroFlags, buffer,
};

pub use self::bitmap::BitmapInfo;
pub use self::check::{CheckReport, Repair};
pub use self::create::{CreateOptions, Preallocation, create, preallocate};
pub use self::error::Qcow2Error;
pub use self::header::Compression;
pub use self::open::{ImageInfo, Opened, Qcow2Options, References};
pub use self::snapshot::{Snapshot, SnapshotRequest};

/// Sectors, in which guests count.
const SECTOR: u64 = 512;

/// A qcow2 image.
pub struct Qcow2<S> {
    name: String,
    core: Core<S>,
    watchers: SizeWatchers,
}

/// The image without its name.
pub(crate) struct Core<S> {
    /// The file that holds the metadata, and mostly the data too.
    image: S,
    /// Where the data is, if not in `image`.
    data: Option<S>,
    /// Leads nowhere when there is none.
    backing: Arc<Edge>,
    layout: Layout,
    options: Qcow2Options,
    /// As it is on the disk; changed under the checkpoint's lock.
    header: Mutex<Header>,
    /// Bytes of the disk.
    size: AtomicU64,
    /// Words of the L1 table, and which of them differ from the disk's.
    l1: RwLock<L1>,
    l2: Slices,
    refcounts: Refcounts,
    /// Guest ranges: shared by those that use a mapping, exclusive for those that change it.
    ranges: Stripes,
    /// Places of L2 tables, by index in L1.
    tables: Stripes,
    checkpoints: Checkpoints,
    /// What becomes of guests' data on its way to the disk, if anything.
    crypt: Option<Crypt>,
    /// References that were given up and are to be counted when that is stable.
    frees: Mutex<Vec<Free>>,
    /// Host ranges to which an abandoned write may still come.
    abandoned: Mutex<Vec<std::ops::Range<u64>>>,
    decompressed: Decompressed,
    bitmaps: Bitmaps,
    /// What was never written at the end of the file reads as zeros.
    grows_with_zeros: bool,
    read_only: bool,
    /// The image contradicts itself: it is not changed any more.
    is_corrupt: AtomicBool,
    /// Who is told of that.
    on_corruption: OnceLock<OnCorruption>,
    /// The dirty bit is set on the disk.
    is_marked_dirty: AtomicBool,
}

/// Is told why an image is corrupt, on any I/O thread.
pub type OnCorruption = Box<dyn Fn(&str) + Send + Sync>;

/// The L1 table.
#[derive(Default)]
struct L1 {
    words: Vec<u64>,
    changed: std::collections::BTreeSet<usize>,
}

impl<S: Storage> Core<S> {
    fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn l1(&self) -> RwLockReadGuard<'_, L1> {
        self.l1.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn l1_mut(&self) -> RwLockWriteGuard<'_, L1> {
        self.l1.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes in the dirty bitmaps what is about to be changed.
    fn record(&self, offset: u64, len: u64) {
        self.bitmaps.record(offset..offset + len);
    }

    /// Where data is.
    fn data(&self) -> &S {
        self.data.as_ref().unwrap_or(&self.image)
    }

    /// Bytes of the disk, as its header says.
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Reads metadata.
    async fn read_metadata(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        read_bytes(&self.image, offset, len).await
    }

    /// Writes metadata; the lock of the checkpoint is held until the kernel is done with it.
    async fn write_metadata(
        &self,
        guard: &Arc<checkpoint::Guard>,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        let buf = buffer::with_guard(buffer::aligned(bytes)?, Arc::clone(guard));
        let flags = WriteFlags::default();
        self.image.write(buf, offset, flags).await.0
    }

    /// Makes all completed writes to the files stable.
    async fn sync(&self) -> io::Result<()> {
        if let Some(data) = &self.data {
            data.flush().await?;
        }
        self.image.flush().await
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size().next_multiple_of(SECTOR) => Ok(()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn check_change(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.read_only {
            return Err(Errno::EROFS.into());
        }
        if self.is_corrupt.load(Ordering::Relaxed) {
            return Err(Qcow2Error::MarkedCorrupt.into());
        }
        self.check(offset, len)
    }

    /// The image contradicts itself: it is marked so, and not changed any more.
    async fn corrupt(&self, why: &'static str) -> io::Error {
        if !self.is_corrupt.swap(true, Ordering::SeqCst) {
            log::error!("a qcow2 image is corrupt: {why}; it takes no more writes");
            if let Some(tell) = self.on_corruption.get() {
                tell(why);
            }
            if !self.read_only
                && let Err(error) = self.mark_corrupt().await
            {
                log::error!("and cannot be marked so: {error}");
            }
        }
        Qcow2Error::Corrupt(why).into()
    }
}

/// Reads `len` bytes; what is beyond the end is zero.
async fn read_bytes<S: Storage>(storage: &S, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
    let (result, buf) = storage.read(buffer::zeroed(len)?, offset).await;
    result?;
    // The buffer is one of ours.
    Ok(buf.bytes().map(<[u8]>::to_vec).unwrap_or_default())
}

impl<S: Storage> Qcow2<S> {
    /// What the image says about itself.
    #[must_use]
    pub fn info(&self) -> ImageInfo {
        ImageInfo {
            encryption: self.core.crypt.as_ref().map(|crypt| crypt.kind.clone()),
            ..ImageInfo::of(&self.core.header())
        }
    }

    /// Where the LUKS header begins in the file with the metadata, if there is one.
    pub(crate) fn luks_header(&self) -> Option<u64> {
        let header = self.core.header();
        let (at, _) = header.encryption?;
        (header.crypt_method == header::crypt::LUKS).then_some(at)
    }

    /// The file that holds the metadata.
    pub fn storage(&self) -> &S {
        &self.core.image
    }

    /// Writes a cluster in compressed form, where that makes it shorter. `data` is a cluster, or
    /// less at the end of the disk; `offset` is where a cluster begins.
    ///
    /// # Errors
    /// The host fails; or the image cannot have compressed clusters.
    pub async fn write_compressed(&self, data: Vec<u8>, offset: u64) -> io::Result<()> {
        self.core.check_change(offset, data.len() as u64)?;
        self.core.record(offset, data.len() as u64);
        self.core.write_compressed(data, offset).await
    }

    /// The internal snapshots.
    ///
    /// # Errors
    /// Their table is damaged or cannot be read.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, Qcow2Error> {
        let header = self.core.header().clone();
        Ok(self.core.read_snapshots(&header).await?.0)
    }

    /// Calls `tell` with the reason when the image turns out to be corrupt. Only the first of them
    /// counts.
    pub fn on_corruption(&self, tell: OnCorruption) {
        // Somebody listens already.
        _ = self.core.on_corruption.set(tell);
    }

    /// The way to its backing file, which can be led to another one.
    pub fn backing(&self) -> &Arc<Edge> {
        &self.core.backing
    }

    /// Records another backing file in the header, or none. The open image keeps the one it has.
    ///
    /// # Errors
    /// The header has no room for the name, or the host fails.
    pub async fn set_backing(
        &self,
        name: Option<&[u8]>,
        format: Option<&str>,
    ) -> Result<(), Qcow2Error> {
        self.core.set_backing(name, format).await
    }

    /// Gives up everything that the image has, so that the backing file shows.
    ///
    /// # Errors
    /// The host fails.
    pub async fn make_empty(&self) -> Result<(), Qcow2Error> {
        self.core.make_empty().await
    }

    /// Brings everything to the disk and marks the image clean. It must not be changed after
    /// that.
    ///
    /// # Errors
    /// The host fails a write.
    pub async fn close(&self) -> io::Result<()> {
        if self.core.read_only {
            return Ok(());
        }
        self.core.close().await
    }
}

impl<S: Storage> Node for Qcow2<S> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size(&self) -> u64 {
        self.core.size().next_multiple_of(SECTOR)
    }

    fn limits(&self) -> Limits {
        let host = self.core.data().limits();
        let subcluster = self.core.layout.subcluster() as u32;
        Limits {
            logical_block_size: SECTOR as u32,
            discard_granularity: subcluster.max(host.discard_granularity),
            can_discard: !self.core.read_only,
            ..host
        }
    }

    fn is_read_only(&self) -> bool {
        self.core.read_only
    }

    fn read_vectored(&self, buf: IoBuf, offset: u64) -> NodeFuture<'_, Transfer> {
        Box::pin(async move {
            match self.core.check(offset, buf.len() as u64) {
                Ok(()) => self.core.read(buf, offset).await,
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
            match self.core.check_change(offset, buf.len() as u64) {
                Ok(()) => {
                    self.core.record(offset, buf.len() as u64);
                    self.core.write(buf, offset, flags).await
                }
                Err(error) => (Err(error), buf),
            }
        })
    }

    fn flush(&self) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move {
            match self.core.read_only {
                true => Ok(()),
                false => self.core.flush().await,
            }
        })
    }

    fn discard(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.core.check_change(offset, len)?;
            self.core.record(offset, len);
            self.core.discard(offset, len).await
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.core.check_change(offset, len)?;
            self.core.record(offset, len);
            self.core.write_zeroes(offset, len, flags).await
        })
    }

    fn block_status(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<BlockStatus>> {
        Box::pin(async move {
            self.core.check(offset, len)?;
            self.core.block_status(offset, len).await
        })
    }

    fn copy_up(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.core.check_change(offset, len)?;
            self.core.copy_up(offset, len).await
        })
    }

    fn resize(&self, size: u64) -> NodeFuture<'_, Result<(), BlockError>> {
        Box::pin(async move {
            let resized = self.core.resize(size).await;
            resized.map_err(|source| BlockError::Qcow2 {
                what: "resize",
                path: self.name.clone().into(),
                source,
            })?;
            self.watchers.tell(self.size());
            Ok(())
        })
    }

    fn close(&self) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(Qcow2::close(self))
    }

    fn watch_size(&self, watcher: std::sync::Weak<SizeWatcher>) {
        self.watchers.add(watcher);
    }
}
