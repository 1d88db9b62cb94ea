//! Maintenance of the TLB and the caches, MONITOR and MWAIT.

use iced_x86::{Code, Instruction, OpKind};
use x86::Feature;
use x86::cr::cr4;

use crate::interpret::Flow;
use crate::mmu::As;
use crate::platform::Platform;
use crate::segment::canonical;
use crate::state::{Cpu, Mode, reg, seg};
use crate::stop::{Access, Exception, Stop};
use crate::system::operand::{address, offset, register};
use crate::system::{offered, privileged};

pub(super) fn invlpg(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    if i.op0_kind() != OpKind::Memory {
        return Err(Exception::ud().into());
    }
    privileged(cpu)?;
    let which = i.memory_segment().number();
    let offset = offset(cpu, i, 0);
    // Limits do not matter, and an address that is not canonical names no page.
    let linear = if cpu.code64() {
        let base = if which >= seg::FS {
            cpu.segs.get(which).map_or(0, |s| s.base)
        } else {
            0
        };
        base.wrapping_add(offset)
    } else {
        let base = cpu.segs.get(which).map_or(0, |s| s.base);
        base.wrapping_add(offset) & 0xffff_ffff
    };
    if canonical(linear) {
        cpu.flush_page(linear);
    }
    p.serialize();
    Ok(())
}

pub(super) fn invpcid(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    offered(cpu, const { Feature::of("invpcid") })?;
    if cpu.mode.has(Mode::VM86) {
        return Err(Exception::gp(0).into());
    }
    privileged(cpu)?;
    let kind = register(cpu, i.op0_register());
    let linear = address(cpu, i, 1, 16, Access::Read)?;
    let mut bytes = [0u8; 16];
    cpu.read_bytes(p, linear, &mut bytes, As::Current)?;
    let [pcid, at] = split(bytes);
    let reserved = pcid >> 12 != 0 || (cpu.cr4 & cr4::PCIDE == 0 && pcid != 0);
    match kind {
        0 if reserved || !canonical(at) => return Err(Exception::gp(0).into()),
        0 => cpu.flush_page(at),
        1 if reserved => return Err(Exception::gp(0).into()),
        1 | 3 => cpu.flush_local(),
        2 => cpu.flush_tlb(),
        _ => return Err(Exception::gp(0).into()),
    }
    p.serialize();
    Ok(())
}

fn split(bytes: [u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(bytes);
    [both as u64, (both >> 64) as u64]
}

/// CLFLUSH and its kin: nothing but the faults of a load, the host's caches being coherent.
pub(super) fn line(cpu: &mut Cpu, _p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let feature = match i.mnemonic() {
        iced_x86::Mnemonic::Clflushopt => const { Feature::of("clflushopt") },
        iced_x86::Mnemonic::Clwb => const { Feature::of("clwb") },
        _ => const { Feature::of("clflush") },
    };
    offered(cpu, feature)?;
    let linear = address(cpu, i, 0, 1, Access::Read)?;
    cpu.probe(linear, 1, Access::Read, As::Current)?;
    Ok(())
}

/// The segment of an operand that only a prefix names.
fn data_segment(i: &Instruction) -> usize {
    if i.segment_prefix() == iced_x86::Register::None {
        seg::DS
    } else {
        i.segment_prefix().number()
    }
}

/// CLZERO: 64 bytes around the address in RAX become zero (APM vol. 3).
pub(super) fn zero_line(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let mask = match i.code() {
        Code::Clzerow => 0xffff,
        Code::Clzerod => 0xffff_ffff,
        _ => !0,
    };
    let offset = cpu.gpr[reg::RAX] & mask & !63;
    let linear = cpu.linear(data_segment(i), offset, 64, Access::Write)?;
    cpu.write_bytes(p, linear, &[0; 64], As::Current)
}

pub(super) fn monitor(cpu: &mut Cpu, _p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    offered(cpu, const { Feature::of("monitor") })?;
    if cpu.cpl() != 0 {
        return Err(Exception::ud().into());
    }
    if cpu.gpr[reg::RCX] as u32 != 0 {
        return Err(Exception::gp(0).into());
    }
    let mask = if cpu.code64() { !0 } else { 0xffff_ffff };
    let (which, at) = (data_segment(i), cpu.gpr[reg::RAX] & mask);
    let linear = cpu.linear(which, at, 1, Access::Read)?;
    cpu.probe(linear, 1, Access::Read, As::Current)?;
    Ok(())
}

/// MWAIT returns at once: it may at any time, and nobody watches the monitored line.
pub(super) fn mwait(cpu: &mut Cpu) -> Result<Flow, Stop> {
    offered(cpu, const { Feature::of("monitor") })?;
    if cpu.cpl() != 0 {
        return Err(Exception::ud().into());
    }
    Ok(Flow::Next)
}
