//! All devices together on one bus, wired as the board wires them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::state::Stateful;
use bus::testing::RecordingHost;
use bus::{Action, Bus, IrqLine, IrqSink, Range, SharedLine};
use proptest::prelude::*;

use crate::testing::FakeClock;
use crate::{
    ChipsetError, Gsi, acpi_pm, debug_exit, debugcon, fw_cfg, i8042, ioapic, pic, pit, post,
    pvpanic, rtc, uart,
};

#[derive(Default)]
struct Intr(AtomicBool);

impl pic::ExtIntSink for Intr {
    fn set_intr(&self, asserted: bool) {
        self.0.store(asserted, Ordering::SeqCst);
    }
}

struct NoMemory;

impl fw_cfg::GuestMemoryAccess for NoMemory {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), ChipsetError> {
        let length = data.len();
        Err(ChipsetError::GuestAddress { address, length })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), ChipsetError> {
        let length = data.len();
        Err(ChipsetError::GuestAddress { address, length })
    }
}

struct Swallow;

impl uart::SerialOutput for Swallow {
    fn write(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn space(&mut self) {}
}

struct Board {
    clock: FakeClock,
    intr: Arc<Intr>,
    host: Arc<RecordingHost>,
    pic: Arc<pic::Pic>,
    ports: Bus,
    memory: Bus,
    parts: Vec<(&'static str, Arc<dyn Stateful + Sync>)>,
}

const PMBASE: u64 = 0x600;

impl Board {
    fn new() -> Self {
        let clock = FakeClock::new(1_700_000_000);
        let timers = clock.host();
        let intr = Arc::new(Intr::default());
        let host = Arc::new(RecordingHost::default());
        let pic = pic::Pic::new(intr.clone());
        let ioapic = ioapic::IoApic::new(host.clone(), None);
        let gsi: Arc<dyn IrqSink> = Gsi::new(pic.clone(), ioapic.clone());
        let line = |pin| IrqLine::new(gsi.clone(), pin);

        let pit = pit::Pit::new(&timers, line(0));
        let rtc = rtc::Rtc::new(&timers, line(8), &rtc::RtcConfig::default());
        let i8042 = i8042::I8042::new(line(1), line(12));
        let com1 = uart::Uart::new(
            uart::COM_PORTS[0],
            line(uart::COM_IRQS[0]),
            Box::new(Swallow),
        );
        let width = acpi_pm::TimerWidth::Bits24;
        let pm = acpi_pm::AcpiPm::new(&timers, SharedLine::new(line(9)), width);
        let fw_cfg = fw_cfg::FwCfg::new(Arc::new(NoMemory));
        let (base, size) = (debug_exit::DEFAULT_IOBASE, debug_exit::DEFAULT_IOSIZE);
        let debug_exit = debug_exit::DebugExit::new(base, size).unwrap();
        let debugcon = debugcon::DebugCon::new(debugcon::PORT_FIRMWARE, Box::new(|_| ()));
        let pvpanic = pvpanic::PvPanic::new();
        let post = post::Post::new();

        let ports = Bus::new();
        let maps = [
            pic.ports(),
            pit.ports(),
            rtc.ports(),
            i8042.ports(),
            com1.ports(),
            pm.ports(),
            fw_cfg.ports(),
            debug_exit.ports(),
            debugcon.ports(),
            pvpanic.ports(),
            post.ports(),
        ];
        for (range, device) in maps.into_iter().flatten() {
            ports.insert(range, device).unwrap();
        }
        ports
            .insert(Range::new(PMBASE, acpi_pm::SIZE), pm.clone())
            .unwrap();
        let memory = Bus::new();
        memory.insert(ioapic::MMIO, ioapic.clone()).unwrap();
        Self {
            clock,
            intr,
            host,
            pic: pic.clone(),
            ports,
            memory,
            parts: vec![
                (pic::KIND, pic),
                (ioapic::KIND, ioapic),
                (pit::KIND, pit),
                (rtc::KIND, rtc),
                (i8042::KIND, i8042),
                (uart::KIND, com1),
                (acpi_pm::KIND, pm),
                (fw_cfg::KIND, fw_cfg),
                (debug_exit::KIND, debug_exit),
                (debugcon::KIND, debugcon),
                (pvpanic::KIND, pvpanic),
                (post::KIND, post),
            ],
        }
    }

    fn save(&self) -> Vec<::state::Payload> {
        self.parts.iter().map(|p| p.1.save().unwrap()).collect()
    }

    fn out(&self, port: u64, values: &[u8]) {
        for value in values {
            assert_eq!(self.ports.write(port, &[*value]), Action::None);
        }
    }
}

#[test]
fn the_timer_reaches_the_processor_through_either_controller() {
    let b = Board::new();
    for (port, values) in [
        (0x20, &[0x11u8][..]),
        (0x21, &[0x20, 0x04, 0x01, 0xfe]),
        (0xa0, &[0x11]),
        (0xa1, &[0x28, 0x02, 0x01, 0xff]),
        (0x43, &[0x34]),
        (0x40, &[0x9c, 0x2e]),
    ] {
        b.out(port, values);
    }
    // The control word raised the output: an edge of its own.
    assert_eq!(b.pic.acknowledge(), 0x20);
    b.out(0x20, &[0x20]);
    for _ in 0..3 {
        assert!(!b.intr.0.load(Ordering::SeqCst));
        b.clock.advance(10_000_160);
        assert!(b.intr.0.load(Ordering::SeqCst));
        assert_eq!(b.pic.acknowledge(), 0x20);
        b.out(0x20, &[0x20]);
    }
    b.out(0x21, &[0xff]);
    let select = b.memory.write(0xfec0_0000, &[0x14, 0, 0, 0]);
    let route = b.memory.write(0xfec0_0010, &[0x30, 0, 0, 0]);
    assert_eq!((select, route), (Action::None, Action::None));
    b.clock.advance(20_001_000);
    assert_eq!(b.host.take_sent().len(), 2);
    assert!(!b.intr.0.load(Ordering::SeqCst));
}

#[test]
fn a_foreign_payload_is_refused_and_reset_is_power_on() {
    let b = Board::new();
    let fresh = b.save();
    for (i, (kind, part)) in b.parts.iter().enumerate() {
        assert_eq!(fresh[i].kind, *kind);
        let other = fresh[(i + 1) % fresh.len()].clone();
        assert!(part.restore(other).is_err(), "{kind}");
        part.reset();
    }
    assert_eq!(b.save(), fresh);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_machine_under_random_accesses_moves_to_another(
        ops in prop::collection::vec(
            (any::<prop::sample::Index>(), 0u64..16, any::<u64>(), 1usize..=8, 0u64..5_000_000),
            0..300),
    ) {
        let b = Board::new();
        let ranges = b.ports.ranges();
        for (at, offset, value, width, ns) in ops {
            let port = at.get(&ranges).base + offset;
            let mut data = value.to_le_bytes();
            let data = &mut data[..width];
            if value >> 63 == 0 {
                _ = b.ports.write(port, data);
                _ = b.memory.write(0xfec0_0000 + (offset & 1) * 0x10, data);
            } else {
                b.ports.read(port, data);
                _ = b.pic.acknowledge();
            }
            b.clock.advance(ns);
        }
        let saved = b.save();
        let other = Board::new();
        other.clock.advance(crate::Clock::now_ns(&b.clock));
        for ((_, part), payload) in other.parts.iter().zip(&saved) {
            part.restore(payload.clone()).unwrap();
        }
        // The PIC was first: the wires that devices set again on their restore made no edge.
        prop_assert_eq!(other.save(), saved);
        prop_assert_eq!(other.pic.intr(), b.pic.intr());
    }
}
