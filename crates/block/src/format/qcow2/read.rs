//! Reading.

use std::io;
use std::sync::Arc;

use event::IoBuf;

use super::Core;
use super::compress::decompress;
use super::mapping::{Extent, Kind};
use crate::buffer::{self, Parts};
use crate::storage::Storage;
use crate::{BlockStatus, Node, StatusKind, Transfer};

/// Extents of one request that are read at the same time.
const AT_ONCE: usize = 16;

impl<S: Storage> Core<S> {
    /// Reads into all of `buf`.
    pub(crate) async fn read(&self, buf: IoBuf, offset: u64) -> Transfer {
        if buf.is_empty() {
            return (Ok(()), buf);
        }
        let len = buf.len() as u64;
        let _range = self.ranges.shared(offset..offset + len).await;
        self.read_locked(buf, offset).await
    }

    /// As [`Core::read`], while the range is locked.
    pub(crate) async fn read_locked(&self, buf: IoBuf, offset: u64) -> Transfer {
        let len = buf.len() as u64;
        let first = match self.extent(offset, len).await {
            Ok(extent) => extent,
            Err(error) => return (Err(error), buf),
        };
        if first.len >= len {
            return self.read_extent(first, buf, offset).await;
        }
        // Boxed, so that the future of a request in one piece stays small.
        Box::pin(self.read_pieces(first, buf, offset)).await
    }

    async fn read_pieces(&self, first: Extent, buf: IoBuf, offset: u64) -> Transfer {
        let len = buf.len() as u64;
        let parts = Parts::new(buf);
        let mut extent = first;
        let mut done = 0;
        let mut result = Ok(());
        while done < len && result.is_ok() {
            let mut reads = Vec::new();
            while reads.len() < AT_ONCE {
                let part = parts.part(done as usize, extent.len as usize);
                reads.push(self.read_extent(extent, part, offset + done));
                done += extent.len;
                if done >= len {
                    break;
                }
                match self.extent(offset + done, len - done).await {
                    Ok(next) => extent = next,
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            for (read, _) in event::join_all(reads).await {
                result = result.and(read);
            }
        }
        (result, parts.into_whole())
    }

    /// Reads an extent, or a part of it, into all of `buf`.
    async fn read_extent(&self, extent: Extent, buf: IoBuf, offset: u64) -> Transfer {
        match extent.kind {
            Kind::Data(host) => self.read_data(buf, host, offset).await,
            Kind::Zero(_) => {
                buffer::zero(&buf, buf.len());
                (Ok(()), buf)
            }
            Kind::Unallocated => self.read_backing(buf, offset).await,
            Kind::Compressed(at, bytes) => match self.cluster_at(at, bytes).await {
                Ok(cluster) => {
                    let within = self.layout.within(offset) as usize;
                    let from = cluster.get(within..).unwrap_or_default();
                    buffer::scatter(&buf, &from[..from.len().min(buf.len())]);
                    (Ok(()), buf)
                }
                Err(error) => (Err(error), buf),
            },
        }
    }

    /// Reads from the data file what the guest has at `guest`.
    async fn read_data(&self, buf: IoBuf, host: u64, guest: u64) -> Transfer {
        match &self.crypt {
            None => self.data().read(buf, host).await,
            Some(crypt) => Box::pin(crypt.read(self.data(), buf, host, guest)).await,
        }
    }

    async fn read_backing(&self, buf: IoBuf, offset: u64) -> Transfer {
        let size = self.backing_size();
        let len = buf.len() as u64;
        match offset {
            _ if offset + len <= size => self.backing.read_vectored(buf, offset).await,
            _ if offset < size => {
                let there = (size - offset) as usize;
                let parts = Parts::new(buf);
                let rest = parts.part(there, len as usize);
                buffer::zero(&rest, rest.len());
                drop(rest);
                let part = parts.part(0, there);
                let (result, part) = self.backing.read_vectored(part, offset).await;
                drop(part);
                (result, parts.into_whole())
            }
            _ => {
                buffer::zero(&buf, buf.len());
                (Ok(()), buf)
            }
        }
    }

    /// The decompressed cluster whose stream is at `offset`.
    async fn cluster_at(&self, offset: u64, bytes: u64) -> io::Result<Arc<Vec<u8>>> {
        if let Some(cluster) = self.decompressed.find(offset) {
            return Ok(cluster);
        }
        let stream = self.read_metadata(offset, bytes).await?;
        let kind = self.header().compression;
        let size = self.layout.cluster() as usize;
        // Elsewhere: it takes longer than others on this thread should wait.
        let cluster = event::unblock(move || decompress(kind, &stream, size))
            .await
            .map_err(io::Error::other)??;
        let cluster = Arc::new(cluster);
        self.decompressed.add(offset, &cluster);
        Ok(cluster)
    }

    /// Reads a range that is locked into memory of ours.
    pub(crate) async fn read_old(&self, offset: u64, len: u64) -> io::Result<IoBuf> {
        let window = Parts::new(buffer::zeroed(usize::try_from(len).unwrap_or(usize::MAX))?);
        // Beyond the disk's end a cluster is zero.
        let end = self.size().next_multiple_of(super::SECTOR);
        let there = len.min(end.saturating_sub(offset));
        if there != 0 {
            let part = window.part(0, there as usize);
            let (result, part) = Box::pin(self.read_locked(part, offset)).await;
            drop(part);
            result?;
        }
        Ok(window.into_whole())
    }

    /// Whether a range that is locked is known to read as zeros.
    pub(crate) async fn is_zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let extent = self.extent(at, end - at).await?;
            match extent.kind {
                Kind::Zero(_) => (),
                Kind::Unallocated if self.is_zero_below(at) => (),
                _ => return Ok(false),
            }
            at += extent.len;
        }
        Ok(true)
    }

    /// What is at `offset`.
    pub(crate) async fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockStatus> {
        let _range = self.ranges.shared(offset..offset + len.max(1)).await;
        let extent = self.extent(offset, len).await?;
        let (kind, host) = match extent.kind {
            Kind::Data(_) if self.crypt.is_some() => (StatusKind::Data, None),
            Kind::Data(host) => (StatusKind::Data, Some(host)),
            Kind::Zero(host) => (StatusKind::Zero, host),
            Kind::Compressed(..) => (StatusKind::Compressed, None),
            Kind::Unallocated => {
                let size = self.backing_size();
                if offset < size {
                    let len = extent.len.min(size - offset);
                    let mut status = self.backing.block_status(offset, len).await?;
                    status.depth += 1;
                    return Ok(status);
                }
                return Ok(BlockStatus {
                    len: extent.len,
                    kind: StatusKind::Unallocated,
                    host: None,
                    depth: u32::from(self.backing.is_some()),
                });
            }
        };
        Ok(BlockStatus {
            len: extent.len,
            kind,
            host,
            depth: 0,
        })
    }
}
