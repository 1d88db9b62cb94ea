use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use block::Raw;
use block::storage::memory::Memory;
use event::{IoThread, IoThreadConfig};
use spec::Spec;
use virtio::blk::{Blk, BlkSpec};
use virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use virtio::testing::{Buffer, DeviceHarness, Guest};

use crate::{Script, guest};

const DISK: usize = 64 << 10;

/// How long a disk in memory may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(20);

/// A disk and a driver whose requests are anything: headers, buffers, sizes, order.
pub fn virtio_blk(data: &[u8]) {
    static THREAD: OnceLock<IoThread> = OnceLock::new();
    let thread = THREAD
        .get_or_init(|| IoThread::spawn(IoThreadConfig::new("disk")).expect("a thread"))
        .clone();
    let mut script = Script::new(data);
    let options = script.u8();
    let spec = BlkSpec::parse("unused,queue-size=16,serial=fuzz").expect("a good description");
    let storage = Memory::new(DISK, options & 1 != 0);
    if options & 2 != 0 {
        storage.fail_with(5);
    }
    let node = Arc::new(Raw::new("disk".into(), storage));
    let blk = Blk::new(&spec, node, vec![thread], 1).expect("a disk");
    let mut ring = 0;
    for (bit, feature) in [
        (4, RING_PACKED),
        (8, RING_EVENT_IDX),
        (16, RING_INDIRECT_DESC),
    ] {
        ring |= if options & bit != 0 { feature } else { 0 };
    }
    let guest = guest(256 << 10);
    let mut harness = DeviceHarness::new(blk, &guest, ring);
    let mut queue = harness.start(0);
    let mut offered = 0_u32;
    for _ in 0..64 {
        if script.is_over() {
            break;
        }
        if queue.driver.offer(&request(&mut script, &guest)).is_none() {
            break;
        }
        offered += 1;
        if script.flag() {
            queue.kick();
        }
    }
    queue.kick.write(1).expect("an eventfd");
    // Each request is answered, or the device asks for a reset.
    let end = Instant::now() + PATIENCE;
    let mut answered = 0;
    while answered < offered && !harness.trouble.is_set() {
        match queue.driver.collect() {
            Some(_) => answered += 1,
            None => {
                assert!(
                    Instant::now() < end,
                    "{answered} of {offered} requests answered"
                );
                std::thread::yield_now();
            }
        }
    }
    _ = harness.stop(queue);
}

/// Buffers for one request, in the low 128 KiB of the guest, behind which the rings are not.
fn request(script: &mut Script, guest: &Guest) -> Vec<Buffer> {
    let header = [
        script.u8().into(),
        0_u32,
        u32::from(script.u8()),
        if script.u8() == 0 { u32::MAX } else { 0 },
    ];
    let header = header.map(u32::to_le_bytes).concat();
    let at = guest.put(&header);
    let mut buffers = vec![Buffer::readable(
        at,
        16 - u32::from(script.u8().is_multiple_of(32)),
    )];
    let pieces = script.u8() % 5;
    let writable_from = script.u8() % 5;
    for i in 0..pieces {
        let len = match script.u8() {
            n @ 0..128 => u32::from(n % 9) * 512,
            n => u32::from(n),
        };
        let data = script.bytes(16).to_vec();
        let address = guest.put(&data.repeat(len.max(1).div_ceil(16) as usize));
        buffers.push(Buffer {
            address,
            len: len.max(1),
            writable: i >= writable_from,
        });
    }
    if !script.u8().is_multiple_of(16) {
        buffers.push(Buffer::writable(guest.put(&[0xff]), 1));
    }
    buffers
}
