//! The instructions for IF and AC.

use x86::Feature;
use x86::cr::rflags;

use crate::state::{Cpu, Mode, shadow};
use crate::stop::Exception;
use crate::system::offered;

/// IOPL as a number.
pub(super) fn iopl(cpu: &Cpu) -> u8 {
    (cpu.rflags >> 12 & 3) as u8
}

pub(super) fn cli(cpu: &mut Cpu) -> Result<(), Exception> {
    if cpu.mode.has(Mode::PROTECTED) && cpu.cpl() > iopl(cpu) {
        return Err(Exception::gp(0));
    }
    cpu.rflags &= !rflags::IF;
    Ok(())
}

pub(super) fn sti(cpu: &mut Cpu) -> Result<(), Exception> {
    if cpu.mode.has(Mode::PROTECTED) && cpu.cpl() > iopl(cpu) {
        return Err(Exception::gp(0));
    }
    if cpu.rflags & rflags::IF == 0 {
        cpu.rflags |= rflags::IF;
        cpu.interrupt_shadow |= shadow::STI << 4;
    }
    Ok(())
}

/// CLAC and STAC.
pub(super) fn access(cpu: &mut Cpu, on: bool) -> Result<(), Exception> {
    offered(cpu, const { Feature::of("smap") })?;
    if cpu.cpl() != 0 {
        return Err(Exception::ud());
    }
    if on {
        cpu.rflags |= rflags::AC;
    } else {
        cpu.rflags &= !rflags::AC;
    }
    cpu.update_mode();
    Ok(())
}
