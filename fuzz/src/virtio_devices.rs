use std::sync::{Arc, OnceLock};

use event::{IoThread, IoThreadConfig};
use net::{Capabilities, Mac, Offloads};
use spec::Spec;
use virtio::VirtioDevice;
use virtio::balloon::{Balloon, BalloonSpec};
use virtio::console::{Console, ConsoleSpec};
use virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use virtio::net::{Net, NetSpec};
use virtio::rng::{Rng, RngSpec};
use virtio::testing::{Buffer, DeviceHarness, Guest, HarnessQueue};

use crate::{Script, guest};

const RAM: usize = 4 << 20;

/// Buffers are here; behind this are the rings.
const BUFFERS: u64 = 1 << 20;

/// A device (the first byte says which) and a driver that puts anything into any of its queues,
/// stops and starts them, and writes its configuration space.
pub fn virtio_devices(data: &[u8]) {
    static THREAD: OnceLock<IoThread> = OnceLock::new();
    let thread = THREAD
        .get_or_init(|| IoThread::spawn(IoThreadConfig::new("devices")).expect("a thread"))
        .clone();
    let mut script = Script::new(data);
    let guest = guest(RAM);
    match script.u8() % 4 {
        0 => {
            let spec = RngSpec::parse("").expect("a good description");
            let rng = Rng::new(&spec, thread).expect("a source of entropy");
            fuzz(rng, &mut script, &guest);
        }
        1 => {
            let spec = BalloonSpec::parse("guest-stats-polling-interval=1").expect("a balloon's");
            let (balloon, control) = Balloon::new(&spec, guest.memory().clone(), thread);
            control.set_target(script.u64());
            fuzz(balloon, &mut script, &guest);
            _ = (control.actual(), control.stats());
        }
        2 => {
            let spec = "null,port=agent@null,port=other@null,max-ports=5";
            let spec = ConsoleSpec::parse(spec).expect("a good description");
            let opened = Console::open(&spec, thread, Arc::new(|| {}));
            let (console, _chardevs) = opened.expect("a console");
            fuzz(console, &mut script, &guest);
        }
        _ => {
            let options = script.u8();
            let (backend, peer) = net::testing::pair(Capabilities {
                vnet_header: options & 1 != 0,
                offloads: Offloads::default(),
                queue_pairs: 1 + u16::from(options >> 1 & 1),
                max_frame: 2000,
            });
            let spec = NetSpec::parse("user").expect("a good description");
            let mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
            let card = Net::new(&spec, backend, vec![thread], mac).expect("a card");
            for _ in 0..options >> 2 & 7 {
                let len = 14 + usize::from(script.u8());
                let mut frame = script.bytes(len).to_vec();
                frame.resize(len, 0xff);
                peer.send(0, &frame);
            }
            fuzz(card, &mut script, &guest);
        }
    }
}

fn fuzz<D: VirtioDevice>(device: D, script: &mut Script, guest: &Guest) {
    let options = script.u8();
    let mut ring = 0;
    for (bit, feature) in [
        (1, RING_PACKED),
        (2, RING_EVENT_IDX),
        (4, RING_INDIRECT_DESC),
    ] {
        ring |= if options & bit != 0 { feature } else { 0 };
    }
    _ = guest.alloc(BUFFERS as usize, 4096);
    let mut harness = DeviceHarness::new(device, guest, ring);
    let count = harness.device.queue_sizes().len() as u16;
    let mut queues: Vec<Option<HarnessQueue>> = (0..count).map(|_| None).collect();
    for index in 0..count {
        queues[usize::from(index)] = Some(harness.start(index));
    }
    let mut steps = 0;
    while !script.is_over() && steps < 300 {
        steps += 1;
        step(script, guest, &mut harness, &mut queues);
    }
    // A worker gives its queue back whatever the driver did, with nothing in flight unless the
    // ring itself made no sense.
    for queue in queues.into_iter().flatten() {
        let (_, state) = harness.stop(queue);
        assert!(
            state.in_flight == 0 || harness.trouble.is_set(),
            "{state:?}"
        );
    }
    let saved = harness.device.save().expect("a state");
    harness.device.reset();
    harness.device.restore(saved).expect("its own state");
}

fn step<D: VirtioDevice>(
    script: &mut Script,
    guest: &Guest,
    harness: &mut DeviceHarness<D>,
    queues: &mut [Option<HarnessQueue>],
) {
    let index = usize::from(script.u8()) % queues.len();
    match script.u8() % 16 {
        0..=8 => {
            let Some(queue) = &mut queues[index] else {
                return;
            };
            let writable_from = script.u8() % 5;
            let mut buffers = Vec::new();
            for i in 0..1 + script.u8() % 4 {
                let len = 1 + u32::from(script.u16() % 4096);
                let address = 4096 + u64::from(script.u8()) * 2048;
                let content = script.u8() % 64;
                guest.write(address, script.bytes(content.into()));
                buffers.push(Buffer {
                    address,
                    len,
                    writable: i >= writable_from,
                });
            }
            _ = queue.driver.offer(&buffers);
            if script.flag() {
                _ = queue.kick.write(1);
            }
        }
        9 | 10 => {
            if let Some(queue) = &queues[index] {
                _ = queue.kick.write(1);
            }
        }
        11 => {
            if let Some(queue) = queues[index].take() {
                let (driver, state) = harness.stop(queue);
                if !harness.trouble.is_set() {
                    let queue = harness.start_with(index as u16, driver, state);
                    queues[index] = Some(queue);
                }
            }
        }
        12 => {
            let offset = u64::from(script.u8() % 64);
            let len = script.access();
            harness.device.config_write(offset, script.bytes(len));
        }
        13 => {
            let offset = u64::from(script.u8());
            let mut data = vec![0; script.access()];
            harness.device.config_read(offset, &mut data);
        }
        // Buffers change under the device.
        _ => {
            let address = u64::from(script.u16());
            let len = script.u8();
            guest.write(address, script.bytes(len.into()));
        }
    }
}
