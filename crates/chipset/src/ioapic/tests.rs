use bus::testing::RecordingHost;
use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Routes(Mutex<Vec<(u32, Option<MsiMessage>)>>);

impl RouteObserver for Routes {
    fn route_changed(&self, pin: u32, message: Option<MsiMessage>) {
        lock(&self.0).push((pin, message));
    }
}

impl Routes {
    fn take(&self) -> Vec<(u32, Option<MsiMessage>)> {
        std::mem::take(&mut *lock(&self.0))
    }
}

struct Bench {
    apic: Arc<IoApic>,
    host: Arc<RecordingHost>,
    routes: Arc<Routes>,
}

impl Bench {
    fn new() -> Self {
        let host = Arc::new(RecordingHost::default());
        let routes = Arc::new(Routes::default());
        let apic = IoApic::new(host.clone(), Some(routes.clone()));
        Self { apic, host, routes }
    }

    fn read(&self, register: u8) -> u32 {
        _ = self.apic.write(0, &[register]);
        let mut data = [0; 4];
        self.apic.read(0x10, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u8, value: u32) {
        _ = self.apic.write(0, &u32::from(register).to_le_bytes());
        _ = self.apic.write(0x10, &value.to_le_bytes());
    }

    fn sent(&self) -> Vec<u32> {
        self.host.take_sent().iter().map(|m| m.data).collect()
    }
}

const LEVEL: u32 = 1 << 15;
const MASK: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;

#[test]
fn identity_and_reset_values() {
    let b = Bench::new();
    assert_eq!(b.read(1), 0x0017_0020);
    b.write(0, 0xff00_0000);
    assert_eq!(b.read(0), 0x0f00_0000);
    assert_eq!(b.read(2), 0x0f00_0000);
    assert_eq!(b.read(0x10), MASK);
    assert_eq!(b.read(0x3e), MASK);
    assert_eq!(b.read(0x40), 0);
    b.write(1, 0);
    assert_eq!(b.read(1), 0x0017_0020);
    let mut byte = [0];
    _ = b.apic.write(0, &[1]);
    b.apic.read(0x12, &mut byte);
    assert_eq!(byte, [0x17]);
}

#[test]
fn an_edge_sends_once_per_rise_and_is_lost_while_masked() {
    let b = Bench::new();
    b.apic.set_level(4, true);
    b.apic.set_level(4, false);
    b.write(0x18, 0x0031);
    assert!(b.sent().is_empty());
    b.apic.set_level(4, true);
    b.apic.set_level(4, true);
    b.apic.set_level(4, false);
    b.apic.set_level(4, true);
    assert_eq!(b.sent(), [0x31, 0x31]);
    assert_eq!(b.read(0x18), 0x31);
}

#[test]
fn a_level_is_sent_again_after_its_end_while_the_pin_is_high() {
    let b = Bench::new();
    b.write(0x24, 0x0041 | LEVEL);
    b.apic.set_level(10, true);
    assert_eq!(b.sent(), [0x41 | 0xc000]);
    assert_eq!(b.read(0x24), 0x41 | LEVEL | REMOTE_IRR);
    b.apic.set_level(10, false);
    b.apic.set_level(10, true);
    assert!(b.sent().is_empty());
    b.apic.eoi(0x42);
    assert!(b.sent().is_empty());
    b.apic.eoi(0x41);
    assert_eq!(b.sent().len(), 1);
    b.apic.set_level(10, false);
    // By the EOI register.
    _ = b.apic.write(0x40, &[0x41, 0, 0, 0]);
    assert!(b.sent().is_empty());
    assert_eq!(b.read(0x24), 0x41 | LEVEL);
}

#[test]
fn a_masked_level_waits_and_keeps_its_route_until_the_end() {
    let b = Bench::new();
    b.write(0x24, 0x0041 | LEVEL);
    b.apic.set_level(10, true);
    b.write(0x24, 0x0041 | LEVEL | MASK);
    assert_eq!(b.routes.take().len(), 1);
    b.apic.eoi(0x41);
    assert_eq!(b.sent().len(), 1);
    b.write(0x24, 0x0041 | LEVEL);
    assert_eq!(b.sent().len(), 1);
    // The same message again is no news.
    assert!(b.routes.take().is_empty());
}

#[test]
fn a_switch_to_edge_clears_remote_irr() {
    let b = Bench::new();
    b.write(0x24, 0x0041 | LEVEL);
    b.apic.set_level(10, true);
    b.write(0x24, 0x0041 | MASK);
    assert_eq!(b.read(0x24), 0x41 | MASK);
    b.write(0x24, 0x0041 | LEVEL);
    assert_eq!(b.sent().len(), 2);
}

#[test]
fn destinations_modes_and_the_extended_destination() {
    let entry = Rte(0xabfe_0000_0000_0000 | 0x0000_0955);
    assert_eq!(
        entry.message(),
        MsiMessage {
            address: 0xfee0_0000 | 0xab << 12 | 0x7f << 5 | 1 << 2,
            data: 0x155
        }
    );
    let b = Bench::new();
    b.write(0x11, 0xffff_ffff);
    assert_eq!(b.read(0x11), 0xfffe_0000);
}

#[test]
fn routes_are_told_before_the_message_and_gone_after_reset() {
    let b = Bench::new();
    b.write(0x11, 0x0100_0000);
    b.write(0x10, 0x0030);
    let message = MsiMessage {
        address: 0xfee0_1000,
        data: 0x30,
    };
    assert_eq!(b.routes.take(), [(0, Some(message))]);
    let saved = b.apic.save().unwrap();
    b.apic.reset();
    assert_eq!(b.routes.take(), [(0, None)]);
    b.apic.restore(saved).unwrap();
    assert_eq!(b.routes.take(), [(0, Some(message))]);
    assert!(b.sent().is_empty());
}

#[test]
fn impossible_states_are_refused() {
    let b = Bench::new();
    for spoil in [
        (|s| _ = s.redirection.pop()) as fn(&mut State),
        |s| s.levels = 1 << 24,
        |s| s.id = 16,
    ] {
        let mut state = State::new();
        spoil(&mut state);
        let payload = Payload::encode(KIND, VERSION, &state).unwrap();
        assert!(b.apic.restore(payload).is_err());
    }
}

proptest! {
    #[test]
    fn random_accesses_leave_a_state_that_round_trips(
        ops in prop::collection::vec((0u8..6, any::<u64>(), any::<u32>()), 0..200),
    ) {
        let b = Bench::new();
        for (op, offset, value) in ops {
            match op {
                0 => b.write(offset as u8 & 0x3f, value),
                1 => _ = b.read(offset as u8),
                2 => b.apic.set_level(value & 31, value & 0x80 != 0),
                3 => b.apic.eoi(value as u8),
                4 => _ = b.apic.write(offset & 0xfff, &value.to_le_bytes()[..1 + (value as usize & 3)]),
                _ => b.apic.read(offset & 0xfff, &mut [0; 9][..1 + (value as usize & 7)]),
            }
            let model = lock(&b.apic.model);
            prop_assert!(model.state().check().is_ok());
            for (pin, entry) in model.state().redirection.iter().enumerate() {
                let entry = Rte(*entry);
                prop_assert!(entry.level() || !entry.remote_irr());
                // A high, unmasked level is always in service.
                let waits = entry.level() && !entry.masked() && model.state().levels >> pin & 1 == 1;
                prop_assert!(!waits || entry.remote_irr());
            }
        }
        let saved = b.apic.save().unwrap();
        let other = Bench::new();
        other.apic.restore(saved.clone()).unwrap();
        prop_assert_eq!(other.apic.save().unwrap(), saved);
        prop_assert!(other.sent().is_empty());
    }
}
