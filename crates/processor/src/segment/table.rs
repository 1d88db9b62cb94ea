//! The registers of the descriptor tables and of the task: LGDT, LIDT, LLDT, LTR, and what stores
//! them.

use x86::cr::efer;

use crate::mmu::As;
use crate::platform::Platform;
use crate::segment::{canonical, index, is_null, system_type};
use crate::state::{Cpu, Seg};
use crate::stop::{Exception, Stop};

impl Cpu {
    /// LLDT.
    ///
    /// # Errors
    /// #GP, #NP, #PF (SDM vol. 2A "LLDT").
    pub(crate) fn load_ldt(&mut self, p: &mut dyn Platform, selector: u16) -> Result<(), Stop> {
        if is_null(selector) {
            self.ldtr = Seg::null(selector, 0);
            return Ok(());
        }
        let loaded = self.system_segment(p, selector, |kind| kind == system_type::LDT)?;
        self.ldtr = loaded.0;
        Ok(())
    }

    /// LTR: the task state segment becomes busy.
    ///
    /// # Errors
    /// #GP, #NP, #PF (SDM vol. 2A "LTR").
    pub(crate) fn load_task(&mut self, p: &mut dyn Platform, selector: u16) -> Result<(), Stop> {
        if is_null(selector) {
            return Err(Exception::gp(0).into());
        }
        let long = self.efer & efer::LMA != 0;
        let (mut task, address) = self.system_segment(p, selector, |kind| {
            kind == system_type::TSS || (kind == system_type::TSS16 && !long)
        })?;
        task.attributes |= 2;
        self.write::<u8>(
            p,
            address.wrapping_add(5),
            task.attributes as u8,
            As::System,
        )?;
        self.tr = task;
        Ok(())
    }

    /// A system segment of an acceptable type, and the address of its descriptor.
    fn system_segment(
        &mut self,
        p: &mut dyn Platform,
        selector: u16,
        accept: impl Fn(u8) -> bool,
    ) -> Result<(Seg, u64), Stop> {
        let gp = Exception::gp(index(selector));
        if selector & 4 != 0 {
            return Err(gp.into());
        }
        let found = self.descriptor(p, selector)?.ok_or(gp)?;
        let d = found.descriptor;
        if d.s() || !accept(d.kind()) {
            return Err(gp.into());
        }
        if !d.present() {
            return Err(Exception::with_code(Exception::NP, index(selector)).into());
        }
        let mut loaded = d.seg(selector);
        if self.efer & efer::LMA != 0 {
            let high = self.descriptor_high(p, found, selector)?.ok_or(gp)?;
            loaded.base |= high << 32;
            // The upper half must not look like a descriptor, and the base be canonical.
            if high >> 40 & 0x1f != 0 || !canonical(loaded.base) {
                return Err(gp.into());
            }
        }
        Ok((loaded, found.address))
    }

    /// Reads the operand of LGDT or LIDT at this linear address.
    ///
    /// # Errors
    /// #GP(0) for a base that is not canonical; faults of the access.
    pub(crate) fn table_operand(
        &mut self,
        p: &mut dyn Platform,
        linear: u64,
        base_mask: u64,
    ) -> Result<x86::DescriptorTable, Stop> {
        let mut bytes = [0u8; 10];
        let len = if base_mask == !0 { 10 } else { 6 };
        self.read_bytes(p, linear, &mut bytes[..len], As::Current)?;
        let [l0, l1, base @ ..] = bytes;
        let base = u64::from_le_bytes(base) & base_mask;
        if !canonical(base) {
            return Err(Exception::gp(0).into());
        }
        Ok(x86::DescriptorTable {
            base,
            limit: u16::from_le_bytes([l0, l1]),
        })
    }

    /// Stores a table register as SGDT and SIDT do.
    ///
    /// # Errors
    /// Faults of the access.
    pub(crate) fn store_table(
        &mut self,
        p: &mut dyn Platform,
        linear: u64,
        table: x86::DescriptorTable,
        long: bool,
    ) -> Result<(), Stop> {
        let mut bytes = [0u8; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        let len = if long { 10 } else { 6 };
        self.write_bytes(p, linear, &bytes[..len], As::Current)
    }
}
