//! Moves, exchanges, conversions, flags.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use x86::cr::rflags::{self, AF, CF, PF, SF, ZF};

use super::alu;
use super::ops::{self, Width};
use crate::platform::Platform;
use crate::state::{Cpu, Mode, reg};
use crate::stop::{Access, Exception, Stop};

/// MOV between general registers, memory and immediates, and from a segment register: memory gets
/// 16 bits of that, a register is extended with zeros.
pub(super) fn mov(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let value = if i.op1_kind() == OpKind::Register && i.op1_register().is_segment_register() {
        selector(cpu, i.op1_register())
    } else {
        ops::read(cpu, p, i, 1)?
    };
    ops::write(cpu, p, i, 0, value)
}

/// Selector in this segment register.
pub(super) fn selector(cpu: &Cpu, register: Register) -> u64 {
    let n = (register as usize).saturating_sub(Register::ES as usize);
    cpu.segs.get(n).map_or(0, |s| u64::from(s.selector))
}

/// MOVZX.
pub(super) fn movzx(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let value = ops::read(cpu, p, i, 1)?;
    ops::set(cpu, i.op0_register(), value);
    Ok(())
}

/// MOVSX and MOVSXD.
pub(super) fn movsx(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let value = ops::read(cpu, p, i, 1)?;
    let value = ops::width(i, 1).signed(value) as u64;
    ops::set(cpu, i.op0_register(), value);
    Ok(())
}

fn swapped(width: Width, value: u64) -> u64 {
    value.swap_bytes() >> (64 - width.bits())
}

/// MOVBE.
pub(super) fn movbe(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let value = ops::read(cpu, p, i, 1)?;
    ops::write(cpu, p, i, 0, swapped(ops::width(i, 0), value))
}

/// BSWAP. Of 16 bits it is undefined; processors clear them.
pub(super) fn bswap(cpu: &mut Cpu, i: &Instruction) {
    let register = i.op0_register();
    let width = ops::width(i, 0);
    let value = match width {
        Width::Word => 0,
        _ => swapped(width, ops::get(cpu, register)),
    };
    ops::set(cpu, register, value);
}

/// LEA.
pub(super) fn lea(cpu: &mut Cpu, i: &Instruction) {
    let (offset, _) = ops::effective(cpu, i);
    ops::set(cpu, i.op0_register(), offset);
}

/// XLAT.
pub(super) fn xlat(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let linear = ops::address(cpu, i, 1, Access::Read)?;
    let value = ops::load(cpu, p, linear, Width::Byte)?;
    ops::put(cpu, reg::RAX, Width::Byte, value);
    Ok(())
}

/// XCHG: with memory it is always locked.
pub(super) fn xchg(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    // The memory operand comes first, but of two registers either may.
    let (first, second) = (i.op0_kind(), i.op1_kind());
    let memory = u32::from(second == OpKind::Memory);
    let other = i.op_register(1 - memory);
    let value = ops::get(cpu, other);
    if first == OpKind::Register && second == OpKind::Register {
        let old = ops::get(cpu, i.op0_register());
        ops::set(cpu, i.op0_register(), value);
        ops::set(cpu, i.op1_register(), old);
        return Ok(());
    }
    let width = ops::width(i, memory);
    let linear = ops::address(cpu, i, width.bytes(), Access::Write)?;
    let old = ops::exchange(cpu, p, linear, width, true, &mut |_| value)?;
    ops::set(cpu, other, old);
    Ok(())
}

/// XADD.
pub(super) fn xadd(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let width = ops::width(i, 0);
    let register = i.op1_register();
    let b = ops::get(cpu, register);
    if i.op0_kind() == OpKind::Register {
        let a = ops::get(cpu, i.op0_register());
        let (result, flags) = alu::add(width, a, b, cpu.rflags);
        ops::set(cpu, register, a);
        ops::set(cpu, i.op0_register(), result);
        cpu.rflags = flags;
        return Ok(());
    }
    let old = ops::update(cpu, p, i, &mut |a| a.wrapping_add(b))?;
    cpu.rflags = alu::add(width, old, b, cpu.rflags).1;
    ops::set(cpu, register, old);
    Ok(())
}

/// CMPXCHG: a destination in memory is written in any case. A register is not when the values
/// differ, so that the upper half of one of 32 bits stays.
pub(super) fn cmpxchg(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let width = ops::width(i, 0);
    let accumulator = cpu.gpr[reg::RAX] & width.mask();
    let source = ops::get(cpu, i.op1_register());
    let old = if i.op0_kind() == OpKind::Register {
        let old = ops::get(cpu, i.op0_register());
        if old == accumulator {
            ops::set(cpu, i.op0_register(), source);
        }
        old
    } else {
        ops::update(cpu, p, i, &mut |old| {
            if old == accumulator { source } else { old }
        })?
    };
    cpu.rflags = alu::sub(width, accumulator, old, cpu.rflags).1;
    if old != accumulator {
        ops::put(cpu, reg::RAX, width, old);
    }
    Ok(())
}

/// CMPXCHG8B: of the flags only ZF changes.
pub(super) fn cmpxchg8b(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let pair =
        |cpu: &Cpu, high: usize, low: usize| cpu.gpr[high] << 32 | cpu.gpr[low] & 0xffff_ffff;
    let expected = pair(cpu, reg::RDX, reg::RAX);
    let new = pair(cpu, reg::RCX, reg::RBX);
    let linear = ops::address(cpu, i, 8, Access::Write)?;
    let locked = i.has_lock_prefix();
    let old = ops::exchange(cpu, p, linear, Width::Qword, locked, &mut |old| {
        if old == expected { new } else { old }
    })?;
    if old != expected {
        ops::put(cpu, reg::RAX, Width::Dword, old);
        ops::put(cpu, reg::RDX, Width::Dword, old >> 32);
    }
    ops::set_flags(cpu, ZF, if old == expected { ZF } else { 0 });
    Ok(())
}

/// CMPXCHG16B: its operand must be aligned.
pub(super) fn cmpxchg16b(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let pair = |cpu: &Cpu, high: usize, low: usize| {
        u128::from(cpu.gpr[high]) << 64 | u128::from(cpu.gpr[low])
    };
    let expected = pair(cpu, reg::RDX, reg::RAX);
    let new = pair(cpu, reg::RCX, reg::RBX);
    let linear = ops::address(cpu, i, 16, Access::Write)?;
    if linear & 15 != 0 {
        return Err(Exception::gp(0).into());
    }
    let (equal, old) = cpu.compare_exchange_16(p, linear, expected, new)?;
    if !equal {
        cpu.gpr[reg::RAX] = old as u64;
        cpu.gpr[reg::RDX] = (old >> 64) as u64;
    }
    ops::set_flags(cpu, ZF, if equal { ZF } else { 0 });
    Ok(())
}

/// The condition of a CMOVcc, SETcc or Jcc.
pub(super) fn holds(cpu: &Cpu, i: &Instruction) -> bool {
    // iced numbers conditions as opcodes do, from one.
    let code = (i.condition_code() as u8).wrapping_sub(1);
    alu::condition(code, cpu.rflags)
}

/// CMOVcc: the source is read, and the upper half of a 32-bit destination cleared, in any case.
pub(super) fn cmov(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let source = ops::read(cpu, p, i, 1)?;
    let register = i.op0_register();
    let value = if holds(cpu, i) {
        source
    } else {
        ops::get(cpu, register)
    };
    ops::set(cpu, register, value);
    Ok(())
}

/// SETcc.
pub(super) fn set(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let value = u64::from(holds(cpu, i));
    ops::write(cpu, p, i, 0, value)
}

/// CBW, CWDE, CDQE, CWD, CDQ, CQO.
pub(super) fn widen(cpu: &mut Cpu, i: &Instruction) {
    let rax = cpu.gpr[reg::RAX];
    let sign = |width: Width| (width.signed(rax) >> 63) as u64;
    match i.mnemonic() {
        Mnemonic::Cbw => ops::put(cpu, reg::RAX, Width::Word, Width::Byte.signed(rax) as u64),
        Mnemonic::Cwde => ops::put(cpu, reg::RAX, Width::Dword, Width::Word.signed(rax) as u64),
        Mnemonic::Cdqe => cpu.gpr[reg::RAX] = Width::Dword.signed(rax) as u64,
        Mnemonic::Cwd => ops::put(cpu, reg::RDX, Width::Word, sign(Width::Word)),
        Mnemonic::Cdq => ops::put(cpu, reg::RDX, Width::Dword, sign(Width::Dword)),
        _ => cpu.gpr[reg::RDX] = sign(Width::Qword),
    }
}

/// LAHF, SAHF, CLC, STC, CMC, CLD, STD.
pub(super) fn flags(cpu: &mut Cpu, i: &Instruction) {
    const LOW: u64 = SF | ZF | AF | PF | CF;
    match i.mnemonic() {
        Mnemonic::Lahf => {
            let value = cpu.rflags & LOW | rflags::RESERVED_ONE;
            ops::set(cpu, Register::AH, value);
        }
        Mnemonic::Sahf => {
            let value = ops::get(cpu, Register::AH);
            ops::set_flags(cpu, LOW, value);
        }
        Mnemonic::Clc => cpu.rflags &= !CF,
        Mnemonic::Stc => cpu.rflags |= CF,
        Mnemonic::Cmc => cpu.rflags ^= CF,
        Mnemonic::Cld => cpu.rflags &= !rflags::DF,
        _ => cpu.rflags |= rflags::DF,
    }
}

/// BOUND: #BR unless the register lies between the two numbers in memory.
pub(super) fn bound(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let width = ops::width(i, 0);
    let (offset, mask) = ops::effective(cpu, i);
    let segment = ops::segment(i);
    let behind = offset.wrapping_add(width.bytes()) & mask;
    let low = cpu.linear(segment, offset, width.bytes(), Access::Read)?;
    let high = cpu.linear(segment, behind, width.bytes(), Access::Read)?;
    let low = ops::load(cpu, p, low, width)?;
    let high = ops::load(cpu, p, high, width)?;
    let index = width.signed(ops::get(cpu, i.op0_register()));
    if (width.signed(low)..=width.signed(high)).contains(&index) {
        Ok(())
    } else {
        Err(Exception::plain(Exception::BR).into())
    }
}

/// ARPL: raises the RPL of the selector in operand 0 to that of operand 1.
pub(super) fn arpl(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    if !cpu.mode.has(Mode::PROTECTED) || cpu.mode.has(Mode::VM86) {
        return Err(Exception::ud().into());
    }
    let rpl = ops::get(cpu, i.op1_register()) & 3;
    let selector = ops::read(cpu, p, i, 0)?;
    let raise = selector & 3 < rpl;
    if raise {
        ops::write(cpu, p, i, 0, selector & !3 | rpl)?;
    }
    ops::set_flags(cpu, ZF, if raise { ZF } else { 0 });
    Ok(())
}

/// RDRAND and RDSEED, from the host's kernel. CF says that there is a number.
pub(super) fn random(cpu: &mut Cpu, i: &Instruction) {
    let number = getrandom::u64().ok();
    ops::set(cpu, i.op0_register(), number.unwrap_or(0));
    let status = if number.is_some() { CF } else { 0 };
    ops::set_flags(cpu, alu::STATUS, status);
}

/// SALC: AL becomes CF, in all bits.
pub(super) fn salc(cpu: &mut Cpu) {
    let value = alu::carry(cpu.rflags).wrapping_neg();
    ops::put(cpu, reg::RAX, Width::Byte, value);
}

/// Whether this is MOV to or from a control or debug register, or to a segment register.
pub(super) fn is_system_mov(code: Code) -> bool {
    matches!(
        code,
        Code::Mov_r32_cr
            | Code::Mov_r64_cr
            | Code::Mov_cr_r32
            | Code::Mov_cr_r64
            | Code::Mov_r32_dr
            | Code::Mov_r64_dr
            | Code::Mov_dr_r32
            | Code::Mov_dr_r64
            | Code::Mov_r32_tr
            | Code::Mov_tr_r32
            | Code::Mov_Sreg_rm16
            | Code::Mov_Sreg_r32m16
            | Code::Mov_Sreg_r64m16
    )
}
