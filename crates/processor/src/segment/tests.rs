use x86::Vendor;
use x86::cr::{efer, rflags};

use super::*;
use crate::run::bench::*;
use crate::state::reg;

mod far;

const FREE: u64 = GDT + sel::FREE as u64;

/// Loads a segment register as MOV does.
fn load(b: &mut Bench, which: usize, selector: u16) -> Result<(), Stop> {
    b.cpu.load_segment(&mut b.p, which, selector)
}

fn gp(selector: u16) -> Result<(), Stop> {
    Err(Exception::gp(index(selector)).into())
}

#[test]
fn descriptors_are_taken_apart() {
    let d = Descriptor(descriptor(0x1234_5678, 0xa_bcde, FLAT_CODE32));
    assert_eq!(d.base(), 0x1234_5678);
    assert_eq!(d.limit(), 0xabcd_efff);
    assert_eq!(d.attributes(), FLAT_CODE32);
    assert!(d.is_code() && d.present() && d.db() && !d.long());
    let bytes = Descriptor(descriptor(0, 0xffff, 0x93));
    assert_eq!(bytes.limit(), 0xffff);
    assert!(bytes.is_writable_data());
}

#[test]
fn addresses_of_48_bits_are_canonical() {
    assert!(canonical(0));
    assert!(canonical(0x7fff_ffff_ffff));
    assert!(canonical(0xffff_8000_0000_0000));
    assert!(!canonical(0x8000_0000_0000));
    assert!(!canonical(0xffff_7fff_ffff_ffff));
}

#[test]
fn a_load_takes_base_and_limit_and_marks_the_descriptor() {
    let mut b = Bench::protected();
    b.set(FREE, descriptor(0x12_3000, 0x456, 0x0092));
    load(&mut b, seg::ES, sel::FREE).unwrap();
    let es = b.cpu.segs[seg::ES];
    assert_eq!(
        (es.base, es.limit, es.selector),
        (0x12_3000, 0x456, sel::FREE)
    );
    assert_eq!(es.attributes, 0x93);
    assert_eq!(b.get(FREE), descriptor(0x12_3000, 0x456, 0x0093));
}

#[test]
fn loads_check_privilege_type_and_presence() {
    let mut b = Bench::protected();
    assert_eq!(
        load(&mut b, seg::DS, sel::EXECUTE_ONLY),
        gp(sel::EXECUTE_ONLY)
    );
    assert_eq!(load(&mut b, seg::DS, sel::TSS), gp(sel::TSS));
    assert_eq!(
        load(&mut b, seg::DS, sel::DATA | 1),
        gp(sel::DATA),
        "RPL counts"
    );
    assert_eq!(load(&mut b, seg::DS, sel::LIMIT + 1), gp(sel::LIMIT + 1));
    assert_eq!(
        load(&mut b, seg::DS, sel::DATA | 4),
        gp(sel::DATA | 4),
        "no LDT"
    );
    let np = Exception::with_code(Exception::NP, sel::ABSENT.into());
    assert_eq!(load(&mut b, seg::DS, sel::ABSENT), Err(np.into()));
    load(&mut b, seg::DS, sel::CODE32).unwrap();
    load(&mut b, seg::DS, sel::CONFORMING | 3).unwrap();
    b.user(false);
    assert_eq!(load(&mut b, seg::DS, sel::DATA), gp(sel::DATA));
}

#[test]
fn stack_segments_need_the_exact_level() {
    let mut b = Bench::protected();
    assert_eq!(load(&mut b, seg::SS, 0), gp(0));
    assert_eq!(load(&mut b, seg::SS, sel::DATA | 3), gp(sel::DATA));
    assert_eq!(load(&mut b, seg::SS, sel::USER_DATA), gp(sel::USER_DATA));
    assert_eq!(load(&mut b, seg::SS, sel::CODE32), gp(sel::CODE32));
    let missing = Exception::with_code(Exception::SS, sel::ABSENT.into());
    assert_eq!(load(&mut b, seg::SS, sel::ABSENT), Err(missing.into()));
    load(&mut b, seg::SS, sel::DATA16).unwrap();
    assert!(!b.cpu.mode.has(Mode::STACK32));
}

#[test]
fn null_selectors() {
    let mut b = Bench::protected();
    load(&mut b, seg::GS, 3).unwrap();
    assert_ne!(b.cpu.segs[seg::GS].attributes & Seg::UNUSABLE, 0);
    b.bytes(&[0x65, 0xa1, 0, 0, 0, 0]);
    assert_eq!(
        b.fault(),
        Exception::gp(0),
        "a null segment reaches nothing"
    );

    let mut b = Bench::long();
    load(&mut b, seg::SS, 0).unwrap();
    assert_eq!(b.cpu.cpl(), 0);
    assert_eq!(load(&mut b, seg::SS, 1), gp(0));
    b.user(true);
    assert_eq!(load(&mut b, seg::SS, 3), gp(0), "not in ring 3");
}

#[test]
fn null_clears_the_base_of_fs_but_not_on_amd() {
    let mut b = Bench::long();
    b.cpu.segs[seg::FS].base = 0x1234;
    load(&mut b, seg::FS, 0).unwrap();
    assert_eq!(b.cpu.segs[seg::FS].base, 0);

    let mut b = Bench::of(Vendor::AMD);
    b.enter_long();
    b.cpu.segs[seg::FS].base = 0x1234;
    load(&mut b, seg::FS, 0).unwrap();
    assert_eq!(b.cpu.segs[seg::FS].base, 0x1234);
}

#[test]
fn real_mode_loads_keep_the_limit() {
    let mut b = Bench::real();
    b.cpu.segs[seg::DS].limit = u32::MAX;
    b.cpu.gpr[reg::RAX] = 0x1234;
    b.bytes(&[0x8e, 0xd8]);
    b.steps(1);
    let ds = b.cpu.segs[seg::DS];
    assert_eq!(
        (ds.base, ds.selector, ds.limit),
        (0x1_2340, 0x1234, u32::MAX)
    );
}

#[test]
fn mov_to_cs_is_undefined() {
    let mut b = Bench::long();
    b.bytes(&[0x8e, 0xc8]);
    assert_eq!(b.fault(), Exception::ud());
}

#[test]
fn pop_ss_moves_the_old_stack_and_holds_events_off() {
    let mut b = Bench::protected();
    b.set32(STACK - 4, sel::DATA16.into());
    b.cpu.gpr[reg::RSP] = STACK - 4;
    b.cpu.rflags |= rflags::IF;
    b.bytes(&[0x17, 0x90]);
    b.steps(1);
    assert_eq!(b.cpu.segs[seg::SS].selector, sel::DATA16);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK);
    assert!(!b.cpu.interrupts_open());
}

#[test]
fn a_failing_pop_leaves_the_stack_pointer() {
    let mut b = Bench::protected();
    b.set32(STACK - 4, sel::ABSENT.into());
    b.cpu.gpr[reg::RSP] = STACK - 4;
    b.bytes(&[0x1f]);
    assert_eq!(
        b.fault(),
        Exception::with_code(Exception::NP, sel::ABSENT.into())
    );
    assert_eq!(b.cpu.gpr[reg::RSP], STACK - 4);
}

#[test]
fn lds_loads_both_or_neither() {
    let mut b = Bench::protected();
    b.set(DATA, 0x10_dead_beef);
    b.cpu.gpr[reg::RBX] = DATA;
    b.bytes(&[0xc5, 0x03]);
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RAX], 0xdead_beef);
    assert_eq!(b.cpu.segs[seg::DS].selector, sel::DATA);
    b.set(DATA, 0x48_1111_1111);
    b.bytes(&[0xc5, 0x03]);
    assert_eq!(b.fault().vector, Exception::NP);
    assert_eq!(b.cpu.gpr[reg::RAX], 0xdead_beef);
}

#[test]
fn segments_of_a_local_table() {
    let mut b = Bench::protected();
    b.set(FREE, descriptor(LDT, 0xf, 0x82));
    b.set(LDT + 8, descriptor(0x5000, 0xffff, 0x93));
    b.bytes(&[0x0f, 0x00, 0xd0]);
    b.cpu.gpr[reg::RAX] = sel::FREE.into();
    b.steps(1);
    load(&mut b, seg::ES, 0xc).unwrap();
    assert_eq!(b.cpu.segs[seg::ES].base, 0x5000);
    assert_eq!(load(&mut b, seg::ES, 0x14), gp(0x14));
}

#[test]
fn ltr_takes_16_bytes_in_long_mode_and_makes_busy() {
    let mut b = Bench::long();
    b.set(FREE, descriptor(0x1234_5000, 0x67, 0x89));
    b.set(FREE + 8, 0xffff_8000);
    b.cpu.gpr[reg::RAX] = sel::FREE.into();
    b.bytes(&[0x0f, 0x00, 0xd8]);
    b.steps(1);
    let tr = b.cpu.tr;
    assert_eq!(tr.base, 0xffff_8000_1234_5000);
    assert_eq!((tr.limit, tr.kind()), (0x67, 11));
    assert_eq!(b.get(FREE) >> 40 & 0xf, 11);
    b.cpu.rip = CODE;
    assert_eq!(b.fault(), Exception::gp(sel::FREE.into()), "busy");
    b.cpu.gpr[reg::RAX] = 0;
    assert_eq!(b.fault(), Exception::gp(0));
    b.user(true);
    assert_eq!(b.fault(), Exception::gp(0));
}

#[test]
fn lldt_of_a_base_that_is_not_canonical() {
    let mut b = Bench::long();
    b.set(FREE, descriptor(0, 0xf, 0x82));
    b.set(FREE + 8, 0x8000);
    b.cpu.gpr[reg::RAX] = sel::FREE.into();
    b.bytes(&[0x0f, 0x00, 0xd0]);
    assert_eq!(b.fault(), Exception::gp(sel::FREE.into()));
    b.cpu.gpr[reg::RAX] = 0;
    b.steps(1);
    assert_ne!(b.cpu.ldtr.attributes & Seg::UNUSABLE, 0);
}

/// Executes an instruction with operands EAX <- EBX; ZF and EAX.
fn ask(b: &mut Bench, code: &[u8], selector: u16) -> Option<u64> {
    b.cpu.rip = CODE;
    b.bytes(code);
    b.cpu.gpr[reg::RAX] = 0xdead;
    b.cpu.gpr[reg::RBX] = selector.into();
    b.steps(1);
    (b.cpu.rflags & rflags::ZF != 0).then(|| b.cpu.gpr[reg::RAX])
}

#[test]
fn queries_answer_by_zf() {
    let (lar, lsl) = ([0x0f, 0x02, 0xc3], [0x0f, 0x03, 0xc3]);
    let (verr, verw) = ([0x0f, 0x00, 0xe3], [0x0f, 0x00, 0xeb]);
    let mut b = Bench::long();
    assert_eq!(ask(&mut b, &lar, sel::CODE64), Some(0x00af_9b00));
    assert_eq!(ask(&mut b, &lsl, sel::DATA), Some(0xffff_ffff));
    assert_eq!(ask(&mut b, &lsl, sel::TSS), Some(0xfff));
    assert_eq!(ask(&mut b, &lar, 0), None);
    assert_eq!(ask(&mut b, &lar, sel::LIMIT + 1), None);
    assert_eq!(
        ask(&mut b, &lar, sel::ABSENT),
        Some(0x00cf_1300),
        "P is no condition"
    );
    assert_eq!(ask(&mut b, &lar, sel::DATA | 3), None);
    assert_eq!(ask(&mut b, &lar, sel::CONFORMING | 3), Some(0x00cf_9f00));
    assert_eq!(ask(&mut b, &verr, sel::EXECUTE_ONLY), None);
    assert!(ask(&mut b, &verr, sel::CODE32).is_some());
    assert_eq!(ask(&mut b, &verw, sel::CODE32), None);
    assert!(ask(&mut b, &verw, sel::DATA).is_some());
    // A call gate has access rights, but no limit; and 16 bytes.
    b.set(FREE, 0x8c00 << 32);
    assert!(ask(&mut b, &lar, sel::FREE).is_some());
    assert_eq!(ask(&mut b, &lsl, sel::FREE), None);
    b.cpu.gdtr.limit = sel::FREE + 7;
    assert_eq!(ask(&mut b, &lar, sel::FREE), None);

    let mut b = Bench::real();
    b.bytes(&lar);
    assert_eq!(b.fault(), Exception::ud());
}

#[test]
fn table_registers_are_stored_and_loaded() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RBX] = DATA;
    b.put(DATA, &0x1234u16.to_le_bytes());
    b.set(DATA + 2, 0xffff_8888_7777_6666);
    b.bytes(&[0x0f, 0x01, 0x13, 0x0f, 0x01, 0x43, 0x10]);
    b.steps(2);
    assert_eq!(b.cpu.gdtr.base, 0xffff_8888_7777_6666);
    assert_eq!(b.cpu.gdtr.limit, 0x1234);
    assert_eq!(b.get16(DATA + 16), 0x1234);
    assert_eq!(b.get(DATA + 18), 0xffff_8888_7777_6666);

    b.set(DATA + 2, 0x8000_0000_0000);
    b.cpu.rip = CODE;
    assert_eq!(b.fault(), Exception::gp(0));
}

#[test]
fn sixteen_bit_lgdt_takes_24_bits_of_base() {
    let mut b = Bench::real();
    b.put(0x500, &[0xff, 0x0f, 0x78, 0x56, 0x34, 0x12]);
    b.bytes(&[
        0x0f, 0x01, 0x16, 0x00, 0x05, 0x66, 0x0f, 0x01, 0x16, 0x00, 0x05,
    ]);
    b.steps(1);
    assert_eq!(b.cpu.gdtr.base, 0x34_5678);
    b.steps(1);
    assert_eq!(b.cpu.gdtr.base, 0x1234_5678);
}

#[test]
fn mov_from_a_segment_register_fills_the_register() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RAX] = !0;
    b.cpu.gpr[reg::RBX] = DATA;
    b.set(DATA, !0);
    b.bytes(&[0x66, 0x8c, 0xd8, 0x8c, 0xd8, 0x8c, 0x1b]);
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RAX], !0xffff | u64::from(sel::DATA));
    b.steps(2);
    assert_eq!(b.cpu.gpr[reg::RAX], u64::from(sel::DATA));
    assert_eq!(b.get(DATA), !0xffff | u64::from(sel::DATA));
}

#[test]
fn the_tables_addresses_wrap_at_4_gib_outside_of_long_mode() {
    let mut b = Bench::protected();
    b.cpu.gdtr.base = 0xffff_ffff;
    b.put(0x0f, &descriptor(0x77, 0xffff, 0x93).to_le_bytes());
    load(&mut b, seg::ES, sel::DATA).unwrap();
    assert_eq!(b.cpu.segs[seg::ES].base, 0x77);
    assert_eq!(b.cpu.efer & efer::LMA, 0);
}
