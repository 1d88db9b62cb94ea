//! A network whose other end is a test. (Feature `testing`.)

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};

use crate::fd::FdPort;
use crate::{Backend, Capabilities, Control, Offloads, OpenPort, Port};

/// How long a test waits before it fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the card has asked of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The last offloads.
    pub offloads: Offloads,
    /// The last number of queue pairs.
    pub queue_pairs: u16,
}

/// The other end of a network card.
pub struct Peer {
    cables: Vec<OwnedFd>,
    asked: Arc<Mutex<Asked>>,
}

struct Recorder(Arc<Mutex<Asked>>);

fn locked(asked: &Mutex<Asked>) -> MutexGuard<'_, Asked> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control for Recorder {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        locked(&self.0).offloads = offloads;
        Ok(())
    }

    fn set_queue_pairs(&self, pairs: u16) -> io::Result<()> {
        locked(&self.0).queue_pairs = pairs;
        Ok(())
    }
}

/// A network with these capabilities, and its other end. Frames pass through socket pairs, which
/// hold a few and then exert back-pressure.
///
/// # Panics
/// There is no descriptor left.
#[must_use]
pub fn pair(capabilities: Capabilities) -> (Backend, Peer) {
    let asked = Arc::new(Mutex::new(Asked {
        offloads: Offloads::default(),
        queue_pairs: 1,
    }));
    let mut cables = Vec::new();
    let mut ports = Vec::<OpenPort>::new();
    for _ in 0..capabilities.queue_pairs {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .expect("a socket pair");
        for end in [&ours, &theirs] {
            setsockopt(end, sockopt::SndBuf, &(256 << 10)).expect("a buffer size");
        }
        cables.push(theirs);
        ports.push(Box::new(move || {
            FdPort::new(ours).map(|port| Rc::new(port) as Rc<dyn Port>)
        }));
    }
    let control = Arc::new(Recorder(Arc::clone(&asked)));
    (
        Backend::new(capabilities, control, ports),
        Peer { cables, asked },
    )
}

impl Peer {
    /// Sends a frame to queue pair `pair` of the card.
    ///
    /// # Panics
    /// The card does not take it within 10 seconds.
    pub fn send(&self, pair: usize, frame: &[u8]) {
        use std::os::fd::{AsFd, AsRawFd};
        let cable = &self.cables[pair];
        wait(cable.as_fd(), PollFlags::POLLOUT, PATIENCE);
        let sent = send(cable.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT);
        assert_eq!(sent, Ok(frame.len()));
    }

    /// The next frame that the card has sent by queue pair `pair`.
    ///
    /// # Panics
    /// None comes within 10 seconds.
    #[must_use]
    pub fn receive(&self, pair: usize) -> Vec<u8> {
        self.receive_within(pair, PATIENCE).expect("a frame")
    }

    /// As [`Peer::receive`], if one comes in time.
    ///
    /// # Panics
    /// The card is gone.
    #[must_use]
    pub fn receive_within(&self, pair: usize, patience: Duration) -> Option<Vec<u8>> {
        use std::os::fd::{AsFd, AsRawFd};
        let cable = &self.cables[pair];
        wait(cable.as_fd(), PollFlags::POLLIN, patience);
        let mut frame = vec![0; 128 << 10];
        match recv(cable.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            // A card that is gone says no more.
            Ok(0) | Err(Errno::EAGAIN | Errno::ECONNRESET) => None,
            Ok(len) => {
                frame.truncate(len);
                Some(frame)
            }
            Err(error) => panic!("a socket pair: {error}"),
        }
    }

    /// What the card has asked for.
    #[must_use]
    pub fn asked(&self) -> Asked {
        *locked(&self.asked)
    }
}

fn wait(fd: std::os::fd::BorrowedFd<'_>, events: PollFlags, patience: Duration) {
    let patience = PollTimeout::try_from(patience).expect("a timeout");
    poll(&mut [PollFd::new(fd, events)], patience).expect("poll");
}
