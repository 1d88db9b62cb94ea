//! A connection's bytes, plain or by TLS.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use block::storage::tools::{gather, scatter};
use event::{AsyncFd, IoBuf};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::uio::writev;
use rustls::Connection;

/// Pieces that one system call takes (UIO_MAXIOV).
const MAX_PIECES: usize = 1024;
/// Bytes that go through TLS at once.
const TLS_PIECE: usize = 64 << 10;

/// A connected socket, on the I/O thread that it was made on. One task may read while another
/// one writes.
pub(crate) struct Stream {
    fd: AsyncFd,
    tls: Option<Box<RefCell<Connection>>>,
}

/// A descriptor as what rustls reads from and writes to.
struct Raw<'a>(BorrowedFd<'a>);

impl Read for Raw<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(self.0, buf)?)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(self.0, buf)?)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let bufs = bufs.get(..MAX_PIECES).unwrap_or(bufs);
        Ok(writev(self.0, bufs)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Stream {
    /// A connection without TLS.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            fd: AsyncFd::new(socket)?,
            tls: None,
        })
    }

    /// From here on by TLS. Nothing may have been read ahead.
    pub(crate) async fn start_tls(
        &mut self,
        connection: Box<RefCell<Connection>>,
    ) -> io::Result<()> {
        let tls = &*self.tls.insert(connection);
        loop {
            Self::flush_tls(&self.fd, tls).await?;
            if !tls.borrow().is_handshaking() {
                return Ok(());
            }
            if !Self::fill_tls(&self.fd, tls).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Takes in what the peer sent; `false` at the end.
    async fn fill_tls(fd: &AsyncFd, tls: &RefCell<Connection>) -> io::Result<bool> {
        let read = |fd: BorrowedFd<'_>| tls.borrow_mut().read_tls(&mut Raw(fd));
        if fd.read_with(read).await? == 0 {
            return Ok(false);
        }
        let processed = tls.borrow_mut().process_new_packets();
        // An alert, or an answer in the handshake: at once, if there is room.
        if processed.is_err() || !tls.borrow().is_handshaking() && tls.borrow().wants_write() {
            let write = |fd: BorrowedFd<'_>| tls.borrow_mut().write_tls(&mut Raw(fd));
            // What is left goes with the next write.
            _ = fd.try_write_with(write);
        }
        processed.map_err(broken)?;
        Ok(true)
    }

    async fn flush_tls(fd: &AsyncFd, tls: &RefCell<Connection>) -> io::Result<()> {
        while tls.borrow().wants_write() {
            let write = |fd: BorrowedFd<'_>| tls.borrow_mut().write_tls(&mut Raw(fd));
            if fd.write_with(write).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Reads some bytes; 0 at the end.
    pub(crate) async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else {
            return self.fd.read(buf).await;
        };
        loop {
            let read = tls.borrow_mut().reader().read(buf);
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                // The peer did not say goodbye. The protocol tells whether anything is missing.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if !Self::fill_tls(&self.fd, tls).await? {
                return Ok(0);
            }
        }
    }

    /// Reads into all of `buf`, which is empty then.
    pub(crate) async fn read_buf(&self, buf: &mut IoBuf) -> io::Result<()> {
        let mut piece = Vec::new();
        while !buf.is_empty() {
            let count = if self.tls.is_none() {
                self.fd.read_vectored(buf).await?
            } else {
                piece.resize(buf.len().min(TLS_PIECE), 0);
                let count = self.read(&mut piece).await?;
                scatter(buf, &piece[..count]);
                count
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf.advance(count);
        }
        Ok(())
    }

    /// Writes all of several pieces, one after the other. One task at a time.
    pub(crate) async fn write_slices(&self, mut pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
        let Some(tls) = &self.tls else {
            // Empty pieces at the front would look like the end.
            IoSlice::advance_slices(&mut pieces, 0);
            while !pieces.is_empty() {
                let some = pieces.get(..MAX_PIECES).unwrap_or(pieces);
                let count = self.fd.write_with(|fd| Ok(writev(fd, some)?)).await?;
                if count == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                IoSlice::advance_slices(&mut pieces, count);
            }
            return Ok(());
        };
        for piece in pieces {
            let mut rest: &[u8] = piece;
            while !rest.is_empty() {
                let count = tls.borrow_mut().writer().write(rest)?;
                rest = rest.get(count..).unwrap_or_default();
                if !rest.is_empty() {
                    Self::flush_tls(&self.fd, tls).await?;
                }
            }
        }
        Self::flush_tls(&self.fd, tls).await
    }

    /// As [`Stream::write_slices`], for one piece.
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_slices(&mut [IoSlice::new(bytes)]).await
    }

    /// Writes all of `buf`. One task at a time.
    pub(crate) async fn write_buf(&self, mut buf: IoBuf) -> io::Result<()> {
        let mut piece = Vec::new();
        while !buf.is_empty() {
            let count = if self.tls.is_none() {
                self.fd.write_vectored(&buf).await?
            } else {
                piece.resize(buf.len().min(TLS_PIECE), 0);
                gather(&buf, &mut piece);
                self.write(&piece).await?;
                piece.len()
            };
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            buf.advance(count);
        }
        Ok(())
    }

    /// Lets reads end, here and now.
    pub(crate) fn stop_reading(&self) {
        // The peer may have gone already.
        _ = shutdown(self.fd.as_fd().as_raw_fd(), Shutdown::Read);
    }

    /// Says goodbye where TLS wants that, and ends the connection.
    pub(crate) fn close(&self) {
        if let Some(tls) = &self.tls {
            tls.borrow_mut().send_close_notify();
            let write = |fd: BorrowedFd<'_>| tls.borrow_mut().write_tls(&mut Raw(fd));
            // A peer that takes nothing any more does without.
            _ = self.fd.try_write_with(write);
        }
        _ = shutdown(self.fd.as_fd().as_raw_fd(), Shutdown::Both);
    }
}

/// Bytes that are read ahead.
const AHEAD: usize = 64 << 10;

/// What is read from a [`Stream`], with some of it read ahead.
pub(crate) struct Input {
    buffer: Vec<u8>,
    /// What of it is there and was not yet taken.
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; AHEAD],
            start: 0,
            end: 0,
        }
    }

    /// Whether nothing is read ahead.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn ahead(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads until at least `count` bytes are there, of which there is a buffer's fill at most.
    /// `false`: the peer ended the connection, and nothing is left.
    async fn fill(&mut self, stream: &Stream, count: usize) -> io::Result<bool> {
        while self.end - self.start < count {
            if self.start != 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            let Some(room) = self.buffer.get_mut(self.end..) else {
                return Err(io::ErrorKind::OutOfMemory.into());
            };
            match stream.read(room).await? {
                0 if self.is_empty() => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                got => self.end += got,
            }
        }
        Ok(true)
    }

    /// The next `N` bytes; `None` when the peer has ended the connection before.
    pub(crate) async fn array<const N: usize>(
        &mut self,
        stream: &Stream,
    ) -> io::Result<Option<[u8; N]>> {
        if !self.fill(stream, N).await? {
            return Ok(None);
        }
        let array = self
            .ahead()
            .get(..N)
            .and_then(|bytes| bytes.try_into().ok());
        self.start += N;
        Ok(array)
    }

    /// Reads into all of `to`, past the buffer as far as possible. `false`: the peer has ended the
    /// connection before.
    pub(crate) async fn exactly(&mut self, stream: &Stream, to: &mut [u8]) -> io::Result<bool> {
        let mut done = 0;
        if to.len() <= AHEAD / 2 {
            // A little: more of it is read ahead.
            if !self.fill(stream, to.len()).await? {
                return Ok(false);
            }
        }
        while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let ahead = self.ahead();
            done += if ahead.is_empty() {
                match stream.read(rest).await? {
                    0 if done == 0 => return Ok(false),
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => count,
                }
            } else {
                let take = rest.len().min(ahead.len());
                rest[..take].copy_from_slice(&ahead[..take]);
                self.start += take;
                take
            };
        }
        Ok(true)
    }

    /// The next `len` bytes. The memory for them grows as they come.
    pub(crate) async fn bytes(&mut self, stream: &Stream, len: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < len {
            self.some(stream).await?;
            let take = (len - out.len()).min(self.ahead().len());
            out.extend_from_slice(&self.ahead()[..take]);
            self.start += take;
        }
        Ok(out)
    }

    /// Something has to be there.
    async fn some(&mut self, stream: &Stream) -> io::Result<()> {
        match self.fill(stream, 1).await? {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Passes over `len` bytes.
    pub(crate) async fn skip(&mut self, stream: &Stream, mut len: u64) -> io::Result<()> {
        while len != 0 {
            self.some(stream).await?;
            let take = len.min(self.ahead().len() as u64);
            self.start += take as usize;
            len -= take;
        }
        Ok(())
    }

    /// Reads into all of `buf`, past the buffer as far as possible.
    pub(crate) async fn buf(&mut self, stream: &Stream, buf: &mut IoBuf) -> io::Result<()> {
        let take = buf.len().min(self.ahead().len());
        scatter(buf, &self.ahead()[..take]);
        buf.advance(take);
        self.start += take;
        stream.read_buf(buf).await
    }
}
