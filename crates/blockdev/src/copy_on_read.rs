//! A filter that makes the image below it keep what is read through it.

use std::io;
use std::sync::{Arc, Weak};

use block::graph::Edge;
use block::{
    BlockError, BlockStatus, IoBuf, Limits, Node, NodeFuture, SizeWatcher, Transfer, WriteFlags,
    ZeroFlags,
};

/// A node in front of another. What is read is first copied up from the backing files.
pub(crate) struct CopyOnRead {
    name: String,
    below: Arc<Edge>,
}

impl CopyOnRead {
    pub(crate) fn new(name: String, below: Arc<Edge>) -> Arc<Self> {
        Arc::new(Self { name, below })
    }
}

impl Node for CopyOnRead {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size(&self) -> u64 {
        self.below.size()
    }

    fn limits(&self) -> Limits {
        self.below.limits()
    }

    fn is_read_only(&self) -> bool {
        self.below.is_read_only()
    }

    fn read_vectored(&self, buf: IoBuf, offset: u64) -> NodeFuture<'_, Transfer> {
        Box::pin(async move {
            let len = buf.len() as u64;
            // Reading works all the same when there is no space to keep it.
            if let Err(error) = self.below.copy_up(offset, len).await {
                log::debug!("copy on read of {len} bytes at {offset}: {error}");
            }
            self.below.read_vectored(buf, offset).await
        })
    }

    fn write_vectored(
        &self,
        buf: IoBuf,
        offset: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'_, Transfer> {
        self.below.write_vectored(buf, offset, flags)
    }

    fn flush(&self) -> NodeFuture<'_, io::Result<()>> {
        self.below.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        self.below.discard(offset, len)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> NodeFuture<'_, io::Result<()>> {
        self.below.write_zeroes(offset, len, flags)
    }

    fn block_status(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<BlockStatus>> {
        self.below.block_status(offset, len)
    }

    fn copy_up(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        self.below.copy_up(offset, len)
    }

    fn close(&self) -> NodeFuture<'_, io::Result<()>> {
        self.below.flush()
    }

    fn resize(&self, size: u64) -> NodeFuture<'_, Result<(), BlockError>> {
        self.below.resize(size)
    }

    fn watch_size(&self, watcher: Weak<SizeWatcher>) {
        self.below.watch_size(watcher);
    }
}
