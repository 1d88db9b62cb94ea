//! How much slower translated code is than the same code on the host. Figures for whoever tunes:
//! `cargo test --release -p translator --features speed speed -- --nocapture`.

#![allow(unsafe_code, reason = "runs the programs on the host")]

use std::time::{Duration, Instant};

use iced_x86::code_asm::*;

use super::guest::{DATA, Guest, assemble, options};
use crate::Engine;
use crate::cache::Cache;

type Program = fn(&mut CodeAssembler, u32);

/// A loop of integer arithmetic.
fn integers(a: &mut CodeAssembler, n: u32) {
    let mut top = a.create_label();
    let mut odd = a.create_label();
    let mut next = a.create_label();
    a.mov(ecx, n * 8).unwrap();
    a.mov(eax, 0x1234_5677).unwrap();
    a.set_label(&mut top).unwrap();
    a.test(al, 1).unwrap();
    a.jne(odd).unwrap();
    a.shr(rax, 1).unwrap();
    a.jmp(next).unwrap();
    a.set_label(&mut odd).unwrap();
    a.lea(rax, ptr(rax + rax * 2 + 1)).unwrap();
    a.xor(rax, rcx).unwrap();
    a.set_label(&mut next).unwrap();
    a.dec(ecx).unwrap();
    a.jne(top).unwrap();
}

/// Loads that depend on each other.
fn chase(a: &mut CodeAssembler, n: u32) {
    let mut fill = a.create_label();
    let mut top = a.create_label();
    a.xor(ecx, ecx).unwrap();
    a.set_label(&mut fill).unwrap();
    // Element i leads to element (5 i + 7) mod 1024.
    a.lea(eax, ptr(rcx + rcx * 4 + 7)).unwrap();
    a.and(eax, 1023).unwrap();
    a.lea(rax, ptr(rdi + rax * 8)).unwrap();
    a.mov(qword_ptr(rdi + rcx * 8), rax).unwrap();
    a.inc(ecx).unwrap();
    a.cmp(ecx, 1024).unwrap();
    a.jne(fill).unwrap();
    a.mov(rax, rdi).unwrap();
    a.mov(ecx, n * 2).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(rax, qword_ptr(rax)).unwrap();
    a.mov(rax, qword_ptr(rax)).unwrap();
    a.mov(rax, qword_ptr(rax)).unwrap();
    a.mov(rax, qword_ptr(rax)).unwrap();
    a.dec(ecx).unwrap();
    a.jne(top).unwrap();
}

/// Copies by bytes.
fn bytes(a: &mut CodeAssembler, n: u32) {
    let mut outer = a.create_label();
    let mut top = a.create_label();
    a.mov(edx, n / 256).unwrap();
    a.set_label(&mut outer).unwrap();
    a.xor(ecx, ecx).unwrap();
    a.set_label(&mut top).unwrap();
    a.movzx(eax, byte_ptr(rdi + rcx)).unwrap();
    a.mov(byte_ptr(rdi + rcx + 0x2000), al).unwrap();
    a.inc(rcx).unwrap();
    a.cmp(rcx, 2048).unwrap();
    a.jne(top).unwrap();
    a.dec(edx).unwrap();
    a.jne(outer).unwrap();
}

/// Calls and returns.
fn calls(a: &mut CodeAssembler, n: u32) {
    let mut fib = a.create_label();
    let mut small = a.create_label();
    let mut end = a.create_label();
    let mut top = a.create_label();
    a.mov(r14d, n / 50).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(edi, 12).unwrap();
    a.call(fib).unwrap();
    a.dec(r14d).unwrap();
    a.jne(top).unwrap();
    a.jmp(end).unwrap();
    a.set_label(&mut fib).unwrap();
    a.push(rbx).unwrap();
    a.push(rbp).unwrap();
    a.mov(ebx, edi).unwrap();
    a.mov(eax, edi).unwrap();
    a.cmp(edi, 2).unwrap();
    a.jb(small).unwrap();
    a.lea(edi, ptr(rbx - 1)).unwrap();
    a.call(fib).unwrap();
    a.mov(ebp, eax).unwrap();
    a.lea(edi, ptr(rbx - 2)).unwrap();
    a.call(fib).unwrap();
    a.add(eax, ebp).unwrap();
    a.set_label(&mut small).unwrap();
    a.pop(rbp).unwrap();
    a.pop(rbx).unwrap();
    a.ret().unwrap();
    a.set_label(&mut end).unwrap();
    a.nop().unwrap();
}

/// Floating point over an array.
fn doubles(a: &mut CodeAssembler, n: u32) {
    let mut outer = a.create_label();
    let mut top = a.create_label();
    a.mov(edx, n / 64).unwrap();
    a.xorps(xmm0, xmm0).unwrap();
    a.set_label(&mut outer).unwrap();
    a.xor(ecx, ecx).unwrap();
    a.set_label(&mut top).unwrap();
    a.movsd_2(xmm1, qword_ptr(rdi + rcx * 8)).unwrap();
    a.mulsd(xmm1, qword_ptr(rdi + rcx * 8 + 0x1000)).unwrap();
    a.addsd(xmm0, xmm1).unwrap();
    a.movsd_2(qword_ptr(rdi + rcx * 8 + 0x2000), xmm0).unwrap();
    a.inc(ecx).unwrap();
    a.cmp(ecx, 256).unwrap();
    a.jne(top).unwrap();
    a.dec(edx).unwrap();
    a.jne(outer).unwrap();
}

fn native(program: Program, n: u32, data: &mut [u64]) -> Duration {
    let mut cache = Cache::new(1 << 16).unwrap();
    let code = assemble(|a| {
        for reg in [rbx, rbp, r12, r13, r14, r15] {
            a.push(reg).unwrap();
        }
        program(a, n);
        for reg in [r15, r14, r13, r12, rbp, rbx] {
            a.pop(reg).unwrap();
        }
        a.ret().unwrap();
    });
    assert!(cache.append(&code));
    // SAFETY: the program saves what it must, and its memory is `data`.
    let run: extern "sysv64" fn(*mut u64) =
        unsafe { std::mem::transmute(cache.address(0) as *const ()) };
    let begin = Instant::now();
    run(data.as_mut_ptr());
    begin.elapsed()
}

#[test]
fn speed() {
    const N: u32 = 4_000_000;
    let programs: [(&str, Program); 5] = [
        ("integers", integers),
        ("chase", chase),
        ("bytes", bytes),
        ("calls", calls),
        ("doubles", doubles),
    ];
    for (name, program) in programs {
        let mut data = vec![0u64; 0x1000];
        let mut here = Duration::MAX;
        let mut there = [Duration::MAX; 4];
        for _ in 0..3 {
            here = here.min(native(program, N, &mut data));
            for (options, best) in options().into_iter().zip(&mut there) {
                let code = assemble(|a| {
                    a.mov(rdi, DATA).unwrap();
                    program(a, N);
                    a.hlt().unwrap();
                });
                let mut guest = Guest::new(&code);
                let mut engine = Engine::new(options).unwrap();
                let begin = Instant::now();
                let _ = guest.translate(&mut engine);
                *best = (*best).min(begin.elapsed());
            }
        }
        let ratio = |d: Duration| d.as_secs_f64() / here.as_secs_f64();
        eprintln!(
            "{name:9} native {:6.1} ms, translated {:.2}, exact {:.2}, without BMI2 {:.2} {:.2}",
            here.as_secs_f64() * 1e3,
            ratio(there[0]),
            ratio(there[1]),
            ratio(there[2]),
            ratio(there[3]),
        );
    }
}
