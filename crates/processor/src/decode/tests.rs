use iced_x86::{Mnemonic, OpKind};
use memory::{Bytes, GuestAddress, GuestAddressSpace};
use x86::Segment;

use super::*;
use crate::mmu::tests::{Bench, TABLES, entries, pte};
use crate::state::Seg;
use crate::stop::{DeviceRequest, Stop};

const CODE: u64 = 0x40_0000;

impl Bench {
    fn code(&mut self, physical: u64, bytes: &[u8]) {
        let ram = self.ram.memory();
        ram.write_slice(bytes, GuestAddress(physical)).unwrap();
    }

    fn fetch(&mut self, rip: u64) -> Result<Instruction, Stop> {
        self.cpu.rip = rip;
        self.cpu.begin();
        self.cpu.decode(&mut self.p)
    }
}

/// 64-bit code in two neighbouring pages at [`CODE`], which are 0x9000 and 0x20000.
fn long() -> Bench {
    let mut b = Bench::new(256 << 10);
    b.long(TABLES[0], 0);
    b.map_page(CODE, 0x9000, pte::ALL, pte::ALL);
    b.map_page(CODE + 0x1000, 0x2_0000, pte::ALL, pte::ALL);
    b
}

fn exception(got: Result<Instruction, Stop>) -> Option<Exception> {
    match got {
        Err(Stop::Exception(e)) => Some(e),
        _ => None,
    }
}

#[test]
fn the_ip_is_rip_and_targets_follow_from_it() {
    let mut b = long();
    // mov eax, [rip+0x10]; jmp $+4
    b.code(0x9010, &[0x8b, 0x05, 0x10, 0, 0, 0, 0xeb, 2]);
    let i = b.fetch(CODE + 0x10).unwrap();
    assert_eq!((i.mnemonic(), i.len()), (Mnemonic::Mov, 6));
    assert_eq!(i.memory_displacement64(), CODE + 0x26);
    let i = b.fetch(CODE + 0x16).unwrap();
    assert_eq!(i.near_branch_target(), CODE + 0x1a);
}

#[test]
fn code_that_changes_is_decoded_again_whoever_changes_it() {
    let mut b = long();
    b.code(0x9000, &[0x90, 0xb8, 1, 0, 0, 0]);
    assert_eq!(b.fetch(CODE).unwrap().mnemonic(), Mnemonic::Nop);
    assert_eq!(b.fetch(CODE + 1).unwrap().immediate32(), 1);
    b.code(0x9002, &[7]);
    assert_eq!(b.fetch(CODE + 1).unwrap().immediate32(), 7);
    // Bytes behind the instruction do not matter.
    b.code(0x9001, &[0xf4]);
    assert_eq!(b.fetch(CODE).unwrap().mnemonic(), Mnemonic::Nop);
    assert_eq!(b.fetch(CODE + 1).unwrap().mnemonic(), Mnemonic::Hlt);
}

#[test]
fn the_same_bytes_elsewhere_and_in_another_mode_are_other_instructions() {
    let mut b = long();
    b.map_page(CODE + 0x1000, 0x9000, pte::ALL, pte::ALL);
    b.code(0x9000, &[0xeb, 0xfe, 0x48, 0x90]);
    assert_eq!(b.fetch(CODE).unwrap().near_branch_target(), CODE);
    let other = CODE + 0x1000;
    assert_eq!(b.fetch(other).unwrap().near_branch_target(), other);
    assert_eq!(b.fetch(CODE + 2).unwrap().len(), 2);
    b.cpu.segs[seg::CS] = Seg::from(&Segment::code32_flat(8));
    b.cpu.update_mode();
    let i = b.fetch(CODE + 2).unwrap();
    assert_eq!((i.mnemonic(), i.len()), (Mnemonic::Dec, 1));
}

#[test]
fn the_next_page_is_touched_only_by_an_instruction_that_reaches_it() {
    let mut b = long();
    let end = CODE + 0x1000;
    b.poke(entries(end)[3], 0);
    b.code(0x9ffe, &[0x90, 0x90]);
    assert!(b.fetch(end - 1).is_ok());
    b.code(0x9fff, &[0xb8]);
    let fault = exception(b.fetch(end - 1));
    assert_eq!(fault, Some(Exception::page_fault(end, 16)));

    b.poke(entries(end)[3], 0x2_0000 | pte::ALL);
    b.code(0x9fff, &[0xb8]);
    b.code(0x2_0000, &[0x78, 0x56, 0x34, 0x12]);
    let i = b.fetch(end - 1).unwrap();
    assert_eq!((i.immediate32(), i.len()), (0x1234_5678, 5));
    b.code(0x2_0001, &[0]);
    assert_eq!(b.fetch(end - 1).unwrap().immediate32(), 0x1234_0078);
}

#[test]
fn fetches_need_the_right_to_execute() {
    let mut b = long();
    b.code(0x9000, &[0x90]);
    assert!(b.fetch(CODE).is_ok());
    b.map_page(CODE, 0x9000, pte::ALL, pte::P | pte::W);
    b.cpu.flush_page(CODE);
    assert!(b.fetch(CODE).is_ok());
    b.set_cpl(3);
    let fault = exception(b.fetch(CODE));
    assert_eq!(fault, Some(Exception::page_fault(CODE, 21)));
    b.set_cpl(0);
    b.map_page(CODE, 0x9000, pte::ALL, pte::ALL | pte::NX);
    b.cpu.flush_page(CODE);
    let fault = exception(b.fetch(CODE));
    assert_eq!(fault, Some(Exception::page_fault(CODE, 17)));
}

#[test]
fn sixteen_bytes_are_too_many_wherever_they_lie() {
    for offset in [0, 0xff0, 0xff8, 0xfff] {
        let mut b = long();
        let (first, second) = (0x1000 - offset as usize, 0x9000 + offset);
        // Ten prefixes before `add dword [rax+rax+disp32], imm32` (11 bytes) are too many, four
        // are not.
        let mut bytes = vec![0x36; 4];
        bytes.extend([0x81, 0x84, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        let lay = |b: &mut Bench, bytes: &[u8]| {
            let cut = first.min(bytes.len());
            b.code(second, &bytes[..cut]);
            b.code(0x2_0000, &bytes[cut..]);
        };
        lay(&mut b, &bytes);
        assert_eq!(b.fetch(CODE + offset).unwrap().len(), 15, "at {offset:#x}");
        bytes.insert(0, 0x36);
        lay(&mut b, &bytes);
        let got = exception(b.fetch(CODE + offset));
        assert_eq!(got, Some(Exception::gp(0)), "at {offset:#x}");
        lay(&mut b, &[0x66; 20]);
        let got = exception(b.fetch(CODE + offset));
        assert_eq!(got, Some(Exception::gp(0)), "at {offset:#x}");
    }
}

#[test]
fn code_ends_where_its_segment_ends() {
    let mut b = Bench::new(256 << 10);
    b.flat();
    let mut code = Segment::code32_flat(8);
    (code.base, code.limit) = (0x8000, 0x104);
    b.cpu.segs[seg::CS] = Seg::from(&code);
    b.code(0x8100, &[0xb8, 1, 2, 3, 4, 0x90]);
    let i = b.fetch(0x100).unwrap();
    assert_eq!((i.immediate32(), i.ip()), (0x0403_0201, 0x100));
    assert_eq!(exception(b.fetch(0x105)), Some(Exception::gp(0)));
    // Known from before, but now beyond the limit.
    b.cpu.segs[seg::CS].limit = 0x103;
    assert_eq!(exception(b.fetch(0x100)), Some(Exception::gp(0)));
    b.code(0x8103, &[0x0f, 0x04]);
    assert_eq!(exception(b.fetch(0x103)), Some(Exception::gp(0)));
}

#[test]
fn real_mode_code_is_16_bit_at_its_base() {
    let mut b = Bench::new(256 << 10);
    assert_eq!(b.cpu.mode.bits(), 16);
    b.cpu.segs[seg::CS] = Seg::from(&Segment::real_mode_code(0x1000));
    b.code(0x1_0010, &[0xb8, 0x34, 0x12, 0xeb, 0xfe]);
    let i = b.fetch(0x10).unwrap();
    assert_eq!(
        (i.op1_kind(), i.immediate16()),
        (OpKind::Immediate16, 0x1234)
    );
    assert_eq!(b.fetch(0x13).unwrap().near_branch_target(), 0x13);
}

#[test]
fn code_beyond_the_canonical_addresses_faults() {
    let mut b = long();
    let got = exception(b.fetch(0x8000_0000_0000));
    assert_eq!(got, Some(Exception::gp(0)));
    let last = 0x7fff_ffff_f000;
    b.map_page(last, 0x9000, pte::ALL, pte::ALL);
    b.code(0x9fff, &[0xb8]);
    let got = exception(b.fetch(last + 0xfff));
    assert_eq!(got, Some(Exception::gp(0)));
}

#[test]
fn code_on_a_device_is_asked_for_byte_by_byte() {
    let mut b = Bench::new(256 << 10);
    b.flat();
    let device = 0xd000_0000;
    for (n, byte) in [0xb0u64, 5].into_iter().enumerate() {
        let request = DeviceRequest::MemoryRead {
            address: device + n as u64,
            size: 1,
        };
        assert_eq!(b.fetch(device), Err(Stop::Device(request)));
        b.cpu.answer(request, byte);
    }
    let i = b.fetch(device).unwrap();
    assert_eq!((i.mnemonic(), i.immediate8()), (Mnemonic::Mov, 5));
}
