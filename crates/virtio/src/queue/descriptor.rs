//! Descriptors, and the chain that is made of them.

use memory::{GuestAddress, GuestMemoryBackend, Ram};

use super::area::Area;
use super::{QueueConfig, QueueError};
use crate::chain::{Chain, Segment, Segments, Token};
use crate::features;

/// Size of a descriptor of either layout.
pub(super) const SIZE: usize = 16;

/// The chain goes on.
pub(super) const F_NEXT: u16 = 1;
/// The device writes the buffer.
pub(super) const F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const F_INDIRECT: u16 = 4;

/// A descriptor: the first 12 bytes are common to both layouts, the last two fields change
/// places.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    /// Split: index of the next descriptor. Packed: buffer ID.
    pub(super) next_or_id: u16,
}

/// Which of the two layouts a table has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Split,
    Packed,
}

impl Descriptor {
    /// Reads entry `index` of `table` once. The entry must be within the area.
    pub(super) fn load(table: &Area<'_>, index: u16, layout: Layout) -> Result<Self, QueueError> {
        let [address, rest] = table.load_pair(usize::from(index) * SIZE)?;
        let (third, fourth) = ((rest >> 32) as u16, (rest >> 48) as u16);
        let (flags, next_or_id) = match layout {
            Layout::Split => (third, fourth),
            Layout::Packed => (fourth, third),
        };
        Ok(Self {
            address,
            len: rest as u32,
            flags,
            next_or_id,
        })
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Gathers descriptors into a chain and checks them on the way.
pub(super) struct Builder<'a> {
    ram: &'a Ram,
    layout: Layout,
    /// Descriptors that a chain may have: the queue's size.
    limit: u16,
    indirect: bool,
    count: u16,
    segments: Segments,
    readable: usize,
    readable_len: u64,
    writable_len: u64,
}

impl<'a> Builder<'a> {
    pub(super) fn new(ram: &'a Ram, config: &QueueConfig, layout: Layout) -> Self {
        Self {
            ram,
            layout,
            limit: config.size,
            indirect: config.has(features::RING_INDIRECT_DESC),
            count: 0,
            segments: Segments::new(),
            readable: 0,
            readable_len: 0,
            writable_len: 0,
        }
    }

    /// Adds a descriptor of the ring, with its table when it is indirect.
    pub(super) fn add(&mut self, descriptor: Descriptor) -> Result<(), QueueError> {
        if !descriptor.has(F_INDIRECT) {
            return self.add_buffer(descriptor);
        }
        if !self.indirect {
            return Err(QueueError::Indirect("was not negotiated"));
        }
        if descriptor.has(F_NEXT) {
            return Err(QueueError::Indirect("has a next descriptor"));
        }
        let len = descriptor.len as usize / SIZE;
        let entries = match u16::try_from(len) {
            Ok(entries) if entries != 0 && (descriptor.len as usize).is_multiple_of(SIZE) => {
                entries
            }
            _ => return Err(QueueError::Table(descriptor.len)),
        };
        let table = Area::new(self.ram, descriptor.address, descriptor.len as usize)?;
        self.add_table(&table, entries)
    }

    /// Walks an indirect table: from link to link in the split layout, one after the other in
    /// the packed one (VIRTIO 1.3 sections 2.7.5.3 and 2.8.8).
    fn add_table(&mut self, table: &Area<'_>, entries: u16) -> Result<(), QueueError> {
        let mut index = 0;
        loop {
            if index >= entries {
                return Err(QueueError::Index {
                    index,
                    len: entries,
                });
            }
            let descriptor = Descriptor::load(table, index, self.layout)?;
            if descriptor.has(F_INDIRECT) {
                return Err(QueueError::Indirect("is inside an indirect table"));
            }
            self.add_buffer(descriptor)?;
            match self.layout {
                Layout::Split if descriptor.has(F_NEXT) => index = descriptor.next_or_id,
                Layout::Packed if index + 1 < entries => index += 1,
                _ => return Ok(()),
            }
        }
    }

    fn add_buffer(&mut self, descriptor: Descriptor) -> Result<(), QueueError> {
        // Also what ends a loop of links.
        if self.count == self.limit {
            return Err(QueueError::TooLong(self.limit));
        }
        self.count += 1;
        let Descriptor { address, len, .. } = descriptor;
        if len == 0 {
            return Err(QueueError::Empty);
        }
        let total = self.readable_len + self.writable_len + u64::from(len);
        if total > u64::from(u32::MAX) {
            return Err(QueueError::TooManyBytes(total));
        }
        let writable = descriptor.has(F_WRITE);
        if !writable && self.writable_len != 0 {
            return Err(QueueError::Order);
        }
        self.add_segments(address, len)?;
        if writable {
            self.writable_len += u64::from(len);
        } else {
            self.readable_len += u64::from(len);
            self.readable = self.segments.len();
        }
        Ok(())
    }

    /// Adds a buffer, cut where one region of the map ends and another begins.
    fn add_segments(&mut self, address: u64, len: u32) -> Result<(), QueueError> {
        let not_ram = || QueueError::NotRam {
            address,
            len: u64::from(len),
        };
        let (mut at, mut left) = (address, len);
        while left != 0 {
            let (region, offset) = self
                .ram
                .to_region_addr(GuestAddress(at))
                .ok_or_else(not_ram)?;
            let room = memory::GuestMemoryRegion::len(region) - memory::Address::raw_value(&offset);
            let here = u32::try_from(room).unwrap_or(u32::MAX).min(left);
            self.segments.push(Segment {
                address: at,
                len: here,
            });
            left -= here;
            at = at.checked_add(u64::from(here)).ok_or_else(not_ram)?;
        }
        Ok(())
    }

    /// The chain, which takes `descriptors` in the ring.
    pub(super) fn finish(self, id: u16, descriptors: u16) -> Chain {
        Chain {
            token: Token { id, descriptors },
            segments: self.segments,
            readable: self.readable,
            // Both fit: their sum was checked with every buffer.
            readable_len: self.readable_len as u32,
            writable_len: self.writable_len as u32,
        }
    }
}
