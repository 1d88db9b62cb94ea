//! Driver and device on two threads that sleep whenever the rules allow it: a barrier that is
//! missing on either side shows as a wake-up that never comes.

use std::sync::mpsc;
use std::time::Duration;

use bus::EventFd;
use memory::GuestAddressSpace;

use super::*;
use crate::features::{RING_EVENT_IDX, RING_PACKED};
use crate::testing::{Buffer, DriverQueue, Guest};

const CHAINS: u32 = 5_000;

/// Serves until the driver's last chain; returns how often it slept.
fn device(mut queue: Queue, guest: &Guest, kick: &EventFd, interrupt: &EventFd) -> u32 {
    let ram = guest.memory().memory();
    let (mut served, mut slept) = (0, 0);
    while served < CHAINS {
        queue.disable_notification(&ram).unwrap();
        while let Some(chain) = queue.pop(&ram).unwrap() {
            queue.push_used(&ram, chain, served).unwrap();
            served += 1;
            if served % 3 == 0 {
                queue.publish_used(&ram).unwrap();
            }
        }
        queue.publish_used(&ram).unwrap();
        if queue.needs_notification(&ram).unwrap() {
            interrupt.write(1).unwrap();
        }
        if !queue.enable_notification(&ram).unwrap() && served < CHAINS {
            kick.read().unwrap();
            slept += 1;
        }
    }
    slept
}

/// Keeps the ring full and checks the order of what comes back.
fn driver(mut queue: DriverQueue, kick: &EventFd, interrupt: &EventFd) -> u32 {
    let (mut offered, mut collected, mut slept) = (0, 0, 0);
    while collected < CHAINS {
        queue.disable_interrupts();
        while offered < CHAINS && queue.offer(&[Buffer::writable(0x8_0000, 4)]).is_some() {
            offered += 1;
            if offered % 4 == 0 && queue.needs_kick() {
                kick.write(1).unwrap();
            }
        }
        if queue.needs_kick() {
            kick.write(1).unwrap();
        }
        while let Some((_, written)) = queue.collect() {
            assert_eq!(written, collected);
            collected += 1;
        }
        // With nothing in flight there is nothing to wait for.
        if queue.in_flight() != 0 && !queue.enable_interrupts() {
            interrupt.read().unwrap();
            slept += 1;
        }
    }
    slept
}

#[test]
fn two_threads_never_wait_for_each_other() {
    for features in [0, RING_EVENT_IDX, RING_PACKED, RING_PACKED | RING_EVENT_IDX] {
        let guest = Guest::new(1 << 20);
        let rings = DriverQueue::new(&guest, 8, features);
        let queue = Queue::new(rings.config()).unwrap();
        let [kick, interrupt] = [(); 2].map(|()| EventFd::new(0).unwrap());
        let ends = [kick.try_clone().unwrap(), interrupt.try_clone().unwrap()];
        let (sender, done) = mpsc::channel();
        let device_done = sender.clone();
        std::thread::spawn(move || {
            let slept = device(queue, &guest, &kick, &interrupt);
            device_done.send(slept)
        });
        std::thread::spawn(move || sender.send(driver(rings, &ends[0], &ends[1])));
        for _ in 0..2 {
            // Both threads stay behind, asleep, when a wake-up is lost.
            let slept = done.recv_timeout(Duration::from_secs(30));
            assert!(slept.is_ok_and(|times| times < CHAINS), "{features:#x}");
        }
    }
}
