//! Where operations go: the border between the executor and the kernel.
#![allow(
    unsafe_code,
    reason = "`Reactor::start` has a contract about the memory of operations"
)]

mod epoll;
mod pool;
mod sys;
mod uring;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use libc::iovec;

pub(crate) use pool::Pool;
pub(crate) use sys::{duplicate, read_vectored, set_nonblocking, write_vectored};

use crate::shared::Shared;

/// Names an operation from its start to its last completion. The generation tells operations
/// apart that had the same place in the table one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl OpId {
    fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

/// What to do.
#[derive(Clone, Copy)]
pub(crate) enum Request<'a> {
    Read {
        fd: RawFd,
        memory: &'a [iovec],
        offset: u64,
    },
    Write {
        fd: RawFd,
        memory: &'a [iovec],
        offset: u64,
        /// RWF_* of pwritev2(2).
        flags: i32,
    },
    Fsync {
        fd: RawFd,
        datasync: bool,
    },
    Fallocate {
        fd: RawFd,
        mode: i32,
        offset: u64,
        len: u64,
    },
    /// Completes with the events (POLLIN and so on) that are there. `multi`: again whenever more
    /// arrive (edge-triggered), until cancelled.
    Poll {
        fd: RawFd,
        events: u32,
        multi: bool,
    },
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Completion {
    pub(crate) id: OpId,
    /// As the system call returns it; a negative number is an errno.
    pub(crate) result: i32,
    /// Whether more completions of this operation will follow.
    pub(crate) more: bool,
}

/// How long a turn may wait for a completion.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    /// At most so long; `None`: until one arrives.
    AtMost(Option<Duration>),
}

/// A way to have the kernel do things meanwhile.
///
/// A reactor also watches its thread's wake-up eventfd, so that a waiting turn ends when another
/// thread posts a message.
pub(crate) trait Reactor {
    /// For logs.
    fn name(&self) -> &'static str;

    /// Takes on an operation; it need not reach the kernel before the next turn.
    ///
    /// # Safety
    /// The memory of a read or write must stay valid, for the kernel to write or read at any
    /// time, and the descriptor must stay open, until `turn` has delivered the operation's
    /// completion, the last one. (The scatter list itself too, if it has other than one element.)
    unsafe fn start(&mut self, id: OpId, request: Request<'_>);

    /// Asks that an operation end soon. It completes in any case, in a later turn.
    fn cancel(&mut self, id: OpId);

    /// Whether operations have not been handed to the kernel yet.
    fn queued(&mut self) -> bool;

    /// Whether a turn would find completions without waiting. Cheap enough to be asked in a loop.
    fn visible(&mut self) -> bool;

    /// Hands over what is queued, waits, and appends the completions to `done`.
    ///
    /// # Errors
    /// The kernel refused the call as such.
    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()>;
}

/// The best reactor that this host allows.
///
/// # Errors
/// There is none.
pub(crate) fn new(
    shared: &Arc<Shared>,
    pool: &Pool,
    cpus: Option<&[usize]>,
) -> io::Result<Box<dyn Reactor>> {
    if !shared.without_io_uring {
        match uring::Uring::new(Arc::clone(shared), cpus) {
            Ok(uring) => return Ok(Box::new(uring)),
            Err(error) => log::info!("{}: no io_uring: {error}", shared.name),
        }
    }
    Ok(Box::new(epoll::Epoll::new(
        Arc::clone(shared),
        pool.clone(),
    )?))
}
