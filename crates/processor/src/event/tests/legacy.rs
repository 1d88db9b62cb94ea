//! Events in real, protected and virtual-8086 mode.

use x86::cr::{cr4, rflags};

use super::{ONE, raise};
use crate::run::bench::*;
use crate::segment::VM86_DATA;
use crate::state::{Mode, Seg, reg, seg};
use crate::stop::{Exception, Stop};

#[test]
fn real_mode_interrupts_and_back() {
    let mut b = Bench::real();
    // Vector 0x10 at 0x40: 0000:7000.
    b.set32(0x40, 0x7000);
    b.put(0x7000, &[0xcf]);
    b.cpu.rflags |= rflags::IF | rflags::CF;
    b.bytes(&[0xcd, 0x10]);
    let (cs, rip) = (b.cpu.segs[seg::CS].selector, b.cpu.rip);
    b.steps(1);
    assert_eq!(b.cpu.rip, 0x7000);
    assert_eq!(b.cpu.segs[seg::CS].base, 0);
    assert_eq!(b.cpu.rflags, ONE | rflags::CF);
    let sp = b.cpu.gpr[reg::RSP];
    assert_eq!(sp, 0xf000 - 6);
    assert_eq!(u64::from(b.get16(sp)), rip + 2);
    assert_eq!(b.get16(sp + 2), cs);
    assert_eq!(u64::from(b.get16(sp + 4)), ONE | rflags::IF | rflags::CF);
    b.steps(1);
    assert_eq!(b.cpu.rip, rip + 2);
    assert_eq!(b.cpu.segs[seg::CS].selector, cs);
    assert_eq!(b.cpu.rflags, ONE | rflags::IF | rflags::CF);
    assert_eq!(b.cpu.gpr[reg::RSP], 0xf000);
}

#[test]
fn real_mode_pushes_no_error_codes() {
    let mut b = Bench::real();
    b.set32(13 * 4, 0x7000);
    raise(&mut b, Exception::gp(0x123)).unwrap();
    assert_eq!(b.cpu.gpr[reg::RSP], 0xf000 - 6);
    assert_eq!(b.cpu.rip, 0x7000);
}

#[test]
fn a_short_table_in_real_mode_ends_in_a_shutdown() {
    let mut b = Bench::real();
    b.cpu.idtr.limit = 0;
    assert_eq!(raise(&mut b, Exception::ud()), Err(Stop::TripleFault));
}

#[test]
fn real_mode_stacks_wrap() {
    let mut b = Bench::real();
    b.set32(0x40, 0x7000);
    b.cpu.gpr[reg::RSP] = 0xabcd_0002;
    b.bytes(&[0xcd, 0x10]);
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RSP], 0xabcd_fffc);
    assert_eq!(u64::from(b.get16(0xfffc)), (CODE & 0xffff) + 2);
}

#[test]
fn protected_mode_switches_stacks_and_comes_back() {
    let mut b = Bench::protected();
    b.user(false);
    b.cpu.rflags |= rflags::IF;
    b.gate32(0x80, sel::CODE32, 0xee, HANDLERS + 16 * 0x80);
    b.put(HANDLERS + 16 * 0x80, &[0xcf]);
    b.bytes(&[0xcd, 0x80]);
    b.steps(1);
    let sp = b.cpu.gpr[reg::RSP];
    assert_eq!(sp, STACK0 - 20);
    let frame: Vec<u64> = (0..5).map(|n| b.get32(sp + 4 * n).into()).collect();
    assert_eq!(
        frame,
        [
            CODE + 2,
            sel::USER_CODE32.into(),
            ONE | rflags::IF,
            STACK,
            sel::USER_DATA.into()
        ]
    );
    assert_eq!(b.cpu.cpl(), 0);
    assert_eq!(b.cpu.rflags, ONE);
    assert_eq!(b.cpu.segs[seg::SS].selector, sel::DATA);
    b.steps(1);
    assert_eq!(b.cpu.cpl(), 3);
    assert_eq!(b.cpu.rip, CODE + 2);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK);
    assert_eq!(b.cpu.rflags, ONE | rflags::IF);
}

#[test]
fn protected_mode_pushes_error_codes_within_a_level() {
    let mut b = Bench::protected();
    raise(&mut b, Exception::gp(0x123)).unwrap();
    let sp = b.cpu.gpr[reg::RSP];
    assert_eq!(sp, STACK - 16);
    assert_eq!(b.get32(sp), 0x123);
    assert_eq!(u64::from(b.get32(sp + 4)), CODE);
}

#[test]
fn sixteen_bit_gates_push_words() {
    let mut b = Bench::protected();
    b.gate32(0x30, sel::CODE32, 0x86, 0x7000);
    b.put(0x7000, &[0x66, 0xcf]);
    b.bytes(&[0xcd, 0x30]);
    b.cpu.gpr[reg::RSP] = STACK;
    b.steps(1);
    let sp = b.cpu.gpr[reg::RSP];
    assert_eq!(sp, STACK - 6);
    assert_eq!(u64::from(b.get16(sp)), (CODE + 2) & 0xffff);
    assert_eq!(b.cpu.rip, 0x7000);
}

#[test]
fn task_gates_are_refused() {
    let mut b = Bench::protected();
    b.gate32(0x30, sel::TSS, 0x85, 0);
    b.bytes(&[0xcd, 0x30]);
    let expected = Exception::with_code(Exception::TS, sel::TSS.into());
    assert_eq!(b.fault(), expected);
}

#[test]
fn a_bad_inner_stack_is_an_invalid_tss() {
    for (ss, expected) in [
        (0, Exception::with_code(Exception::TS, 0)),
        (
            sel::USER_DATA,
            Exception::with_code(Exception::TS, u32::from(sel::USER_DATA) - 3),
        ),
        (
            sel::CODE32,
            Exception::with_code(Exception::TS, sel::CODE32.into()),
        ),
        (
            sel::ABSENT,
            Exception::with_code(Exception::SS, sel::ABSENT.into()),
        ),
    ] {
        let mut b = Bench::protected();
        b.set32(TSS + 8, ss.into());
        b.user(false);
        b.gate32(0x80, sel::CODE32, 0xee, HANDLERS);
        b.bytes(&[0xcd, 0x80]);
        assert_eq!(b.fault(), expected, "{ss:#x}");
    }
}

fn vm86() -> Bench {
    let mut b = Bench::protected();
    // IRETD to 2000:0010 with VM set.
    let frame: [u32; 9] = [
        0x10,
        0x2000,
        (ONE | rflags::VM | rflags::IF) as u32,
        0x800,
        0x3000,
        0x1111,
        0x2222,
        0x3333,
        0x4444,
    ];
    let sp = STACK - 36;
    for (n, value) in (0..).zip(frame) {
        b.set32(sp + 4 * n, value);
    }
    b.cpu.gpr[reg::RSP] = sp;
    b.bytes(&[0xcf]);
    b.steps(1);
    b
}

#[test]
fn virtual_8086_mode_is_entered_by_iret_and_left_by_an_exception() {
    let mut b = vm86();
    assert!(b.cpu.mode.has(Mode::VM86));
    assert_eq!(b.cpu.cpl(), 3);
    assert_eq!(b.cpu.rip, 0x10);
    assert_eq!(b.cpu.segs[seg::CS].base, 0x2_0000);
    assert_eq!(b.cpu.segs[seg::SS].attributes, VM86_DATA);
    let selectors = [seg::ES, seg::DS, seg::FS, seg::GS].map(|s| b.cpu.segs[s].selector);
    assert_eq!(selectors, [0x1111, 0x2222, 0x3333, 0x4444]);

    b.put(0x2_0010, &[0xfa]);
    assert_eq!(b.fault(), Exception::gp(0), "CLI below IOPL 3");
    b.run();
    assert!(!b.cpu.mode.has(Mode::VM86));
    assert_eq!(b.cpu.cpl(), 0);
    let sp = b.cpu.gpr[reg::RSP];
    assert_eq!(sp, STACK0 - 40);
    let frame: Vec<u32> = (0..10).map(|n| b.get32(sp + 4 * n)).collect();
    assert_eq!(
        frame,
        [
            0,
            0x10,
            0x2000,
            (ONE | rflags::VM | rflags::IF | rflags::RF) as u32,
            0x800,
            0x3000,
            0x1111,
            0x2222,
            0x3333,
            0x4444
        ]
    );
    assert_ne!(b.cpu.segs[seg::DS].attributes & Seg::UNUSABLE, 0);
}

#[test]
fn virtual_8086_code_needs_iopl_3_for_int_n() {
    let mut b = vm86();
    b.put(0x2_0010, &[0xcd, 0x21]);
    assert_eq!(b.fault(), Exception::gp(0));
    b.cpu.rflags |= rflags::IOPL;
    b.gate32(0x21, sel::CODE32, 0xee, HANDLERS + 16 * 0x21);
    b.steps(1);
    assert_eq!(b.cpu.rip, HANDLERS + 16 * 0x21);
    assert_eq!(b.get32(b.cpu.gpr[reg::RSP]), 0x12);
}

#[test]
fn nested_tasks_are_refused() {
    let mut b = Bench::protected();
    b.cpu.rflags |= rflags::NT;
    b.bytes(&[0xcf]);
    assert_eq!(b.fault(), Exception::with_code(Exception::TS, 0));
}

#[test]
fn into_depends_on_the_overflow_flag() {
    let mut b = Bench::protected();
    b.code(32, |a| {
        a.into().unwrap();
        a.into().unwrap();
    });
    b.steps(1);
    b.cpu.rflags |= rflags::OF;
    b.steps(1);
    assert_eq!(b.cpu.rip, HANDLERS + 16 * 4);
    assert_eq!(u64::from(b.get32(b.cpu.gpr[reg::RSP])), CODE + 2);
}

/// Virtual-8086 mode at 2000:0010 with CR4.VME; INT 21h is the program's own, at 2000:0100, and
/// INT 22h is not.
fn extended() -> Bench {
    let mut b = vm86();
    b.cpu.cr4 |= cr4::VME;
    b.cpu.update_mode();
    let tss = b.cpu.tr.base;
    b.cpu.tr.limit = 0xff;
    b.set32(tss + 0x64, 0x90 << 16);
    b.set32(tss + 0x70 + 4, 1 << 2);
    b.set32(0x21 * 4, 0x2000_0100);
    b
}

#[test]
fn virtual_8086_code_has_an_interrupt_flag_of_its_own() {
    let mut b = extended();
    // sti; pushf; cli; popf; pushf; pop ax; cli
    b.put(0x2_0010, &[0xfb, 0x9c, 0xfa, 0x9d, 0x9c, 0x58, 0xfa]);
    let real = b.cpu.rflags & rflags::IF;
    b.steps(1);
    assert_ne!(b.cpu.rflags & rflags::VIF, 0);
    b.steps(2);
    assert_eq!(b.cpu.rflags & rflags::VIF, 0);
    b.steps(3);
    assert_ne!(b.cpu.rflags & rflags::VIF, 0);
    let pushed = b.cpu.gpr[reg::RAX] & 0xffff;
    assert_eq!(
        pushed & (rflags::IF | rflags::IOPL),
        rflags::IF | rflags::IOPL
    );
    b.steps(1);
    assert_eq!(b.cpu.rflags & rflags::VIF, 0);
    assert_eq!(
        b.cpu.rflags & (rflags::IF | rflags::IOPL),
        real,
        "untouched"
    );
}

#[test]
fn what_virtual_8086_code_may_not_do_with_flags() {
    // Code, the flags on the stack, and whether an interrupt waits.
    for (code, image, waits) in [
        (&[0xfb][..], 0, true),
        (&[0x9d], rflags::IF, true),
        (&[0x9d], rflags::TF, false),
        (&[0x66, 0x9c], 0, false),
        (&[0x66, 0x9d], 0, false),
        (&[0x66, 0xcf], 0, false),
    ] {
        let mut b = extended();
        if waits {
            b.cpu.rflags |= rflags::VIP;
        }
        b.put(0x2_0010, code);
        b.set32(0x3_0800, image as u32);
        assert_eq!(b.fault(), Exception::gp(0), "{code:x?}");
        assert_eq!(b.cpu.gpr[reg::RSP], 0x800);
    }
}

#[test]
fn the_map_tells_whose_an_interrupt_is() {
    let mut b = extended();
    // int 21h and, in its handler, iret; then int 22h
    b.put(0x2_0010, &[0xcd, 0x21, 0xcd, 0x22]);
    b.put(0x2_0100, &[0xcf]);
    b.cpu.rflags |= rflags::VIF;
    b.steps(1);
    assert!(b.cpu.mode.has(Mode::VM86));
    assert_eq!(b.cpu.rip, 0x100);
    assert_eq!(b.cpu.rflags & rflags::VIF, 0);
    assert_eq!(b.cpu.gpr[reg::RSP], 0x800 - 6);
    assert_eq!(b.get16(0x3_07fa), 0x12);
    assert_eq!(b.get16(0x3_07fc), 0x2000);
    let flags = u64::from(b.get16(0x3_07fe));
    assert_eq!(
        flags & (rflags::IF | rflags::IOPL),
        rflags::IF | rflags::IOPL
    );
    b.steps(1);
    assert_eq!(b.cpu.rip, 0x12);
    assert_ne!(b.cpu.rflags & rflags::VIF, 0);
    assert_eq!(b.fault(), Exception::gp(0), "the monitor's");

    // With IOPL 3 it is IF, and the other one goes through the IDT.
    let mut b = extended();
    b.put(0x2_0010, &[0xcd, 0x21]);
    b.cpu.rflags |= rflags::IOPL | rflags::IF;
    b.steps(1);
    assert_eq!(b.cpu.rip, 0x100);
    assert_eq!(b.cpu.rflags & rflags::IF, 0);
    b.put(0x2_0100, &[0xcd, 0x22]);
    b.gate32(0x22, sel::CODE32, 0xee, HANDLERS + 16 * 0x22);
    b.steps(1);
    assert_eq!(b.cpu.rip, HANDLERS + 16 * 0x22);

    // A map that the segment does not have.
    let mut b = extended();
    b.cpu.tr.limit = 0x67;
    b.put(0x2_0010, &[0xcd, 0x21]);
    assert_eq!(b.fault(), Exception::gp(0));
}

#[test]
fn protected_mode_has_virtual_interrupts_too() {
    for (pvi, allowed) in [(false, false), (true, true)] {
        let mut b = Bench::protected();
        b.user(false);
        if pvi {
            b.cpu.cr4 |= cr4::PVI;
        }
        // sti; cli
        b.bytes(&[0xfb, 0xfa]);
        if allowed {
            b.steps(1);
            assert_ne!(b.cpu.rflags & rflags::VIF, 0);
            b.steps(1);
            assert_eq!(b.cpu.rflags & rflags::VIF, 0);
        } else {
            assert_eq!(b.fault(), Exception::gp(0));
        }
    }
}
