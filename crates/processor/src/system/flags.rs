//! The instructions for IF and AC.

use x86::Feature;
use x86::cr::{cr4, rflags};

use crate::state::{Cpu, Mode, shadow};
use crate::stop::Exception;
use crate::system::offered;

/// IOPL as a number.
pub(super) fn iopl(cpu: &Cpu) -> u8 {
    (cpu.rflags >> 12 & 3) as u8
}

pub(super) fn cli(cpu: &mut Cpu) -> Result<(), Exception> {
    if cpu.mode.has(Mode::PROTECTED) && cpu.cpl() > iopl(cpu) {
        return unless_virtual(cpu, false);
    }
    cpu.rflags &= !rflags::IF;
    Ok(())
}

pub(super) fn sti(cpu: &mut Cpu) -> Result<(), Exception> {
    if cpu.mode.has(Mode::PROTECTED) && cpu.cpl() > iopl(cpu) {
        return unless_virtual(cpu, true);
    }
    if cpu.rflags & rflags::IF == 0 {
        cpu.rflags |= rflags::IF;
        cpu.interrupt_shadow |= shadow::STI << 4;
    }
    Ok(())
}

/// Without the right to change IF there may be VIF.
fn unless_virtual(cpu: &mut Cpu, on: bool) -> Result<(), Exception> {
    if cpu.set_virtual_flag(on)? {
        Ok(())
    } else {
        Err(Exception::gp(0))
    }
}

/// CLAC and STAC.
pub(super) fn access(cpu: &mut Cpu, on: bool) -> Result<(), Exception> {
    offered(cpu, const { Feature::of("smap") })?;
    if cpu.cpl() != 0 {
        return Err(Exception::ud());
    }
    // In ring 0 nothing of the mode but SMAP depends on AC, and every copy from or to a program
    // comes by here.
    if on {
        cpu.rflags |= rflags::AC;
        cpu.mode.0 &= !Mode::SMAP;
    } else {
        cpu.rflags &= !rflags::AC;
        if cpu.cr4 & cr4::SMAP != 0 {
            cpu.mode.0 |= Mode::SMAP;
        }
    }
    Ok(())
}
