//! Small guests in real mode, with data segments of 4 GiB, so that they reach the local APIC; in
//! 64-bit mode: [`long`].

mod long;

use std::sync::Arc;
use std::time::{Duration, Instant};

use accel::{Accelerator, Exit, Vcpu, VcpuSetup, Vm, X86Vcpu};
use bus::{DoorbellAddress, DoorbellHost, EventFd, MsiHost, MsiMessage, Space};
use iced_x86::code_asm::*;
use memory::{Bytes, GuestAddress, GuestAddressSpace, GuestRam};
use x86::{CpuState, LapicState, MpState, msr};

use crate::options::{EngineKind, Options};
use crate::soft::Soft;
use crate::vcpu::SoftVcpu;
use crate::vm::SoftVm;

const CODE: u64 = 0x1000;
const APIC: u64 = 0xfee0_0000;

struct Guest {
    vm: Arc<SoftVm>,
    ram: GuestRam,
    soft: Soft,
}

impl Guest {
    fn new() -> Self {
        Self::with_engine(EngineKind::Interpret)
    }

    fn with_engine(engine: EngineKind) -> Self {
        let options = Options {
            engine,
            cache: 4 << 20,
            ..Options::default()
        };
        let ram = memory::allocate(
            &[(0, 0xa_0000)],
            &memory::Options {
                huge: memory::HugePages::Never,
                ..memory::Options::default()
            },
        )
        .unwrap();
        Self {
            vm: SoftVm::new(ram.clone(), options, 8),
            ram,
            soft: Soft::new(options),
        }
    }

    fn load(&self, address: u64, write: impl FnOnce(&mut CodeAssembler)) {
        let mut a = CodeAssembler::new(16).unwrap();
        write(&mut a);
        let code = a.assemble(address & 0xffff).unwrap();
        self.ram
            .memory()
            .write_slice(&code, GuestAddress(address))
            .unwrap();
    }

    /// A vector of the real-mode interrupt table.
    fn vector(&self, vector: u64, offset: u32) {
        self.ram
            .memory()
            .write_obj(offset, GuestAddress(vector * 4))
            .unwrap();
    }

    fn word(&self, address: u64) -> u32 {
        self.ram.memory().read_obj(GuestAddress(address)).unwrap()
    }

    fn vcpu(&self, index: u32) -> SoftVcpu {
        let setup = VcpuSetup {
            index,
            apic_id: index,
            cpuid: self.soft.capabilities().cpu.cpuid.clone(),
        };
        let mut vcpu = self.vm.vcpu(setup).unwrap();
        let mut state = CpuState::reset_with(0x600, index == 0);
        state.regs.rip = CODE;
        state.regs.rsp = 0x8000;
        state.regs.rdi = APIC;
        state.sregs.cs.base = 0;
        state.sregs.cs.selector = 0;
        for segment in [
            &mut state.sregs.ds,
            &mut state.sregs.es,
            &mut state.sregs.ss,
        ] {
            segment.limit = u32::MAX;
        }
        let mut lapic = LapicState::reset(index);
        lapic.set(LapicState::SVR, 0x1ff);
        state.lapic = Some(lapic);
        vcpu.set_state(&state).unwrap();
        vcpu
    }
}

/// Runs until the guest writes to port 0xf4, and returns what it wrote. Unexpected exits fail.
fn until_done(vcpu: &mut SoftVcpu) -> u32 {
    match vcpu.run().unwrap() {
        Exit::PortWrite {
            port: 0xf4, data, ..
        } => {
            let mut bytes = [0; 4];
            bytes[..data.len()].copy_from_slice(data);
            u32::from_le_bytes(bytes)
        }
        other => panic!("{other:?}"),
    }
}

fn done(a: &mut CodeAssembler) {
    a.out(0xf4, eax).unwrap();
    a.hlt().unwrap();
}

#[test]
fn accesses_to_devices_are_exits_with_the_same_values_as_kvms() {
    let guest = Guest::new();
    guest.load(CODE, |a| {
        a.mov(al, 0x5a).unwrap();
        a.out(0x80, al).unwrap();
        a.in_(ax, 0x70).unwrap();
        a.mov(ebx, 0xa_0010).unwrap();
        a.mov(word_ptr(ebx), ax).unwrap();
        a.mov(ecx, dword_ptr(ebx + 4)).unwrap();
        a.mov(eax, ecx).unwrap();
        done(a);
    });
    let mut vcpu = guest.vcpu(0);
    assert!(matches!(
        vcpu.run().unwrap(),
        Exit::PortWrite {
            port: 0x80,
            size: 1,
            data: [0x5a]
        }
    ));
    match vcpu.run().unwrap() {
        Exit::PortRead {
            port: 0x70,
            size: 2,
            data,
        } => data.copy_from_slice(&[0x34, 0x12]),
        other => panic!("{other:?}"),
    }
    vcpu.finish_exit().unwrap();
    assert_eq!(vcpu.state().unwrap().regs.rax & 0xffff, 0x1234);
    assert!(matches!(
        vcpu.run().unwrap(),
        Exit::MemoryWrite {
            address: 0xa_0010,
            data: [0x34, 0x12]
        }
    ));
    match vcpu.run().unwrap() {
        Exit::MemoryRead {
            address: 0xa_0014,
            data,
        } => data.copy_from_slice(&[1, 2, 3, 4]),
        other => panic!("{other:?}"),
    }
    assert_eq!(until_done(&mut vcpu), 0x0403_0201);
}

#[test]
fn a_kick_ends_a_run_now_or_the_next_one() {
    let guest = Guest::new();
    guest.load(CODE, |a| {
        let mut forever = a.create_label();
        a.set_label(&mut forever).unwrap();
        a.jmp(forever).unwrap();
    });
    let mut vcpu = guest.vcpu(0);
    let kicker = vcpu.kicker();
    kicker.kick();
    assert!(matches!(vcpu.run().unwrap(), Exit::Interrupted));
    let thread = std::thread::spawn(move || matches!(vcpu.run().unwrap(), Exit::Interrupted));
    std::thread::sleep(Duration::from_millis(10));
    kicker.kick();
    assert!(thread.join().unwrap());
}

/// Sets the timer to one-shot with vector 0x40 and waits for it in HLT.
fn wait_for_timer(a: &mut CodeAssembler, count: u32) {
    a.mov(dword_ptr(edi + 0x3e0), 0xb).unwrap();
    a.mov(dword_ptr(edi + 0x320), 0x40).unwrap();
    a.mov(dword_ptr(edi + 0x380), count).unwrap();
    a.sti().unwrap();
    a.hlt().unwrap();
    a.cli().unwrap();
    a.mov(eax, ebx).unwrap();
    done(a);
}

#[test]
fn a_halted_processor_sleeps_until_its_timer_fires() {
    let guest = Guest::new();
    guest.vector(0x40, 0x2000);
    guest.load(CODE, |a| wait_for_timer(a, 30_000_000));
    guest.load(0x2000, |a| {
        a.inc(ebx).unwrap();
        a.mov(dword_ptr(edi + 0xb0), 0).unwrap();
        a.iret().unwrap();
    });
    let mut vcpu = guest.vcpu(0);
    let begin = Instant::now();
    assert_eq!(until_done(&mut vcpu), 1);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(30), "{took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(
        vcpu.state().unwrap().lapic.unwrap().get(0x120),
        0,
        "in service"
    );
}

#[test]
fn a_running_processor_is_interrupted_by_its_timer() {
    let guest = Guest::new();
    guest.vector(0x40, 0x2000);
    guest.load(CODE, |a| {
        let mut forever = a.create_label();
        a.mov(dword_ptr(edi + 0x320), 0x2_0040).unwrap();
        a.mov(dword_ptr(edi + 0x380), 500_000).unwrap();
        a.sti().unwrap();
        a.set_label(&mut forever).unwrap();
        a.cmp(ebx, 5).unwrap();
        a.jb(forever).unwrap();
        a.mov(eax, ebx).unwrap();
        done(a);
    });
    guest.load(0x2000, |a| {
        a.inc(ebx).unwrap();
        a.mov(dword_ptr(edi + 0xb0), 0).unwrap();
        a.iret().unwrap();
    });
    // One more may come before the count is read.
    assert!(until_done(&mut guest.vcpu(0)) >= 5);
}

#[test]
fn a_processor_starts_another_and_is_answered_by_an_interrupt() {
    let guest = Guest::new();
    guest.vector(0x55, 0x2000);
    guest.load(CODE, |a| {
        a.mov(dword_ptr(edi + 0x310), 1 << 24).unwrap();
        a.mov(dword_ptr(edi + 0x300), 0x4500).unwrap();
        a.mov(dword_ptr(edi + 0x300), 0x4609).unwrap();
        a.sti().unwrap();
        a.hlt().unwrap();
        a.mov(eax, ebx).unwrap();
        done(a);
    });
    guest.load(0x2000, |a| {
        a.mov(ebx, dword_ptr(0x500)).unwrap();
        a.iret().unwrap();
    });
    // The other one begins at 0900:0000 with a 64 KiB data segment. It sends its interrupt by
    // the paravirtual call: the page is out of its reach.
    guest.load(0x9000, |a| {
        a.mov(dword_ptr(0x500), 0x77).unwrap();
        a.mov(eax, 10).unwrap();
        a.mov(ebx, 1).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(esi, 0x55).unwrap();
        a.vmcall().unwrap();
        a.mov(dword_ptr(0x504), eax).unwrap();
        a.hlt().unwrap();
    });
    let mut second = guest.vcpu(1);
    let kicker = second.kicker();
    let thread = std::thread::spawn(move || {
        assert!(matches!(second.run().unwrap(), Exit::Interrupted));
        second.state().unwrap()
    });
    assert_eq!(until_done(&mut guest.vcpu(0)), 0x77);
    let deadline = Instant::now() + Duration::from_secs(10);
    while guest.word(0x504) == 0 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(guest.word(0x504), 1, "one processor was reached");
    kicker.kick();
    let state = thread.join().unwrap();
    assert_eq!(state.sregs.cs.base, 0x9000);
}

/// A paravirtual lock's holder may wake its next owner just before that one goes to sleep.
#[test]
fn a_wake_up_call_that_comes_before_hlt_is_not_lost() {
    let guest = Guest::new();
    guest.load(CODE, |a| {
        a.mov(eax, 5).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.vmcall().unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
        a.mov(eax, 0x42).unwrap();
        done(a);
    });
    assert_eq!(until_done(&mut guest.vcpu(0)), 0x42);
}

#[test]
fn messages_interrupt_and_level_triggered_ones_tell_their_end() {
    let guest = Guest::new();
    guest.vector(0x61, 0x2000);
    guest.load(CODE, |a| {
        a.sti().unwrap();
        a.hlt().unwrap();
        a.mov(eax, ebx).unwrap();
        done(a);
    });
    guest.load(0x2000, |a| {
        a.mov(ebx, 0x61).unwrap();
        a.mov(dword_ptr(edi + 0xb0), 0).unwrap();
        a.iret().unwrap();
    });
    let mut vcpu = guest.vcpu(0);
    let route = guest.vm.open_route().unwrap();
    route.trigger();
    let message = MsiMessage {
        address: 0xfee0_0000,
        data: 0xc061,
    };
    route.set(Some(message)).unwrap();
    route.trigger();
    assert!(matches!(
        vcpu.run().unwrap(),
        Exit::EndOfInterrupt { vector: 0x61 }
    ));
    assert_eq!(until_done(&mut vcpu), 0x61);
}

#[test]
fn the_pics_interrupt_waits_for_its_window() {
    let guest = Guest::new();
    guest.vector(0x20, 0x2000);
    guest.load(CODE, |a| {
        a.nop().unwrap();
        a.out(0x80, al).unwrap();
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
        a.mov(eax, ebx).unwrap();
        done(a);
    });
    guest.load(0x2000, |a| {
        a.mov(ebx, 0x20).unwrap();
        a.iret().unwrap();
    });
    let mut vcpu = guest.vcpu(0);
    let mut state = vcpu.state().unwrap();
    let lapic = state.lapic.as_mut().unwrap();
    lapic.set(LapicState::LVT_LINT0, 0x700);
    vcpu.set_state(&state).unwrap();
    assert!(matches!(
        vcpu.run().unwrap(),
        Exit::PortWrite { port: 0x80, .. }
    ));
    assert!(!vcpu.ready_for_interrupt());
    vcpu.request_interrupt_window(true);
    assert!(matches!(vcpu.run().unwrap(), Exit::InterruptWindow));
    assert!(vcpu.ready_for_interrupt());
    vcpu.request_interrupt_window(false);
    vcpu.inject_interrupt(0x20).unwrap();
    assert_eq!(vcpu.state().unwrap().events.interrupt.nr, 0x20);
    assert_eq!(until_done(&mut vcpu), 0x20);
}

#[test]
fn an_nmi_wakes_and_a_second_one_waits_for_the_first() {
    let guest = Guest::new();
    guest.vector(2, 0x2000);
    guest.load(CODE, |a| {
        a.hlt().unwrap();
        a.mov(eax, ebx).unwrap();
        done(a);
    });
    guest.load(0x2000, |a| {
        a.add(ebx, 1).unwrap();
        a.iret().unwrap();
    });
    let mut vcpu = guest.vcpu(0);
    vcpu.inject_nmi().unwrap();
    vcpu.inject_nmi().unwrap();
    vcpu.inject_nmi().unwrap();
    assert!(vcpu.state().unwrap().events.nmi.pending);
    // Both come before HLT, which then sleeps until the third.
    let kicker = vcpu.kicker();
    let thread = std::thread::spawn(move || {
        // On a busy host the first kicks may come before the guest has run at all.
        while vcpu.state().unwrap().mp_state != MpState::Halted {
            assert!(matches!(vcpu.run().unwrap(), Exit::Interrupted));
        }
        assert_eq!(vcpu.state().unwrap().regs.rbx, 2);
        vcpu.inject_nmi().unwrap();
        loop {
            match vcpu.run().unwrap() {
                Exit::Interrupted => (),
                Exit::PortWrite { data, .. } => {
                    return u32::from_le_bytes(data.try_into().unwrap());
                }
                other => panic!("{other:?}"),
            }
        }
    });
    while !thread.is_finished() {
        std::thread::sleep(Duration::from_millis(5));
        kicker.kick();
    }
    assert_eq!(thread.join().unwrap(), 3);
}

#[test]
fn doorbells_ring_without_an_exit() {
    let guest = Guest::new();
    guest.load(CODE, |a| {
        a.mov(ebx, 0xa_0020).unwrap();
        a.mov(dword_ptr(ebx), 1).unwrap();
        a.mov(al, 3).unwrap();
        a.out(0x90, al).unwrap();
        a.mov(eax, 9).unwrap();
        done(a);
    });
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let bell = |space, address, value| DoorbellAddress {
        space,
        address,
        length: 0,
        value,
    };
    guest
        .vm
        .attach(bell(Space::Memory, 0xa_0020, None), &event)
        .unwrap();
    guest
        .vm
        .attach(bell(Space::Port, 0x90, Some(3)), &event)
        .unwrap();
    assert_eq!(until_done(&mut guest.vcpu(0)), 9);
    assert_eq!(event.read().unwrap(), 2);
}

#[test]
fn a_triple_fault_ends_the_run() {
    let guest = Guest::new();
    guest.load(CODE, |a| {
        a.ud2().unwrap();
    });
    let mut vcpu = guest.vcpu(0);
    let mut state = vcpu.state().unwrap();
    state.sregs.idt.limit = 0;
    vcpu.set_state(&state).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::TripleFault));
}

#[test]
fn a_state_is_what_was_set() {
    let guest = Guest::new();
    let mut vcpu = guest.vcpu(1);
    let mut state = vcpu.state().unwrap();
    assert_eq!(state.mp_state, MpState::Uninitialized);
    state.mp_state = MpState::Halted;
    state.regs.rbx = 0x1234_5678_9abc_def0;
    state.events.nmi.pending = true;
    state.events.interrupt.injected = true;
    state.events.interrupt.nr = 0x31;
    state.msrs.insert(msr::LSTAR, 0xffff_8000_0000_1000);
    state.msrs.insert(msr::KVM_POLL_CONTROL, 0);
    let lapic = state.lapic.as_mut().unwrap();
    lapic.set(LapicState::TPR, 0x50);
    lapic.set(LapicState::PPR, 0x50);
    lapic.set(LapicState::LVT_TIMER, 0x4_0033);
    lapic.set(LapicState::IRR + 0x20, 0x1000);
    state.sregs.cr8 = 5;
    let far = state.msr(msr::TSC) + (1 << 50);
    state.msrs.insert(msr::TSC_DEADLINE, far);
    vcpu.set_state(&state).unwrap();
    let mut read = vcpu.state().unwrap();
    let (before, after) = (state.msr(msr::TSC), read.msr(msr::TSC));
    assert!(after.wrapping_sub(before) < 1 << 36, "{before} {after}");
    read.msrs.insert(msr::TSC, before);
    assert_eq!(read, state);
}

#[test]
fn counters_set_one_after_the_other_count_in_step() {
    let guest = Guest::new();
    let (first, second) = (guest.vcpu(0), guest.vcpu(1));
    assert_eq!(first.cpu.tsc_offset, second.cpu.tsc_offset);
}

#[test]
fn a_register_that_is_not_there_cannot_be_set() {
    let guest = Guest::new();
    let mut vcpu = guest.vcpu(0);
    let mut state = vcpu.state().unwrap();
    state.msrs.insert(0x1234, 0);
    vcpu.set_state(&state).unwrap();
    state.msrs.insert(0x1234, 1);
    let error = vcpu.set_state(&state).unwrap_err().to_string();
    assert!(error.contains("0x1234"), "{error}");
    state.msrs.remove(&0x1234);
    state.tsc_khz = Some(1000);
    let error = vcpu.set_state(&state).unwrap_err().to_string();
    assert!(error.contains("1000 kHz"), "{error}");
}

#[test]
fn memory_that_comes_is_seen() {
    let guest = Guest::new();
    assert!(guest.vm.memory_changed().is_ok());
    guest.load(CODE, |a| {
        a.mov(eax, dword_ptr(0x3000)).unwrap();
        done(a);
    });
    guest
        .ram
        .memory()
        .write_obj(0x42u32, GuestAddress(0x3000))
        .unwrap();
    assert_eq!(until_done(&mut guest.vcpu(0)), 0x42);
}
