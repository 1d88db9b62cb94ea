use bus::testing::RecordingSink;
use proptest::prelude::*;

use super::*;
use crate::testing::FakeClock;

struct Bench {
    clock: FakeClock,
    sink: Arc<RecordingSink>,
    rtc: Arc<Rtc>,
}

/// 2026-11-23 14:07:03, a Monday.
const START: i64 = 1_795_442_823;

impl Bench {
    fn new() -> Self {
        Self::with(RtcConfig::default())
    }

    fn with(config: RtcConfig) -> Self {
        let clock = FakeClock::new(START);
        let sink = Arc::new(RecordingSink::default());
        let rtc = Rtc::new(&clock.host(), IrqLine::new(sink.clone(), 8), &config);
        Self { clock, sink, rtc }
    }

    fn read(&self, index: u8) -> u8 {
        _ = self.rtc.write_port(INDEX, index);
        self.rtc.read_port(DATA)
    }

    fn write(&self, index: u8, value: u8) {
        _ = self.rtc.write_port(INDEX, index);
        _ = self.rtc.write_port(DATA, value);
    }

    /// Century, year, month, day, day of the week, hour, minute, second.
    fn time(&self) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| self.read(index))
    }
}

#[test]
fn the_time_of_day_in_every_format() {
    let b = Bench::new();
    assert_eq!(b.time(), [0x20, 0x26, 0x11, 0x23, 2, 0x14, 0x07, 0x03]);
    b.write(0x0b, 0x06);
    assert_eq!(b.time(), [20, 26, 11, 23, 2, 14, 7, 3]);
    b.write(0x0b, 0x04);
    assert_eq!(b.time()[5], 0x82);
    b.write(0x0b, 0x00);
    assert_eq!(b.time()[5], 0x82);
    b.clock.advance(10 * 3600 * 1_000_000_000);
    assert_eq!(b.time(), [0x20, 0x26, 0x11, 0x24, 3, 0x12, 0x07, 0x03]);
}

#[test]
fn bases() {
    let local = Bench::with(RtcConfig {
        base: RtcBase::LocalTime {
            utc_offset_s: -3600,
        },
        ..RtcConfig::default()
    });
    assert_eq!(local.time()[5], 0x13);
    let given = Bench::with(RtcConfig {
        base: RtcBase::Date {
            unix_s: 951_782_400,
        },
        ..RtcConfig::default()
    });
    assert_eq!(given.time(), [0x20, 0x00, 0x02, 0x29, 3, 0, 0, 0]);
}

#[test]
fn setting_the_clock_as_linux_does() {
    let b = Bench::new();
    let (control, rate) = (b.read(0x0b), b.read(0x0a));
    b.write(0x0b, control | 0x80);
    b.write(0x0a, rate | 0x70);
    for (index, value) in [(9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59)] {
        b.write(index, value);
    }
    b.write(0, 0x59);
    b.write(0x32, 0x19);
    b.clock.advance(5_000_000_000);
    assert_eq!(b.time()[7], 0x59);
    b.write(0x0b, control);
    b.write(0x0a, rate);
    b.clock.advance(499_000_000);
    assert_eq!(b.time()[7], 0x59);
    b.clock.advance(1_000_000);
    assert_eq!(b.time(), [0x20, 0, 1, 1, 7, 0, 0, 0]);
}

#[test]
fn a_single_field_can_be_written_while_the_clock_runs() {
    let b = Bench::new();
    b.write(2, 0x30);
    b.clock.advance(1_000_000_000);
    assert_eq!(b.time(), [0x20, 0x26, 0x11, 0x23, 2, 0x14, 0x30, 0x04]);
}

#[test]
fn update_in_progress_comes_before_the_update() {
    let b = Bench::new();
    b.clock.advance(999_700_000);
    assert_eq!(b.read(0x0a) & 0x80, 0);
    b.clock.advance(100_000);
    assert_eq!(b.read(0x0a) & 0x80, 0x80);
    b.clock.advance(200_000);
    assert_eq!(b.read(0x0a), 0x26);
    assert_eq!(b.read(0x0d), 0x80);
}

#[test]
fn update_interrupts_come_once_a_second_until_they_are_off() {
    let b = Bench::new();
    b.write(0x0b, 0x12);
    b.clock.advance(3_000_000_000);
    assert!(b.sink.level(8));
    assert_eq!(b.sink.edges(8), 1);
    assert_eq!(b.read(0x0c), 0xd0);
    assert_eq!(b.read(0x0c), 0);
    assert!(!b.sink.level(8));
    b.clock.advance(1_000_000_000);
    assert_eq!(b.read(0x0c), 0xd0);
    b.write(0x0b, 0x02);
    assert_eq!(b.clock.deadline(), None);
    b.clock.advance(1_000_000_000);
    assert_eq!(b.sink.edges(8), 2);
    assert_eq!(b.read(0x0c) & 0x90, 0x10);
    b.write(0x0b, 0x92);
    assert_eq!(b.read(0x0b), 0x82);
}

#[test]
fn alarms_at_a_time_and_at_any_hour_or_minute() {
    let b = Bench::new();
    for (index, value) in [(5, 0x14), (3, 0x08), (1, 0x00)] {
        b.write(index, value);
    }
    b.write(0x0b, 0x22);
    b.clock.advance(56_999_000_000);
    assert!(!b.sink.level(8));
    b.clock.advance(1_000_000);
    assert!(b.sink.level(8));
    assert_eq!(b.read(0x0c) & 0xa0, 0xa0);
    // Not again before tomorrow.
    b.clock.advance(86_399_000_000_000);
    assert_eq!(b.sink.edges(8), 1);
    b.clock.advance(1_000_000_000);
    assert_eq!(b.sink.edges(8), 2);
    b.read(0x0c);
    // Every minute at second 30.
    for (index, value) in [(5, 0xff), (3, 0xc0), (1, 0x30)] {
        b.write(index, value);
    }
    for _ in 0..3 {
        b.clock.advance(60_000_000_000);
        assert_eq!(b.read(0x0c) & 0x20, 0x20);
    }
    // Never: no minute 99.
    b.write(3, 0x99);
    b.clock.advance(86_400_000_000_000);
    assert_eq!(b.read(0x0c) & 0x20, 0);
}

#[test]
fn an_alarm_that_passed_unseen_is_still_flagged() {
    let b = Bench::new();
    for (index, value) in [(5, 0x15), (3, 0x00), (1, 0x00)] {
        b.write(index, value);
    }
    b.clock.advance(86_400_000_000_000);
    assert_eq!(b.read(0x0c), 0x30 | 0x40);
}

#[test]
fn periodic_interrupts_wait_for_register_c() {
    let b = Bench::new();
    b.write(0x0a, 0x26);
    b.read(0x0c);
    b.write(0x0b, 0x42);
    // 1024 Hz, each acknowledged.
    for _ in 0..1024 {
        b.clock.advance(976_563);
        assert_eq!(b.read(0x0c) & 0xc0, 0xc0);
    }
    let edges = b.sink.edges(8);
    assert_eq!(edges, 1024);
    // Unacknowledged: one edge, and no timer.
    b.clock.advance(1_000_000_000);
    assert_eq!(b.sink.edges(8), edges + 1);
    assert_eq!(b.clock.deadline(), None);
    b.read(0x0c);
    b.write(0x0a, 0x20);
    assert_eq!(b.clock.deadline(), None);
}

#[test]
fn firmware_finds_the_memory_and_the_processors() {
    let gib = 1 << 30;
    let b = Bench::with(RtcConfig {
        ram_below_4g: 2 * gib,
        ram_above_4g: 6 * gib,
        cpus: 4,
        ..RtcConfig::default()
    });
    let word = |index| u16::from_le_bytes([b.read(index), b.read(index + 1)]);
    assert_eq!(word(0x15), 640);
    assert_eq!(word(0x17), 0xffff);
    assert_eq!(word(0x30), 0xffff);
    assert_eq!(word(0x34), ((2 * gib - (16 << 20)) >> 16) as u16);
    assert_eq!(word(0x5b), 0x8000);
    assert_eq!(b.read(0x5d), 1);
    assert_eq!(b.read(0x5f), 3);
    b.rtc.set_nvram(0x3d, 0x02);
    assert_eq!(b.read(0x3d), 2);
    let small = Bench::with(RtcConfig {
        ram_below_4g: 8 << 20,
        ..RtcConfig::default()
    });
    assert_eq!(small.read(0x34), 0);
    assert_eq!(small.rtc.nvram(0x18), (7168u16 >> 8) as u8);
}

#[test]
fn reset_keeps_the_battery_and_the_nmi_mask_follows_port_0x70() {
    let b = Bench::new();
    b.write(0x0f, 0x0a);
    b.write(0x0b, 0x72);
    _ = b.rtc.write_port(INDEX, 0x8f);
    assert!(b.rtc.nmi_masked());
    b.rtc.reset();
    assert!(!b.rtc.nmi_masked());
    assert_eq!(b.read(0x0f), 0x0a);
    assert_eq!(b.read(0x0b), 0x02);
    assert_eq!(b.rtc.read_port(INDEX), 0xff);
}

proptest! {
    #[test]
    fn random_accesses_leave_a_state_that_round_trips(
        ops in prop::collection::vec((any::<bool>(), 0u8..0x34, any::<u8>(), 0u64..3_000_000_000), 0..100),
    ) {
        let b = Bench::new();
        for (write, index, value, ns) in ops {
            if write {
                b.write(index, value);
            } else {
                b.read(index);
            }
            // Register C is not read by a timer: each of three flags ends its own timer.
            prop_assert!(b.clock.advance(ns) <= 3);
            prop_assert!(lock(&b.rtc.model).state().check().is_ok());
        }
        let saved = b.rtc.save().unwrap();
        let other = Rtc::new(&b.clock.host(), IrqLine::unconnected(), &RtcConfig::default());
        other.restore(saved.clone()).unwrap();
        prop_assert_eq!(other.save().unwrap(), saved);
        for index in 0..128 {
            _ = other.write_port(INDEX, index);
            prop_assert_eq!(other.read_port(DATA), b.read(index), "{:#x}", index);
        }
    }

    #[test]
    fn any_state_that_passes_the_check_works(
        cells in prop::collection::vec(any::<u8>(), CELLS), second: i64,
        offset_s in -1_000_000_000_000i64..=1_000_000_000_000, offset_sub_ns in 0u32..1_000_000_000,
        cycle: u64, guest_ns: u64, unix_ns: i64,
    ) {
        let state = State { index: 0, nmi_masked: false, cells, offset_s, offset_sub_ns, second, cycle };
        let mut model = Model::from_state(state);
        let now = Now { guest_ns, unix_ns };
        _ = model.deadline(now);
        for index in 0..128 {
            model.write(INDEX, index, now);
            model.read(DATA, now);
            model.write(DATA, 0xff, now);
        }
    }

    #[test]
    fn the_next_alarm_is_the_first_second_that_fits(
        h in 0u8..=0xff, m in 0u8..=0xff, s in 0u8..=0xff, ahead in 1i64..20_000,
    ) {
        let b = Bench::new();
        for (index, value) in [(5, h), (3, m), (1, s)] {
            b.write(index, value);
        }
        let fits = |value: u8, now: i64| value >= 0xc0 || i64::from(value >> 4) * 10 + i64::from(value & 0xf) == now;
        let expected = (1..=ahead).any(|passed| {
            let time = START + passed;
            fits(h, time / 3600 % 24) && fits(m, time / 60 % 60) && fits(s, time % 60)
        });
        b.clock.advance(ahead as u64 * 1_000_000_000);
        prop_assert_eq!(b.read(0x0c) & 0x20 != 0, expected);
    }
}
