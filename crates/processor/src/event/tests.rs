use iced_x86::code_asm::{dword_ptr, eax};
use x86::cr::{cr4, rflags};

use super::debug;
use crate::run::bench::*;
use crate::segment::{FLAT_CODE64, FLAT_DATA};
use crate::state::{Seg, reg, seg};
use crate::stop::{Exception, Stop};

mod legacy;

const ONE: u64 = rflags::RESERVED_ONE;

/// Raises an exception as an instruction would.
fn raise(b: &mut Bench, exception: Exception) -> Result<(), Stop> {
    b.cpu.raise(&mut b.p, exception)
}

#[test]
fn a_page_fault_of_a_program_arrives_on_the_kernels_stack() {
    let mut b = Bench::long();
    b.user(true);
    b.cpu.gpr[reg::RSP] = STACK - 3;
    b.cpu.rflags |= rflags::IF | rflags::CF | rflags::AC;
    b.cpu.update_mode();
    b.code(64, |a| a.mov(eax, dword_ptr(0x40_0000u64)).unwrap());
    assert_eq!(b.vector(), 14);
    assert_eq!(b.cpu.cr2, 0x40_0000);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK0 - 48);
    assert_eq!(
        b.frame(true),
        Frame {
            error_code: Some(4),
            rip: CODE,
            cs: sel::USER_CODE64.into(),
            rflags: ONE | rflags::IF | rflags::CF | rflags::AC | rflags::RF,
            rsp: STACK - 3,
            ss: sel::USER_DATA.into(),
        }
    );
    assert_eq!(b.cpu.cpl(), 0);
    assert_eq!(b.cpu.segs[seg::CS].selector, sel::CODE64);
    assert_eq!(b.cpu.segs[seg::SS].selector, 0);
    assert_eq!(
        b.cpu.rflags,
        ONE | rflags::CF | rflags::AC,
        "an interrupt gate"
    );
}

#[test]
fn a_fault_in_the_kernel_stays_on_its_stack_aligned_to_16() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RSP] = STACK - 3;
    b.bytes(&[0x0f, 0x0b]);
    assert_eq!(b.vector(), 6);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK - 16 - 40);
    let frame = b.frame(false);
    assert_eq!(frame.rsp, STACK - 3);
    assert_eq!(frame.ss, u64::from(sel::DATA));
    assert_eq!(
        b.cpu.segs[seg::SS].selector,
        sel::DATA,
        "SS stays without a change of level"
    );
}

#[test]
fn a_gate_with_an_ist_takes_that_stack_from_any_level() {
    let mut b = Bench::long();
    b.gate64(2, sel::CODE64, 0x8e01, HANDLERS + 32);
    b.cpu.deliver_nmi(&mut b.p).unwrap();
    assert_eq!(b.cpu.gpr[reg::RSP], IST1 - 40);
    assert_eq!(b.frame(false).rsp, STACK);
    assert!(!b.cpu.nmi_open());
}

#[test]
fn trap_gates_leave_if_alone() {
    let mut b = Bench::long();
    b.gate64(0x80, sel::CODE64, 0x8f00, HANDLERS + 16 * 0x80);
    b.cpu.rflags |= rflags::IF | rflags::NT | rflags::RF;
    b.cpu.deliver_interrupt(&mut b.p, 0x80).unwrap();
    assert_eq!(b.cpu.rflags, ONE | rflags::IF);
    assert_eq!(
        b.frame(false).rflags,
        ONE | rflags::IF | rflags::NT | rflags::RF,
        "an interrupt between iterations keeps RF in the image"
    );
}

#[test]
fn nmis_wait_for_iret() {
    let mut b = Bench::long();
    b.put(HANDLERS + 32, &[0x48, 0xcf]);
    b.cpu.deliver_nmi(&mut b.p).unwrap();
    assert!(!b.cpu.nmi_open());
    b.steps(1);
    assert!(b.cpu.nmi_open());
    assert_eq!(b.cpu.rip, CODE);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK);
}

#[test]
fn int_n_needs_the_gates_privilege() {
    let mut b = Bench::long();
    b.user(true);
    b.code(64, |a| a.int(0x40).unwrap());
    assert_eq!(b.fault(), Exception::gp(0x40 << 3 | 2), "without EXT");
    b.gate64(0x40, sel::CODE64, 0xee00, HANDLERS + 16 * 0x40);
    b.steps(1);
    assert_eq!(b.frame(false).rip, CODE + 2);
}

#[test]
fn int3_returns_behind_itself_and_int1_needs_no_privilege() {
    let mut b = Bench::long();
    b.gate64(3, sel::CODE64, 0xee00, HANDLERS + 48);
    b.user(true);
    b.bytes(&[0xcc, 0xf1]);
    b.steps(1);
    assert_eq!(b.cpu.rip, HANDLERS + 48);
    assert_eq!(b.frame(false).rip, CODE + 1);
    b.user(true);
    b.cpu.rip = CODE + 1;
    b.steps(1);
    assert_eq!(b.cpu.rip, HANDLERS + 16);
    assert_eq!(b.frame(false).rip, CODE + 2);
}

#[test]
fn error_codes_of_bad_gates() {
    // Beyond the table, no gate, not present: with EXT for what is not software's.
    let mut b = Bench::long();
    b.cpu.idtr.limit = 16 * 0x41 - 1;
    b.gate64(0x20, sel::CODE64, 0x8400, 0);
    b.gate64(0x21, sel::CODE64, 0x0e00, 0);
    b.code(64, |a| a.int(0x41).unwrap());
    assert_eq!(b.fault(), Exception::gp(0x41 << 3 | 2));
    b.code(64, |a| a.int(0x20).unwrap());
    assert_eq!(b.fault(), Exception::gp(0x20 << 3 | 2));
    b.code(64, |a| a.int(0x21).unwrap());
    assert_eq!(
        b.fault(),
        Exception::with_code(Exception::NP, 0x21 << 3 | 2)
    );
    b.cpu.deliver_interrupt(&mut b.p, 0x21).unwrap();
    assert_eq!(b.vector(), 11);
    assert_eq!(b.frame(true).error_code, Some(0x21 << 3 | 3));
}

#[test]
fn error_codes_of_bad_segments_in_gates() {
    let mut b = Bench::long();
    for (selector, expected) in [
        (0, Exception::gp(0)),
        (sel::DATA, Exception::gp(sel::DATA.into())),
        (sel::CODE32, Exception::gp(sel::CODE32.into())),
        (sel::LIMIT + 1, Exception::gp(u32::from(sel::LIMIT) + 1)),
        (
            sel::USER_CODE64,
            Exception::gp(u32::from(sel::USER_CODE64) - 3),
        ),
    ] {
        b.gate64(0x20, selector, 0x8e00, HANDLERS);
        b.code(64, |a| a.int(0x20).unwrap());
        assert_eq!(b.fault(), expected, "selector {selector:#x}");
    }
    b.set(
        GDT + u64::from(sel::FREE),
        descriptor(0, 0xf_ffff, FLAT_CODE64 & !Seg::P),
    );
    b.gate64(0x20, sel::FREE, 0x8e00, HANDLERS);
    b.code(64, |a| a.int(0x20).unwrap());
    let np = Exception::with_code(Exception::NP, sel::FREE.into());
    assert_eq!(b.fault(), np);
    b.gate64(0x20, sel::CODE64, 0x8e00, 0x8000_0000_0000);
    b.code(64, |a| a.int(0x20).unwrap());
    assert_eq!(
        b.fault(),
        Exception::gp(0),
        "a target that is not canonical"
    );
}

#[test]
fn bad_stacks_in_the_task_state_segment() {
    let mut b = Bench::long();
    b.set(TSS + 4, 0x8000_0000_0000);
    b.user(true);
    b.gate64(0x20, sel::CODE64, 0xee00, HANDLERS);
    b.code(64, |a| a.int(0x20).unwrap());
    assert_eq!(b.fault(), Exception::with_code(Exception::SS, 0));
    b.cpu.tr.limit = 10;
    assert_eq!(
        b.fault(),
        Exception::with_code(Exception::TS, sel::TSS.into())
    );
}

#[test]
fn a_page_fault_during_a_page_fault_is_a_double_fault() {
    let mut b = Bench::long();
    b.gate64(8, sel::CODE64, 0x8e01, HANDLERS + 16 * 8);
    // Pushing onto a stack that is not there.
    b.set(TABLE, 0);
    b.cpu.gpr[reg::RSP] = PAGES + 0x800;
    raise(&mut b, Exception::page_fault(0x1234, 0)).unwrap();
    assert_eq!(b.vector(), 8);
    let frame = b.frame(true);
    assert_eq!(frame.error_code, Some(0));
    assert_eq!(frame.rsp, PAGES + 0x800);
    assert_eq!(b.cpu.cr2, PAGES + 0x800 - 48);
}

#[test]
fn two_contributory_exceptions_are_a_double_fault() {
    let mut b = Bench::long();
    b.gate64(13, sel::DATA, 0x8e00, HANDLERS);
    raise(&mut b, Exception::gp(0)).unwrap();
    assert_eq!(b.vector(), 8);
}

#[test]
fn other_pairs_are_handled_one_after_the_other() {
    let mut b = Bench::long();
    b.gate64(6, sel::DATA, 0x8e00, HANDLERS);
    raise(&mut b, Exception::ud()).unwrap();
    assert_eq!(b.vector(), 13, "#UD is benign");
    assert_eq!(b.frame(true).error_code, Some(u64::from(sel::DATA) | 1));

    let mut b = Bench::long();
    b.set(TABLE, 0);
    b.gate64(14, sel::CODE64, 0x8e01, HANDLERS + 16 * 14);
    b.cpu.gpr[reg::RSP] = PAGES + 0x800;
    raise(&mut b, Exception::gp(0)).unwrap();
    assert_eq!(b.vector(), 14, "a page fault after #GP");
}

#[test]
fn an_exception_during_a_double_fault_shuts_down() {
    let mut b = Bench::long();
    b.cpu.idtr.limit = 0;
    let before = b.cpu.state();
    b.bytes(&[0x0f, 0x0b]);
    assert_eq!(b.cpu.advance(&mut b.p, 10), Stop::TripleFault);
    assert_eq!(b.cpu.rip, before.regs.rip);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK);
}

#[test]
fn debug_exceptions_clear_general_detect() {
    let mut b = Bench::long();
    b.cpu.dr7 |= debug::DR7_GD;
    b.bytes(&[0x0f, 0x21, 0xf0]);
    let exception = b.fault();
    assert_eq!(exception.payload, debug::DR6_BD);
    raise(&mut b, exception).unwrap();
    assert_eq!(b.cpu.dr7 & debug::DR7_GD, 0);
    assert_eq!(b.cpu.dr6, debug::DR6_ONES | debug::DR6_BD);
    assert_eq!(b.frame(false).rflags & rflags::RF, rflags::RF);
}

#[test]
fn a_pending_exception_of_the_state_is_delivered_first() {
    let mut b = Bench::long();
    b.cpu.pending = Some(Exception::page_fault(0x77, 2));
    assert_eq!(b.vector(), 14);
    assert_eq!(b.cpu.cr2, 0x77);
    assert_eq!(b.frame(true).error_code, Some(2));
    assert_eq!(b.cpu.pending, None);
}

#[test]
fn stacks_outside_of_ram_swallow_frames() {
    let mut b = Bench::long();
    b.set(TABLE, 0xfee0_0007);
    b.cpu.gpr[reg::RSP] = PAGES + 0x800;
    b.bytes(&[0x0f, 0x0b]);
    assert_eq!(b.vector(), 6);
    assert_eq!(b.cpu.gpr[reg::RSP], PAGES + 0x800 - 40);
}

#[test]
fn smap_does_not_hinder_frames_on_kernel_pages() {
    let mut b = Bench::long();
    b.set(TABLE, PAGES | 3);
    b.cpu.cr4 |= cr4::SMAP;
    b.cpu.gpr[reg::RSP] = PAGES + 0x1000;
    b.set(TSS + 4, PAGES + 0x1000);
    b.user(true);
    b.bytes(&[0x0f, 0x0b]);
    assert_eq!(b.step(), Err(Stop::Exception(Exception::ud())));
    // Handlers and tables are on user pages: only the frame is looked at here, and the faults
    // that SMAP makes of the tables.
    b.cpu.cr4 &= !cr4::SMAP;
    b.cpu.update_mode();
    raise(&mut b, Exception::ud()).unwrap();
    assert_eq!(b.cpu.gpr[reg::RSP], PAGES + 0x1000 - 40);
    assert_eq!(b.cpu.cpl(), 0);
}

/// Pushes a frame for IRETQ.
fn push_frame(b: &mut Bench, frame: [u64; 5]) {
    let sp = b.cpu.gpr[reg::RSP] - 40;
    for (n, value) in (0..).zip(frame) {
        b.set(sp + 8 * n, value);
    }
    b.cpu.gpr[reg::RSP] = sp;
    b.bytes(&[0x48, 0xcf]);
}

#[test]
fn iret_goes_to_a_program() {
    let mut b = Bench::long();
    let flags = ONE | rflags::IF | rflags::ZF | rflags::AC | rflags::RF | rflags::IOPL;
    b.cpu.segs[seg::DS] = Seg::flat(sel::DATA, FLAT_DATA, 0);
    b.cpu.segs[seg::FS].base = 0x1234;
    push_frame(
        &mut b,
        [
            0x40_1000,
            sel::USER_CODE64.into(),
            flags,
            0x7fff_0000,
            sel::USER_DATA.into(),
        ],
    );
    b.steps(1);
    assert_eq!(b.cpu.rip, 0x40_1000);
    assert_eq!(b.cpu.cpl(), 3);
    assert!(b.cpu.code64());
    assert_eq!(b.cpu.rflags, flags);
    assert_eq!(b.cpu.gpr[reg::RSP], 0x7fff_0000);
    assert_eq!(
        b.cpu.segs[seg::DS].selector,
        0,
        "a segment of ring 0 is taken away"
    );
    assert_ne!(b.cpu.segs[seg::DS].attributes & Seg::UNUSABLE, 0);
    assert_eq!(b.cpu.segs[seg::FS].base, 0x1234);
    assert_eq!(b.p.serialized, 1);
}

#[test]
fn iret_goes_to_32_bit_code() {
    let mut b = Bench::long();
    push_frame(
        &mut b,
        [
            0x40_1000,
            sel::USER_CODE32.into(),
            ONE,
            0xffff_f000,
            sel::USER_DATA.into(),
        ],
    );
    b.steps(1);
    assert!(!b.cpu.code64());
    assert_eq!(b.cpu.mode.bits(), 32);
    assert_eq!(b.cpu.gpr[reg::RSP], 0xffff_f000);
}

#[test]
fn iret_within_ring_0_takes_a_null_stack_segment() {
    let mut b = Bench::long();
    push_frame(&mut b, [CODE + 0x10, sel::CODE64.into(), ONE, STACK - 8, 0]);
    b.steps(1);
    assert_eq!(b.cpu.cpl(), 0);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK - 8);
    assert_ne!(b.cpu.segs[seg::SS].attributes & Seg::UNUSABLE, 0);
}

#[test]
fn iret_refuses_bad_frames() {
    let user = u64::from(sel::USER_CODE64);
    let data = u64::from(sel::USER_DATA);
    let cases = [
        ([0x8000_0000_0000, user, ONE, 0, data], Exception::gp(0)),
        ([0, 0, ONE, 0, data], Exception::gp(0)),
        ([0, user, ONE, 0, 0], Exception::gp(0)),
        ([0, user - 3, ONE, 0, data], Exception::gp(user as u32 - 3)),
        ([0, user, ONE, 0, data - 3], Exception::gp(data as u32 - 3)),
        ([0, data, ONE, 0, data], Exception::gp(data as u32 - 3)),
        ([0, 0x90, ONE, 0, data], Exception::gp(0x90)),
        (
            [0, sel::CODE64.into(), ONE, 0, sel::ABSENT.into()],
            Exception::with_code(Exception::SS, sel::ABSENT.into()),
        ),
    ];
    for (frame, expected) in cases {
        let mut b = Bench::long();
        push_frame(&mut b, frame);
        assert_eq!(b.fault(), expected, "{frame:x?}");
        assert_eq!(b.cpu.gpr[reg::RSP], STACK - 40);
        assert_eq!(b.cpu.cpl(), 0);
    }
    let mut b = Bench::long();
    push_frame(&mut b, [0, user, ONE, 0, data]);
    b.cpu.rflags |= rflags::NT;
    assert_eq!(b.fault(), Exception::gp(0), "a nested task");
}

#[test]
fn iret_of_a_program_changes_neither_iopl_nor_if() {
    let mut b = Bench::long();
    b.user(true);
    push_frame(
        &mut b,
        [
            CODE,
            sel::USER_CODE64.into(),
            ONE | rflags::IF | rflags::IOPL | rflags::VM | rflags::DF,
            STACK,
            sel::USER_DATA.into(),
        ],
    );
    b.steps(1);
    assert_eq!(b.cpu.rflags, ONE | rflags::DF);
}

#[test]
fn iretd_cuts_what_it_pops() {
    let mut b = Bench::long();
    let sp = b.cpu.gpr[reg::RSP] - 20;
    for (n, value) in (0..).zip([
        CODE as u32 + 0x100,
        sel::CODE64.into(),
        ONE as u32,
        STACK as u32,
        sel::DATA.into(),
    ]) {
        b.set32(sp + 4 * n, value);
    }
    b.cpu.gpr[reg::RSP] = sp;
    b.bytes(&[0xcf]);
    b.steps(1);
    assert_eq!(b.cpu.rip, CODE + 0x100);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK);
}
