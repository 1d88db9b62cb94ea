use super::access::{LINEAR, page_fault, two_pages};
use super::*;
use crate::stop::Access;

#[test]
fn a_page_is_forgotten_when_told_and_a_large_one_as_a_whole() {
    let mut b = two_pages();
    b.poke(0x9000, 1);
    b.poke(0xa000, 2);
    let last = entries(LINEAR)[3];
    assert_eq!(b.cpu.read::<u64>(&mut b.p, LINEAR, As::Current), Ok(1));
    b.poke(last, 0xa000 | pte::ALL);
    b.cpu.flush_page(LINEAR + 0x123);
    assert_eq!(b.cpu.read::<u64>(&mut b.p, LINEAR, As::Current), Ok(2));

    let pde = entries(LINEAR)[2];
    b.poke(pde, pte::ALL | pte::PS);
    b.cpu.flush_tlb();
    for page in [9u64, 10] {
        let got = b
            .cpu
            .read::<u64>(&mut b.p, LINEAR + page * 4096, As::Current);
        assert_eq!(got, Ok(page - 8));
    }
    b.poke(pde, TABLES[3] | pte::ALL);
    b.cpu.flush_page(LINEAR + 4096 * 100);
    for page in [9u64, 10] {
        let got = b
            .cpu
            .read::<u64>(&mut b.p, LINEAR + page * 4096, As::Current);
        assert!(page_fault(got).is_some(), "page {page}");
    }
}

/// What a read through the soft TLB finds, whatever the page tables say by now.
fn seen(b: &mut Bench, linear: u64) -> u64 {
    b.cpu.read(&mut b.p, linear, As::Current).unwrap()
}

#[test]
fn a_new_cr3_forgets_all_but_global_pages() {
    for (pge, kept) in [(0, false), (cr4::PGE, true)] {
        let mut b = two_pages();
        b.cpu.cr4 |= pge;
        b.poke(0x9000, 1);
        b.poke(0x2_0000, 2);
        b.poke(0xa000, 3);
        let second = LINEAR + 0x1000;
        b.poke(entries(LINEAR)[3], 0x9000 | pte::ALL | pte::G);
        assert_eq!((seen(&mut b, LINEAR), seen(&mut b, second)), (1, 2));
        b.poke(entries(LINEAR)[3], 0xa000 | pte::ALL);
        b.poke(entries(second)[3], 0xa000 | pte::ALL);
        b.cpu.flush_local();
        let first = if kept { 1 } else { 3 };
        assert_eq!((seen(&mut b, LINEAR), seen(&mut b, second)), (first, 3));
        b.cpu.flush_tlb();
        assert_eq!(seen(&mut b, LINEAR), 3);
    }
}

#[test]
fn a_slot_is_as_global_as_its_last_page() {
    let mut b = two_pages();
    b.cpu.cr4 |= cr4::PGE;
    // The same slot, and other tables for it.
    let other = LINEAR + TLB_ENTRIES as u64 * 4096;
    b.poke(entries(other)[2], 0x5000 | pte::ALL);
    b.poke(0x5000 + (other >> 12 & 0x1ff) * 8, 0xa000 | pte::ALL);
    b.poke(entries(LINEAR)[3], 0x9000 | pte::ALL | pte::G);
    assert_eq!(slot(LINEAR), slot(other));
    assert_eq!(seen(&mut b, LINEAR), 0);
    assert_eq!(seen(&mut b, other), 0);
    b.poke(0x5000 + (other >> 12 & 0x1ff) * 8, 0);
    b.cpu.flush_local();
    let got = b.cpu.read::<u64>(&mut b.p, other, As::Current);
    assert!(page_fault(got).is_some());
}

#[test]
fn a_large_page_goes_alone() {
    let mut b = two_pages();
    let far = LINEAR + (1 << 21);
    b.poke(entries(far)[2], pte::ALL | pte::PS);
    b.poke(0x7008, 7);
    assert_eq!(seen(&mut b, far + 0x7008), 7);
    assert_eq!(seen(&mut b, LINEAR), 0);
    b.poke(entries(far)[2], 0);
    b.poke(entries(LINEAR)[3], 0);
    b.cpu.flush_page(far + 0x1000);
    assert_eq!(seen(&mut b, LINEAR), 0, "another page's entry");
    let got = b.cpu.read::<u64>(&mut b.p, far + 0x7008, As::Current);
    assert!(page_fault(got).is_some());
}

#[test]
fn translations_of_code_hold_until_their_pages_are_forgotten() {
    let mut b = two_pages();
    b.cpu.cr4 |= cr4::PGE;
    b.poke(entries(LINEAR)[3], 0x9000 | pte::ALL | pte::G);
    let user = |b: &mut Bench| {
        b.set_cpl(3);
        let epoch = b.cpu.code_epoch();
        b.set_cpl(0);
        epoch
    };
    let second = LINEAR + 0x1000;
    assert_eq!(b.cpu.translate_code(LINEAR), Ok(0x9000));
    assert_eq!(seen(&mut b, second), 0);
    let (first, first_user) = (b.cpu.code_epoch(), user(&mut b));
    // Data, and code of global pages.
    b.cpu.flush_page(second);
    assert_eq!((b.cpu.code_epoch(), user(&mut b)), (first, first_user));
    b.cpu.flush_local();
    assert_eq!(b.cpu.code_epoch(), first);
    assert_ne!(user(&mut b), first_user);
    assert_eq!(b.cpu.translate_code(LINEAR), Ok(0x9000));
    // Code of its own.
    assert_eq!(b.cpu.translate_code(second), Ok(0x2_0000));
    b.cpu.flush_local();
    let next = b.cpu.code_epoch();
    assert_ne!(next, first);
    // The page itself, even after its entry made room for another's.
    assert_eq!(b.cpu.translate_code(LINEAR), Ok(0x9000));
    b.map_page(LINEAR + 64 * 4096, 0xa000, pte::ALL, pte::ALL | pte::G);
    assert_eq!(b.cpu.translate_code(LINEAR + 64 * 4096), Ok(0xa000));
    b.poke(entries(LINEAR)[3], 0xb000 | pte::ALL);
    b.cpu.flush_page(LINEAR);
    assert_ne!(b.cpu.code_epoch(), next);
    assert_eq!(b.cpu.translate_code(LINEAR), Ok(0xb000));
    let (last, last_user) = (b.cpu.code_epoch(), user(&mut b));
    b.cpu.flush_tlb();
    assert_ne!(b.cpu.code_epoch(), last);
    assert_ne!(user(&mut b), last_user);
}

#[test]
fn user_code_and_large_code_pages_are_forgotten_too() {
    let mut b = two_pages();
    b.cpu.cr4 |= cr4::PGE;
    b.poke(entries(LINEAR)[3], 0x9000 | pte::ALL | pte::G);
    b.set_cpl(3);
    assert_eq!(b.cpu.translate_code(LINEAR), Ok(0x9000));
    b.poke(entries(LINEAR)[3], 0xa000 | pte::ALL | pte::G);
    let epoch = b.cpu.code_epoch();
    b.cpu.flush_page(LINEAR);
    assert_ne!(b.cpu.code_epoch(), epoch);
    assert_eq!(b.cpu.translate_code(LINEAR), Ok(0xa000));

    let far = LINEAR + (1 << 21);
    b.poke(entries(far)[2], pte::ALL | pte::PS);
    assert_eq!(b.cpu.translate_code(far + 0x3000), Ok(0x3000));
    let epoch = b.cpu.code_epoch();
    b.poke(entries(far)[2], 2 << 20 | pte::ALL | pte::PS);
    b.cpu.flush_page(far);
    assert_ne!(b.cpu.code_epoch(), epoch);
    assert_eq!(
        b.cpu.translate(far + 0x3000, Access::Read, As::Current),
        Ok(0x20_3000)
    );
    assert_eq!(b.cpu.translate_code(far + 0x3000), Ok(0x20_3000));
}
