//! Bit tests and scans, BMI1, BMI2, POPCNT, CRC32.

use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::Feature;
use x86::cr::rflags::{CF, OF, SF, ZF};

use super::alu;
use super::ops::{self, Width};
use crate::platform::Platform;
use crate::state::{Cpu, reg};
use crate::stop::{Access, Stop};

const BMI1: Feature = Feature::of("bmi1");
const ABM: Feature = Feature::of("abm");

/// BT, BTS, BTR, BTC: only CF is defined afterwards, and nothing else changes.
pub(super) fn bit_test(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let width = ops::width(i, 0);
    let index = ops::read(cpu, p, i, 1)?;
    let bit = 1 << (index & u64::from(width.bits() - 1));
    let mnemonic = i.mnemonic();
    let change = move |old: u64| match mnemonic {
        Mnemonic::Bts => old | bit,
        Mnemonic::Btr => old & !bit,
        _ => old ^ bit,
    };
    let reads = mnemonic == Mnemonic::Bt;
    let old = if !ops::in_memory(i, 0) {
        let register = i.op0_register();
        let old = ops::get(cpu, register);
        if !reads {
            ops::set(cpu, register, change(old));
        }
        old
    } else {
        // A register numbers a bit anywhere in memory, an immediate one of the operand.
        let (mut offset, mask) = ops::effective(cpu, i);
        if i.op1_kind() == OpKind::Register {
            let words = width.signed(index) >> width.bits().trailing_zeros();
            offset = offset.wrapping_add((words as u64).wrapping_mul(width.bytes())) & mask;
        }
        let access = if reads { Access::Read } else { Access::Write };
        let linear = cpu.linear(ops::segment(i), offset, width.bytes(), access)?;
        if reads {
            ops::load(cpu, p, linear, width)?
        } else {
            ops::exchange(cpu, p, linear, width, i.has_lock_prefix(), &mut { change })?
        }
    };
    ops::set_flags(cpu, CF, if old & bit != 0 { CF } else { 0 });
    Ok(())
}

/// BSF and BSR, and TZCNT and LZCNT, which are BSF and BSR on processors without them.
pub(super) fn scan(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let width = ops::width(i, 0);
    let value = ops::read(cpu, p, i, 1)? & width.mask();
    let (forward, counts) = match i.mnemonic() {
        Mnemonic::Bsf => (true, false),
        Mnemonic::Bsr => (false, false),
        Mnemonic::Tzcnt => (true, cpu.features.contains(BMI1)),
        _ => (false, cpu.features.contains(ABM)),
    };
    let zeros = if forward {
        value.trailing_zeros().min(width.bits())
    } else {
        value.leading_zeros() - (64 - width.bits())
    };
    if counts {
        let status = if value == 0 { CF } else { 0 } | if zeros == 0 { ZF } else { 0 };
        ops::set(cpu, i.op0_register(), u64::from(zeros));
        ops::set_flags(cpu, CF | ZF, status);
    } else if value == 0 {
        // The destination stays as it is, upper half included.
        ops::set_flags(cpu, ZF, ZF);
    } else {
        let index = if forward {
            zeros
        } else {
            width.bits() - 1 - zeros
        };
        ops::set(cpu, i.op0_register(), u64::from(index));
        ops::set_flags(cpu, ZF, 0);
    }
    Ok(())
}

/// POPCNT.
pub(super) fn popcnt(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let value = ops::read(cpu, p, i, 1)?;
    ops::set(cpu, i.op0_register(), u64::from(value.count_ones()));
    ops::set_flags(cpu, alu::STATUS, if value == 0 { ZF } else { 0 });
    Ok(())
}

/// CRC32.
pub(super) fn crc32(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let data = ops::read(cpu, p, i, 1)?;
    let crc = ops::get(cpu, i.op0_register());
    let result = alu::crc32(ops::width(i, 1), crc, data);
    ops::set(cpu, i.op0_register(), result);
    Ok(())
}

/// ANDN.
pub(super) fn andn(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let b = ops::read(cpu, p, i, 2)?;
    let a = ops::get(cpu, i.op1_register());
    let (result, flags) = alu::and(ops::width(i, 0), !a, b, cpu.rflags);
    ops::set(cpu, i.op0_register(), result);
    ops::set_flags(cpu, SF | ZF | OF | CF, flags);
    Ok(())
}

/// BLSI, BLSR, BLSMSK.
pub(super) fn lowest(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let width = ops::width(i, 0);
    let a = ops::read(cpu, p, i, 1)?;
    let (result, carry) = match i.mnemonic() {
        Mnemonic::Blsi => (a & a.wrapping_neg(), a != 0),
        Mnemonic::Blsr => (a & a.wrapping_sub(1), a == 0),
        _ => (a ^ a.wrapping_sub(1), a == 0),
    };
    let result = result & width.mask();
    let status = alu::sign_zero_parity(width, result) | if carry { CF } else { 0 };
    ops::set(cpu, i.op0_register(), result);
    ops::set_flags(cpu, SF | ZF | OF | CF, status);
    Ok(())
}

/// BEXTR.
pub(super) fn bextr(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let a = ops::read(cpu, p, i, 1)?;
    let control = ops::get(cpu, i.op2_register());
    let (start, len) = ((control & 0xff) as u32, (control >> 8 & 0xff) as u32);
    let shifted = a.checked_shr(start).unwrap_or(0);
    let result = shifted & !u64::MAX.checked_shl(len).unwrap_or(0);
    ops::set(cpu, i.op0_register(), result);
    ops::set_flags(cpu, ZF | OF | CF, if result == 0 { ZF } else { 0 });
    Ok(())
}

/// BZHI.
pub(super) fn bzhi(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let width = ops::width(i, 0);
    let a = ops::read(cpu, p, i, 1)?;
    let from = (ops::get(cpu, i.op2_register()) & 0xff) as u32;
    let result = a & !u64::MAX.checked_shl(from).unwrap_or(0);
    let carry = if from >= width.bits() { CF } else { 0 };
    let status = alu::sign_zero_parity(width, result) | carry;
    ops::set(cpu, i.op0_register(), result);
    ops::set_flags(cpu, SF | ZF | OF | CF, status);
    Ok(())
}

/// MULX: no flags. The low half is written first, so one register for both gets the high half.
pub(super) fn mulx(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let b = ops::read(cpu, p, i, 2)?;
    let (low, high, _) = alu::mul(ops::width(i, 0), cpu.gpr[reg::RDX], b, 0);
    ops::set(cpu, i.op1_register(), low);
    ops::set(cpu, i.op0_register(), high);
    Ok(())
}

/// PDEP and PEXT.
pub(super) fn deposit_extract(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    f: fn(u64, u64) -> u64,
) -> Result<(), Stop> {
    let mask = ops::read(cpu, p, i, 2)?;
    let source = ops::get(cpu, i.op1_register());
    ops::set(cpu, i.op0_register(), f(source, mask));
    Ok(())
}

/// RORX, SARX, SHLX, SHRX: shifts without flags.
pub(super) fn shift_plain(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    i: &Instruction,
    f: fn(Width, u64, u64, u64) -> (u64, u64),
) -> Result<(), Stop> {
    let a = ops::read(cpu, p, i, 1)?;
    let count = ops::read(cpu, p, i, 2)?;
    let (result, _) = f(ops::width(i, 0), a, count, 0);
    ops::set(cpu, i.op0_register(), result);
    Ok(())
}
