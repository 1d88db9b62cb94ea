//! Copying a range from one disk to another.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// Memory that was used before.
    pub(super) pool: Pool,
}

/// What a part of the source is to the copier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Data,
    Zero,
    /// Of a layer that is not copied.
    Other,
}

/// Memory for copies: fresh memory is zeroed and faulted in, which costs as much as a copy.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<IoBuf>>);

/// Buffers that are kept.
const KEPT: usize = 16;
/// Bytes of the smallest buffer.
const SMALLEST: u64 = 64 << 10;

impl Pool {
    fn buffers(&self) -> MutexGuard<'_, Vec<IoBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At least `len` bytes.
    fn take(&self, len: u64) -> io::Result<IoBuf> {
        let mut buffers = self.buffers();
        match buffers.iter().position(|buf| buf.len() as u64 >= len) {
            Some(at) => Ok(buffers.swap_remove(at)),
            None => memory(len.max(SMALLEST)),
        }
    }

    /// Keeps a buffer. One that an operation still has is empty.
    fn give(&self, buf: IoBuf) {
        let mut buffers = self.buffers();
        if !buf.is_empty() && buffers.len() < KEPT {
            buffers.push(buf);
        }
    }
}

impl Copier {
    /// Copies a range. Returns how many bytes were moved.
    pub(super) async fn copy(&self, range: Range<u64>) -> Result<u64, Failure> {
        let (mut at, mut moved) = (range.start, 0);
        let mut next = None;
        while at < range.end {
            let (what, mut end) = match next.take() {
                Some(part) => part,
                None => self.part(at..range.end).await?,
            };
            // What lies in pieces in the source is read at once.
            while end < range.end {
                let part = self.part(end..range.end).await?;
                if part.0 != what {
                    next = Some(part);
                    break;
                }
                end = part.1;
            }
            let len = end - at;
            match what {
                Part::Other => (),
                Part::Zero => self.zero(at, len).await.map_err(write_failed)?,
                Part::Data => {
                    self.data(at, len).await?;
                    moved += len;
                }
            }
            at = end;
        }
        Ok(moved)
    }

    /// What the first part of a range is, and where it ends.
    async fn part(&self, range: Range<u64>) -> Result<(Part, u64), Failure> {
        let left = range.end - range.start;
        let status = self.source.block_status(range.start, left).await;
        let status = status.map_err(read_failed)?;
        let part = match status.kind {
            _ if self.layers.is_some_and(|layers| status.depth >= layers) => Part::Other,
            kind if is_zero(kind) => Part::Zero,
            _ => Part::Data,
        };
        Ok((part, range.start + status.len.clamp(1, left)))
    }

    async fn data(&self, offset: u64, len: u64) -> Result<(), Failure> {
        let bytes = Parts::new(self.pool.take(len).map_err(read_failed)?);
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        let (read, part) = self.source.read_vectored(bytes.part(0, size), offset).await;
        drop(part);
        read.map_err(read_failed)?;
        let flags = WriteFlags::default();
        let (written, part) = self
            .target
            .write_vectored(bytes.part(0, size), offset, flags)
            .await;
        drop(part);
        self.pool.give(bytes.into_whole());
        written.map_err(write_failed)
    }

    /// Whether all of a range of the target is known to read as zeros.
    pub(super) async fn is_target_zero(&self, range: Range<u64>) -> io::Result<bool> {
        let mut at = range.start;
        while at < range.end {
            let left = range.end - at;
            let status = self.target.block_status(at, left).await?;
            if !is_zero(status.kind) {
                return Ok(false);
            }
            at += status.len.clamp(1, left);
        }
        Ok(true)
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
