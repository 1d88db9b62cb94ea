//! The way of an application processor: real mode, protected mode, long mode, and back.

use iced_x86::code_asm::*;
use x86::cr::{cr0, cr4, efer};
use x86::msr;

use crate::run::bench::*;
use crate::state::{Mode, reg, seg};
use crate::stop::Stop;

const TRAMPOLINE: u64 = 0x9000;
const CODE32_AT: u64 = 0x9100;
const CODE64_AT: u64 = 0x9200;
const COMPAT_AT: u64 = 0x9300;
const CODE16_AT: u64 = 0x9400;
const REAL_AT: u64 = 0x9500;
const POINTER: u64 = 0x9f00;

fn put(b: &mut Bench, at: u64, bits: u32, write: impl FnOnce(&mut CodeAssembler)) {
    let mut a = CodeAssembler::new(bits).unwrap();
    write(&mut a);
    let bytes = a.assemble(at).unwrap();
    b.put(at, &bytes);
}

/// A far jump to `selector:offset`, with an operand-size prefix if `other`.
fn far(at: &mut Vec<u8>, selector: u16, offset: u32, wide: bool, prefix: bool) {
    if prefix {
        at.push(0x66);
    }
    at.push(0xea);
    if wide {
        at.extend(offset.to_le_bytes());
    } else {
        at.extend((offset as u16).to_le_bytes());
    }
    at.extend(selector.to_le_bytes());
}

/// A machine whose processor got its start-up IPI, with code that leads through all modes to HLT.
fn trampoline() -> Bench {
    let mut b = Bench::real();
    b.cpu.init();
    b.cpu.sipi((TRAMPOLINE >> 12) as u8);
    assert_eq!(b.cpu.segs[seg::CS].base, TRAMPOLINE);

    // The operand of LGDT: limit and 32-bit base.
    b.put(POINTER, &sel::LIMIT.to_le_bytes());
    b.set32(POINTER + 2, GDT as u32);

    // Real mode, as Linux's trampoline does it: DS = CS, LGDT, LMSW, a far jump.
    let mut code = vec![
        0xfa, // cli
        0x8c, 0xc8, // mov ax, cs
        0x8e, 0xd8, // mov ds, ax
        0x66, 0x0f, 0x01, 0x16, 0x00, 0x0f, // lgdtl [0xf00]
        0xb8, 0x01, 0x00, // mov ax, 1
        0x0f, 0x01, 0xf0, // lmsw ax
    ];
    far(&mut code, sel::CODE32, CODE32_AT as u32, true, true);
    b.put(TRAMPOLINE, &code);

    put(&mut b, CODE32_AT, 32, |a| {
        a.mov(eax, u32::from(sel::DATA)).unwrap();
        a.mov(ds, eax).unwrap();
        a.mov(es, eax).unwrap();
        a.mov(ss, eax).unwrap();
        a.mov(esp, STACK as u32).unwrap();
        a.mov(eax, cr4::PAE as u32).unwrap();
        a.mov(iced_x86::code_asm::cr4, eax).unwrap();
        a.mov(eax, PML4 as u32).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, msr::EFER).unwrap();
        a.mov(eax, (efer::LME | efer::NXE) as u32).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, (cr0::PG | cr0::PE | cr0::WP) as u32).unwrap();
        a.mov(iced_x86::code_asm::cr0, eax).unwrap();
        // Still 32-bit code, now in compatibility mode.
        a.push(u32::from(sel::CODE64)).unwrap();
        a.push(CODE64_AT as u32).unwrap();
        a.retf().unwrap();
    });
    put(&mut b, CODE64_AT, 64, |a| {
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        a.mov(r15, rax).unwrap();
        a.lidt(ptr(POINTER + 0x20)).unwrap();
        // To compatibility mode by a far pointer in memory.
        a.jmp(fword_ptr(POINTER + 0x40)).unwrap();
    });
    b.put(POINTER + 0x20, &0xfffu16.to_le_bytes());
    b.set(POINTER + 0x22, IDT);
    b.set32(POINTER + 0x40, COMPAT_AT as u32);
    b.put(POINTER + 0x44, &sel::CODE32.to_le_bytes());
    put(&mut b, COMPAT_AT, 32, |a| {
        a.mov(eax, iced_x86::code_asm::cr0).unwrap();
        a.and(eax, 0x7fff_ffff).unwrap();
        a.mov(iced_x86::code_asm::cr0, eax).unwrap();
        a.mov(ecx, msr::EFER).unwrap();
        a.xor(eax, eax).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
    });
    // Where the jump to 16-bit code goes: right behind what was assembled.
    let mut tail = Vec::new();
    far(&mut tail, sel::CODE16, CODE16_AT as u32, true, false);
    let end = {
        let mut a = CodeAssembler::new(32).unwrap();
        a.mov(eax, iced_x86::code_asm::cr0).unwrap();
        a.and(eax, 0x7fff_ffff).unwrap();
        a.mov(iced_x86::code_asm::cr0, eax).unwrap();
        a.mov(ecx, msr::EFER).unwrap();
        a.xor(eax, eax).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.assemble(COMPAT_AT).unwrap().len() as u64
    };
    b.put(COMPAT_AT + end, &tail);
    let mut code = vec![
        0xb8, 0x58, 0x00, // mov ax, DATA16
        0x8e, 0xd0, // mov ss, ax
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x24, 0xfe, // and al, 0xfe
        0x0f, 0x22, 0xc0, // mov cr0, eax
    ];
    far(&mut code, 0, REAL_AT as u32, false, false);
    b.put(CODE16_AT, &code);
    // Unreal mode: DS still reaches four GiB.
    b.put(REAL_AT, &[0x67, 0x66, 0xa1, 0x00, 0x00, 0x20, 0x00, 0xf4]);
    b.set32(PAGES, 0xcafe_f00d);
    b
}

#[test]
fn from_a_start_up_ipi_to_long_mode_and_back() {
    let mut b = trampoline();
    b.run();
    assert_eq!(b.cpu.rip, REAL_AT + 8);
    assert_eq!(b.cpu.gpr[reg::RAX] as u32, 0xcafe_f00d);
    assert_eq!(b.cpu.gpr[15], 0x1122_3344_5566_7788);
    assert_eq!(b.cpu.efer, 0);
    assert!(!b.cpu.mode.has(Mode::PROTECTED));
    assert!(!b.cpu.mode.has(Mode::CODE32));
    assert_eq!(b.cpu.segs[seg::CS].base, 0);
    assert_eq!(b.cpu.idtr.base, IDT);
}

/// A processor that takes over another one's state between any two instructions goes on as that
/// one would have.
#[test]
fn the_state_is_whole_at_every_step() {
    let mut b = trampoline();
    let mut moved = trampoline();
    let mut steps = 0;
    loop {
        let result = b.step();
        assert_eq!(moved.step(), result);
        assert_eq!(moved.cpu.state(), b.cpu.state(), "after step {steps}");
        moved.replace_cpu();
        if result.is_err() {
            assert_eq!(result, Err(Stop::Halt));
            break;
        }
        steps += 1;
    }
    assert!(steps > 40);
}

#[test]
fn a_pvh_entry_starts_in_flat_32_bit_mode() {
    let mut b = Bench::protected();
    b.code(32, |a| {
        a.mov(esp, STACK as u32).unwrap();
        a.push(0x1234_5678).unwrap();
        a.pop(ebx).unwrap();
        a.hlt().unwrap();
    });
    b.run();
    assert_eq!(b.cpu.gpr[reg::RBX], 0x1234_5678);
    assert_eq!(b.cpu.gpr[reg::RSP], STACK);
}

#[test]
fn init_returns_to_the_reset_vector_and_keeps_the_fpu() {
    let mut b = Bench::long();
    b.cpu.fpu.0[crate::state::XsaveArea::XMM] = 0xaa;
    b.cpu.init();
    assert_eq!(b.cpu.rip, 0xfff0);
    assert_eq!(b.cpu.segs[seg::CS].base, 0xffff_0000);
    assert_eq!(b.cpu.gpr[reg::RDX], 0x306c4);
    assert_eq!(b.cpu.efer, 0);
    assert_eq!(b.cpu.cr0, cr0::ET);
    assert_eq!(b.cpu.cr4, 0);
    assert_eq!(b.cpu.fpu.0[crate::state::XsaveArea::XMM], 0xaa);
    assert!(!b.cpu.mode.has(Mode::PROTECTED));
    b.cpu.sipi(0x9f);
    assert_eq!(b.cpu.segs[seg::CS].selector, 0x9f00);
    assert_eq!(b.cpu.segs[seg::CS].base, 0x9_f000);
    assert_eq!(b.cpu.rip, 0);
}
