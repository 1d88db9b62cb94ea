//! Translations of code pages for instruction fetches.

use crate::mmu::{OFFSET, Place, VIEW_USER};
use crate::state::Cpu;
use crate::stop::{Access, Exception};

const ENTRIES: usize = 64;

/// A page that may be executed.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Linear address of the page; bit 0: of the supervisor, bit 1: of the user. Zero: none.
    tag: u64,
    host: u64,
    physical: u64,
}

/// The soft TLB of instruction fetches.
#[derive(Debug, Clone)]
pub(crate) struct FetchTlb([Entry; ENTRIES]);

impl FetchTlb {
    pub(crate) fn new() -> Self {
        FetchTlb([Entry::default(); ENTRIES])
    }

    pub(crate) fn flush(&mut self) {
        self.0 = [Entry::default(); ENTRIES];
    }

    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.0[slot(linear)] = Entry::default();
    }
}

fn slot(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

impl Cpu {
    /// Guest-physical address of the code at this linear address, for execution at the current
    /// privilege level.
    ///
    /// # Errors
    /// #PF.
    pub fn translate_code(&mut self, linear: u64) -> Result<u64, Exception> {
        Ok(self.lookup_code(linear)?.physical())
    }

    pub(crate) fn lookup_code(&mut self, linear: u64) -> Result<Place, Exception> {
        let view = self.view();
        let tag = linear & !OFFSET | if view == VIEW_USER { 2 } else { 1 };
        let offset = linear & OFFSET;
        let entry = &self.fetch.0[slot(linear)];
        if entry.tag == tag {
            return Ok(Place::Ram {
                host: (entry.host + offset) as *mut u8,
                physical: entry.physical | offset,
            });
        }
        let place = self.lookup(linear, Access::Execute, view)?;
        if let Place::Ram { host, physical } = place {
            self.fetch.0[slot(linear)] = Entry {
                tag,
                host: host as u64 - offset,
                physical: physical & !OFFSET,
            };
        }
        Ok(place)
    }
}
