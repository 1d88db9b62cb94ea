use std::sync::atomic::Ordering;

use iced_x86::code_asm::*;
use x86::cr::{cr4, rflags};

use super::bench::*;
use crate::event::debug;
use crate::state::{reg, seg};
use crate::stop::{DeviceRequest, Exception, Stop};

mod boot;
mod kernel;
mod random;

const BS: u64 = debug::DR6_BS;

fn db(payload: u64) -> Exception {
    Exception {
        payload,
        ..Exception::plain(Exception::DB)
    }
}

#[test]
fn steps_commit_and_count() {
    let mut b = Bench::long();
    b.code(64, |a| {
        a.nop().unwrap();
        a.mov(eax, 5).unwrap();
    });
    b.steps(2);
    assert_eq!(b.cpu.rip, CODE + 6);
    assert_eq!(b.cpu.gpr[reg::RAX], 5);
    assert_eq!(b.cpu.retired, 2);
}

#[test]
fn the_budget_and_attention_end_a_run() {
    let mut b = Bench::long();
    b.bytes(&[0xeb, 0xfe]);
    assert_eq!(b.cpu.advance(&mut b.p, 10), Stop::Attention);
    assert_eq!(b.cpu.retired, 10);
    b.cpu.attention.store(1, Ordering::Relaxed);
    assert_eq!(b.cpu.advance(&mut b.p, 10), Stop::Attention);
    assert_eq!(b.cpu.retired, 11, "one step is always made");
}

#[test]
fn exceptions_count_against_the_budget() {
    let mut b = Bench::long();
    b.gate64(6, sel::CODE64, 0x8e00, CODE);
    b.bytes(&[0x0f, 0x0b]);
    assert_eq!(b.cpu.advance(&mut b.p, 20), Stop::Attention);
    assert_eq!(b.cpu.retired, 0);
}

#[test]
fn hlt_completes_and_says_so() {
    let mut b = Bench::long();
    b.bytes(&[0xf4]);
    assert_eq!(b.step(), Err(Stop::Halt));
    assert_eq!(b.cpu.rip, CODE + 1);
    assert_eq!(b.cpu.retired, 1);
}

#[test]
fn sti_holds_interrupts_off_for_one_instruction() {
    let mut b = Bench::long();
    b.code(64, |a| {
        for _ in 0..2 {
            a.sti().unwrap();
        }
        a.nop().unwrap();
    });
    b.steps(1);
    assert!(!b.cpu.interrupts_open());
    b.steps(1);
    assert!(b.cpu.interrupts_open(), "a second STI holds off nothing");
    b.steps(1);
    assert!(b.cpu.interrupts_open());
}

#[test]
fn sti_and_hlt_are_not_torn_apart() {
    let mut b = Bench::long();
    b.bytes(&[0xfb, 0xf4]);
    b.steps(1);
    assert!(!b.cpu.interrupts_open());
    assert_eq!(b.step(), Err(Stop::Halt));
    assert!(b.cpu.interrupts_open());
}

#[test]
fn mov_ss_holds_everything_off_for_one_instruction() {
    let mut b = Bench::long();
    b.cpu.rflags |= rflags::IF;
    b.cpu.gpr[reg::RAX] = sel::DATA.into();
    b.code(64, |a| {
        a.mov(ss, eax).unwrap();
        a.mov(ss, eax).unwrap();
        a.nop().unwrap();
    });
    b.steps(1);
    assert!(!b.cpu.interrupts_open());
    assert!(!b.cpu.nmi_open());
    b.steps(1);
    assert!(b.cpu.interrupts_open(), "only the first of two counts");
    b.steps(1);
    assert!(b.cpu.nmi_open());
}

#[test]
fn a_fault_leaves_the_interrupt_shadow_as_it_was() {
    let mut b = Bench::long();
    b.bytes(&[0xfb, 0x0f, 0x0b]);
    b.steps(1);
    assert_eq!(b.fault(), Exception::ud());
    assert_eq!(b.cpu.rip, CODE + 1);
    assert!(!b.cpu.interrupts_open());
}

#[test]
fn tf_traps_after_each_instruction() {
    let mut b = Bench::long();
    b.cpu.rflags |= rflags::TF;
    b.cpu.update_mode();
    b.code(64, |a| a.nop().unwrap());
    assert_eq!(b.fault(), db(BS));
    assert_eq!(b.cpu.rip, CODE + 1);
    assert_eq!(b.cpu.retired, 1);
}

#[test]
fn the_trap_is_delivered_without_rf_and_marked_in_dr6() {
    let mut b = Bench::long();
    b.cpu.rflags |= rflags::TF;
    b.cpu.update_mode();
    b.code(64, |a| a.nop().unwrap());
    assert_eq!(b.vector(), 1);
    let frame = b.frame(false);
    assert_eq!(frame.rip, CODE + 1);
    assert_eq!(frame.rflags, rflags::TF | rflags::RESERVED_ONE);
    assert_eq!(b.cpu.dr6, debug::DR6_ONES | BS);
    assert_eq!(b.cpu.rflags & rflags::TF, 0);
}

#[test]
fn popf_that_sets_tf_traps_after_the_next_instruction() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RSP] -= 8;
    b.set(STACK - 8, rflags::TF | rflags::RESERVED_ONE);
    b.code(64, |a| {
        a.popfq().unwrap();
        a.nop().unwrap();
    });
    b.steps(1);
    assert_eq!(b.fault(), db(BS));
    assert_eq!(b.cpu.rip, CODE + 2);
}

#[test]
fn popf_that_clears_tf_traps_still() {
    let mut b = Bench::long();
    b.cpu.rflags |= rflags::TF;
    b.cpu.update_mode();
    b.cpu.gpr[reg::RSP] -= 8;
    b.set(STACK - 8, rflags::RESERVED_ONE);
    b.code(64, |a| a.popfq().unwrap());
    assert_eq!(b.fault(), db(BS));
    assert_eq!(b.cpu.rflags & rflags::TF, 0);
}

#[test]
fn mov_ss_swallows_the_trap_of_its_own() {
    let mut b = Bench::long();
    b.cpu.rflags |= rflags::TF;
    b.cpu.update_mode();
    b.cpu.gpr[reg::RAX] = sel::DATA.into();
    b.code(64, |a| {
        a.mov(ss, eax).unwrap();
        a.nop().unwrap();
    });
    b.steps(1);
    assert_eq!(b.fault(), db(BS));
    assert_eq!(b.cpu.rip, CODE + 3);
}

#[test]
fn int_n_enters_its_handler_without_a_trap() {
    let mut b = Bench::long();
    b.cpu.rflags |= rflags::TF;
    b.cpu.update_mode();
    b.code(64, |a| a.int(0x40).unwrap());
    b.steps(1);
    assert_eq!(b.cpu.rip, HANDLERS + 16 * 0x40);
    assert_eq!(b.frame(false).rflags & rflags::TF, rflags::TF);
}

#[test]
fn block_steps_trap_after_branches_only() {
    let mut b = Bench::long();
    b.cpu.rflags |= rflags::TF;
    b.cpu.msrs.debugctl = super::DEBUGCTL_BTF;
    b.cpu.update_mode();
    b.bytes(&[0x90, 0xeb, 0x00]);
    b.steps(1);
    assert_eq!(b.fault(), db(BS));
    assert_eq!(b.cpu.rip, CODE + 3);
}

#[test]
fn an_instruction_breakpoint_is_a_fault_that_rf_lets_pass() {
    let mut b = Bench::long();
    b.code(64, |a| {
        a.nop().unwrap();
        a.mov(eax, 1).unwrap();
    });
    b.cpu.dr[2] = CODE + 1;
    b.cpu.dr7 = 1 << 4;
    b.cpu.debug_changed();
    b.steps(1);
    assert_eq!(b.fault(), db(1 << 2));
    assert_eq!(b.cpu.rip, CODE + 1);
    assert_eq!(b.cpu.gpr[reg::RAX], 0);
    b.cpu.rflags |= rflags::RF;
    b.steps(1);
    assert_eq!(b.cpu.gpr[reg::RAX], 1);
    assert_eq!(b.cpu.rflags & rflags::RF, 0, "for one instruction only");
}

#[test]
fn a_data_breakpoint_traps_after_the_access() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RBX] = DATA;
    b.code(64, |a| {
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.mov(byte_ptr(rbx + 3), al).unwrap();
    });
    b.cpu.dr[1] = DATA;
    // A write of four bytes, by DR1.
    b.cpu.dr7 = 1 << 2 | 0xd << 20;
    b.cpu.debug_changed();
    b.steps(1);
    assert_eq!(b.fault(), db(1 << 1));
    assert_eq!(b.cpu.rip, CODE + 5);
}

#[test]
fn a_data_breakpoint_of_mov_ss_waits_for_the_next_instruction() {
    let mut b = Bench::long();
    b.set(DATA, sel::DATA.into());
    b.cpu.gpr[reg::RBX] = DATA;
    b.bytes(&[0x8e, 0x13, 0x90, 0x90]);
    b.cpu.dr[0] = DATA;
    b.cpu.dr7 = 1 | 0x7 << 16;
    b.cpu.debug_changed();
    b.steps(1);
    assert_eq!(b.fault(), db(1));
    assert_eq!(b.cpu.rip, CODE + 3);
    b.steps(1);
}

#[test]
fn a_port_breakpoint_needs_cr4_de() {
    let mut b = Bench::long();
    b.bytes(&[0xe6, 0x80, 0xe6, 0x80]);
    b.cpu.dr[0] = 0x80;
    b.cpu.dr7 = 1 | 2 << 16;
    b.cpu.debug_changed();
    b.steps(1);
    b.cpu.cr4 |= cr4::DE;
    assert_eq!(b.fault(), db(1));
    assert_eq!(b.cpu.rip, CODE + 4);
    assert_eq!(b.p.doorbells.len(), 2);
}

#[test]
fn a_breakpoint_on_a_repeated_instruction_hits_once() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RCX] = 3;
    b.cpu.gpr[reg::RDI] = DATA;
    b.bytes(&[0xf3, 0xaa]);
    b.cpu.dr[0] = CODE;
    b.cpu.dr7 = 1;
    b.cpu.debug_changed();
    assert_eq!(b.fault(), db(1));
    b.cpu.rflags |= rflags::RF;
    b.steps(3);
    assert_eq!(b.cpu.gpr[reg::RCX], 0);
    assert_eq!(b.cpu.rip, CODE + 2);
    assert_eq!(b.cpu.rflags & rflags::RF, 0);
    assert_eq!(b.cpu.retired, 1);
}

#[test]
fn a_port_is_asked_and_answered_once() {
    let mut b = Bench::long();
    b.code(64, |a| a.in_(al, 0x60).unwrap());
    b.cpu.gpr[reg::RAX] = !0;
    let request = DeviceRequest::PortRead {
        port: 0x60,
        size: 1,
    };
    assert_eq!(b.answer(request, 0x1234_5678), Ok(()));
    assert_eq!(b.cpu.gpr[reg::RAX], !0xff | 0x78);
    assert_eq!(b.cpu.rip, CODE + 2);
}

#[test]
fn repeated_ins_gets_each_byte() {
    let mut b = Bench::long();
    b.cpu.gpr[reg::RCX] = 2;
    b.cpu.gpr[reg::RDX] = 0x1f0;
    b.cpu.gpr[reg::RDI] = DATA;
    b.bytes(&[0xf3, 0x66, 0x6d]);
    let request = DeviceRequest::PortRead {
        port: 0x1f0,
        size: 2,
    };
    assert_eq!(b.answer(request, 0x1111), Ok(()));
    assert_eq!(b.cpu.rip, CODE);
    assert_eq!(b.answer(request, 0x2222), Ok(()));
    assert_eq!(b.cpu.rip, CODE + 3);
    assert_eq!(b.get32(DATA), 0x2222_1111);
    assert_eq!(b.cpu.gpr[reg::RDI], DATA + 4);
}

#[test]
fn ins_checks_the_page_before_it_asks_the_device() {
    let mut b = Bench::long();
    b.set(TABLE, 0);
    b.cpu.gpr[reg::RDX] = 0x1f0;
    b.cpu.gpr[reg::RDI] = PAGES;
    b.bytes(&[0x6c]);
    assert_eq!(b.fault(), Exception::page_fault(PAGES, 2));
}

#[test]
fn outs_reads_through_a_segment_override() {
    let mut b = Bench::long();
    b.cpu.segs[seg::FS].base = DATA;
    b.cpu.gpr[reg::RSI] = 8;
    b.cpu.gpr[reg::RDX] = 0x81;
    b.cpu.rflags |= rflags::DF;
    b.set(DATA + 8, 0xab);
    b.bytes(&[0x64, 0x6e]);
    b.steps(1);
    assert_eq!(b.p.doorbells, [(0x81, 0xab)]);
    assert_eq!(b.cpu.gpr[reg::RSI], 7);
}

#[test]
fn device_memory_stops_the_instruction_until_answered() {
    let mut b = Bench::long();
    // A page outside of RAM.
    b.set(TABLE, 0xfee0_0007);
    b.cpu.gpr[reg::RBX] = PAGES;
    b.code(64, |a| a.add(dword_ptr(rbx + 0x10), 1).unwrap());
    let read = DeviceRequest::MemoryRead {
        address: 0xfee0_0010,
        size: 4,
    };
    let write = DeviceRequest::MemoryWrite {
        address: 0xfee0_0010,
        size: 4,
        value: 42,
    };
    assert_eq!(b.answer(read, 41), Err(Stop::Device(write)));
    assert_eq!(b.cpu.rip, CODE);
    b.cpu.answer(write, 0);
    b.steps(1);
    assert_eq!(b.cpu.rip, CODE + 4);
}
