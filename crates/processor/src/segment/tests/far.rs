//! Far jumps, calls and returns.

use super::*;

/// `call` or `jmp` through a far pointer at [`DATA`].
fn pointer(b: &mut Bench, selector: u16, offset: u32, call: bool) {
    b.set32(DATA, offset);
    b.put(DATA + 4, &selector.to_le_bytes());
    b.cpu.gpr[reg::RBX] = DATA;
    b.bytes(&[0xff, if call { 0x1b } else { 0x2b }]);
}

#[test]
fn jumps_change_cs_and_keep_the_level() {
    let mut b = Bench::protected();
    pointer(&mut b, sel::CODE16, 0x1234, false);
    b.steps(1);
    assert_eq!(b.cpu.segs[seg::CS].selector, sel::CODE16);
    assert_eq!(b.cpu.mode.bits(), 16);
    assert_eq!(b.cpu.rip, 0x1234);
}

#[test]
fn a_conforming_segment_runs_at_the_callers_level() {
    let mut b = Bench::protected();
    b.user(false);
    pointer(&mut b, sel::CONFORMING, 0x1234, false);
    b.steps(1);
    assert_eq!(b.cpu.cpl(), 3);
    assert_eq!(b.cpu.segs[seg::CS].selector, sel::CONFORMING | 3);
}

#[test]
fn bad_targets_of_jumps() {
    let cases = [
        (0, Exception::gp(0)),
        (sel::DATA, Exception::gp(sel::DATA.into())),
        (
            sel::USER_CODE32,
            Exception::gp(u32::from(sel::USER_CODE32) - 3),
        ),
        (sel::LIMIT + 1, Exception::gp(u32::from(sel::LIMIT) + 1)),
        (sel::TSS, Exception::gp(sel::TSS.into())),
        (
            sel::FREE,
            Exception::with_code(Exception::NP, sel::FREE.into()),
        ),
        (sel::CODE16, Exception::gp(0)),
    ];
    for (selector, expected) in cases {
        let mut b = Bench::protected();
        b.set(FREE, descriptor(0, 0xf_ffff, FLAT_CODE32 & !Seg::P));
        pointer(&mut b, selector, 0x1_0000, false);
        assert_eq!(b.fault(), expected, "{selector:#x}");
        assert_eq!(b.cpu.rip, CODE);
    }
}

#[test]
fn both_sizes_at_once_are_refused_in_long_mode() {
    let mut b = Bench::long();
    b.set(FREE, descriptor(0, 0xf_ffff, FLAT_CODE64 | Seg::DB));
    pointer(&mut b, sel::FREE, 0, false);
    assert_eq!(b.fault(), Exception::gp(sel::FREE.into()));
}

#[test]
fn a_call_returns() {
    let mut b = Bench::protected();
    pointer(&mut b, sel::CODE32, 0x7000, true);
    b.put(0x7000, &[0xca, 0x08, 0x00]);
    b.cpu.gpr[reg::RSP] = STACK - 8;
    b.steps(1);
    assert_eq!(b.cpu.rip, 0x7000);
    let sp = b.cpu.gpr[reg::RSP];
    assert_eq!(sp, STACK - 16);
    assert_eq!(u64::from(b.get32(sp)), CODE + 2);
    assert_eq!(b.get32(sp + 4), u32::from(sel::CODE32));
    b.steps(1);
    assert_eq!(b.cpu.rip, CODE + 2);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK, "RETF 8 drops the parameters");
}

#[test]
fn real_mode_calls_return() {
    let mut b = Bench::real();
    let (cs, rip) = (b.cpu.segs[seg::CS].selector, b.cpu.rip);
    b.bytes(&[0x9a, 0x10, 0x00, 0x00, 0x03]);
    b.put(0x3010, &[0xcb]);
    b.steps(1);
    assert_eq!(b.cpu.segs[seg::CS].base, 0x3000);
    assert_eq!(b.cpu.rip, 0x10);
    b.steps(1);
    assert_eq!((b.cpu.segs[seg::CS].selector, b.cpu.rip), (cs, rip + 5));
}

#[test]
fn a_call_gate_switches_stacks_and_copies_parameters() {
    let mut b = Bench::protected();
    // Two parameters, for everybody.
    let gate = 0x7000 | u64::from(sel::CODE32) << 16 | 0xec02 << 32;
    b.set(FREE, gate);
    b.put(0x7000, &[0xca, 0x08, 0x00]);
    b.set32(STACK - 8, 0x1111);
    b.set32(STACK - 4, 0x2222);
    b.user(false);
    b.cpu.gpr[reg::RSP] = STACK - 8;
    pointer(&mut b, sel::FREE, 0xffff_ffff, true);
    b.steps(1);
    assert_eq!(b.cpu.cpl(), 0);
    assert_eq!(b.cpu.rip, 0x7000);
    let sp = b.cpu.gpr[reg::RSP];
    assert_eq!(sp, STACK0 - 24);
    let frame: Vec<u32> = (0..6).map(|n| b.get32(sp + 4 * n)).collect();
    assert_eq!(
        frame,
        [
            CODE as u32 + 2,
            sel::USER_CODE32.into(),
            0x1111,
            0x2222,
            STACK as u32 - 8,
            sel::USER_DATA.into()
        ]
    );
    b.steps(1);
    assert_eq!(b.cpu.cpl(), 3);
    assert_eq!(b.cpu.rip, CODE + 2);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK);
    assert_eq!(b.cpu.segs[seg::SS].selector, sel::USER_DATA);
}

#[test]
fn a_gate_below_the_callers_level_is_refused() {
    let mut b = Bench::protected();
    b.set(FREE, 0x7000 | u64::from(sel::CODE32) << 16 | 0x8c00 << 32);
    b.user(false);
    pointer(&mut b, sel::FREE, 0, true);
    assert_eq!(b.fault(), Exception::gp(sel::FREE.into()));
}

#[test]
fn a_jump_through_a_gate_may_not_change_the_level() {
    let mut b = Bench::protected();
    b.set(FREE, 0x7000 | u64::from(sel::CODE32) << 16 | 0xec00 << 32);
    pointer(&mut b, sel::FREE, 0, false);
    b.steps(1);
    assert_eq!(b.cpu.rip, 0x7000);
    let mut b = Bench::protected();
    b.set(FREE, 0x7000 | u64::from(sel::CODE32) << 16 | 0xec00 << 32);
    b.user(false);
    pointer(&mut b, sel::FREE, 0, false);
    assert_eq!(b.fault(), Exception::gp(sel::CODE32.into()));
}

#[test]
fn a_64_bit_gate_has_16_bytes_and_pushes_quadwords() {
    let mut b = Bench::long();
    b.set(FREE, 0x7000 | u64::from(sel::CODE64) << 16 | 0xec00 << 32);
    b.set(FREE + 8, 0);
    b.put(0x7000, &[0x48, 0xcb]);
    b.user(true);
    pointer(&mut b, sel::FREE, 0, true);
    b.steps(1);
    assert_eq!(b.cpu.cpl(), 0);
    let sp = b.cpu.gpr[reg::RSP];
    assert_eq!(sp, STACK0 - 32);
    let frame: Vec<u64> = (0..4).map(|n| b.get(sp + 8 * n)).collect();
    assert_eq!(
        frame,
        [
            CODE + 2,
            sel::USER_CODE64.into(),
            STACK,
            sel::USER_DATA.into()
        ]
    );
    assert_eq!(b.cpu.segs[seg::SS].selector, 0);
    b.steps(1);
    assert_eq!(b.cpu.cpl(), 3);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK);
    assert_eq!(b.cpu.rip, CODE + 2);
}

#[test]
fn a_return_to_an_inner_level_is_refused() {
    let mut b = Bench::protected();
    b.user(false);
    b.cpu.gpr[reg::RSP] = STACK - 8;
    b.set32(STACK - 8, 0x7000);
    b.set32(STACK - 4, sel::CODE32.into());
    b.bytes(&[0xcb]);
    assert_eq!(b.fault(), Exception::gp(sel::CODE32.into()));
    assert_eq!(b.cpu.gpr[reg::RSP], STACK - 8);
}

#[test]
fn expand_down_stacks_are_checked_from_above() {
    let mut b = Bench::protected();
    b.set(FREE, descriptor(0, 0x2_4000, 0x4097));
    load(&mut b, seg::SS, sel::FREE).unwrap();
    pointer(&mut b, sel::CODE32, 0x7000, true);
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK - 8);
    b.cpu.rip = CODE;
    b.cpu.gpr[reg::RSP] = 0x2_4004;
    assert_eq!(b.fault(), Exception::with_code(Exception::SS, 0));
}

#[test]
fn a_far_jump_leaves_the_interrupt_flag_alone_in_virtual_8086_mode() {
    let mut b = Bench::protected();
    b.cpu.rflags |= rflags::VM | rflags::IF;
    b.cpu.segs = [Seg::vm86(0x1000); 6];
    b.cpu.rip = 0;
    b.cpu.update_mode();
    b.bytes(&[0xea, 0x34, 0x12, 0x00, 0x20]);
    b.steps(1);
    assert_eq!(b.cpu.segs[seg::CS].base, 0x2_0000);
    assert_eq!(b.cpu.rip, 0x1234);
    assert_ne!(b.cpu.rflags & rflags::IF, 0);
    assert_eq!(b.cpu.cpl(), 3);
}
