//! The virtual-8086 mode extensions and protected-mode virtual interrupts (CR4.VME and CR4.PVI;
//! SDM vol. 3B 20.3 and 20.4): programs without the right to change IF have VIF instead, and
//! programs' own handlers take their INT n.

use x86::cr::{cr4, rflags};

use crate::event::iret::{ANYBODY, iopl};
use crate::mmu::As;
use crate::platform::Platform;
use crate::segment::stack::Stack;
use crate::state::{Cpu, Mode, seg};
use crate::stop::{Exception, Stop};

const GP: Stop = Stop::Exception(Exception::gp(0));

impl Cpu {
    /// Virtual-8086 mode with its extensions, where IF is out of reach.
    pub(crate) fn has_virtual_8086_flag(&self) -> bool {
        self.mode.has(Mode::VM86) && self.cr4 & cr4::VME != 0 && iopl(self.rflags) < 3
    }

    /// Whether CLI and STI are for VIF.
    fn has_virtual_flag(&self) -> bool {
        let protected = self.mode.has(Mode::PROTECTED) && !self.mode.has(Mode::VM86);
        let pvi = protected && self.cr4 & cr4::PVI != 0;
        self.has_virtual_8086_flag() || pvi && self.cpl() == 3 && iopl(self.rflags) < 3
    }

    /// CLI or STI, if it is for VIF: tells whether it was.
    ///
    /// # Errors
    /// #GP(0): STI while an interrupt waits for it.
    pub(crate) fn set_virtual_flag(&mut self, on: bool) -> Result<bool, Exception> {
        if !self.has_virtual_flag() {
            return Ok(false);
        }
        if on && self.rflags & rflags::VIP != 0 {
            return Err(Exception::gp(0));
        }
        self.put_virtual_flag(on);
        Ok(true)
    }

    fn put_virtual_flag(&mut self, on: bool) {
        if on {
            self.rflags |= rflags::VIF;
        } else {
            self.rflags &= !rflags::VIF;
        }
    }

    /// The 16 bits of flags that a virtual-8086 program sees and pushes: VIF for IF, and IOPL 3.
    pub(crate) fn virtual_8086_flags(&self) -> u64 {
        let mut flags = self.rflags & 0xffff;
        if self.has_virtual_8086_flag() {
            flags |= rflags::IOPL;
            flags &= !rflags::IF;
            if self.rflags & rflags::VIF != 0 {
                flags |= rflags::IF;
            }
        }
        flags
    }

    /// Takes flags that a virtual-8086 program pops with 16 bits, by POPF or IRET.
    ///
    /// # Errors
    /// #GP(0): TF, or IF while an interrupt waits for it.
    pub(crate) fn check_virtual_8086_flags(&self, image: u64) -> Result<(), Exception> {
        let waits = self.rflags & rflags::VIP != 0 && image & rflags::IF != 0;
        if waits || image & rflags::TF != 0 {
            return Err(Exception::gp(0));
        }
        Ok(())
    }

    /// Makes such flags the processor's.
    pub(crate) fn load_virtual_8086_flags(&mut self, image: u64) {
        let mask = ANYBODY & 0xffff;
        self.rflags = self.rflags & !mask | image & mask | rflags::RESERVED_ONE;
        self.put_virtual_flag(image & rflags::IF != 0);
        self.update_mode();
    }

    /// INT n of virtual-8086 code, if its own handler is to have it: tells whether it was. If
    /// not, and IOPL is 3, it goes through the IDT.
    ///
    /// # Errors
    /// #GP(0) if the monitor is to have it; faults of the tables and the stack.
    pub(crate) fn virtual_8086_interrupt(
        &mut self,
        p: &mut dyn Platform,
        vector: u8,
        next: u64,
    ) -> Result<bool, Stop> {
        if self.cr4 & cr4::VME == 0 || self.is_for_idt(p, vector)? {
            return if iopl(self.rflags) < 3 {
                Err(GP)
            } else {
                Ok(false)
            };
        }
        let entry = self.read::<u32>(p, u64::from(vector) * 4, As::Current)?;
        let code = self.real_code((entry >> 16) as u16);
        let rip = u64::from(entry & 0xffff);
        let mut stack = Stack::current(self);
        let back = [
            self.virtual_8086_flags(),
            u64::from(self.segs[seg::CS].selector),
            next,
        ];
        stack.push(self, p, &back, 2)?;
        stack.commit(self);
        let masked = if self.has_virtual_8086_flag() {
            rflags::VIF
        } else {
            rflags::IF
        };
        self.rflags &= !(masked | rflags::TF | rflags::RF);
        self.set_code_real(code);
        self.rip = rip;
        Ok(true)
    }

    /// The bit of a vector in the redirection map, 32 bytes below the I/O permission bitmap of
    /// the task state segment.
    fn is_for_idt(&mut self, p: &mut dyn Platform, vector: u8) -> Result<bool, Stop> {
        if self.tr.kind() & 8 == 0 || self.tr.limit < 103 {
            return Err(GP);
        }
        let at = self.system_address(self.tr.base.wrapping_add(0x66));
        let permissions = u32::from(self.read::<u16>(p, at, As::System)?);
        let byte = (permissions + u32::from(vector / 8)).checked_sub(32);
        let byte = byte.filter(|byte| *byte <= self.tr.limit).ok_or(GP)?;
        let at = self.system_address(self.tr.base.wrapping_add(byte.into()));
        let bits = self.read::<u8>(p, at, As::System)?;
        Ok(bits >> (vector % 8) & 1 != 0)
    }
}
