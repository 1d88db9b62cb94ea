//! Virtqueues: split (VIRTIO 1.3 section 2.7) and packed (section 2.8) rings behind one type.
//!
//! ```text
//!            pop                   add_used | push_used.. publish_used
//!   ring ──────────▶ Chain ─ work ──────────────────────────────────────▶ ring
//!                      └── undo_pop ──▶ back                needs_notification ▶ interrupt
//! ```
//!
//! Everything in the rings and chains is the guest's: every index, address and length is checked
//! when it is read, and is read once. Ring accesses go through the memory map's snapshot each
//! time, so a map that changes (hot-plug) needs nothing here. What was written, in the rings and
//! through chains, is told to [`memory::written`] here: devices need not.

mod area;
mod descriptor;
mod packed;
mod split;
#[cfg(test)]
mod stress_tests;
#[cfg(test)]
mod tests;

use memory::Ram;
use serde::{Deserialize, Serialize};

use crate::chain::Chain;
use crate::features;
use packed::Packed;
use split::Split;

/// The largest queue that a ring can describe (VIRTIO 1.3 sections 2.7 and 2.8.10.1).
pub const MAX_SIZE: u16 = 32768;

/// What is wrong with a queue or with the driver's use of it. Apart from a wish that a chain is
/// too short for ([`QueueError::TooShort`]), the device is in need of a reset.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The queue's size is not possible.
    #[error("queue size {0} is not possible")]
    Size(u16),
    /// A part of the ring is not aligned as it must be.
    #[error("the {part} area at {address:#x} is not aligned")]
    Unaligned {
        /// Descriptor, driver or device area.
        part: &'static str,
        /// Where the driver put it.
        address: u64,
    },
    /// A ring or a buffer is outside of the guest's memory.
    #[error("{len} bytes at {address:#x} are not in RAM")]
    NotRam {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A memory access failed for another reason.
    #[error("guest memory")]
    Memory(#[source] memory::VolatileMemoryError),
    /// The available index is more than the queue's size ahead of what was taken.
    #[error("the available index {available} is too far ahead of {taken}")]
    AvailableIndex {
        /// The driver's index.
        available: u16,
        /// The device's.
        taken: u16,
    },
    /// More chains are in flight than the ring has descriptors.
    #[error("more chains are in flight than a queue of size {0} can hold")]
    InFlight(u16),
    /// A descriptor's index is not within its table.
    #[error("descriptor {index} is outside of a table of {len}")]
    Index {
        /// The index.
        index: u16,
        /// The table's length.
        len: u16,
    },
    /// A chain has more descriptors than the queue, maybe because it is a loop.
    #[error("a chain has more than {0} descriptors")]
    TooLong(u16),
    /// A chain's buffers are 4 GiB or more together.
    #[error("a chain has {0} bytes")]
    TooManyBytes(u64),
    /// A descriptor has no bytes.
    #[error("a descriptor is empty")]
    Empty,
    /// A readable descriptor follows a writable one.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// An indirect descriptor is one where there cannot be one: not negotiated, within an
    /// indirect table, or with a next descriptor.
    #[error("an indirect descriptor {0}")]
    Indirect(&'static str),
    /// An indirect table's length is zero or not a multiple of 16.
    #[error("an indirect table has {0} bytes")]
    Table(u32),
    /// The device needs more bytes than the driver's chain has.
    #[error("{wanted} bytes wanted of a chain that has {remaining} left")]
    TooShort {
        /// Bytes wanted.
        wanted: usize,
        /// Bytes there.
        remaining: usize,
    },
    /// A saved state does not fit the queue.
    #[error("a saved queue is impossible: {0}")]
    State(&'static str),
}

/// What the driver set up for one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueConfig {
    /// Number of descriptors: a power of two in a split ring.
    pub size: u16,
    /// Descriptor area: descriptor table, or the packed ring.
    pub desc_addr: u64,
    /// Driver area: available ring, or the driver's event suppression structure.
    pub driver_addr: u64,
    /// Device area: used ring, or the device's event suppression structure.
    pub device_addr: u64,
    /// Negotiated features.
    pub features: u64,
}

impl QueueConfig {
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

/// Where a queue's device side stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Split: the free-running index of the next available entry. Packed: the ring position of
    /// the next available descriptor.
    pub next_avail: u16,
    /// Split: the free-running index of the next used entry. Packed: the ring position.
    pub next_used: u16,
    /// Packed: the wrap counter that belongs to `next_avail`.
    pub avail_wrap: bool,
    /// Packed: the wrap counter that belongs to `next_used`.
    pub used_wrap: bool,
    /// Chains (split) or descriptors (packed) that were popped and not marked used.
    pub in_flight: u16,
}

impl Default for QueueState {
    /// A queue that was never used.
    fn default() -> Self {
        Self {
            next_avail: 0,
            next_used: 0,
            avail_wrap: true,
            used_wrap: true,
            in_flight: 0,
        }
    }
}

#[derive(Debug)]
enum Ring {
    Split(Split),
    Packed(Packed),
}

/// The device's side of one virtqueue.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    config: QueueConfig,
}

macro_rules! ring {
    ($self:expr, $ring:ident => $body:expr) => {
        match $self {
            Ring::Split($ring) => $body,
            Ring::Packed($ring) => $body,
        }
    };
}

impl Queue {
    /// A queue that was never used. Without [`features::RING_PACKED`] it is a split one.
    ///
    /// # Errors
    /// Size or alignment are not possible. Whether the ring is in RAM shows at the first use.
    pub fn new(config: QueueConfig) -> Result<Self, QueueError> {
        Self::restore(config, QueueState::default())
    }

    /// A queue that goes on where another stopped.
    ///
    /// # Errors
    /// As [`Queue::new`], and a state that does not fit.
    pub fn restore(config: QueueConfig, state: QueueState) -> Result<Self, QueueError> {
        let packed = config.has(features::RING_PACKED);
        if config.size == 0 || config.size > MAX_SIZE || !(packed || config.size.is_power_of_two())
        {
            return Err(QueueError::Size(config.size));
        }
        let driver_alignment = if packed { 4 } else { 2 };
        for (part, address, alignment) in [
            ("descriptor", config.desc_addr, 16),
            ("driver", config.driver_addr, driver_alignment),
            ("device", config.device_addr, 4),
        ] {
            if address % alignment != 0 {
                return Err(QueueError::Unaligned { part, address });
            }
        }
        if state.in_flight > config.size {
            return Err(QueueError::State("more in flight than its size"));
        }
        let ring = if packed {
            Ring::Packed(Packed::new(&config, &state)?)
        } else {
            Ring::Split(Split::new(&config, &state))
        };
        Ok(Self { ring, config })
    }

    /// What the driver set up.
    #[must_use]
    pub fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.config.size
    }

    /// Takes the next chain that the driver made available; `None` when there is none.
    ///
    /// # Errors
    /// The ring or the chain makes no sense. The chain stays where it is, and every further call
    /// fails likewise: report it to [`crate::NeedsReset`] and stop.
    pub fn pop(&mut self, ram: &Ram) -> Result<Option<Chain>, QueueError> {
        ring!(&mut self.ring, ring => ring.pop(ram))
    }

    /// Puts the chain that was popped last back: it will be popped again.
    pub fn undo_pop(&mut self, chain: Chain) {
        ring!(&mut self.ring, ring => ring.undo_pop(&chain.token));
    }

    /// Whether the driver has made a chain available that was not popped.
    ///
    /// # Errors
    /// The ring is not in RAM.
    pub fn has_available(&mut self, ram: &Ram) -> Result<bool, QueueError> {
        ring!(&mut self.ring, ring => ring.has_available(ram))
    }

    /// Marks a chain used, of whose writable bytes the first `written` were written, and lets
    /// the driver see it. Chains may be used in another order than they were popped.
    ///
    /// # Errors
    /// The ring is not in RAM.
    pub fn add_used(&mut self, ram: &Ram, chain: Chain, written: u32) -> Result<(), QueueError> {
        self.push_used(ram, chain, written)?;
        self.publish_used(ram)
    }

    /// Marks a chain used, to be seen by the driver at the next [`Queue::publish_used`]: several
    /// chains that belong together (a packet in merged receive buffers), or one store for many.
    ///
    /// # Errors
    /// The ring is not in RAM.
    pub fn push_used(&mut self, ram: &Ram, chain: Chain, written: u32) -> Result<(), QueueError> {
        // All of them: a device may leave gaps in what it wrote, and count less.
        for segment in chain.writable() {
            memory::written(ram, segment.address, segment.len.into());
        }
        ring!(&mut self.ring, ring => ring.push_used(ram, &chain.token, written))
    }

    /// Lets the driver see all chains of [`Queue::push_used`] at once.
    ///
    /// # Errors
    /// The ring is not in RAM.
    pub fn publish_used(&mut self, ram: &Ram) -> Result<(), QueueError> {
        ring!(&mut self.ring, ring => ring.publish_used(ram))
    }

    /// Whether the driver wants an interrupt for what was published since the last call. To be
    /// called once after a batch; when it says yes, trigger the interrupt.
    ///
    /// # Errors
    /// The ring is not in RAM.
    pub fn needs_notification(&mut self, ram: &Ram) -> Result<bool, QueueError> {
        ring!(&mut self.ring, ring => ring.needs_notification(ram))
    }

    /// Tells the driver that it need not kick: the device looks by itself. Only a hint.
    ///
    /// # Errors
    /// The ring is not in RAM.
    pub fn disable_notification(&mut self, ram: &Ram) -> Result<(), QueueError> {
        ring!(&mut self.ring, ring => ring.disable_notification(ram))
    }

    /// Asks the driver to kick for the next chain. `true` when more chains came meanwhile: pop
    /// them before waiting, there may be no kick for them.
    ///
    /// # Errors
    /// The ring is not in RAM.
    pub fn enable_notification(&mut self, ram: &Ram) -> Result<bool, QueueError> {
        ring!(&mut self.ring, ring => ring.enable_notification(ram))
    }

    /// Where the device's side stands. Everything pushed must have been published, and
    /// [`Queue::needs_notification`] asked about it: a restored queue knows nothing of either.
    #[must_use]
    pub fn save(&self) -> QueueState {
        ring!(&self.ring, ring => ring.save())
    }
}
