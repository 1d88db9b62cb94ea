//! io_uring: one system call hands over what was queued and waits.
#![allow(
    unsafe_code,
    reason = "submission entries carry addresses that the kernel uses later"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, Probe, cqueue, opcode};

use super::{Completion, OpId, Reactor, Request, Wait};
use crate::shared::Shared;

/// Entries of the submission queue; the completion queue has twice as many. What does not fit
/// waits on our side, or as overflow on the kernel's.
const ENTRIES: u32 = 128;
/// The kernel transfers at most so much at once (MAX_RW_COUNT).
const MAX_TRANSFER: usize = 0x7fff_f000;

/// Completions that are not an operation's: no table has so many places.
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

pub(super) struct Uring {
    ring: IoUring,
    /// Entries for which the submission queue had no place.
    backlog: VecDeque<Entry>,
    /// Its eventfd's polling outlives no other owner.
    shared: Arc<Shared>,
}

impl Uring {
    /// To be called on the thread that will use it.
    pub(super) fn new(shared: Arc<Shared>, cpus: Option<&[usize]>) -> io::Result<Self> {
        let ring = build()?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::other("it is older than Linux 5.11"));
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::PollAdd::CODE,
            opcode::AsyncCancel::CODE,
        ];
        if needed.iter().any(|&code| !probe.is_supported(code)) {
            return Err(io::Error::other("it lacks an operation"));
        }
        if let Some(cpus) = cpus {
            pin_workers(&ring, cpus);
        }
        let mut uring = Self {
            ring,
            backlog: VecDeque::new(),
            shared,
        };
        uring.watch_wake();
        uring.try_multishot()?;
        Ok(uring)
    }

    /// Multishot polling is younger (5.13) than what the probe tells: an older kernel refuses the
    /// entry at once.
    fn try_multishot(&mut self) -> io::Result<()> {
        let mut done = Vec::new();
        self.ring.submit()?;
        let refused = self
            .ring
            .completion()
            .any(|entry| entry.user_data() == WAKE && entry.result() < 0);
        self.harvest(&mut done);
        if refused {
            return Err(io::Error::other("it lacks multishot polling"));
        }
        Ok(())
    }

    fn watch_wake(&mut self) {
        let entry = poll_entry(self.shared.wake.as_raw_fd(), libc::POLLIN as u32, true);
        self.push(entry.user_data(WAKE));
    }

    fn push(&mut self, entry: Entry) {
        if self.backlog.is_empty() && self.try_push(&entry) {
            return;
        }
        self.backlog.push_back(entry);
        self.push_backlog();
    }

    fn try_push(&mut self, entry: &Entry) -> bool {
        // SAFETY: the addresses in the entry stay valid until the completion by the contract of
        // `Reactor::start`.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Fills the submission queue from the backlog, and empties it into the kernel when full.
    /// What the kernel will not take now stays.
    fn push_backlog(&mut self) {
        while let Some(entry) = self.backlog.front().cloned() {
            if self.try_push(&entry) {
                self.backlog.pop_front();
            } else if !matches!(self.ring.submit(), Ok(taken) if taken > 0) {
                break;
            }
        }
    }

    fn harvest(&mut self, done: &mut Vec<Completion>) {
        let mut rewatch = false;
        for entry in self.ring.completion() {
            let more = cqueue::more(entry.flags());
            match entry.user_data() {
                WAKE => rewatch |= !more,
                CANCEL => (),
                bits => done.push(Completion {
                    id: OpId::from_bits(bits),
                    result: entry.result(),
                    more,
                }),
            }
        }
        if rewatch {
            self.watch_wake();
        }
    }
}

/// A ring set up as this kernel allows: it interrupts us with task work only when we ask
/// (6.1), or at least not by an interrupt (5.19).
fn build() -> io::Result<IoUring> {
    let modes: [fn(&mut Builder); 3] = [
        |builder| {
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all();
        },
        |builder| {
            builder
                .setup_coop_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all();
        },
        |_| (),
    ];
    let mut refusal = None;
    for mode in modes {
        let mut builder = IoUring::builder();
        mode(&mut builder);
        match builder.build(ENTRIES) {
            Ok(ring) => return Ok(ring),
            // Flags it does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refusal.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
}

/// Keeps the kernel's helper threads on the processors of ours. Not vital.
fn pin_workers(ring: &IoUring, cpus: &[usize]) {
    // SAFETY: a `cpu_set_t` is an array of integers.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        if cpu < libc::CPU_SETSIZE as usize {
            // SAFETY: within the set's size.
            unsafe { libc::CPU_SET(cpu, &mut set) };
        }
    }
    if let Err(error) = ring.submitter().register_iowq_aff(&set) {
        log::debug!("io_uring's workers are not pinned: {error}");
    }
}

fn poll_entry(fd: RawFd, events: u32, multi: bool) -> Entry {
    opcode::PollAdd::new(Fd(fd), events).multi(multi).build()
}

fn entry(request: Request<'_>) -> Entry {
    match request {
        // A single piece goes without a scatter list, which the kernel would have to copy.
        Request::Read {
            fd,
            memory: [piece],
            offset,
        } => {
            let len = piece.iov_len.min(MAX_TRANSFER) as u32;
            opcode::Read::new(Fd(fd), piece.iov_base.cast(), len)
                .offset(offset)
                .build()
        }
        Request::Read { fd, memory, offset } => {
            opcode::Readv::new(Fd(fd), memory.as_ptr(), count(memory.len()))
                .offset(offset)
                .build()
        }
        Request::Write {
            fd,
            memory: [piece],
            offset,
            flags,
        } => {
            let len = piece.iov_len.min(MAX_TRANSFER) as u32;
            opcode::Write::new(Fd(fd), piece.iov_base.cast(), len)
                .offset(offset)
                .rw_flags(flags)
                .build()
        }
        Request::Write {
            fd,
            memory,
            offset,
            flags,
        } => opcode::Writev::new(Fd(fd), memory.as_ptr(), count(memory.len()))
            .offset(offset)
            .rw_flags(flags)
            .build(),
        Request::Fsync { fd, datasync } => {
            let flags = if datasync {
                FsyncFlags::DATASYNC
            } else {
                FsyncFlags::empty()
            };
            opcode::Fsync::new(Fd(fd)).flags(flags).build()
        }
        Request::Fallocate {
            fd,
            mode,
            offset,
            len,
        } => opcode::Fallocate::new(Fd(fd), len)
            .offset(offset)
            .mode(mode)
            .build(),
        Request::Poll { fd, events, multi } => poll_entry(fd, events, multi),
    }
}

/// More than the kernel accepts (IOV_MAX) in any case is told by it as EINVAL.
fn count(pieces: usize) -> u32 {
    u32::try_from(pieces).unwrap_or(u32::MAX)
}

impl Reactor for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    unsafe fn start(&mut self, id: OpId, request: Request<'_>) {
        self.push(entry(request).user_data(id.to_bits()));
    }

    fn cancel(&mut self, id: OpId) {
        let entry = opcode::AsyncCancel::new(id.to_bits()).build();
        self.push(entry.user_data(CANCEL));
    }

    fn queued(&mut self) -> bool {
        !self.backlog.is_empty() || !self.ring.submission().is_empty()
    }

    fn visible(&mut self) -> bool {
        if !self.ring.completion().is_empty() {
            return true;
        }
        let submission = self.ring.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        self.push_backlog();
        let here = !self.ring.completion().is_empty();
        let result = match wait {
            Wait::AtMost(timeout) if !here && self.backlog.is_empty() => match timeout {
                None => self.ring.submitter().submit_and_wait(1),
                Some(timeout) => {
                    let time = Timespec::from(timeout);
                    let args = SubmitArgs::new().timespec(&time);
                    self.ring.submitter().submit_with_args(1, &args)
                }
            },
            _ if self.queued() || self.visible() => self.ring.submit(),
            _ => Ok(0),
        };
        self.harvest(done);
        match result {
            Ok(_) => Ok(()),
            // Interrupted, timed out, or busy with what has just been harvested.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
