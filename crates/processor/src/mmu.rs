//! The memory management unit: soft TLB, translation, access.
//!
//! ```text
//!   linear ──▶ Tlb[view][index] ── tag matches ──▶ host address = linear + addend ──▶ load, store
//!                  │ miss                             (translated code does just this)
//!                  ▼
//!               lookup: walk the guest's page tables ──▶ RAM: make the entry ──▶ as above
//!                  │                                └──▶ device: Cpu::ask
//!                  ▼ #PF
//! ```

use x86::cr::cr4;

use crate::state::{Cpu, Mode};
use crate::stop::{Access, Exception};

mod access;
mod fetch;
mod flush;
pub(crate) mod host;
mod segments;
mod walk;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use fetch::FetchTlb;
pub(crate) use flush::Filled;
pub use host::Word;
pub(crate) use walk::Paging;

/// Entries of one view: enough for 32 MiB of pages of 4 KiB.
pub const TLB_ENTRIES: usize = 8192;

/// View of CPL 3.
pub const VIEW_USER: usize = 0;
/// View of CPL 0 to 2.
pub const VIEW_SUPERVISOR: usize = 1;
/// View of CPL 0 to 2 while user pages are out of bounds (CR4.SMAP and not RFLAGS.AC).
pub const VIEW_SUPERVISOR_SMAP: usize = 2;

const PAGE: u64 = 4096;
const OFFSET: u64 = PAGE - 1;

/// As whom an access is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// By the running code, at its privilege level.
    Current,
    /// By the processor itself, to descriptor tables and task state segments: an implicit
    /// supervisor access, which SMAP forbids on user pages whatever RFLAGS.AC says (SDM vol. 3A
    /// 4.6.1).
    System,
}

/// An entry of the soft TLB. Tags are page-aligned linear addresses; an access of `size` bytes
/// at `linear` hits if `linear - tag <= 4096 - size` without sign, which also excludes accesses
/// that leave the page. A tag is that of a page of its slot, or one that neither lives in the slot
/// nor lies behind a page that does: [`TlbEntry::never`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct TlbEntry {
    /// Tag for reads.
    pub read: u64,
    /// Tag for writes. Matches only where a store needs nothing but the store: the page is dirty
    /// in the guest's page table and holds no code.
    pub write: u64,
    /// Host address less linear address.
    pub addend: u64,
    /// Guest-physical address of the page.
    pub physical: u64,
}

impl TlbEntry {
    /// An entry that never matches in this slot: its tags name a page that lives in another.
    #[must_use]
    pub const fn never(slot: usize) -> Self {
        let tag = Self::never_tag(slot);
        TlbEntry {
            read: tag,
            write: tag,
            addend: 0,
            physical: 0,
        }
    }

    /// Page zero lives in slot zero, so that most of an empty table is zeros. The page behind a
    /// slot's own will not do either: translated code that keeps the flags looks only at the last
    /// byte of an access, which may begin in the page before.
    const fn never_tag(slot: usize) -> u64 {
        if slot == 0 || slot == TLB_ENTRIES - 1 {
            2 << 12
        } else {
            0
        }
    }
}

/// The soft TLB: a table for each view.
pub type Tlb = [[TlbEntry; TLB_ENTRIES]; VIEWS];

/// How many views there are.
pub const VIEWS: usize = 3;

/// Slot of a linear address.
#[must_use]
#[inline]
pub const fn slot(linear: u64) -> usize {
    (linear >> 12) as usize & (TLB_ENTRIES - 1)
}

/// Where a translated address leads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// RAM, at this address of this process.
    Ram { host: *mut u8, physical: u64 },
    /// Anything else.
    Device { physical: u64 },
}

impl Place {
    pub(crate) fn physical(self) -> u64 {
        match self {
            Place::Ram { physical, .. } | Place::Device { physical } => physical,
        }
    }
}

impl Cpu {
    /// The view of the running code.
    #[must_use]
    #[inline]
    pub fn view(&self) -> usize {
        const CPL: u32 = 3 << Mode::CPL_SHIFT;
        if self.mode.0 & CPL == CPL {
            VIEW_USER
        } else if self.mode.has(Mode::SMAP) {
            VIEW_SUPERVISOR_SMAP
        } else {
            VIEW_SUPERVISOR
        }
    }

    /// The view of an access.
    #[must_use]
    #[inline]
    pub fn view_as(&self, as_: As) -> usize {
        match as_ {
            As::Current => self.view(),
            As::System if self.cr4 & cr4::SMAP != 0 => VIEW_SUPERVISOR_SMAP,
            As::System => VIEW_SUPERVISOR,
        }
    }

    /// Translates and makes the entry of the soft TLB. Tells whether the entry serves this
    /// access now. If not, [`Cpu::read`] and [`Cpu::write`] have to do it: the page is no RAM, or
    /// holds code, or is watched by a breakpoint register. Never true for [`Access::Execute`].
    ///
    /// # Errors
    /// #PF.
    pub fn fill(&mut self, linear: u64, access: Access, view: usize) -> Result<bool, Exception> {
        self.lookup(linear, access, view)?;
        let entry = &self.tlb[view][slot(linear)];
        let page = linear & !OFFSET;
        Ok(match access {
            Access::Read => entry.read == page,
            Access::Write => entry.write == page,
            Access::Execute => false,
        })
    }

    /// Guest-physical address of a linear one, with all that the access brings: rights are
    /// checked, accessed and dirty bits set.
    ///
    /// # Errors
    /// #PF.
    pub fn translate(&mut self, linear: u64, access: Access, as_: As) -> Result<u64, Exception> {
        let view = self.view_as(as_);
        Ok(self.lookup(linear, access, view)?.physical())
    }

    /// Translates one page's worth and makes its entry if it is RAM.
    pub(crate) fn lookup(
        &mut self,
        linear: u64,
        access: Access,
        view: usize,
    ) -> Result<Place, Exception> {
        let page = linear & !OFFSET;
        let offset = linear & OFFSET;
        let slot = slot(linear);
        let entry = &self.tlb[view][slot];
        let known = match access {
            Access::Read => entry.read == page,
            Access::Write => entry.write == page,
            Access::Execute => false,
        };
        if known {
            return Ok(Place::Ram {
                host: linear.wrapping_add(entry.addend) as *mut u8,
                physical: entry.physical | offset,
            });
        }
        let found = self.walk(linear, access, view)?;
        let physical = found.page | offset;
        let Some(host) = self.ram.host(found.page, PAGE as usize) else {
            return Ok(Place::Device { physical });
        };
        if found.size > PAGE {
            self.filled.add_large(linear, found.size);
        }
        if access == Access::Execute {
            self.fetch.add(linear, host as u64, &found, view);
        }
        // A processor that makes this page a code page meanwhile posts a drop, which this thread
        // handles after the entry stands.
        if access != Access::Execute && !self.is_debugged(page) {
            let never = TlbEntry::never_tag(slot);
            let plain_store = found.write && !self.code.is_code(found.page);
            self.tlb[view][slot] = TlbEntry {
                read: page,
                write: if plain_store { page } else { never },
                addend: (host as u64).wrapping_sub(page),
                physical: found.page,
            };
            self.filled.add(view, slot, found.global, found.size > PAGE);
        }
        Ok(Place::Ram {
            host: host.wrapping_add(offset as usize),
            physical,
        })
    }

    /// Whether an enabled breakpoint register watches data of this page.
    fn is_debugged(&self, page: u64) -> bool {
        self.dr7 & 0xff != 0
            && (0..4).any(|n| {
                self.dr7 >> (2 * n) & 3 != 0
                    && self.dr7 >> (16 + 4 * n) & 3 != 0
                    && self.dr[n] & !OFFSET == page
            })
    }
}
