//! SYSCALL, SYSENTER, their ways back, SWAPGS, bases of FS and GS.

use x86::Vendor;
use x86::cr::{cr4, efer, rflags};

use crate::event::debug;
use crate::run::bench::*;
use crate::segment::{FLAT_CODE32, FLAT_CODE64, FLAT_DATA};
use crate::state::{Seg, reg, seg};
use crate::stop::Exception;

const GP: Exception = Exception::gp(0);
const ENTRY: u64 = 0x1_8000;

fn bench(vendor: Vendor) -> Bench {
    let mut b = Bench::of(vendor);
    b.enter_long();
    b.cpu.msrs.star = u64::from(sel::USER_CODE32) << 48 | u64::from(sel::CODE64) << 32;
    b.cpu.msrs.lstar = ENTRY;
    b.cpu.msrs.cstar = ENTRY + 0x100;
    b.cpu.msrs.sfmask = rflags::TF | rflags::IF | rflags::DF;
    b.user(true);
    b
}

#[test]
fn syscall_enters_the_kernel() {
    let mut b = bench(Vendor::INTEL);
    b.bytes(&[0x0f, 0x05]);
    b.cpu.rflags |= rflags::IF | rflags::DF | rflags::CF;
    let flags = b.cpu.rflags;
    b.steps(1);
    assert_eq!(b.cpu.rip, ENTRY);
    assert_eq!(b.cpu.gpr[reg::RCX], CODE + 2);
    assert_eq!(b.cpu.gpr[11], flags);
    assert_eq!(b.cpu.rflags, rflags::RESERVED_ONE | rflags::CF);
    assert_eq!(b.cpu.cpl(), 0);
    let expected = Seg::flat(sel::CODE64, FLAT_CODE64, 0);
    assert_eq!(b.cpu.segs[seg::CS], expected);
    assert_eq!(b.cpu.segs[seg::SS], Seg::flat(sel::DATA, FLAT_DATA, 0));
    assert_eq!(b.cpu.gpr[reg::RSP], STACK);
}

#[test]
fn sysret_goes_back() {
    let mut b = bench(Vendor::INTEL);
    b.bytes(&[0x0f, 0x05]);
    b.put(ENTRY, &[0x48, 0x0f, 0x07]);
    b.cpu.rflags |= rflags::IF | rflags::DF;
    let flags = b.cpu.rflags;
    b.steps(2);
    assert_eq!(b.cpu.rip, CODE + 2);
    assert_eq!(b.cpu.rflags, flags);
    assert_eq!(b.cpu.cpl(), 3);
    assert!(b.cpu.code64());
    assert_eq!(b.cpu.segs[seg::CS].selector, sel::USER_CODE64);
    assert_eq!(b.cpu.segs[seg::SS].selector, sel::USER_DATA);
}

#[test]
fn sysret_without_rex_goes_to_32_bit_code() {
    let mut b = bench(Vendor::INTEL);
    b.bytes(&[0x0f, 0x05]);
    b.put(ENTRY, &[0x0f, 0x07]);
    b.steps(1);
    b.cpu.gpr[reg::RCX] = 0x1_2345_6789;
    b.cpu.gpr[11] = !0;
    assert_eq!(b.fault().payload, debug::DR6_BS, "TF is set");
    assert_eq!(b.cpu.rip, 0x2345_6789);
    assert_eq!(b.cpu.mode.bits(), 32);
    assert_eq!(b.cpu.segs[seg::CS].selector, sel::USER_CODE32);
    assert_eq!(b.cpu.rflags, 0x3c_7fd7, "neither RF nor VM");
}

#[test]
fn sysret_to_an_address_that_is_not_canonical() {
    for (vendor, faults) in [(Vendor::INTEL, true), (Vendor::AMD, false)] {
        let mut b = bench(vendor);
        b.bytes(&[0x0f, 0x05]);
        b.put(ENTRY, &[0x48, 0x0f, 0x07]);
        b.steps(1);
        b.cpu.gpr[reg::RCX] = 1 << 47;
        if faults {
            assert_eq!(b.fault(), GP);
            assert_eq!(b.cpu.cpl(), 0, "in the kernel still");
        } else {
            b.steps(1);
            assert_eq!(b.cpu.cpl(), 3);
            assert_eq!(b.fault(), GP);
        }
    }
}

#[test]
fn syscall_is_undefined_where_it_is_off_or_the_code_is_32_bit() {
    let mut b = bench(Vendor::INTEL);
    b.bytes(&[0x0f, 0x05]);
    b.cpu.efer &= !efer::SCE;
    assert_eq!(b.fault(), Exception::ud());
    b.cpu.efer |= efer::SCE;
    b.user(false);
    assert_eq!(b.fault(), Exception::ud());
    let mut b = bench(Vendor::AMD);
    b.bytes(&[0x0f, 0x05]);
    b.user(false);
    b.steps(1);
    assert_eq!(b.cpu.rip, ENTRY + 0x100, "AMD has an entry for it");
    assert!(b.cpu.code64());
}

#[test]
fn single_steps_see_the_flags_that_syscall_and_sysret_leave() {
    let mut b = bench(Vendor::INTEL);
    b.bytes(&[0x0f, 0x05]);
    b.put(ENTRY, &[0x48, 0x0f, 0x07]);
    b.cpu.rflags |= rflags::TF;
    b.cpu.update_mode();
    b.steps(1);
    assert_eq!(b.cpu.rip, ENTRY, "TF is masked: no trap");
    assert_eq!(b.fault().payload, debug::DR6_BS, "SYSRET sets it: at once");
    assert_eq!(b.cpu.rip, CODE + 2);
}

#[test]
fn sysenter_and_sysexit() {
    let mut b = bench(Vendor::INTEL);
    b.cpu.msrs.sysenter_cs = sel::CODE64.into();
    b.cpu.msrs.sysenter_eip = ENTRY;
    b.cpu.msrs.sysenter_esp = STACK0;
    b.user(false);
    b.bytes(&[0x0f, 0x34]);
    b.cpu.rflags |= rflags::IF;
    b.steps(1);
    assert_eq!(b.cpu.rip, ENTRY);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK0);
    assert!(b.cpu.code64());
    assert_eq!(b.cpu.cpl(), 0);
    assert_eq!(b.cpu.rflags & rflags::IF, 0);
    b.put(ENTRY, &[0x0f, 0x35, 0x48, 0x0f, 0x35]);
    b.cpu.gpr[reg::RCX] = 0x7000;
    b.cpu.gpr[reg::RDX] = CODE;
    b.steps(1);
    assert_eq!(b.cpu.cpl(), 3);
    assert_eq!(b.cpu.mode.bits(), 32);
    assert_eq!(b.cpu.segs[seg::CS].selector, (sel::CODE64 + 16) | 3);
    assert_eq!((b.cpu.rip, b.cpu.gpr[reg::RSP]), (CODE, 0x7000));
    assert_eq!(b.cpu.segs[seg::CS].attributes, FLAT_CODE32 | 3 << 5);
}

#[test]
fn sysenter_without_a_segment_or_on_amd() {
    let mut b = bench(Vendor::INTEL);
    b.bytes(&[0x0f, 0x34]);
    assert_eq!(b.fault(), GP);
    let mut b = bench(Vendor::AMD);
    b.cpu.msrs.sysenter_cs = 8;
    b.bytes(&[0x0f, 0x34]);
    assert_eq!(b.fault(), Exception::ud());
}

#[test]
fn swapgs_swaps() {
    let mut b = Bench::long();
    b.cpu.segs[seg::GS].base = 1;
    b.cpu.msrs.kernel_gs_base = 2;
    b.bytes(&[0x0f, 0x01, 0xf8]);
    b.steps(1);
    assert_eq!(
        (b.cpu.segs[seg::GS].base, b.cpu.msrs.kernel_gs_base),
        (2, 1)
    );
    let mut b = Bench::protected();
    b.bytes(&[0x0f, 0x01, 0xf8]);
    assert_eq!(b.fault(), Exception::ud());
}

#[test]
fn programs_set_their_bases_if_cr4_lets_them() {
    let mut b = Bench::long();
    b.user(true);
    // WRFSBASE RAX; RDFSBASE RCX; WRGSBASE EAX.
    b.bytes(&[
        0xf3, 0x48, 0x0f, 0xae, 0xd0, 0xf3, 0x48, 0x0f, 0xae, 0xc1, 0xf3, 0x0f, 0xae, 0xd8,
    ]);
    b.cpu.gpr[reg::RAX] = 0x7fff_1234_5678;
    assert_eq!(b.fault(), Exception::ud());
    b.cpu.cr4 |= cr4::FSGSBASE;
    b.cpu.update_mode();
    b.steps(3);
    assert_eq!(b.cpu.gpr[reg::RCX], 0x7fff_1234_5678);
    assert_eq!(b.cpu.segs[seg::GS].base, 0x1234_5678);
    b.cpu.rip = CODE;
    b.cpu.gpr[reg::RAX] = 1 << 47;
    assert_eq!(b.fault(), GP);
}
