use std::sync::atomic::{AtomicU32, Ordering};

use bus::Bus;
use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Intr {
    changes: AtomicU32,
    level: AtomicU32,
}

impl ExtIntSink for Intr {
    fn set_intr(&self, asserted: bool) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.level.store(u32::from(asserted), Ordering::SeqCst);
    }
}

/// The PC's usual initialization: vectors 0x20 and 0x28, everything unmasked.
fn initialized(icw4: u8) -> Pair {
    let mut pair = Pair::new();
    for (port, value) in [
        (MASTER_COMMAND, 0x11),
        (SLAVE_COMMAND, 0x11),
        (MASTER_DATA, 0x20),
        (SLAVE_DATA, 0x28),
        (MASTER_DATA, 0x04),
        (SLAVE_DATA, 0x02),
        (MASTER_DATA, icw4),
        (SLAVE_DATA, icw4),
        (MASTER_DATA, 0),
        (SLAVE_DATA, 0),
    ] {
        pair.write(port, value);
    }
    pair
}

fn pulse(pair: &mut Pair, irq: u32) {
    pair.set_level(irq, true);
    pair.set_level(irq, false);
}

#[test]
fn an_edge_is_delivered_once_and_in_order_of_priority() {
    let mut pair = initialized(0x01);
    pulse(&mut pair, 4);
    pulse(&mut pair, 1);
    assert_eq!(pair.acknowledge(), 0x21);
    // IRQ 4 waits for the end of IRQ 1.
    assert!(!pair.intr());
    pair.write(MASTER_COMMAND, 0x20);
    assert_eq!(pair.acknowledge(), 0x24);
    pair.write(MASTER_COMMAND, 0x64);
    assert!(!pair.intr());
    assert_eq!(pair.state().master.isr, 0);
}

#[test]
fn the_slave_comes_through_pin_2_and_needs_both_ends() {
    let mut pair = initialized(0x01);
    pulse(&mut pair, 8);
    pulse(&mut pair, 12);
    assert_eq!(pair.acknowledge(), 0x28);
    assert_eq!(pair.state().master.isr, 0x04);
    pair.write(SLAVE_COMMAND, 0x20);
    assert!(!pair.intr());
    pair.write(MASTER_COMMAND, 0x20);
    assert_eq!(pair.acknowledge(), 0x2c);
}

#[test]
fn a_request_that_went_away_is_spurious() {
    let mut pair = initialized(0x01);
    pair.write(ELCR_MASTER, 0xff);
    pair.write(ELCR_SLAVE, 0xff);
    assert_eq!(pair.read(ELCR_MASTER), 0xf8);
    assert_eq!(pair.read(ELCR_SLAVE), 0xde);
    pair.set_level(5, true);
    assert!(pair.intr());
    pair.set_level(5, false);
    assert!(!pair.intr());
    assert_eq!(pair.acknowledge(), 0x27);
    assert_eq!(pair.state().master.isr, 0);
    pair.set_level(11, true);
    pair.set_level(11, false);
    // The master latched the cascade's edge; the slave has nothing to say.
    assert_eq!(pair.acknowledge(), 0x2f);
    assert_eq!(pair.state().slave.isr, 0);
    assert_eq!(pair.state().master.isr, 0x04);
}

#[test]
fn a_level_comes_again_until_it_falls() {
    let mut pair = initialized(0x01);
    pair.write(ELCR_SLAVE, 0x02);
    pair.set_level(9, true);
    for _ in 0..3 {
        assert_eq!(pair.acknowledge(), 0x29);
        pair.write(SLAVE_COMMAND, 0x20);
        pair.write(MASTER_COMMAND, 0x20);
        assert!(pair.intr());
    }
    pair.set_level(9, false);
    assert_eq!(pair.acknowledge(), 0x2f);
    pair.write(MASTER_COMMAND, 0x20);
    assert!(!pair.intr());
}

#[test]
fn masks_hold_back_and_remember_edges() {
    let mut pair = initialized(0x01);
    pair.write(MASTER_DATA, 0xff);
    pulse(&mut pair, 3);
    assert!(!pair.intr());
    assert_eq!(pair.read(MASTER_COMMAND), 0x08);
    pair.write(MASTER_DATA, 0xf7);
    assert_eq!(pair.read(MASTER_DATA), 0xf7);
    assert_eq!(pair.acknowledge(), 0x23);
    pair.write(MASTER_COMMAND, 0x0b);
    assert_eq!(pair.read(MASTER_COMMAND), 0x08);
}

#[test]
fn automatic_end_and_rotation() {
    let mut pair = initialized(0x03);
    pair.write(MASTER_COMMAND, 0x80);
    pulse(&mut pair, 0);
    assert_eq!(pair.acknowledge(), 0x20);
    assert_eq!(pair.state().master.isr, 0);
    assert_eq!(pair.state().master.lowest, 0);
    pulse(&mut pair, 0);
    pulse(&mut pair, 7);
    assert_eq!(pair.acknowledge(), 0x27);
    assert_eq!(pair.acknowledge(), 0x20);
    // Two requests of a slave that ends by itself both arrive.
    pulse(&mut pair, 8);
    pulse(&mut pair, 9);
    assert_eq!(pair.acknowledge(), 0x28);
    assert_eq!(pair.acknowledge(), 0x29);
    assert!(!pair.intr());
}

#[test]
fn rotation_by_command_and_set_priority() {
    let mut pair = initialized(0x01);
    pair.write(MASTER_COMMAND, 0xc3);
    pulse(&mut pair, 3);
    pulse(&mut pair, 4);
    assert_eq!(pair.acknowledge(), 0x24);
    pair.write(MASTER_COMMAND, 0xa0);
    assert_eq!(pair.state().master.lowest, 4);
    assert_eq!(pair.acknowledge(), 0x23);
    pair.write(MASTER_COMMAND, 0xe3);
    assert_eq!(pair.state().master.lowest, 3);
    assert_eq!(pair.state().master.isr, 0);
}

#[test]
fn special_mask_mode_lets_less_urgent_interrupts_in() {
    let mut pair = initialized(0x01);
    pulse(&mut pair, 1);
    assert_eq!(pair.acknowledge(), 0x21);
    pulse(&mut pair, 6);
    assert!(!pair.intr());
    pair.write(MASTER_DATA, 0x02);
    pair.write(MASTER_COMMAND, 0x68);
    assert_eq!(pair.acknowledge(), 0x26);
    // The masked one is not ended by a non-specific end.
    pair.write(MASTER_COMMAND, 0x20);
    assert_eq!(pair.state().master.isr, 0x02);
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    for (icw4, nested) in [(0x01, false), (0x11, true)] {
        let mut pair = initialized(icw4);
        pulse(&mut pair, 12);
        assert_eq!(pair.acknowledge(), 0x2c);
        pulse(&mut pair, 8);
        assert_eq!(pair.intr(), nested);
    }
}

#[test]
fn polling_acknowledges() {
    let mut pair = initialized(0x01);
    pulse(&mut pair, 12);
    pair.write(MASTER_COMMAND, 0x0c);
    assert_eq!(pair.read(MASTER_COMMAND), 0x82);
    pair.write(SLAVE_COMMAND, 0x0c);
    assert_eq!(pair.read(SLAVE_COMMAND), 0x84);
    pair.write(SLAVE_COMMAND, 0x0c);
    assert_eq!(pair.read(SLAVE_COMMAND), 0);
    assert_eq!(pair.state().slave.isr, 0x10);
}

#[test]
fn initialization_without_icw3_and_icw4() {
    let mut pair = Pair::new();
    pair.write(MASTER_COMMAND, 0x12);
    assert!(!pair.intr());
    pair.write(MASTER_DATA, 0x43);
    pair.write(MASTER_DATA, 0xfe);
    pulse(&mut pair, 0);
    assert_eq!(pair.read(MASTER_DATA), 0xfe);
    assert_eq!(pair.acknowledge(), 0x40);
}

#[test]
fn the_device_tells_each_change_of_intr_once() {
    let intr = Arc::new(Intr::default());
    let pic = Pic::new(intr.clone());
    let bus = Bus::new();
    for (range, device) in pic.ports() {
        bus.insert(range, device).unwrap();
    }
    for value in [0x11, 0x20, 0x04, 0x01] {
        let port = if value == 0x11 { 0x20 } else { 0x21 };
        assert_eq!(bus.write(port, &[value]), Action::None);
    }
    pic.set_level(0, true);
    pic.set_level(0, true);
    assert!(pic.intr());
    assert_eq!(intr.changes.load(Ordering::SeqCst), 1);
    assert_eq!(pic.acknowledge(), 0x20);
    assert_eq!(intr.level.load(Ordering::SeqCst), 0);
    assert_eq!(intr.changes.load(Ordering::SeqCst), 2);
    let mut both = [0; 2];
    bus.read(0x4d0, &mut both);
    assert_eq!(both, [0, 0]);
}

#[test]
fn an_impossible_state_is_refused_and_leaves_a_reset_device() {
    let pic = Pic::new(Arc::new(Intr::default()));
    _ = pic.write_port(MASTER_DATA, 0x55);
    let mut state = Pair::new().state();
    state.slave.lowest = 8;
    let payload = Payload::encode(KIND, VERSION, &state).unwrap();
    assert!(matches!(
        pic.restore(payload),
        Err(StateError::Invalid { .. })
    ));
    assert_eq!(pic.read_port(MASTER_DATA), 0);
}

const PORTS: [u16; 6] = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];

proptest! {
    #[test]
    fn random_accesses_leave_a_state_that_round_trips(
        ops in prop::collection::vec((0u8..4, any::<prop::sample::Index>(), any::<u8>()), 0..200),
    ) {
        let pic = Pic::new(Arc::new(Intr::default()));
        for (op, index, value) in ops {
            let port = *index.get(&PORTS);
            match op {
                0 => _ = pic.read_port(port),
                1 => _ = pic.write_port(port, value),
                2 => pic.set_level(u32::from(value & 0x1f), value & 0x80 != 0),
                _ => _ = pic.acknowledge(),
            }
            let state = crate::lock(&pic.inner).pair.state();
            prop_assert!(state.check().is_ok());
            prop_assert_eq!(state.master.irr & state.master.elcr, state.master.levels & state.master.elcr);
        }
        let saved = pic.save().unwrap();
        let other = Pic::new(Arc::new(Intr::default()));
        other.restore(saved.clone()).unwrap();
        prop_assert_eq!(other.save().unwrap(), saved);
        prop_assert_eq!(other.intr(), pic.intr());
        prop_assert_eq!(other.acknowledge(), pic.acknowledge());
    }
}
