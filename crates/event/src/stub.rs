use crate::{EventError, IoBuf, TaskGone};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct IoThreadConfig {
    pub name: String,
    pub cpus: Option<Vec<usize>>,
    pub poll_max: Duration,
    pub stack_size: usize,
}
impl IoThreadConfig {
    pub fn new(name: impl Into<String>) -> Self {
        unreachable!()
    }
}

#[derive(Clone)]
pub struct IoThread(Arc<()>);
impl IoThread {
    pub fn spawn(config: IoThreadConfig) -> Result<IoThread, EventError> {
        unreachable!()
    }
    /// The I/O thread this code runs on.
    pub fn current() -> Option<IoThread> {
        unreachable!()
    }
    pub fn name(&self) -> &str {
        unreachable!()
    }
    pub fn tid(&self) -> i32 {
        unreachable!()
    }
    pub fn spawn_task<T, M, F>(&self, make: M) -> Remote<T>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        unreachable!()
    }
    /// Callback on the thread at the armed deadline; its return value re-arms.
    pub fn timer(&self, callback: impl FnMut() -> Option<Instant> + Send + 'static) -> TimerHandle {
        unreachable!()
    }
    /// Cancels all tasks, waits for the thread's end. Also when the last handle is dropped (without waiting).
    pub fn shutdown(&self) {
        unreachable!()
    }
}

/// Drop cancels.
#[must_use]
pub struct Remote<T>(std::marker::PhantomData<T>);
impl<T> Remote<T> {
    pub fn join(self) -> Result<T, TaskGone> {
        unreachable!()
    }
    pub fn is_finished(&self) -> bool {
        unreachable!()
    }
    pub fn detach(self) {
        unreachable!()
    }
    pub fn cancel(self) {
        unreachable!()
    }
}
impl<T> Future for Remote<T> {
    type Output = Result<T, TaskGone>;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        unreachable!()
    }
}

#[derive(Clone)]
pub struct TimerHandle(Arc<()>);
impl TimerHandle {
    pub fn arm(&self, at: Instant) {
        unreachable!()
    }
    pub fn disarm(&self) {
        unreachable!()
    }
}

/// Drop cancels.
#[must_use]
pub struct LocalTask<T>(std::marker::PhantomData<T>);
impl<T> LocalTask<T> {
    pub fn detach(self) {
        unreachable!()
    }
    pub async fn cancel(self) -> Option<T> {
        unreachable!()
    }
    pub fn is_finished(&self) -> bool {
        unreachable!()
    }
}
impl<T> Future for LocalTask<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        unreachable!()
    }
}
pub fn spawn_local<F: Future + 'static>(future: F) -> LocalTask<F::Output> {
    unreachable!()
}
/// Runs blocking code on a helper thread.
pub async fn unblock<T: Send + 'static>(
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TaskGone> {
    unreachable!()
}

pub async fn sleep(duration: Duration) {
    unreachable!()
}
pub async fn sleep_until(deadline: Instant) {
    unreachable!()
}
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    unreachable!()
}
pub async fn yield_now() {
    unreachable!()
}

pub type IoResult = (io::Result<usize>, IoBuf);
pub async fn read_vectored_at<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    buf: IoBuf,
    offset: u64,
) -> IoResult {
    unreachable!()
}
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteFlags {
    pub fua: bool,
}
pub async fn write_vectored_at<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    buf: IoBuf,
    offset: u64,
    flags: WriteFlags,
) -> IoResult {
    unreachable!()
}
pub async fn fsync<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    datasync: bool,
) -> io::Result<()> {
    unreachable!()
}
pub async fn fallocate<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    mode: i32,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    unreachable!()
}

/// One-shot waits.
pub async fn readable(fd: &impl AsFd) -> io::Result<()> {
    unreachable!()
}
pub async fn writable(fd: &impl AsFd) -> io::Result<()> {
    unreachable!()
}
/// Waits and reads the counter. For a long-lived eventfd use `EventSource`: no syscall per event.
pub async fn eventfd_wait(event: &impl AsRawFd) -> io::Result<u64> {
    unreachable!()
}
/// A doorbell: watches an eventfd (its own dup) for new writes, never reads it: no syscall per kick.
pub struct EventSource(Rc<()>);
impl EventSource {
    pub fn new(event: &impl AsRawFd) -> io::Result<EventSource> {
        unreachable!()
    }
    /// Returns when written to since the last wait (or since before the first one); may return spuriously.
    pub async fn wait(&self) -> io::Result<()> {
        unreachable!()
    }
}
/// A nonblocking stream (tap, socket, pty) with edge-triggered readiness.
pub struct AsyncFd(Rc<()>);
impl AsyncFd {
    /// Sets O_NONBLOCK.
    pub fn new(fd: impl Into<OwnedFd>) -> io::Result<AsyncFd> {
        unreachable!()
    }
    pub async fn readable(&self) -> io::Result<()> {
        unreachable!()
    }
    pub async fn writable(&self) -> io::Result<()> {
        unreachable!()
    }
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        unreachable!()
    }
    pub async fn write(&self, buf: &[u8]) -> io::Result<usize> {
        unreachable!()
    }
    pub async fn read_vectored(&self, buf: &mut IoBuf) -> io::Result<usize> {
        unreachable!()
    }
    pub async fn write_vectored(&self, buf: &IoBuf) -> io::Result<usize> {
        unreachable!()
    }
    pub fn try_read_vectored(&self, buf: &mut IoBuf) -> io::Result<usize> {
        unreachable!()
    }
    pub fn try_write_vectored(&self, buf: &IoBuf) -> io::Result<usize> {
        unreachable!()
    }
    /// Runs a nonblocking operation; waits and repeats while it says WouldBlock.
    pub async fn read_with<R>(&self, op: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        unreachable!()
    }
    pub async fn write_with<R>(&self, op: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        unreachable!()
    }
}
impl AsFd for AsyncFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        unreachable!()
    }
}

pub trait PollSource {
    fn begin(&mut self);
    fn poll(&mut self) -> bool;
    fn end(&mut self) -> bool;
}
/// Removed when dropped.
#[must_use]
pub struct PollHook(Rc<()>);
pub fn poll_hook(poll: impl FnMut() -> bool + 'static) -> PollHook {
    unreachable!()
}
pub fn poll_source(source: impl PollSource + 'static) -> PollHook {
    unreachable!()
}
