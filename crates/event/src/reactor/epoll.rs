//! epoll for readiness and a pool of threads for files, where io_uring is refused.
#![allow(
    unsafe_code,
    reason = "implements `Reactor::start`, which has a contract about memory"
)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use libc::epoll_event;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll as NixEpoll, EpollCreateFlags};

use super::{Completion, OpId, Pool, Reactor, Request, Wait, sys};
use crate::shared::Shared;

const EDGE: u32 = libc::EPOLLET as u32;
/// Reported whether asked for or not.
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

pub(super) struct Epoll {
    epoll: OwnedFd,
    watched: BTreeMap<RawFd, Vec<Watcher>>,
    /// Completions that needed no kernel, or were found while looking.
    ready: Vec<Completion>,
    events: Box<[epoll_event; 32]>,
    pool: Pool,
    shared: Arc<Shared>,
}

struct Watcher {
    id: OpId,
    events: u32,
    multi: bool,
}

impl Epoll {
    pub(super) fn new(shared: Arc<Shared>, pool: Pool) -> io::Result<Self> {
        let epoll = NixEpoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?.0;
        sys::epoll_control(
            &epoll,
            libc::EPOLL_CTL_ADD,
            shared.wake.as_raw_fd(),
            libc::EPOLLIN as u32 | EDGE,
        )?;
        Ok(Self {
            epoll,
            watched: BTreeMap::new(),
            ready: Vec::new(),
            events: Box::new([epoll_event { events: 0, u64: 0 }; 32]),
            pool,
            shared,
        })
    }

    fn complete(&mut self, id: OpId, result: i32) {
        self.ready.push(Completion {
            id,
            result,
            more: false,
        });
    }

    /// Everything is edge-triggered: a registration or its change looks at the descriptor at
    /// once, and what was reported needs no further call when its watcher is gone.
    fn watch(&mut self, id: OpId, fd: RawFd, events: u32, multi: bool) {
        let watchers = self.watched.entry(fd).or_default();
        let operation = if watchers.is_empty() {
            libc::EPOLL_CTL_ADD
        } else {
            libc::EPOLL_CTL_MOD
        };
        watchers.push(Watcher { id, events, multi });
        let union = watchers.iter().fold(EDGE, |union, w| union | w.events);
        if let Err(errno) = sys::epoll_control(&self.epoll, operation, fd, union) {
            watchers.pop();
            if watchers.is_empty() {
                self.watched.remove(&fd);
            }
            // A regular file is always ready, and never becomes so.
            let result = if errno == Errno::EPERM && !multi {
                events as i32
            } else {
                -(errno as i32)
            };
            self.complete(id, result);
        }
    }

    fn look(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let count = match sys::epoll_wait(&self.epoll, &mut self.events[..], timeout) {
            Ok(count) => count,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => 0,
            Err(error) => return Err(error),
        };
        for place in 0..count {
            let epoll_event { events, u64: data } = self.events[place];
            self.ready_at(data as RawFd, events);
        }
        Ok(())
    }

    fn ready_at(&mut self, fd: RawFd, events: u32) {
        // None for the wake-up eventfd.
        let Some(watchers) = self.watched.get_mut(&fd) else {
            return;
        };
        watchers.retain(|watcher| {
            let result = events & (watcher.events | ALWAYS);
            if result == 0 {
                return true;
            }
            self.ready.push(Completion {
                id: watcher.id,
                result: result as i32,
                more: watcher.multi,
            });
            watcher.multi
        });
        if watchers.is_empty() {
            self.forget(fd);
        }
    }

    fn forget(&mut self, fd: RawFd) {
        self.watched.remove(&fd);
        // It fails only if the descriptor was closed, which has the same effect.
        let _ = sys::epoll_control(&self.epoll, libc::EPOLL_CTL_DEL, fd, 0);
    }
}

impl Reactor for Epoll {
    fn name(&self) -> &'static str {
        "epoll"
    }

    unsafe fn start(&mut self, id: OpId, request: Request<'_>) {
        if let Request::Poll { fd, events, multi } = request {
            return self.watch(id, fd, events, multi);
        }
        // SAFETY: the same contract.
        if let Err(error) = unsafe { self.pool.start(id, request, &self.shared) } {
            let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
            self.complete(id, -errno);
        }
    }

    fn cancel(&mut self, id: OpId) {
        let found = self.watched.iter_mut().find_map(|(&fd, watchers)| {
            let place = watchers.iter().position(|watcher| watcher.id == id)?;
            watchers.swap_remove(place);
            Some((fd, watchers.is_empty()))
        });
        if let Some((fd, last)) = found {
            if last {
                self.forget(fd);
            }
            self.complete(id, -libc::ECANCELED);
        } else if self.pool.take_back(id) {
            self.complete(id, -libc::ECANCELED);
        }
    }

    fn queued(&mut self) -> bool {
        false
    }

    fn visible(&mut self) -> bool {
        if self.ready.is_empty() {
            // An error shows in the next turn.
            let _ = self.look(Some(Duration::ZERO));
        }
        !self.ready.is_empty()
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        let timeout = match wait {
            Wait::AtMost(timeout) if self.ready.is_empty() => timeout,
            _ => Some(Duration::ZERO),
        };
        let result = self.look(timeout);
        done.append(&mut self.ready);
        result
    }
}
