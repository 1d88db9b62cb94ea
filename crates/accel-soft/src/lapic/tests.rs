use std::collections::BTreeSet;

use bus::MsiMessage;
use proptest::prelude::*;
use x86::LapicState;
use x86::msr::apic_base;

use super::*;

const T0: Now = Now { ns: 0, tsc: 0 };

fn at(ns: u64) -> Now {
    Now { ns, tsc: ns }
}

/// An xAPIC that software has enabled.
fn enabled() -> Lapic {
    let mut lapic = Lapic::new(1, false);
    assert_eq!(lapic.write(0xf0, 4, 0x1ff, T0), Effect::None);
    lapic
}

/// The same in x2APIC mode.
fn x2apic(id: u32) -> Lapic {
    let mut lapic = Lapic::new(id, false);
    let base = lapic.base() | apic_base::EXTD;
    lapic.set_base(base, 46, true).unwrap();
    assert_eq!(lapic.write_msr(0x80f, 0x1ff, T0), Ok(Effect::None));
    lapic
}

#[test]
fn interrupts_go_by_priority_through_request_and_service() {
    let mut lapic = enabled();
    lapic.accept(0x31, false);
    lapic.accept(0x52, false);
    lapic.accept(0x58, true);
    assert_eq!(lapic.pending(), Some(0x58));
    lapic.acknowledge(0x58);
    assert_eq!(lapic.pending(), None, "the same class waits");
    lapic.accept(0x61, false);
    assert_eq!(lapic.pending(), Some(0x61));
    lapic.acknowledge(0x61);
    assert_eq!(lapic.write(0xb0, 4, 0, T0), Effect::None);
    assert_eq!(lapic.write(0xb0, 4, 0, T0), Effect::EndOfInterrupt(0x58));
    lapic.set_task_priority(0x50);
    assert_eq!(lapic.pending(), None);
    lapic.set_task_priority(0x4f);
    assert_eq!(lapic.pending(), Some(0x52));
}

#[test]
fn an_apic_that_software_disabled_takes_nothing_and_masks_its_vectors() {
    let mut lapic = enabled();
    _ = lapic.write(0x320, 4, 0x40, T0);
    assert_eq!(lapic.read(0x320, 4, T0), 0x40);
    _ = lapic.write(0xf0, 4, 0xff, T0);
    assert_eq!(lapic.read(0x320, 4, T0), 0x1_0040);
    _ = lapic.write(0x320, 4, 0x40, T0);
    assert_eq!(lapic.read(0x320, 4, T0), 0x1_0040);
    lapic.accept(0x40, false);
    _ = lapic.write(0xf0, 4, 0x1ff, T0);
    assert_eq!(lapic.pending(), None);
}

#[test]
fn illegal_vectors_and_registers_are_errors() {
    let mut lapic = enabled();
    _ = lapic.write(0x370, 4, 0xfe, T0);
    assert_eq!(lapic.write(0x300, 4, 0x0000_4005, T0), Effect::None);
    assert_eq!(lapic.pending(), Some(0xfe));
    lapic.accept(3, false);
    _ = lapic.read(0x40, 4, T0);
    assert_eq!(lapic.read(0x280, 4, T0), 0, "shown after a write only");
    _ = lapic.write(0x280, 4, 0, T0);
    assert_eq!(
        lapic.read(0x280, 4, T0) as u32,
        ESR_SEND_ILLEGAL_VECTOR | ESR_RECEIVE_ILLEGAL_VECTOR | ESR_ILLEGAL_REGISTER
    );
}

#[test]
fn the_command_register_sends_what_it_says() {
    let mut lapic = enabled();
    _ = lapic.write(0x310, 4, 0x0300_0000, T0);
    let sent = |lapic: &mut Lapic, low: u64| match lapic.write(0x300, 4, low, T0) {
        Effect::Ipi(message) => message,
        other => panic!("{other:?}"),
    };
    let message = sent(&mut lapic, 0x40fd);
    assert_eq!(message.target, Target::Physical(3));
    assert_eq!((message.vector, message.delivery), (0xfd, Delivery::Fixed));
    assert_eq!(sent(&mut lapic, 0x48fd).target, Target::Logical(3));
    assert_eq!(sent(&mut lapic, 0x4_40fd).target, Target::Myself);
    assert_eq!(sent(&mut lapic, 0x8_40fd).target, Target::All);
    let init = sent(&mut lapic, 0xc_4500);
    assert_eq!(
        (init.target, init.delivery),
        (Target::Others, Delivery::Init)
    );
    assert_eq!(sent(&mut lapic, 0xc_8500).target, Target::Nobody);
    let start = sent(&mut lapic, 0x4699);
    assert_eq!((start.vector, start.delivery), (0x99, Delivery::StartUp));
    assert_eq!(sent(&mut lapic, 0x4402).delivery, Delivery::Nmi);
}

#[test]
fn x2apic_registers_are_msrs_and_the_page_is_gone() {
    let mut lapic = x2apic(0x123);
    assert_eq!(lapic.page(), None);
    assert_eq!(lapic.read_msr(0x802, T0), Ok(0x123));
    assert_eq!(lapic.read_msr(0x80d, T0), Ok(0x12 << 16 | 1 << 3));
    for (index, value) in [
        (0x802, 1),
        (0x80e, 0),
        (0x80b, 1),
        (0x808, 0x100),
        (0x831, 0),
        (0x840, 0),
    ] {
        assert_eq!(
            lapic.write_msr(index, value, T0),
            Err(Refused),
            "{index:#x}"
        );
    }
    assert_eq!(lapic.read_msr(0x80b, T0), Err(Refused));
    let Ok(Effect::Ipi(message)) = lapic.write_msr(0x830, 0x1_0002_0000_00f3, T0) else {
        panic!("no message");
    };
    assert_eq!(message.target, Target::Physical(0x1_0002));
    let Ok(Effect::Ipi(message)) = lapic.write_msr(0x83f, 0x77, T0) else {
        panic!("no message");
    };
    assert_eq!(message.target, Target::Myself);
    assert_eq!(enabled().read_msr(0x802, T0), Err(Refused));
}

#[test]
fn the_base_register_changes_modes_as_the_manual_allows() {
    let mut lapic = Lapic::new(0, true);
    let xapic = lapic.base();
    assert_eq!(xapic, 0xfee0_0900);
    let (off, x2) = (0xfee0_0100, 0xfee0_0d00);
    assert!(
        lapic.set_base(0xfee0_0500, 46, true).is_err(),
        "x2APIC but disabled"
    );
    assert!(lapic.set_base(xapic | 1, 46, true).is_err(), "reserved");
    assert!(
        lapic.set_base(1 << 46 | xapic, 46, true).is_err(),
        "too far"
    );
    assert!(lapic.set_base(x2, 46, false).is_err(), "not offered");
    lapic.set_base(x2, 46, true).unwrap();
    assert!(lapic.set_base(xapic, 46, true).is_err(), "not back at once");
    lapic.set_base(off, 46, true).unwrap();
    assert!(lapic.takes_external(), "a disabled APIC is not in the way");
    assert!(lapic.set_base(x2, 46, true).is_err(), "by xAPIC mode only");
    lapic.set_base(xapic, 46, true).unwrap();
    assert!(!lapic.takes_external());
    _ = lapic.write(0xf0, 4, 0x1ff, T0);
    _ = lapic.write(0x350, 4, 0x700, T0);
    assert!(lapic.takes_external());
}

#[test]
fn the_timer_counts_once_or_again_and_again() {
    let mut lapic = enabled();
    _ = lapic.write(0x3e0, 4, 0b1011, T0); // divide by 1
    _ = lapic.write(0x320, 4, 0x40, T0);
    _ = lapic.write(0x380, 4, 1_000_000, T0);
    assert_eq!(lapic.deadline(), Some(Deadline::Ns(1_000_000)));
    assert_eq!(lapic.read(0x390, 4, at(400_000)), 600_000);
    lapic.tick(at(999_999));
    assert_eq!(lapic.pending(), None);
    lapic.tick(at(1_000_000));
    assert_eq!((lapic.pending(), lapic.deadline()), (Some(0x40), None));
    lapic.acknowledge(0x40);
    _ = lapic.end_of_interrupt();

    _ = lapic.write(0x3e0, 4, 0b0011, T0); // divide by 16
    _ = lapic.write(0x320, 4, 0x2_0041, T0);
    _ = lapic.write(0x380, 4, 1_000_000, T0);
    lapic.tick(at(35_000_000));
    assert_eq!(lapic.deadline(), Some(Deadline::Ns(48_000_000)));
    assert_eq!(lapic.pending(), Some(0x41));
    assert_eq!(lapic.read(0x390, 4, at(40_000_000)), 500_000);
    _ = lapic.write(0x380, 4, 0, T0);
    assert_eq!(lapic.deadline(), None);
}

#[test]
fn the_tsc_deadline_fires_once_and_only_in_its_mode() {
    let mut lapic = enabled();
    lapic.set_tsc_deadline(500);
    assert_eq!(lapic.tsc_deadline(), 0);
    _ = lapic.write(0x320, 4, 0x4_0050, T0);
    lapic.set_tsc_deadline(500);
    assert_eq!(lapic.deadline(), Some(Deadline::Tsc(500)));
    _ = lapic.write(0x380, 4, 100, T0);
    assert_eq!(
        lapic.deadline(),
        Some(Deadline::Tsc(500)),
        "counts are ignored"
    );
    lapic.tick(at(499));
    assert_eq!(lapic.pending(), None);
    lapic.tick(at(500));
    assert_eq!((lapic.pending(), lapic.tsc_deadline()), (Some(0x50), 0));
    lapic.set_tsc_deadline(900);
    _ = lapic.write(0x320, 4, 0x50, T0);
    assert_eq!(lapic.deadline(), None);
}

#[test]
fn a_performance_interrupt_masks_itself() {
    let mut lapic = enabled();
    _ = lapic.write(0x340, 4, 0x400, T0);
    assert_eq!(lapic.performance_counter(true), Local::Nmi);
    assert_eq!(lapic.performance_counter(true), Local::Done);
    assert_eq!(lapic.read(0x340, 4, T0), 0x1_0400);
}

#[test]
fn messages_find_their_targets() {
    let x = |id: u32, logical: u8, flat: bool| Address {
        enabled: true,
        x2apic: false,
        flat,
        id,
        logical,
    };
    let x2 = |id: u32| Address {
        x2apic: true,
        ..x(id, 0, false)
    };
    let msi = |address: u64, data: u32| Message::from_msi(MsiMessage { address, data });
    let physical = msi(0xfee0_3000, 0x41);
    assert!(x(3, 0, true).matches(physical.target, false));
    assert!(!x(2, 0, true).matches(physical.target, false));
    assert!(x2(3).matches(physical.target, false));
    let extended = msi(0xfee0_3000 | 1 << 5, 0x41);
    assert!(x2(0x103).matches(extended.target, false));
    assert!(!x(3, 0, true).matches(extended.target, false));
    assert!(x2(0x1_0003).matches(msi(1 << 48 | 0xfee0_3000, 0x41).target, false));
    let everybody = msi(0xfeef_f000, 0x41);
    assert!(x(7, 0, true).matches(everybody.target, false));
    assert!(
        !x2(7).matches(everybody.target, false),
        "only 0xffffffff is"
    );
    let logical = msi(0xfee0_5004, 0x41);
    assert!(x(0, 0x04, true).matches(logical.target, false));
    assert!(!x(0, 0x08, true).matches(logical.target, false));
    assert!(
        !x(0, 0x14, false).matches(logical.target, false),
        "cluster 0"
    );
    assert!(x(0, 0x04, false).matches(logical.target, false));
    assert!(x2(2).matches(logical.target, false) && !x2(1).matches(logical.target, false));
    assert_eq!(msi(0xfee0_500c, 0x41).delivery, Delivery::LowestPriority);
    assert!(msi(0xfee0_5000, 0xc041).level);
    assert!(!x(0, 0xff, true).matches(Target::Nobody, true));
    assert!(x(0, 0, true).matches(Target::Others, false));
    assert!(!x(0, 0, true).matches(Target::Others, true));
}

#[derive(Debug, Clone)]
enum Op {
    Accept(u8, bool),
    Take,
    End,
    Priority(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (16..=255u8, any::<bool>()).prop_map(|(v, l)| Op::Accept(v, l)),
        Just(Op::Take),
        Just(Op::End),
        any::<u8>().prop_map(Op::Priority),
    ]
}

proptest! {
    /// The registers behave as two sets and a rule: what is in request and of a higher class
    /// than task and service may be taken, the highest first.
    #[test]
    fn requests_and_services_are_sets(ops in prop::collection::vec(op(), 1..200)) {
        let mut lapic = enabled();
        let (mut requests, mut services, mut levels) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut priority = 0;
        for op in ops {
            match op {
                Op::Accept(vector, level) => {
                    lapic.accept(vector, level);
                    requests.insert(vector);
                    if level { levels.insert(vector); } else { levels.remove(&vector); }
                }
                Op::Take => {
                    let floor = services.last().copied().unwrap_or(0u8).max(priority) >> 4;
                    let expected = requests.last().copied().filter(|v: &u8| v >> 4 > floor);
                    prop_assert_eq!(lapic.pending(), expected);
                    if let Some(vector) = expected {
                        lapic.acknowledge(vector);
                        requests.remove(&vector);
                        services.insert(vector);
                    }
                }
                Op::End => {
                    let quiet = lapic.end_is_quiet();
                    let ended = services.pop_last();
                    let level = ended.filter(|v| levels.contains(v));
                    prop_assert_eq!(quiet, ended.is_some() && level.is_none() && requests.is_empty());
                    prop_assert_eq!(lapic.end_of_interrupt(), level);
                }
                Op::Priority(value) => {
                    lapic.set_task_priority(value);
                    priority = value;
                }
            }
        }
    }

    /// A state that was read and set again is the same, and goes on the same way.
    #[test]
    fn the_state_goes_both_ways(
        ops in prop::collection::vec(op(), 0..50),
        (mode, initial, elapsed) in (0..2u64, prop_oneof![Just(0), 200_000..5_000_000u64], 0..9_000_000u64),
        x2 in any::<bool>(),
    ) {
        let mut lapic = if x2 { x2apic(0x21) } else { enabled() };
        let mut write = |offset: u64, value: u64| if x2 {
            _ = lapic.write_msr(0x800 + (offset / 16) as u32, value, T0);
        } else {
            _ = lapic.write(offset, 4, value, T0);
        };
        write(0x3e0, 0b1011);
        write(0x320, mode << 17 | 0x99);
        write(0x380, initial);
        for op in ops {
            match op {
                Op::Accept(vector, level) => lapic.accept(vector, level),
                Op::Take => if let Some(vector) = lapic.pending() { lapic.acknowledge(vector) },
                Op::End => _ = lapic.end_of_interrupt(),
                Op::Priority(value) => lapic.set_task_priority(value),
            }
        }
        let now = at(elapsed);
        lapic.tick(now);
        let state = lapic.state(now);
        let mut other = Lapic::new(0x21, false);
        if !x2 { other.id = 1; }
        other.set_state(lapic.base(), Some(&state), now);
        prop_assert_eq!(other.state(now), state);
        prop_assert_eq!(other.pending(), lapic.pending());
        prop_assert_eq!(other.deadline(), lapic.deadline());
        prop_assert_eq!(other.address(), lapic.address());
    }

    /// No access makes the model panic, and the page reads back as something that can be set.
    #[test]
    fn any_access_is_survived(
        accesses in prop::collection::vec((any::<bool>(), 0..0x1000u64, 1..9u8, any::<u64>(), any::<u32>()), 1..100),
    ) {
        let mut lapic = enabled();
        let mut x2 = x2apic(5);
        let mut now = 0u64;
        for (write, offset, size, value, step) in accesses {
            now += u64::from(step);
            if write {
                _ = lapic.write(offset, size, value, at(now));
                _ = x2.write_msr(0x800 + (offset as u32 & 0xff), value, at(now));
            } else {
                _ = lapic.read(offset, size, at(now));
                _ = x2.read_msr(0x800 + (offset as u32 & 0xff), at(now));
            }
            lapic.tick(at(now));
            x2.tick(at(now));
        }
        prop_assert_eq!(Address::from_bits(x2.address().to_bits()), x2.address());
        let state = lapic.state(at(now));
        prop_assert_eq!(state.get(LapicState::VERSION), 0x0005_0014);
    }
}
