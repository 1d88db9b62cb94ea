use iced_x86::code_asm::{eax, ecx, rax, rbx};
use x86::cr::{cr0, cr4, efer, rflags};
use x86::{Feature, Vendor, msr};

use crate::run::bench::*;
use crate::state::{Mode, reg, seg};
use crate::stop::{DeviceRequest, Exception, Stop};

mod calls;
mod compacted;
mod save;

const GP: Exception = Exception::gp(0);

/// MOV CRn, RAX.
fn mov_cr(b: &mut Bench, n: u8, value: u64) -> Result<(), Stop> {
    b.cpu.rip = CODE;
    b.cpu.gpr[reg::RAX] = value;
    let mut code = vec![0x0f, 0x22, 0xc0 | (n & 7) << 3];
    if n >= 8 {
        code.insert(0, 0x44);
    }
    b.bytes(&code);
    b.step()
}

fn wrmsr(b: &mut Bench, index: u32, value: u64) -> Result<(), Stop> {
    b.cpu.rip = CODE;
    b.cpu.gpr[reg::RCX] = index.into();
    b.cpu.gpr[reg::RAX] = value & 0xffff_ffff;
    b.cpu.gpr[reg::RDX] = value >> 32;
    b.bytes(&[0x0f, 0x30]);
    b.step()
}

fn rdmsr(b: &mut Bench, index: u32) -> Result<u64, Stop> {
    b.cpu.rip = CODE;
    b.cpu.gpr[reg::RCX] = index.into();
    b.bytes(&[0x0f, 0x32]);
    b.step()?;
    Ok(b.cpu.gpr[reg::RDX] << 32 | b.cpu.gpr[reg::RAX])
}

fn gp<T>() -> Result<T, Stop> {
    Err(Stop::Exception(GP))
}

#[test]
fn cr0_refuses_what_makes_no_sense() {
    let mut b = Bench::long();
    let cr0 = b.cpu.cr0;
    assert_eq!(
        mov_cr(&mut b, 0, cr0 & !cr0::PE),
        gp(),
        "paging without protection"
    );
    assert_eq!(mov_cr(&mut b, 0, cr0 | cr0::NW), gp(), "NW without CD");
    assert_eq!(
        mov_cr(&mut b, 0, cr0 & !cr0::PG),
        gp(),
        "leaving from 64-bit code"
    );
    assert_eq!(mov_cr(&mut b, 0, cr0 | 1 << 32), gp());
    assert_eq!(b.cpu.cr0, cr0);
    mov_cr(&mut b, 0, cr0 & !cr0::ET | cr0::TS).unwrap();
    assert_eq!(b.cpu.cr0, cr0 | cr0::TS, "ET stays");
    assert!(b.cpu.mode.has(Mode::TS));
    assert_eq!(b.p.serialized, 1);
}

#[test]
fn clts_and_lmsw() {
    let mut b = Bench::long();
    b.cpu.cr0 |= cr0::TS;
    b.cpu.update_mode();
    b.bytes(&[0x0f, 0x06, 0x0f, 0x01, 0xf0, 0x0f, 0x01, 0xe3]);
    b.steps(1);
    assert!(!b.cpu.mode.has(Mode::TS));
    b.cpu.gpr[reg::RAX] = cr0::TS | cr0::NE;
    let before = b.cpu.cr0;
    b.steps(1);
    assert_eq!(
        b.cpu.cr0,
        before | cr0::TS,
        "PE stays, bits above 3 do not count"
    );
    b.cpu.gpr[reg::RBX] = !0;
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RBX], b.cpu.cr0);
}

#[test]
fn long_mode_needs_pae_and_code_that_is_not_64_bit() {
    let mut b = Bench::protected();
    b.cpu.efer = efer::LME;
    let on = cr0::PG | cr0::PE;
    assert_eq!(mov_cr(&mut b, 0, on), gp(), "without PAE");
    b.cpu.cr4 = cr4::PAE;
    b.cpu.cr3 = PML4;
    mov_cr(&mut b, 0, on).unwrap();
    assert_eq!(b.cpu.efer, efer::LME | efer::LMA);
    assert!(b.cpu.mode.has(Mode::LONG) && !b.cpu.code64());
    assert_eq!(mov_cr(&mut b, 4, 0), gp(), "PAE cannot go now");
    assert_eq!(wrmsr(&mut b, msr::EFER, 0), gp(), "nor LME");
    mov_cr(&mut b, 0, cr0::PE).unwrap();
    assert_eq!(b.cpu.efer, efer::LME);
}

#[test]
fn pae_paging_loads_its_pointers() {
    let mut b = Bench::protected();
    b.cpu.cr4 = cr4::PAE;
    b.set(DATA, 0x3001);
    for n in 1..4 {
        b.set(DATA + 8 * n, 0);
    }
    b.set(DATA + 0x20, 0x3007);
    b.cpu.cr3 = DATA;
    mov_cr(&mut b, 0, cr0::PG | cr0::PE).unwrap();
    assert_eq!(b.cpu.pdptrs, [0x3001, 0, 0, 0]);
    assert_eq!(mov_cr(&mut b, 3, DATA + 0x20), gp(), "reserved bits");
    assert_eq!(b.cpu.cr3, DATA);
    assert_eq!(b.cpu.pdptrs, [0x3001, 0, 0, 0]);
}

#[test]
fn cr3_takes_an_address_and_with_pcids_the_wish_to_keep() {
    let mut b = Bench::long();
    assert_eq!(mov_cr(&mut b, 3, PML4 | 1 << 63), gp());
    assert_eq!(
        mov_cr(&mut b, 3, 1 << 40),
        gp(),
        "beyond the physical width"
    );
    mov_cr(&mut b, 3, PML4 | 0x18).unwrap();
    assert_eq!(b.cpu.cr3, PML4 | 0x18);
    let cr4 = b.cpu.cr4;
    assert_eq!(
        mov_cr(&mut b, 4, cr4 | cr4::PCIDE),
        gp(),
        "while CR3 has low bits"
    );
    mov_cr(&mut b, 3, PML4).unwrap();
    mov_cr(&mut b, 4, cr4 | cr4::PCIDE).unwrap();
    mov_cr(&mut b, 3, PML4 | 5 | 1 << 63).unwrap();
    assert_eq!(b.cpu.cr3, PML4 | 5);
}

#[test]
fn a_new_cr3_forgets_translations() {
    let mut b = Bench::long();
    b.set(PAGES, 0x11);
    b.set(PAGES + 0x1000, 0x22);
    b.cpu.gpr[reg::RBX] = PAGES;
    b.code(64, |a| {
        a.mov(ecx, iced_x86::code_asm::dword_ptr(rbx)).unwrap();
        a.mov(rax, iced_x86::code_asm::cr3).unwrap();
        a.mov(iced_x86::code_asm::cr3, rax).unwrap();
        a.mov(ecx, iced_x86::code_asm::dword_ptr(rbx)).unwrap();
        a.invlpg(iced_x86::code_asm::ptr(rbx)).unwrap();
        a.mov(ecx, iced_x86::code_asm::dword_ptr(rbx)).unwrap();
    });
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RCX], 0x11);
    b.set(TABLE, (PAGES + 0x1000) | 7);
    b.steps(3);
    assert_eq!(b.cpu.gpr[reg::RCX], 0x22);
    b.set(TABLE, PAGES | 7);
    b.steps(2);
    assert_eq!(b.cpu.gpr[reg::RCX], 0x11);
}

#[test]
fn cr4_has_the_bits_of_the_features() {
    let mut b = Bench::long();
    let cr4 = b.cpu.cr4;
    for bit in [
        cr4::LA57,
        cr4::VMXE,
        cr4::PKE,
        cr4::CET,
        cr4::VME,
        1 << 15,
        1 << 32,
    ] {
        assert_eq!(mov_cr(&mut b, 4, cr4 | bit), gp(), "{bit:#x}");
    }
    let all = cr4::TSD
        | cr4::DE
        | cr4::PSE
        | cr4::MCE
        | cr4::PGE
        | cr4::PCE
        | cr4::OSXMMEXCPT
        | cr4::UMIP
        | cr4::FSGSBASE
        | cr4::SMEP;
    mov_cr(&mut b, 4, cr4 | all).unwrap();
    assert_eq!(b.cpu.cr4, cr4 | all);
}

#[test]
fn cr8_is_the_platforms() {
    let mut b = Bench::long();
    mov_cr(&mut b, 8, 9).unwrap();
    assert_eq!(b.p.priority, 9);
    assert_eq!(mov_cr(&mut b, 8, 16), gp());
    b.cpu.rip = CODE;
    b.bytes(&[0x44, 0x0f, 0x20, 0xc1]);
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RCX], 9);
}

#[test]
fn there_is_no_cr1_and_none_for_programs() {
    let mut b = Bench::long();
    assert_eq!(mov_cr(&mut b, 1, 0), Err(Exception::ud().into()));
    b.user(true);
    assert_eq!(mov_cr(&mut b, 2, 0), gp());
}

#[test]
fn debug_registers() {
    let mut b = Bench::long();
    // MOV DR0, RAX; MOV DR7, RAX; MOV RCX, DR7; MOV RCX, DR4.
    b.cpu.gpr[reg::RAX] = 0xffff_ffff;
    b.bytes(&[
        0x0f, 0x23, 0xc0, 0x0f, 0x23, 0xf0, 0x0f, 0x21, 0xf1, 0x0f, 0x21, 0xe1,
    ]);
    b.steps(3);
    assert_eq!(b.cpu.dr[0], 0xffff_ffff);
    assert_eq!(b.cpu.dr6, 0xffff_eff0 | 0xf | 1 << 13 | 1 << 14 | 1 << 15);
    assert_eq!(b.cpu.gpr[reg::RCX], b.cpu.dr6);
    b.steps(1);
    b.cpu.cr4 |= cr4::DE;
    b.cpu.rip -= 3;
    assert_eq!(b.fault(), Exception::ud());
    b.cpu.gpr[reg::RAX] = 1 << 32;
    b.cpu.rip = CODE + 3;
    assert_eq!(b.fault(), GP);
    b.user(true);
    assert_eq!(b.fault(), GP);
}

#[test]
fn dr7_has_fixed_bits() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RAX] = 0;
    b.bytes(&[0x0f, 0x23, 0xf8]);
    b.steps(1);
    assert_eq!(b.cpu.dr7, 0x400);
    assert!(!b.cpu.mode.has(Mode::STEP));
    b.cpu.rip = CODE;
    b.cpu.gpr[reg::RAX] = 0xffff_ffff & !(1 << 13);
    b.steps(1);
    assert_eq!(b.cpu.dr7, 0xffff_07ff);
    assert!(b.cpu.mode.has(Mode::STEP));
}

#[test]
fn efer_has_the_bits_of_the_features() {
    let mut b = Bench::long();
    let efer = b.cpu.efer;
    assert_eq!(wrmsr(&mut b, msr::EFER, efer | efer::SVME), gp());
    assert_eq!(wrmsr(&mut b, msr::EFER, efer | 1 << 1), gp());
    wrmsr(&mut b, msr::EFER, efer & !efer::LMA & !efer::NXE).unwrap();
    assert_eq!(b.cpu.efer, efer & !efer::NXE, "LMA is the processor's");
}

#[test]
fn msrs_of_bases_want_canonical_values() {
    let mut b = Bench::long();
    for index in [
        msr::FS_BASE,
        msr::GS_BASE,
        msr::KERNEL_GS_BASE,
        msr::LSTAR,
        msr::CSTAR,
        msr::SYSENTER_EIP,
        msr::SYSENTER_ESP,
    ] {
        assert_eq!(wrmsr(&mut b, index, 1 << 63), gp(), "{index:#x}");
        let value = 0xffff_8000_0000_0000 | u64::from(index);
        wrmsr(&mut b, index, value).unwrap();
        assert_eq!(rdmsr(&mut b, index), Ok(value));
    }
    assert_eq!(b.cpu.segs[seg::FS].base, 0xffff_8000_c000_0100);
}

#[test]
fn msrs_of_memory_types_are_checked() {
    let mut b = Bench::long();
    wrmsr(&mut b, msr::PAT, 0x0007_0406_0007_0401).unwrap();
    assert_eq!(wrmsr(&mut b, msr::PAT, 2), gp());
    assert_eq!(rdmsr(&mut b, msr::MTRR_CAP), Ok(0x508));
    assert_eq!(wrmsr(&mut b, msr::MTRR_CAP, 0), gp());
    wrmsr(&mut b, msr::MTRR_DEF_TYPE, 0xc06).unwrap();
    assert_eq!(wrmsr(&mut b, msr::MTRR_DEF_TYPE, 0xc07), gp());
    wrmsr(&mut b, msr::MTRR_FIX4K_C0000 + 7, 0x0505_0505_0505_0505).unwrap();
    assert_eq!(b.cpu.msrs.mtrr_fixed[10], 0x0505_0505_0505_0505);
    assert_eq!(wrmsr(&mut b, msr::MTRR_FIX16K_80000, 2), gp());
    wrmsr(&mut b, msr::MTRR_PHYSBASE0 + 14, 0x8000_0006).unwrap();
    wrmsr(&mut b, msr::MTRR_PHYSBASE0 + 15, 0xff_8000_0800).unwrap();
    assert_eq!(rdmsr(&mut b, msr::MTRR_PHYSBASE0 + 15), Ok(0xff_8000_0800));
    assert_eq!(wrmsr(&mut b, msr::MTRR_PHYSBASE0, 1 << 40 | 6), gp());
}

#[test]
fn every_owned_msr_of_the_state_is_read_and_written_here() {
    let mut b = Bench::long();
    for &index in crate::state::Msrs::OWNED {
        let value = rdmsr(&mut b, index).unwrap_or_else(|_| panic!("no MSR {index:#x}"));
        assert_eq!(b.cpu.msrs.get(index), Some(value), "{index:#x}");
        wrmsr(&mut b, index, value).unwrap_or_else(|_| panic!("MSR {index:#x}"));
    }
}

#[test]
fn unknown_msrs_are_the_platforms() {
    let mut b = Bench::long();
    wrmsr(&mut b, PLATFORM_MSR, 0x1_0000_0002).unwrap();
    assert_eq!(rdmsr(&mut b, PLATFORM_MSR), Ok(0x1_0000_0002));
    assert_eq!(rdmsr(&mut b, 0xdead), gp());
    b.user(true);
    assert_eq!(rdmsr(&mut b, PLATFORM_MSR), gp());
}

#[test]
fn the_time_stamp_counter_moves_with_its_adjustment() {
    let mut b = Bench::long();
    b.p.tsc = 1000;
    wrmsr(&mut b, msr::TSC, 5000).unwrap();
    assert_eq!(rdmsr(&mut b, msr::TSC_ADJUST), Ok(4000));
    wrmsr(&mut b, msr::TSC_ADJUST, 0).unwrap();
    b.p.tsc = 0x1_0000_0001;
    b.cpu.rip = CODE;
    b.cpu.msrs.tsc_aux = 7;
    b.bytes(&[0x0f, 0x01, 0xf9]);
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RAX], 1);
    assert_eq!(b.cpu.gpr[reg::RDX], 1);
    assert_eq!(b.cpu.gpr[reg::RCX], 7);
    b.user(true);
    b.cpu.cr4 |= cr4::TSD;
    b.cpu.update_mode();
    b.bytes(&[0x0f, 0x31]);
    assert_eq!(b.fault(), GP);
}

#[test]
fn rdpmc_and_rdpid() {
    let mut b = Bench::long();
    b.cpu.msrs.tsc_aux = 0x55;
    b.bytes(&[0x0f, 0x33, 0xf3, 0x0f, 0xc7, 0xf8]);
    b.cpu.gpr[reg::RCX] = 0;
    b.steps(1);
    assert_eq!((b.cpu.gpr[reg::RDX], b.cpu.gpr[reg::RAX]), (1, 0x2345_6789));
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RAX], 0x55);
    b.user(true);
    b.cpu.rip = CODE;
    assert_eq!(b.fault(), GP);
    b.cpu.cr4 |= cr4::PCE;
    b.steps(1);
}

fn ask_cpuid(b: &mut Bench, leaf: u32, subleaf: u32) -> [u64; 4] {
    b.cpu.rip = CODE;
    b.cpu.gpr[reg::RAX] = leaf.into();
    b.cpu.gpr[reg::RCX] = subleaf.into();
    b.bytes(&[0x0f, 0xa2]);
    b.steps(1);
    [reg::RAX, reg::RBX, reg::RCX, reg::RDX].map(|r| b.cpu.gpr[r])
}

#[test]
fn cpuid_follows_cr4_and_xcr0() {
    let mut b = Bench::long();
    assert_ne!(ask_cpuid(&mut b, 1, 0)[2] & 1 << 27, 0);
    assert_eq!(ask_cpuid(&mut b, 0xd, 0)[1], 832);
    b.cpu.xcr0 = 3;
    assert_eq!(ask_cpuid(&mut b, 0xd, 0)[1], 576);
    b.cpu.cr4 &= !cr4::OSXSAVE;
    assert_eq!(ask_cpuid(&mut b, 1, 0)[2] & 1 << 27, 0);
    assert_eq!(ask_cpuid(&mut b, 0x7777, 0), [0; 4]);
    assert_eq!(b.p.serialized, 5);
}

#[test]
fn xcr0_is_checked() {
    let mut b = Bench::long();
    let set = |b: &mut Bench, index: u64, value: u64| {
        b.cpu.rip = CODE;
        b.cpu.gpr[reg::RCX] = index;
        b.cpu.gpr[reg::RAX] = value;
        b.cpu.gpr[reg::RDX] = 0;
        b.bytes(&[0x0f, 0x01, 0xd1]);
        b.step()
    };
    assert_eq!(set(&mut b, 0, 6), gp(), "x87 must be on");
    assert_eq!(set(&mut b, 0, 5), gp(), "AVX needs SSE");
    assert_eq!(set(&mut b, 0, 0xf), gp(), "not there");
    assert_eq!(set(&mut b, 1, 1), gp());
    set(&mut b, 0, 3).unwrap();
    assert!(!b.cpu.mode.has(Mode::AVX));
    b.cpu.cr4 &= !cr4::OSXSAVE;
    b.cpu.update_mode();
    assert_eq!(set(&mut b, 0, 7), Err(Exception::ud().into()));
}

#[test]
fn xgetbv_gives_xcr0_and_what_is_in_use() {
    let mut b = Bench::long();
    b.bytes(&[0x0f, 0x01, 0xd0, 0x0f, 0x01, 0xd0]);
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RAX], 7);
    b.cpu.gpr[reg::RCX] = 1;
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RAX], 1, "all initial");
}

#[test]
fn ports_need_iopl_or_the_bitmap() {
    let mut b = Bench::long();
    b.user(true);
    b.bytes(&[0xe6, 0x80]);
    b.put(TSS + 0x68, &[0xff; 0x40]);
    assert_eq!(b.fault(), GP);
    b.put(TSS + 0x68 + 0x10, &[0xfe]);
    b.steps(1);
    b.cpu.rip = CODE;
    // A word needs two bits, here in two bytes.
    b.bytes(&[0x66, 0xe7, 0x87]);
    assert_eq!(b.fault(), GP);
    b.put(TSS + 0x68 + 0x10, &[0x7e, 0xfe]);
    b.steps(1);
    b.cpu.rip = CODE;
    b.cpu.tr.limit = 0x68 + 0x10;
    assert_eq!(b.fault(), GP, "the bitmap must have one more byte");
    b.cpu.rflags |= rflags::IOPL;
    b.steps(1);
    assert_eq!(b.p.doorbells.len(), 3);
}

#[test]
fn cli_and_sti_need_iopl() {
    let mut b = Bench::long();
    b.user(true);
    b.bytes(&[0xfa]);
    assert_eq!(b.fault(), GP);
    b.cpu.rflags |= rflags::IOPL | rflags::IF;
    b.steps(1);
    assert_eq!(b.cpu.rflags & rflags::IF, 0);
}

#[test]
fn stac_and_clac_are_ring_0s() {
    let mut b = Bench::long();
    b.cpu.cr4 |= cr4::SMAP;
    b.cpu.update_mode();
    b.bytes(&[0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca]);
    // Code is on user pages, which SMAP does not mind.
    b.steps(1);
    assert!(!b.cpu.mode.has(Mode::SMAP));
    b.steps(1);
    assert!(b.cpu.mode.has(Mode::SMAP));
    b.user(true);
    b.cpu.rip = CODE;
    assert_eq!(b.fault(), Exception::ud());
}

#[test]
fn umip_hides_the_tables_from_programs() {
    let mut b = Bench::long();
    b.user(true);
    for code in [
        [0x0f, 0x01, 0x03],
        [0x0f, 0x01, 0x0b],
        [0x0f, 0x00, 0xc0],
        [0x0f, 0x00, 0xc8],
        [0x0f, 0x01, 0xe0],
    ] {
        b.cpu.rip = CODE;
        b.cpu.gpr[reg::RBX] = DATA;
        b.bytes(&code);
        b.cpu.cr4 &= !cr4::UMIP;
        b.cpu.update_mode();
        b.steps(1);
        b.cpu.rip = CODE;
        b.cpu.cr4 |= cr4::UMIP;
        b.cpu.update_mode();
        assert_eq!(b.fault(), GP, "{code:x?}");
    }
}

#[test]
fn privileged_instructions_are_refused_to_programs() {
    let cases: &[&[u8]] = &[
        &[0xf4],
        &[0x0f, 0x06],
        &[0x0f, 0x08],
        &[0x0f, 0x09],
        &[0x0f, 0x30],
        &[0x0f, 0x32],
        &[0x0f, 0x01, 0x13],
        &[0x0f, 0x01, 0x1b],
        &[0x0f, 0x01, 0x3b],
        &[0x0f, 0x01, 0xf0],
        &[0x0f, 0x00, 0xd0],
        &[0x0f, 0x00, 0xd8],
        &[0x0f, 0x01, 0xf8],
        &[0x0f, 0x01, 0xd1],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x23, 0xc0],
        &[0x48, 0x0f, 0x07],
        &[0x66, 0x0f, 0x38, 0x82, 0x03],
    ];
    for code in cases {
        let mut b = Bench::long();
        b.user(true);
        b.cpu.gpr[reg::RBX] = DATA;
        b.bytes(code);
        assert_eq!(b.fault(), GP, "{code:x?}");
    }
}

#[test]
fn instructions_that_are_not_there() {
    let cases: &[&[u8]] = &[
        &[0x0f, 0x0b],
        &[0x0f, 0xb9, 0xc0],
        &[0x0f, 0xff, 0xc0],
        &[0x0f, 0xaa],
        &[0x0f, 0x01, 0xc8],
        &[0x0f, 0x01, 0xc9],
        &[0xf0, 0xf4],
        &[0xf0, 0xfa],
    ];
    for code in cases {
        let mut b = Bench::long();
        b.bytes(code);
        assert_eq!(b.fault(), Exception::ud(), "{code:x?}");
    }
}

#[test]
fn hypercalls_reach_the_platform_from_ring_0() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RAX] = 5;
    b.cpu.gpr[reg::RBX] = 1;
    b.cpu.gpr[reg::RCX] = 2;
    b.cpu.gpr[reg::RDX] = 3;
    b.cpu.gpr[reg::RSI] = 4;
    b.bytes(&[0x0f, 0x01, 0xc1, 0x0f, 0x01, 0xd9]);
    b.steps(1);
    assert_eq!(b.p.calls, [(5, [1, 2, 3, 4])]);
    assert_eq!(b.cpu.gpr[reg::RAX], 77);
    b.user(true);
    b.steps(1);
    assert_eq!(b.p.calls.len(), 1);
    assert_eq!(b.cpu.gpr[reg::RAX], -1i64 as u64);
}

#[test]
fn invpcid_checks_its_descriptor() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RBX] = DATA;
    b.bytes(&[0x66, 0x0f, 0x38, 0x82, 0x03]);
    for (kind, pcid, at, good) in [
        (0, 0, 0x1000, true),
        (0, 0, 1 << 63, false),
        (0, 1, 0, false),
        (1, 1 << 12, 0, false),
        (2, 0, 0, true),
        (3, 0, 0, true),
        (4, 0, 0, false),
    ] {
        b.cpu.rip = CODE;
        b.cpu.gpr[reg::RAX] = kind;
        b.set(DATA, pcid);
        b.set(DATA + 8, at);
        let expected = if good { Ok(()) } else { gp() };
        assert_eq!(b.step(), expected, "type {kind}");
    }
}

#[test]
fn cache_line_instructions_fault_like_loads() {
    let mut b = Bench::long();
    b.set(TABLE, 0);
    b.cpu.gpr[reg::RBX] = DATA;
    b.bytes(&[
        0x0f, 0xae, 0x3b, 0x66, 0x0f, 0xae, 0x3b, 0x66, 0x0f, 0xae, 0x33,
    ]);
    b.steps(3);
    b.cpu.gpr[reg::RBX] = PAGES;
    b.cpu.rip = CODE;
    assert_eq!(b.fault(), Exception::page_fault(PAGES, 0));
}

#[test]
fn monitor_and_mwait_are_there_only_if_shown() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RAX] = DATA;
    b.bytes(&[0x0f, 0x01, 0xc8, 0x0f, 0x01, 0xc9]);
    assert_eq!(b.fault(), Exception::ud());
    b.cpu.features.insert(const { Feature::of("monitor") });
    b.steps(2);
    assert_eq!(b.cpu.rip, CODE + 6);
}

#[test]
fn writes_to_doorbell_ports_need_no_stop_and_others_do() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RAX] = 0x1234_5678;
    b.bytes(&[0xe7, 0x81, 0xe7, 0x70]);
    b.steps(1);
    assert_eq!(b.p.doorbells, [(0x81, 0x1234_5678)]);
    let request = DeviceRequest::PortWrite {
        port: 0x70,
        size: 4,
        value: 0x1234_5678,
    };
    assert_eq!(b.answer(request, 0), Ok(()));
    assert_eq!(b.cpu.rip, CODE + 4);
}

#[test]
fn sixteen_bit_operands_of_in_keep_the_rest() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RAX] = !0;
    b.cpu.gpr[reg::RDX] = 0x3f8;
    b.code(64, |a| {
        a.in_(iced_x86::code_asm::ax, iced_x86::code_asm::dx)
            .unwrap();
        a.in_(eax, iced_x86::code_asm::dx).unwrap();
    });
    let ask = |size| DeviceRequest::PortRead { port: 0x3f8, size };
    assert_eq!(b.answer(ask(2), 0x1234), Ok(()));
    assert_eq!(b.cpu.gpr[reg::RAX], !0xffff | 0x1234);
    assert_eq!(b.answer(ask(4), 0x8765_4321), Ok(()));
    assert_eq!(b.cpu.gpr[reg::RAX], 0x8765_4321);
}

#[test]
fn the_vendor_is_known() {
    assert!(!Bench::real().cpu.amd());
    assert!(Bench::of(Vendor::AMD).cpu.amd());
}
