use std::io;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use event::{IoBuf, WriteFlags};

use super::bucket::Direction;
use super::group::Membership;
use super::{ThrottleGroup, Unthrottled};
use crate::{BlockError, BlockStatus, Limits, Node, NodeFuture, SizeWatcher, Transfer, ZeroFlags};

/// A node in front of another whose reads and writes wait until the group's limits let them go.
/// Discards and writes of zeroes are writes of as many bytes; what moves no data does not wait.
///
/// The node's reads go in their order, and so do its writes; of a request that is dropped while
/// it waits, nothing is left. While the group has no limits, requests go straight to the other
/// node.
pub struct Throttle {
    name: String,
    inner: Arc<dyn Node>,
    place: ArcSwap<Membership>,
}

impl Throttle {
    /// A node in front of `inner`, whose limits are those of `group`.
    #[must_use]
    pub fn new(name: impl Into<String>, inner: Arc<dyn Node>, group: Arc<ThrottleGroup>) -> Self {
        Self {
            name: name.into(),
            inner,
            place: ArcSwap::new(Membership::new(group)),
        }
    }

    /// The node behind it.
    #[must_use]
    pub fn inner(&self) -> &Arc<dyn Node> {
        &self.inner
    }

    /// Its group, by which the limits can be changed.
    #[must_use]
    pub fn group(&self) -> Arc<ThrottleGroup> {
        Arc::clone(self.place.load().group())
    }

    /// Moves the node into another group. What waits in the old one goes at once; guards of
    /// [`Throttle::unthrottled`] from before hold only for the old one.
    pub fn set_group(&self, group: Arc<ThrottleGroup>) {
        let left = self.place.swap(Membership::new(group));
        drop(left.unthrottled());
    }

    /// Lets everything go that waits, and lets nothing of this node wait as long as the guard
    /// lives: for those who wait until nothing is in flight. It counts against the limits all the
    /// same, and so what comes afterwards waits for it.
    pub fn unthrottled(&self) -> Unthrottled {
        self.place.load().unthrottled()
    }

    fn is_limited(&self) -> bool {
        self.place.load().group().is_limited()
    }

    async fn admit(&self, direction: Direction, bytes: u64) {
        let place = self.place.load_full();
        place.admit(direction, bytes).await;
    }
}

impl Node for Throttle {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn read_vectored(&self, buf: IoBuf, offset: u64) -> NodeFuture<'_, Transfer> {
        if !self.is_limited() {
            return self.inner.read_vectored(buf, offset);
        }
        Box::pin(async move {
            self.admit(Direction::Read, buf.len() as u64).await;
            self.inner.read_vectored(buf, offset).await
        })
    }

    fn write_vectored(
        &self,
        buf: IoBuf,
        offset: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'_, Transfer> {
        if !self.is_limited() {
            return self.inner.write_vectored(buf, offset, flags);
        }
        Box::pin(async move {
            self.admit(Direction::Write, buf.len() as u64).await;
            self.inner.write_vectored(buf, offset, flags).await
        })
    }

    fn flush(&self) -> NodeFuture<'_, io::Result<()>> {
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        if !self.is_limited() {
            return self.inner.discard(offset, len);
        }
        Box::pin(async move {
            self.admit(Direction::Write, len).await;
            self.inner.discard(offset, len).await
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> NodeFuture<'_, io::Result<()>> {
        if !self.is_limited() {
            return self.inner.write_zeroes(offset, len, flags);
        }
        Box::pin(async move {
            self.admit(Direction::Write, len).await;
            self.inner.write_zeroes(offset, len, flags).await
        })
    }

    fn block_status(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<BlockStatus>> {
        self.inner.block_status(offset, len)
    }

    fn copy_up(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        self.inner.copy_up(offset, len)
    }

    fn close(&self) -> NodeFuture<'_, io::Result<()>> {
        self.inner.close()
    }

    fn resize(&self, size: u64) -> NodeFuture<'_, Result<(), BlockError>> {
        self.inner.resize(size)
    }

    fn watch_size(&self, watcher: Weak<SizeWatcher>) {
        self.inner.watch_size(watcher);
    }
}
