use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use crate::{Action, Device, fill_ones};

/// A range of ports or addresses: `base .. base + size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First port or address.
    pub base: u64,
    /// Number of ports or bytes; at least 1.
    pub size: u64,
}

impl Range {
    /// The range `base .. base + size`.
    #[must_use]
    pub const fn new(base: u64, size: u64) -> Self {
        Self { base, size }
    }

    /// The last port or address, or `None` when the range is empty or wraps around.
    #[must_use]
    pub const fn last(&self) -> Option<u64> {
        match self.size.checked_sub(1) {
            Some(more) => self.base.checked_add(more),
            None => None,
        }
    }

    fn offset_of(&self, address: u64) -> Option<u64> {
        address
            .checked_sub(self.base)
            .filter(|offset| *offset < self.size)
    }
}

/// Why a range could not be put on a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range is empty or goes past the end of the address space.
    #[error("range {:#x}+{:#x} is empty or wraps around", .0.base, .0.size)]
    BadRange(Range),
    /// Another device is there already.
    #[error("range {:#x}+{:#x} overlaps {:#x}+{:#x}", .wanted.base, .wanted.size, .taken.base, .taken.size)]
    Overlap {
        /// The range asked for.
        wanted: Range,
        /// The range in the way.
        taken: Range,
    },
}

#[derive(Clone)]
struct Entry {
    range: Range,
    device: Arc<dyn Device>,
}

/// A space of ports or addresses and the devices in it.
///
/// Look-ups take a snapshot of a sorted list and no lock; insertions and removals (BARs that the
/// guest moves, hot-plug) replace the list. A device removed while another processor is inside
/// one of its accesses lives on until that access returns.
#[derive(Default)]
pub struct Bus {
    entries: ArcSwap<Vec<Entry>>,
    change: Mutex<()>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.entries.load().iter().map(|e| e.range))
            .finish()
    }
}

impl Bus {
    /// An empty space.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `range`.
    ///
    /// # Errors
    /// The range is bad or overlaps another device's.
    pub fn insert(&self, range: Range, device: Arc<dyn Device>) -> Result<(), BusError> {
        let last = range.last().ok_or(BusError::BadRange(range))?;
        let _change = self
            .change
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut entries = Vec::clone(&self.entries.load());
        let at = entries.partition_point(|e| e.range.base < range.base);
        let before = at.checked_sub(1).and_then(|i| entries.get(i));
        let clash = before
            .filter(|e| e.range.last() >= Some(range.base))
            .or_else(|| entries.get(at).filter(|e| e.range.base <= last));
        if let Some(taken) = clash {
            return Err(BusError::Overlap {
                wanted: range,
                taken: taken.range,
            });
        }
        entries.insert(at, Entry { range, device });
        self.entries.store(Arc::new(entries));
        Ok(())
    }

    /// Takes away the device whose range begins at `base`; tells whether there was one.
    pub fn remove(&self, base: u64) -> bool {
        let _change = self
            .change
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut entries = Vec::clone(&self.entries.load());
        let before = entries.len();
        entries.retain(|e| e.range.base != base);
        let removed = entries.len() != before;
        if removed {
            self.entries.store(Arc::new(entries));
        }
        removed
    }

    /// Reads at `address`; where nothing is, all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => fill_ones(data),
        }
    }

    /// Writes at `address`; where nothing is, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) -> Action {
        match self.find(address) {
            Some((device, offset)) => device.write(offset, data),
            None => Action::None,
        }
    }

    /// The ranges in use, in ascending order.
    #[must_use]
    pub fn ranges(&self) -> Vec<Range> {
        self.entries.load().iter().map(|e| e.range).collect()
    }

    fn find(&self, address: u64) -> Option<(Arc<dyn Device>, u64)> {
        let entries = self.entries.load();
        let at = entries
            .partition_point(|e| e.range.base <= address)
            .checked_sub(1)?;
        let entry = entries.get(at)?;
        let offset = entry.range.offset_of(address)?;
        Some((Arc::clone(&entry.device), offset))
    }
}
