//! Jumps to other pages, which keep where they led.

use iced_x86::code_asm::*;

use super::guest::{ALIAS, CODE, DATA, Guest, State, assemble, options};
use crate::Engine;

/// Where the entry of [`ALIAS`] is in the page table.
const ENTRY: u64 = 0x4000 + 8 * (ALIAS >> 12 & 511);

/// Calls of one place, more than it takes for one to be looked after.
const CALLS: u32 = 300;

/// ADD R9, n; RET.
fn function(n: u8) -> u64 {
    u64::from_le_bytes([0x49, 0x83, 0xc1, n, 0xc3, 0, 0, 0])
}

/// A function at ALIAS, which is called from one place again and again.
fn program(between: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    assemble(|a| {
        let mut calls = a.create_label();
        let mut start = a.create_label();
        let mut top = a.create_label();
        a.jmp(start).unwrap();
        a.set_label(&mut calls).unwrap();
        a.mov(ebx, CALLS).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(ALIAS).unwrap();
        a.dec(ebx).unwrap();
        a.jne(top).unwrap();
        a.ret().unwrap();
        a.set_label(&mut start).unwrap();
        for (at, n) in [(DATA, 1), (DATA + 0x1000, 100)] {
            a.mov(rax, function(n)).unwrap();
            a.mov(qword_ptr(at), rax).unwrap();
        }
        a.xor(r9d, r9d).unwrap();
        a.call(calls).unwrap();
        between(a);
        a.call(calls).unwrap();
        a.hlt().unwrap();
    })
}

/// Runs the program by the interpreter and by all kinds of engine.
fn compare(code: &[u8]) -> State {
    let mut reference = Guest::new(code);
    let stop = reference.interpret();
    let expected = reference.state();
    for options in options() {
        let mut engine = Engine::new(options).unwrap();
        let mut guest = Guest::new(code);
        assert_eq!(guest.translate(&mut engine), stop, "{options:?}");
        let mut state = guest.state();
        state.forget_flags_at_fault(&expected);
        let differences = expected.differences(&state);
        assert!(differences.is_empty(), "{options:?}: {differences:#?}");
    }
    expected
}

#[test]
fn they_go_where_the_page_is_now() {
    let expected = u64::from(CALLS) * 101;
    let state = compare(&program(|a| {
        a.mov(eax, (DATA + 0x1007) as u32).unwrap();
        a.mov(qword_ptr(ENTRY), rax).unwrap();
        a.invlpg(byte_ptr(ALIAS)).unwrap();
    }));
    assert_eq!(state.gpr[9], expected);
    let state = compare(&program(|a| {
        a.mov(eax, (DATA + 0x1007) as u32).unwrap();
        a.mov(qword_ptr(ENTRY), rax).unwrap();
        a.mov(rax, cr3).unwrap();
        a.mov(cr3, rax).unwrap();
    }));
    assert_eq!(state.gpr[9], expected);
}

#[test]
fn they_fault_where_the_page_is_no_more() {
    let state = compare(&program(|a| {
        a.mov(qword_ptr(ENTRY), 0).unwrap();
        a.invlpg(byte_ptr(ALIAS)).unwrap();
    }));
    assert_eq!((state.cr2, state.gpr[9]), (ALIAS, u64::from(CALLS)));
}

#[test]
fn they_go_to_what_the_code_has_become() {
    let state = compare(&program(|a| {
        a.mov(byte_ptr(DATA + 3), 7).unwrap();
    }));
    assert_eq!(state.gpr[9], u64::from(CALLS) * 8);
    // The place that calls changes, to the call of another page: those of DATA itself.
    let state = compare(&program(|a| {
        let distance = DATA as i64 - (CODE as i64 + 2 + 5 + 5);
        a.mov(dword_ptr(CODE + 2 + 5 + 1), distance as i32).unwrap();
    }));
    assert_eq!(state.gpr[9], u64::from(CALLS) * 2);
}

#[test]
fn they_need_no_looking_after() {
    let code = program(|_| {});
    for options in options() {
        let mut engine = Engine::new(options).unwrap();
        let mut guest = Guest::new(&code);
        let _ = guest.translate(&mut engine);
        assert_eq!(guest.cpu.gpr[9], u64::from(CALLS) * 2);
        let exits = engine.statistics().indirect;
        assert!(exits < 16, "{exits} exits");
    }
}
