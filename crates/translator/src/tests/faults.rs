//! Faults: everything before the instruction is done, nothing of it is.

use iced_x86::code_asm::*;

use super::guest::{ABSENT, ALIAS, DATA, DEVICE, READ_ONLY, assemble, compare};
use processor::Stop;

#[test]
fn page_faults_leave_the_instruction_undone() {
    for address in [ABSENT, ABSENT - 4, ABSENT + 0xffc] {
        let code = assemble(|a| {
            a.mov(rbx, address).unwrap();
            a.mov(r12, 5u64).unwrap();
            a.inc(ecx).unwrap();
            a.add(r12, qword_ptr(rbx)).unwrap();
            a.add(ecx, 1).unwrap();
            a.hlt().unwrap();
        });
        let state = compare(&code);
        assert_eq!(state.rip, 0x70e1);
    }
}

#[test]
fn stores_to_pages_that_are_not_for_writing() {
    let code = assemble(|a| {
        a.mov(rbx, READ_ONLY).unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.lock().add(qword_ptr(rbx), 1).unwrap();
        a.hlt().unwrap();
    });
    let state = compare(&code);
    assert_eq!((state.rip, state.cr2), (0x70e1, READ_ONLY));
}

#[test]
fn stack_faults_keep_the_stack_pointer() {
    let code = assemble(|a| {
        a.mov(rsp, ABSENT + 8).unwrap();
        a.push(rax).unwrap();
        a.hlt().unwrap();
    });
    let state = compare(&code);
    assert_eq!((state.rip, state.cr2), (0x70e1, ABSENT));
}

#[test]
fn accesses_across_pages_and_aliases() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(rdx, ALIAS).unwrap();
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        a.mov(qword_ptr(rbx + 0xffd), rax).unwrap();
        a.mov(rcx, qword_ptr(rdx + 0xffd)).unwrap();
        a.add(dword_ptr(rdx + 0x1ffe), ecx).unwrap();
        a.movups(xmm1, xmmword_ptr(rbx + 0xff8)).unwrap();
        a.movups(xmmword_ptr(rdx + 0x1ff1), xmm1).unwrap();
        a.hlt().unwrap();
    });
    let state = compare(&code);
    assert_eq!(state.gpr[1], 0x1122_3344_5566_7788);
}

#[test]
fn devices_are_asked_once() {
    let code = assemble(|a| {
        a.mov(rbx, DEVICE).unwrap();
        a.mov(r12d, dword_ptr(rbx + 4)).unwrap();
        a.add(r12d, 1).unwrap();
        a.hlt().unwrap();
    });
    let mut guest = super::guest::Guest::new(&code);
    let mut engine = crate::Engine::new(super::guest::options()[0]).unwrap();
    let stop = guest.translate(&mut engine);
    let Stop::Device(request) = stop else {
        panic!("{stop:?}");
    };
    assert_eq!(
        request,
        processor::DeviceRequest::MemoryRead {
            address: 0x8000_0004,
            size: 4
        }
    );
    guest.cpu.answer(request, 41);
    assert_eq!(guest.translate(&mut engine), Stop::Halt);
    assert_eq!(guest.cpu.gpr[12], 42);
}
