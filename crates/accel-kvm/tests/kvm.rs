//! Against a real KVM: `cargo xtask guest-tests` runs these where there is one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use accel::{Accelerator, Exit, Vcpu, VcpuSetup, Vm};
use accel_kvm::Kvm;
use bus::{DoorbellAddress, EventFd, MsiMessage, Space};
use memory::{Bytes, GuestAddress, GuestAddressSpace, GuestRam};
use x86::{CpuState, LapicState, Segment, msr};

struct Guest {
    ram: GuestRam,
    vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
}

/// A processor in real mode at 0x1000, where `code` is.
fn guest(code: &[u8]) -> Guest {
    let kvm = Kvm::open(Path::new("/dev/kvm")).expect("KVM is there");
    kvm.ready().expect("KVM passes its self-test");
    let ram = memory::small(1 << 20).unwrap();
    ram.memory()
        .write_slice(code, GuestAddress(0x1000))
        .unwrap();
    let vm = kvm.create_vm(ram.clone()).unwrap();
    let cpuid = kvm.capabilities().cpu.cpuid.clone();
    let mut vcpu = vm
        .create_vcpu(VcpuSetup {
            index: 0,
            apic_id: 0,
            cpuid,
        })
        .unwrap();
    let mut state = CpuState::reset();
    state.sregs.cs = Segment::real_mode_code(0x100);
    state.regs.rip = 0;
    vcpu.x86().set_state(&state).unwrap();
    Guest { ram, vm, vcpu }
}

#[test]
fn port_and_memory_accesses_come_out_and_go_back_in() {
    // in al, 0x42; out 0x43, al; mov [0xf000:0xfff0 -> beyond memory]; rep outsb; hlt
    let code = [
        0xe4, 0x42, // in al, 0x42
        0xe6, 0x43, // out 0x43, al
        0xb9, 0x03, 0x00, // mov cx, 3
        0xbe, 0x00, 0x20, // mov si, 0x2000
        0xba, 0x44, 0x00, // mov dx, 0x44
        0xf3, 0x6e, // rep outsb
        0xb8, 0xff, 0xff, // mov ax, 0xffff
        0x8e, 0xd8, // mov ds, ax
        0xa1, 0x10, 0x10, // mov ax, [0x1010] -> 0x101000, beyond 1 MiB
        0xa3, 0x20, 0x10, // mov [0x1020], ax
        0xf4,
    ];
    let mut guest = guest(&code);
    guest
        .ram
        .memory()
        .write_slice(b"abc", GuestAddress(0x2000))
        .unwrap();
    match guest.vcpu.run().unwrap() {
        Exit::PortRead {
            port: 0x42,
            size: 1,
            data,
        } => data[0] = 0x5a,
        other => panic!("{other:?}"),
    }
    match guest.vcpu.run().unwrap() {
        Exit::PortWrite {
            port: 0x43,
            size: 1,
            data,
        } => assert_eq!(data, [0x5a]),
        other => panic!("{other:?}"),
    }
    let mut written = Vec::new();
    while written.len() < 3 {
        match guest.vcpu.run().unwrap() {
            Exit::PortWrite {
                port: 0x44,
                size: 1,
                data,
            } => written.extend_from_slice(data),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(written, b"abc");
    match guest.vcpu.run().unwrap() {
        Exit::MemoryRead {
            address: 0x10_1000,
            data,
        } => data.copy_from_slice(&[0x34, 0x12]),
        other => panic!("{other:?}"),
    }
    match guest.vcpu.run().unwrap() {
        Exit::MemoryWrite {
            address: 0x10_1010,
            data,
        } => assert_eq!(data, [0x34, 0x12]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_set_is_read_back() {
    let mut guest = guest(&[0xf4]);
    let x86 = guest.vcpu.x86();
    let mut state = CpuState::reset();
    state.regs.rbx = 0x1234_5678_9abc_def0;
    state.sregs.cr3 = 0x7000;
    state.debug.db[1] = 0x1000;
    state.msrs.insert(msr::LSTAR, 0xffff_8000_0000_1000);
    state.msrs.insert(msr::STAR, 0x0023_0010_0000_0000);
    state.lapic = Some(LapicState::reset(0));
    state.events.nmi.masked = true;
    x86.set_state(&state).unwrap();
    let first = x86.state().unwrap();
    assert_eq!(first.regs, state.regs);
    assert_eq!(first.sregs.cr3, 0x7000);
    assert_eq!(first.debug.db[1], 0x1000);
    assert_eq!(first.msr(msr::LSTAR), 0xffff_8000_0000_1000);
    assert!(first.events.nmi.masked);
    x86.set_state(&first).unwrap();
    let mut second = x86.state().unwrap();
    // Time goes on between the two.
    second.msrs.insert(msr::TSC, first.msr(msr::TSC));
    assert_eq!(second, first);
}

#[test]
fn a_kick_ends_a_run_that_would_last_for_ever() {
    // jmp $
    let mut guest = guest(&[0xeb, 0xfe]);
    let kicker = guest.vcpu.kicker();
    kicker.kick();
    assert!(
        matches!(guest.vcpu.run().unwrap(), Exit::Interrupted),
        "a kick before the run counts"
    );
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        kicker.kick();
    });
    assert!(matches!(guest.vcpu.run().unwrap(), Exit::Interrupted));
    thread.join().unwrap();
}

#[test]
fn a_doorbell_rings_without_an_exit() {
    // out 0x70, ax; mov [ds:0x1010], ax; out 0x43, al
    let code = [
        0xb8, 0xff, 0xff, 0x8e, 0xd8, // mov ax, 0xffff; mov ds, ax
        0xb8, 0x02, 0x00, // mov ax, 2
        0xe7, 0x70, // out 0x70, ax
        0xa3, 0x10, 0x10, // mov [0x1010], ax -> 0x101000
        0xe6, 0x43, // out 0x43, al
    ];
    let mut guest = guest(&code);
    let port = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let memory = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let at = |space, address, length, value| DoorbellAddress {
        space,
        address,
        length,
        value,
    };
    let ports = at(Space::Port, 0x70, 2, Some(2));
    let any = at(Space::Memory, 0x10_1000, 0, None);
    guest.vm.attach(ports, &port).unwrap();
    guest.vm.attach(any, &memory).unwrap();
    assert!(guest.vm.attach(ports, &port).is_err());
    assert!(matches!(
        guest.vcpu.run().unwrap(),
        Exit::PortWrite { port: 0x43, .. }
    ));
    assert_eq!(port.read().unwrap(), 1);
    assert_eq!(memory.read().unwrap(), 1);
    guest.vm.detach(ports, &port).unwrap();
    guest.vm.detach(any, &memory).unwrap();
}

#[test]
fn a_route_delivers_its_message_to_the_local_apic() {
    let mut guest = guest(&[0xfb, 0xf4, 0xeb, 0xfd]);
    let mut state = guest.vcpu.x86().state().unwrap();
    let mut lapic = LapicState::reset(0);
    lapic.set(LapicState::SVR, 0x1ff);
    state.lapic = Some(lapic);
    guest.vcpu.x86().set_state(&state).unwrap();
    let route = guest.vm.open_route().unwrap();
    let pending = |guest: &mut Guest| {
        let lapic = guest.vcpu.x86().state().unwrap().lapic.unwrap();
        lapic.get(LapicState::IRR + 16 * (0x61 / 32)) >> (0x61 % 32) & 1
    };
    route.trigger();
    assert_eq!(pending(&mut guest), 0, "a masked route sends nothing");
    route
        .set(Some(MsiMessage {
            address: 0xfee0_0000,
            data: 0x61,
        }))
        .unwrap();
    // What was triggered while masked is the sender's business (MSI-X has pending bits).
    route.eventfd().unwrap().write(1).unwrap();
    assert_eq!(pending(&mut guest), 1);
    route.set(None).unwrap();
    guest
        .vm
        .send(MsiMessage {
            address: 0xfee0_0000,
            data: 0x62,
        })
        .unwrap();
}
