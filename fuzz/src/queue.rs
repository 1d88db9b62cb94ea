use memory::{Bytes, GuestAddress, GuestAddressSpace, Ram};
use virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use virtio::testing::Guest;
use virtio::{Chain, Queue, QueueConfig, QueueError, QueueState};

use crate::{Script, guest};

const RAM: usize = 64 << 10;

/// A queue on a driver that writes anything anywhere in 64 KiB of memory.
pub fn queue(data: &[u8]) {
    let mut script = Script::new(data);
    let guest = guest(RAM);
    let mut features = 0;
    for feature in [RING_PACKED, RING_EVENT_IDX, RING_INDIRECT_DESC] {
        features |= if script.flag() { feature } else { 0 };
    }
    let config = QueueConfig {
        size: match script.u8() {
            n @ 0..16 => 1 << n,
            n => n.into(),
        },
        desc_addr: (script.u16() & !0xf).into(),
        driver_addr: (script.u16() & !0x3).into(),
        device_addr: (script.u16() & !0x3).into(),
        features,
    };
    let state = if script.flag() {
        QueueState {
            next_avail: script.u16(),
            next_used: script.u16(),
            avail_wrap: script.flag(),
            used_wrap: script.flag(),
            in_flight: script.u16(),
        }
    } else {
        QueueState::default()
    };
    let Ok(mut queue) = Queue::restore(config, state) else {
        return;
    };
    // The rings' memory first, so that a short script already has chains.
    for area in [config.desc_addr, config.driver_addr] {
        let len = script.u8();
        write(&guest, area, script.bytes(len.into()));
    }
    let mut held = Vec::new();
    while !script.is_over() {
        if step(&mut script, &guest, &mut queue, &mut held).is_err() {
            // A device stops here. Whatever it calls afterwards must still be harmless.
            while !script.is_over() {
                _ = step(&mut script, &guest, &mut queue, &mut held);
            }
        }
    }
}

fn write(guest: &Guest, address: u64, bytes: &[u8]) {
    let ram = guest.memory().memory();
    _ = ram.write(bytes, GuestAddress(address));
}

fn step(
    script: &mut Script,
    guest: &Guest,
    queue: &mut Queue,
    held: &mut Vec<Chain>,
) -> Result<(), QueueError> {
    let ram = guest.memory().memory();
    match script.u8() % 12 {
        0..=2 => {
            if let Some(chain) = queue.pop(&ram)? {
                check(&chain, queue);
                exercise(script, &chain, &ram);
                held.push(chain);
            }
        }
        3 => {
            if let Some(chain) = queue.pop(&ram)? {
                check(&chain, queue);
                let id = chain.id();
                queue.undo_pop(chain);
                let again = queue.pop(&ram)?;
                assert_eq!(again.as_ref().map(Chain::id), Some(id), "undone, then lost");
                held.extend(again);
            }
        }
        4 | 5 => {
            if !held.is_empty() {
                let chain = held.swap_remove(usize::from(script.u8()) % held.len());
                queue.add_used(&ram, chain, script.u32())?;
            }
        }
        6 => {
            while let Some(chain) = held.pop() {
                queue.push_used(&ram, chain, script.u8().into())?;
            }
            queue.publish_used(&ram)?;
            _ = queue.needs_notification(&ram)?;
        }
        7 => _ = queue.has_available(&ram)?,
        8 => queue.disable_notification(&ram)?,
        9 => _ = queue.enable_notification(&ram)?,
        10 => {
            let state = queue.save();
            *queue = Queue::restore(*queue.config(), state)?;
            assert_eq!(queue.save(), state);
        }
        _ => {
            let address = script.u16();
            let len = script.u8();
            write(guest, address.into(), script.bytes(len.into()));
        }
    }
    Ok(())
}

/// What a device may rely on.
fn check(chain: &Chain, queue: &Queue) {
    let sum = |segments: &[virtio::Segment]| segments.iter().map(|s| u64::from(s.len)).sum::<u64>();
    assert_eq!(sum(chain.readable()), u64::from(chain.readable_len()));
    assert_eq!(sum(chain.writable()), u64::from(chain.writable_len()));
    assert!(chain.readable().len() + chain.writable().len() <= usize::from(queue.size()));
    for segment in chain.readable().iter().chain(chain.writable()) {
        assert!(segment.len != 0);
        assert!(segment.address + u64::from(segment.len) <= RAM as u64);
    }
}

/// Reads and writes a chain in pieces.
fn exercise(script: &mut Script, chain: &Chain, ram: &Ram) {
    let mut buffer = [0; 300];
    let mut reader = chain.reader(ram);
    let len = usize::from(script.u8());
    _ = reader.read_exact(&mut buffer[..len]);
    let mut writer = chain.writer(ram);
    let len = usize::from(script.u8());
    _ = writer.write_all(&buffer[..len]);
    assert!(u64::from(writer.written()) <= u64::from(chain.writable_len()));
}
