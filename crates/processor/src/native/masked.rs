//! Instructions that access the elements of a memory operand that a mask selects: what is not
//! selected is not touched and cannot fault.
//!
//! The architecture lets a gather that faults keep the elements it has. Here it keeps none, and
//! starts again.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{element_offset, read_operand, segment, vector, wait, write_operand};
use crate::mmu::As;
use crate::platform::Platform;
use crate::state::Cpu;
use crate::stop::{Access, Exception, Stop};

/// MASKMOVQ, MASKMOVDQU: bytes to the address in rDI.
pub(super) fn bytes(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let mmx = i.mnemonic() == Mnemonic::Maskmovq;
    let len = if mmx { 8 } else { 16 };
    if mmx {
        wait(cpu)?;
    }
    let (data, mask) = (i.op1_register(), i.op2_register());
    let byte = |cpu: &Cpu, register: Register, n: usize| {
        if mmx {
            super::control::mm_byte(&cpu.fpu, register.number(), n)
        } else {
            vector::byte(&cpu.fpu, register, n)
        }
    };
    let offset = element_offset(cpu, i, 0, 0)?;
    let wrap = match i.op0_kind() {
        OpKind::MemorySegDI => 0xffff,
        OpKind::MemorySegEDI => 0xffff_ffff,
        _ => u64::MAX,
    };
    let mut places = [None; 16];
    for (n, place) in places.iter_mut().enumerate().take(len) {
        if byte(cpu, mask, n) & 0x80 != 0 {
            let offset = offset.wrapping_add(n as u64) & wrap;
            let linear = cpu.linear(segment(i), offset, 1, Access::Write)?;
            cpu.probe(linear, 1, Access::Write, As::Current)?;
            *place = Some(linear);
        }
    }
    for (n, place) in places.iter().enumerate() {
        if let Some(linear) = *place {
            let value = byte(cpu, data, n);
            cpu.write(p, linear, value, As::Current)?;
        }
    }
    if mmx {
        super::control::enter_mmx(cpu);
    }
    Ok(())
}

/// What offsets wrap around at, by the size of the address.
fn address_mask(i: &Instruction) -> u64 {
    let size = match (i.memory_base(), i.memory_index()) {
        (Register::None, Register::None) => i.memory_displ_size() as usize,
        (Register::None, index) => index.size(),
        (base, _) => base.size(),
    };
    match size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// VMASKMOVPS and its kin, loads and stores.
pub(super) fn elements(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let size = match i.mnemonic() {
        Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => 4,
        _ => 8,
    };
    let store = i.op0_kind() == OpKind::Memory;
    let mask = i.op1_register();
    let (register, memory, access) = if store {
        (i.op2_register(), 0, Access::Write)
    } else {
        (i.op0_register(), 2, Access::Read)
    };
    let len = register.size();
    let start = element_offset(cpu, i, memory, 0)?;
    let wrap = address_mask(i);
    let mut places = [None; 8];
    for (n, place) in places.iter_mut().enumerate().take(len / size) {
        if vector::byte(&cpu.fpu, mask, n * size + size - 1) & 0x80 != 0 {
            let offset = start.wrapping_add((n * size) as u64) & wrap;
            let linear = cpu.linear(segment(i), offset, size as u64, access)?;
            if store {
                cpu.probe(linear, size as u64, access, As::Current)?;
            }
            *place = Some(linear);
        }
    }
    let mut value = [0; 32];
    for (element, place) in value.chunks_exact_mut(size).zip(places) {
        let Some(linear) = place else { continue };
        if !store {
            read_operand(cpu, p, linear, element)?;
        }
    }
    if store {
        for (n, place) in places.iter().enumerate() {
            if let Some(linear) = *place {
                let bits = vector::element(&cpu.fpu, register, n, size).to_le_bytes();
                let data = bits.get(..size).unwrap_or_default();
                write_operand(cpu, p, linear, data)?;
            }
        }
    } else {
        vector::replace(&mut cpu.fpu, register, &value, len);
    }
    Ok(())
}

/// VPGATHERDD and its kin.
pub(super) fn gather(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    use Mnemonic as M;
    let size = match i.mnemonic() {
        M::Vpgatherdd | M::Vgatherdps | M::Vpgatherqd | M::Vgatherqps => 4,
        _ => 8,
    };
    let index_size = match i.mnemonic() {
        M::Vpgatherdd | M::Vgatherdps | M::Vpgatherdq | M::Vgatherdpd => 4,
        _ => 8,
    };
    let (target, mask, index) = (i.op0_register(), i.op2_register(), i.memory_index());
    let numbers = [target.number(), mask.number(), index.number()];
    if numbers[0] == numbers[1] || numbers[1] == numbers[2] || numbers[0] == numbers[2] {
        return Err(Exception::ud().into());
    }
    let count = (target.size() / size).min(index.size() / index_size);
    let mut value = [0; 32];
    for (n, element) in value.chunks_exact_mut(size).enumerate().take(count) {
        if vector::byte(&cpu.fpu, mask, n * size + size - 1) & 0x80 == 0 {
            for (at, byte) in element.iter_mut().enumerate() {
                *byte = vector::byte(&cpu.fpu, target, n * size + at);
            }
            continue;
        }
        let offset = element_offset(cpu, i, 1, n)?;
        let linear = cpu.linear(segment(i), offset, size as u64, Access::Read)?;
        read_operand(cpu, p, linear, element)?;
    }
    vector::replace(&mut cpu.fpu, target, &value, count * size);
    vector::replace(&mut cpu.fpu, mask, &[0; 32], 0);
    Ok(())
}
