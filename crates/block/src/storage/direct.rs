//! O_DIRECT for requests that are not aligned as it wants: through a buffer of our own, and by
//! reading, modifying and writing whole blocks.

use std::sync::atomic::Ordering;

use event::{IoBuf, WriteFlags};
use nix::errno::Errno;

use super::file::{Direct, FileStorage, Kind};
use crate::{Transfer, buffer};

/// A request is carried out in pieces of at most this many bytes: what a guest asks for must not
/// decide how much memory we take.
const PIECE: u64 = 128 << 10;

impl Direct {
    /// Whether the request can go to the host as it is.
    pub(super) fn suits(&self, buf: &IoBuf, offset: u64) -> bool {
        let request = self.alignment.request as usize;
        offset.is_multiple_of(self.block())
            && buffer::is_aligned(buf, self.alignment.memory as usize, request)
    }

    fn block(&self) -> u64 {
        u64::from(self.alignment.request)
    }

    fn buffer(&self, len: u64) -> Result<IoBuf, Errno> {
        let align = self.alignment.memory.max(self.alignment.request) as usize;
        usize::try_from(len)
            .ok()
            .and_then(|len| IoBuf::zeroed_aligned(len, align))
            .ok_or(Errno::ENOMEM)
    }

    pub(super) async fn read(
        &self,
        storage: &FileStorage,
        mut buf: IoBuf,
        mut offset: u64,
    ) -> Transfer {
        while !buf.is_empty() {
            let piece = Piece::first(offset, buf.len() as u64, self.block());
            let bounce = match self.buffer(piece.blocks()) {
                Ok(bounce) => bounce,
                Err(errno) => return (Err(errno.into()), buf),
            };
            let (result, bounce) = storage.read_all(bounce, piece.start).await;
            if let Err(error) = result {
                return (Err(error), buf);
            }
            let bytes = bounce.bytes().unwrap_or_default();
            buffer::scatter(&buf, &bytes[piece.payload()]);
            buf.advance(piece.len());
            offset = piece.to;
        }
        (Ok(()), buf)
    }

    pub(super) async fn write(
        &self,
        storage: &FileStorage,
        mut buf: IoBuf,
        mut offset: u64,
        flags: WriteFlags,
    ) -> Transfer {
        while !buf.is_empty() {
            let piece = Piece::first(offset, buf.len() as u64, self.block());
            if let Err(error) = self.write_piece(storage, &buf, &piece, flags).await {
                return (Err(error), buf);
            }
            buf.advance(piece.len());
            offset = piece.to;
        }
        (Ok(()), buf)
    }

    async fn write_piece(
        &self,
        storage: &FileStorage,
        buf: &IoBuf,
        piece: &Piece,
        flags: WriteFlags,
    ) -> std::io::Result<()> {
        let mut bounce = self.buffer(piece.blocks())?;
        let range = piece.start..piece.end;
        let _guard = if piece.is_whole_blocks() {
            self.stripes.shared(range).await
        } else {
            self.stripes.exclusive(range).await
        };
        let block = self.block();
        let last = piece.end - block;
        if piece.from != piece.start {
            self.read_block(storage, &mut bounce, piece, piece.start)
                .await?;
        }
        if piece.to != piece.end && (last != piece.start || piece.from == piece.start) {
            self.read_block(storage, &mut bounce, piece, last).await?;
        }
        if let Some(bytes) = bounce.bytes_mut() {
            buffer::gather(buf, &mut bytes[piece.payload()]);
        }
        storage.write_all(bounce, piece.start, flags).await.0?;
        storage.reached(piece.to);
        let size = storage.size.load(Ordering::Relaxed);
        if storage.kind == Kind::File && piece.end > size {
            // Whole blocks reached beyond the end of the file; only the request may move it.
            storage.set_len(size).await?;
        }
        Ok(())
    }

    /// Reads the block at offset `at` into its place in the piece's buffer.
    async fn read_block(
        &self,
        storage: &FileStorage,
        bounce: &mut IoBuf,
        piece: &Piece,
        at: u64,
    ) -> std::io::Result<()> {
        let (result, block) = storage.read_all(self.buffer(self.block())?, at).await;
        result?;
        let place = (at - piece.start) as usize;
        if let (Some(to), Some(from)) = (bounce.bytes_mut(), block.bytes()) {
            to[place..place + from.len()].copy_from_slice(from);
        }
        Ok(())
    }
}

/// Part of a request, and the whole blocks around it: `start <= from < to <= end`.
struct Piece {
    start: u64,
    from: u64,
    to: u64,
    end: u64,
}

impl Piece {
    /// The first piece of a request whose end is below 2^63.
    fn first(offset: u64, len: u64, block: u64) -> Self {
        let start = offset - offset % block;
        let to = (offset + len).min(start + PIECE);
        Self {
            start,
            from: offset,
            to,
            end: to.next_multiple_of(block),
        }
    }

    fn blocks(&self) -> u64 {
        self.end - self.start
    }

    fn len(&self) -> usize {
        (self.to - self.from) as usize
    }

    fn is_whole_blocks(&self) -> bool {
        self.from == self.start && self.to == self.end
    }

    /// Where the request's bytes are in the buffer.
    fn payload(&self) -> std::ops::Range<usize> {
        let from = (self.from - self.start) as usize;
        from..from + self.len()
    }
}
