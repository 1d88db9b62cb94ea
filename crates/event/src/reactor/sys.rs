//! System calls on buffers.
#![allow(
    unsafe_code,
    reason = "system calls that take scatter lists or kernel structures by address"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::{c_int, epoll_event, iovec};
use nix::errno::Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::IoBuf;

fn count(list: &[iovec]) -> c_int {
    c_int::try_from(list.len()).unwrap_or(c_int::MAX)
}

fn transferred(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// readv(2).
pub(crate) fn read_vectored(fd: BorrowedFd<'_>, buf: &mut IoBuf) -> io::Result<usize> {
    let list = buf.iovecs();
    // SAFETY: `IoBuf` guarantees memory that may be written; the call keeps no address.
    transferred(unsafe { libc::readv(fd.as_raw_fd(), list.as_ptr(), count(list)) })
}

/// writev(2).
pub(crate) fn write_vectored(fd: BorrowedFd<'_>, buf: &IoBuf) -> io::Result<usize> {
    let list = buf.iovecs();
    // SAFETY: `IoBuf` guarantees memory that may be read; the call keeps no address.
    transferred(unsafe { libc::writev(fd.as_raw_fd(), list.as_ptr(), count(list)) })
}

/// Sets O_NONBLOCK.
pub(crate) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// Another descriptor of the same eventfd.
pub(crate) fn duplicate(event: &EventFd) -> io::Result<OwnedFd> {
    let duplicate = event.try_clone()?.into_raw_fd();
    // SAFETY: the duplicate is open, and was just released by its owner.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// Runs a blocking operation; the result is as a completion's.
fn retry(mut call: impl FnMut() -> isize) -> i32 {
    loop {
        let result = call();
        if result >= 0 {
            return i32::try_from(result).unwrap_or(i32::MAX);
        }
        let errno = Errno::last_raw();
        if errno != libc::EINTR {
            return -errno;
        }
    }
}

/// Offsets beyond what files have are refused before they come here; a negative one is by the
/// kernel.
fn offset(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MIN)
}

/// preadv2(2).
///
/// # Safety
/// `list` must describe memory that may be written.
pub(super) unsafe fn preadv(fd: RawFd, list: &[iovec], at: u64) -> i32 {
    // SAFETY: the caller's promise.
    retry(|| unsafe { libc::preadv(fd, list.as_ptr(), count(list), offset(at)) })
}

/// pwritev2(2).
///
/// # Safety
/// `list` must describe memory that may be read.
pub(super) unsafe fn pwritev(fd: RawFd, list: &[iovec], at: u64, flags: i32) -> i32 {
    // SAFETY: the caller's promise.
    retry(|| unsafe { libc::pwritev2(fd, list.as_ptr(), count(list), offset(at), flags) })
}

/// fsync(2) or fdatasync(2).
pub(super) fn fsync(fd: RawFd, datasync: bool) -> i32 {
    // SAFETY: no memory is involved.
    retry(|| unsafe {
        if datasync {
            libc::fdatasync(fd) as isize
        } else {
            libc::fsync(fd) as isize
        }
    })
}

/// fallocate(2).
pub(super) fn fallocate(fd: RawFd, mode: i32, at: u64, len: u64) -> i32 {
    // SAFETY: no memory is involved.
    retry(|| unsafe { libc::fallocate(fd, mode, offset(at), offset(len)) as isize })
}

/// epoll_pwait2(2), or epoll_wait(2) with the time rounded up to milliseconds where the kernel
/// has only that (before 5.11).
pub(super) fn epoll_wait(
    epoll: &OwnedFd,
    events: &mut [epoll_event],
    timeout: Option<Duration>,
) -> io::Result<usize> {
    let fd = epoll.as_raw_fd();
    let time = timeout.map(|timeout| libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    let time_ptr = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let capacity = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
    // SAFETY: `events` and `time` outlive the call; no signal mask is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            fd,
            events.as_mut_ptr(),
            capacity,
            time_ptr,
            std::ptr::null::<libc::sigset_t>(),
            0usize,
        )
    };
    if result < 0 && Errno::last() == Errno::ENOSYS {
        let millis = timeout.map_or(-1, |timeout| {
            c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX)
        });
        // SAFETY: `events` outlives the call.
        let result = unsafe { libc::epoll_wait(fd, events.as_mut_ptr(), capacity, millis) };
        return transferred(result as isize);
    }
    transferred(result as isize)
}

/// epoll_ctl(2). The event's data is the descriptor.
pub(super) fn epoll_control(
    epoll: &OwnedFd,
    operation: c_int,
    fd: RawFd,
    events: u32,
) -> Result<(), Errno> {
    let mut event = epoll_event {
        events,
        u64: fd as u64,
    };
    // SAFETY: `event` outlives the call.
    let result = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &raw mut event) };
    Errno::result(result).map(drop)
}
