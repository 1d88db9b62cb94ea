//! XSAVEC, XSAVES and XRSTORS, and the MSR that goes with them.

use x86::msr;

use super::save::{fill, memory, run};
use crate::run::bench::*;
use crate::state::{XsaveArea, reg};
use crate::stop::Exception;

const GP: Exception = Exception::gp(0);
const XSAVEC: &[u8] = &[0x48, 0x0f, 0xc7, 0x23];
const XSAVES: &[u8] = &[0x48, 0x0f, 0xc7, 0x2b];
const XRSTOR: &[u8] = &[0x48, 0x0f, 0xae, 0x2b];
const XRSTORS: &[u8] = &[0x48, 0x0f, 0xc7, 0x1b];
const CLZERO: &[u8] = &[0x0f, 0x01, 0xfc];

#[test]
fn everything_survives_a_round_trip() {
    for save in [XSAVEC, XSAVES] {
        for restore in [XRSTOR, XRSTORS] {
            let mut b = Bench::long();
            fill(&mut b, 3);
            let before = b.cpu.fpu.clone();
            run(&mut b, save, !0);
            assert_eq!(b.get(DATA + 512), 7);
            assert_eq!(b.get(DATA + 520), 1 << 63 | 7);
            fill(&mut b, 99);
            run(&mut b, restore, !0);
            assert_eq!(b.cpu.fpu.0, before.0);
        }
    }
}

#[test]
fn initial_components_are_not_written() {
    let mut b = Bench::long();
    b.put(DATA, &[0xee; XsaveArea::LEN]);
    b.cpu.fpu.0[XsaveArea::YMM_HIGH + 40] = 1;
    run(&mut b, XSAVEC, 6);
    let after = memory(&b);
    assert!(after[..512].iter().all(|&byte| byte == 0xee));
    assert_eq!((b.get(DATA + 512), b.get(DATA + 520)), (4, 1 << 63 | 6));
    assert!(after[528..576].iter().all(|&byte| byte == 0xee));
    assert_eq!(after[576..], b.cpu.fpu.0[576..]);

    // What was initial becomes so again, and MXCSR is part of SSE.
    for n in 528 / 8..576 / 8 {
        b.set(DATA + 8 * n, 0);
    }
    fill(&mut b, 9);
    let x87 = b.cpu.fpu.0[..24].to_vec();
    run(&mut b, XRSTOR, 6);
    assert_eq!(b.cpu.fpu.0[..24], x87);
    assert_eq!(b.cpu.fpu.0[24..28], 0x1f80_u32.to_le_bytes());
    assert!(b.cpu.fpu.0[160..416].iter().all(|&byte| byte == 0));
    assert_eq!(b.cpu.fpu.0[576..], after[576..]);
}

#[test]
fn bad_headers_are_refused() {
    let refuse = |b: &mut Bench, code: &[u8], why: &str| {
        b.cpu.rip = CODE;
        b.cpu.gpr[reg::RBX] = DATA;
        b.cpu.gpr[reg::RAX] = 7;
        b.bytes(code);
        assert_eq!(b.fault(), GP, "{why}");
    };
    let mut b = Bench::long();
    fill(&mut b, 3);
    run(&mut b, XSAVEC, 7);
    for (word, value, why) in [
        (65, 1 << 63 | 3, "a component that the format has not"),
        (65, 1 << 63 | 1 << 9 | 7, "a component that does not exist"),
        (66, 1, "reserved bytes"),
        (71, 1 << 40, "the last of the reserved bytes"),
    ] {
        let old = b.get(DATA + 8 * word);
        b.set(DATA + 8 * word, value);
        refuse(&mut b, XRSTOR, why);
        refuse(&mut b, XRSTORS, why);
        b.set(DATA + 8 * word, old);
    }
    b.set(DATA + 520, 0);
    refuse(&mut b, XRSTORS, "the standard format");
    b.user(true);
    refuse(&mut b, XSAVES, "a program");
    refuse(&mut b, XRSTORS, "a program");
}

#[test]
fn there_are_no_supervisor_components() {
    let mut b = Bench::long();
    assert_eq!(b.cpu.read_msr(&mut b.p, msr::XSS), Ok(0));
    assert_eq!(b.cpu.write_msr(&mut b.p, msr::XSS, 0), Ok(()));
    assert_eq!(b.cpu.write_msr(&mut b.p, msr::XSS, 1 << 8), Err(GP));
}

#[test]
fn a_line_becomes_zero() {
    let mut b = Bench::long();
    b.put(DATA, &[0xee; 256]);
    run(&mut b, CLZERO, DATA + 100);
    let after = memory(&b);
    assert!(after[..64].iter().all(|&byte| byte == 0xee));
    assert!(after[64..128].iter().all(|&byte| byte == 0));
    assert!(after[128..256].iter().all(|&byte| byte == 0xee));
}
