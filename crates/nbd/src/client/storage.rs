//! A client as a storage: requests cut to what the server takes.

use std::io;

use block::storage::Storage;
use block::storage::tools::{Guard, Parts, gather, scatter, zero};
use block::{BlockError, Limits, Transfer, WriteFlags, ZeroFlags};
use event::{IoBuf, join_all};
use nix::errno::Errno;

use super::Client;
use crate::protocol::{allocation, command, flag, transmission};

/// The unit in which guests count.
const SECTOR: u64 = 512;
/// Bytes that are zeroed or discarded at once.
const LARGE: u64 = 1 << 30;

fn lost() -> IoBuf {
    IoBuf::from_vec(Vec::new())
}

impl Client {
    fn block(&self) -> u64 {
        self.facts.min_block.into()
    }

    fn is_aligned(&self, offset: u64, len: u64) -> bool {
        (offset | len) & (self.block() - 1) == 0
    }

    /// How much of a range that is to be changed is there. A disk has whole sectors: of the last
    /// one, the export may have a part only.
    fn inside(&self, offset: u64, len: u64) -> io::Result<u64> {
        if Storage::is_read_only(self) {
            return Err(Errno::EROFS.into());
        }
        let size = self.facts.size;
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(len),
            Some(end) if offset <= size && end <= size.next_multiple_of(SECTOR) => {
                Ok(size - offset)
            }
            // As a file system that is full: the export does not grow.
            _ => Err(Errno::ENOSPC.into()),
        }
    }

    /// One read or write, in as many requests as the server needs, which run at once.
    async fn transfer(&self, command: u16, flags: u16, buf: IoBuf, offset: u64) -> Transfer {
        let len = buf.len();
        let most = usize::try_from(self.facts.max_payload).unwrap_or(usize::MAX);
        if len <= most {
            let done = self
                .order(command, flags, offset, len as u64, Some(buf))
                .await;
            return (done.result, done.buf.unwrap_or_else(lost));
        }
        let parts = Parts::new(buf);
        let pieces = (0..len).step_by(most).map(|at| {
            let piece = parts.part(at, most);
            let (at, len) = (offset.saturating_add(at as u64), piece.len() as u64);
            self.order(command, flags, at, len, Some(piece))
        });
        let done = join_all(pieces).await;
        let result = done.into_iter().try_for_each(|outcome| {
            drop(outcome.buf);
            outcome.result
        });
        (result, parts.into_whole())
    }

    /// Whole blocks around a range, in memory of their own.
    async fn read_around(&self, offset: u64, len: u64) -> io::Result<(u64, Vec<u8>)> {
        let start = offset - offset % self.block();
        let end = offset.saturating_add(len).next_multiple_of(self.block());
        let len = usize::try_from(end - start).map_err(|_| Errno::ENOMEM)?;
        let buf = IoBuf::from_vec(vec![0; len]);
        let (result, buf) = self.transfer(command::READ, 0, buf, start).await;
        result?;
        Ok((start, buf.into_vec().unwrap_or_default()))
    }

    /// Keeps read-modify-writes of a range out, where there are any.
    async fn share(&self, offset: u64, len: u64) -> Option<Guard<'_>> {
        match self.block() {
            1 => None,
            _ => Some(
                self.stripes
                    .shared(offset..offset.saturating_add(len))
                    .await,
            ),
        }
    }

    /// Writes a range that does not consist of blocks.
    async fn write_around(&self, offset: u64, bytes: &[u8], flags: u16) -> io::Result<()> {
        let len = bytes.len() as u64;
        let start = offset - offset % self.block();
        let end = offset.saturating_add(len).next_multiple_of(self.block());
        let _guard = self.stripes.exclusive(start..end).await;
        let (start, mut blocks) = self.read_around(offset, len).await?;
        let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let to = blocks
            .get_mut(at..)
            .and_then(|rest| rest.get_mut(..bytes.len()));
        to.ok_or(Errno::EIO)?.copy_from_slice(bytes);
        let buf = IoBuf::from_vec(blocks);
        self.transfer(command::WRITE, flags, buf, start).await.0
    }

    async fn write_any(&self, buf: IoBuf, offset: u64, flags: u16) -> Transfer {
        let len = buf.len() as u64;
        if self.is_aligned(offset, len) {
            let _guard = self.share(offset, len).await;
            return self.transfer(command::WRITE, flags, buf, offset).await;
        }
        let mut bytes = vec![0; buf.len()];
        gather(&buf, &mut bytes);
        (self.write_around(offset, &bytes, flags).await, buf)
    }

    /// A change without a payload, in pieces of whole blocks.
    async fn change(&self, command: u16, flags: u16, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let piece = LARGE.min(end - at);
            let _guard = self.share(at, piece).await;
            self.order(command, flags, at, piece, None).await.result?;
            at += piece;
        }
        Ok(())
    }

    /// Flags of a write that is to be stable, and whether a flush has to follow it.
    fn stable(&self, fua: bool) -> (u16, bool) {
        match (fua, self.facts.has(transmission::SEND_FUA)) {
            (true, true) => (flag::FUA, false),
            (fua, _) => (0, fua),
        }
    }

    async fn zero_bytes(&self, mut offset: u64, len: u64, flags: u16) -> io::Result<()> {
        let end = offset.saturating_add(len);
        while offset < end {
            let piece = (end - offset).min(u64::from(self.facts.max_payload).min(1 << 20));
            let zeros = IoBuf::from_vec(vec![0; usize::try_from(piece).unwrap_or(0)]);
            self.write_any(zeros, offset, flags).await.0?;
            offset += piece;
        }
        Ok(())
    }
}

impl Storage for Client {
    async fn read(&self, buf: IoBuf, offset: u64) -> Transfer {
        let len = buf.len();
        if len == 0 {
            return (Ok(()), buf);
        }
        let there = self.facts.size.saturating_sub(offset).min(len as u64);
        let there = usize::try_from(there).unwrap_or(len);
        if there == 0 {
            zero(&buf, len);
            return (Ok(()), buf);
        }
        if there < len {
            let parts = Parts::new(buf);
            let rest = parts.part(there, len - there);
            zero(&rest, rest.len());
            drop(rest);
            let read = Box::pin(self.read(parts.part(0, there), offset)).await;
            drop(read.1);
            return (read.0, parts.into_whole());
        }
        if self.is_aligned(offset, len as u64) {
            return self.transfer(command::READ, 0, buf, offset).await;
        }
        let around = self.read_around(offset, len as u64).await;
        let result = around.and_then(|(start, bytes)| {
            let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
            let from = bytes.get(at..).and_then(|rest| rest.get(..len));
            scatter(&buf, from.ok_or(Errno::EIO)?);
            Ok(())
        });
        (result, buf)
    }

    async fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> Transfer {
        let len = buf.len();
        let inside = match self.inside(offset, len as u64) {
            Ok(inside) => usize::try_from(inside).unwrap_or(len),
            Err(error) => return (Err(error), buf),
        };
        if inside < len {
            // What is not there reads as zeros, and can be written as such only.
            let mut bytes = vec![0; len];
            gather(&buf, &mut bytes);
            if bytes.iter().skip(inside).any(|byte| *byte != 0) {
                return (Err(Errno::ENOSPC.into()), buf);
            }
            bytes.truncate(inside);
            let write = Box::pin(self.write(IoBuf::from_vec(bytes), offset, flags));
            return (write.await.0, buf);
        }
        if len == 0 {
            return (Ok(()), buf);
        }
        let (flags, flush) = self.stable(flags.fua);
        let (result, buf) = self.write_any(buf, offset, flags).await;
        match result {
            Ok(()) if flush => (self.flush().await, buf),
            other => (other, buf),
        }
    }

    async fn flush(&self) -> io::Result<()> {
        // A server without flushes has nothing to flush, or no way to.
        if !self.facts.has(transmission::SEND_FLUSH) || Storage::is_read_only(self) {
            return Ok(());
        }
        self.order(command::FLUSH, 0, 0, 0, None).await.result
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let len = self.inside(offset, len)?;
        let start = offset.next_multiple_of(self.block());
        let end = offset.saturating_add(len);
        let end = end - end % self.block();
        if start >= end || !self.facts.has(transmission::SEND_TRIM) {
            return Ok(());
        }
        self.change(command::TRIM, 0, start, end - start).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        let len = self.inside(offset, len)?;
        let (stable, flush) = self.stable(flags.fua);
        let start = offset.next_multiple_of(self.block());
        let end = offset.saturating_add(len);
        let whole_end = end - end % self.block();
        if !self.facts.has(transmission::SEND_WRITE_ZEROES) || start >= whole_end {
            self.zero_bytes(offset, len, stable).await?;
        } else {
            let hole = if flags.may_unmap { 0 } else { flag::NO_HOLE };
            self.zero_bytes(offset, start - offset, stable).await?;
            self.change(
                command::WRITE_ZEROES,
                stable | hole,
                start,
                whole_end - start,
            )
            .await?;
            self.zero_bytes(whole_end, end - whole_end, stable).await?;
        }
        if flush { self.flush().await } else { Ok(()) }
    }

    fn size(&self) -> u64 {
        self.facts.size
    }

    async fn resize(&self, size: u64) -> Result<(), BlockError> {
        Err(BlockError::Resize {
            path: self.options.address.to_string().into(),
            size,
            why: "the protocol cannot change an export's size".into(),
        })
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.facts.min_block,
            memory_alignment: 1,
            logical_block_size: self.facts.min_block.max(512),
            physical_block_size: self.facts.preferred_block.clamp(512, 64 << 10),
            discard_granularity: self.facts.preferred_block.max(512),
            can_discard: self.facts.has(transmission::SEND_TRIM) && !Storage::is_read_only(self),
        }
    }

    async fn extent(&self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        if offset >= self.facts.size {
            return Ok((false, len));
        }
        let len = len.min(self.facts.size - offset);
        if self.facts.allocation.is_none() {
            return Ok((true, len));
        }
        let (flags, len) = self.status(self.facts.allocation, offset, len).await?;
        Ok((flags & allocation::ZERO == 0, len))
    }

    async fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        // What the export has it has.
        self.inside(offset, len).map(|_| ())
    }

    fn grows_with_zeros(&self) -> bool {
        false
    }

    fn is_read_only(&self) -> bool {
        self.options.read_only || self.facts.is_read_only()
    }
}
