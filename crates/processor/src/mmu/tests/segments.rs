use super::*;
use crate::state::Mode;
use crate::stop::{Access, Exception};

const GP: Exception = Exception::with_code(Exception::GP, 0);
const SS: Exception = Exception::with_code(Exception::SS, 0);

fn segment(type_: u8, base: u64, limit: u32, db: bool) -> Seg {
    Seg::from(&Segment {
        type_,
        base,
        limit,
        db,
        ..Segment::data(0x18)
    })
}

#[test]
fn in_64_bit_code_only_fs_and_gs_have_a_base_and_addresses_are_canonical() {
    let mut b = Bench::new(64 << 10);
    b.long(TABLES[0], 0);
    b.cpu.segs[seg::DS].base = 0x1000;
    b.cpu.segs[seg::FS].base = 0x2000;
    b.cpu.segs[seg::GS].base = 0xffff_8000_0000_0000;
    let linear = |s, offset, size| b.cpu.linear(s, offset, size, Access::Write);
    assert_eq!(linear(seg::DS, 5, 8), Ok(5));
    assert_eq!(linear(seg::FS, 5, 8), Ok(0x2005));
    assert_eq!(linear(seg::GS, 5, 8), Ok(0xffff_8000_0000_0005));
    assert_eq!(linear(seg::GS, u64::MAX, 1), Err(GP));
    assert_eq!(linear(seg::DS, 0x7fff_ffff_fff8, 8), Ok(0x7fff_ffff_fff8));
    assert_eq!(linear(seg::DS, 0x7fff_ffff_fff9, 8), Err(GP));
    assert_eq!(linear(seg::SS, 0x8000_0000_0000, 1), Err(SS));
    assert_eq!(linear(seg::DS, u64::MAX, 1), Ok(u64::MAX));
}

#[test]
fn limits_count_the_last_byte_and_expand_down_counts_from_above() {
    let mut b = Bench::new(64 << 10);
    b.flat();
    b.cpu.segs[seg::ES] = segment(3, 0xffff_f000, 0xfff, true);
    b.cpu.segs[seg::DS] = segment(7, 0, 0xfff, true);
    b.cpu.segs[seg::FS] = segment(7, 0, 0xfff, false);
    b.cpu.segs[seg::SS] = segment(3, 0, 0xffff_ffff, true);
    let linear = |s, offset, size| b.cpu.linear(s, offset, size, Access::Read);
    assert_eq!(linear(seg::ES, 0xffc, 4), Ok(0xffff_fffc));
    assert_eq!(linear(seg::ES, 0xffd, 4), Err(GP));
    assert_eq!(linear(seg::DS, 0xfff, 1), Err(GP));
    assert_eq!(linear(seg::DS, 0x1000, 4), Ok(0x1000));
    assert_eq!(linear(seg::DS, 0xffff_fffc, 4), Ok(0xffff_fffc));
    assert_eq!(linear(seg::DS, 0xffff_fffd, 4), Err(GP));
    assert_eq!(linear(seg::FS, 0xfffc, 4), Ok(0xfffc));
    assert_eq!(linear(seg::FS, 0xfffd, 4), Err(GP));
    assert_eq!(linear(seg::SS, 0xffff_fffd, 4), Err(SS));
    // Base and offset wrap at 4 GiB.
    b.cpu.segs[seg::GS] = segment(3, 0xffff_fff0, 0xffff, true);
    assert_eq!(b.cpu.linear(seg::GS, 0x20, 4, Access::Read), Ok(0x10));
}

#[test]
fn types_and_null_selectors_forbid_what_they_forbid_in_protected_mode_only() {
    let mut b = Bench::new(64 << 10);
    b.flat();
    // (type, readable, writable, executable)
    let table = [
        (1, true, false, false),
        (3, true, true, false),
        (9, false, false, true),
        (11, true, false, true),
    ];
    for (type_, read, write, execute) in table {
        b.cpu.segs[seg::DS] = segment(type_, 0, 0xffff, true);
        let allowed = |access| b.cpu.linear(seg::DS, 0, 1, access).is_ok();
        assert_eq!(allowed(Access::Read), read, "type {type_}");
        assert_eq!(allowed(Access::Write), write, "type {type_}");
        assert_eq!(allowed(Access::Execute), execute, "type {type_}");
    }
    b.cpu.segs[seg::DS] = Seg::from(&Segment {
        unusable: true,
        ..Segment::data(0)
    });
    assert_eq!(b.cpu.linear(seg::DS, 0, 1, Access::Read), Err(GP));

    // Real mode does not look at types, but at limits.
    b.cpu.cr0 &= !cr0::PE;
    b.cpu.segs[seg::CS] = segment(9, 0x12340, 0xffff, false);
    b.cpu.update_mode();
    assert!(!b.cpu.mode.has(Mode::PROTECTED));
    assert_eq!(b.cpu.linear(seg::CS, 0x10, 2, Access::Write), Ok(0x12350));
    assert_eq!(b.cpu.linear(seg::CS, 0xffff, 2, Access::Read), Err(GP));
}
