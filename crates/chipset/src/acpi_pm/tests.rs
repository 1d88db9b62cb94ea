use bus::testing::RecordingSink;
use bus::{IrqLine, ShutdownCause};
use proptest::prelude::*;

use super::*;
use crate::testing::FakeClock;

struct Bench {
    clock: FakeClock,
    sink: Arc<RecordingSink>,
    pm: Arc<AcpiPm>,
}

impl Bench {
    fn new() -> Self {
        Self::with(TimerWidth::Bits24)
    }

    fn with(width: TimerWidth) -> Self {
        let clock = FakeClock::new(0);
        let sink = Arc::new(RecordingSink::default());
        let sci = SharedLine::new(IrqLine::new(sink.clone(), 9));
        let pm = AcpiPm::new(&clock.host(), sci, width);
        Self { clock, sink, pm }
    }

    fn read(&self, offset: u64, width: usize) -> u64 {
        let mut data = vec![0; width];
        self.pm.read(offset, &mut data);
        bus::read_le(&data)
    }

    fn write16(&self, offset: u64, value: u16) -> Action {
        self.pm.write(offset, &value.to_le_bytes())
    }

    fn enable_acpi(&self) {
        assert_eq!(self.pm.write_port(APMC, ACPI_ENABLE), Action::None);
    }
}

#[test]
fn acpi_mode_is_switched_by_the_apm_port() {
    let b = Bench::new();
    assert_eq!(b.read(PM1_CNT, 2), 0);
    b.enable_acpi();
    assert_eq!(b.read(PM1_CNT, 4), 1);
    // The control register itself cannot change it.
    _ = b.write16(PM1_CNT, 0);
    assert_eq!(b.read(PM1_CNT, 2), 1);
    _ = b.pm.write_port(APMC, ACPI_DISABLE);
    assert_eq!(b.read(PM1_CNT, 2), 0);
    _ = b.pm.write_port(APMS, 0x77);
    assert_eq!(
        (b.pm.read_port(APMC), b.pm.read_port(APMS)),
        (ACPI_DISABLE, 0x77)
    );
}

#[test]
fn the_power_button_raises_the_sci_until_it_is_cleared() {
    let b = Bench::new();
    assert!(!b.pm.press_power_button());
    b.enable_acpi();
    assert!(!b.sink.level(9));
    _ = b.write16(PM1_EVT, pm1::PWRBTN);
    _ = b.write16(PM1_EVT + 2, pm1::PWRBTN | pm1::GBL);
    assert!(b.pm.press_power_button());
    assert!(b.sink.level(9));
    assert_eq!(b.read(PM1_EVT, 4), 0x0120_0100);
    _ = b.write16(PM1_EVT, pm1::PWRBTN);
    assert!(!b.sink.level(9));
    assert_eq!(b.read(PM1_EVT, 2), 0);
    assert!(!b.pm.press_sleep_button());
}

#[test]
fn soft_off_ends_the_machine_and_other_sleeps_do_not() {
    let b = Bench::new();
    let off = Action::Shutdown(ShutdownCause::GuestPowerOff);
    assert_eq!(b.write16(PM1_CNT, SLP_TYP_S5 << 10), Action::None);
    assert_eq!(b.write16(PM1_CNT, SLP_TYP_S5 << 10 | 1 << 13), off);
    assert_eq!(b.write16(PM1_CNT, 1 << 10 | 1 << 13), Action::None);
    assert_eq!(b.read(PM1_CNT, 2), 1 << 10);
    let data = 0x2000u32.to_le_bytes();
    assert_eq!(b.pm.write(PM1_CNT, &data), off);
}

#[test]
fn the_timer_counts_and_overflows() {
    for (width, half, mask) in [
        (TimerWidth::Bits24, 1 << 23, 0xff_ffff),
        (TimerWidth::Bits32, 1u64 << 31, 0xffff_ffff),
    ] {
        let b = Bench::with(width);
        b.clock.advance(1_000_000_000);
        assert_eq!(b.read(PM_TMR, 4), PM_TIMER_HZ & mask);
        b.enable_acpi();
        assert_eq!(b.clock.deadline(), None);
        _ = b.write16(PM1_EVT + 2, pm1::TMR);
        let ns = u128::from(half) * 1_000_000_000 / u128::from(PM_TIMER_HZ);
        b.clock.advance(ns as u64 - 1_000_001_000);
        assert!(!b.sink.level(9));
        b.clock.advance(2_000);
        assert!(b.sink.level(9));
        // Nothing more to wait for until the status is cleared.
        assert_eq!(b.clock.deadline(), None);
        _ = b.write16(PM1_EVT, pm1::TMR);
        assert!(!b.sink.level(9));
        b.clock.advance(ns as u64);
        assert_eq!(b.sink.edges(9), 2);
    }
}

#[test]
fn general_purpose_events() {
    let b = Bench::new();
    b.enable_acpi();
    assert!(!b.pm.raise_gpe(1));
    _ = b.pm.write(GPE0 + 8, &[0x02, 0, 0, 0x80]);
    assert!(b.sink.level(9));
    assert_eq!(b.read(GPE0, 8), 2);
    _ = b.pm.write(GPE0, &[0x02]);
    assert!(!b.sink.level(9));
    assert!(b.pm.raise_gpe(31));
    assert_eq!(b.read(GPE0 + 3, 1), 0x80);
    assert!(!b.pm.raise_gpe(64));
    _ = b.pm.write(SMI_EN, &0x21u32.to_le_bytes());
    assert_eq!(b.read(SMI_EN, 4), 0x21);
    assert_eq!(b.read(0x60, 8), 0);
}

proptest! {
    #[test]
    fn random_accesses_leave_a_state_that_round_trips(
        ops in prop::collection::vec((0u8..6, 0u64..0x84, any::<u32>(), 0u64..2_000_000_000), 0..200),
    ) {
        let b = Bench::new();
        for (op, offset, value, ns) in ops {
            match op {
                0 => _ = b.read(offset, 1 + (value as usize & 7)),
                1 | 2 => _ = b.pm.write(offset, &value.to_le_bytes()[..1 + (ns as usize & 3)]),
                3 => _ = b.pm.raise_gpe(value & 0x7f),
                4 => _ = b.pm.write_port(APMC, value as u8 & 3),
                _ => _ = b.pm.press_power_button(),
            }
            prop_assert!(b.clock.advance(ns) <= 2);
        }
        let saved = b.pm.save().unwrap();
        let other = Bench::new();
        other.clock.advance(b.clock.host().now_ns());
        other.pm.restore(saved.clone()).unwrap();
        prop_assert_eq!(other.pm.save().unwrap(), saved);
        prop_assert_eq!(other.sink.level(9), b.sink.level(9));
        for offset in 0..SIZE {
            prop_assert_eq!(other.read(offset, 1), b.read(offset, 1));
        }
    }
}
