//! IN, OUT, INS and OUTS.

use iced_x86::Instruction;

use crate::interpret::Flow;
use crate::mmu::As;
use crate::platform::Platform;
use crate::state::{Cpu, reg, seg};
use crate::stop::{Access, DeviceRequest, Exception, Stop};
use crate::system::operand::{address_size, port, set_register};
use x86::cr::rflags;

fn read(cpu: &mut Cpu, p: &mut dyn Platform, port: u16, size: u8) -> Result<u64, Stop> {
    cpu.ask(p, DeviceRequest::PortRead { port, size })
}

fn write(cpu: &mut Cpu, p: &mut dyn Platform, port: u16, size: u8, value: u32) -> Result<(), Stop> {
    cpu.ask(p, DeviceRequest::PortWrite { port, size, value })?;
    Ok(())
}

fn cut(value: u64, size: u8) -> u64 {
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        _ => value & 0xffff_ffff,
    }
}

pub(super) fn input(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let (at, size) = port(cpu, i).ok_or(Exception::ud())?;
    cpu.check_port(p, at, size)?;
    let value = read(cpu, p, at, size)?;
    if size == 1 {
        let rax = &mut cpu.gpr[reg::RAX];
        *rax = *rax & !0xff | value & 0xff;
    } else {
        set_register(cpu, i.op0_register(), value);
    }
    Ok(())
}

pub(super) fn output(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let (at, size) = port(cpu, i).ok_or(Exception::ud())?;
    cpu.check_port(p, at, size)?;
    let value = cut(cpu.gpr[reg::RAX], size) as u32;
    write(cpu, p, at, size, value)
}

/// A register of a string instruction, cut to its address size.
fn pointer(cpu: &Cpu, which: usize, width: usize) -> u64 {
    let value = cpu.gpr[which];
    match width {
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

fn add(cpu: &mut Cpu, which: usize, width: usize, delta: u64) {
    let slot = &mut cpu.gpr[which];
    let sum = slot.wrapping_add(delta);
    *slot = match width {
        2 => *slot & !0xffff | sum & 0xffff,
        4 => sum & 0xffff_ffff,
        _ => sum,
    };
}

/// Moves the pointer, counts, and tells whether the instruction is done.
fn iterate(cpu: &mut Cpu, i: &Instruction, which: usize, width: usize, size: u8) -> Flow {
    let step = u64::from(size);
    let delta = if cpu.rflags & rflags::DF != 0 {
        step.wrapping_neg()
    } else {
        step
    };
    add(cpu, which, width, delta);
    if !repeats(i) {
        return Flow::Next;
    }
    add(cpu, reg::RCX, width, !0);
    if pointer(cpu, reg::RCX, width) == 0 {
        Flow::Next
    } else {
        Flow::Jumped
    }
}

fn repeats(i: &Instruction) -> bool {
    i.has_rep_prefix() || i.has_repne_prefix()
}

/// What both string instructions begin with: port, size of an item and width of the pointers;
/// nothing if there is no iteration to make.
fn string(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
) -> Result<Option<(u16, u8, usize)>, Stop> {
    let (at, size) = port(cpu, i).ok_or(Exception::ud())?;
    cpu.check_port(p, at, size)?;
    let width = address_size(cpu, i);
    let done = repeats(i) && pointer(cpu, reg::RCX, width) == 0;
    Ok((!done).then_some((at, size, width)))
}

pub(super) fn input_string(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
) -> Result<Flow, Stop> {
    let Some((at, size, width)) = string(cpu, p, i)? else {
        return Ok(Flow::Next);
    };
    let offset = pointer(cpu, reg::RDI, width);
    let linear = cpu.linear(seg::ES, offset, size.into(), Access::Write)?;
    // What is read from the device must not be lost to a page fault.
    cpu.probe(linear, size.into(), Access::Write, As::Current)?;
    let value = read(cpu, p, at, size)?;
    match size {
        1 => cpu.write::<u8>(p, linear, value as u8, As::Current)?,
        2 => cpu.write::<u16>(p, linear, value as u16, As::Current)?,
        _ => cpu.write::<u32>(p, linear, value as u32, As::Current)?,
    }
    Ok(iterate(cpu, i, reg::RDI, width, size))
}

pub(super) fn output_string(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
) -> Result<Flow, Stop> {
    let Some((at, size, width)) = string(cpu, p, i)? else {
        return Ok(Flow::Next);
    };
    let offset = pointer(cpu, reg::RSI, width);
    let segment = i.memory_segment().number();
    let linear = cpu.linear(segment, offset, size.into(), Access::Read)?;
    let value = match size {
        1 => cpu.read::<u8>(p, linear, As::Current)?.into(),
        2 => cpu.read::<u16>(p, linear, As::Current)?.into(),
        _ => cpu.read::<u32>(p, linear, As::Current)?,
    };
    write(cpu, p, at, size, value)?;
    Ok(iterate(cpu, i, reg::RSI, width, size))
}
