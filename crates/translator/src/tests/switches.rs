//! Instructions that change the mode, or read what only the system knows.

use iced_x86::code_asm::*;
use memory::{Bytes, GuestAddress};
use processor::testing::Nothing;
use processor::{Cpu, Stop};
use x86::cr::{cr4, rflags};

use super::guest::{CODE, DATA, Guest, SYSTEM_CALL, State, assemble, options};
use crate::{Engine, Options};

/// Runs the program, with this code where system calls lead to, by the interpreter and by all
/// kinds of engine; the plain one leaves at most so many instructions to the interpreter.
fn compare(
    (code, system_call): (&[u8], &[u8]),
    most: u64,
    prepare: impl Fn(&mut Cpu),
) -> (Stop, State) {
    let make = || {
        let mut guest = Guest::new(code);
        let place = GuestAddress(SYSTEM_CALL);
        guest.ram.write_slice(system_call, place).unwrap();
        prepare(&mut guest.cpu);
        guest.cpu.update_mode();
        guest.cpu.flush_tlb();
        guest
    };
    let mut reference = make();
    let stop = reference.interpret();
    let expected = reference.state();
    for options in options() {
        let mut engine = Engine::new(options).unwrap();
        for _ in 0..2 {
            let mut guest = make();
            assert_eq!(guest.translate(&mut engine), stop, "{options:?}");
            let mut state = guest.state();
            if !options.exact_flags {
                state.forget_flags_at_fault(&expected);
            }
            let differences = expected.differences(&state);
            assert!(differences.is_empty(), "{options:?}: {differences:#?}");
        }
        if options.bmi2 && !options.exact_flags {
            let interpreted = engine.statistics().interpreted;
            assert!(interpreted <= most, "{interpreted} by the interpreter");
        }
    }
    (stop, expected)
}

#[test]
fn system_calls_and_returns() {
    let code = assemble(|a| {
        let mut program = a.create_label();
        let mut again = a.create_label();
        a.lea(rcx, ptr(program)).unwrap();
        a.mov(r11d, 0x202).unwrap();
        a.sysretq().unwrap();
        a.set_label(&mut program).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut again).unwrap();
        // Flags of all kinds, also OF and DF.
        a.mov(eax, 0x7fff_fff0).unwrap();
        a.add(eax, ebx).unwrap();
        a.mov(rdx, rsp).unwrap();
        a.syscall().unwrap();
        a.pushfq().unwrap();
        a.pop(rsi).unwrap();
        a.add(r8, rsi).unwrap();
        a.add(r9, r11).unwrap();
        a.mov(rsi, cs).unwrap();
        a.add(r12, rsi).unwrap();
        a.inc(ebx).unwrap();
        a.test(ebx, 7).unwrap();
        a.jnz(again).unwrap();
        a.std().unwrap();
        a.syscall().unwrap();
        a.cld().unwrap();
        a.jmp(again).unwrap();
    });
    let system_call = assemble(|a| {
        let mut end = a.create_label();
        a.pushfq().unwrap();
        a.pop(rsi).unwrap();
        a.add(r10, rsi).unwrap();
        a.mov(rsi, ss).unwrap();
        a.add(r13, rsi).unwrap();
        a.mov(qword_ptr(DATA), rcx).unwrap();
        a.mov(rsi, qword_ptr(DATA)).unwrap();
        a.add(r14, rsi).unwrap();
        a.cmp(ebx, 50).unwrap();
        a.ja(end).unwrap();
        a.sysretq().unwrap();
        a.set_label(&mut end).unwrap();
        a.hlt().unwrap();
    });
    let (stop, state) = compare((&code, &system_call), 40, |_| {});
    assert_eq!(stop, Stop::Halt);
    assert_eq!(state.gpr[3], 51);
}

#[test]
fn a_system_call_that_was_switched_off_faults() {
    // The program switches it off by way of its own system call, after some that worked.
    let code = assemble(|a| {
        let mut program = a.create_label();
        let mut again = a.create_label();
        a.lea(rcx, ptr(program)).unwrap();
        a.mov(r11d, 2).unwrap();
        a.sysretq().unwrap();
        a.set_label(&mut program).unwrap();
        a.mov(ebx, 8).unwrap();
        a.set_label(&mut again).unwrap();
        a.syscall().unwrap();
        a.dec(ebx).unwrap();
        a.jmp(again).unwrap();
    });
    let system_call = assemble(|a| {
        let mut back = a.create_label();
        a.test(ebx, ebx).unwrap();
        a.jnz(back).unwrap();
        a.mov(rsi, rcx).unwrap();
        a.mov(ecx, 0xc000_0080_u32).unwrap();
        a.rdmsr().unwrap();
        a.and(eax, -2).unwrap();
        a.wrmsr().unwrap();
        a.mov(rcx, rsi).unwrap();
        a.mov(r11d, 2).unwrap();
        a.set_label(&mut back).unwrap();
        a.sysretq().unwrap();
    });
    let (_, state) = compare((&code, &system_call), 40, |_| {});
    assert_eq!(state.gpr[3], 0);
}

#[test]
fn access_to_programs_pages_is_opened_and_closed() {
    let code = assemble(|a| {
        let mut again = a.create_label();
        a.mov(rbx, DATA).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(ebp, 20).unwrap();
        a.set_label(&mut again).unwrap();
        a.cmp(ebp, 7).unwrap();
        a.clac().unwrap();
        a.stac().unwrap();
        a.adc(rdx, qword_ptr(rbx)).unwrap();
        a.stac().unwrap();
        a.mov(qword_ptr(rbx + 8), rdx).unwrap();
        a.pushfq().unwrap();
        a.clac().unwrap();
        a.lea(rbx, qword_ptr(rbx + 8)).unwrap();
        a.dec(ebp).unwrap();
        a.jnz(again).unwrap();
        // Closed: not even the stack can be had.
        a.push(rax).unwrap();
        a.hlt().unwrap();
    });
    let (stop, state) = compare((&code, &[]), 50, |cpu| cpu.cr4 |= cr4::SMAP);
    assert_eq!(stop, Stop::TripleFault);
    assert_eq!(state.gpr[5], 0);
    assert_eq!(state.rflags & rflags::AC, 0);
}

#[test]
fn registers_of_the_system() {
    let code = assemble(|a| {
        let mut again = a.create_label();
        a.mov(ebp, 3).unwrap();
        a.set_label(&mut again).unwrap();
        a.cmp(ebp, 2).unwrap();
        a.mov(rax, cr0).unwrap();
        a.mov(r12, cr3).unwrap();
        a.mov(rdx, cr4).unwrap();
        a.mov(rcx, cr2).unwrap();
        a.adc(rax, r12).unwrap();
        a.mov(rsi, 0x7fff_1234_5678_u64).unwrap();
        a.cmp(ebp, 3).unwrap();
        a.wrfsbase(rsi).unwrap();
        a.mov(r13, -4096_i64 as u64).unwrap();
        a.wrgsbase(r13).unwrap();
        a.rdfsbase(r14).unwrap();
        a.rdgsbase(rdi).unwrap();
        a.adc(r14, rdi).unwrap();
        a.mov(r15w, ds).unwrap();
        a.mov(ax, cs).unwrap();
        a.mov(rbx, DATA).unwrap();
        a.mov(word_ptr(rbx + 10), ss).unwrap();
        a.dec(ebp).unwrap();
        a.jnz(again).unwrap();
        a.mov(rsi, 1_u64 << 47).unwrap();
        a.wrfsbase(rsi).unwrap();
        a.hlt().unwrap();
    });
    let (stop, state) = compare((&code, &[]), 8, |cpu| cpu.cr4 |= cr4::FSGSBASE);
    assert_eq!(stop, Stop::Halt);
    // #GP(0) for the last.
    assert_eq!(state.gpr[5], 0);
}

#[test]
fn time_is_the_hosts_where_it_is_asked_for() {
    let code = assemble(|a| {
        a.cmp(eax, eax).unwrap();
        a.rdtsc().unwrap();
        a.mov(rbx, rax).unwrap();
        a.mov(rsi, rdx).unwrap();
        a.rdtscp().unwrap();
        a.setz(dil).unwrap();
        a.hlt().unwrap();
    });
    let mut engine = Engine::new(Options {
        host_tsc: true,
        ..Options::default()
    })
    .unwrap();
    let mut guest = Guest::new(&code);
    guest.cpu.tsc_offset = 1_u64 << 40;
    guest.cpu.msrs.tsc_aux = 0x1_0000_0007;
    // SAFETY-free: an intrinsic of every x86-64 processor.
    assert_eq!(engine.run(&mut guest.cpu, &mut Nothing), Stop::Halt);
    let gpr = &guest.cpu.gpr;
    let (first, second) = (gpr[6] << 32 | gpr[3], gpr[2] << 32 | gpr[0]);
    if std::arch::is_x86_feature_detected!("bmi2") {
        assert!(guest.cpu.tsc_offset < first && first < second);
    }
    assert_eq!((gpr[1], gpr[7] & 0xff), (7, 1));
    assert!(guest.cpu.rip > CODE);
}
