use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::testing::{RecordingHost, RecordingSink};
use super::*;

#[derive(Default)]
struct Register(AtomicU64);

impl Device for Register {
    fn read(&self, offset: u64, data: &mut [u8]) {
        write_le(data, self.0.load(Ordering::SeqCst) + offset);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Action {
        self.0.store(read_le(data), Ordering::SeqCst);
        Action::Reset
    }
}

#[test]
fn accesses_reach_the_device_behind_the_address() {
    let bus = Bus::new();
    bus.insert(Range::new(0x3f8, 8), Arc::new(Register::default()))
        .unwrap();
    assert_eq!(bus.write(0x3f8, &[0x34, 0x12]), Action::Reset);
    let mut data = [0; 4];
    bus.read(0x3fa, &mut data);
    assert_eq!(read_le(&data), 0x1236);
    bus.read(0x400, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(bus.write(0x400, &data), Action::None);
    assert!(bus.remove(0x3f8));
    assert!(!bus.remove(0x3f8));
    bus.read(0x3f8, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn overlaps_and_wrapping_ranges_are_refused() {
    let bus = Bus::new();
    let device = || Arc::new(Register::default());
    bus.insert(Range::new(0x100, 0x10), device()).unwrap();
    for (base, size) in [
        (0x10f, 1),
        (0xff, 2),
        (0x100, 0x10),
        (0, u64::MAX),
        (0x104, 2),
    ] {
        assert!(
            matches!(
                bus.insert(Range::new(base, size), device()),
                Err(BusError::Overlap { .. })
            ),
            "{base:#x}"
        );
    }
    for (base, size) in [(0, 0), (u64::MAX, 2)] {
        assert!(matches!(
            bus.insert(Range::new(base, size), device()),
            Err(BusError::BadRange(_))
        ));
    }
    bus.insert(Range::new(u64::MAX, 1), device()).unwrap();
    bus.insert(Range::new(0x110, 1), device()).unwrap();
}

#[test]
fn a_shared_line_is_high_while_anyone_holds_it() {
    let sink = Arc::new(RecordingSink::default());
    let first = SharedLine::new(IrqLine::new(sink.clone(), 9));
    let second = first.holder();
    first.set(true);
    first.set(true);
    second.set(true);
    first.set(false);
    assert!(sink.level(9));
    second.set(false);
    assert!(!sink.level(9));
    assert_eq!(sink.edges(9), 1);
}

#[test]
fn a_doorbell_hangs_until_dropped() {
    let host = Arc::new(RecordingHost::default());
    let address = DoorbellAddress {
        space: Space::Memory,
        address: 0x1000,
        length: 2,
        value: Some(1),
    };
    let event = EventFd::new(libc_nonblock()).unwrap();
    let bell = Doorbell::hang(host.clone(), address, event.try_clone().unwrap()).unwrap();
    assert!(host.ring(&address));
    assert_eq!(event.read().unwrap(), 1);
    assert!(matches!(
        Doorbell::hang(host.clone(), address, event),
        Err(DoorbellError::InUse(_))
    ));
    drop(bell);
    assert!(!host.ring(&address));
}

fn libc_nonblock() -> i32 {
    vmm_sys_util::eventfd::EFD_NONBLOCK
}

proptest! {
    #[test]
    fn little_endian_numbers_round_trip(value: u64, width in 1usize..=8) {
        let mut data = vec![0; width];
        write_le(&mut data, value);
        let mask = if width == 8 { u64::MAX } else { (1 << (8 * width)) - 1 };
        prop_assert_eq!(read_le(&data), value & mask);
    }
}
