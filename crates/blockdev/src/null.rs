//! Storages without a file: nothing, for measuring; and what stands in while a node is opened
//! anew.

use std::io;
use std::sync::Weak;

use block::storage::Storage;
use block::{
    BlockError, BlockStatus, IoBuf, Limits, Node, NodeFuture, SizeWatcher, Transfer, WriteFlags,
    ZeroFlags,
};
use nix::errno::Errno;

const LIMITS: Limits = Limits {
    request_alignment: 1,
    memory_alignment: 1,
    logical_block_size: 512,
    physical_block_size: 512,
    discard_granularity: 512,
    can_discard: true,
};

/// What is written is forgotten; what is read is zeros, or whatever is in the buffer.
pub(crate) struct Null {
    size: u64,
    read_zeroes: bool,
    read_only: bool,
}

impl Null {
    pub(crate) fn new(size: u64, read_zeroes: bool, read_only: bool) -> Self {
        Self {
            size,
            read_zeroes,
            read_only,
        }
    }
}

impl Storage for Null {
    async fn read(&self, buf: IoBuf, _offset: u64) -> Transfer {
        if self.read_zeroes {
            let len = buf.len();
            block::buffer::zero(&buf, len);
        }
        (Ok(()), buf)
    }
    async fn write(&self, buf: IoBuf, _offset: u64, _flags: WriteFlags) -> Transfer {
        (Ok(()), buf)
    }
    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    async fn write_zeroes(&self, _offset: u64, _len: u64, _flags: ZeroFlags) -> io::Result<()> {
        Ok(())
    }
    fn size(&self) -> u64 {
        self.size
    }
    async fn resize(&self, size: u64) -> Result<(), BlockError> {
        Err(BlockError::Resize {
            path: "null-co".into(),
            size,
            why: "it has the size that it was made with".to_owned(),
        })
    }
    fn limits(&self) -> Limits {
        LIMITS
    }
    async fn extent(&self, _offset: u64, len: u64) -> io::Result<(bool, u64)> {
        Ok((!self.read_zeroes, len))
    }
    async fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn grows_with_zeros(&self) -> bool {
        false
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
}

/// Stands in for a node that is being opened anew: it looks like it, and fails every request.
pub(crate) struct Frozen {
    name: String,
    size: u64,
    limits: Limits,
    read_only: bool,
}

impl Frozen {
    pub(crate) fn of(node: &dyn Node) -> Self {
        Self {
            name: node.name(),
            size: node.size(),
            limits: node.limits(),
            read_only: node.is_read_only(),
        }
    }
}

fn closed<'a, T: 'a>() -> NodeFuture<'a, io::Result<T>> {
    Box::pin(std::future::ready(Err(Errno::EIO.into())))
}

impl Node for Frozen {
    fn name(&self) -> String {
        self.name.clone()
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn limits(&self) -> Limits {
        self.limits
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn read_vectored(&self, buf: IoBuf, _offset: u64) -> NodeFuture<'_, Transfer> {
        Box::pin(std::future::ready((Err(Errno::EIO.into()), buf)))
    }
    fn write_vectored(
        &self,
        buf: IoBuf,
        _offset: u64,
        _flags: WriteFlags,
    ) -> NodeFuture<'_, Transfer> {
        Box::pin(std::future::ready((Err(Errno::EIO.into()), buf)))
    }
    fn flush(&self) -> NodeFuture<'_, io::Result<()>> {
        closed()
    }
    fn discard(&self, _offset: u64, _len: u64) -> NodeFuture<'_, io::Result<()>> {
        closed()
    }
    fn write_zeroes(
        &self,
        _offset: u64,
        _len: u64,
        _flags: ZeroFlags,
    ) -> NodeFuture<'_, io::Result<()>> {
        closed()
    }
    fn block_status(&self, _offset: u64, _len: u64) -> NodeFuture<'_, io::Result<BlockStatus>> {
        closed()
    }
    fn close(&self) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn resize(&self, size: u64) -> NodeFuture<'_, Result<(), BlockError>> {
        Box::pin(std::future::ready(Err(BlockError::Resize {
            path: self.name.clone().into(),
            size,
            why: "it is being opened anew".to_owned(),
        })))
    }
    fn watch_size(&self, _watcher: Weak<SizeWatcher>) {}
}
