//! The task that waits for a network's sockets and timers.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use event::{AsyncFd, LocalTask, Notify, select2};
use memory::VolatileSlice;

use super::epoll;
use super::ffi::Slirp;
use crate::{Port, Ready};

/// The host's side rests while so many frames wait for the guest: what comes then waits in the
/// sockets, and the senders notice.
const HIGH_WATER: usize = 256;

/// A card's way into the network.
pub(super) struct UserPort {
    net: Rc<Net>,
    /// Ends with the port.
    _pump: LocalTask<()>,
}

/// What the port and the pump share.
struct Net {
    slirp: Slirp,
    /// The sockets that are waited for.
    sockets: AsyncFd,
    watched: RefCell<BTreeMap<RawFd, u32>>,
    /// The guest has sent something, or has taken frames that were too many: the pump has to look.
    changed: Notify,
    /// Frames are there.
    arrived: Notify,
    /// The pump rests until frames were taken.
    resting: Cell<bool>,
    /// Room to put a frame together that comes in pieces.
    scratch: RefCell<Vec<u8>>,
}

impl UserPort {
    /// On an I/O thread.
    pub fn new(slirp: Slirp) -> io::Result<Self> {
        let net = Rc::new(Net {
            slirp,
            sockets: AsyncFd::new(epoll::create()?)?,
            watched: RefCell::default(),
            changed: Notify::new(),
            arrived: Notify::new(),
            resting: Cell::new(false),
            scratch: RefCell::default(),
        });
        let pump = event::spawn_local(pump(Rc::clone(&net)));
        Ok(Self { net, _pump: pump })
    }
}

impl Net {
    /// Tells a waiting reader of frames that a call of the library may have brought.
    fn deliver(&self) {
        if self.slirp.frames() != 0 {
            self.arrived.notify();
        }
    }

    /// Makes the epoll set what the library wants.
    fn watch(&self, wanted: &[(RawFd, u32)]) {
        let mut watched = self.watched.borrow_mut();
        for fd in self.slirp.take_closed() {
            // Closed already: the kernel has forgotten it, but its number may be in use again.
            watched.remove(&fd);
        }
        let mut before = std::mem::take(&mut *watched);
        for &(fd, events) in wanted {
            let old = before.remove(&fd);
            if old != Some(events)
                && let Err(error) = epoll::set(&self.sockets, fd, events, old.is_some())
            {
                log::warn!("user-mode network: cannot wait for a socket: {error}");
                continue;
            }
            watched.insert(fd, events);
        }
        for fd in before.into_keys() {
            epoll::remove(&self.sockets, fd);
        }
    }

    /// Waits for events of sockets; their descriptors and the library's event bits.
    async fn socket_events(&self) -> io::Result<Vec<(RawFd, u32)>> {
        self.sockets.read_with(epoll::ready).await
    }
}

async fn pump(net: Rc<Net>) {
    let mut wanted = Vec::new();
    loop {
        while net.slirp.frames() >= HIGH_WATER {
            net.resting.set(true);
            net.changed.notified().await;
        }
        net.resting.set(false);
        let timeout = net.slirp.fill(&mut wanted);
        net.watch(&wanted);
        let wait = select2(net.socket_events(), net.changed.notified());
        let ready = match event::timeout(timeout.unwrap_or(Duration::MAX), wait).await {
            Some(event::Either::A(Ok(ready))) => ready,
            Some(event::Either::A(Err(error))) => {
                log::error!("user-mode network: cannot wait for sockets: {error}");
                return;
            }
            Some(event::Either::B(())) | None => Vec::new(),
        };
        let events: Vec<u32> = wanted
            .iter()
            .map(|(fd, _)| ready.iter().find(|r| r.0 == *fd).map_or(0, |r| r.1))
            .collect();
        net.slirp.poll(&events);
        net.deliver();
        // Sockets that are always ready must not keep the thread's other tasks from running.
        event::yield_now().await;
    }
}

impl Port for UserPort {
    fn receive(&self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let slirp = &self.net.slirp;
        let len = slirp.with_frame(|frame| {
            let mut rest = frame;
            for piece in into {
                let (now, later) = rest.split_at(rest.len().min(piece.len()));
                piece.copy_from(now);
                rest = later;
            }
            frame.len() - rest.len()
        });
        if self.net.resting.get() && slirp.frames() < HIGH_WATER / 2 {
            self.net.resting.set(false);
            self.net.changed.notify();
        }
        len.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn receivable(&self) -> Ready<'_> {
        Box::pin(async {
            while self.net.slirp.frames() == 0 {
                self.net.arrived.notified().await;
            }
            Ok(())
        })
    }

    fn send(&self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut scratch = self.net.scratch.borrow_mut();
        scratch.clear();
        for piece in frame {
            let start = scratch.len();
            scratch.resize(start + piece.len(), 0);
            piece.copy_to(&mut scratch[start..]);
        }
        self.net.slirp.input(&scratch);
        drop(scratch);
        self.net.changed.notify();
        self.net.deliver();
        Ok(())
    }

    fn sendable(&self) -> Ready<'_> {
        Box::pin(std::future::ready(Ok(())))
    }
}
