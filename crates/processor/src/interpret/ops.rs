//! Operands: registers, immediates, memory, the stack, the instruction pointer.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::Flow;
use crate::mmu::As;
use crate::platform::Platform;
use crate::state::{Cpu, Mode, reg, seg};
use crate::stop::{Access, Exception, Stop};

/// Size of an integer operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Byte,
    Word,
    Dword,
    Qword,
}

impl Width {
    /// The width of that many bytes: 1, 2, 4 or 8.
    pub(super) const fn of_bytes(bytes: usize) -> Self {
        match bytes {
            1 => Width::Byte,
            2 => Width::Word,
            4 => Width::Dword,
            _ => Width::Qword,
        }
    }

    pub(super) const fn bytes(self) -> u64 {
        match self {
            Width::Byte => 1,
            Width::Word => 2,
            Width::Dword => 4,
            Width::Qword => 8,
        }
    }

    pub(super) const fn bits(self) -> u32 {
        match self {
            Width::Byte => 8,
            Width::Word => 16,
            Width::Dword => 32,
            Width::Qword => 64,
        }
    }

    /// The bits of an operand.
    pub(super) const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The bit of the sign.
    pub(super) const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// The operand as a signed number.
    pub(super) const fn signed(self, value: u64) -> i64 {
        let shift = 64 - self.bits();
        ((value << shift) as i64) >> shift
    }
}

/// Where a register lies: its number, its width, and whether it is AH, CH, DH or BH.
const fn locate(register: Register) -> (usize, Width, bool) {
    const AL: usize = Register::AL as usize;
    const AX: usize = Register::AX as usize;
    const EAX: usize = Register::EAX as usize;
    const RAX: usize = Register::RAX as usize;
    let n = register as usize;
    if n >= RAX {
        ((n - RAX) & 15, Width::Qword, false)
    } else if n >= EAX {
        (n - EAX, Width::Dword, false)
    } else if n >= AX {
        (n - AX, Width::Word, false)
    } else {
        // AL CL DL BL, AH CH DH BH, SPL BPL SIL DIL, R8L to R15L.
        match n.saturating_sub(AL) {
            low @ 0..=3 => (low, Width::Byte, false),
            high @ 4..=7 => (high - 4, Width::Byte, true),
            low => (low - 4, Width::Byte, false),
        }
    }
}

/// Value of a general register of any width.
pub(super) fn get(cpu: &Cpu, register: Register) -> u64 {
    let (n, width, high) = locate(register);
    let value = cpu.gpr[n];
    if high {
        value >> 8 & 0xff
    } else {
        value & width.mask()
    }
}

/// Writes a general register: 8 and 16 bits leave the rest of it alone, 32 bits clear the upper
/// half.
pub(super) fn set(cpu: &mut Cpu, register: Register, value: u64) {
    let (n, width, high) = locate(register);
    if high {
        cpu.gpr[n] = cpu.gpr[n] & !0xff00 | (value & 0xff) << 8;
    } else {
        put(cpu, n, width, value);
    }
}

/// [`set`] for a register by its number.
pub(super) fn put(cpu: &mut Cpu, n: usize, width: Width, value: u64) {
    let old = cpu.gpr[n];
    cpu.gpr[n] = match width {
        Width::Byte => old & !0xff | value & 0xff,
        Width::Word => old & !0xffff | value & 0xffff,
        Width::Dword => value & 0xffff_ffff,
        Width::Qword => value,
    };
}

/// Width of an operand that is a register or memory.
pub(super) fn width(i: &Instruction, n: u32) -> Width {
    match i.op_kind(n) {
        OpKind::Register => locate(i.op_register(n)).1,
        _ => Width::of_bytes(i.memory_size().size()),
    }
}

/// Whether the operand lies in memory.
pub(super) fn in_memory(i: &Instruction, n: u32) -> bool {
    i.op_kind(n) == OpKind::Memory
}

/// Offset of the memory operand in its segment, and the mask of the address size.
pub(super) fn effective(cpu: &Cpu, i: &Instruction) -> (u64, u64) {
    let base = i.memory_base();
    let index = i.memory_index();
    let mask = match (base, index) {
        (Register::None, Register::None) => match i.memory_displ_size() {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        },
        (Register::RIP, _) => u64::MAX,
        (Register::EIP, _) => 0xffff_ffff,
        (Register::None, register) | (register, _) => locate(register).1.mask(),
    };
    let mut offset = i.memory_displacement64();
    match base {
        Register::None => {}
        // The decoder added an instruction pointer; the one that counts is ours.
        Register::RIP | Register::EIP => {
            offset = offset
                .wrapping_sub(i.next_ip())
                .wrapping_add(next_rip(cpu, i));
        }
        _ => offset = offset.wrapping_add(get(cpu, base)),
    }
    if index != Register::None {
        let scaled = get(cpu, index).wrapping_mul(u64::from(i.memory_index_scale()));
        offset = offset.wrapping_add(scaled);
    }
    (offset & mask, mask)
}

/// Number of the memory operand's segment register.
pub(super) fn segment(i: &Instruction) -> usize {
    (i.memory_segment() as usize).saturating_sub(Register::ES as usize)
}

/// Linear address of the memory operand, of which `size` bytes are accessed.
pub(super) fn address(
    cpu: &Cpu,
    i: &Instruction,
    size: u64,
    access: Access,
) -> Result<u64, Exception> {
    cpu.linear(segment(i), effective(cpu, i).0, size, access)
}

/// Reads memory.
pub(super) fn load(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    linear: u64,
    width: Width,
) -> Result<u64, Stop> {
    Ok(match width {
        Width::Byte => u64::from(cpu.read::<u8>(p, linear, As::Current)?),
        Width::Word => u64::from(cpu.read::<u16>(p, linear, As::Current)?),
        Width::Dword => u64::from(cpu.read::<u32>(p, linear, As::Current)?),
        Width::Qword => cpu.read::<u64>(p, linear, As::Current)?,
    })
}

/// Writes memory.
pub(super) fn store(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    linear: u64,
    width: Width,
    value: u64,
) -> Result<(), Stop> {
    match width {
        Width::Byte => cpu.write(p, linear, value as u8, As::Current),
        Width::Word => cpu.write(p, linear, value as u16, As::Current),
        Width::Dword => cpu.write(p, linear, value as u32, As::Current),
        Width::Qword => cpu.write(p, linear, value, As::Current),
    }
}

/// Replaces memory by a function of it; returns what was there.
pub(super) fn exchange(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    linear: u64,
    width: Width,
    locked: bool,
    f: &mut dyn FnMut(u64) -> u64,
) -> Result<u64, Stop> {
    Ok(match width {
        Width::Byte => {
            u64::from(cpu.update::<u8>(p, linear, locked, &mut |v| f(u64::from(v)) as u8)?)
        }
        Width::Word => {
            u64::from(cpu.update::<u16>(p, linear, locked, &mut |v| f(u64::from(v)) as u16)?)
        }
        Width::Dword => {
            u64::from(cpu.update::<u32>(p, linear, locked, &mut |v| f(u64::from(v)) as u32)?)
        }
        Width::Qword => cpu.update::<u64>(p, linear, locked, f)?,
    })
}

/// Value of an operand. A register or memory is extended with zeros; an immediate is as the
/// decoder extends it, and may have bits outside of the operand.
pub(super) fn read(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    n: u32,
) -> Result<u64, Stop> {
    match i.op_kind(n) {
        OpKind::Register => Ok(get(cpu, i.op_register(n))),
        OpKind::Memory => {
            let width = Width::of_bytes(i.memory_size().size());
            let linear = address(cpu, i, width.bytes(), Access::Read)?;
            load(cpu, p, linear, width)
        }
        _ => Ok(i.immediate(n)),
    }
}

/// Writes a register or memory operand.
pub(super) fn write(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    n: u32,
    value: u64,
) -> Result<(), Stop> {
    if i.op_kind(n) == OpKind::Register {
        set(cpu, i.op_register(n), value);
        return Ok(());
    }
    let width = Width::of_bytes(i.memory_size().size());
    let linear = address(cpu, i, width.bytes(), Access::Write)?;
    store(cpu, p, linear, width, value)
}

/// Replaces operand 0 by a function of it, under the instruction's LOCK prefix if there is one;
/// returns what it was. The function may be called more than once.
pub(super) fn update(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    f: &mut dyn FnMut(u64) -> u64,
) -> Result<u64, Stop> {
    if i.op0_kind() == OpKind::Register {
        let register = i.op0_register();
        let old = get(cpu, register);
        set(cpu, register, f(old));
        return Ok(old);
    }
    let width = Width::of_bytes(i.memory_size().size());
    let linear = address(cpu, i, width.bytes(), Access::Write)?;
    exchange(cpu, p, linear, width, i.has_lock_prefix(), f)
}

/// Width of the stack pointer.
pub(super) fn stack_width(cpu: &Cpu) -> Width {
    if cpu.mode.has(Mode::CODE64) {
        Width::Qword
    } else if cpu.mode.has(Mode::STACK32) {
        Width::Dword
    } else {
        Width::Word
    }
}

/// The stack pointer with this added, as the stack wraps.
pub(super) fn stack_offset(cpu: &Cpu, add: u64) -> u64 {
    cpu.gpr[reg::RSP].wrapping_add(add) & stack_width(cpu).mask()
}

/// Moves the stack pointer.
pub(super) fn move_stack(cpu: &mut Cpu, add: u64) {
    let to = stack_offset(cpu, add);
    put(cpu, reg::RSP, stack_width(cpu), to);
}

/// Linear address of so many bytes at the stack pointer plus `add`.
pub(super) fn stack_address(
    cpu: &Cpu,
    add: u64,
    width: Width,
    access: Access,
) -> Result<u64, Exception> {
    cpu.linear(seg::SS, stack_offset(cpu, add), width.bytes(), access)
}

/// Pushes a value.
pub(super) fn push(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    width: Width,
    value: u64,
) -> Result<(), Stop> {
    let down = width.bytes().wrapping_neg();
    let linear = stack_address(cpu, down, width, Access::Write)?;
    store(cpu, p, linear, width, value)?;
    move_stack(cpu, down);
    Ok(())
}

/// Reads what lies on the stack at the stack pointer plus `add`.
pub(super) fn peek(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    width: Width,
    add: u64,
) -> Result<u64, Stop> {
    let linear = stack_address(cpu, add, width, Access::Read)?;
    load(cpu, p, linear, width)
}

/// Width of what a stack instruction pushes or pops.
pub(super) fn stack_operand(i: &Instruction) -> Width {
    Width::of_bytes(i.stack_pointer_increment().unsigned_abs() as usize)
}

/// Offset of the next instruction.
pub(super) fn next_rip(cpu: &Cpu, i: &Instruction) -> u64 {
    let next = cpu.rip.wrapping_add(i.len() as u64);
    if cpu.mode.has(Mode::CODE64) {
        next
    } else {
        next & 0xffff_ffff
    }
}

/// Checks a near branch target.
pub(super) fn check_target(cpu: &Cpu, target: u64) -> Result<(), Exception> {
    let ok = if cpu.mode.has(Mode::CODE64) {
        (target as i64) << 16 >> 16 == target as i64
    } else {
        target <= u64::from(cpu.segs[seg::CS].limit)
    };
    if ok { Ok(()) } else { Err(Exception::gp(0)) }
}

/// Goes to this offset in the code segment.
pub(super) fn jump(cpu: &mut Cpu, target: u64) -> Result<Flow, Stop> {
    check_target(cpu, target)?;
    cpu.rip = target;
    Ok(Flow::Jumped)
}

/// Replaces the status flags in `mask`.
pub(super) fn set_flags(cpu: &mut Cpu, mask: u64, value: u64) {
    cpu.rflags = cpu.rflags & !mask | value & mask;
}

/// Width of what ENTER or LEAVE pushes or pops.
pub(super) fn width_of_enter(i: &Instruction) -> Width {
    match i.code() {
        Code::Enterw_imm16_imm8 | Code::Leavew => Width::Word,
        Code::Enterd_imm16_imm8 | Code::Leaved => Width::Dword,
        _ => Width::Qword,
    }
}
