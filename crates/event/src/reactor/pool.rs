//! Threads for what blocks: started when there is work, gone after a while without.
#![allow(
    unsafe_code,
    reason = "the memory of a request is handed to another thread by address"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use libc::iovec;

use super::{Completion, OpId, Request, sys};
use crate::shared::{Message, Shared};

/// Most threads of one pool.
const MAX_THREADS: usize = 8;
/// A thread without work for so long ends.
const IDLE: Duration = Duration::from_secs(10);
const STACK: usize = 256 * 1024;

/// The pool of one I/O thread. Clones are the same pool.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    name: String,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    quit: bool,
}

enum Job {
    Io(IoJob),
    Call(Box<dyn FnOnce() + Send>),
}

struct IoJob {
    id: OpId,
    request: RawRequest,
    reply: Arc<Shared>,
}

/// A request of the kinds that block.
enum RawRequest {
    Read {
        fd: RawFd,
        memory: Memory,
        offset: u64,
    },
    Write {
        fd: RawFd,
        memory: Memory,
        offset: u64,
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
}

/// A scatter list by address; a single element by value, as its address may change.
enum Memory {
    One(iovec),
    Many { list: *const iovec, len: usize },
}

// SAFETY: the addresses are of memory that whoever started the operation keeps valid until its
// completion (the contract of `Reactor::start`) and that may be used from any thread (the contract
// of `IoBuf`).
unsafe impl Send for Memory {}

impl Memory {
    fn new(list: &[iovec]) -> Self {
        match list {
            [one] => Self::One(*one),
            _ => Self::Many {
                list: list.as_ptr(),
                len: list.len(),
            },
        }
    }

    fn list(&self) -> &[iovec] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            // SAFETY: the scatter list is valid until the operation's completion, which is only
            // sent after this borrow.
            Self::Many { list, len } => unsafe { std::slice::from_raw_parts(*list, *len) },
        }
    }
}

impl RawRequest {
    fn run(&self) -> i32 {
        match self {
            Self::Read { fd, memory, offset } => {
                // SAFETY: the contract of `Reactor::start`.
                unsafe { sys::preadv(*fd, memory.list(), *offset) }
            }
            Self::Write {
                fd,
                memory,
                offset,
                flags,
            } => {
                // SAFETY: the contract of `Reactor::start`.
                unsafe { sys::pwritev(*fd, memory.list(), *offset, *flags) }
            }
            Self::Fsync { fd, datasync } => sys::fsync(*fd, *datasync),
            Self::Fallocate {
                fd,
                mode,
                offset,
                len,
            } => sys::fallocate(*fd, *mode, *offset, *len),
        }
    }
}

impl Pool {
    /// Starts no thread yet. `name` is the I/O thread's.
    pub(crate) fn new(name: &str) -> Self {
        Self(Arc::new(Inner {
            name: format!("{name}/w"),
            state: Mutex::default(),
            work: Condvar::new(),
        }))
    }

    /// Runs `call` on a thread of the pool.
    ///
    /// # Errors
    /// There is no thread and none can be started.
    pub(crate) fn call(&self, call: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        self.push(Job::Call(call))
    }

    /// Runs `request`, whose completion is posted to `reply`. A request for readiness is given
    /// back as false.
    ///
    /// # Safety
    /// As `Reactor::start`.
    pub(super) unsafe fn start(
        &self,
        id: OpId,
        request: Request<'_>,
        reply: &Arc<Shared>,
    ) -> io::Result<bool> {
        let request = match request {
            Request::Read { fd, memory, offset } => RawRequest::Read {
                fd,
                memory: Memory::new(memory),
                offset,
            },
            Request::Write {
                fd,
                memory,
                offset,
                flags,
            } => RawRequest::Write {
                fd,
                memory: Memory::new(memory),
                offset,
                flags,
            },
            Request::Fsync { fd, datasync } => RawRequest::Fsync { fd, datasync },
            Request::Fallocate {
                fd,
                mode,
                offset,
                len,
            } => RawRequest::Fallocate {
                fd,
                mode,
                offset,
                len,
            },
            Request::Poll { .. } => return Ok(false),
        };
        self.push(Job::Io(IoJob {
            id,
            request,
            reply: Arc::clone(reply),
        }))
        .map(|()| true)
    }

    /// Takes back a request that no thread has begun.
    pub(super) fn take_back(&self, id: OpId) -> bool {
        let mut state = self.0.lock();
        let place = state
            .queue
            .iter()
            .position(|job| matches!(job, Job::Io(job) if job.id == id));
        place.and_then(|place| state.queue.remove(place)).is_some()
    }

    fn push(&self, job: Job) -> io::Result<()> {
        let mut state = self.0.lock();
        state.queue.push_back(job);
        if state.idle < state.queue.len() && state.threads < MAX_THREADS {
            let inner = Arc::clone(&self.0);
            let spawned = thread::Builder::new()
                .name(self.0.name.clone())
                .stack_size(STACK)
                .spawn(move || inner.work());
            match spawned {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    let job = state.queue.pop_back();
                    drop(state);
                    drop(job);
                    return Err(error);
                }
                // The threads there are will come to it.
                Err(_) => (),
            }
        }
        drop(state);
        self.0.work.notify_one();
        Ok(())
    }

    /// No more work comes; the threads end when they have done what there is.
    pub(crate) fn quit(&self) {
        self.0.lock().quit = true;
        self.0.work.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                match job {
                    Job::Io(job) => {
                        let completion = Completion {
                            id: job.id,
                            result: job.request.run(),
                            more: false,
                        };
                        // The thread waits for all its operations before it ends.
                        let _ = job.reply.post(Message::Completed(completion));
                    }
                    Job::Call(call) => {
                        // A panic has been reported by the hook; whoever waits for the call sees
                        // its sender gone.
                        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
                    }
                }
                state = self.lock();
                continue;
            }
            if state.quit {
                break;
            }
            state.idle += 1;
            let (guard, timeout) = self
                .work
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}
