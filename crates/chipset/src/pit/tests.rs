use bus::testing::RecordingSink;
use proptest::prelude::*;

use super::*;
use crate::clock::ns_of;
use crate::testing::FakeClock;

struct Bench {
    clock: FakeClock,
    sink: Arc<RecordingSink>,
    pit: Arc<Pit>,
}

impl Bench {
    fn new() -> Self {
        let clock = FakeClock::new(0);
        let sink = Arc::new(RecordingSink::default());
        let pit = Pit::new(&clock.host(), IrqLine::new(sink.clone(), 0));
        Self { clock, sink, pit }
    }

    fn write(&self, port: u16, values: &[u8]) {
        for value in values {
            assert_eq!(self.pit.write_port(port, *value), Action::None);
        }
    }

    fn read16(&self, port: u16) -> u16 {
        u16::from_le_bytes([self.pit.read_port(port), self.pit.read_port(port)])
    }

    fn ticks(&self, ticks: u64) {
        // One nanosecond more than needed, so that n calls are at least n ticks.
        self.clock.advance(ns_of(ticks, FREQUENCY));
    }
}

#[test]
fn mode_2_interrupts_at_its_rate() {
    let b = Bench::new();
    // 11932 ticks: 100 Hz.
    b.write(CONTROL, &[0x34]);
    b.write(COUNTER_0, &[0x9c, 0x2e]);
    let before = b.sink.edges(0);
    b.clock.advance(1_000_000_000);
    assert_eq!(b.sink.edges(0) - before, 99);
    b.clock.advance(1_000_000_000);
    assert_eq!(b.sink.edges(0) - before, 199);
}

#[test]
fn a_stalled_host_gets_one_late_tick_and_then_the_usual_ones() {
    let b = Bench::new();
    b.write(CONTROL, &[0x34]);
    b.write(COUNTER_0, &[0x9c, 0x2e]);
    let before = b.sink.edges(0);
    assert_eq!(b.clock.stall(55_000_000), 1);
    assert_eq!(b.sink.edges(0) - before, 1);
    b.clock.advance(10_000_000);
    assert_eq!(b.sink.edges(0) - before, 2);
}

#[test]
fn a_tiny_period_does_not_keep_the_host_busy() {
    let b = Bench::new();
    b.write(CONTROL, &[0x34]);
    b.write(COUNTER_0, &[2, 0]);
    assert!(b.clock.advance(10_000_000) <= 101);
    b.write(COUNTER_0, &[1, 0]);
    assert!(b.clock.advance(10_000_000) <= 101);
}

#[test]
fn mode_0_rises_once_when_the_count_ends() {
    let b = Bench::new();
    b.write(CONTROL, &[0x30]);
    assert!(!b.sink.level(0));
    b.write(COUNTER_0, &[0xe8, 0x03]);
    b.ticks(999);
    assert!(!b.sink.level(0));
    b.ticks(2);
    assert!(b.sink.level(0));
    assert_eq!(b.sink.edges(0), 1);
    assert_eq!(b.clock.deadline(), None);
    // It counts on from 0xffff.
    assert!(b.read16(COUNTER_0) > 0xfff0);
}

#[test]
fn mode_4_is_a_one_shot_that_starts_high() {
    let b = Bench::new();
    b.write(CONTROL, &[0x38]);
    b.write(COUNTER_0, &[0xe8, 0x03]);
    let before = b.sink.edges(0);
    b.ticks(2000);
    assert_eq!(b.sink.edges(0) - before, 1);
    b.write(COUNTER_0, &[0xe8, 0x03]);
    b.ticks(2000);
    assert_eq!(b.sink.edges(0) - before, 2);
}

#[test]
fn mode_3_has_a_square_output() {
    let mut m = Model::new();
    m.write(CONTROL, 0xb6, 0);
    m.write(COUNTER_0 + 2, 5, 0);
    m.write(COUNTER_0 + 2, 0, 0);
    m.write(PORT_61, 1, 0);
    let outputs: Vec<bool> = (0..10)
        .map(|tick| m.read(PORT_61, ns_of(tick, FREQUENCY)) & 0x20 != 0)
        .collect();
    let period = [true, true, true, false, false];
    assert_eq!(outputs, [period, period].concat());
}

#[test]
fn counter_2_calibrates_loops_through_port_61() {
    // What Linux does: gate on, speaker off, mode 0, count down 50 ms, poll the output.
    let b = Bench::new();
    b.write(PORT_61, &[0x01]);
    b.write(CONTROL, &[0xb0]);
    b.write(COUNTER_0 + 2, &[0x0b, 0xe9]);
    assert_eq!(b.pit.read_port(PORT_61) & 0x23, 0x01);
    b.ticks(0xe90b - 2);
    assert_eq!(b.pit.read_port(PORT_61) & 0x20, 0);
    b.ticks(3);
    assert_eq!(b.pit.read_port(PORT_61) & 0x20, 0x20);
    let toggles: std::collections::BTreeSet<u8> = (0..4)
        .map(|_| {
            b.clock.advance(15_085);
            b.pit.read_port(PORT_61) & 0x10
        })
        .collect();
    assert_eq!(toggles.len(), 2);
}

#[test]
fn the_gate_holds_and_triggers() {
    let b = Bench::new();
    b.write(CONTROL, &[0xb0]);
    b.write(COUNTER_0 + 2, &[0xe8, 0x03]);
    b.ticks(5000);
    assert_eq!(b.read16(COUNTER_0 + 2), 1000);
    b.write(PORT_61, &[1]);
    b.ticks(400);
    b.write(PORT_61, &[0]);
    b.ticks(5000);
    let held = b.read16(COUNTER_0 + 2);
    assert!((595..=600).contains(&held), "{held}");
    b.write(PORT_61, &[1]);
    b.ticks(602);
    assert_eq!(b.pit.read_port(PORT_61) & 0x20, 0x20);

    // Mode 1 waits for the gate to rise.
    b.write(CONTROL, &[0xb2]);
    b.write(COUNTER_0 + 2, &[0xe8, 0x03]);
    assert_eq!(b.pit.read_port(PORT_61) & 0x20, 0x20);
    b.write(PORT_61, &[0, 1]);
    assert_eq!(b.pit.read_port(PORT_61) & 0x20, 0);
    b.ticks(1001);
    assert_eq!(b.pit.read_port(PORT_61) & 0x20, 0x20);
}

#[test]
fn a_new_count_in_mode_2_waits_for_the_period_to_end() {
    let b = Bench::new();
    b.write(CONTROL, &[0x34]);
    b.write(COUNTER_0, &[0x10, 0x27]);
    b.ticks(5000);
    b.write(COUNTER_0, &[0xe8, 0x03]);
    let count = b.read16(COUNTER_0);
    assert!((4990..=5000).contains(&count), "{count}");
    let before = b.sink.edges(0);
    b.ticks(5002);
    assert_eq!(b.sink.edges(0) - before, 1);
    b.ticks(1001);
    assert_eq!(b.sink.edges(0) - before, 2);
}

#[test]
fn latches_read_back_and_bytes() {
    let b = Bench::new();
    b.write(CONTROL, &[0x34]);
    b.write(COUNTER_0, &[0x10, 0x27]);
    b.write(CONTROL, &[0x00]);
    b.ticks(100);
    b.write(CONTROL, &[0x00]);
    assert_eq!(b.read16(COUNTER_0), 10_000);
    assert!(b.read16(COUNTER_0) <= 9900);
    // Status before count; low byte only.
    b.write(CONTROL, &[0x56]);
    b.write(COUNTER_0 + 1, &[200]);
    b.write(CONTROL, &[0xc4]);
    assert_eq!(b.pit.read_port(COUNTER_0 + 1), 0x80 | 0x10 | 3 << 1);
    assert_eq!(b.pit.read_port(COUNTER_0 + 1), 200);
    assert_eq!(b.pit.read_port(CONTROL), 0xff);
    // Null count: a control word without a count.
    b.write(CONTROL, &[0x34, 0xe2]);
    assert_eq!(b.pit.read_port(COUNTER_0), 0x80 | 0x40 | 0x30 | 2 << 1);
}

#[test]
fn decimal_counting() {
    let b = Bench::new();
    b.write(CONTROL, &[0x31]);
    b.write(COUNTER_0, &[0x00, 0x10]);
    b.ticks(1);
    let count = b.read16(COUNTER_0);
    assert!((0x997..=0x999).contains(&count), "{count:#x}");
    b.ticks(1000);
    assert!(b.sink.level(0));
    assert!(b.read16(COUNTER_0) >= 0x9990);
}

#[test]
fn a_restored_timer_goes_on_without_an_edge() {
    let b = Bench::new();
    b.write(CONTROL, &[0x34]);
    b.write(COUNTER_0, &[0x9c, 0x2e]);
    b.clock.advance(12_345_678);
    let saved = b.pit.save().unwrap();
    let edges = b.sink.edges(0);
    b.pit.restore(saved.clone()).unwrap();
    assert_eq!(b.pit.save().unwrap(), saved);
    b.clock.advance(7_000_000);
    assert_eq!(b.sink.edges(0) - edges, 0);
    b.clock.advance(1_000_000);
    assert_eq!(b.sink.edges(0) - edges, 1);
}

proptest! {
    #[test]
    fn random_accesses_leave_a_state_that_round_trips(
        ops in prop::collection::vec((0u16..5, any::<u8>(), any::<bool>(), 0u64..200_000), 0..200),
    ) {
        let b = Bench::new();
        for (port, value, write, ns) in ops {
            let port = if port == 4 { PORT_61 } else { COUNTER_0 + port };
            if write {
                b.write(port, &[value]);
            } else {
                b.pit.read_port(port);
            }
            // At most one call each 100 microseconds and one per access.
            prop_assert!(b.clock.advance(ns) <= 3);
            prop_assert!(lock(&b.pit.model).state().check().is_ok());
        }
        let saved = b.pit.save().unwrap();
        let other = Pit::new(&b.clock.host(), IrqLine::unconnected());
        other.restore(saved.clone()).unwrap();
        prop_assert_eq!(other.save().unwrap(), saved);
        for port in [0x40, 0x41, 0x42, 0x61] {
            prop_assert_eq!(other.read_port(port), b.pit.read_port(port));
        }
    }

    #[test]
    fn any_state_that_passes_the_check_counts_without_panic(
        mode in 0u8..=5, bcd: bool, start: Option<u64>, held: Option<u64>,
        reload in 1u32..=0x1_0000, next in prop::option::of(1u32..=0x1_0000), now: u64,
    ) {
        let mut state = State::new();
        for c in &mut state.channels {
            (c.mode, c.bcd, c.start, c.held) = (mode, bcd, start, held);
            (c.reload, c.next_reload) = (Some(reload), next);
        }
        prop_assert!(state.check().is_ok());
        let mut model = Model::from_state(state);
        let line = model.line(now);
        prop_assert_eq!(model.line(now), Line { edge: false, ..line });
        if let Some(at) = model.deadline(now) {
            prop_assert!(at > now || now > u64::MAX / 2);
        }
        for port in [0x40, 0x41, 0x42, 0x61] {
            model.read(port, now);
            model.write(port, 0xff, now);
        }
    }
}
