//! Segment descriptors, and loads of segment registers (SDM vol. 3A 3.4, 5.2 to 5.8).
//!
//! - [`far`]: far jumps, calls and returns, call gates.
//! - [`query`]: LAR, LSL, VERR, VERW, ARPL.
//! - [`table`]: the registers of the descriptor tables: LGDT, LLDT, LTR and their kin.

use std::sync::atomic::{AtomicU32, Ordering};

use x86::Feature;
use x86::cr::efer;

use crate::mmu::As;
use crate::platform::Platform;
use crate::state::{Cpu, Mode, Seg, seg, shadow};
use crate::stop::{Exception, Stop};

pub(crate) mod far;
pub(crate) mod query;
pub(crate) mod stack;
pub(crate) mod table;
#[cfg(test)]
mod tests;

/// Types of system descriptors (SDM vol. 3A table 3-2).
pub(crate) mod system_type {
    pub(crate) const TSS16: u8 = 1;
    pub(crate) const LDT: u8 = 2;
    pub(crate) const TSS16_BUSY: u8 = 3;
    pub(crate) const CALL16: u8 = 4;
    pub(crate) const TASK: u8 = 5;
    pub(crate) const INTERRUPT16: u8 = 6;
    pub(crate) const TRAP16: u8 = 7;
    pub(crate) const TSS: u8 = 9;
    pub(crate) const TSS_BUSY: u8 = 11;
    pub(crate) const CALL: u8 = 12;
    pub(crate) const INTERRUPT: u8 = 14;
    pub(crate) const TRAP: u8 = 15;
}

/// Attributes of flat segments, as SYSCALL and its kin load them.
pub(crate) const FLAT_CODE64: u16 = 0xa09b;
pub(crate) const FLAT_CODE32: u16 = 0xc09b;
pub(crate) const FLAT_DATA: u16 = 0xc093;
/// Attributes of all segments in virtual-8086 mode.
pub(crate) const VM86_DATA: u16 = 0x00f3;
/// Attributes of a segment in real mode after a reset.
pub(crate) const REAL_DATA: u16 = 0x0093;

/// Whether a 64-bit linear address is canonical (48 bits; 5-level paging is not offered).
pub(crate) fn canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

/// Selector without RPL: what error codes carry.
pub(crate) fn index(selector: u16) -> u32 {
    u32::from(selector & !3)
}

/// Whether a selector is null.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// RPL.
pub(crate) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// The first eight bytes of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor(pub(crate) u64);

impl Descriptor {
    pub(crate) fn attributes(self) -> u16 {
        (self.0 >> 40) as u16 & 0xf0ff
    }

    pub(crate) fn kind(self) -> u8 {
        (self.0 >> 40 & 0xf) as u8
    }

    /// Code or data, not a system descriptor.
    pub(crate) fn s(self) -> bool {
        self.0 >> 44 & 1 != 0
    }

    pub(crate) fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }

    pub(crate) fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }

    pub(crate) fn long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }

    pub(crate) fn db(self) -> bool {
        self.0 >> 54 & 1 != 0
    }

    pub(crate) fn is_code(self) -> bool {
        self.s() && self.kind() & 8 != 0
    }

    pub(crate) fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    pub(crate) fn is_writable_data(self) -> bool {
        self.s() && self.kind() & 0xa == 2
    }

    pub(crate) fn is_readable(self) -> bool {
        self.s() && self.kind() & 0xa != 8
    }

    pub(crate) fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 56 << 24
    }

    /// Last offset in bytes.
    pub(crate) fn limit(self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    /// As a segment register holds it.
    pub(crate) fn seg(self, selector: u16) -> Seg {
        Seg {
            base: self.base(),
            limit: self.limit(),
            selector,
            attributes: self.attributes(),
        }
    }

    /// Selector of a gate.
    pub(crate) fn gate_selector(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Offset of a gate, its low 32 bits.
    pub(crate) fn gate_offset(self) -> u64 {
        self.0 & 0xffff | self.0 >> 48 << 16
    }
}

/// A descriptor, and where in memory it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) address: u64,
    pub(crate) descriptor: Descriptor,
}

impl Seg {
    /// A register into which a null selector was loaded.
    pub(crate) fn null(selector: u16, dpl: u8) -> Seg {
        Seg {
            base: 0,
            limit: 0,
            selector,
            attributes: Seg::UNUSABLE | u16::from(dpl) << 5,
        }
    }

    /// A flat segment.
    pub(crate) fn flat(selector: u16, attributes: u16, dpl: u8) -> Seg {
        Seg {
            base: 0,
            limit: u32::MAX,
            selector,
            attributes: attributes & !(3 << 5) | u16::from(dpl) << 5,
        }
    }

    /// A segment of virtual-8086 mode.
    pub(crate) fn vm86(selector: u16) -> Seg {
        Seg {
            base: u64::from(selector) << 4,
            limit: 0xffff,
            selector,
            attributes: VM86_DATA,
        }
    }
}

impl Cpu {
    /// Whether the processor runs 64-bit code.
    pub(crate) fn code64(&self) -> bool {
        self.mode.has(Mode::CODE64)
    }

    /// Whether segment registers are loaded by `selector << 4`.
    pub(crate) fn real_segments(&self) -> bool {
        !self.mode.has(Mode::PROTECTED) || self.mode.has(Mode::VM86)
    }

    /// Whether the guest was told that this is an AMD processor.
    pub(crate) fn amd(&self) -> bool {
        self.cpuid.vendor().is_some_and(x86::Vendor::is_amd_like)
    }

    /// The descriptor of a selector that is not null; None beyond the end of its table.
    pub(crate) fn descriptor(
        &mut self,
        p: &mut dyn Platform,
        selector: u16,
    ) -> Result<Option<Found>, Stop> {
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u32::from(self.gdtr.limit))
        } else if self.ldtr.attributes & Seg::UNUSABLE == 0 {
            (self.ldtr.base, self.ldtr.limit)
        } else {
            return Ok(None);
        };
        let offset = u32::from(selector & !7);
        if offset + 7 > limit {
            return Ok(None);
        }
        let address = self.system_address(base.wrapping_add(offset.into()));
        let descriptor = Descriptor(self.read::<u64>(p, address, As::System)?);
        Ok(Some(Found {
            address,
            descriptor,
        }))
    }

    /// The upper half of a 16-byte system descriptor whose lower half was found for `selector`.
    pub(crate) fn descriptor_high(
        &mut self,
        p: &mut dyn Platform,
        found: Found,
        selector: u16,
    ) -> Result<Option<u64>, Stop> {
        let limit = if selector & 4 == 0 {
            u32::from(self.gdtr.limit)
        } else {
            self.ldtr.limit
        };
        if u32::from(selector & !7) + 15 > limit {
            return Ok(None);
        }
        Ok(Some(self.read::<u64>(
            p,
            found.address.wrapping_add(8),
            As::System,
        )?))
    }

    /// Linear addresses outside of long mode have 32 bits.
    pub(crate) fn system_address(&self, address: u64) -> u64 {
        if self.efer & efer::LMA != 0 {
            address
        } else {
            address & 0xffff_ffff
        }
    }

    /// Sets the accessed bit of a code or data descriptor.
    pub(crate) fn mark_accessed(
        &mut self,
        p: &mut dyn Platform,
        found: Found,
    ) -> Result<Descriptor, Stop> {
        let descriptor = found.descriptor;
        if descriptor.kind() & 1 != 0 {
            return Ok(descriptor);
        }
        let marked = Descriptor(descriptor.0 | 1 << 40);
        self.write::<u8>(
            p,
            found.address.wrapping_add(5),
            (marked.0 >> 40) as u8,
            As::System,
        )?;
        Ok(marked)
    }

    /// Loads ES, SS, DS, FS or GS as MOV, POP and LDS do.
    ///
    /// # Errors
    /// #GP, #NP, #SS, #PF as SDM vol. 2B "MOV" lists them.
    pub(crate) fn load_segment(
        &mut self,
        p: &mut dyn Platform,
        which: usize,
        selector: u16,
    ) -> Result<(), Stop> {
        let loaded = self.segment_for(p, which, selector)?;
        self.set_segment(which, loaded);
        Ok(())
    }

    /// Puts a checked value into a segment register other than CS.
    pub(crate) fn set_segment(&mut self, which: usize, value: Seg) {
        if let Some(register) = self.segs.get_mut(which) {
            *register = value;
        }
        if which == seg::SS {
            self.update_mode();
        }
    }

    /// MOV SS and POP SS hold events off for one instruction, unless the one before did.
    pub(crate) fn shadow_after_ss(&mut self) {
        if self.interrupt_shadow & shadow::MOV_SS == 0 {
            self.interrupt_shadow |= shadow::MOV_SS << 4;
        }
    }

    /// What [`Cpu::load_segment`] would load.
    pub(crate) fn segment_for(
        &mut self,
        p: &mut dyn Platform,
        which: usize,
        selector: u16,
    ) -> Result<Seg, Stop> {
        let Some(&old) = self.segs.get(which) else {
            return Err(Exception::ud().into());
        };
        if self.mode.has(Mode::VM86) {
            return Ok(Seg::vm86(selector));
        }
        if !self.mode.has(Mode::PROTECTED) {
            return Ok(real_segment(old, selector));
        }
        if which == seg::SS {
            let cpl = self.cpl();
            if is_null(selector) && self.code64() && cpl != 3 && rpl(selector) == cpl {
                return Ok(Seg::null(selector, cpl));
            }
            return self.stack_segment(p, selector, cpl, Exception::GP, 0);
        }
        if is_null(selector) {
            // AMD's keep the hidden base of FS and GS, unless they say otherwise.
            let keeps = old.base != 0
                && self.mode.has(Mode::LONG)
                && self.amd()
                && !self
                    .features
                    .contains(const { Feature::of("null-sel-clr-base") });
            let base = if keeps { old.base } else { 0 };
            return Ok(Seg {
                base,
                ..Seg::null(selector, 0)
            });
        }
        let gp = Exception::gp(index(selector));
        let found = self.descriptor(p, selector)?.ok_or(gp)?;
        let d = found.descriptor;
        let outer = d.dpl() >= self.cpl().max(rpl(selector));
        if !d.is_readable() || (!d.is_conforming() && !outer) {
            return Err(gp.into());
        }
        if !d.present() {
            return Err(Exception::with_code(Exception::NP, index(selector)).into());
        }
        Ok(self.mark_accessed(p, found)?.seg(selector))
    }

    /// A stack segment for this privilege level. What is wrong with its descriptor raises
    /// `vector` (#GP for loads, #TS for stacks from a TSS) with `ext` in its error code.
    pub(crate) fn stack_segment(
        &mut self,
        p: &mut dyn Platform,
        selector: u16,
        cpl: u8,
        vector: u8,
        ext: u32,
    ) -> Result<Seg, Stop> {
        if is_null(selector) {
            return Err(Exception::with_code(vector, ext).into());
        }
        let bad = Exception::with_code(vector, index(selector) | ext);
        let found = self.descriptor(p, selector)?.ok_or(bad)?;
        let d = found.descriptor;
        if rpl(selector) != cpl || !d.is_writable_data() || d.dpl() != cpl {
            return Err(bad.into());
        }
        if !d.present() {
            return Err(Exception::with_code(Exception::SS, index(selector) | ext).into());
        }
        Ok(self.mark_accessed(p, found)?.seg(selector))
    }

    /// Puts a checked code segment into CS, its RPL being the new privilege level. CPL itself is
    /// the DPL of SS, which the caller has loaded.
    pub(crate) fn set_code(&mut self, code: Seg, cpl: u8) {
        self.segs[seg::CS] = Seg {
            selector: code.selector & !3 | u16::from(cpl),
            ..code
        };
        self.update_mode();
    }

    /// Logs, the first few times, that a guest wants hardware task switching, which is not there.
    pub(crate) fn refuse_task(&self, what: &str) {
        static SEEN: AtomicU32 = AtomicU32::new(0);
        if SEEN.fetch_add(1, Ordering::Relaxed) < 8 {
            log::warn!("{what}: hardware task switches are not supported");
        }
    }
}

/// What a load in real mode leaves in a segment register. Limit and attributes stay: that is
/// "unreal mode".
pub(crate) fn real_segment(old: Seg, selector: u16) -> Seg {
    let usable = old.attributes & Seg::UNUSABLE == 0;
    Seg {
        base: u64::from(selector) << 4,
        limit: if usable { old.limit } else { 0xffff },
        selector,
        attributes: if usable { old.attributes } else { REAL_DATA },
    }
}
