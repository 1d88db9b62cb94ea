//! PUSH, POP, their forms for all registers and for flags, ENTER and LEAVE.

use iced_x86::{Instruction, OpKind};
use x86::cr::rflags;

use super::data;
use super::ops::{self, Width};
use crate::mmu::As;
use crate::platform::Platform;
use crate::state::{Cpu, Mode, reg, seg};
use crate::stop::{Access, Exception, Stop};

/// PUSH of a register, memory, an immediate or a segment register.
pub(super) fn push(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let value = match i.op0_kind() {
        OpKind::Register if i.op0_register().is_segment_register() => {
            data::selector(cpu, i.op0_register())
        }
        _ => ops::read(cpu, p, i, 0)?,
    };
    ops::push(cpu, p, ops::stack_operand(i), value)
}

/// POP of a register or memory, whose address is computed with the new stack pointer.
pub(super) fn pop(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let width = ops::stack_operand(i);
    let value = ops::peek(cpu, p, width, 0)?;
    let old = cpu.gpr[reg::RSP];
    ops::move_stack(cpu, width.bytes());
    let done = ops::write(cpu, p, i, 0, value);
    if done.is_err() {
        cpu.gpr[reg::RSP] = old;
    }
    done
}

/// Linear address of the push number `n`, from zero.
fn push_address(cpu: &Cpu, n: usize, width: Width) -> Result<u64, Exception> {
    let down = (n as u64 + 1).wrapping_mul(width.bytes()).wrapping_neg();
    ops::stack_address(cpu, down, width, Access::Write)
}

/// PUSHA and PUSHAD.
pub(super) fn push_registers(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    width: Width,
) -> Result<(), Stop> {
    for n in 0..8 {
        let linear = push_address(cpu, n, width)?;
        cpu.probe(linear, width.bytes(), Access::Write, As::Current)?;
    }
    for n in 0..8 {
        let linear = push_address(cpu, n, width)?;
        let value = cpu.gpr[n];
        ops::store(cpu, p, linear, width, value)?;
    }
    ops::move_stack(cpu, (8 * width.bytes()).wrapping_neg());
    Ok(())
}

/// POPA and POPAD: what was pushed for the stack pointer is skipped.
pub(super) fn pop_registers(cpu: &mut Cpu, p: &mut dyn Platform, width: Width) -> Result<(), Stop> {
    let mut values = [0; 8];
    let places = (0_u64..).map(|n| n * width.bytes());
    for (value, at) in values.iter_mut().rev().zip(places) {
        *value = ops::peek(cpu, p, width, at)?;
    }
    ops::move_stack(cpu, 8 * width.bytes());
    for (n, value) in values.into_iter().enumerate() {
        if n != reg::RSP {
            ops::put(cpu, n, width, value);
        }
    }
    Ok(())
}

/// In virtual-8086 mode PUSHF and POPF need IOPL 3, or CR4.VME and 16 bits.
fn check_vm86(cpu: &Cpu, width: Width) -> Result<(), Exception> {
    let extended = cpu.has_virtual_8086_flag() && width == Width::Word;
    if cpu.mode.has(Mode::VM86) && cpu.rflags & rflags::IOPL != rflags::IOPL && !extended {
        return Err(Exception::gp(0));
    }
    Ok(())
}

/// PUSHF, PUSHFD, PUSHFQ: VM and RF are pushed as zeros.
pub(super) fn push_flags(cpu: &mut Cpu, p: &mut dyn Platform, width: Width) -> Result<(), Stop> {
    check_vm86(cpu, width)?;
    let value = if cpu.has_virtual_8086_flag() {
        cpu.virtual_8086_flags()
    } else {
        cpu.rflags & !(rflags::VM | rflags::RF)
    };
    ops::push(cpu, p, width, value)
}

/// POPF, POPFD, POPFQ.
pub(super) fn pop_flags(cpu: &mut Cpu, p: &mut dyn Platform, width: Width) -> Result<(), Stop> {
    use rflags::{AC, AF, CF, DF, ID, IF, IOPL, NT, OF, PF, RF, SF, TF, ZF};

    check_vm86(cpu, width)?;
    let value = ops::peek(cpu, p, width, 0)?;
    if cpu.has_virtual_8086_flag() {
        cpu.check_virtual_8086_flags(value)?;
        ops::move_stack(cpu, width.bytes());
        cpu.load_virtual_8086_flags(value);
        return Ok(());
    }
    ops::move_stack(cpu, width.bytes());
    let mut mask = CF | PF | AF | ZF | SF | TF | DF | OF | NT | AC | ID;
    let iopl = (cpu.rflags & IOPL) >> IOPL.trailing_zeros();
    let protected = cpu.mode.has(Mode::PROTECTED);
    if !protected || cpu.cpl() == 0 {
        mask |= IOPL;
    }
    if !protected || u64::from(cpu.cpl()) <= iopl {
        mask |= IF;
    }
    let mask = mask & width.mask();
    let cleared = RF & width.mask();
    cpu.rflags = cpu.rflags & !(mask | cleared) | value & mask;
    cpu.update_mode();
    Ok(())
}

/// ENTER: a new stack frame, with copies of the outer ones' frame pointers.
pub(super) fn enter(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let width = ops::width_of_enter(i);
    let size = u64::from(i.immediate16());
    let level = usize::from(i.immediate8_2nd() & 31);
    let stack = ops::stack_width(cpu);
    let rbp = cpu.gpr[reg::RBP];
    let frame = ops::stack_offset(cpu, width.bytes().wrapping_neg());

    let count = if level == 0 { 1 } else { level + 1 };
    // Frame pointer `n` of the outer frames, and the place of the push `n`.
    let outer = |cpu: &Cpu, n: usize| {
        let below = (n as u64).wrapping_mul(width.bytes());
        let offset = rbp.wrapping_sub(below) & stack.mask();
        cpu.linear(seg::SS, offset, width.bytes(), Access::Read)
    };
    // The new top of the stack must be writable, though nothing is written there.
    let pushed = (count as u64).wrapping_mul(width.bytes());
    let down = pushed.wrapping_add(size).wrapping_neg();
    let top = ops::stack_address(cpu, down, width, Access::Write)?;
    cpu.probe(top, width.bytes(), Access::Write, As::Current)?;
    for n in 0..count {
        let linear = push_address(cpu, n, width)?;
        cpu.probe(linear, width.bytes(), Access::Write, As::Current)?;
        if (1..level).contains(&n) {
            let linear = outer(cpu, n)?;
            cpu.probe(linear, width.bytes(), Access::Read, As::Current)?;
        }
    }
    // What is pushed may be read again as an outer frame pointer.
    for n in 0..count {
        let value = if n == 0 {
            rbp
        } else if n < level {
            let linear = outer(cpu, n)?;
            ops::load(cpu, p, linear, width)?
        } else {
            frame
        };
        let linear = push_address(cpu, n, width)?;
        ops::store(cpu, p, linear, width, value)?;
    }
    ops::move_stack(cpu, down);
    ops::put(cpu, reg::RBP, width, frame);
    Ok(())
}

/// LEAVE: back to the frame before.
pub(super) fn leave(cpu: &mut Cpu, p: &mut dyn Platform, width: Width) -> Result<(), Stop> {
    let stack = ops::stack_width(cpu);
    let at = cpu.gpr[reg::RBP] & stack.mask();
    let linear = cpu.linear(seg::SS, at, width.bytes(), Access::Read)?;
    let value = ops::load(cpu, p, linear, width)?;
    ops::put(cpu, reg::RSP, stack, at.wrapping_add(width.bytes()));
    ops::put(cpu, reg::RBP, width, value);
    Ok(())
}
