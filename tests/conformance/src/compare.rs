//! Two backends on one case, and the instruction that they differ about.

use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use crate::random::{Generated, Generator};
use crate::{Backend, CODE, Case, DATA_LEN, Outcome, Registers, random, snippet};

/// Takes away differences that are none, because processors differ there too.
fn forgive(case: &Case, expected: &Outcome, got: &mut Outcome) {
    let at = expected.registers.rip.wrapping_sub(CODE) as usize;
    let Some(code) = case.code.get(at..) else {
        return;
    };
    let i = Decoder::with_ip(case.bits(), code, CODE, DecoderOptions::NONE).decode();
    let (Some(fault), Some(other)) = (expected.fault, &mut got.fault) else {
        return;
    };
    // AMD's processors enter MMX state before a conversion to or from MMX registers faults, those
    // of Intel do not.
    if (0..i.op_count()).any(|op| i.op_register(op).is_mm()) {
        got.registers.fpu[2..5].copy_from_slice(&expected.registers.fpu[2..5]);
        got.registers.fpu[32..160].copy_from_slice(&expected.registers.fpu[32..160]);
    }
    // Which part of a long operand is tried first.
    let long = matches!(
        i.mnemonic(),
        Mnemonic::Fldenv | Mnemonic::Frstor | Mnemonic::Fnstenv | Mnemonic::Fnsave
    );
    if long && fault.address >> 12 == other.address >> 12 {
        other.address = fault.address;
    }
    // Whether the result of an unmasked overflow or underflow is inexact besides depends on what
    // it would be without limits of the exponent.
    let word = |o: &Outcome| u32::from(o.registers.fpu[24]) | u32::from(o.registers.fpu[25]) << 8;
    let unmasked = word(expected) & !(word(expected) >> 7);
    if fault.vector == 19 && unmasked & 0x18 != 0 {
        let precision = expected.registers.fpu[24] & 0x20;
        let flags = &mut got.registers.fpu[24];
        *flags = *flags & !0x20 | precision;
    }
    // A dot product has steps, and may stop after any of them.
    let steps = matches!(
        i.mnemonic(),
        Mnemonic::Dpps | Mnemonic::Dppd | Mnemonic::Vdpps | Mnemonic::Vdppd
    );
    if steps && fault.vector == 19 {
        got.registers.fpu[24..28].copy_from_slice(&expected.registers.fpu[24..28]);
    }
}

/// What differs when both run a case.
fn differences(
    oracle: &mut dyn Backend,
    other: &mut dyn Backend,
    case: &Case,
    undefined: u64,
) -> (Outcome, Vec<String>) {
    let (expected, mut got) = (oracle.run(case), other.run(case));
    forgive(case, &expected, &mut got);
    let undefined = if expected.fault.is_some() && !other.exact_flags() {
        Registers::FLAGS
    } else {
        undefined
    };
    let differences = expected.differences(&got, undefined);
    (expected, differences)
}

/// Runs a case on both, and returns how many instructions that were. If they differ: a report
/// with the first instruction after which they do, and the state before it as a snippet.
///
/// # Errors
/// The report.
pub fn agree(
    oracle: &mut dyn Backend,
    other: &mut dyn Backend,
    generated: &Generated,
) -> Result<u64, String> {
    let case = &generated.case;
    let (outcome, found) = differences(oracle, other, case, generated.undefined);
    if found.is_empty() {
        let reached = outcome.registers.rip.wrapping_sub(CODE) as usize;
        let ends = instruction_ends(case);
        return Ok(ends.iter().filter(|&&end| end <= reached).count() as u64);
    }
    Err(report(oracle, other, generated))
}

/// Looks for the instruction.
fn report(oracle: &mut dyn Backend, other: &mut dyn Backend, generated: &Generated) -> String {
    let case = &generated.case;
    let ends = instruction_ends(case);
    let mut before = case.clone();
    let mut start = 0;
    for (n, &end) in ends.iter().enumerate() {
        let undefined = generated
            .instructions
            .get(n)
            .map_or(0, random::undefined_flags);
        // The instruction alone, at its own address.
        let mut one = before.clone();
        one.code = case.code[..end].to_vec();
        one.registers.rip = CODE + start as u64;
        let (expected, differences) = differences(oracle, other, &one, undefined);
        if !differences.is_empty() {
            let title = disassemble(case.bits(), &case.code[start..end], CODE + start as u64);
            let small = minimize(oracle, other, &one, (start, end), undefined);
            let wanted = oracle.run(&small);
            let start = (small.registers.rip - CODE) as usize;
            return format!(
                "{}\n{} / {}:\n  {}\n\n{}",
                title,
                oracle.name(),
                other.name(),
                differences.join("\n  "),
                snippet::write(&small, &wanted, start, undefined),
            );
        }
        if expected.fault.is_some() {
            break;
        }
        before.registers = expected.registers;
        before.memory = expected.memory;
        start = end;
    }
    // Only together.
    let case = &minimize(
        oracle,
        other,
        case,
        (0, case.code.len()),
        generated.undefined,
    );
    let (expected, differences) = differences(oracle, other, case, generated.undefined);
    format!(
        "{}\ntogether, {} / {}:\n  {}\n\n{}",
        disassemble(case.bits(), &case.code, CODE),
        oracle.name(),
        other.name(),
        differences.join("\n  "),
        snippet::write(case, &expected, 0, generated.undefined),
    )
}

/// The same failure with as little state as possible.
fn minimize(
    oracle: &mut dyn Backend,
    other: &mut dyn Backend,
    case: &Case,
    (start, end): (usize, usize),
    undefined: u64,
) -> Case {
    let mut fails = |case: &Case| !differences(oracle, other, case, undefined).1.is_empty();
    let mut best = case.clone();
    let mut attempt = |best: &mut Case, change: &dyn Fn(&mut Case)| {
        let mut next = best.clone();
        change(&mut next);
        if fails(&next) {
            *best = next;
        }
    };
    attempt(&mut best, &|c| {
        c.code = c.code[start..end].to_vec();
        c.registers.rip = CODE;
    });
    let mut chunk = DATA_LEN;
    while chunk >= 8 {
        for at in (0..DATA_LEN).step_by(chunk) {
            if best.memory[at..at + chunk].iter().any(|&b| b != 0) {
                attempt(&mut best, &|c| c.memory[at..at + chunk].fill(0));
            }
        }
        chunk /= 2;
    }
    let reset = Registers::new();
    for n in 0..16 {
        attempt(&mut best, &|c| c.registers.gpr[n] = reset.gpr[n]);
    }
    attempt(&mut best, &|c| c.registers.rflags = 2);
    let words = [0..2, 2..4, 4..5, 24..28].into_iter();
    let x87 = (0..8).map(|n| 32 + 16 * n..48 + 16 * n);
    let xmm = (0..16).map(|n| 160 + 16 * n..176 + 16 * n);
    let high = (0..16).map(|n| 576 + 16 * n..592 + 16 * n);
    for range in words.chain(x87).chain(xmm).chain(high) {
        attempt(&mut best, &|c| {
            c.registers.fpu[range.clone()].copy_from_slice(&reset.fpu[range.clone()]);
        });
    }
    best
}

/// Where each instruction ends.
fn instruction_ends(case: &Case) -> Vec<usize> {
    Decoder::with_ip(case.bits(), &case.code, CODE, DecoderOptions::NONE)
        .iter()
        .map(|i| (i.next_ip() - CODE) as usize)
        .collect()
}

/// One instruction a line.
#[must_use]
pub fn disassemble(bits: u32, code: &[u8], rip: u64) -> String {
    let lines: Vec<String> = Decoder::with_ip(bits, code, rip, DecoderOptions::NONE)
        .iter()
        .map(|i| format!("{:x}: {i}", i.ip()))
        .collect();
    lines.join("\n")
}

/// Cases of 32-bit or 64-bit code from `first`, until `stop` says so; reports of at most `limit` failures.
pub fn search(
    oracle: &mut dyn Backend,
    other: &mut dyn Backend,
    first: u64,
    limit: usize,
    bits: u32,
    stop: &mut dyn FnMut(u64) -> bool,
) -> Vec<String> {
    let mut generator = Generator::new(bits);
    if !oracle.is_host() && !other.is_host() {
        generator = generator.for_guests();
    }
    let mut failures = Vec::new();
    let mut seed = first;
    let mut executed = 0;
    while failures.len() < limit && !stop(executed) {
        let generated = generator.case(seed, 16);
        match agree(oracle, other, &generated) {
            Ok(instructions) => executed += instructions,
            Err(report) => failures.push(format!("seed {seed}\n{report}")),
        }
        seed += 1;
    }
    failures
}
