//! Control and debug registers, and EFER (SDM vol. 3A 2.5, 4.1, 4.10.4, 10.8.5; vol. 3B 18.2).

use x86::Feature;
use x86::cr::{cr0, cr4, efer, rflags};

use crate::event::debug;
use crate::mmu::As;
use crate::platform::Platform;
use crate::state::{Cpu, Mode, Seg, seg};
use crate::stop::{Exception, Stop};

/// Bits of CR0 that exist.
const CR0_BITS: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// Changes of CR4 that forget translations.
const CR4_FLUSHES: u64 =
    cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::LA57;

/// Changes of CR4 that load the PAE page-directory pointers anew.
const CR4_LOADS: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP;

/// CR3: keep the translations of the new address space.
const CR3_NO_FLUSH: u64 = 1 << 63;

/// Bits of CR4, and the features that make them writable.
const CR4_FEATURES: &[(u64, Feature)] = &[
    (cr4::VME | cr4::PVI, Feature::of("vme")),
    (cr4::TSD, Feature::of("tsc")),
    (cr4::DE, Feature::of("de")),
    (cr4::PSE, Feature::of("pse")),
    (cr4::PAE, Feature::of("pae")),
    (cr4::MCE, Feature::of("mce")),
    (cr4::PGE, Feature::of("pge")),
    (cr4::OSFXSR, Feature::of("fxsr")),
    (cr4::OSXMMEXCPT, Feature::of("sse")),
    (cr4::UMIP, Feature::of("umip")),
    (cr4::FSGSBASE, Feature::of("fsgsbase")),
    (cr4::PCIDE, Feature::of("pcid")),
    (cr4::OSXSAVE, Feature::of("xsave")),
    (cr4::SMEP, Feature::of("smep")),
    (cr4::SMAP, Feature::of("smap")),
];

/// Bits of EFER, and the features that make them writable.
const EFER_FEATURES: &[(u64, Feature)] = &[
    (efer::SCE, Feature::of("syscall")),
    (efer::LME | efer::LMA, Feature::of("lm")),
    (efer::NXE, Feature::of("nx")),
    (efer::FFXSR, Feature::of("fxsr-opt")),
    (efer::TCE, Feature::of("tce")),
    (efer::AUTOIBRS, Feature::of("auto-ibrs")),
];

/// #GP(0).
const GP: Stop = Stop::Exception(Exception::gp(0));

impl Cpu {
    fn writable(&self, table: &[(u64, Feature)]) -> u64 {
        table
            .iter()
            .filter(|(_, feature)| self.features.contains(*feature))
            .fold(0, |bits, (bit, _)| bits | bit)
    }

    /// MOV from a control register.
    pub(super) fn read_cr(&mut self, p: &mut dyn Platform, n: usize) -> Result<u64, Stop> {
        match n {
            0 => Ok(self.cr0),
            2 => Ok(self.cr2),
            3 => Ok(self.cr3),
            4 => Ok(self.cr4),
            8 => Ok(p.task_priority().into()),
            _ => Err(Exception::ud().into()),
        }
    }

    /// MOV to a control register.
    pub(super) fn write_cr(
        &mut self,
        p: &mut dyn Platform,
        n: usize,
        value: u64,
    ) -> Result<(), Stop> {
        match n {
            0 => self.write_cr0(value)?,
            2 => self.cr2 = value,
            3 => self.write_cr3(value)?,
            4 => self.write_cr4(value)?,
            8 => {
                if value > 15 {
                    return Err(GP);
                }
                p.set_task_priority(value as u8);
                return Ok(());
            }
            _ => return Err(Exception::ud().into()),
        }
        p.serialize();
        Ok(())
    }

    /// MOV to CR0.
    ///
    /// # Errors
    /// #GP(0) for what SDM vol. 2B "MOV—Move to/from Control Registers" forbids.
    pub(super) fn write_cr0(&mut self, value: u64) -> Result<(), Stop> {
        if value >> 32 != 0 {
            return Err(GP);
        }
        let new = value & CR0_BITS | cr0::ET;
        let has = |bit: u64| new & bit != 0;
        if (has(cr0::PG) && !has(cr0::PE)) || (has(cr0::NW) && !has(cr0::CD)) {
            return Err(GP);
        }
        let old = self.cr0;
        let changed = old ^ new;
        let mut efer = self.efer;
        if changed & cr0::PG != 0 {
            if has(cr0::PG) {
                if efer & efer::LME != 0 {
                    let long_code = self.segs[seg::CS].attributes & Seg::L != 0;
                    if self.cr4 & cr4::PAE == 0 || long_code {
                        return Err(GP);
                    }
                    efer |= efer::LMA;
                }
            } else {
                if self.code64() || self.cr4 & cr4::PCIDE != 0 {
                    return Err(GP);
                }
                efer &= !efer::LMA;
            }
        }
        let loads = changed & (cr0::PG | cr0::CD | cr0::NW) != 0;
        let pae = has(cr0::PG) && self.cr4 & cr4::PAE != 0 && efer & efer::LMA == 0;
        if loads && pae && !self.load_pdptrs() {
            return Err(GP);
        }
        self.cr0 = new;
        self.efer = efer;
        if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), Stop> {
        let mut value = value;
        let pcids = self.cr4 & cr4::PCIDE != 0;
        if self.mode.has(Mode::LONG) {
            if pcids {
                value &= !CR3_NO_FLUSH;
            }
            if value & self.paging.beyond() != 0 {
                return Err(GP);
            }
        } else if self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 {
            let old = std::mem::replace(&mut self.cr3, value);
            if !self.load_pdptrs() {
                self.cr3 = old;
                return Err(GP);
            }
        }
        self.cr3 = value;
        self.flush_local();
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Stop> {
        let writable = self.writable(CR4_FEATURES) | cr4::PCE;
        if value & !writable != 0 {
            return Err(GP);
        }
        let old = self.cr4;
        let changed = old ^ value;
        let long = self.efer & efer::LMA != 0;
        if long && value & cr4::PAE == 0 {
            return Err(GP);
        }
        if changed & value & cr4::PCIDE != 0 && (!long || self.cr3 & 0xfff != 0) {
            return Err(GP);
        }
        let pae = self.cr0 & cr0::PG != 0 && value & cr4::PAE != 0 && !long;
        if pae && changed & CR4_LOADS != 0 && !self.load_pdptrs() {
            return Err(GP);
        }
        self.cr4 = value;
        if changed & CR4_FLUSHES != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        Ok(())
    }

    /// WRMSR of EFER.
    pub(super) fn write_efer(&mut self, value: u64) -> Result<(), Exception> {
        if value & !self.writable(EFER_FEATURES) != 0 {
            return Err(Exception::gp(0));
        }
        let changed = self.efer ^ value;
        if changed & efer::LME != 0 && self.cr0 & cr0::PG != 0 {
            return Err(Exception::gp(0));
        }
        // LMA is the processor's.
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        if changed & efer::NXE != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        Ok(())
    }

    /// Number of a debug register with DR4 and DR5 resolved; checks who may access it.
    fn debug_number(&mut self, n: usize) -> Result<usize, Stop> {
        if self.cpl() != 0 {
            return Err(GP);
        }
        let n = match n {
            4 | 5 if self.cr4 & cr4::DE != 0 => return Err(Exception::ud().into()),
            4 | 5 => n + 2,
            0..=3 | 6 | 7 => n,
            _ => return Err(Exception::ud().into()),
        };
        if self.dr7 & debug::DR7_GD != 0 {
            return Err(Stop::Exception(Exception {
                payload: debug::DR6_BD,
                ..Exception::plain(Exception::DB)
            }));
        }
        Ok(n)
    }

    /// MOV from a debug register.
    pub(super) fn read_dr(&mut self, n: usize) -> Result<u64, Stop> {
        Ok(match self.debug_number(n)? {
            6 => self.dr6,
            7 => self.dr7,
            n => self.dr.get(n).copied().unwrap_or(0),
        })
    }

    /// MOV to a debug register.
    pub(super) fn write_dr(&mut self, n: usize, value: u64) -> Result<(), Stop> {
        let n = self.debug_number(n)?;
        match n {
            6 | 7 if value >> 32 != 0 => return Err(GP),
            6 => self.dr6 = value & 0xe00f | debug::DR6_ONES,
            7 => {
                self.dr7 = value & 0xffff_23ff | debug::DR7_ONE;
                self.debug_changed();
            }
            n => {
                if let Some(register) = self.dr.get_mut(n) {
                    *register = value;
                }
                if self.dr7 & 0xff != 0 {
                    self.debug_changed();
                }
            }
        }
        Ok(())
    }
}

impl Cpu {
    /// Whether code at this privilege level may access these ports: IOPL or the bitmap of the
    /// task state segment (SDM vol. 1 19.5).
    ///
    /// # Errors
    /// #GP(0) if not; faults of reading the bitmap.
    pub(super) fn check_port(
        &mut self,
        p: &mut dyn Platform,
        port: u16,
        size: u8,
    ) -> Result<(), Stop> {
        let iopl = (self.rflags & rflags::IOPL) >> 12;
        let free = !self.mode.has(Mode::PROTECTED)
            || (!self.mode.has(Mode::VM86) && u64::from(self.cpl()) <= iopl);
        if free {
            return Ok(());
        }
        // 16-bit task state segments have no bitmap.
        if self.tr.kind() & 8 == 0 || self.tr.limit < 103 {
            return Err(GP);
        }
        let at = self.system_address(self.tr.base.wrapping_add(0x66));
        let base = u32::from(self.read::<u16>(p, at, As::System)?);
        let byte = base + u32::from(port / 8);
        if byte + 1 > self.tr.limit {
            return Err(GP);
        }
        let at = self.system_address(self.tr.base.wrapping_add(byte.into()));
        let bits = self.read::<u16>(p, at, As::System)?;
        let mask = (1u16 << size.min(4)) - 1;
        if bits >> (port % 8) & mask != 0 {
            return Err(GP);
        }
        Ok(())
    }
}
