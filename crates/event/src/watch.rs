//! Readiness: eventfds, taps, sockets, terminals.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use vmm_sys_util::eventfd::EventFd;

use crate::IoBuf;
use crate::executor::{Local, Operation, local};
use crate::ops::Watch;
use crate::reactor::{self, Request};
use crate::sync::WaitList;
use crate::yield_now;

const IN: u32 = libc::POLLIN as u32;
const OUT: u32 = libc::POLLOUT as u32;
const ENDED: u32 = (libc::POLLERR | libc::POLLHUP) as u32;

async fn poll_once(fd: RawFd, events: u32) -> io::Result<()> {
    let operation = Operation::start(None, None, |_| Request::Poll {
        fd,
        events,
        multi: false,
    });
    match operation.await.0 {
        result if result < 0 => Err(io::Error::from_raw_os_error(-result)),
        _ => Ok(()),
    }
}

/// Waits once until `fd` can be read (or has ended). [`AsyncFd`] costs less for many waits.
///
/// # Errors
/// The descriptor cannot be polled.
///
/// # Panics
/// Outside of an I/O thread.
pub async fn readable(fd: &impl AsFd) -> io::Result<()> {
    poll_once(fd.as_fd().as_raw_fd(), IN).await
}

/// Waits once until `fd` can be written (or has ended). [`AsyncFd`] costs less for many waits.
///
/// # Errors
/// The descriptor cannot be polled.
///
/// # Panics
/// Outside of an I/O thread.
pub async fn writable(fd: &impl AsFd) -> io::Result<()> {
    poll_once(fd.as_fd().as_raw_fd(), OUT).await
}

/// Waits until `event` was signalled and reads its counter. Nobody else should read it at the same
/// time. [`EventSource`] costs less for many waits.
///
/// # Errors
/// As poll(2) and read(2).
///
/// # Panics
/// Outside of an I/O thread.
pub async fn eventfd_wait(event: &EventFd) -> io::Result<u64> {
    loop {
        poll_once(event.as_raw_fd(), IN).await?;
        match event.read() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            result => return result,
        }
    }
}

/// Ends the watch when dropped.
struct Watching {
    local: Rc<Local>,
    watch: Rc<Watch>,
}

impl Watching {
    #[track_caller]
    fn new(fd: OwnedFd, events: u32) -> Self {
        let local = local();
        let watch = Rc::new(Watch {
            fd,
            events,
            id: Cell::new(None),
            ready: Cell::new(0),
            error: Cell::new(None),
            closed: Cell::new(false),
            readers: WaitList::default(),
            writers: WaitList::default(),
        });
        local.start_watch(&watch);
        Self { local, watch }
    }

    /// Waits for one of `events`, without using it up.
    async fn ready(&self, events: u32) -> io::Result<()> {
        let watch = &self.watch;
        let list = if events & IN != 0 {
            &watch.readers
        } else {
            &watch.writers
        };
        list.wait_until(|| watch.ready.get() & events != 0 || watch.error.get().is_some())
            .await;
        match watch.error.get() {
            Some(errno) if watch.ready.get() & events == 0 => {
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }

    fn use_up(&self, events: u32) {
        self.watch.ready.set(self.watch.ready.get() & !events);
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watch.closed.set(true);
        if let Some(id) = self.watch.id.get() {
            self.local.cancel(id);
        }
    }
}

/// Watches an eventfd for being signalled: a queue's doorbell.
///
/// It is never read: every write is an edge, and edges are reported by one standing request. So a
/// signal costs no system call but the one that ends the thread's sleep.
pub struct EventSource(Watching);

impl EventSource {
    /// Watches a duplicate of `event`. If it was signalled before, that counts.
    ///
    /// # Errors
    /// There is no descriptor left.
    ///
    /// # Panics
    /// Outside of an I/O thread.
    #[track_caller]
    pub fn new(event: &EventFd) -> io::Result<EventSource> {
        let event = reactor::duplicate(event)?;
        Ok(Self(Watching::new(event, IN)))
    }

    /// Waits for a signal since the last wait (or since ever, the first time). Several may count
    /// as one, and one may rarely count twice.
    ///
    /// # Errors
    /// The eventfd cannot be polled.
    pub async fn wait(&self) -> io::Result<()> {
        self.0.ready(IN | ENDED).await?;
        self.0.use_up(IN | ENDED);
        Ok(())
    }
}

/// A descriptor that is read and written without blocking: a tap, a socket, a pipe, a terminal.
///
/// Operations try first; only when there is nothing to read or no room to write does the task
/// wait, for an edge that one standing request reports.
///
/// A task that always finds something lets the others go first every now and then.
pub struct AsyncFd {
    watching: Watching,
    /// Attempts that succeeded without a pause.
    row: Cell<u32>,
}

/// So many attempts in a row.
const ROW: u32 = 64;

impl AsyncFd {
    /// Takes `fd`, and sets O_NONBLOCK for it and for whoever shares its open file.
    ///
    /// # Errors
    /// As fcntl(2).
    ///
    /// # Panics
    /// Outside of an I/O thread.
    #[track_caller]
    pub fn new(fd: impl Into<OwnedFd>) -> io::Result<AsyncFd> {
        let fd = fd.into();
        reactor::set_nonblocking(&fd)?;
        Ok(Self {
            watching: Watching::new(fd, IN | OUT),
            row: Cell::new(0),
        })
    }

    /// Waits until there is something to read, as far as is known: since the last attempt that
    /// found nothing.
    ///
    /// # Errors
    /// The descriptor cannot be polled.
    pub async fn readable(&self) -> io::Result<()> {
        self.watching.ready(IN | ENDED).await
    }

    /// Waits until there is room to write, as far as is known: since the last attempt that found
    /// none.
    ///
    /// # Errors
    /// The descriptor cannot be polled.
    pub async fn writable(&self) -> io::Result<()> {
        self.watching.ready(OUT | ENDED).await
    }

    async fn pause(&self) {
        if self.row.get() == ROW {
            self.row.set(0);
            yield_now().await;
        }
        self.row.set(self.row.get() + 1);
    }

    fn note<R>(&self, events: u32, result: io::Result<R>) -> io::Result<R> {
        if let Err(error) = &result
            && error.kind() == io::ErrorKind::WouldBlock
        {
            self.row.set(0);
            // No edge that came after the attempt can be lost: events are taken in only between
            // the runs of tasks.
            self.watching.use_up(events | ENDED);
        }
        result
    }

    /// Runs `attempt`, which reads from this descriptor somehow; waits and repeats as long as it
    /// says `WouldBlock`.
    ///
    /// # Errors
    /// Those of `attempt`, and of polling.
    pub async fn read_with<R>(
        &self,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        self.pause().await;
        loop {
            match self.note(IN, attempt(self.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                result => return result,
            }
        }
    }

    /// As [`AsyncFd::read_with`], for writing.
    ///
    /// # Errors
    /// Those of `attempt`, and of polling.
    pub async fn write_with<R>(
        &self,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        self.pause().await;
        loop {
            match self.note(OUT, attempt(self.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                result => return result,
            }
        }
    }

    /// Runs `attempt`, which reads from this descriptor somehow, once, and takes note if there was
    /// nothing to read.
    ///
    /// # Errors
    /// Those of `attempt`; `WouldBlock` when there is nothing to read.
    pub fn try_read_with<R>(
        &self,
        attempt: impl FnOnce(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        self.note(IN, attempt(self.as_fd()))
    }

    /// As [`AsyncFd::try_read_with`], for writing.
    ///
    /// # Errors
    /// Those of `attempt`; `WouldBlock` when there is no room.
    pub fn try_write_with<R>(
        &self,
        attempt: impl FnOnce(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        self.note(OUT, attempt(self.as_fd()))
    }

    /// read(2); 0 at the end.
    ///
    /// # Errors
    /// As read(2), but for EAGAIN.
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_with(|fd| Ok(nix::unistd::read(fd, buf)?)).await
    }

    /// write(2); it may write less than asked for.
    ///
    /// # Errors
    /// As write(2), but for EAGAIN.
    pub async fn write(&self, buf: &[u8]) -> io::Result<usize> {
        self.write_with(|fd| Ok(nix::unistd::write(fd, buf)?)).await
    }

    /// readv(2); 0 at the end. A tap gives one frame.
    ///
    /// # Errors
    /// As readv(2), but for EAGAIN.
    pub async fn read_vectored(&self, buf: &mut IoBuf) -> io::Result<usize> {
        self.read_with(|fd| reactor::read_vectored(fd, buf)).await
    }

    /// writev(2); a tap takes one frame.
    ///
    /// # Errors
    /// As writev(2), but for EAGAIN.
    pub async fn write_vectored(&self, buf: &IoBuf) -> io::Result<usize> {
        self.write_with(|fd| reactor::write_vectored(fd, buf)).await
    }

    /// As [`AsyncFd::read_vectored`], without waiting.
    ///
    /// # Errors
    /// As readv(2); `WouldBlock` when there is nothing to read.
    pub fn try_read_vectored(&self, buf: &mut IoBuf) -> io::Result<usize> {
        self.note(IN, reactor::read_vectored(self.as_fd(), buf))
    }

    /// As [`AsyncFd::write_vectored`], without waiting.
    ///
    /// # Errors
    /// As writev(2); `WouldBlock` when there is no room.
    pub fn try_write_vectored(&self, buf: &IoBuf) -> io::Result<usize> {
        self.note(OUT, reactor::write_vectored(self.as_fd(), buf))
    }
}

impl AsFd for AsyncFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watching.watch.fd.as_fd()
    }
}
