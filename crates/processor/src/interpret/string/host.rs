//! Many iterations at once: the host's own string instructions on the guest's RAM.
#![allow(
    unsafe_code,
    reason = "guest memory is reached by address, with the very instructions the guest asked for"
)]

use std::arch::asm;

use super::{Kind, Op, advance, alu, ops, span};
use crate::interpret::ops::Width;
use crate::mmu::{self, TlbEntry};
use crate::state::{Cpu, Mode, reg, seg};
use crate::stop::Access;

/// Does iterations in RAM, in one page of the source and one of the destination, and tells how
/// many. `None`: it takes single ones.
pub(super) fn at_once(cpu: &mut Cpu, op: Op, count: u64, until_different: bool) -> Option<u64> {
    // Single steps are of one iteration, alignment checks are made for each, and LODS is not
    // repeated by anybody.
    if op.kind == Kind::Lods || cpu.mode.has(Mode::STEP) || cpu.mode.has(Mode::ALIGNMENT) {
        return None;
    }
    let size = op.width.bytes();
    let mut count = count;
    let mut source = 0;
    if op.kind.uses_source() {
        let offset = cpu.gpr[reg::RSI] & op.address.mask();
        let (linear, fit) = span(cpu, op, op.segment, offset, Access::Read, count)?;
        count = fit;
        source = host_address(cpu, linear, size, Access::Read)?;
    }
    let offset = cpu.gpr[reg::RDI] & op.address.mask();
    let access = if op.kind.writes() {
        Access::Write
    } else {
        Access::Read
    };
    let (linear, count) = span(cpu, op, seg::ES, offset, access, count)?;
    let destination = host_address(cpu, linear, size, access)?;
    let accumulator = cpu.gpr[reg::RAX];
    // SAFETY: `span` found that all elements lie in the pages of the first ones, and the soft TLB
    // named those as RAM, mapped at the host addresses and accessible as needed; nothing changes
    // the map before the call.
    let (done, flags) =
        unsafe { run(op, until_different, count, source, destination, accumulator) };
    if op.kind.compares() {
        ops::set_flags(cpu, alu::STATUS, flags);
    }
    advance(cpu, op, done);
    Some(done)
}

/// Address in this process of RAM that the soft TLB knows or gets to know. It stays right when
/// another entry takes the place of this one: the map of RAM is the same until this instruction
/// is over.
fn host_address(cpu: &mut Cpu, linear: u64, size: u64, access: Access) -> Option<u64> {
    let view = cpu.view();
    let hit = |tag: u64| linear.wrapping_sub(tag) <= 0x1000 - size;
    let known = |entry: &TlbEntry| match access {
        Access::Write => hit(entry.write),
        _ => hit(entry.read),
    };
    let slot = mmu::slot(linear);
    let entry = &cpu.tlb[view][slot];
    if !known(entry) {
        // What can be read only now takes a closer look: it is clean, or holds code.
        if hit(entry.read) {
            return None;
        }
        cpu.fill(linear, access, view).ok()?;
    }
    let entry = &cpu.tlb[view][slot];
    known(entry).then(|| linear.wrapping_add(entry.addend))
}

/// Runs a repeated string instruction; returns how many iterations it did, and the flags.
///
/// # Safety
/// All `count` elements, upwards or downwards from the host addresses `source` (if the
/// instruction has one) and `destination`, are mapped and accessible, and no Rust reference to
/// them exists.
unsafe fn run(
    op: Op,
    until_different: bool,
    count: u64,
    source: u64,
    destination: u64,
    accumulator: u64,
) -> (u64, u64) {
    let mut left = count;
    let flags: u64;
    macro_rules! host {
        ($($instruction:literal),+) => {
            // SAFETY: the caller's promise; the direction flag is clear again afterwards.
            unsafe {
                asm!(
                    $($instruction,)+
                    "pushfq",
                    "pop {flags}",
                    "cld",
                    flags = lateout(reg) flags,
                    inout("rcx") left,
                    inout("rsi") source => _,
                    inout("rdi") destination => _,
                    in("rax") accumulator,
                )
            }
        };
    }
    macro_rules! widths {
        ($b:literal, $w:literal, $d:literal, $q:literal) => {
            match (op.width, op.backward) {
                (Width::Byte, false) => host!($b),
                (Width::Word, false) => host!($w),
                (Width::Dword, false) => host!($d),
                (Width::Qword, false) => host!($q),
                (Width::Byte, true) => host!("std", $b),
                (Width::Word, true) => host!("std", $w),
                (Width::Dword, true) => host!("std", $d),
                (Width::Qword, true) => host!("std", $q),
            }
        };
    }
    match (op.kind, until_different) {
        (Kind::Movs, _) => widths!("rep movsb", "rep movsw", "rep movsd", "rep movsq"),
        (Kind::Stos, _) => widths!("rep stosb", "rep stosw", "rep stosd", "rep stosq"),
        (Kind::Lods, _) => widths!("rep lodsb", "rep lodsw", "rep lodsd", "rep lodsq"),
        (Kind::Cmps, true) => widths!("repe cmpsb", "repe cmpsw", "repe cmpsd", "repe cmpsq"),
        (Kind::Cmps, false) => widths!("repne cmpsb", "repne cmpsw", "repne cmpsd", "repne cmpsq"),
        (Kind::Scas, true) => widths!("repe scasb", "repe scasw", "repe scasd", "repe scasq"),
        (Kind::Scas, false) => widths!("repne scasb", "repne scasw", "repne scasd", "repne scasq"),
    }
    (count.wrapping_sub(left), flags)
}
