use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};

use memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::Guest;
use crate::features::{RING_EVENT_IDX, RING_PACKED};
use crate::queue::QueueConfig;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;

/// A buffer of a chain that a test offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    #[must_use]
    pub fn readable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    #[must_use]
    pub fn writable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: true,
        }
    }
}

/// The driver's side of one queue, split or packed, as Linux does it. Panics where a device
/// breaks the rules.
pub struct DriverQueue {
    guest: Guest,
    config: QueueConfig,
    packed: bool,
    /// Split: free descriptors. Packed: free buffer IDs.
    free: Vec<u16>,
    /// What is in flight: the descriptors that it takes in the ring.
    in_flight: BTreeMap<u16, Vec<u16>>,
    /// Packed: descriptors that are free.
    room: u16,
    /// Split: free-running. Packed: position.
    next_avail: u16,
    next_used: u16,
    avail_wrap: bool,
    used_wrap: bool,
    /// Where the device was last asked whether it wants a kick.
    kicked: (u16, bool),
}

impl DriverQueue {
    /// A queue of `size` descriptors in fresh memory, with these negotiated features.
    #[must_use]
    pub fn new(guest: &Guest, size: u16, features: u64) -> Self {
        let packed = features & RING_PACKED != 0;
        let n = usize::from(size);
        let (driver, device) = if packed {
            (4, 4)
        } else {
            (6 + 2 * n, 6 + 8 * n)
        };
        let config = QueueConfig {
            size,
            desc_addr: guest.alloc(16 * n, 16),
            driver_addr: guest.alloc(driver, 4),
            device_addr: guest.alloc(device, 4),
            features,
        };
        Self {
            guest: guest.clone(),
            config,
            packed,
            free: (0..size).rev().collect(),
            in_flight: BTreeMap::new(),
            room: size,
            next_avail: 0,
            next_used: 0,
            avail_wrap: true,
            used_wrap: true,
            kicked: (0, true),
        }
    }

    /// What the device has to know.
    #[must_use]
    pub fn config(&self) -> QueueConfig {
        self.config
    }

    /// The guest in whose memory the queue is.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Chains that the device has not used.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Makes a chain available and returns its number; `None` when the ring is full.
    pub fn offer(&mut self, chain: &[Buffer]) -> Option<u16> {
        assert!(!chain.is_empty());
        let entries: Vec<_> = chain
            .iter()
            .map(|b| (b.address, b.len, if b.writable { F_WRITE } else { 0 }))
            .collect();
        self.offer_entries(&entries)
    }

    /// As [`DriverQueue::offer`], with the chain in an indirect table.
    pub fn offer_indirect(&mut self, chain: &[Buffer]) -> Option<u16> {
        let mut table = Vec::new();
        for (i, buffer) in chain.iter().enumerate() {
            let mut flags = if buffer.writable { F_WRITE } else { 0 };
            let mut next = 0;
            if !self.packed && i + 1 < chain.len() {
                flags |= F_NEXT;
                next = i as u16 + 1;
            }
            let (third, fourth) = if self.packed {
                (0, flags)
            } else {
                (flags, next)
            };
            table.extend(buffer.address.to_le_bytes());
            table.extend(buffer.len.to_le_bytes());
            table.extend(third.to_le_bytes());
            table.extend(fourth.to_le_bytes());
        }
        let address = self.guest.put(&table);
        self.offer_entries(&[(address, table.len() as u32, F_INDIRECT)])
    }

    /// Copies `readable` into fresh memory, offers it with writable buffers of the given
    /// lengths, and returns the chain's number and the writable buffers.
    ///
    /// # Panics
    /// The ring is full.
    pub fn send(&mut self, readable: &[&[u8]], writable: &[u32]) -> (u16, Vec<Buffer>) {
        let mut chain: Vec<Buffer> = readable
            .iter()
            .map(|bytes| Buffer::readable(self.guest.put(bytes), bytes.len() as u32))
            .collect();
        let first = chain.len();
        for &len in writable {
            chain.push(Buffer::writable(self.guest.alloc(len as usize, 16), len));
        }
        let id = self.offer(&chain).expect("the ring is full");
        (id, chain.split_off(first))
    }

    fn offer_entries(&mut self, entries: &[(u64, u32, u16)]) -> Option<u16> {
        let count = entries.len() as u16;
        if self.packed {
            if self.room < count {
                return None;
            }
            return Some(self.offer_packed(entries));
        }
        if self.free.len() < entries.len() {
            return None;
        }
        let slots = self.free.split_off(self.free.len() - entries.len());
        for (i, &(address, len, flags)) in entries.iter().enumerate() {
            let next = slots.get(i + 1).copied();
            let flags = flags | if next.is_some() { F_NEXT } else { 0 };
            let at = self.config.desc_addr + 16 * u64::from(slots[i]);
            self.store(at, address);
            self.store(at + 8, len);
            self.store(at + 12, flags);
            self.store(at + 14, next.unwrap_or(0));
        }
        let head = slots[0];
        let slot = u64::from(self.next_avail % self.config.size);
        self.store(self.config.driver_addr + 4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        let index = self.config.driver_addr + 2;
        self.publish(index, self.next_avail);
        self.in_flight.insert(head, slots);
        Some(head)
    }

    fn offer_packed(&mut self, entries: &[(u64, u32, u16)]) -> u16 {
        let id = self.free.pop().expect("as many IDs as descriptors");
        let mut first = None;
        let mut taken = Vec::new();
        for (i, &(address, len, flags)) in entries.iter().enumerate() {
            let mut flags = flags | if self.avail_wrap { F_AVAIL } else { F_USED };
            if i + 1 < entries.len() {
                flags |= F_NEXT;
            }
            let at = self.config.desc_addr + 16 * u64::from(self.next_avail);
            self.store(at, address);
            self.store(at + 8, len);
            self.store(at + 12, id);
            if i == 0 {
                first = Some((at + 14, flags));
            } else {
                self.store(at + 14, flags);
            }
            taken.push(self.next_avail);
            (self.next_avail, self.avail_wrap) = self.forward(self.next_avail, self.avail_wrap, 1);
        }
        let (at, flags) = first.expect("an entry");
        self.publish(at, flags);
        self.room -= entries.len() as u16;
        self.in_flight.insert(id, taken);
        id
    }

    fn forward(&self, index: u16, wrap: bool, count: u16) -> (u16, bool) {
        let index = u32::from(index) + u32::from(count);
        let size = u32::from(self.config.size);
        if index < size {
            (index as u16, wrap)
        } else {
            ((index - size) as u16, !wrap)
        }
    }

    /// Takes the next used chain: its number and how many bytes the device says to have
    /// written.
    ///
    /// # Panics
    /// The device used a chain that was not in flight.
    pub fn collect(&mut self) -> Option<(u16, u32)> {
        if self.packed {
            return self.collect_packed();
        }
        let ring = self.config.device_addr;
        let index: u16 = self.load(ring + 2);
        if index == self.next_used {
            return None;
        }
        assert!(index.wrapping_sub(self.next_used) <= self.config.size);
        let at = ring + 4 + 8 * u64::from(self.next_used % self.config.size);
        let id: u32 = self.load(at);
        let written: u32 = self.load(at + 4);
        let id = u16::try_from(id).expect("a head");
        let slots = self.in_flight.remove(&id).expect("a chain in flight");
        self.free.extend(slots);
        self.next_used = self.next_used.wrapping_add(1);
        Some((id, written))
    }

    fn collect_packed(&mut self) -> Option<(u16, u32)> {
        let at = self.config.desc_addr + 16 * u64::from(self.next_used);
        let flags: u16 = self.load(at + 14);
        let (avail, used) = (flags & F_AVAIL != 0, flags & F_USED != 0);
        if avail != self.used_wrap || used != self.used_wrap {
            return None;
        }
        let written: u32 = self.load(at + 8);
        let id: u16 = self.load(at + 12);
        let taken = self.in_flight.remove(&id).expect("a chain in flight");
        (self.next_used, self.used_wrap) =
            self.forward(self.next_used, self.used_wrap, taken.len() as u16);
        self.room += taken.len() as u16;
        self.free.push(id);
        Some((id, written))
    }

    /// Whether the device wants a kick for what was offered since the last call.
    pub fn needs_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let now = (self.next_avail, self.avail_wrap);
        let before = std::mem::replace(&mut self.kicked, now);
        let event_idx = self.config.features & RING_EVENT_IDX != 0;
        let device = self.config.device_addr;
        if !self.packed {
            if !event_idx {
                return self.load::<u16>(device) & 1 == 0;
            }
            let event: u16 = self.load(device + 4 + 8 * u64::from(self.config.size));
            return event.wrapping_sub(before.0) < now.0.wrapping_sub(before.0);
        }
        let events: u32 = self.load(device);
        match events >> 16 {
            0 => true,
            1 => false,
            _ => {
                let place = |index: u16, wrap: bool| {
                    i32::from(index)
                        - if wrap == now.1 {
                            0
                        } else {
                            i32::from(self.config.size)
                        }
                };
                let event = place(events as u16 & 0x7fff, events & 0x8000 != 0);
                let before = place(before.0, before.1);
                (before..place(now.0, now.1)).contains(&event)
            }
        }
    }

    /// Asks the device for an interrupt with the next used chain; `true` when one is there
    /// already.
    pub fn enable_interrupts(&mut self) -> bool {
        let event_idx = self.config.features & RING_EVENT_IDX != 0;
        let driver = self.config.driver_addr;
        match (self.packed, event_idx) {
            (false, false) => self.store(driver, 0u16),
            (false, true) => {
                let at = driver + 4 + 2 * u64::from(self.config.size);
                self.store(at, self.next_used);
            }
            (true, false) => self.store(driver, 0u32),
            (true, true) => {
                let place = self.next_used | u16::from(self.used_wrap) << 15;
                self.store(driver, 2 << 16 | u32::from(place));
            }
        }
        fence(Ordering::SeqCst);
        self.used_available()
    }

    /// Tells the device that no interrupts are wanted.
    pub fn disable_interrupts(&mut self) {
        let event_idx = self.config.features & RING_EVENT_IDX != 0;
        let driver = self.config.driver_addr;
        match (self.packed, event_idx) {
            (false, false) => self.store(driver, 1u16),
            // An index far behind: it will not be crossed.
            (false, true) => {
                let at = driver + 4 + 2 * u64::from(self.config.size);
                self.store(at, self.next_used.wrapping_sub(0x4000));
            }
            (true, _) => self.store(driver, 1u32 << 16),
        }
    }

    /// Whether [`DriverQueue::collect`] would find something.
    #[must_use]
    pub fn used_available(&self) -> bool {
        if !self.packed {
            return self.load::<u16>(self.config.device_addr + 2) != self.next_used;
        }
        let at = self.config.desc_addr + 16 * u64::from(self.next_used) + 14;
        let flags: u16 = self.load(at);
        (flags & F_AVAIL != 0) == self.used_wrap && (flags & F_USED != 0) == self.used_wrap
    }

    fn load<T: memory::AtomicAccess>(&self, address: u64) -> T {
        let ram = self.guest.memory().memory();
        ram.load(GuestAddress(address), Ordering::Acquire)
            .expect("RAM")
    }

    fn store<T: memory::AtomicAccess>(&self, address: u64, value: T) {
        let ram = self.guest.memory().memory();
        ram.store(value, GuestAddress(address), Ordering::Relaxed)
            .expect("RAM");
    }

    fn publish(&self, address: u64, value: u16) {
        let ram = self.guest.memory().memory();
        ram.store(value, GuestAddress(address), Ordering::Release)
            .expect("RAM");
    }
}
