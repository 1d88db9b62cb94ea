//! Walks of the guest's page tables (SDM vol. 3A chapter 4): none, 32-bit, PAE, 4-level.
#![allow(
    unsafe_code,
    reason = "page-table entries are read and marked where they are, in guest memory"
)]

use x86::Feature;
use x86::cr::{cr0, cr4, efer};

use crate::mmu::host::Word;
use crate::mmu::{VIEW_SUPERVISOR_SMAP, VIEW_USER};
use crate::state::Cpu;
use crate::stop::{Access, Exception};

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// Bits 51 to 12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits of a page fault's error code (SDM vol. 3A 4.7).
mod code {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const I: u32 = 1 << 4;
}

/// What CPUID promises about paging.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paging {
    /// Bits 51 to MAXPHYADDR: reserved in every entry.
    reserved: u64,
    phys_bits: u32,
    /// 1 GiB pages.
    huge: bool,
    /// 4 MiB pages above 4 GiB.
    pse36: bool,
}

impl Paging {
    pub(crate) fn of(cpuid: &x86::Cpuid) -> Self {
        let phys_bits = u32::from(cpuid.phys_bits()).clamp(32, 52);
        Paging {
            reserved: ((1 << 52) - 1) & !((1 << phys_bits) - 1),
            phys_bits,
            huge: cpuid.feature(const { Feature::of("pdpe1gb") }),
            pse36: cpuid.feature(const { Feature::of("pse36") }),
        }
    }

    /// Bits that no physical address has.
    pub(crate) fn beyond(&self) -> u64 {
        !((1 << self.phys_bits) - 1)
    }
}

/// A translation that permits the access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Guest-physical address of the 4 KiB page.
    pub page: u64,
    /// Bytes that one entry maps.
    pub size: u64,
    /// Stores of this view need nothing more: allowed, and the dirty bit is set.
    pub write: bool,
    /// A new CR3 leaves it alone.
    pub global: bool,
}

/// An entry on the way, and where it is.
#[derive(Clone, Copy, Default)]
struct Step {
    address: u64,
    entry: u64,
}

/// What the entries on the way allow together, and where the last leads.
struct Walk {
    steps: [Step; 4],
    used: usize,
    /// Physical address of the page of `size` bytes.
    base: u64,
    size: u64,
    /// AND of all entries for W and U, OR for NX.
    write: bool,
    user: bool,
    no_execute: bool,
}

/// Why there is none.
enum Miss {
    NotPresent,
    Reserved,
}

impl Cpu {
    /// Translates a linear address, checks the rights of this view, and sets accessed and dirty
    /// bits.
    ///
    /// # Errors
    /// #PF.
    pub(crate) fn walk(
        &mut self,
        linear: u64,
        access: Access,
        view: usize,
    ) -> Result<Found, Exception> {
        if self.cr0 & cr0::PG == 0 {
            return Ok(Found {
                page: linear & 0xffff_f000,
                size: 4096,
                write: true,
                global: false,
            });
        }
        loop {
            let fault = |bits| {
                Err(Exception::page_fault(
                    linear,
                    self.fault_code(access, view) | bits,
                ))
            };
            let walked = if self.cr4 & cr4::PAE == 0 {
                self.walk_legacy(linear)
            } else {
                self.walk_pae(linear)
            };
            let mut walk = match walked {
                Ok(walk) => walk,
                Err(Miss::NotPresent) => return fault(0),
                Err(Miss::Reserved) => return fault(code::P | code::RSVD),
            };
            let may_write = self.may_write(&walk, view);
            if !self.permits(&walk, access, view, may_write) {
                return fault(code::P);
            }
            if self.set_accessed(&mut walk, access == Access::Write) {
                let last = walk.steps[walk.used - 1].entry;
                let offset = linear & (walk.size - 1) & !0xfff;
                return Ok(Found {
                    page: walk.base | offset,
                    size: walk.size,
                    write: may_write && last & D != 0,
                    global: last & G != 0 && self.cr4 & cr4::PGE != 0,
                });
            }
            // Somebody changed an entry under us: look again.
        }
    }

    fn fault_code(&self, access: Access, view: usize) -> u32 {
        let fetch = match access {
            Access::Execute => {
                let nx = self.efer & efer::NXE != 0 && self.cr4 & cr4::PAE != 0;
                nx || self.cr4 & cr4::SMEP != 0
            }
            Access::Read | Access::Write => false,
        };
        let bit = |on: bool, bit| if on { bit } else { 0 };
        bit(access == Access::Write, code::W)
            | bit(view == VIEW_USER, code::U)
            | bit(fetch, code::I)
    }

    /// SDM vol. 3A 4.6.1: "Determination of access rights".
    fn permits(&self, walk: &Walk, access: Access, view: usize, may_write: bool) -> bool {
        let data = walk.user || view != VIEW_USER;
        let data = data && !(walk.user && view == VIEW_SUPERVISOR_SMAP);
        match access {
            Access::Read => data,
            Access::Write => data && may_write,
            Access::Execute => {
                !walk.no_execute
                    && match (view == VIEW_USER, walk.user) {
                        (true, user) => user,
                        (false, user) => !(user && self.cr4 & cr4::SMEP != 0),
                    }
            }
        }
    }

    fn may_write(&self, walk: &Walk, view: usize) -> bool {
        walk.write || (view != VIEW_USER && self.cr0 & cr0::WP == 0)
    }

    /// 32-bit paging (SDM vol. 3A 4.3).
    fn walk_legacy(&self, linear: u64) -> Result<Walk, Miss> {
        let mut walk = Walk::new();
        let at = self.cr3 & 0xffff_f000 | (linear >> 22 & 0x3ff) << 2;
        let pde = walk.step(at, self.entry_32(at))?;
        if pde & PS != 0 && self.cr4 & cr4::PSE != 0 {
            let high = pde >> 13 & 0xff;
            let reserved = if self.paging.pse36 {
                pde & 1 << 21 != 0 || high << 32 >> self.paging.phys_bits != 0
            } else {
                pde & 0x003f_e000 != 0
            };
            if reserved {
                return Err(Miss::Reserved);
            }
            return Ok(walk.end(pde & 0xffc0_0000 | high << 32, 4 << 20));
        }
        let at = pde & 0xffff_f000 | (linear >> 12 & 0x3ff) << 2;
        let pte = walk.step(at, self.entry_32(at))?;
        Ok(walk.end(pte & 0xffff_f000, 4096))
    }

    /// PAE and 4-level paging (SDM vol. 3A 4.4, 4.5).
    fn walk_pae(&self, linear: u64) -> Result<Walk, Miss> {
        let mut walk = Walk::new();
        let long = self.efer & efer::LMA != 0;
        let mut reserved = self.paging.reserved;
        if self.efer & efer::NXE == 0 {
            reserved |= NX;
        }
        let mut table = if long {
            let pml4e = self.step_64(&mut walk, self.cr3, linear >> 39, reserved | PS)?;
            let huge = if self.paging.huge { 0 } else { PS };
            let pdpte = self.step_64(&mut walk, pml4e, linear >> 30, reserved | huge)?;
            if pdpte & PS != 0 {
                return walk.large(pdpte, 1 << 30);
            }
            pdpte
        } else {
            // Bits 62 to 52 are not the system's own as in 4-level paging.
            reserved |= 0x7ff << 52;
            let pdpte = self.pdptrs[(linear >> 30 & 3) as usize];
            if pdpte & P == 0 {
                return Err(Miss::NotPresent);
            }
            pdpte
        };
        table = self.step_64(&mut walk, table, linear >> 21, reserved)?;
        if table & PS != 0 {
            return walk.large(table, 2 << 20);
        }
        let pte = self.step_64(&mut walk, table, linear >> 12, reserved)?;
        Ok(walk.end(pte & ADDRESS, 4096))
    }

    fn step_64(&self, walk: &mut Walk, table: u64, index: u64, reserved: u64) -> Result<u64, Miss> {
        let at = table & ADDRESS | (index & 0x1ff) << 3;
        let entry = walk.step(at, self.entry_64(at))?;
        if entry & reserved != 0 {
            return Err(Miss::Reserved);
        }
        walk.no_execute |= entry & NX != 0;
        Ok(entry)
    }

    fn entry_32(&self, at: u64) -> u64 {
        self.ram.host(at, 4).map_or(u64::from(u32::MAX), |host| {
            // SAFETY: the map says that these bytes are guest memory, and keeps it mapped.
            u64::from(unsafe { u32::load(host) })
        })
    }

    fn entry_64(&self, at: u64) -> u64 {
        self.ram.host(at, 8).map_or(u64::MAX, |host| {
            // SAFETY: as above.
            unsafe { u64::load(host) }
        })
    }

    /// Reads the page-directory pointers of PAE paging from where CR3 points (SDM vol. 3A 4.4.1).
    /// False, and nothing changed, if one of them has a reserved bit set: #GP(0) for whoever
    /// loads CR3.
    pub(crate) fn load_pdptrs(&mut self) -> bool {
        let at = self.cr3 & 0xffff_ffe0;
        let pdptrs = [0, 8, 16, 24].map(|offset| self.entry_64(at + offset));
        let reserved = self.paging.reserved | 0xfff << 52 | 0x1e6;
        let good = pdptrs.iter().all(|e| e & P == 0 || e & reserved == 0);
        if good {
            self.pdptrs = pdptrs;
        }
        good
    }

    /// Sets accessed bits, and the dirty bit of the last entry. False if an entry is no longer
    /// what the walk saw.
    fn set_accessed(&self, walk: &mut Walk, write: bool) -> bool {
        let wide = self.cr4 & cr4::PAE != 0;
        let last = walk.used - 1;
        for (n, step) in walk.steps[..walk.used].iter_mut().enumerate() {
            let wanted = step.entry | A | if write && n == last { D } else { 0 };
            if wanted == step.entry {
                continue;
            }
            let len = if wide { 8 } else { 4 };
            let Some(host) = self.ram.host(step.address, len) else {
                continue;
            };
            let same = if wide {
                // SAFETY: the map says that these bytes are guest memory, and keeps it mapped.
                unsafe { u64::compare_exchange(host, step.entry, wanted) == step.entry }
            } else {
                let (old, new) = (step.entry as u32, wanted as u32);
                // SAFETY: as above.
                unsafe { u32::compare_exchange(host, old, new) == old }
            };
            if !same {
                return false;
            }
            step.entry = wanted;
            self.code.written(step.address, len as u64);
        }
        true
    }
}

impl Walk {
    fn new() -> Self {
        Walk {
            steps: [Step::default(); 4],
            used: 0,
            base: 0,
            size: 0,
            write: true,
            user: true,
            no_execute: false,
        }
    }

    fn step(&mut self, address: u64, entry: u64) -> Result<u64, Miss> {
        if entry & P == 0 {
            return Err(Miss::NotPresent);
        }
        self.steps[self.used] = Step { address, entry };
        self.used += 1;
        self.write &= entry & W != 0;
        self.user &= entry & U != 0;
        Ok(entry)
    }

    fn end(mut self, base: u64, size: u64) -> Walk {
        self.base = base;
        self.size = size;
        self
    }

    /// A page of 2 MiB or 1 GiB. Bit 12 is the PAT's; those up to the size are reserved.
    fn large(self, entry: u64, size: u64) -> Result<Walk, Miss> {
        if entry & (size - 1) & ADDRESS & !(1 << 12) != 0 {
            return Err(Miss::Reserved);
        }
        Ok(self.end(entry & ADDRESS & !(size - 1), size))
    }
}
