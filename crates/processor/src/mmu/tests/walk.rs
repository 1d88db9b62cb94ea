use super::*;
use crate::stop::{Access, Exception};

const LINEAR: u64 = 0x7f12_3456_7000;
const TARGET: u64 = 0x8000;
const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Execute];

/// SDM vol. 3A 4.6.1, paragraph by paragraph.
fn manual_allows(
    access: Access,
    supervisor: bool,
    user_page: bool,
    writable: bool,
    nx: bool,
    (wp, smep, smap, ac): (bool, bool, bool, bool),
) -> bool {
    if supervisor {
        match access {
            Access::Read => !user_page || !smap || ac,
            Access::Write if !user_page => writable || !wp,
            Access::Write => (!smap || ac) && (writable || !wp),
            Access::Execute if user_page && smep => false,
            Access::Execute => !nx,
        }
    } else {
        user_page
            && match access {
                Access::Read => true,
                Access::Write => writable,
                Access::Execute => !nx,
            }
    }
}

#[test]
fn rights_are_the_manuals_in_every_combination() {
    let mut b = Bench::new(64 << 10);
    b.long(TABLES[0], 0);
    let set = |on: bool, bits: u64| if on { bits } else { 0 };
    for case in 0..1u32 << 11 {
        let bit = |n: u32| case >> n & 1 != 0;
        let (user_upper, user_last) = (bit(0), bit(1));
        let (write_upper, write_last) = (bit(2), bit(3));
        let (nx_upper, nx_last) = (bit(4), bit(5));
        let (wp, smep, smap, ac, supervisor) = (bit(6), bit(7), bit(8), bit(9), bit(10));
        b.cpu.cr0 = cr0::PE | cr0::PG | set(wp, cr0::WP);
        b.cpu.cr4 = cr4::PAE | set(smep, cr4::SMEP) | set(smap, cr4::SMAP);
        b.cpu.rflags = rflags::RESERVED_ONE | set(ac, rflags::AC);
        b.set_cpl(if supervisor { 0 } else { 3 });
        let (user, writable, nx) = (
            user_upper && user_last,
            write_upper && write_last,
            nx_upper || nx_last,
        );
        for access in ACCESSES {
            let bits = |u, w, x| pte::P | set(u, pte::U) | set(w, pte::W) | set(x, pte::NX);
            let last = bits(user_last, write_last, nx_last);
            b.map_page(
                LINEAR,
                TARGET,
                bits(user_upper, write_upper, nx_upper),
                last,
            );
            b.cpu.flush_tlb();
            let got = b.cpu.translate(LINEAR + 5, access, As::Current);
            let allowed =
                manual_allows(access, supervisor, user, writable, nx, (wp, smep, smap, ac));
            let seen = entries(LINEAR).map(|at| b.peek(at) & (pte::A | pte::D));
            if allowed {
                assert_eq!(got, Ok(TARGET + 5), "case {case:#x} {access:?}");
                let last = pte::A | set(access == Access::Write, pte::D);
                assert_eq!(
                    seen,
                    [pte::A, pte::A, pte::A, last],
                    "case {case:#x} {access:?}"
                );
            } else {
                let code = 1
                    | set(access == Access::Write, 2)
                    | set(!supervisor, 4)
                    | set(access == Access::Execute, 16);
                let fault = Exception::page_fault(LINEAR + 5, code as u32);
                assert_eq!(got, Err(fault), "case {case:#x} {access:?}");
                assert_eq!(seen, [0; 4], "case {case:#x} {access:?}");
            }
        }
    }
}

#[test]
fn implicit_accesses_are_supervisor_and_heed_smap_whatever_ac_says() {
    let mut b = Bench::new(64 << 10);
    b.long(TABLES[0], 3);
    b.map_page(LINEAR, TARGET, pte::ALL, pte::P | pte::W);
    let fault = Exception::page_fault(LINEAR, 5);
    assert_eq!(
        b.cpu.translate(LINEAR, Access::Read, As::Current),
        Err(fault)
    );
    assert_eq!(
        b.cpu.translate(LINEAR, Access::Read, As::System),
        Ok(TARGET)
    );
    b.map_page(LINEAR, TARGET, pte::ALL, pte::ALL);
    b.cpu.cr4 |= cr4::SMAP;
    b.cpu.rflags |= rflags::AC;
    b.set_cpl(0);
    b.cpu.flush_tlb();
    let fault = Exception::page_fault(LINEAR, 1);
    assert_eq!(
        b.cpu.translate(LINEAR, Access::Read, As::Current),
        Ok(TARGET)
    );
    assert_eq!(
        b.cpu.translate(LINEAR, Access::Read, As::System),
        Err(fault)
    );
}

#[test]
fn an_entry_that_is_not_present_or_has_reserved_bits_says_which() {
    let mut b = Bench::new(64 << 10);
    b.long(TABLES[0], 0);
    for level in 0..4 {
        b.map_page(LINEAR, TARGET, pte::ALL, pte::ALL);
        let at = entries(LINEAR)[level];
        let good = b.peek(at);
        // Reserved bits of an entry that is not present do not matter.
        b.poke(at, (good & !pte::P) | 1 << 51);
        let got = b.cpu.translate(LINEAR, Access::Write, As::Current);
        assert_eq!(got, Err(Exception::page_fault(LINEAR, 2)), "level {level}");
        for bit in PHYS_BITS..52 {
            b.poke(at, good | 1 << bit);
            let got = b.cpu.translate(LINEAR, Access::Read, As::Current);
            assert_eq!(got, Err(Exception::page_fault(LINEAR, 9)), "{level} {bit}");
        }
        for ignored in [9, 10, 11, 52, 62] {
            b.poke(at, good | 1 << ignored);
            let got = b.cpu.translate(LINEAR, Access::Read, As::Current);
            assert_eq!(got, Ok(TARGET), "level {level} bit {ignored}");
            b.cpu.flush_tlb();
        }
        b.poke(at, good | pte::NX);
        b.cpu.efer &= !efer::NXE;
        let got = b.cpu.translate(LINEAR, Access::Execute, As::Current);
        // Without NX and SMEP the error code does not tell fetches from reads.
        assert_eq!(got, Err(Exception::page_fault(LINEAR, 9)), "level {level}");
        b.cpu.efer |= efer::NXE;
    }
    let top = entries(LINEAR)[0];
    b.poke(top, TABLES[1] | pte::ALL | pte::PS);
    let got = b.cpu.translate(LINEAR, Access::Read, As::Current);
    assert_eq!(got, Err(Exception::page_fault(LINEAR, 9)), "PS in a PML4E");
}

#[test]
fn a_missing_entry_below_outweighs_missing_rights_above() {
    let mut b = Bench::new(64 << 10);
    b.long(TABLES[0], 3);
    b.map_page(LINEAR, TARGET, pte::P, 0);
    let got = b.cpu.translate(LINEAR, Access::Write, As::Current);
    assert_eq!(got, Err(Exception::page_fault(LINEAR, 6)));
}

#[test]
fn large_pages_of_four_level_paging() {
    let mut b = Bench::new(64 << 10);
    b.long(TABLES[0], 0);
    b.map_page(LINEAR, TARGET, pte::ALL, pte::ALL);
    let [_, pdpte, pde, _] = entries(LINEAR);
    // The PAT's bit 12 is not part of the address.
    b.poke(pde, 0x20_0000 | 1 << 12 | pte::ALL | pte::PS);
    let offset = LINEAR & 0x1f_ffff;
    let got = b.cpu.translate(LINEAR, Access::Write, As::Current);
    assert_eq!(got, Ok(0x20_0000 + offset));
    assert_ne!(b.peek(pde) & pte::D, 0);
    for bit in 13..21 {
        b.poke(pde, 1 << bit | pte::ALL | pte::PS);
        let got = b.cpu.translate(LINEAR, Access::Read, As::Current);
        assert_eq!(got, Err(Exception::page_fault(LINEAR, 9)), "bit {bit}");
    }
    b.poke(pdpte, 3 << 30 | 1 << 12 | pte::ALL | pte::PS);
    let got = b.cpu.translate(LINEAR, Access::Read, As::Current);
    assert_eq!(got, Ok(3 << 30 | LINEAR & 0x3fff_ffff));
    for bit in 13..30 {
        b.poke(pdpte, 1 << bit | pte::ALL | pte::PS);
        let got = b.cpu.translate(LINEAR, Access::Read, As::Current);
        assert_eq!(got, Err(Exception::page_fault(LINEAR, 9)), "bit {bit}");
    }
}

#[test]
fn legacy_paging_with_small_and_large_pages() {
    let mut b = Bench::new(64 << 10);
    b.flat();
    b.cpu.cr3 = 0x1000;
    b.cpu.cr0 |= cr0::PG;
    b.cpu.update_mode();
    let linear = 0xc012_3456;
    let (pde, pte_at) = (0x1000 + 0x300 * 4, 0x2000 + 0x123 * 4);
    b.poke(pde, 0x2000 | pte::P | pte::W);
    b.poke(pte_at, 0x9000 | pte::P | pte::W);
    let got = b.cpu.translate(linear, Access::Write, As::Current);
    assert_eq!(got, Ok(0x9456));
    assert_eq!(b.peek(pde) & 0xff, pte::P | pte::W | pte::A);
    assert_eq!(b.peek(pte_at) & 0xff, pte::P | pte::W | pte::A | pte::D);
    assert_eq!(b.peek(pte_at) >> 32, 0, "the neighbour is left alone");

    // PS means nothing without CR4.PSE.
    b.poke(pde, 0x2000 | pte::ALL | pte::PS);
    b.cpu.flush_tlb();
    assert_eq!(
        b.cpu.translate(linear, Access::Read, As::Current),
        Ok(0x9456)
    );
    b.cpu.cr4 |= cr4::PSE;
    b.cpu.flush_tlb();
    // Bits 20 to 13 are bits 39 to 32 of the address.
    b.poke(pde, 0x40_0000 | 0x12 << 13 | pte::ALL | pte::PS);
    let got = b.cpu.translate(linear, Access::Read, As::Current);
    assert_eq!(got, Ok(0x12_0040_0000 | linear & 0x3f_ffff));
    b.poke(pde, 1 << 21 | pte::ALL | pte::PS);
    let got = b.cpu.translate(linear, Access::Read, As::Current);
    assert_eq!(got, Err(Exception::page_fault(linear, 9)));
    // No NX here, so fetches are not told apart.
    b.poke(pde, 0);
    let got = b.cpu.translate(linear, Access::Execute, As::Current);
    assert_eq!(got, Err(Exception::page_fault(linear, 0)));
    b.cpu.cr4 |= cr4::SMEP;
    let got = b.cpu.translate(linear, Access::Execute, As::Current);
    assert_eq!(got, Err(Exception::page_fault(linear, 16)));
}

#[test]
fn pae_paging_takes_its_pointers_from_registers() {
    let mut b = Bench::new(64 << 10);
    b.flat();
    b.cpu.cr3 = 0x1020;
    b.cpu.cr4 = cr4::PAE;
    b.cpu.cr0 |= cr0::PG;
    b.cpu.efer = efer::NXE;
    b.cpu.update_mode();
    let linear = 0x8060_5678;
    b.poke(0x1020 + 2 * 8, 0x2000 | pte::P);
    assert!(b.cpu.load_pdptrs());
    b.poke(0x1020 + 2 * 8, 0);
    b.poke(0x2000 + 3 * 8, 0x3000 | pte::ALL);
    b.poke(0x3000 + 5 * 8, 0x9000 | pte::ALL | pte::NX);
    assert_eq!(
        b.cpu.translate(linear, Access::Write, As::Current),
        Ok(0x9678)
    );
    let got = b.cpu.translate(linear, Access::Execute, As::Current);
    assert_eq!(got, Err(Exception::page_fault(linear, 17)));
    // Bits 62 to 52 are reserved here.
    b.poke(0x3000 + 5 * 8, 0x9000 | pte::ALL | 1 << 52);
    let got = b.cpu.translate(linear, Access::Execute, As::Current);
    assert_eq!(got, Err(Exception::page_fault(linear, 25)));
    b.poke(0x2000 + 3 * 8, 0x20_0000 | pte::ALL | pte::PS);
    b.cpu.flush_tlb();
    let got = b.cpu.translate(linear, Access::Read, As::Current);
    assert_eq!(got, Ok(0x20_0000 | linear & 0x1f_ffff));
    let other = 0x4060_5678;
    let got = b.cpu.translate(other, Access::Read, As::Current);
    assert_eq!(got, Err(Exception::page_fault(other, 0)));

    let old = b.cpu.pdptrs;
    b.poke(0x1020, 0x2000 | pte::P | pte::W);
    assert!(!b.cpu.load_pdptrs(), "W is reserved in a pointer");
    assert_eq!(b.cpu.pdptrs, old);
}

#[test]
fn without_paging_linear_is_physical() {
    let mut b = Bench::new(64 << 10);
    b.flat();
    for access in ACCESSES {
        assert_eq!(b.cpu.translate(0x1_2345, access, As::Current), Ok(0x1_2345));
        let device = 0xfee0_0010;
        assert_eq!(b.cpu.translate(device, access, As::Current), Ok(device));
    }
}

#[test]
fn tables_outside_of_ram_read_as_ones() {
    let mut b = Bench::new(64 << 10);
    b.long(0x10_0000, 0);
    let got = b.cpu.translate(LINEAR, Access::Read, As::Current);
    assert_eq!(got, Err(Exception::page_fault(LINEAR, 9)));
}
