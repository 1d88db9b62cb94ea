//! Fast system calls (SDM vol. 2B "SYSCALL" and following; APM vol. 3), SWAPGS, and the bases of
//! FS and GS.

use iced_x86::Instruction;
use x86::Feature;
use x86::cr::{efer, rflags};

use crate::segment::{FLAT_CODE32, FLAT_CODE64, FLAT_DATA, canonical};
use crate::state::{Cpu, Mode, Seg, reg, seg};
use crate::stop::{Exception, Stop};
use crate::system::operand::{register, set_register};
use crate::system::{offered, privileged};

/// Flags that SYSRET loads from R11: all but RF and VM.
const SYSRET_FLAGS: u64 = 0x3c_7fd7;

/// Loads flat CS and SS: code in 64 or 32 bits for this privilege level.
fn set_flat(cpu: &mut Cpu, cs: u16, ss: u16, code: u16, cpl: u8) {
    let level = u16::from(cpl);
    cpu.segs[seg::SS] = Seg::flat(ss & !3 | level, FLAT_DATA, cpl);
    cpu.segs[seg::CS] = Seg::flat(cs & !3 | level, code, cpl);
    cpu.update_mode();
}

pub(super) fn syscall(cpu: &mut Cpu, i: &Instruction) -> Result<(), Stop> {
    let long = cpu.mode.has(Mode::LONG);
    let outside = !cpu.mode.has(Mode::PROTECTED) || cpu.mode.has(Mode::VM86);
    if !cpu.syscall_enabled() || outside || (!cpu.code64() && !cpu.amd()) {
        return Err(Exception::ud().into());
    }
    let next = cpu.next_rip(i);
    cpu.gpr[reg::RCX] = next;
    let cs = (cpu.msrs.star >> 32) as u16;
    let ss = (cs & !3).wrapping_add(8);
    if long {
        cpu.gpr[11] = cpu.rflags & !rflags::RF;
        cpu.rip = if cpu.code64() {
            cpu.msrs.lstar
        } else {
            cpu.msrs.cstar
        };
        cpu.rflags = cpu.rflags & !cpu.msrs.sfmask & !rflags::RF | rflags::RESERVED_ONE;
        set_flat(cpu, cs, ss, FLAT_CODE64, 0);
    } else {
        cpu.rip = cpu.msrs.star & 0xffff_ffff;
        cpu.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
        set_flat(cpu, cs, ss, FLAT_CODE32, 0);
    }
    Ok(())
}

pub(super) fn sysret(cpu: &mut Cpu, wide: bool) -> Result<(), Stop> {
    let outside = !cpu.mode.has(Mode::PROTECTED) || cpu.mode.has(Mode::VM86);
    if !cpu.syscall_enabled() || outside || (!cpu.code64() && !cpu.amd()) {
        return Err(Exception::ud().into());
    }
    privileged(cpu)?;
    let rip = cpu.gpr[reg::RCX];
    // Intel's fault in ring 0; AMD's after the return.
    if wide && !canonical(rip) && !cpu.amd() {
        return Err(Exception::gp(0).into());
    }
    let base = (cpu.msrs.star >> 48) as u16;
    let (cs, code) = if wide {
        (base.wrapping_add(16), FLAT_CODE64)
    } else {
        (base, FLAT_CODE32)
    };
    if cpu.mode.has(Mode::LONG) {
        cpu.rflags = cpu.gpr[11] & SYSRET_FLAGS | rflags::RESERVED_ONE;
    } else {
        cpu.rflags |= rflags::IF;
    }
    cpu.rip = if wide { rip } else { rip & 0xffff_ffff };
    set_flat(cpu, cs, base.wrapping_add(8), code, 3);
    Ok(())
}

/// Whether SYSENTER and SYSEXIT are there: AMD's long mode has them not.
fn sysenter_offered(cpu: &Cpu) -> Result<(), Exception> {
    offered(cpu, const { Feature::of("sep") })?;
    if cpu.amd() && cpu.mode.has(Mode::LONG) {
        return Err(Exception::ud());
    }
    Ok(())
}

pub(super) fn sysenter(cpu: &mut Cpu) -> Result<(), Stop> {
    sysenter_offered(cpu)?;
    let cs = cpu.msrs.sysenter_cs as u16;
    if !cpu.mode.has(Mode::PROTECTED) || cs & !3 == 0 {
        return Err(Exception::gp(0).into());
    }
    let long = cpu.efer & efer::LMA != 0;
    let (mask, code) = if long {
        (!0, FLAT_CODE64)
    } else {
        (0xffff_ffff, FLAT_CODE32)
    };
    cpu.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
    cpu.gpr[reg::RSP] = cpu.msrs.sysenter_esp & mask;
    cpu.rip = cpu.msrs.sysenter_eip & mask;
    set_flat(cpu, cs, (cs & !3).wrapping_add(8), code, 0);
    Ok(())
}

pub(super) fn sysexit(cpu: &mut Cpu, wide: bool) -> Result<(), Stop> {
    sysenter_offered(cpu)?;
    let cs = cpu.msrs.sysenter_cs as u16 & !3;
    if !cpu.mode.has(Mode::PROTECTED) || cs == 0 {
        return Err(Exception::gp(0).into());
    }
    privileged(cpu)?;
    let (rsp, rip) = (cpu.gpr[reg::RCX], cpu.gpr[reg::RDX]);
    if wide {
        if !canonical(rsp) || !canonical(rip) {
            return Err(Exception::gp(0).into());
        }
        cpu.gpr[reg::RSP] = rsp;
        cpu.rip = rip;
        set_flat(
            cpu,
            cs.wrapping_add(32),
            cs.wrapping_add(40),
            FLAT_CODE64,
            3,
        );
    } else {
        cpu.gpr[reg::RSP] = rsp & 0xffff_ffff;
        cpu.rip = rip & 0xffff_ffff;
        set_flat(
            cpu,
            cs.wrapping_add(16),
            cs.wrapping_add(24),
            FLAT_CODE32,
            3,
        );
    }
    Ok(())
}

pub(super) fn swapgs(cpu: &mut Cpu) -> Result<(), Stop> {
    if !cpu.code64() {
        return Err(Exception::ud().into());
    }
    privileged(cpu)?;
    std::mem::swap(&mut cpu.segs[seg::GS].base, &mut cpu.msrs.kernel_gs_base);
    Ok(())
}

fn bases_enabled(cpu: &Cpu) -> Result<(), Exception> {
    if cpu.code64() && cpu.mode.has(Mode::FSGSBASE) {
        Ok(())
    } else {
        Err(Exception::ud())
    }
}

pub(super) fn read_base(cpu: &mut Cpu, i: &Instruction, gs: bool) -> Result<(), Stop> {
    bases_enabled(cpu)?;
    let value = cpu.segs[if gs { seg::GS } else { seg::FS }].base;
    set_register(cpu, i.op0_register(), value);
    Ok(())
}

pub(super) fn write_base(cpu: &mut Cpu, i: &Instruction, gs: bool) -> Result<(), Stop> {
    bases_enabled(cpu)?;
    let value = register(cpu, i.op0_register());
    if !canonical(value) {
        return Err(Exception::gp(0).into());
    }
    cpu.segs[if gs { seg::GS } else { seg::FS }].base = value;
    Ok(())
}
