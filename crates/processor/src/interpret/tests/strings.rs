//! String instructions: page boundaries, faults between iterations, direction, overlap, segments.

use x86::cr::rflags::{CF, DF, ZF};

use super::guest::Guest;
use crate::interpret::{self, Flow};
use crate::state::{Mode, reg, seg};
use crate::{Exception, Stop};

const PAGE: u64 = 0x40_0000;
/// Where the physical page of [`PAGE`] appears again.
const ALIAS: u64 = 0x60_0000;

/// Three pages, and the first of them once more.
fn long() -> Guest {
    Guest::long(&[
        (PAGE, 0x1_0000),
        (PAGE + 0x1000, 0x1_8000),
        (PAGE + 0x2000, 0x1_4000),
        (ALIAS, 0x1_0000),
    ])
}

fn set(guest: &mut Guest, rsi: u64, rdi: u64, rcx: u64) {
    guest.cpu.gpr[reg::RSI] = rsi;
    guest.cpu.gpr[reg::RDI] = rdi;
    guest.cpu.gpr[reg::RCX] = rcx;
}

fn pattern<const N: usize>(seed: u8) -> [u8; N] {
    std::array::from_fn(|n| (n as u8).wrapping_mul(7).wrapping_add(n as u8 >> 3) ^ seed)
}

const REP_MOVS: [&[u8]; 4] = [
    &[0xf3, 0xa4],
    &[0x66, 0xf3, 0xa5],
    &[0xf3, 0xa5],
    &[0xf3, 0x48, 0xa5],
];

/// Copies of every width, alignment and direction across pages equal one made byte by byte.
#[test]
fn copies_across_pages() {
    const LEN: usize = 0x2000;
    for (log, code) in REP_MOVS.into_iter().enumerate() {
        for (from, to, bytes) in [
            (0xff3, 0x1f35, 200),
            (0x1801, 0x7fd, 0x600),
            (0x10, 0x1009, 0xff0),
        ] {
            for backward in [false, true] {
                let mut guest = long();
                let before = pattern::<LEN>(log as u8);
                guest.put(PAGE, &before);
                let size = 1_u64 << log;
                let count = bytes >> log;
                let last = (count - 1) << log;
                let start = if backward { last } else { 0 };
                set(&mut guest, PAGE + from + start, PAGE + to + start, count);
                guest.cpu.rflags |= if backward { DF } else { 0 };
                guest.run(code).unwrap();

                let mut expected = before;
                for n in 0..count {
                    let at = if backward { count - 1 - n } else { n } << log;
                    let (from, to) = ((from + at) as usize, (to + at) as usize);
                    expected.copy_within(from..from + size as usize, to);
                }
                assert!(
                    guest.get::<LEN>(PAGE) == expected,
                    "{code:x?} {from:x} {backward}"
                );
                let step = count << log;
                let end = if backward {
                    start.wrapping_sub(step)
                } else {
                    step
                };
                assert_eq!(guest.cpu.gpr[reg::RCX], 0);
                assert_eq!(guest.cpu.gpr[reg::RSI], (PAGE + from).wrapping_add(end));
                assert_eq!(guest.cpu.gpr[reg::RDI], (PAGE + to).wrapping_add(end));
            }
        }
    }
}

/// An overlapping copy repeats its beginning, even if only the physical pages overlap.
#[test]
fn overlapping_copies_repeat() {
    for to in [PAGE, ALIAS] {
        let mut guest = long();
        guest.put(PAGE, b"abc");
        set(&mut guest, PAGE, to + 3, 9);
        guest.run(&[0xf3, 0xa4]).unwrap();
        assert_eq!(&guest.get::<12>(PAGE), b"abcabcabcabc");
    }
}

/// A fault between iterations leaves those before it done.
#[test]
fn a_fault_keeps_whole_iterations() {
    let mut guest = long();
    let end = PAGE + 0x3000;
    guest.put(PAGE, &[0x33; 64]);
    set(&mut guest, PAGE, end - 21, 64);
    let stop = guest.run(&[0xf3, 0xa5]);
    // Five double words fit; the sixth reaches into the hole.
    assert_eq!(stop, Err(Stop::Exception(Exception::page_fault(end, 2))));
    assert_eq!(guest.cpu.gpr[reg::RCX], 59);
    assert_eq!(guest.cpu.gpr[reg::RSI], PAGE + 20);
    assert_eq!(guest.cpu.gpr[reg::RDI], end - 1);
    assert_eq!(guest.get::<1>(end - 1), [0]);
    assert_eq!(guest.get::<20>(end - 21), [0x33; 20]);
}

#[test]
fn no_iterations_touch_nothing() {
    let mut guest = long();
    set(&mut guest, 1 << 62, 1 << 62, 0);
    let flags = guest.cpu.rflags;
    for code in [
        [0xf3, 0xa4],
        [0xf3, 0xaa],
        [0xf3, 0xac],
        [0xf3, 0xa6],
        [0xf2, 0xae],
    ] {
        guest.run(&code).unwrap();
    }
    assert_eq!(guest.cpu.rflags, flags);
    assert_eq!(guest.cpu.gpr[reg::RSI], 1 << 62);
}

#[test]
fn scans_and_comparisons_stop() {
    let mut guest = long();
    let text = b"the quick brown fox\0";
    guest.put(PAGE + 0xff8, text);
    // repne scasb: the length of a string.
    set(&mut guest, 0, PAGE + 0xff8, u64::MAX);
    guest.run(&[0xf2, 0xae]).unwrap();
    assert_eq!(!guest.cpu.gpr[reg::RCX] - 1, text.len() as u64 - 1);
    assert_eq!(guest.cpu.rflags & ZF, ZF);
    // repe cmpsb: where strings part.
    guest.put(PAGE + 0x1ff0, b"the quick brown dog");
    set(&mut guest, PAGE + 0xff8, PAGE + 0x1ff0, 19);
    guest.run(&[0xf3, 0xa6]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RCX], 2);
    assert_eq!(guest.cpu.rflags & (ZF | CF), 0);
    // The counter runs out before a difference.
    set(&mut guest, PAGE + 0xff8, PAGE + 0x1ff0, 10);
    guest.run(&[0xf3, 0xa6]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RCX], 0);
    assert_eq!(guest.cpu.rflags & ZF, ZF);
}

/// 67h: index registers and counter of 32 bits, the upper halves cleared by iterations.
#[test]
fn small_address_sizes() {
    let mut guest = long();
    let high = 0xdead_0000_0000_0000;
    set(&mut guest, high, high | PAGE, high | 0x20);
    guest.cpu.gpr[reg::RAX] = 0x77;
    guest.run(&[0x67, 0xf3, 0xaa]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RDI], PAGE + 0x20);
    assert_eq!(guest.cpu.gpr[reg::RCX], 0);
    assert_eq!(guest.cpu.gpr[reg::RSI], high);
    assert_eq!(guest.get::<33>(PAGE)[31..], [0x77, 0]);

    // Real mode: 16 bits, which wrap.
    let mut guest = Guest::real();
    guest.cpu.segs[seg::ES].base = 0x3_0000;
    set(&mut guest, 0, 0xaaaa_fff8, 0xbbbb_0010);
    guest.cpu.gpr[reg::RAX] = 0x55;
    guest.run(&[0xf3, 0xaa]).unwrap();
    assert_eq!(guest.cpu.gpr[reg::RDI], 0xaaaa_0008);
    assert_eq!(guest.cpu.gpr[reg::RCX], 0xbbbb_0000);
    assert_eq!(guest.get::<8>(0x3_fff8), [0x55; 8]);
    assert_eq!(
        guest.get::<9>(0x3_0000),
        [0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0]
    );
    assert_eq!(guest.get::<1>(0x4_0000), [0]);
}

/// The source's segment can be changed, the destination's cannot; limits hold for every element.
#[test]
fn segments_and_limits() {
    let mut guest = Guest::flat();
    guest.cpu.segs[seg::FS].base = 0x2_0000;
    guest.cpu.segs[seg::ES].base = 0x3_0000;
    guest.cpu.segs[seg::ES].limit = 0x103;
    guest.put(0x2_0000, b"0123456789");
    set(&mut guest, 0, 0x100, 10);
    let stop = guest.run(&[0x64, 0xf3, 0xa4]);
    assert_eq!(stop, Err(Stop::Exception(Exception::gp(0))));
    assert_eq!(&guest.get::<5>(0x3_0100), b"0123\0");
    assert_eq!(guest.cpu.gpr[reg::RCX], 6);
}

/// Single steps see every iteration.
#[test]
fn one_iteration_when_stepping() {
    let mut guest = long();
    set(&mut guest, PAGE, PAGE + 0x100, 5);
    guest.cpu.mode = Mode(guest.cpu.mode.0 | Mode::STEP);
    let i = super::guest::decode(64, 0, &[0xf3, 0xa4]);
    for left in [4, 3, 2, 1] {
        let flow = interpret::execute(&mut guest.cpu, &mut crate::testing::Nothing, &i);
        assert_eq!(flow, Ok(Flow::Jumped));
        assert_eq!(guest.cpu.gpr[reg::RCX], left);
    }
    let flow = interpret::execute(&mut guest.cpu, &mut crate::testing::Nothing, &i);
    assert_eq!(flow, Ok(Flow::Next));
}

/// Pages that contend for one slot of the soft TLB are copied all the same, and at once.
#[test]
fn copies_between_pages_of_one_slot() {
    let other = PAGE + ((crate::mmu::TLB_ENTRIES as u64) << 12);
    let mut guest = Guest::long(&[(PAGE, 0x1_0000), (other, 0x1_2000)]);
    let bytes = pattern::<4096>(9);
    guest.put(PAGE, &bytes);
    set(&mut guest, PAGE, other, 512);
    let i = super::guest::decode(64, 0, &[0xf3, 0x48, 0xa5]);
    let flow = interpret::execute(&mut guest.cpu, &mut crate::testing::Nothing, &i);
    assert_eq!(flow, Ok(Flow::Next));
    assert!(guest.get::<4096>(other) == bytes);
}
