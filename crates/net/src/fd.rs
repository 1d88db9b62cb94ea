//! A descriptor that gives and takes one frame with each call: a tap's queue.
#![allow(
    unsafe_code,
    reason = "readv and writev take the addresses of guest memory"
)]

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use event::AsyncFd;
use memory::VolatileSlice;

use crate::{Port, Ready};

/// A port over a descriptor.
pub(crate) struct FdPort {
    fd: AsyncFd,
    /// Room for scatter lists, empty between calls.
    iovecs: RefCell<Vec<libc::iovec>>,
}

impl FdPort {
    /// On an I/O thread.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            fd: AsyncFd::new(fd)?,
            iovecs: RefCell::default(),
        })
    }

    /// Calls `call` with the scatter list of `pieces`.
    fn with_iovecs(
        &self,
        pieces: &[VolatileSlice<'_>],
        call: impl FnOnce(*const libc::iovec, libc::c_int) -> isize,
    ) -> io::Result<usize> {
        let mut iovecs = self.iovecs.borrow_mut();
        iovecs.extend(pieces.iter().map(|piece| libc::iovec {
            iov_base: piece.ptr_guard_mut().as_ptr().cast(),
            iov_len: piece.len(),
        }));
        let count = libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX);
        let result = call(iovecs.as_ptr(), count);
        let result = usize::try_from(result).map_err(|_| io::Error::last_os_error());
        iovecs.clear();
        result
    }
}

impl Port for FdPort {
    fn receive(&self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let len = self.fd.try_read_with(|fd| {
            self.with_iovecs(into, |iovecs, count| {
                // SAFETY: each element is the memory of a volatile slice, which is mapped and
                // may be written as long as the slice is borrowed; the call keeps no address.
                unsafe { libc::readv(fd.as_raw_fd(), iovecs, count) }
            })
        })?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(len)
    }

    fn receivable(&self) -> Ready<'_> {
        Box::pin(self.fd.readable())
    }

    fn send(&self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.fd.try_write_with(|fd| {
            self.with_iovecs(frame, |iovecs, count| {
                // SAFETY: each element is the memory of a volatile slice, which is mapped and
                // may be read as long as the slice is borrowed; the call keeps no address.
                unsafe { libc::writev(fd.as_raw_fd(), iovecs, count) }
            })
        })?;
        Ok(())
    }

    fn sendable(&self) -> Ready<'_> {
        Box::pin(self.fd.writable())
    }
}
