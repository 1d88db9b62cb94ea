//! MOVS, CMPS, SCAS, LODS, STOS. An iteration of a repeated one is an instruction of its own;
//! where all is RAM, those within a page are done at once.

use iced_x86::{Instruction, OpKind};
use x86::cr::rflags::{DF, ZF};

use super::Flow;
use super::alu;
use super::ops::{self, Width};
use crate::platform::Platform;
use crate::state::{Cpu, Mode, reg, seg};
use crate::stop::{Access, Stop};

mod host;

/// Which string instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Movs,
    Cmps,
    Scas,
    Lods,
    Stos,
}

impl Kind {
    fn uses_source(self) -> bool {
        matches!(self, Kind::Movs | Kind::Cmps | Kind::Lods)
    }

    fn uses_destination(self) -> bool {
        self != Kind::Lods
    }

    fn writes(self) -> bool {
        matches!(self, Kind::Movs | Kind::Stos)
    }

    /// Whether repetition also depends on ZF.
    fn compares(self) -> bool {
        matches!(self, Kind::Cmps | Kind::Scas)
    }
}

/// The instruction at hand.
#[derive(Debug, Clone, Copy)]
struct Op {
    kind: Kind,
    /// Of an element.
    width: Width,
    /// Of the index registers and the counter.
    address: Width,
    /// Segment of the source.
    segment: usize,
    backward: bool,
}

/// Executes one iteration, or as many as a page allows.
pub(super) fn execute(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    kind: Kind,
    width: Width,
) -> Result<Flow, Stop> {
    let op = Op {
        kind,
        width,
        address: address_width(i),
        segment: ops::segment(i),
        backward: cpu.rflags & DF != 0,
    };
    let until_different = i.has_rep_prefix();
    if !until_different && !i.has_repne_prefix() {
        iterate(cpu, p, op)?;
        return Ok(Flow::Next);
    }
    let count = cpu.gpr[reg::RCX] & op.address.mask();
    if count == 0 {
        return Ok(Flow::Next);
    }
    let done = match host::at_once(cpu, op, count, until_different) {
        Some(done) => done,
        None => {
            iterate(cpu, p, op)?;
            1
        }
    };
    let left = count.wrapping_sub(done);
    ops::put(cpu, reg::RCX, op.address, left);
    let over = kind.compares() && (cpu.rflags & ZF != 0) != until_different;
    // Not over: the instruction pointer stays where it is.
    Ok(if left == 0 || over {
        Flow::Next
    } else {
        Flow::Jumped
    })
}

fn address_width(i: &Instruction) -> Width {
    let of = |kind: OpKind| match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Width::Word),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Width::Dword),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Width::Qword),
        _ => None,
    };
    of(i.op0_kind())
        .or_else(|| of(i.op1_kind()))
        .unwrap_or(Width::Qword)
}

/// One iteration, but for the counter.
fn iterate(cpu: &mut Cpu, p: &mut dyn Platform, op: Op) -> Result<(), Stop> {
    let (width, size) = (op.width, op.width.bytes());
    let index = |cpu: &Cpu, n: usize| cpu.gpr[n] & op.address.mask();
    let accumulator = cpu.gpr[reg::RAX];
    let mut source = accumulator;
    if op.kind.uses_source() {
        let linear = cpu.linear(op.segment, index(cpu, reg::RSI), size, Access::Read)?;
        source = ops::load(cpu, p, linear, width)?;
    }
    if op.kind.writes() {
        let linear = cpu.linear(seg::ES, index(cpu, reg::RDI), size, Access::Write)?;
        ops::store(cpu, p, linear, width, source)?;
    } else if op.kind.compares() {
        let linear = cpu.linear(seg::ES, index(cpu, reg::RDI), size, Access::Read)?;
        let other = ops::load(cpu, p, linear, width)?;
        cpu.rflags = alu::sub(width, source, other, cpu.rflags).1;
    } else {
        ops::put(cpu, reg::RAX, width, source);
    }
    advance(cpu, op, 1);
    Ok(())
}

/// Moves the index registers.
fn advance(cpu: &mut Cpu, op: Op, elements: u64) {
    let distance = elements.wrapping_mul(op.width.bytes());
    let step = if op.backward {
        distance.wrapping_neg()
    } else {
        distance
    };
    let mut add = |n: usize| {
        let to = cpu.gpr[n].wrapping_add(step);
        ops::put(cpu, n, op.address, to);
    };
    if op.kind.uses_source() {
        add(reg::RSI);
    }
    if op.kind.uses_destination() {
        add(reg::RDI);
    }
}

/// How many elements from this offset on, at most `count`, lie in one page and in the segment,
/// and the address of the first. `None`: that takes a closer look.
fn span(
    cpu: &Cpu,
    op: Op,
    segment: usize,
    offset: u64,
    access: Access,
    count: u64,
) -> Option<(u64, u64)> {
    let size = op.width.bytes();
    let linear = cpu.linear(segment, offset, size, access).ok()?;
    let in_page = linear & 0xfff;
    if in_page > 0x1000 - size {
        return None;
    }
    let room = |at: u64, end: u64| {
        if op.backward {
            at / size + 1
        } else {
            (end - at) / size
        }
    };
    let mut count = count.min(room(in_page, 0x1000));
    if !cpu.mode.has(Mode::CODE64) || op.address != Width::Qword {
        let end = op.address.mask() + u64::from(op.address != Width::Qword);
        count = count.min(room(offset, end));
        let others = (count.checked_sub(1)?) * size;
        let low = if op.backward { offset - others } else { offset };
        cpu.linear(segment, low, count * size, access).ok()?;
    }
    (count > 0).then_some((linear, count))
}
