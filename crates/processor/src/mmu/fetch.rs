//! Translations of code pages for instruction fetches.

use crate::mmu::walk::Found;
use crate::mmu::{OFFSET, Place, VIEW_USER};
use crate::state::Cpu;
use crate::stop::{Access, Exception};

const ENTRIES: usize = 64;

/// Who executes.
const SUPERVISOR: usize = 0;
const USER: usize = 1;

/// A page that may be executed.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Linear address of the page; bit 0: of the supervisor, bit 1: of the user. Zero: none.
    tag: u64,
    host: u64,
    /// Guest-physical address of the page; bit 0: it is global.
    physical: u64,
}

impl Entry {
    fn is_global(&self) -> bool {
        self.physical & 1 != 0
    }
}

/// The soft TLB of instruction fetches, and how long translations of code hold.
#[derive(Debug, Clone)]
pub(crate) struct FetchTlb {
    entries: [Entry; ENTRIES],
    /// [`Cpu::code_epoch`] of supervisor and user.
    epochs: [u64; 2],
    /// Pages that were entered since the last flush, by the low bits of their numbers: what an
    /// address says no to, nobody knows a translation of.
    entered: [[u64; 128]; 2],
    /// Some of them are pieces of large pages.
    large: [bool; 2],
    /// The supervisor has executed pages that are not global.
    local: bool,
}

impl FetchTlb {
    pub(crate) fn new() -> Self {
        FetchTlb {
            entries: [Entry::default(); ENTRIES],
            epochs: [0; 2],
            entered: [[0; 128]; 2],
            large: [false; 2],
            local: false,
        }
    }

    pub(super) fn flush(&mut self) {
        self.entries = [Entry::default(); ENTRIES];
        self.entered = [[0; 128]; 2];
        self.large = [false; 2];
        self.local = false;
        self.advance(SUPERVISOR);
        self.advance(USER);
    }

    fn advance(&mut self, who: usize) {
        self.epochs[who] = self.epochs[who].wrapping_add(1);
    }

    /// Keeps the supervisor's global pages.
    pub(super) fn flush_local(&mut self) {
        for entry in &mut self.entries {
            if entry.tag & 2 != 0 || !entry.is_global() {
                *entry = Entry::default();
            }
        }
        self.entered[USER] = [0; 128];
        self.large[USER] = false;
        self.advance(USER);
        if std::mem::take(&mut self.local) {
            self.advance(SUPERVISOR);
        }
    }

    /// Forgets the `reach` bytes, a power of two, around an address.
    pub(super) fn flush_page(&mut self, linear: u64, reach: u64) {
        if reach > OFFSET + 1 {
            for entry in &mut self.entries {
                if (entry.tag ^ linear) & !(reach - 1) == 0 {
                    *entry = Entry::default();
                }
            }
        } else {
            let entry = &mut self.entries[slot(linear)];
            if (entry.tag ^ linear) & !OFFSET == 0 {
                *entry = Entry::default();
            }
        }
        for who in [SUPERVISOR, USER] {
            let known = if reach > OFFSET + 1 && self.large[who] {
                let first = filter(linear & !(reach - 1)).0;
                let words = ((reach >> 12) as usize / 64).clamp(1, 64);
                let mut words = (first..first + words).map(|word| first & 64 | word & 63);
                words.any(|word| self.entered[who][word] != 0)
            } else {
                let (word, bit) = filter(linear);
                self.entered[who][word] & bit != 0
            };
            if known {
                self.advance(who);
            }
        }
    }

    pub(super) fn add(&mut self, linear: u64, host: u64, found: &Found, view: usize) {
        let who = if view == VIEW_USER { USER } else { SUPERVISOR };
        self.entries[slot(linear)] = Entry {
            tag: linear & !OFFSET | 1 << who,
            host,
            physical: found.page | u64::from(found.global),
        };
        let (word, bit) = filter(linear);
        self.entered[who][word] |= bit;
        self.large[who] |= found.size > OFFSET + 1;
        self.local |= who == SUPERVISOR && !found.global;
    }
}

fn slot(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

fn filter(linear: u64) -> (usize, u64) {
    let page = linear >> 12;
    // The two halves of the address space do not get into each other's way.
    let half = linear >> 63 << 6;
    ((half | page >> 6 & 63) as usize, 1 << (page & 63))
}

impl Cpu {
    /// Changes whenever a translation of code at the current privilege level may no longer hold:
    /// who keeps what [`Cpu::translate_code`] said drops it then.
    #[must_use]
    #[inline]
    pub fn code_epoch(&self) -> u64 {
        self.fetch.epochs[usize::from(self.view() == VIEW_USER)]
    }

    /// What [`Cpu::code_epoch`] is for the supervisor, and for programs.
    #[must_use]
    pub fn code_epochs(&self) -> [u64; 2] {
        self.fetch.epochs
    }

    /// Guest-physical address of the code at this linear address, for execution at the current
    /// privilege level.
    ///
    /// # Errors
    /// #PF.
    pub fn translate_code(&mut self, linear: u64) -> Result<u64, Exception> {
        Ok(self.lookup_code(linear)?.physical())
    }

    #[inline]
    pub(crate) fn lookup_code(&mut self, linear: u64) -> Result<Place, Exception> {
        let view = self.view();
        let tag = linear & !OFFSET | if view == VIEW_USER { 2 } else { 1 };
        let offset = linear & OFFSET;
        let entry = &self.fetch.entries[slot(linear)];
        if entry.tag == tag {
            return Ok(Place::Ram {
                host: (entry.host + offset) as *mut u8,
                physical: entry.physical & !OFFSET | offset,
            });
        }
        self.lookup(linear, Access::Execute, view)
    }
}
