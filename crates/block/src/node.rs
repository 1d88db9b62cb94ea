use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError, Weak};

use event::{IoBuf, WriteFlags};

use crate::BlockError;

/// A request on its way: the one allocation that it costs.
pub type NodeFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What becomes of a transfer: its result, and the buffer, which comes back in any case. The
/// transfer may have advanced it.
pub type Transfer = (io::Result<()>, IoBuf);

/// How to write zeroes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// The space may be given back to the host.
    pub may_unmap: bool,
    /// Make the zeroes stable before the request completes.
    pub fua: bool,
}

/// What requests should look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths that are not multiples of this many bytes are correct but slow:
    /// they cost a bounce buffer, or reading, modifying and writing whole blocks.
    pub request_alignment: u32,
    /// Addresses in memory that are not multiples of this many bytes cost a bounce buffer.
    pub memory_alignment: u32,
    /// The smallest unit that the medium can address, in bytes.
    pub logical_block_size: u32,
    /// The smallest unit that the medium writes without reading it first, in bytes.
    pub physical_block_size: u32,
    /// Discards of less than this many bytes give nothing back.
    pub discard_granularity: u32,
    /// Whether [`Node::discard`] does anything.
    pub can_discard: bool,
}

/// What a part of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusKind {
    /// Bytes of a file.
    Data,
    /// Compressed bytes of a file.
    Compressed,
    /// It is known to read as zeros.
    Zero,
    /// Nothing is stored anywhere: it reads as zeros.
    Unallocated,
}

/// What a part of a disk is, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockStatus {
    /// Bytes from the offset on that are alike; not 0.
    pub len: u64,
    /// What they are.
    pub kind: StatusKind,
    /// Where they are in the node's file, if they are there as they are.
    pub host: Option<u64>,
    /// How many backing files down they are.
    pub depth: u32,
}

/// A disk as its users see it: a guest's device, a job, an export.
///
/// One node serves any number of queues on any number of I/O threads at once, through a shared
/// reference. Requests overlap in time and complete in any order; of two writes to the same
/// sectors at the same time, either may win, sector by sector. A request's future runs on the
/// I/O thread that made it. Offsets and lengths are bytes, of any alignment (see [`Limits`]).
///
/// Requests fail with the host's error numbers; and with `EINVAL` when they reach beyond
/// [`Node::size`], and `EROFS` when they would change a node that is open read-only.
pub trait Node: Send + Sync {
    /// Name in the block graph.
    fn name(&self) -> String;

    /// Size in bytes, a multiple of 512. It changes by [`Node::resize`].
    fn size(&self) -> u64;

    /// What requests should look like.
    fn limits(&self) -> Limits;

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;

    /// Reads into all of `buf`.
    fn read_vectored(&self, buf: IoBuf, offset: u64) -> NodeFuture<'_, Transfer>;

    /// Writes all of `buf`; with `fua`, it is stable before the request completes.
    fn write_vectored(
        &self,
        buf: IoBuf,
        offset: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'_, Transfer>;

    /// Makes every write that completed before stable.
    fn flush(&self) -> NodeFuture<'_, io::Result<()>>;

    /// Tells that the content of a range is of no more use. Reads of it are then undefined, but
    /// never show what others stored.
    fn discard(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>>;

    /// Makes a range read as zeros.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> NodeFuture<'_, io::Result<()>>;

    /// What the part of the disk is that begins at `offset` and has at most `len` bytes, which are
    /// not 0.
    fn block_status(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<BlockStatus>>;

    /// Makes the node have a range itself, by copying what it shows of the nodes below, and leaves
    /// alone what it has already. Writes to the range at the same time win.
    fn copy_up(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        // A node without others below has all of it.
        _ = (offset, len);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Writes what is kept in memory, makes it stable, and marks the image as closed. No change
    /// may come after it. An image that keeps nothing in memory has nothing to do.
    fn close(&self) -> NodeFuture<'_, io::Result<()>>;

    /// Changes the size to `size` bytes, and tells the watchers. The caller sees to it that no
    /// request to what is cut off is in flight.
    fn resize(&self, size: u64) -> NodeFuture<'_, Result<(), BlockError>>;

    /// Calls `watcher` with the new size, on any thread, after each change of the size, as long
    /// as the watcher lives.
    fn watch_size(&self, watcher: Weak<SizeWatcher>);
}

/// Whom to tell of a new size in bytes.
pub type SizeWatcher = dyn Fn(u64) + Send + Sync;

/// The watchers of a node's size.
#[derive(Default)]
pub struct SizeWatchers(Mutex<Vec<Weak<SizeWatcher>>>);

impl SizeWatchers {
    /// Adds one.
    pub fn add(&self, watcher: Weak<SizeWatcher>) {
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.strong_count() != 0);
        watchers.push(watcher);
    }

    /// Tells all that live.
    pub fn tell(&self, size: u64) {
        // A watcher may add others, so it is not called under the lock.
        let watchers = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for watcher in watchers.iter().filter_map(Weak::upgrade) {
            watcher(size);
        }
    }
}
