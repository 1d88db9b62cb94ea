use bus::{EventFd, Interrupt};
use memory::GuestRam;
use state::{Payload, StateError};

use crate::queue::{Queue, QueueState};
use crate::trouble::NeedsReset;

/// What a device is to the driver that looks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Virtio device type (VIRTIO 1.3 section 5): 1 network, 2 block, 3 console, 4 entropy, ...
    pub device_type: u16,
    /// PCI class code: base class, subclass, interface in bits 23..0.
    pub pci_class: u32,
}

/// Everything that a worker needs to serve one queue.
pub struct QueueResources {
    /// The ring. The worker owns it until [`VirtioDevice::stop_queue`].
    pub queue: Queue,
    /// The guest's memory.
    pub memory: GuestRam,
    /// Rung by the driver when it has made buffers available.
    pub kick: EventFd,
    /// Tells the driver that buffers were used (the worker asks the queue whether to).
    pub interrupt: Interrupt,
    /// Where the worker reports a ring that makes no sense.
    pub trouble: NeedsReset,
}

/// What the driver and the device agreed on, given before the queues start.
#[derive(Clone)]
pub struct Activation {
    /// Negotiated feature bits.
    pub features: u64,
    /// Tells the driver that the configuration space changed.
    pub config_changed: Interrupt,
    /// Where the device reports that it is beyond help.
    pub trouble: NeedsReset,
}

/// Why a queue could not be started.
#[derive(Debug, thiserror::Error)]
#[error("queue {queue} cannot start: {why}")]
pub struct StartError {
    /// Queue index.
    pub queue: u16,
    /// The reason.
    pub why: String,
}

/// A virtio device behind its transport: identity, configuration space and queues.
///
/// The transport owns status, feature negotiation, queue set-up and interrupts; the device owns
/// its configuration space and its requests. The life of a device:
///
/// ```text
///            activate            start_queue(i) for each enabled queue
///   reset ─────────────▶ active ────────────────────────────────────▶ running
///     ▲                    ▲                                             │ stop_queue(i)
///     └──── reset ─────────┴─────────────────────────────────────────────┘ (all, or one: ring reset)
/// ```
///
/// Calls come from one thread at a time (the transport's lock). Queues are served by workers on
/// I/O threads; a method never waits for the guest.
pub trait VirtioDevice: Send {
    /// What the device is.
    fn identity(&self) -> Identity;

    /// Feature bits that the device offers, without the transport's and the rings' own
    /// (VERSION_1, RING_PACKED, INDIRECT_DESC, EVENT_IDX, RING_RESET, ACCESS_PLATFORM).
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two each; its length is the number of queues.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads the configuration space; bytes beyond its end read as zero.
    fn config_read(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space; bytes that are not writable are ignored. Called with the
    /// transport's lock held, as all methods are.
    fn config_write(&mut self, offset: u64, data: &[u8]);

    /// The driver set DRIVER_OK (or its state was restored): what was agreed.
    fn activate(&mut self, activation: Activation);

    /// Hands a queue to a worker. The transport rings the queue's kick right afterwards, so that
    /// chains from before are found.
    ///
    /// # Errors
    /// The device cannot serve the queue; the transport sets NEEDS_RESET.
    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), StartError>;

    /// Takes a queue back from its worker once every request in flight is complete, marked used
    /// and, where the driver wants it, told by an interrupt; `None` when the queue was not
    /// started. Chains that the worker only holds in reserve go back by
    /// [`Queue::undo_pop`].
    fn stop_queue(&mut self, index: u16) -> Option<QueueState>;

    /// Back to the state after power-on. All queues have been stopped.
    fn reset(&mut self);

    /// The device's own state, without queues and transport. All queues have been stopped.
    ///
    /// # Errors
    /// The device cannot be saved, and says why.
    fn save(&self) -> Result<Payload, StateError>;

    /// Takes over a saved state before [`VirtioDevice::activate`].
    ///
    /// # Errors
    /// The payload is of another kind, newer, or impossible.
    fn restore(&mut self, payload: Payload) -> Result<(), StateError>;
}
