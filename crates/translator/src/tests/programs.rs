//! Assembled programs.

use iced_x86::code_asm::*;

use super::guest::{CODE, DATA, Guest, STACK, assemble, compare, options};
use crate::Engine;
use processor::Stop;

#[test]
fn loops_and_arithmetic() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(eax, 1).unwrap();
        a.mov(ecx, 1000).unwrap();
        a.mov(r12, 7u64).unwrap();
        a.set_label(&mut top).unwrap();
        a.imul_3(eax, eax, 33).unwrap();
        a.add(r12, rax).unwrap();
        a.adc(r13, r12).unwrap();
        a.xor(r14d, r12d).unwrap();
        a.rol(r14, 3).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let state = compare(&code);
    assert_eq!(state.retired, 3 + 7 * 1000 + 1);
    assert_eq!(state.gpr[1], 0);
}

#[test]
fn memory_of_all_shapes() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(r12, DATA + 0x200).unwrap();
        a.mov(r13, 3u64).unwrap();
        a.mov(rcx, 5u64).unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.add(rax, qword_ptr(rbx + rcx * 8)).unwrap();
        a.add(qword_ptr(r12 + r13 * 4 + 1), rax).unwrap();
        a.mov(r14d, dword_ptr(r12 + rcx * 2)).unwrap();
        a.movzx(r15d, byte_ptr(r12)).unwrap();
        a.movsx(rcx, word_ptr(r12 + r13)).unwrap();
        a.mov(word_ptr(rbx + 0x10), cx).unwrap();
        a.mov(byte_ptr(rbx + 0x13), cl).unwrap();
        a.mov(ch, byte_ptr(rbx + 0x14)).unwrap();
        a.mov(ah, byte_ptr(rbx + 0x15)).unwrap();
        a.add(byte_ptr(rbx + 0x16), ch).unwrap();
        a.add(ah, ch).unwrap();
        a.add(ch, dh).unwrap();
        a.xchg(ah, ch).unwrap();
        a.mov(rdx, qword_ptr(0x20).fs()).unwrap();
        a.mov(ecx, 0x30).unwrap();
        a.mov(qword_ptr(rcx * 2 + 0x20).gs(), 5).unwrap();
        a.add(dword_ptr(ebx + ecx), r15d).unwrap();
        a.lea(rsi, ptr(rsp - 0x20)).unwrap();
        a.mov(qword_ptr(rsp - 8), rsi).unwrap();
        a.mov(rdi, rsp).unwrap();
        a.lock().xadd(qword_ptr(rbx + 0x40), r14).unwrap();
        a.lock().cmpxchg(qword_ptr(rbx + 0x48), r15).unwrap();
        a.xchg(qword_ptr(rbx + 0x50), r12).unwrap();
        a.shld(qword_ptr(rbx + 0x58), r13, cl).unwrap();
        a.shrd(r14, r15, cl).unwrap();
        a.mulx(r14, r15, qword_ptr(rbx + 0x60)).unwrap();
        a.andn(r12, r13, qword_ptr(rbx + 0x68)).unwrap();
        a.shlx(r12, r13, rcx).unwrap();
        a.cmp(r15, r14).unwrap();
        a.hlt().unwrap();
    });
    compare(&code);
}

#[test]
fn calls_and_the_stack() {
    let code = assemble(|a| {
        let mut f = a.create_label();
        let mut top = a.create_label();
        a.mov(r12d, 50).unwrap();
        a.set_label(&mut top).unwrap();
        a.push(r12).unwrap();
        a.push(rsp).unwrap();
        a.push(rcx).unwrap();
        a.push(0x1234_5678).unwrap();
        a.call(f).unwrap();
        a.pop(rcx).unwrap();
        a.pop(r15).unwrap();
        a.pop(r14).unwrap();
        a.pop(r13).unwrap();
        a.push(qword_ptr(rsp - 16)).unwrap();
        a.pop(rsi).unwrap();
        a.dec(r12d).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut f).unwrap();
        a.push(rbp).unwrap();
        a.mov(rbp, rsp).unwrap();
        a.sub(rsp, 0x40).unwrap();
        a.mov(qword_ptr(rbp - 8), rdi).unwrap();
        a.add(rdi, qword_ptr(rbp + 8)).unwrap();
        a.leave().unwrap();
        a.ret().unwrap();
    });
    let state = compare(&code);
    assert_eq!(state.gpr[12], 0);
    assert_eq!(state.gpr[4], STACK - 0x800);
}

#[test]
fn indirect_jumps_and_other_pages() {
    let code = assemble(|a| {
        let mut far = a.create_label();
        let mut back = a.create_label();
        let mut table = a.create_label();
        a.mov(ecx, 20).unwrap();
        a.set_label(&mut back).unwrap();
        a.lea(rdx, ptr(far)).unwrap();
        a.call(rdx).unwrap();
        a.mov(qword_ptr(DATA), rdx).unwrap();
        a.call(qword_ptr(DATA)).unwrap();
        a.call(far).unwrap();
        a.lea(rdx, ptr(table)).unwrap();
        a.jmp(rdx).unwrap();
        a.set_label(&mut table).unwrap();
        a.loop_(back).unwrap();
        a.hlt().unwrap();
        for _ in 0..0x1100 {
            a.nop().unwrap();
        }
        a.set_label(&mut far).unwrap();
        a.add(rbx, rdx).unwrap();
        a.ret_1(0).unwrap();
    });
    let state = compare(&code);
    assert_eq!(state.gpr[1], 0);
}

#[test]
fn flags_survive_memory_accesses() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(eax, -1).unwrap();
        a.add(eax, 1).unwrap();
        a.mov(rdx, qword_ptr(rbx)).unwrap();
        a.mov(qword_ptr(rbx + 0x1000), rdx).unwrap();
        a.adc(r8, r9).unwrap();
        a.push(rax).unwrap();
        a.setc(al).unwrap();
        a.pop(rcx).unwrap();
        a.seto(byte_ptr(rbx + 8)).unwrap();
        a.lahf().unwrap();
        a.mov(ecx, 3).unwrap();
        a.sub(edx, esi).unwrap();
        a.shl(r12, cl).unwrap();
        a.mov(rdi, qword_ptr(rbx + 0x2000)).unwrap();
        a.mov(ecx, 0).unwrap();
        a.shl(r12, cl).unwrap();
        a.mov(rdi, qword_ptr(rbx + 0x3000)).unwrap();
        a.cmovbe(r13, rdi).unwrap();
        a.rcl(r13, 1).unwrap();
        a.sbb(r13, r12).unwrap();
        a.hlt().unwrap();
    });
    compare(&code);
}

#[test]
fn divisions() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(rax, 0x1234_5678_9abc_def0u64).unwrap();
        a.mov(rcx, 12345u64).unwrap();
        a.cqo().unwrap();
        a.idiv(rcx).unwrap();
        a.mov(r12, -77i64).unwrap();
        a.cqo().unwrap();
        a.idiv(r12).unwrap();
        a.mov(edx, 5).unwrap();
        a.mov(dword_ptr(rbx), 77).unwrap();
        a.div(dword_ptr(rbx)).unwrap();
        a.mov(ecx, -1).unwrap();
        a.cdq().unwrap();
        a.idiv(ecx).unwrap();
        a.mov(edx, 1).unwrap();
        a.idiv(r12d).unwrap();
        a.xor(edx, edx).unwrap();
        a.div(r12).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.div(rcx).unwrap();
    });
    let state = compare(&code);
    assert_eq!(state.rip, 0x7001, "#DE");
}

#[test]
fn vectors_and_helpers_between_them() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(rbx, DATA).unwrap();
        a.mov(ecx, 300).unwrap();
        a.set_label(&mut top).unwrap();
        a.movupd(xmm0, xmmword_ptr(rbx + rcx * 8)).unwrap();
        a.addpd(xmm1, xmm0).unwrap();
        a.cvtsi2sd(xmm2, rcx).unwrap();
        a.mulsd(xmm3, xmm2).unwrap();
        a.vaddpd(ymm4, ymm1, ymm3).unwrap();
        a.vpxor(ymm5, ymm4, ymmword_ptr(rbx + 0x20)).unwrap();
        a.movq(r12, xmm5).unwrap();
        a.ucomisd(xmm1, xmm2).unwrap();
        a.movups(xmmword_ptr(rbx + rcx + 1), xmm5).unwrap();
        a.pcmpistri(xmm4, xmm5, 0xc).unwrap();
        a.mov(rdi, rcx).unwrap();
        a.mov(ecx, r9d).unwrap();
        a.and(ecx, 0xff).unwrap();
        // An x87 instruction, which is the interpreter's.
        a.fninit().unwrap();
        a.movaps(xmmword_ptr(rbx + 0x100), xmm4).unwrap();
        a.pushfq().unwrap();
        a.popfq().unwrap();
        a.inc(r9d).unwrap();
        a.cmp(r9b, 0x33).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    compare(&code);
}

#[test]
fn misaligned_vector_operands_fault() {
    for offset in [0, 8] {
        let code = assemble(|a| {
            a.mov(rbx, DATA + offset).unwrap();
            a.movaps(xmm1, xmmword_ptr(rbx)).unwrap();
            a.mov(eax, 1).unwrap();
            a.paddd(xmm2, xmmword_ptr(rbx + 0x20)).unwrap();
            a.hlt().unwrap();
        });
        let state = compare(&code);
        assert_eq!(state.rip == 0x70d1, offset != 0, "#GP");
    }
}

#[test]
fn string_instructions() {
    let code = assemble(|a| {
        a.mov(rsi, DATA).unwrap();
        a.mov(rdi, DATA + 0x1800).unwrap();
        a.mov(ecx, 0x100).unwrap();
        a.rep().movsq().unwrap();
        a.mov(ecx, 77).unwrap();
        a.rep().stosb().unwrap();
        a.lodsd().unwrap();
        a.scasb().unwrap();
        a.mov(ecx, 50).unwrap();
        a.mov(rsi, DATA).unwrap();
        a.mov(rdi, DATA + 0x1800).unwrap();
        a.repe().cmpsb().unwrap();
        a.std().unwrap();
        a.movsb().unwrap();
        a.cld().unwrap();
        a.hlt().unwrap();
    });
    compare(&code);
}

#[test]
fn bit_strings_and_wide_compares() {
    let code = assemble(|a| {
        a.mov(rbx, DATA + 0x100).unwrap();
        a.mov(r12, 777u64).unwrap();
        a.bts(qword_ptr(rbx), r12).unwrap();
        a.setc(al).unwrap();
        a.mov(r12, -5i64).unwrap();
        a.lock().btr(dword_ptr(rbx), r12d).unwrap();
        a.adc(edx, 0).unwrap();
        a.mov(ecx, 99).unwrap();
        a.bt(qword_ptr(rbx), rcx).unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.mov(rdx, qword_ptr(rbx + 8)).unwrap();
        a.mov(rcx, 99u64).unwrap();
        a.mov(rsi, rbx).unwrap();
        a.lock().cmpxchg16b(xmmword_ptr(rsi)).unwrap();
        a.lock().cmpxchg8b(qword_ptr(rsi + 0x20)).unwrap();
        a.setz(r15b).unwrap();
        a.cmp(r15, r14).unwrap();
        a.hlt().unwrap();
    });
    compare(&code);
}

#[test]
fn an_endless_loop_can_be_interrupted() {
    let code = assemble(|a| {
        let mut here = a.create_label();
        a.set_label(&mut here).unwrap();
        a.jmp(here).unwrap();
    });
    let mut guest = Guest::new(&code);
    let mut engine = Engine::new(options()[0]).unwrap();
    let attention = guest.cpu.attention.clone();
    let other = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        attention.store(2, std::sync::atomic::Ordering::SeqCst);
    });
    let stop = engine.run(&mut guest.cpu, &mut processor::testing::Nothing);
    other.join().unwrap();
    assert_eq!(stop, Stop::Attention);
    assert_eq!(guest.cpu.rip, CODE);
}

#[test]
fn code_that_changes_itself() {
    let code = assemble(|a| {
        let mut patched = a.create_label();
        let mut top = a.create_label();
        a.mov(ecx, 10).unwrap();
        a.lea(rbx, ptr(patched)).unwrap();
        a.set_label(&mut top).unwrap();
        // The constant of the MOV below counts.
        a.inc(byte_ptr(rbx + 1)).unwrap();
        a.set_label(&mut patched).unwrap();
        a.mov(al, 1).unwrap();
        a.add(edx, eax).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut reference = Guest::new(&code);
    let _ = reference.interpret();
    for options in options() {
        let mut engine = Engine::new(options).unwrap();
        let mut guest = Guest::new(&code);
        let _ = guest.translate(&mut engine);
        let differences = reference.state().differences(&guest.state());
        assert!(differences.is_empty(), "{differences:?}");
        assert!(engine.statistics().dropped > 0);
    }
}

#[test]
fn a_full_cache_is_emptied() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 3).unwrap();
        a.set_label(&mut top).unwrap();
        for n in 0..4000 {
            let mut next = a.create_label();
            a.add(eax, n).unwrap();
            a.mov(qword_ptr(rsp), rax).unwrap();
            a.jmp(next).unwrap();
            a.set_label(&mut next).unwrap();
            a.zero_bytes().unwrap();
        }
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut reference = Guest::new(&code);
    let _ = reference.interpret();
    let mut engine = Engine::new(crate::Options {
        cache_size: 256 << 10,
        ..options()[0]
    })
    .unwrap();
    let mut guest = Guest::new(&code);
    let _ = guest.translate(&mut engine);
    let differences = reference.state().differences(&guest.state());
    assert!(differences.is_empty(), "{differences:?}");
    assert!(engine.statistics().flushes > 1);
}

#[test]
fn operands_that_share_an_entry_of_the_tlb() {
    // Both pages are in slot zero.
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(rsp, DATA + 0x8).unwrap();
        a.mov(rsi, DATA - 0x40_0000 + 0x8000).unwrap();
        a.mov(rdi, DATA + 0x8000).unwrap();
        a.mov(rsp, rdi).unwrap();
        a.push(qword_ptr(rsi - 8)).unwrap();
        a.mov(rsp, STACK).unwrap();
        a.hlt().unwrap();
    });
    let state = compare(&code);
    assert_eq!(state.gpr[4], STACK);
}

#[test]
fn kernel_instructions() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.xor(eax, eax).unwrap();
        a.sub(eax, 1).unwrap();
        a.sti().unwrap();
        a.nop().unwrap();
        a.pushfq().unwrap();
        a.cli().unwrap();
        a.pushfq().unwrap();
        a.std().unwrap();
        a.pushfq().unwrap();
        a.cld().unwrap();
        a.pop(rax).unwrap();
        a.pop(r12).unwrap();
        a.pop(rdx).unwrap();
        a.mov(r13d, ds).unwrap();
        a.mov(rsi, cs).unwrap();
        a.mov(r14, qword_ptr(0x18).gs()).unwrap();
        a.swapgs().unwrap();
        a.add(r14, qword_ptr(DATA as i32 + 0x20).gs()).unwrap();
        a.swapgs().unwrap();
        a.mov(r15, qword_ptr(0x28).gs()).unwrap();
        a.sti().unwrap();
        a.hlt().unwrap();
    });
    let state = compare(&code);
    assert_eq!(state.gpr[2] & 0x200, 0x200);
    assert_eq!(state.gpr[12] & 0x600, 0);
    assert_eq!(state.gpr[0] & 0x600, 0x400);
    assert_eq!(state.rflags & 0x200, 0x200);
}

#[test]
fn strings_at_page_ends() {
    for (count, offset) in [
        (0, 0),
        (3, 0xff0),
        (2, 0xff0),
        (16, 0xf80),
        (600, 0),
        (5, 0xffc),
    ] {
        let code = assemble(|a| {
            a.mov(rdi, DATA + offset).unwrap();
            a.mov(rsi, DATA + 0x2000 + offset / 2).unwrap();
            a.mov(ecx, count).unwrap();
            a.cmp(ecx, 3).unwrap();
            a.rep().stosq().unwrap();
            a.setz(bl).unwrap();
            a.mov(ecx, count).unwrap();
            a.sub(rdi, 5).unwrap();
            a.rep().movsd().unwrap();
            a.movsq().unwrap();
            a.stosw().unwrap();
            a.mov(rsi, rdi).unwrap();
            a.sub(rsi, 1).unwrap();
            a.mov(ecx, 20).unwrap();
            a.rep().movsb().unwrap();
            a.hlt().unwrap();
        });
        compare(&code);
    }
}

#[test]
fn bit_strings_keep_the_other_flags() {
    let code = assemble(|a| {
        a.mov(rbx, DATA + 0x800).unwrap();
        a.mov(r12, -700i64).unwrap();
        a.mov(ecx, 333).unwrap();
        a.cmp(eax, eax).unwrap();
        a.bt(qword_ptr(rbx), r12).unwrap();
        a.cmovbe(r13, rbx).unwrap();
        a.bts(dword_ptr(rbx), ecx).unwrap();
        a.setz(dl).unwrap();
        a.cmp(rax, rbx).unwrap();
        a.hlt().unwrap();
    });
    compare(&code);
}

#[test]
fn instructions_across_pages() {
    for shift in 0..12 {
        let code = assemble(|a| {
            let mut top = a.create_label();
            a.mov(ecx, 20).unwrap();
            a.jmp(top).unwrap();
            for _ in 0..0xfe0 - 10 + shift {
                a.nop().unwrap();
            }
            a.set_label(&mut top).unwrap();
            a.add(rax, 0x1234_5678).unwrap();
            a.mov(r12, 0x1122_3344_5566_7788u64).unwrap();
            a.add(r12, qword_ptr(DATA)).unwrap();
            a.xor(rdx, r12).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        });
        compare(&code);
    }
}

#[test]
fn one_page_of_code_at_two_addresses() {
    // The program's page, mapped where the first data page is a second time.
    let code = assemble(|a| {
        let mut table = a.create_label();
        let mut end = a.create_label();
        let mut f = a.create_label();
        a.xor(r9d, r9d).unwrap();
        a.lea(rax, ptr(f)).unwrap();
        a.call(rax).unwrap();
        // The alias of this page is at ALIAS.
        a.lea(rax, ptr(f)).unwrap();
        a.add(rax, (super::guest::ALIAS - CODE) as i32).unwrap();
        a.call(rax).unwrap();
        a.call(f).unwrap();
        a.jmp(end).unwrap();
        a.set_label(&mut f).unwrap();
        a.lea(rbx, ptr(table)).unwrap();
        a.add(r9, rbx).unwrap();
        a.mov(r12, qword_ptr(table)).unwrap();
        a.add(r9, r12).unwrap();
        a.ret().unwrap();
        a.set_label(&mut table).unwrap();
        a.dq(&[0x1111_2222_3333_4444]).unwrap();
        a.set_label(&mut end).unwrap();
        a.hlt().unwrap();
    });
    let expected = {
        let mut guest = Guest::new(&code);
        guest.map(super::guest::ALIAS, CODE);
        let _ = guest.interpret();
        guest.state()
    };
    assert_eq!(expected.rip - CODE, code.len() as u64);
    for options in options() {
        let mut engine = Engine::new(options).unwrap();
        let mut guest = Guest::new(&code);
        guest.map(super::guest::ALIAS, CODE);
        let _ = guest.translate(&mut engine);
        let differences = expected.differences(&guest.state());
        assert!(differences.is_empty(), "{differences:?}");
    }
}
