//! The split ring (VIRTIO 1.3 section 2.7): a descriptor table, a ring of available heads
//! written by the driver, and a ring of used heads written by the device.

use std::sync::atomic::{Ordering, fence};

use memory::Ram;

use super::area::Area;
use super::descriptor::{Builder, Descriptor, F_INDIRECT, F_NEXT, Layout, SIZE};
use super::{QueueConfig, QueueError, QueueState};
use crate::chain::{Chain, Token};
use crate::features;

/// `avail.flags`: the driver wants no interrupts.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device wants no kicks.
const USED_F_NO_NOTIFY: u16 = 1;

/// Offset of `idx` in both rings; `flags` is at 0.
const INDEX: usize = 2;
/// Offset of the first entry in both rings.
const ENTRIES: usize = 4;

#[derive(Debug)]
pub(super) struct Split {
    config: QueueConfig,
    event_idx: bool,
    next_avail: u16,
    /// The driver's available index when it was last read: up to here no load is needed.
    seen_avail: u16,
    /// Entries written to the used ring, published or not.
    next_used: u16,
    /// The used index that the driver can see.
    published: u16,
    in_flight: u16,
    /// The used index at the last decision about an interrupt.
    signalled: u16,
    /// Whether there was such a decision: at first the driver is better told once too often.
    decided: bool,
}

impl Split {
    pub(super) fn new(config: &QueueConfig, state: &QueueState) -> Self {
        Self {
            config: *config,
            event_idx: config.has(features::RING_EVENT_IDX),
            next_avail: state.next_avail,
            seen_avail: state.next_avail,
            next_used: state.next_used,
            published: state.next_used,
            in_flight: state.in_flight,
            signalled: state.next_used,
            decided: false,
        }
    }

    pub(super) fn save(&self) -> QueueState {
        QueueState {
            next_avail: self.next_avail,
            next_used: self.published,
            in_flight: self.in_flight,
            ..QueueState::default()
        }
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.config.size - 1))
    }

    fn avail<'a>(&self, ram: &'a Ram) -> Result<Area<'a>, QueueError> {
        let len = ENTRIES + 2 * usize::from(self.config.size) + 2;
        Area::new(ram, self.config.driver_addr, len)
    }

    fn used<'a>(&self, ram: &'a Ram) -> Result<Area<'a>, QueueError> {
        let len = ENTRIES + 8 * usize::from(self.config.size) + 2;
        Area::new(ram, self.config.device_addr, len)
    }

    /// Behind the available ring: the used index at which the driver wants an interrupt.
    fn used_event(&self) -> usize {
        ENTRIES + 2 * usize::from(self.config.size)
    }

    /// Behind the used ring: the available index at which the device wants a kick.
    fn avail_event(&self) -> usize {
        ENTRIES + 8 * usize::from(self.config.size)
    }

    /// Whether there is an entry at `next_avail`, with the load that makes its content visible.
    fn look(&mut self, avail: &Area<'_>) -> Result<bool, QueueError> {
        if self.seen_avail != self.next_avail {
            return Ok(true);
        }
        let index = avail.load_u16(INDEX, Ordering::Acquire)?;
        if index.wrapping_sub(self.next_avail) > self.config.size {
            return Err(QueueError::AvailableIndex {
                available: index,
                taken: self.next_avail,
            });
        }
        self.seen_avail = index;
        Ok(index != self.next_avail)
    }

    pub(super) fn has_available(&mut self, ram: &Ram) -> Result<bool, QueueError> {
        let avail = self.avail(ram)?;
        self.look(&avail)
    }

    pub(super) fn pop(&mut self, ram: &Ram) -> Result<Option<Chain>, QueueError> {
        let size = self.config.size;
        let avail = self.avail(ram)?;
        if !self.look(&avail)? {
            return Ok(None);
        }
        if self.in_flight >= size {
            return Err(QueueError::InFlight(size));
        }
        let entry = ENTRIES + 2 * self.slot(self.next_avail);
        let head = avail.load_u16(entry, Ordering::Relaxed)?;

        let table = Area::new(ram, self.config.desc_addr, SIZE * usize::from(size))?;
        let mut builder = Builder::new(ram, &self.config, Layout::Split);
        let mut index = head;
        loop {
            if index >= size {
                return Err(QueueError::Index { index, len: size });
            }
            let descriptor = Descriptor::load(&table, index, Layout::Split)?;
            builder.add(descriptor)?;
            if !descriptor.has(F_NEXT) || descriptor.has(F_INDIRECT) {
                break;
            }
            index = descriptor.next_or_id;
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        self.in_flight += 1;
        Ok(Some(builder.finish(head, 1)))
    }

    pub(super) fn undo_pop(&mut self, _token: &Token) {
        self.next_avail = self.next_avail.wrapping_sub(1);
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(super) fn push_used(
        &mut self,
        ram: &Ram,
        token: &Token,
        written: u32,
    ) -> Result<(), QueueError> {
        let used = self.used(ram)?;
        let entry = ENTRIES + 8 * self.slot(self.next_used);
        used.store_u32(entry, u32::from(token.id), Ordering::Relaxed)?;
        used.store_u32(entry + 4, written, Ordering::Relaxed)?;
        self.next_used = self.next_used.wrapping_add(1);
        self.in_flight = self.in_flight.saturating_sub(1);
        Ok(())
    }

    pub(super) fn publish_used(&mut self, ram: &Ram) -> Result<(), QueueError> {
        // Release: entries and buffers are visible before the index.
        let used = self.used(ram)?;
        used.store_u16(INDEX, self.next_used, Ordering::Release)?;
        self.published = self.next_used;
        Ok(())
    }

    pub(super) fn needs_notification(&mut self, ram: &Ram) -> Result<bool, QueueError> {
        if self.signalled == self.published {
            return Ok(false);
        }
        let avail = self.avail(ram)?;
        // The used index must be visible before the driver's wish is read: the driver writes
        // its wish and then looks at the index, so that one of the two sees the other.
        fence(Ordering::SeqCst);
        let before = std::mem::replace(&mut self.signalled, self.published);
        let decided = std::mem::replace(&mut self.decided, true);
        if !self.event_idx {
            let flags = avail.load_u16(0, Ordering::Relaxed)?;
            return Ok(flags & AVAIL_F_NO_INTERRUPT == 0);
        }
        if !decided {
            return Ok(true);
        }
        let event = avail.load_u16(self.used_event(), Ordering::Relaxed)?;
        Ok(crossed(event, before, self.published))
    }

    pub(super) fn disable_notification(&mut self, ram: &Ram) -> Result<(), QueueError> {
        let used = self.used(ram)?;
        if self.event_idx {
            // An entry that was passed already: what the driver adds from here on does not cross
            // it. (A wish that was not yet fulfilled would still be.)
            let passed = self.next_avail.wrapping_sub(1);
            used.store_u16(self.avail_event(), passed, Ordering::Relaxed)
        } else {
            used.store_u16(0, USED_F_NO_NOTIFY, Ordering::Relaxed)
        }
    }

    pub(super) fn enable_notification(&mut self, ram: &Ram) -> Result<bool, QueueError> {
        let used = self.used(ram)?;
        if self.event_idx {
            used.store_u16(self.avail_event(), self.next_avail, Ordering::Relaxed)?;
        } else {
            used.store_u16(0, 0, Ordering::Relaxed)?;
        }
        // The wish must be visible before the driver's index is read again.
        fence(Ordering::SeqCst);
        self.has_available(ram)
    }
}

/// Whether an index that went from `before` to `now` passed the entry `event`
/// (VIRTIO 1.3 section 2.7.7.2).
fn crossed(event: u16, before: u16, now: u16) -> bool {
    event.wrapping_sub(before) < now.wrapping_sub(before)
}
