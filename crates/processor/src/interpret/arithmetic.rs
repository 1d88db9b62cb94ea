//! Addition to division, logic, comparison, shifts and decimal adjustment.

use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::cr::rflags::{AF, CF, OF};

use super::alu;
use super::ops::{self, Width};
use crate::platform::Platform;
use crate::state::{Cpu, reg};
use crate::stop::{Exception, Stop};

type Division = fn(Width, u64, u64, u64) -> Option<(u64, u64)>;
type Double = fn(Width, u64, u64, u64, u64) -> (u64, u64);

/// `op0 = f(op0, op1)`: ADD to XOR, shifts and rotates.
pub(super) fn binary(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    f: impl Fn(Width, u64, u64, u64) -> (u64, u64),
) -> Result<(), Stop> {
    let b = ops::read(cpu, p, i, 1)?;
    let width = ops::width(i, 0);
    let flags = cpu.rflags;
    if i.op0_kind() == OpKind::Register {
        let register = i.op0_register();
        let (result, new) = f(width, ops::get(cpu, register), b, flags);
        ops::set(cpu, register, result);
        cpu.rflags = new;
        return Ok(());
    }
    let mut new = flags;
    ops::update(cpu, p, i, &mut |a| {
        let (result, status) = f(width, a, b, flags);
        new = status;
        result
    })?;
    cpu.rflags = new;
    Ok(())
}

/// `f(op0, op1)` for its flags only: CMP and TEST.
pub(super) fn compare(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    f: impl Fn(Width, u64, u64, u64) -> (u64, u64),
) -> Result<(), Stop> {
    let a = ops::read(cpu, p, i, 0)?;
    let b = ops::read(cpu, p, i, 1)?;
    cpu.rflags = f(ops::width(i, 0), a, b, cpu.rflags).1;
    Ok(())
}

/// `op0 = f(op0)`: INC, DEC, NEG.
pub(super) fn unary(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    f: impl Fn(Width, u64, u64) -> (u64, u64),
) -> Result<(), Stop> {
    let width = ops::width(i, 0);
    let flags = cpu.rflags;
    let mut new = flags;
    ops::update(cpu, p, i, &mut |a| {
        let (result, status) = f(width, a, flags);
        new = status;
        result
    })?;
    cpu.rflags = new;
    Ok(())
}

/// NOT.
pub(super) fn not(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    ops::update(cpu, p, i, &mut |a| !a)?;
    Ok(())
}

/// SHLD and SHRD.
pub(super) fn double_shift(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    f: Double,
) -> Result<(), Stop> {
    let source = ops::read(cpu, p, i, 1)?;
    let count = ops::read(cpu, p, i, 2)?;
    let width = ops::width(i, 0);
    let flags = cpu.rflags;
    let mut new = flags;
    ops::update(cpu, p, i, &mut |a| {
        let (result, status) = f(width, a, source, count, flags);
        new = status;
        result
    })?;
    cpu.rflags = new;
    Ok(())
}

/// ADCX and ADOX: an addition with one carry flag that leaves all others alone.
pub(super) fn add_carry(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    flag: u64,
) -> Result<(), Stop> {
    let b = ops::read(cpu, p, i, 1)?;
    let a = ops::read(cpu, p, i, 0)?;
    let carry = if cpu.rflags & flag != 0 { CF } else { 0 };
    let (result, status) = alu::adc(ops::width(i, 0), a, b, carry);
    ops::write(cpu, p, i, 0, result)?;
    let out = if status & CF != 0 { flag } else { 0 };
    ops::set_flags(cpu, flag, out);
    Ok(())
}

/// Writes the two halves of a product or the quotient and remainder: AX, or DX:AX and up.
fn set_pair(cpu: &mut Cpu, width: Width, low: u64, high: u64) {
    if width == Width::Byte {
        ops::put(cpu, reg::RAX, Width::Word, low & 0xff | (high & 0xff) << 8);
    } else {
        ops::put(cpu, reg::RAX, width, low);
        ops::put(cpu, reg::RDX, width, high);
    }
}

/// MUL, and IMUL with one operand.
pub(super) fn multiply(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    f: fn(Width, u64, u64, u64) -> (u64, u64, u64),
) -> Result<(), Stop> {
    let b = ops::read(cpu, p, i, 0)?;
    let width = ops::width(i, 0);
    let (low, high, flags) = f(width, cpu.gpr[reg::RAX], b, cpu.rflags);
    set_pair(cpu, width, low, high);
    cpu.rflags = flags;
    Ok(())
}

/// IMUL in its three forms.
pub(super) fn imul(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let (a, b) = match i.op_count() {
        1 => return multiply(cpu, p, i, alu::imul),
        2 => (0, 1),
        _ => (1, 2),
    };
    let a = ops::read(cpu, p, i, a)?;
    let b = ops::read(cpu, p, i, b)?;
    let (low, _, flags) = alu::imul(ops::width(i, 0), a, b, cpu.rflags);
    ops::write(cpu, p, i, 0, low)?;
    cpu.rflags = flags;
    Ok(())
}

/// DIV and IDIV. The status flags are undefined after them, and stay.
pub(super) fn divide(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    f: Division,
) -> Result<(), Stop> {
    let divisor = ops::read(cpu, p, i, 0)?;
    let width = ops::width(i, 0);
    let low = cpu.gpr[reg::RAX];
    let high = if width == Width::Byte {
        low >> 8
    } else {
        cpu.gpr[reg::RDX]
    };
    let (quotient, remainder) =
        f(width, high, low, divisor).ok_or(Exception::plain(Exception::DE))?;
    set_pair(cpu, width, quotient, remainder);
    Ok(())
}

/// AAA, AAS, AAD, AAM, DAA, DAS.
pub(super) fn decimal(cpu: &mut Cpu, i: &Instruction) -> Result<(), Stop> {
    let ax = cpu.gpr[reg::RAX] & 0xffff;
    let (al, ah) = (ax & 0xff, ax >> 8);
    let radix = match i.op_count() {
        0 => 10,
        _ if i.op0_kind() == OpKind::Immediate8 => u64::from(i.immediate8()),
        _ => 10,
    };
    match i.mnemonic() {
        Mnemonic::Daa | Mnemonic::Das => {
            let subtract = i.mnemonic() == Mnemonic::Das;
            let (al, flags) = alu::decimal_adjust(al, subtract, cpu.rflags);
            ops::put(cpu, reg::RAX, Width::Byte, al);
            cpu.rflags = flags;
        }
        Mnemonic::Aaa | Mnemonic::Aas => {
            let adjust = al & 0xf > 9 || cpu.rflags & AF != 0;
            let adjusted = match (adjust, i.mnemonic()) {
                (false, _) => ax,
                (true, Mnemonic::Aaa) => ax.wrapping_add(0x106),
                (true, _) => ax.wrapping_sub(0x106),
            };
            let status = if adjust { AF | CF } else { 0 };
            ops::put(cpu, reg::RAX, Width::Word, adjusted & 0xff0f);
            ops::set_flags(cpu, AF | CF, status);
        }
        Mnemonic::Aam => {
            let quotient = al.checked_div(radix);
            let quotient = quotient.ok_or(Exception::plain(Exception::DE))?;
            let result = al % radix;
            ops::put(cpu, reg::RAX, Width::Word, quotient << 8 | result);
            let status = alu::sign_zero_parity(Width::Byte, result);
            ops::set_flags(cpu, alu::STATUS & !(OF | AF | CF), status);
        }
        _ => {
            let result = al.wrapping_add(ah.wrapping_mul(radix)) & 0xff;
            ops::put(cpu, reg::RAX, Width::Word, result);
            let status = alu::sign_zero_parity(Width::Byte, result);
            ops::set_flags(cpu, alu::STATUS & !(OF | AF | CF), status);
        }
    }
    Ok(())
}
