//! Small guests in 64-bit mode, on the interpreter and on the translator.

use x86::{DescriptorTable, Segment};

use super::*;

const PML4: u64 = 0x1_0000;
const PDPT: u64 = 0x1_1000;
const PD: u64 = 0x1_2000;
const FUNCTION: u64 = 0x6000;
const COUNTER: u64 = 0x7000;

fn on_both(test: impl Fn(&Guest)) {
    for engine in [EngineKind::Interpret, EngineKind::Translate] {
        let guest = Guest::with_engine(engine);
        let map = guest.ram.memory();
        // Present, writable; the last level maps 2 MiB at once.
        for (entry, at) in [(PDPT | 3, PML4), (PD | 3, PDPT), (0x83, PD)] {
            map.write_obj(entry, GuestAddress(at)).unwrap();
        }
        test(&guest);
    }
}

fn load(guest: &Guest, address: u64, write: impl FnOnce(&mut CodeAssembler)) {
    let mut a = CodeAssembler::new(64).unwrap();
    write(&mut a);
    let code = a.assemble(address).unwrap();
    let map = guest.ram.memory();
    map.write_slice(&code, GuestAddress(address)).unwrap();
}

fn vcpu(guest: &Guest, index: u32, rip: u64) -> SoftVcpu {
    let mut vcpu = guest.vcpu(index);
    let mut state = vcpu.state().unwrap();
    state.mp_state = MpState::Runnable;
    state.regs.rip = rip;
    state.regs.rsp = 0x8000 + 0x800 * u64::from(index);
    let s = &mut state.sregs;
    s.cs = Segment::code64(0x08);
    for segment in [&mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss] {
        *segment = Segment::data(0x10);
    }
    s.idt = DescriptorTable { base: 0, limit: 0 };
    s.cr0 = 0x8000_0033; // PG, NE, ET, MP, PE
    s.cr3 = PML4;
    s.cr4 = 0x620; // OSXMMEXCPT, OSFXSR, PAE
    s.efer = 0x500; // LMA, LME
    vcpu.set_state(&state).unwrap();
    vcpu
}

/// Calls a function over and over until it returns 2. Returns where to begin.
fn load_caller(guest: &Guest) -> u64 {
    load(guest, FUNCTION, |a| {
        a.mov(eax, 1).unwrap();
        a.ret().unwrap();
    });
    load(guest, CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.call(FUNCTION).unwrap();
        a.inc(qword_ptr(COUNTER)).unwrap();
        a.cmp(eax, 2).unwrap();
        a.jne(again).unwrap();
        done(a);
    });
    CODE
}

#[test]
fn code_that_another_processor_writes_is_executed_as_written() {
    on_both(|guest| {
        let begin = load_caller(guest);
        load(guest, 0x5000, |a| {
            let mut wait = a.create_label();
            a.set_label(&mut wait).unwrap();
            a.cmp(qword_ptr(COUNTER), 1000).unwrap();
            a.jb(wait).unwrap();
            a.mov(byte_ptr(FUNCTION + 1), 2).unwrap();
            done(a);
        });
        let mut second = vcpu(guest, 1, 0x5000);
        let thread = std::thread::spawn(move || until_done(&mut second));
        assert_eq!(until_done(&mut vcpu(guest, 0, begin)), 2);
        thread.join().unwrap();
    });
}

#[test]
fn code_that_a_device_writes_is_executed_as_written() {
    on_both(|guest| {
        let mut first = vcpu(guest, 0, load_caller(guest));
        let thread = std::thread::spawn(move || until_done(&mut first));
        let map = guest.ram.memory();
        let deadline = Instant::now() + Duration::from_secs(10);
        while guest.word(COUNTER) < 1000 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        map.write_obj(2u8, GuestAddress(FUNCTION + 1)).unwrap();
        memory::written(&map, FUNCTION + 1, 1);
        assert_eq!(thread.join().unwrap(), 2);
    });
}

#[test]
fn a_loop_that_does_nothing_else_hears_of_kicks() {
    on_both(|guest| {
        load(guest, CODE, |a| {
            let mut forever = a.create_label();
            a.set_label(&mut forever).unwrap();
            a.jmp(forever).unwrap();
        });
        let mut vcpu = vcpu(guest, 0, CODE);
        let kicker = vcpu.kicker();
        let thread = std::thread::spawn(move || matches!(vcpu.run().unwrap(), Exit::Interrupted));
        std::thread::sleep(Duration::from_millis(10));
        kicker.kick();
        assert!(thread.join().unwrap());
    });
}

/// Two processors add to one number, with a lock prefix.
#[test]
fn locked_additions_of_two_processors_are_not_lost() {
    on_both(|guest| {
        load(guest, CODE, |a| {
            let mut again = a.create_label();
            a.mov(ecx, 20_000).unwrap();
            a.set_label(&mut again).unwrap();
            a.lock().add(qword_ptr(COUNTER), 1).unwrap();
            a.dec(ecx).unwrap();
            a.jnz(again).unwrap();
            done(a);
        });
        let mut second = vcpu(guest, 1, CODE);
        let thread = std::thread::spawn(move || until_done(&mut second));
        until_done(&mut vcpu(guest, 0, CODE));
        thread.join().unwrap();
        assert_eq!(guest.word(COUNTER), 40_000);
    });
}
