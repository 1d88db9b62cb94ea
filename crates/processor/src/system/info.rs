//! What the processor tells of itself and of time: CPUID, RDTSC, RDPMC, XGETBV.

use iced_x86::Instruction;
use x86::cr::{cr4, xcr0};
use x86::{CpuidEntry, Feature};

use crate::platform::Platform;
use crate::state::{Cpu, Mode, reg};
use crate::stop::{Exception, Stop};
use crate::system::operand::set_register;
use crate::system::{offered, privileged, xsave};

/// CPUID.1:ECX: CR4.OSXSAVE is set.
const OSXSAVE: u32 = 1 << 27;

pub(super) fn cpuid(cpu: &mut Cpu, p: &mut dyn Platform) {
    let (leaf, subleaf) = (cpu.gpr[reg::RAX] as u32, cpu.gpr[reg::RCX] as u32);
    let mut e = cpu
        .cpuid
        .get(leaf, subleaf)
        .copied()
        .unwrap_or(CpuidEntry::leaf(leaf, [0; 4]));
    match (leaf, subleaf) {
        (1, _) => {
            e.ecx &= !OSXSAVE;
            if cpu.cr4 & cr4::OSXSAVE != 0 {
                e.ecx |= OSXSAVE;
            }
        }
        // The area that the enabled components need.
        (0xd, 0) => e.ebx = xsave_len(cpu, false),
        (0xd, 1) if e.eax != 0 => e.ebx = xsave_len(cpu, true),
        _ => {}
    }
    cpu.gpr[reg::RAX] = e.eax.into();
    cpu.gpr[reg::RBX] = e.ebx.into();
    cpu.gpr[reg::RCX] = e.ecx.into();
    cpu.gpr[reg::RDX] = e.edx.into();
    p.serialize();
}

/// Length of the XSAVE area for XCR0 as it is, in the standard or the compacted format.
fn xsave_len(cpu: &Cpu, compact: bool) -> u32 {
    let mut len: u32 = 576;
    for n in 2..63 {
        if cpu.xcr0 >> n & 1 == 0 {
            continue;
        }
        if let Some(part) = cpu.cpuid.get(0xd, n) {
            let (size, offset) = (part.eax, part.ebx);
            len = if compact {
                // ECX bit 1: aligned to 64 bytes.
                let start = if part.ecx & 2 != 0 {
                    len.next_multiple_of(64)
                } else {
                    len
                };
                start.saturating_add(size)
            } else {
                len.max(offset.saturating_add(size))
            };
        }
    }
    len
}

pub(super) fn rdtsc(cpu: &mut Cpu, p: &mut dyn Platform, with_aux: bool) -> Result<(), Stop> {
    if with_aux {
        offered(cpu, const { Feature::of("rdtscp") })?;
    }
    if cpu.mode.has(Mode::TSD) && cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    let tsc = cpu.guest_tsc(p);
    cpu.gpr[reg::RAX] = tsc & 0xffff_ffff;
    cpu.gpr[reg::RDX] = tsc >> 32;
    if with_aux {
        cpu.gpr[reg::RCX] = cpu.msrs.tsc_aux & 0xffff_ffff;
    }
    Ok(())
}

pub(super) fn rdpid(cpu: &mut Cpu, i: &Instruction) -> Result<(), Stop> {
    offered(cpu, const { Feature::of("rdpid") })?;
    let value = cpu.msrs.tsc_aux;
    set_register(cpu, i.op0_register(), value);
    Ok(())
}

pub(super) fn rdpmc(cpu: &mut Cpu, p: &mut dyn Platform) -> Result<(), Stop> {
    if cpu.cpl() != 0 && cpu.cr4 & cr4::PCE == 0 {
        return Err(Exception::gp(0).into());
    }
    p.retired(cpu.retired);
    let value = p.read_pmc(cpu.gpr[reg::RCX] as u32)?;
    cpu.gpr[reg::RAX] = value & 0xffff_ffff;
    cpu.gpr[reg::RDX] = value >> 32;
    Ok(())
}

fn xcr_enabled(cpu: &Cpu) -> Result<(), Exception> {
    if cpu.mode.has(Mode::OSXSAVE) {
        Ok(())
    } else {
        Err(Exception::ud())
    }
}

pub(super) fn xgetbv(cpu: &mut Cpu) -> Result<(), Stop> {
    xcr_enabled(cpu)?;
    let value = match cpu.gpr[reg::RCX] as u32 {
        0 => cpu.xcr0,
        1 if cpu.features.contains(const { Feature::of("xgetbv1") }) => {
            cpu.xcr0 & (xsave::in_use(cpu) | xcr0::X87)
        }
        _ => return Err(Exception::gp(0).into()),
    };
    cpu.gpr[reg::RAX] = value & 0xffff_ffff;
    cpu.gpr[reg::RDX] = value >> 32;
    Ok(())
}

pub(super) fn xsetbv(cpu: &mut Cpu, p: &mut dyn Platform) -> Result<(), Stop> {
    xcr_enabled(cpu)?;
    privileged(cpu)?;
    if cpu.gpr[reg::RCX] as u32 != 0 {
        return Err(Exception::gp(0).into());
    }
    let value = cpu.gpr[reg::RDX] << 32 | cpu.gpr[reg::RAX] & 0xffff_ffff;
    cpu.write_xcr0(value)?;
    p.serialize();
    Ok(())
}
