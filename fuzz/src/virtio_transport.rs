use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use memory::GuestAddressSpace;
use pci::Function;
use pci::testing::Bench;
use state::{Payload, StateError, Stateful};
use virtio::testing::Guest;
use virtio::{
    Activation, Identity, QueueError, QueueResources, QueueState, StartError, TransportOptions,
    VirtioDevice, VirtioPci,
};

use crate::{Script, assert_same, guest};

type Running = Arc<Mutex<BTreeMap<u16, QueueResources>>>;

/// A device that keeps its queues where the script can serve them.
struct Echo {
    running: Running,
    active: bool,
}

impl VirtioDevice for Echo {
    fn identity(&self) -> Identity {
        Identity {
            device_type: 42,
            pci_class: 0xff_0000,
        }
    }

    fn features(&self) -> u64 {
        u64::MAX
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64, 8, 1]
    }

    fn config_read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0x5a);
    }

    fn config_write(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, _activation: Activation) {
        assert!(!self.active, "activated twice");
        self.active = true;
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), StartError> {
        assert!(self.active, "started before activated");
        let before = self.running.lock().unwrap().insert(index, resources);
        assert!(before.is_none(), "started twice");
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let resources = self.running.lock().unwrap().remove(&index)?;
        Some(resources.queue.save())
    }

    fn reset(&mut self) {
        assert!(
            self.running.lock().unwrap().is_empty(),
            "reset while a queue runs"
        );
        self.active = false;
    }

    fn save(&self) -> Result<Payload, StateError> {
        assert!(
            self.running.lock().unwrap().is_empty(),
            "saved while a queue runs"
        );
        Ok(state::no_state("echo"))
    }

    fn restore(&mut self, payload: Payload) -> Result<(), StateError> {
        state::restore_no_state("echo", payload)
    }
}

struct Place {
    function: Arc<VirtioPci>,
    running: Running,
    bench: Bench,
}

impl Place {
    fn new(guest: &Guest) -> Self {
        let running = Running::default();
        let device = Echo {
            running: Arc::clone(&running),
            active: false,
        };
        let options = TransportOptions {
            packed: true,
            ..TransportOptions::default()
        };
        let function = VirtioPci::new(Box::new(device), guest.memory().clone(), &options);
        let function = function.expect("a function");
        let bench = Bench::new();
        Arc::clone(&function).attach(bench.slot());
        Self {
            function,
            running,
            bench,
        }
    }
}

impl Drop for Place {
    /// As long as its BARs are on the bus, bus and function keep each other.
    fn drop(&mut self) {
        self.function.detach();
    }
}

/// A virtio function on a driver that writes anything into its registers and rings.
pub fn virtio_transport(data: &[u8]) {
    let mut script = Script::new(data);
    let guest = guest(64 << 10);
    let place = Place::new(&guest);
    // BARs decoded at some place from the start; the script may move them.
    for bar in 0..6_u16 {
        let address = 0xe000_0000_u32 + (u32::from(bar) << 20);
        _ = place
            .function
            .config_write(0x10 + 4 * bar, &address.to_le_bytes());
    }
    _ = place.function.config_write(0x14 + 4 * 4, &[0; 4]);
    _ = place.function.config_write(4, &[6, 0]);
    while !script.is_over() {
        step(&mut script, &guest, &place);
    }
    place.function.quiesce();
    let saved = place.function.save().expect("a state");
    let other = Place::new(&guest);
    other
        .function
        .restore(saved.clone())
        .expect("its own state");
    let again = other.function.save().expect("a restored function");
    assert_same(&saved, &again);
    other.function.resume();
    place.function.resume();
    place.function.reset();
    assert!(place.running.lock().unwrap().is_empty());
}

fn step(script: &mut Script, guest: &Guest, place: &Place) {
    match script.u8() % 16 {
        // Common configuration, where most of the state is.
        0..=5 => {
            let ranges = place.bench.memory.ranges();
            let Some(range) = ranges.last() else { return };
            let address = range.base + u64::from(script.u8() % 0x40);
            let len = 1 << (script.u8() % 3);
            _ = place.bench.memory.write(address, script.bytes(len));
        }
        6 | 7 => {
            let ranges = place.bench.memory.ranges();
            let Some(range) = ranges.get(usize::from(script.u8()) % ranges.len().max(1)) else {
                return;
            };
            let address = range.base + u64::from(script.u16()) % range.size;
            let len = script.access();
            if script.flag() {
                _ = place.bench.memory.write(address, script.bytes(len));
            } else {
                place.bench.memory.read(address, &mut vec![0; len]);
            }
        }
        8 => {
            let offset = script.u8() as u16 & !3;
            _ = place
                .function
                .config_write(offset, &script.u32().to_le_bytes());
        }
        9 => place
            .function
            .config_read(script.u8() as u16 & !3, &mut [0; 4]),
        10 => serve(place, script.u8().into()),
        11 => {
            let address = script.u16() % 0xff00;
            let len = script.u8();
            guest.write(address.into(), script.bytes(len.into()));
        }
        // The machine stops its processors first: no access comes in between.
        12 | 13 => {
            place.function.quiesce();
            place.function.save().expect("a state");
            place.function.resume();
        }
        14 => {
            if script.u8() == 0 {
                place.function.reset();
            }
        }
        // The way of a driver that wants to get on.
        _ => {
            let ranges = place.bench.memory.ranges();
            let Some(range) = ranges.last() else { return };
            let registers: [(u64, u64, usize); 10] = [
                (0x14, 0, 1),
                (0x14, 3, 1),
                (0x08, 1, 4),
                (0x0c, 1 | u64::from(script.u8() & 4), 4),
                (0x14, 0xb, 1),
                (0x16, u64::from(script.u8() % 3), 2),
                (0x20, u64::from(script.u16() & !0xf), 4),
                (0x28, u64::from(script.u16() & !0x3), 4),
                (0x30, u64::from(script.u16() & !0x3), 4),
                (0x1c, 1, 2),
            ];
            for (register, value, len) in registers {
                let bytes = value.to_le_bytes();
                _ = place
                    .bench
                    .memory
                    .write(range.base + register, &bytes[..len]);
            }
            _ = place.bench.memory.write(range.base + 0x14, &[0xf]);
        }
    }
}

/// Serves a queue as a worker would.
fn serve(place: &Place, index: u16) {
    let mut running = place.running.lock().unwrap();
    let Some(resources) = running.get_mut(&(index % 3)) else {
        return;
    };
    let mut run = || -> Result<(), QueueError> {
        let ram = resources.memory.memory();
        for _ in 0..64 {
            let Some(chain) = resources.queue.pop(&ram)? else {
                break;
            };
            resources.queue.add_used(&ram, chain, 0)?;
        }
        if resources.queue.needs_notification(&ram)? {
            resources.interrupt.trigger();
        }
        Ok(())
    };
    if let Err(error) = run() {
        resources.trouble.report("echo", &error);
    }
}
