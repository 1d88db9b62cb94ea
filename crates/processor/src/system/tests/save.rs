//! FXSAVE, XSAVE and their ways back.

use proptest::prelude::*;
use x86::cr::{cr0, cr4, efer};

use crate::run::bench::*;
use crate::state::{XsaveArea, reg};
use crate::stop::Exception;

const GP: Exception = Exception::gp(0);
const FXSAVE: &[u8] = &[0x48, 0x0f, 0xae, 0x03];
const FXRSTOR: &[u8] = &[0x48, 0x0f, 0xae, 0x0b];
const XSAVE: &[u8] = &[0x48, 0x0f, 0xae, 0x23];
const XRSTOR: &[u8] = &[0x48, 0x0f, 0xae, 0x2b];
const XSAVEOPT: &[u8] = &[0x48, 0x0f, 0xae, 0x33];

/// State that no component has after a reset.
pub(super) fn fill(b: &mut Bench, seed: u8) {
    let area = &mut b.cpu.fpu.0;
    for (n, byte) in area.iter_mut().enumerate() {
        *byte = (n as u8).wrapping_mul(7).wrapping_add(seed) | 1;
    }
    area[24..28].copy_from_slice(&0x1f81u32.to_le_bytes());
    area[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    area[5] = 0;
    for register in area[32..160].chunks_exact_mut(16) {
        register[10..].fill(0);
    }
    area[416..512].fill(0);
    area[512..576].fill(0);
    area[512] = 7;
}

pub(super) fn run(b: &mut Bench, code: &[u8], mask: u64) {
    b.cpu.rip = CODE;
    b.cpu.gpr[reg::RBX] = DATA;
    b.cpu.gpr[reg::RAX] = mask & 0xffff_ffff;
    b.cpu.gpr[reg::RDX] = mask >> 32;
    b.bytes(code);
    b.steps(1);
}

pub(super) fn memory(b: &Bench) -> Vec<u8> {
    (0..XsaveArea::LEN as u64 / 8)
        .flat_map(|n| b.get(DATA + 8 * n).to_le_bytes())
        .collect()
}

#[test]
fn everything_survives_a_round_trip() {
    for save in [XSAVE, XSAVEOPT] {
        let mut b = Bench::long();
        fill(&mut b, 3);
        let before = b.cpu.fpu.clone();
        run(&mut b, save, !0);
        assert_eq!(memory(&b), before.0);
        fill(&mut b, 99);
        run(&mut b, XRSTOR, !0);
        assert_eq!(b.cpu.fpu.0, before.0);
    }
}

#[test]
fn fxsave_leaves_what_is_not_its_own() {
    let mut b = Bench::long();
    fill(&mut b, 3);
    b.put(DATA, &[0xee; XsaveArea::LEN]);
    let before = b.cpu.fpu.clone();
    run(&mut b, FXSAVE, 0);
    let after = memory(&b);
    assert_eq!(after[..416], before.0[..416]);
    assert!(after[416..].iter().all(|&byte| byte == 0xee));
    fill(&mut b, 9);
    let high = b.cpu.fpu.0[XsaveArea::YMM_HIGH..].to_vec();
    run(&mut b, FXRSTOR, 0);
    assert_eq!(b.cpu.fpu.0[..416], before.0[..416]);
    assert_eq!(b.cpu.fpu.0[XsaveArea::YMM_HIGH..], high);
}

#[test]
fn a_kernel_may_keep_the_xmm_registers_out_of_fxsave() {
    let mut b = Bench::long();
    fill(&mut b, 3);
    b.put(DATA, &[0xee; 512]);
    b.cpu.efer |= efer::FFXSR;
    run(&mut b, FXSAVE, 0);
    let after = memory(&b);
    assert_eq!(after[..160], b.cpu.fpu.0[..160]);
    assert!(after[160..512].iter().all(|&byte| byte == 0xee));
    let registers = b.cpu.fpu.0[160..416].to_vec();
    run(&mut b, FXRSTOR, 0);
    assert_eq!(b.cpu.fpu.0[160..416], registers);
    b.user(true);
    run(&mut b, FXSAVE, 0);
    assert_eq!(memory(&b)[160..416], registers);
}

#[test]
fn xsave_writes_the_components_that_it_is_asked_for() {
    let mut b = Bench::long();
    fill(&mut b, 3);
    b.put(DATA, &[0xee; XsaveArea::LEN]);
    b.set(DATA + 512, 3);
    run(&mut b, XSAVE, 4);
    let after = memory(&b);
    assert_eq!(b.get(DATA + 512), 7, "other bits of XSTATE_BV stay");
    assert!(after[..24].iter().all(|&byte| byte == 0xee));
    assert_eq!(after[24..32], b.cpu.fpu.0[24..32], "AVX brings MXCSR");
    assert!(after[32..512].iter().all(|&byte| byte == 0xee));
    assert_eq!(after[576..], b.cpu.fpu.0[576..]);
}

#[test]
fn initial_components_are_said_to_be_so() {
    let mut b = Bench::long();
    b.set(DATA + 512, 7);
    run(&mut b, XSAVE, 7);
    assert_eq!(b.get(DATA + 512), 0);
    b.cpu.fpu.0[XsaveArea::YMM_HIGH + 40] = 1;
    run(&mut b, XSAVE, 7);
    assert_eq!(b.get(DATA + 512), 4);
}

#[test]
fn xrstor_makes_absent_components_initial_and_leaves_others() {
    let mut b = Bench::long();
    fill(&mut b, 3);
    run(&mut b, XSAVE, 7);
    b.set(DATA + 512, 1);
    fill(&mut b, 50);
    let high = b.cpu.fpu.0[XsaveArea::YMM_HIGH..].to_vec();
    run(&mut b, XRSTOR, 3);
    assert_eq!(b.cpu.fpu.0[..32], memory(&b)[..32]);
    assert!(b.cpu.fpu.0[160..416].iter().all(|&byte| byte == 0));
    assert_eq!(b.cpu.fpu.0[XsaveArea::YMM_HIGH..], high);
    b.set(DATA + 512, 0);
    run(&mut b, XRSTOR, 5);
    assert_eq!(b.cpu.fpu.0[..2], [0x7f, 0x03]);
    assert!(
        b.cpu.fpu.0[XsaveArea::YMM_HIGH..]
            .iter()
            .all(|&byte| byte == 0)
    );
}

#[test]
fn bad_areas_are_refused() {
    let mut b = Bench::long();
    fill(&mut b, 3);
    run(&mut b, XSAVE, 7);
    let refuse = |b: &mut Bench, code: &[u8], at: u64| {
        b.cpu.rip = CODE;
        b.cpu.gpr[reg::RBX] = at;
        b.cpu.gpr[reg::RAX] = 7;
        b.bytes(code);
        assert_eq!(b.fault(), GP, "{code:x?} at {at:#x}");
    };
    refuse(&mut b, XSAVE, DATA + 16);
    refuse(&mut b, FXSAVE, DATA + 8);
    b.set(DATA + 512, 1 << 9);
    refuse(&mut b, XRSTOR, DATA);
    b.set(DATA + 512, 7);
    b.set(DATA + 520, 1 << 63);
    refuse(&mut b, XRSTOR, DATA);
    b.set(DATA + 520, 0);
    b.set32(DATA + 24, 0x1_0000);
    refuse(&mut b, XRSTOR, DATA);
    refuse(&mut b, FXRSTOR, DATA);
}

#[test]
fn ts_and_osxsave_are_obeyed() {
    let mut b = Bench::long();
    b.cpu.cr0 |= cr0::TS;
    b.cpu.update_mode();
    b.cpu.gpr[reg::RBX] = DATA;
    b.bytes(XSAVE);
    assert_eq!(b.fault(), Exception::plain(Exception::NM));
    b.bytes(FXRSTOR);
    assert_eq!(b.fault(), Exception::plain(Exception::NM));
    b.cpu.cr4 &= !cr4::OSXSAVE;
    b.cpu.update_mode();
    b.bytes(XSAVE);
    assert_eq!(b.fault(), Exception::ud());
}

#[test]
fn a_page_fault_in_the_area_writes_nothing() {
    let mut b = Bench::long();
    fill(&mut b, 3);
    // The AVX part lies on a page that cannot be written.
    b.set(TABLE + 8, (PAGES + 0x1000) | 5);
    let at = PAGES + 0x1000 - 576;
    b.cpu.gpr[reg::RBX] = at;
    b.cpu.gpr[reg::RAX] = 7;
    b.bytes(XSAVE);
    assert_eq!(b.fault(), Exception::page_fault(PAGES + 0x1000, 3));
    assert_eq!(b.get(at), 0);
}

#[test]
fn code_of_32_bits_sees_eight_registers() {
    let mut b = Bench::protected();
    b.cpu.cr4 = cr4::OSFXSR;
    b.cpu.update_mode();
    fill(&mut b, 3);
    b.put(DATA, &[0xee; 512]);
    run(&mut b, &FXSAVE[1..], 0);
    let after = memory(&b);
    assert_eq!(after[160..288], b.cpu.fpu.0[160..288]);
    assert!(after[288..416].iter().all(|&byte| byte == 0xee));
    assert_eq!(after[8..12], b.cpu.fpu.0[8..12]);
    let upper = b.cpu.fpu.0[288..416].to_vec();
    run(&mut b, &FXRSTOR[1..], 0);
    assert_eq!(b.cpu.fpu.0[288..416], upper);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_mask_round_trips(save in 0u64..8, load in 0u64..8, seed: u8) {
        let mut b = Bench::long();
        fill(&mut b, seed);
        let first = b.cpu.fpu.clone();
        run(&mut b, XSAVE, save);
        fill(&mut b, !seed);
        let second = b.cpu.fpu.clone();
        run(&mut b, XRSTOR, load);
        let parts = [(1, 32, 160), (2, 160, 416), (4, 576, 832)];
        for (bit, from, to) in parts {
            let now = &b.cpu.fpu.0[from..to];
            if load & bit == 0 {
                prop_assert_eq!(now, &second.0[from..to]);
            } else if save & bit != 0 {
                prop_assert_eq!(now, &first.0[from..to]);
            } else {
                prop_assert!(now.iter().all(|&byte| byte == 0));
            }
        }
    }
}
