//! The packed ring (VIRTIO 1.3 section 2.8): one ring of descriptors that the driver makes
//! available and the device overwrites as used, each with a wrap counter that flips at the end
//! of the ring.

use std::sync::atomic::{Ordering, fence};

use memory::Ram;

use super::area::Area;
use super::descriptor::{Builder, Descriptor, F_INDIRECT, F_NEXT, F_WRITE, Layout, SIZE};
use super::{QueueConfig, QueueError, QueueState};
use crate::chain::{Chain, Token};
use crate::features;

const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;

/// Event suppression structure: `desc` (offset and wrap counter) in the low half, `flags` in the
/// high half (section 2.8.14).
const EVENTS_SIZE: usize = 4;
const EVENTS_ENABLE: u32 = 0;
const EVENTS_DISABLE: u32 = 1;
const EVENTS_DESC: u32 = 2;

/// A place in the ring and the wrap counter there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    index: u16,
    wrap: bool,
}

impl Position {
    /// The place `count` (at most `size`) descriptors further.
    fn advanced(self, count: u16, size: u16) -> Self {
        let index = u32::from(self.index) + u32::from(count);
        match index.checked_sub(u32::from(size)) {
            Some(index) => Self {
                index: index as u16,
                wrap: !self.wrap,
            },
            None => Self {
                index: index as u16,
                wrap: self.wrap,
            },
        }
    }

    /// The place `count` (at most `size`) descriptors before.
    fn rewound(self, count: u16, size: u16) -> Self {
        match self.index.checked_sub(count) {
            Some(index) => Self {
                index,
                wrap: self.wrap,
            },
            None => Self {
                index: self.index + (size - count),
                wrap: !self.wrap,
            },
        }
    }

    /// As the event suppression structures have it: wrap counter in bit 15.
    fn from_event(event: u16) -> Self {
        Self {
            index: event & 0x7fff,
            wrap: event & 0x8000 != 0,
        }
    }

    fn to_event(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// Descriptors from `self` forward to `other`, 0 to 2 * `size` - 1: the wrap counters
    /// tell a ring's lap from the next.
    fn distance(self, other: Self, size: u16) -> u32 {
        let size = u32::from(size);
        let (from, to) = (u32::from(self.index), u32::from(other.index));
        let lap = if self.wrap == other.wrap { 0 } else { size };
        (to + lap + 2 * size - from) % (2 * size)
    }
}

#[derive(Debug)]
pub(super) struct Packed {
    config: QueueConfig,
    event_idx: bool,
    next_avail: Position,
    next_used: Position,
    in_flight: u16,
    /// The first used descriptor that is not published: its place and its last 8 bytes. The
    /// driver sees none of the following ones before this one.
    pending: Option<(u16, u64)>,
    /// The place of the next used descriptor at the last decision about an interrupt; `None`
    /// when it is not known, and the driver is better told once too often.
    signalled: Option<Position>,
    /// Descriptors used since that decision.
    unsignalled: u32,
}

impl Packed {
    pub(super) fn new(config: &QueueConfig, state: &QueueState) -> Result<Self, QueueError> {
        if state.next_avail >= config.size || state.next_used >= config.size {
            return Err(QueueError::State("a position outside of the ring"));
        }
        Ok(Self {
            config: *config,
            event_idx: config.has(features::RING_EVENT_IDX),
            next_avail: Position {
                index: state.next_avail,
                wrap: state.avail_wrap,
            },
            next_used: Position {
                index: state.next_used,
                wrap: state.used_wrap,
            },
            in_flight: state.in_flight,
            pending: None,
            signalled: None,
            unsignalled: 0,
        })
    }

    pub(super) fn save(&self) -> QueueState {
        QueueState {
            next_avail: self.next_avail.index,
            avail_wrap: self.next_avail.wrap,
            next_used: self.next_used.index,
            used_wrap: self.next_used.wrap,
            in_flight: self.in_flight,
        }
    }

    fn ring<'a>(&self, ram: &'a Ram) -> Result<Area<'a>, QueueError> {
        Area::new(
            ram,
            self.config.desc_addr,
            SIZE * usize::from(self.config.size),
        )
    }

    /// Whether the descriptor at `next_avail` is available, with the load that makes its
    /// content visible.
    fn look(&self, ring: &Area<'_>) -> Result<bool, QueueError> {
        let at = SIZE * usize::from(self.next_avail.index) + 14;
        let flags = ring.load_u16(at, Ordering::Acquire)?;
        let (avail, used) = (flags & F_AVAIL != 0, flags & F_USED != 0);
        Ok(avail == self.next_avail.wrap && used != self.next_avail.wrap)
    }

    pub(super) fn has_available(&mut self, ram: &Ram) -> Result<bool, QueueError> {
        let ring = self.ring(ram)?;
        self.look(&ring)
    }

    pub(super) fn pop(&mut self, ram: &Ram) -> Result<Option<Chain>, QueueError> {
        let size = self.config.size;
        let ring = self.ring(ram)?;
        if !self.look(&ring)? {
            return Ok(None);
        }
        let mut builder = Builder::new(ram, &self.config, Layout::Packed);
        let mut place = self.next_avail;
        let mut descriptors = 0;
        let id = loop {
            if self.in_flight + descriptors >= size {
                return Err(QueueError::InFlight(size));
            }
            let descriptor = Descriptor::load(&ring, place.index, Layout::Packed)?;
            builder.add(descriptor)?;
            descriptors += 1;
            place = place.advanced(1, size);
            // The ID is in the chain's last descriptor.
            if !descriptor.has(F_NEXT) || descriptor.has(F_INDIRECT) {
                break descriptor.next_or_id;
            }
        };
        self.next_avail = place;
        self.in_flight += descriptors;
        Ok(Some(builder.finish(id, descriptors)))
    }

    pub(super) fn undo_pop(&mut self, token: &Token) {
        self.next_avail = self.next_avail.rewound(token.descriptors, self.config.size);
        self.in_flight = self.in_flight.saturating_sub(token.descriptors);
    }

    pub(super) fn push_used(
        &mut self,
        ram: &Ram,
        token: &Token,
        written: u32,
    ) -> Result<(), QueueError> {
        let mut flags = if written != 0 { F_WRITE } else { 0 };
        if self.next_used.wrap {
            flags |= F_AVAIL | F_USED;
        }
        let word = u64::from(written) | u64::from(token.id) << 32 | u64::from(flags) << 48;
        let index = self.next_used.index;
        if self.pending.is_none() {
            self.pending = Some((index, word));
        } else {
            let at = SIZE * usize::from(index) + 8;
            self.ring(ram)?.store_u64(at, word, Ordering::Release)?;
        }
        self.next_used = self.next_used.advanced(token.descriptors, self.config.size);
        self.in_flight = self.in_flight.saturating_sub(token.descriptors);
        self.unsignalled = self
            .unsignalled
            .saturating_add(u32::from(token.descriptors));
        Ok(())
    }

    pub(super) fn publish_used(&mut self, ram: &Ram) -> Result<(), QueueError> {
        if let Some((index, word)) = self.pending {
            // Release: buffers and the descriptors that follow are visible before this one.
            let at = SIZE * usize::from(index) + 8;
            self.ring(ram)?.store_u64(at, word, Ordering::Release)?;
            self.pending = None;
        }
        Ok(())
    }

    pub(super) fn needs_notification(&mut self, ram: &Ram) -> Result<bool, QueueError> {
        let used = std::mem::take(&mut self.unsignalled);
        if used == 0 {
            return Ok(false);
        }
        let area = Area::new(ram, self.config.driver_addr, EVENTS_SIZE)?;
        // The used descriptors must be visible before the driver's wish is read: the driver
        // writes its wish and then looks at the ring, so that one of the two sees the other.
        fence(Ordering::SeqCst);
        let before = self.signalled.replace(self.next_used);
        let events = area.load_u32(0, Ordering::Relaxed)?;
        let size = self.config.size;
        match (events >> 16 & 3, before) {
            (EVENTS_DISABLE, _) => Ok(false),
            (EVENTS_DESC, Some(before)) if self.event_idx && used < u32::from(size) => {
                let event = Position::from_event(events as u16);
                Ok(event.index >= size
                    || before.distance(event, size) < before.distance(self.next_used, size))
            }
            _ => Ok(true),
        }
    }

    fn set_events(&self, ram: &Ram, events: u32) -> Result<(), QueueError> {
        let area = Area::new(ram, self.config.device_addr, EVENTS_SIZE)?;
        area.store_u32(0, events, Ordering::Relaxed)
    }

    pub(super) fn disable_notification(&mut self, ram: &Ram) -> Result<(), QueueError> {
        self.set_events(ram, EVENTS_DISABLE << 16)
    }

    pub(super) fn enable_notification(&mut self, ram: &Ram) -> Result<bool, QueueError> {
        let events = if self.event_idx {
            EVENTS_DESC << 16 | u32::from(self.next_avail.to_event())
        } else {
            EVENTS_ENABLE << 16
        };
        self.set_events(ram, events)?;
        // The wish must be visible before the ring is looked at again.
        fence(Ordering::SeqCst);
        self.has_available(ram)
    }
}
