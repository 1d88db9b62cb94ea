//! virtio 1.3: queues, the PCI transport, and the devices.
//!
//! ```text
//!   driver in the guest
//!      │ registers                              │ rings in guest memory
//!      ▼                                        ▼
//!   [transport] status, features,   Queue   [queue] split or packed: pop, add_used
//!      │        queue set-up     ───────────▶   │ [chain] one request: Reader, Writer
//!      ▼                                        ▼
//!   [VirtioDevice] config space, start_queue ▶ worker on an I/O thread
//! ```
//!
//! A request body reads as four verbs: pop a chain, read and write it, mark it used, notify.
//!
//! ```no_run
//! # use virtio::{QueueError, QueueResources};
//! # use memory::GuestAddressSpace;
//! fn serve(resources: &mut QueueResources) -> Result<(), QueueError> {
//!     let ram = resources.memory.memory();
//!     while let Some(chain) = resources.queue.pop(&ram)? {
//!         let mut writer = chain.writer(&ram);
//!         writer.write_all(b"hello")?;
//!         let written = writer.written();
//!         resources.queue.add_used(&ram, chain, written)?;
//!     }
//!     if resources.queue.needs_notification(&ram)? {
//!         resources.interrupt.trigger();
//!     }
//!     Ok(())
//! }
//! ```
//!
//! - [`queue`]: the rings (VIRTIO 1.3 sections 2.7 and 2.8) behind one type.
//! - [`chain`]: a chain of descriptors as two byte streams.
//! - [`transport`]: a device as a PCI function.
//! - [`VirtioDevice`]: what a device implements; [`NeedsReset`]: where it reports nonsense.

pub mod balloon;
pub mod blk;
pub mod chain;
pub mod console;
mod device;
pub mod net;
pub mod queue;
pub mod rng;
mod service;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
mod trouble;

pub use chain::{Chain, Reader, Segment, Writer};
pub use device::{Activation, Identity, QueueResources, StartError, VirtioDevice};
pub use queue::{Queue, QueueConfig, QueueError, QueueState};
pub use transport::{PciSpec, TransportError, TransportOptions, TransportSpec, VirtioPci};
pub use trouble::NeedsReset;

/// Feature bits that belong to the rings and the transport (VIRTIO 1.3 section 6).
pub mod features {
    /// Descriptors may point to tables of descriptors.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say at which index they want to be notified.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// The device complies with VIRTIO 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
    /// The device's memory accesses go through an IOMMU.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// The packed ring's layout.
    pub const RING_PACKED: u64 = 1 << 34;
    /// The driver may reset one queue.
    pub const RING_RESET: u64 = 1 << 40;
    /// All of the above.
    pub const TRANSPORT: u64 = RING_INDIRECT_DESC
        | RING_EVENT_IDX
        | VERSION_1
        | ACCESS_PLATFORM
        | RING_PACKED
        | RING_RESET;
}
