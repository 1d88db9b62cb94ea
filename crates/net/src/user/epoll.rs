//! An epoll set of descriptors that belong to libslirp.
#![allow(
    unsafe_code,
    reason = "the descriptors are another library's, known by number only"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libc::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, c_int, epoll_event};
use nix::sys::epoll::{Epoll, EpollCreateFlags};

use super::ffi::event;

const EVENTS: [(u32, c_int); 5] = [
    (event::IN, EPOLLIN),
    (event::OUT, EPOLLOUT),
    (event::PRI, EPOLLPRI),
    (event::ERR, EPOLLERR),
    (event::HUP, EPOLLHUP),
];

pub(super) fn create() -> io::Result<OwnedFd> {
    Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?.0)
}

fn control(set: BorrowedFd<'_>, operation: c_int, fd: RawFd, events: u32) -> io::Result<()> {
    let mut event = epoll_event {
        events,
        u64: u64::from(fd.unsigned_abs()),
    };
    // SAFETY: the event is only read. A number that is not open, or is open for something else by
    // mistake, makes an error or a needless wake-up, but touches nobody's data.
    match unsafe { libc::epoll_ctl(set.as_raw_fd(), operation, fd, &mut event) } {
        result if result < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits for `events` of `fd` from now on; `known`: `fd` is thought to be in the set.
pub(super) fn set(set: &impl AsFd, fd: RawFd, events: u32, known: bool) -> io::Result<()> {
    let wanted = EVENTS.iter().filter(|(bit, _)| events & bit != 0);
    let wanted = wanted.fold(0, |all, (_, epoll)| all | *epoll as u32);
    let (first, second) = if known {
        (libc::EPOLL_CTL_MOD, libc::EPOLL_CTL_ADD)
    } else {
        (libc::EPOLL_CTL_ADD, libc::EPOLL_CTL_MOD)
    };
    match control(set.as_fd(), first, fd, wanted) {
        // It was closed, or not, in a way that we did not notice.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EEXIST)) => {
            control(set.as_fd(), second, fd, wanted)
        }
        result => result,
    }
}

/// No longer waits for `fd`, which may be closed.
pub(super) fn remove(set: &impl AsFd, fd: RawFd) {
    // A closed one has left the set by itself.
    let _ = control(set.as_fd(), libc::EPOLL_CTL_DEL, fd, 0);
}

/// Descriptors with events now; `WouldBlock` when there is none.
pub(super) fn ready(set: BorrowedFd<'_>) -> io::Result<Vec<(RawFd, u32)>> {
    let mut events = [epoll_event { events: 0, u64: 0 }; 64];
    let room = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
    // SAFETY: there is room for that many events.
    let count = unsafe { libc::epoll_wait(set.as_raw_fd(), events.as_mut_ptr(), room, 0) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    if count == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let ready = events.iter().take(count).map(|ready| {
        let (epoll, fd) = (ready.events, ready.u64);
        let bits = EVENTS.iter().filter(|(_, e)| epoll & *e as u32 != 0);
        let bits = bits.fold(0, |all, (bit, _)| all | bit);
        (fd as RawFd, bits)
    });
    Ok(ready.collect())
}
