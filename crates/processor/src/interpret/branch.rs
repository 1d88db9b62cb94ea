//! Near jumps, calls and returns, loops.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use x86::cr::rflags::ZF;

use super::Flow;
use super::data;
use super::ops::{self, Width};
use crate::platform::Platform;
use crate::state::{Cpu, reg};
use crate::stop::Stop;

/// Target of a direct or indirect near branch, and the width of the instruction pointer.
fn target(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(u64, Width), Stop> {
    let width = match i.op0_kind() {
        OpKind::NearBranch16 => Width::Word,
        OpKind::NearBranch32 => Width::Dword,
        OpKind::NearBranch64 => Width::Qword,
        _ => return Ok((ops::read(cpu, p, i, 0)?, ops::width(i, 0))),
    };
    let distance = i.near_branch_target().wrapping_sub(i.next_ip());
    let target = ops::next_rip(cpu, i).wrapping_add(distance) & width.mask();
    Ok((target, width))
}

/// JMP.
pub(super) fn jmp(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
    let (target, _) = target(cpu, p, i)?;
    ops::jump(cpu, target)
}

/// Jcc.
pub(super) fn jcc(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
    if data::holds(cpu, i) {
        jmp(cpu, p, i)
    } else {
        Ok(Flow::Next)
    }
}

/// CALL.
pub(super) fn call(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
    let (target, width) = target(cpu, p, i)?;
    ops::check_target(cpu, target)?;
    let back = ops::next_rip(cpu, i);
    ops::push(cpu, p, width, back)?;
    cpu.rip = target;
    Ok(Flow::Jumped)
}

/// RET.
pub(super) fn ret(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
    let width = match i.code() {
        Code::Retnw | Code::Retnw_imm16 => Width::Word,
        Code::Retnd | Code::Retnd_imm16 => Width::Dword,
        _ => Width::Qword,
    };
    let extra = match i.op_count() {
        0 => 0,
        _ => u64::from(i.immediate16()),
    };
    let target = ops::peek(cpu, p, width, 0)?;
    ops::check_target(cpu, target)?;
    ops::move_stack(cpu, width.bytes().wrapping_add(extra));
    cpu.rip = target;
    Ok(Flow::Jumped)
}

/// LOOP, LOOPE, LOOPNE, and JCXZ, JECXZ, JRCXZ.
pub(super) fn count(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
    let width = match i.code() {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX
        | Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32 => Width::Word,
        Code::Loop_rel8_16_ECX
        | Code::Loop_rel8_32_ECX
        | Code::Loop_rel8_64_ECX
        | Code::Loope_rel8_16_ECX
        | Code::Loope_rel8_32_ECX
        | Code::Loope_rel8_64_ECX
        | Code::Loopne_rel8_16_ECX
        | Code::Loopne_rel8_32_ECX
        | Code::Loopne_rel8_64_ECX
        | Code::Jecxz_rel8_16
        | Code::Jecxz_rel8_32
        | Code::Jecxz_rel8_64 => Width::Dword,
        _ => Width::Qword,
    };
    let old = cpu.gpr[reg::RCX];
    let zero = cpu.rflags & ZF != 0;
    let mnemonic = i.mnemonic();
    let (left, condition) = match mnemonic {
        Mnemonic::Loop => (old.wrapping_sub(1), true),
        Mnemonic::Loope => (old.wrapping_sub(1), zero),
        Mnemonic::Loopne => (old.wrapping_sub(1), !zero),
        _ => (old, old & width.mask() == 0),
    };
    let counts = matches!(
        mnemonic,
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne
    );
    let taken = condition && (!counts || left & width.mask() != 0);
    let flow = if taken { jmp(cpu, p, i)? } else { Flow::Next };
    if counts {
        ops::put(cpu, reg::RCX, width, left);
    }
    Ok(flow)
}
