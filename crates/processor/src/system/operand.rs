//! Operands of system instructions.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::mmu::As;
use crate::platform::Platform;
use crate::segment::far::Target;
use crate::state::{Cpu, Seg, reg, seg};
use crate::stop::{Access, Exception, Stop};

/// Value of a general register of 16, 32 or 64 bits.
pub(crate) fn register(cpu: &Cpu, register: Register) -> u64 {
    let value = cpu
        .gpr
        .get(register.full_register().number())
        .copied()
        .unwrap_or(0);
    match register.size() {
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// Sets a general register of 16, 32 (the upper half becomes zero) or 64 bits.
pub(crate) fn set_register(cpu: &mut Cpu, register: Register, value: u64) {
    let Some(slot) = cpu.gpr.get_mut(register.full_register().number()) else {
        return;
    };
    *slot = match register.size() {
        2 => *slot & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
}

/// Index of the segment register of the memory operand.
fn segment(i: &Instruction) -> usize {
    i.memory_segment().number()
}

/// Offset of the memory operand within its segment, cut to the address size.
pub(crate) fn offset(cpu: &Cpu, i: &Instruction, operand: u32) -> u64 {
    i.virtual_address(operand, 0, |r, _, _| {
        Some(if r.is_gpr() { register(cpu, r) } else { 0 })
    })
    .unwrap_or(0)
}

/// Linear address of a memory operand of `size` bytes. #UD if the operand is a register.
pub(crate) fn address(
    cpu: &Cpu,
    i: &Instruction,
    operand: u32,
    size: u64,
    access: Access,
) -> Result<u64, Exception> {
    if i.op_kind(operand) != OpKind::Memory {
        return Err(Exception::ud());
    }
    cpu.linear(segment(i), offset(cpu, i, operand), size, access)
}

/// A 16-bit operand, register or memory.
pub(crate) fn read16(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    operand: u32,
) -> Result<u16, Stop> {
    if i.op_kind(operand) == OpKind::Register {
        return Ok(register(cpu, i.op_register(operand)) as u16);
    }
    let linear = address(cpu, i, operand, 2, Access::Read)?;
    cpu.read::<u16>(p, linear, As::Current)
}

/// Writes operand 0 as SLDT, STR, SMSW and MOV from a segment register do: a whole register, or
/// two bytes of memory.
pub(crate) fn write_selector(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    value: u64,
) -> Result<(), Stop> {
    if i.op0_kind() == OpKind::Register {
        set_register(cpu, i.op0_register(), value);
        return Ok(());
    }
    let linear = address(cpu, i, 0, 2, Access::Write)?;
    cpu.write::<u16>(p, linear, value as u16, As::Current)
}

/// A far pointer in memory: an offset of `size` bytes, then a selector.
pub(crate) fn far_pointer(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    operand: u32,
    size: usize,
) -> Result<Target, Stop> {
    let linear = address(cpu, i, operand, size as u64 + 2, Access::Read)?;
    let mut bytes = [0u8; 10];
    let Some(used) = bytes.get_mut(..size + 2) else {
        return Err(Exception::ud().into());
    };
    cpu.read_bytes(p, linear, used, As::Current)?;
    let mut offset = [0u8; 8];
    offset[..size].copy_from_slice(&bytes[..size]);
    Ok(Target {
        selector: u16::from_le_bytes([bytes[size], bytes[size + 1]]),
        offset: u64::from_le_bytes(offset),
        size,
    })
}

/// Port and width of an instruction that accesses one.
pub(crate) fn port(cpu: &Cpu, i: &Instruction) -> Option<(u16, u8)> {
    let dx = cpu.gpr[reg::RDX] as u16;
    let size_of = |r: Register| r.size() as u8;
    Some(match i.mnemonic() {
        Mnemonic::In => {
            let port = if i.op1_kind() == OpKind::Register {
                dx
            } else {
                i.immediate8().into()
            };
            (port, size_of(i.op0_register()))
        }
        Mnemonic::Out => {
            let port = if i.op0_kind() == OpKind::Register {
                dx
            } else {
                i.immediate8().into()
            };
            (port, size_of(i.op1_register()))
        }
        Mnemonic::Insb | Mnemonic::Outsb => (dx, 1),
        Mnemonic::Insw | Mnemonic::Outsw => (dx, 2),
        Mnemonic::Insd | Mnemonic::Outsd => (dx, 4),
        _ => return None,
    })
}

/// Address size of a string instruction in bytes.
pub(crate) fn address_size(cpu: &Cpu, i: &Instruction) -> usize {
    for operand in 0..i.op_count() {
        match i.op_kind(operand) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 2,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 4,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 8,
            _ => {}
        }
    }
    if cpu.code64() {
        8
    } else if cpu.segs[seg::CS].attributes & Seg::DB != 0 {
        4
    } else {
        2
    }
}
