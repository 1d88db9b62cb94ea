use super::*;
use crate::testing::Bench;
use crate::tests::{Probe, capability, probe, read16, read32, write16, write32};

/// Where the port's MSI-X BAR is put.
const MSIX_AT: u64 = 0xfe00_0000;

#[derive(Default)]
struct Yard(Mutex<Vec<Arc<dyn Function>>>);

impl SlotHandler for Yard {
    fn ejected(&self, function: Arc<dyn Function>) {
        self.0.lock().unwrap().push(function);
    }
}

impl Yard {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

struct Rig {
    bench: Bench,
    port: Arc<RootPort>,
    yard: Arc<Yard>,
    express: u16,
}

const CONFIG: RootPortConfig = RootPortConfig {
    port: 3,
    slot: 12,
    multifunction: true,
};

fn rig() -> Rig {
    let bench = Bench::new();
    let yard = Arc::new(Yard::default());
    let handler = Some(Arc::clone(&yard) as Arc<dyn SlotHandler>);
    let port = RootPort::new(CONFIG, handler).unwrap();
    Arc::clone(&port).attach(bench.slot());
    let express = capability(&*port, CAP_EXPRESS).unwrap();
    Rig {
        bench,
        port,
        yard,
        express,
    }
}

impl Rig {
    fn control(&self) -> u16 {
        read16(&*self.port, self.express + SLOT_CONTROL)
    }

    fn set_control(&self, value: u16) {
        write16(&*self.port, self.express + SLOT_CONTROL, value);
    }

    fn status(&self) -> u16 {
        read16(&*self.port, self.express + SLOT_STATUS)
    }

    fn clear(&self, events: u16) {
        write16(&*self.port, self.express + SLOT_STATUS, events);
    }

    fn link(&self) -> bool {
        read16(&*self.port, self.express + LINK_STATUS) & LINK_ACTIVE != 0
    }

    /// Lets the port interrupt by MSI-X, as pciehp sets it up.
    fn enable_events(&self) {
        write32(&*self.port, BAR0, MSIX_AT as u32);
        write16(&*self.port, COMMAND, COMMAND_MEMORY | COMMAND_BUS_MASTER);
        let msix = capability(&*self.port, CAP_MSIX).unwrap();
        write16(&*self.port, msix + 2, MSIX_ENABLE);
        let memory = &self.bench.memory;
        let _ = memory.write(MSIX_AT, &0xfee0_0000_u64.to_le_bytes());
        let _ = memory.write(MSIX_AT + 8, &0x55_u64.to_le_bytes());
        let events = BUTTON_PRESSED | PRESENCE_CHANGED | LINK_EVENT_ENABLE;
        self.set_control(self.control() | events | INTERRUPT_ENABLE);
        self.clear(COMMAND_COMPLETED);
    }

    fn messages(&self) -> usize {
        self.bench.host.take_sent().len()
    }

    fn plugged(&self) -> Arc<Probe> {
        let device = probe();
        self.port.plug(Arc::clone(&device) as _).unwrap();
        device
    }

    fn power(&self, on: bool) {
        let control = self.control() & !(POWER_OFF | INDICATORS);
        self.set_control(match on {
            true => control | INDICATORS_POWERED,
            false => control | INDICATORS_OFF | POWER_OFF,
        });
    }
}

#[test]
fn it_looks_like_qemus_root_port() {
    let Rig { port, express, .. } = rig();
    assert_eq!(read32(&*port, 0), 0x000c_1b36);
    assert_eq!(read32(&*port, 8), 0x0604_0000);
    assert_eq!(read32(&*port, 0x0c) >> 16, 0x81);
    let ids = [CAP_SUBSYSTEM, CAP_MSIX, CAP_EXPRESS];
    let places = ids.map(|id| capability(&*port, id));
    assert_eq!(places, [Some(0x40), Some(0x48), Some(0x54)]);
    assert_eq!(read16(&*port, express + 2), 0x0142, "v2, root port, slot");
    assert_eq!(read32(&*port, express + 0x0c) >> 24, 3, "port number");
    let slot = read32(&*port, express + 0x14);
    assert_eq!((slot >> 19, slot & 0x7f), (12, 0x7b));
    assert_eq!(read32(&*port, 0x100) & 0xffff, 1, "AER");
    assert_eq!(read32(&*port, 0x148), 1 << 16 | 0x0d, "ACS");
    let windows = [0x1c, 0x20, 0x24].map(|at| read32(&*port, at));
    assert_eq!(windows, [0xf0, 0xfff0, 0x0001_fff1], "closed");
}

#[test]
fn a_device_inserted_cold_is_there_from_the_start() {
    let Rig { port, yard, .. } = rig();
    assert!(port.secondary_bus().is_none(), "the link is down");
    port.insert(probe() as _).unwrap();
    assert!(port.secondary_bus().is_some());
    let express = capability(&*port, CAP_EXPRESS).unwrap();
    assert_eq!(read16(&*port, express + SLOT_STATUS), PRESENT);
    assert_eq!(port.insert(probe() as _), Err(PciError::SlotOccupied));
    assert_eq!(port.plug(probe() as _), Err(PciError::SlotOccupied));
    let bridge = RootPort::new(CONFIG, None).unwrap();
    assert_eq!(port.plug(bridge), Err(PciError::BridgeInSlot));
    assert_eq!(yard.count(), 0);
}

#[test]
fn a_plugged_device_answers_once_the_guest_gives_it_power() {
    let rig = rig();
    rig.enable_events();
    let device = rig.plugged();
    assert_eq!(rig.messages(), 1);
    let events = PRESENCE_CHANGED | BUTTON_PRESSED;
    assert_eq!(rig.status(), PRESENT | events);
    assert!(!rig.link());
    assert!(rig.port.secondary_bus().is_none());

    rig.clear(events);
    rig.power(true);
    assert!(rig.link());
    assert_eq!(rig.status(), PRESENT | LINK_CHANGED | COMMAND_COMPLETED);
    assert_eq!(rig.messages(), 1);
    assert!(rig.port.secondary_bus().unwrap().get(0).is_some());

    // It sits in the slot: its BARs are decoded.
    write32(&*device, BAR0, 0xfd00_0000);
    write16(&*device, COMMAND, COMMAND_MEMORY);
    assert_eq!(rig.bench.memory.ranges().len(), 2);
}

#[test]
fn an_unplugged_device_leaves_when_the_guest_lets_it_go() {
    let rig = rig();
    rig.port.insert(probe() as _).unwrap();
    rig.enable_events();
    rig.port.request_unplug().unwrap();
    assert!(rig.port.unplug_pending());
    assert_eq!(
        (rig.messages(), rig.status()),
        (1, PRESENT | BUTTON_PRESSED)
    );
    rig.clear(BUTTON_PRESSED);

    let blinking = rig.control() & !POWER_INDICATOR | POWER_INDICATOR_BLINKS;
    rig.set_control(blinking);
    assert_eq!(rig.port.request_unplug(), Err(PciError::UnplugPending));
    // pciehp: power off, a second later the indicators off.
    rig.set_control(rig.control() | POWER_OFF);
    assert!(!rig.link());
    assert_eq!(rig.yard.count(), 0);
    rig.clear(0xffff);
    rig.power(false);
    assert_eq!(rig.yard.count(), 1);
    assert_eq!(rig.status(), PRESENCE_CHANGED | COMMAND_COMPLETED);
    assert!(rig.port.occupant().is_none());
    assert!(!rig.port.unplug_pending());
    assert_eq!(rig.port.request_unplug(), Err(PciError::SlotEmpty));
    rig.plugged();
}

#[test]
fn a_slot_that_is_off_gives_its_device_without_asking() {
    let rig = rig();
    rig.plugged();
    rig.port.request_unplug().unwrap();
    assert_eq!(rig.yard.count(), 1);
    assert_eq!(rig.status(), PRESENCE_CHANGED);
}

#[test]
fn power_off_alone_resets_the_device_and_keeps_it() {
    let rig = rig();
    let device = probe();
    rig.port.insert(Arc::clone(&device) as _).unwrap();
    rig.set_control(rig.control() | POWER_OFF);
    assert_eq!(*device.resets.lock().unwrap(), 1);
    assert!(rig.port.secondary_bus().is_none());
    rig.set_control(rig.control() & !POWER_OFF);
    assert!(rig.port.secondary_bus().is_some());
    assert_eq!(rig.yard.count(), 0);
}

#[test]
fn secondary_bus_reset_resets_once() {
    let rig = rig();
    let device = probe();
    rig.port.insert(Arc::clone(&device) as _).unwrap();
    write16(&*rig.port, BRIDGE_CONTROL, BRIDGE_CONTROL_RESET);
    write16(&*rig.port, BRIDGE_CONTROL, BRIDGE_CONTROL_RESET);
    write16(&*rig.port, BRIDGE_CONTROL, 0);
    assert_eq!(*device.resets.lock().unwrap(), 1);
}

#[test]
fn without_msix_the_wire_is_high_while_an_event_waits() {
    let rig = rig();
    rig.set_control(rig.control() | INTERRUPT_ENABLE | PRESENCE_CHANGED);
    rig.plugged();
    assert!(rig.bench.intx(IntxPin::A));
    rig.clear(PRESENCE_CHANGED);
    assert!(!rig.bench.intx(IntxPin::A), "other events are not enabled");
    rig.set_control(rig.control() | BUTTON_PRESSED);
    assert!(rig.bench.intx(IntxPin::A), "enabled later");
    rig.clear(BUTTON_PRESSED);
    assert!(!rig.bench.intx(IntxPin::A));
}

#[test]
fn a_surprise_removal_is_an_event() {
    let rig = rig();
    rig.port.insert(probe() as _).unwrap();
    rig.enable_events();
    assert!(rig.port.eject().is_some());
    assert!(!rig.link());
    assert_eq!(rig.status(), PRESENCE_CHANGED | LINK_CHANGED);
    assert_eq!(rig.messages(), 1);
    assert!(rig.port.eject().is_none());
}

#[test]
fn after_reset_an_occupied_slot_is_powered() {
    let rig = rig();
    rig.plugged();
    assert!(!rig.link());
    rig.port.reset();
    assert!(rig.link());
    assert_eq!(rig.status(), PRESENT);
}

#[test]
fn the_slots_state_round_trips() {
    let rig = rig();
    rig.enable_events();
    rig.plugged();
    rig.power(true);
    rig.port.request_unplug().unwrap();
    let payload = rig.port.save().unwrap();

    let other = super::tests::rig();
    let refused = other.port.restore(payload.clone()).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("the slot was occupied and is empty")
    );
    other.port.insert(probe() as _).unwrap();
    other.port.restore(payload.clone()).unwrap();
    assert_eq!(other.port.save().unwrap(), payload);
    assert!(other.port.unplug_pending());
    assert_eq!(other.messages(), 0, "events told before are not told again");
    assert!(other.link());
}
