//! A kernel and a program in miniature: system calls, pages on demand, a timer. Interrupts at any
//! place must not show in what the program computes.

use iced_x86::code_asm::*;
use proptest::prelude::*;
use x86::cr::rflags;

use crate::run::bench::*;
use crate::state::reg;
use crate::stop::Stop;

const TIMER: u8 = 0x20;
const SYSCALL: u64 = 0x1_8000;
const PAGE_FAULT: u64 = 0x1_8100;
const TICK: u64 = 0x1_8200;
const TICKS: u64 = DATA;
const CALLS: u64 = DATA + 8;
const FAULTS: u64 = DATA + 16;

fn put(b: &mut Bench, at: u64, write: impl FnOnce(&mut CodeAssembler)) {
    let mut a = CodeAssembler::new(64).unwrap();
    write(&mut a);
    let bytes = a.assemble(at).unwrap();
    b.put(at, &bytes);
}

fn guest() -> Bench {
    let mut b = Bench::long();
    put(&mut b, SYSCALL, |a| {
        a.swapgs().unwrap();
        a.mov(qword_ptr(CALLS).gs(), rsp).unwrap();
        a.mov(rsp, STACK0).unwrap();
        a.push(rcx).unwrap();
        a.push(r11).unwrap();
        a.sti().unwrap();
        // The call: RDI is doubled, with the flags on the stack for a while.
        a.pushfq().unwrap();
        a.lea(rax, ptr(rdi + rdi)).unwrap();
        a.popfq().unwrap();
        a.cli().unwrap();
        a.pop(r11).unwrap();
        a.pop(rcx).unwrap();
        a.mov(rsp, qword_ptr(CALLS).gs()).unwrap();
        a.swapgs().unwrap();
        a.sysretq().unwrap();
    });
    // Maps the page at CR2 to itself, user and writable.
    put(&mut b, PAGE_FAULT, |a| {
        a.push(rax).unwrap();
        a.push(rcx).unwrap();
        a.mov(rax, cr2).unwrap();
        a.mov(rcx, rax).unwrap();
        a.and(rax, -4096).unwrap();
        a.or(rax, 7).unwrap();
        a.shr(rcx, 12).unwrap();
        a.and(ecx, 0x1ff).unwrap();
        a.mov(qword_ptr(TABLE + rcx * 8), rax).unwrap();
        a.mov(rax, cr2).unwrap();
        a.invlpg(ptr(rax)).unwrap();
        a.inc(qword_ptr(FAULTS)).unwrap();
        a.pop(rcx).unwrap();
        a.pop(rax).unwrap();
        a.add(rsp, 8).unwrap();
        a.iretq().unwrap();
    });
    put(&mut b, TICK, |a| {
        a.push(rax).unwrap();
        a.mov(rax, qword_ptr(TICKS)).unwrap();
        a.inc(rax).unwrap();
        a.mov(qword_ptr(TICKS), rax).unwrap();
        a.pop(rax).unwrap();
        a.iretq().unwrap();
    });
    b.gate64(14, sel::CODE64, 0x8e00, PAGE_FAULT);
    b.gate64(TIMER, sel::CODE64, 0x8e01, TICK);
    for n in 0..16 {
        b.set(TABLE + 8 * n, 0);
    }
    b.cpu.msrs.star = u64::from(sel::USER_CODE32) << 48 | u64::from(sel::CODE64) << 32;
    b.cpu.msrs.lstar = SYSCALL;
    b.cpu.msrs.sfmask = rflags::IF | rflags::DF;
    // Two stacks: system calls may be interrupted, so that the timer has its own.
    b.set(TSS + 4, STACK0 - 0x200);
    b.code(64, |a| {
        let mut again = a.create_label();
        a.mov(ebx, 3).unwrap();
        a.mov(r8d, 1).unwrap();
        a.mov(r9d, PAGES as u32).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(rdi, r8).unwrap();
        a.syscall().unwrap();
        a.add(r8, rax).unwrap();
        a.mov(qword_ptr(r9), r8).unwrap();
        a.mov(rdi, r9).unwrap();
        a.mov(eax, r8d).unwrap();
        a.mov(ecx, 20).unwrap();
        a.std().unwrap();
        a.cld().unwrap();
        a.rep().stosb().unwrap();
        a.adc(r8, qword_ptr(r9 + 8)).unwrap();
        a.add(r9, 0x1000).unwrap();
        a.dec(ebx).unwrap();
        a.jne(again).unwrap();
        a.int(0x80).unwrap();
    });
    b.gate64(0x80, sel::CODE64, 0xee00, HANDLERS + 16 * 0x80);
    b.user(true);
    b.cpu.rflags |= rflags::IF;
    b
}

/// Runs to the end; at each step of the list the timer wants to interrupt.
fn run(mut b: Bench, ticks: &[bool]) -> (Bench, u64) {
    let mut delivered = 0;
    for n in 0..2000 {
        if ticks.get(n).copied().unwrap_or(false) && b.cpu.interrupts_open() {
            b.cpu.deliver_interrupt(&mut b.p, TIMER).unwrap();
            delivered += 1;
        }
        match b.step() {
            Ok(()) => {}
            Err(Stop::Exception(exception)) => b.cpu.raise(&mut b.p, exception).unwrap(),
            Err(Stop::Halt) => return (b, delivered),
            other => panic!("{other:?} at {:#x}", b.cpu.rip),
        }
    }
    panic!("no end at {:#x}", b.cpu.rip);
}

#[test]
fn a_program_runs_with_its_kernel() {
    let (b, _) = run(guest(), &[]);
    assert_eq!(b.cpu.rip, HANDLERS + 16 * 0x80 + 1);
    assert_eq!(b.get(FAULTS), 3);
    assert_eq!(b.get(TICKS), 0);
    assert_ne!(b.cpu.gpr[8], 1);
    assert_eq!(b.cpu.gpr[reg::RBX], 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn interrupts_do_not_show(ticks in proptest::collection::vec(any::<bool>(), 400)) {
        let (quiet, _) = run(guest(), &[]);
        let (b, delivered) = run(guest(), &ticks);
        prop_assert_eq!(b.get(TICKS), delivered);
        prop_assert!(delivered > 20);
        prop_assert_eq!(b.cpu.state(), quiet.cpu.state());
        for n in 0..3 {
            let at = PAGES + 0x1000 * n;
            prop_assert_eq!(b.get(at), quiet.get(at));
        }
    }
}

#[test]
fn a_kernel_without_its_code_segment_shuts_down() {
    // A descriptor table that ends within the code segment's descriptor.
    let mut b = guest();
    b.cpu.gdtr.limit = sel::CODE64 + 6;
    assert_eq!(
        b.cpu.deliver_interrupt(&mut b.p, TIMER),
        Err(Stop::TripleFault)
    );
}
