//! Copying a range from one disk to another.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use block::graph::Vertex;
use block::storage::tools::Parts;
use block::{Node, StatusKind, WriteFlags, ZeroFlags};
use event::IoBuf;

use super::status::Operation;

/// An error, and whose it is.
pub(super) struct Failure {
    pub(super) operation: Operation,
    pub(super) error: io::Error,
}

pub(super) fn read_failed(error: io::Error) -> Failure {
    Failure {
        operation: Operation::Read,
        error,
    }
}

pub(super) fn write_failed(error: io::Error) -> Failure {
    Failure {
        operation: Operation::Write,
        error,
    }
}

/// Memory for a copy, which suits every host's O_DIRECT.
pub(super) fn memory(len: u64) -> io::Result<IoBuf> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    IoBuf::zeroed_aligned(len, 4096).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Whether what has this status reads as zeros.
pub(super) fn is_zero(kind: StatusKind) -> bool {
    matches!(kind, StatusKind::Zero | StatusKind::Unallocated)
}

/// Copies from one disk to another: zeros as zeros, and holes as holes.
pub(super) struct Copier {
    /// Where from.
    pub(super) source: Arc<Vertex>,
    /// Where to.
    pub(super) target: Arc<Vertex>,
    /// Zeros give the target's space back.
    pub(super) unmap: bool,
    /// The target has zeros itself, so that they stay when it gets another backing file.
    pub(super) own_zeros: bool,
    /// What is so many backing files down, or more, is left alone.
    pub(super) layers: Option<u32>,
}

impl Copier {
    /// Copies a range. Returns how many bytes were moved.
    pub(super) async fn copy(&self, range: Range<u64>) -> Result<u64, Failure> {
        let (mut at, mut moved) = (range.start, 0);
        while at < range.end {
            let left = range.end - at;
            let status = self.source.block_status(at, left).await;
            let status = status.map_err(read_failed)?;
            let len = status.len.clamp(1, left);
            if self.layers.is_some_and(|layers| status.depth >= layers) {
                // It is in the target already, or below it.
            } else if is_zero(status.kind) {
                self.zero(at, len).await.map_err(write_failed)?;
            } else {
                self.data(at, len).await?;
                moved += len;
            }
            at += len;
        }
        Ok(moved)
    }

    async fn data(&self, offset: u64, len: u64) -> Result<(), Failure> {
        let bytes = Parts::new(memory(len).map_err(read_failed)?);
        let all = || bytes.part(0, usize::MAX);
        let (read, _) = self.source.read_vectored(all(), offset).await;
        read.map_err(read_failed)?;
        let flags = WriteFlags::default();
        let (written, _) = self.target.write_vectored(all(), offset, flags).await;
        written.map_err(write_failed)
    }

    /// Makes a range of the target read as zeros, unless it does.
    async fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = ZeroFlags {
            may_unmap: self.unmap,
            fua: false,
        };
        if self.own_zeros {
            self.target.write_zeroes(offset, len, flags).await?;
        }
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let status = self.target.block_status(at, end - at).await?;
            let len = status.len.clamp(1, end - at);
            match (self.own_zeros, status.kind) {
                (false, kind) if is_zero(kind) => (),
                (false, _) => self.target.write_zeroes(at, len, flags).await?,
                // An image without a backing file need not store them. This one must.
                (true, StatusKind::Unallocated) => self.write_zeros(at, len).await?,
                (true, _) => (),
            }
            at += len;
        }
        Ok(())
    }

    async fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = WriteFlags::default();
        self.target
            .write_vectored(memory(len)?, offset, flags)
            .await
            .0
    }
}
