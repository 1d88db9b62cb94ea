use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use memory::VolatileSlice;

/// Bytes of struct virtio_net_hdr (VIRTIO 1.3 section 5.1.6) in front of each frame of a back end
/// with [`Capabilities::vnet_header`].
pub const VNET_HEADER: usize = 12;

/// What a back end leaves to the other side of a link to do, for frames towards the guest: leave
/// out checksums, join segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Frames may have partial checksums. Nothing below goes without.
    pub csum: bool,
    /// TCP over IPv4 may come in large frames.
    pub tso4: bool,
    /// TCP over IPv6.
    pub tso6: bool,
    /// TCP with explicit congestion notification.
    pub ecn: bool,
    /// UDP over IPv4 and IPv6 may come in large frames.
    pub uso: bool,
}

/// What a back end can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Frames have a struct virtio_net_hdr of [`VNET_HEADER`] bytes in front, in both directions,
    /// of which the back end does not write `num_buffers`.
    pub vnet_header: bool,
    /// What frames in both directions may leave undone.
    pub offloads: Offloads,
    /// Pairs of queues.
    pub queue_pairs: u16,
    /// Bytes of the largest frame that can come, with its header if there is one.
    pub max_frame: usize,
}

/// Tells when an attempt may succeed.
pub type Ready<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>;

/// One queue pair's way to the host's network. It belongs to tasks of one I/O thread.
pub trait Port {
    /// Takes the next frame from the host into `into`, of which the first bytes are filled, and
    /// returns its length. What does not fit is cut off.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; with others the frame, if there was one, is lost.
    fn receive(&self, into: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Waits until [`Port::receive`] may find a frame.
    fn receivable(&self) -> Ready<'_>;

    /// Gives the host a frame.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; with others the frame is lost.
    fn send(&self, frame: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Waits until [`Port::send`] may find room.
    fn sendable(&self) -> Ready<'_>;
}

/// Makes a port; to be called on the I/O thread that serves it.
pub type OpenPort = Box<dyn FnOnce() -> io::Result<Rc<dyn Port>> + Send>;

/// What concerns all queues of a back end. Callable from any thread.
pub trait Control: Send + Sync {
    /// What frames towards the guest may leave undone: never more than
    /// [`Capabilities::offloads`]. Nothing at first.
    ///
    /// # Errors
    /// The host refuses.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Frames go to and come from the first `pairs` queue pairs; 1 at first.
    ///
    /// # Errors
    /// The host refuses.
    fn set_queue_pairs(&self, pairs: u16) -> io::Result<()>;
}

/// An open back end: its ports, one for each queue pair, and what controls them together.
pub struct Backend {
    capabilities: Capabilities,
    control: Arc<dyn Control>,
    ports: Vec<OpenPort>,
}

impl Backend {
    /// A back end of these parts; `capabilities.queue_pairs` is the number of ports.
    #[must_use]
    pub fn new(
        capabilities: Capabilities,
        control: Arc<dyn Control>,
        ports: Vec<OpenPort>,
    ) -> Self {
        let queue_pairs = u16::try_from(ports.len()).unwrap_or(u16::MAX);
        Self {
            capabilities: Capabilities {
                queue_pairs,
                ..capabilities
            },
            control,
            ports,
        }
    }

    /// What it can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// What controls all queues.
    #[must_use]
    pub fn control(&self) -> &Arc<dyn Control> {
        &self.control
    }

    /// The ports, in the order of the queue pairs.
    #[must_use]
    pub fn into_ports(self) -> Vec<OpenPort> {
        self.ports
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend")
            .field("capabilities", &self.capabilities)
            .finish_non_exhaustive()
    }
}
