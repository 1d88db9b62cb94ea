//! IRET in every mode (SDM vol. 2A "IRET"; APM vol. 3).

use x86::cr::rflags;

use crate::mmu::As;
use crate::platform::Platform;
use crate::segment::rpl;
use crate::segment::stack::Stack;
use crate::state::{Cpu, Mode, Seg, reg, seg};
use crate::stop::{Exception, Stop};

/// Flags that IRET and POPF load at any privilege level.
pub(crate) const ANYBODY: u64 = rflags::CF
    | rflags::PF
    | rflags::AF
    | rflags::ZF
    | rflags::SF
    | rflags::TF
    | rflags::DF
    | rflags::OF
    | rflags::NT
    | rflags::AC
    | rflags::ID;

/// IOPL as a number.
pub(crate) fn iopl(flags: u64) -> u8 {
    (flags >> 12 & 3) as u8
}

impl Cpu {
    /// IRET with operands of this size.
    ///
    /// # Errors
    /// #GP, #NP, #SS, #PF.
    pub(crate) fn iret(&mut self, p: &mut dyn Platform, size: usize) -> Result<(), Stop> {
        if self.mode.has(Mode::LONG) {
            self.iret_long(p, size)?;
        } else if self.real_segments() {
            self.iret_real(p, size)?;
        } else {
            self.iret_protected(p, size)?;
        }
        self.nmi_masked = false;
        p.serialize();
        Ok(())
    }

    /// Replaces those flags of the mask that an operand of this size has.
    fn load_flags(&mut self, image: u64, mask: u64, size: usize) {
        let mask = if size == 2 { mask & 0xffff } else { mask };
        self.rflags = self.rflags & !mask | image & mask | rflags::RESERVED_ONE;
    }

    /// Which flags IRET loads in protected mode.
    fn iret_mask(&self) -> u64 {
        let cpl = self.cpl();
        let mut mask = ANYBODY | rflags::RF;
        if cpl <= iopl(self.rflags) {
            mask |= rflags::IF;
        }
        if cpl == 0 {
            mask |= rflags::IOPL | rflags::VIF | rflags::VIP;
        }
        mask
    }

    fn iret_real(&mut self, p: &mut dyn Platform, size: usize) -> Result<(), Stop> {
        let vm86 = self.mode.has(Mode::VM86);
        let extended = self.has_virtual_8086_flag() && size == 2;
        if vm86 && iopl(self.rflags) < 3 && !extended {
            return Err(Exception::gp(0).into());
        }
        let mut stack = Stack::current(self);
        let [rip, selector, flags] = stack.pop::<3>(self, p, size)?;
        let code = self.real_code(selector as u16);
        self.check_rip(&code, rip, 0)?;
        if extended {
            self.check_virtual_8086_flags(flags)?;
        }
        stack.commit(self);
        let mut mask = ANYBODY | rflags::RF | rflags::IF;
        if !vm86 {
            mask |= rflags::IOPL;
        }
        if extended {
            self.load_virtual_8086_flags(flags);
        } else {
            self.load_flags(flags, mask, size);
        }
        self.set_code_real(code);
        self.rip = rip;
        Ok(())
    }

    fn iret_protected(&mut self, p: &mut dyn Platform, size: usize) -> Result<(), Stop> {
        if self.rflags & rflags::NT != 0 {
            self.refuse_task("IRET of a nested task");
            return Err(Exception::with_code(Exception::TS, 0).into());
        }
        let mut stack = Stack::current(self);
        let [rip, selector, flags] = stack.pop::<3>(self, p, size)?;
        if size == 4 && flags & rflags::VM != 0 && self.cpl() == 0 {
            return self.iret_vm86(p, stack, [rip, selector, flags]);
        }
        let selector = selector as u16;
        let code = self.return_code(p, selector)?;
        let mask = self.iret_mask();
        if rpl(selector) == self.cpl() {
            self.check_rip(&code, rip, 0)?;
            stack.commit(self);
            self.load_flags(flags, mask, size);
            self.set_code(code, rpl(selector));
            self.rip = rip;
            return Ok(());
        }
        let [sp, ss] = stack.pop::<2>(self, p, size)?;
        self.return_outer(p, code, rip, ss as u16, sp, 0)?;
        self.load_flags(flags, mask, size);
        self.update_mode();
        Ok(())
    }

    /// Into virtual-8086 mode.
    fn iret_vm86(
        &mut self,
        p: &mut dyn Platform,
        mut stack: Stack,
        [rip, cs, flags]: [u64; 3],
    ) -> Result<(), Stop> {
        let [sp, ss, es, ds, fs, gs] = stack.pop::<6>(self, p, 4)?;
        let mask = ANYBODY
            | rflags::RF
            | rflags::IF
            | rflags::IOPL
            | rflags::VM
            | rflags::VIF
            | rflags::VIP;
        self.load_flags(flags, mask, 4);
        for (which, selector) in [
            (seg::CS, cs),
            (seg::SS, ss),
            (seg::ES, es),
            (seg::DS, ds),
            (seg::FS, fs),
            (seg::GS, gs),
        ] {
            self.segs[which] = Seg::vm86(selector as u16);
        }
        self.gpr[reg::RSP] = sp;
        self.rip = rip & 0xffff;
        self.update_mode();
        Ok(())
    }

    fn iret_long(&mut self, p: &mut dyn Platform, size: usize) -> Result<(), Stop> {
        if self.rflags & rflags::NT != 0 {
            return Err(Exception::gp(0).into());
        }
        let from64 = self.code64();
        let mut stack = if from64 {
            Stack::long(self.gpr[reg::RSP], As::Current, 0)
        } else {
            Stack::current(self)
        };
        let mask = self.iret_mask();
        let cpl = self.cpl();
        if from64 {
            // Code of 64 bits always pops SS and RSP.
            let [rip, selector, flags, sp, ss] = stack.pop::<5>(self, p, size)?;
            let selector = selector as u16;
            let code = self.return_code(p, selector)?;
            if rpl(selector) != cpl {
                self.return_outer(p, code, rip, ss as u16, sp, 0)?;
            } else {
                let ss = self.return_stack(p, &code, ss as u16)?;
                self.check_rip(&code, rip, 0)?;
                self.segs[seg::SS] = ss;
                self.set_code(code, cpl);
                let mask = self.stack_mask();
                crate::segment::stack::set_pointer(self, sp, mask);
                self.rip = rip;
            }
            self.load_flags(flags, mask, size);
        } else {
            let [rip, selector, flags] = stack.pop::<3>(self, p, size)?;
            let selector = selector as u16;
            let code = self.return_code(p, selector)?;
            if rpl(selector) != cpl {
                let [sp, ss] = stack.pop::<2>(self, p, size)?;
                self.return_outer(p, code, rip, ss as u16, sp, 0)?;
            } else {
                self.check_rip(&code, rip, 0)?;
                stack.commit(self);
                self.set_code(code, cpl);
                self.rip = rip;
            }
            self.load_flags(flags, mask, size);
        }
        self.update_mode();
        Ok(())
    }
}
