//! Frames in both directions.

use super::*;

#[test]
fn guest_sends() {
    for ring in RINGS {
        let (mut harness, peer) = activated("", tap_like(1), ring);
        let mut tx = harness.start(1);
        for i in 0..200 {
            let (head, body) = (header(i as u8), frame(MAC, 60 + i, i));
            let (first, second) = body.split_at(i % 60 + 1);
            let (id, _) = tx.driver.send(&[&head, first, second], &[]);
            tx.kick();
            assert_eq!(peer.receive(0), [&head[..], &body].concat());
            assert_eq!(tx.wait(), (id, 0));
        }
        let sent = harness.device.handle().sent();
        assert_eq!((sent.frames, sent.dropped), (200, 0));
        assert_eq!(sent.bytes, (60..260).sum::<u64>());
    }
}

#[test]
fn back_end_without_headers_gets_and_gives_none() {
    for ring in RINGS {
        let (mut harness, peer) = activated("", plain(), ring);
        let mut tx = harness.start(1);
        let mut rx = Receiver::new(harness.start(0), 4, 2000);
        let body = frame(MAC, 99, 1);
        tx.driver.send(&[&header(0), &body], &[]);
        tx.kick();
        assert_eq!(peer.receive(0), body);
        peer.send(0, &body);
        let (head, received) = rx.frame();
        assert_eq!(received, body);
        assert_eq!(head, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    }
}

#[test]
fn guest_receives() {
    for ring in RINGS {
        let (mut harness, peer) = activated("", tap_like(1), ring);
        let mut rx = Receiver::new(harness.start(0), 100, 1600);
        for i in 0..300 {
            let body = frame(MAC, 60 + i * 4, i);
            peer.send(0, &[header(i as u8), body.clone()].concat());
            let (head, received) = rx.frame();
            assert_eq!(received, body);
            assert_eq!(head[..10], header(i as u8)[..10]);
            rx.fill(100 - rx.buffers.len());
        }
    }
}

#[test]
fn large_frames_fill_several_buffers() {
    for ring in RINGS {
        let (mut harness, peer) = activated("", tap_like(1), ring);
        let mut rx = Receiver::new(harness.start(0), 256, 700);
        // The first large one comes by the bounce buffer, the next ones directly.
        for (i, len) in [60, 65_000, 64_000, 65_557, 60, 60, 30_000, 688, 689]
            .iter()
            .enumerate()
        {
            let body = frame(MAC, *len, i);
            peer.send(0, &[header(7), body.clone()].concat());
            let (head, received) = rx.frame();
            assert!(received == body, "frame {i} of {len} bytes");
            let buffers = (len + VNET_HEADER).div_ceil(700);
            assert_eq!(head[10..], (buffers as u16).to_le_bytes());
            rx.fill(256 - rx.buffers.len());
        }
        assert_eq!(harness.device.handle().received().dropped, 0);
    }
}

#[test]
fn frame_waits_for_buffers_and_is_not_torn() {
    for ring in RINGS {
        let (mut harness, peer) = activated("", tap_like(1), ring);
        let mut rx = Receiver::new(harness.start(0), 2, 700);
        let (large, small) = (frame(MAC, 5000, 1), frame(MAC, 80, 2));
        peer.send(0, &[header(0), large.clone()].concat());
        peer.send(0, &[header(0), small.clone()].concat());
        rx.nothing();
        rx.fill(3);
        rx.nothing();
        rx.fill(10);
        assert_eq!(rx.frame().1, large);
        assert_eq!(rx.frame().1, small);
    }
}

#[test]
fn frames_without_a_place_are_dropped_and_others_follow() {
    // Without merging a frame has to fit one buffer.
    let features = VERSION_1 | feature::STATUS;
    let (net, peer) = card("", tap_like(1), vec![thread(0)]);
    let mut harness = DeviceHarness::with_features(net, &Guest::new(16 << 20), features);
    let mut rx = Receiver::new(harness.start(0), 4, 700);
    peer.send(0, &[header(0), frame(MAC, 689, 1)].concat());
    peer.send(0, &[header(0), frame(MAC, 688, 2)].concat());
    let (head, received) = rx.frame();
    assert_eq!((received, &head[10..]), (frame(MAC, 688, 2), &[1, 0][..]));
    assert_eq!(harness.device.handle().received().dropped, 1);

    // With merging it has to fit all that the ring can hold.
    let (mut harness, peer) = activated(",queue-size=4", tap_like(1), RING_EVENT_IDX);
    let mut rx = Receiver::new(harness.start(0), 4, 700);
    peer.send(0, &[header(0), frame(MAC, 2789, 1)].concat());
    peer.send(0, &[header(0), frame(MAC, 2788, 2)].concat());
    assert_eq!(rx.frame().1, frame(MAC, 2788, 2));
    // Less than an Ethernet header is no frame.
    rx.fill(4);
    peer.send(0, &[0; 25]);
    peer.send(0, &[header(0), frame(MAC, 60, 3)].concat());
    assert_eq!(rx.frame().1, frame(MAC, 60, 3));
}

#[test]
fn sending_waits_for_the_host_and_loses_nothing() {
    for ring in RINGS {
        let (mut harness, peer) = activated("", tap_like(1), ring);
        let mut tx = harness.start(1);
        let mut offered = 0;
        while tx.driver.in_flight() < 64 {
            let body = frame(MAC, 9000, offered);
            tx.driver.send(&[&[&header(0)[..], &body].concat()], &[]);
            offered += 1;
            tx.kick();
            if offered > 128 {
                std::thread::sleep(Duration::from_millis(1));
            }
            while tx.driver.collect().is_some() {}
            assert!(offered < 1000, "the socket never fills");
        }
        // Stopped with frames in the ring, and started again.
        let (driver, state) = harness.stop(tx);
        assert_eq!(state.in_flight, 0);
        let mut tx = harness.start_with(1, driver, state);
        tx.kick.write(1).unwrap();
        for i in 0..offered {
            let received = peer.receive(0);
            assert!(
                received[VNET_HEADER..] == frame(MAC, 9000, i),
                "frame {i} of {offered}"
            );
        }
        while tx.driver.in_flight() != 0 {
            tx.wait();
        }
    }
}

#[test]
fn receive_queue_stops_with_all_buffers_given_back() {
    for ring in RINGS {
        let (mut harness, peer) = activated("", tap_like(1), ring);
        let mut rx = Receiver::new(harness.start(0), 64, 300);
        for i in 0..10 {
            // Large ones make the worker hold many chains.
            let body = frame(MAC, 3000, i);
            peer.send(0, &[header(0), body.clone()].concat());
            assert_eq!(rx.frame().1, body);
            let Receiver {
                queue,
                buffers,
                len,
            } = rx;
            let (driver, state) = harness.stop(queue);
            assert_eq!(state.in_flight, 0);
            let queue = harness.start_with(0, driver, state);
            rx = Receiver {
                queue,
                buffers,
                len,
            };
            rx.fill(64 - rx.buffers.len());
            rx.queue.kick.write(1).unwrap();
        }
    }
}

#[test]
fn one_interrupt_for_many_frames() {
    let (mut harness, peer) = activated("", tap_like(1), 0);
    let mut rx = Receiver::new(harness.start(0), 0, 1600);
    for i in 0..50 {
        peer.send(0, &[header(0), frame(MAC, 100, i)].concat());
    }
    rx.fill(50);
    for i in 0..50 {
        assert_eq!(rx.frame().1, frame(MAC, 100, i));
    }
    assert_eq!(rx.queue.interrupts.count(), 1);
    // And none when the driver polls.
    rx.fill(50);
    rx.queue.driver.disable_interrupts();
    peer.send(0, &[header(0), frame(MAC, 100, 51)].concat());
    rx.frame();
    assert_eq!(rx.queue.interrupts.count(), 1);
}

#[test]
fn polling_thread_serves_both_directions() {
    for ring in RINGS {
        let (net, peer) = card("", tap_like(1), vec![thread(200)]);
        let mut harness = DeviceHarness::new(net, &Guest::new(16 << 20), ring);
        let mut tx = harness.start(1);
        let mut rx = Receiver::new(harness.start(0), 16, 1600);
        for i in 0..200 {
            let body = frame(MAC, 100, i);
            tx.driver.send(&[&header(0), &body], &[]);
            tx.kick();
            let sent = peer.receive(0);
            tx.wait();
            peer.send(0, &sent);
            assert_eq!(rx.frame().1, body);
            rx.fill(1);
        }
    }
}

#[test]
fn pulled_cable_loses_frames_and_nothing_more() {
    let (mut harness, peer) = activated("", tap_like(1), RING_EVENT_IDX);
    let handle = harness.device.handle();
    let mut tx = harness.start(1);
    let mut rx = Receiver::new(harness.start(0), 16, 1600);
    handle.set_link(false);
    handle.set_link(false);
    assert_eq!(harness.config_interrupts.count(), 1);
    let mut status = [0; 2];
    harness.device.config_read(6, &mut status);
    assert_eq!(status, [0, 0]);
    peer.send(0, &[header(0), frame(MAC, 100, 1)].concat());
    tx.driver.send(&[&header(0), &frame(MAC, 100, 2)], &[]);
    tx.kick();
    tx.wait();
    rx.nothing();
    assert_eq!((handle.sent().dropped, handle.received().dropped), (1, 1));
    assert_eq!(peer.receive_within(0, Duration::from_millis(1)), None);
    handle.set_link(true);
    assert!(handle.is_link_up());
    assert_eq!(harness.config_interrupts.count(), 2);
    peer.send(0, &[header(0), frame(MAC, 100, 3)].concat());
    assert_eq!(rx.frame().1, frame(MAC, 100, 3));
    tx.driver.send(&[&header(0), &frame(MAC, 100, 4)], &[]);
    tx.kick();
    assert_eq!(peer.receive(0)[VNET_HEADER..], frame(MAC, 100, 4));
}

#[test]
fn chains_that_make_no_sense_are_reported() {
    let spoil: [fn(&mut DeviceHarness<Net>, &Peer) -> HarnessQueue; 3] = [
        |harness, _| {
            // Less than a header to send.
            let mut tx = harness.start(1);
            tx.driver.send(&[&[0; 11]], &[]);
            tx.kick();
            tx
        },
        |harness, peer| {
            // Less than a header of room.
            let rx = Receiver::new(harness.start(0), 1, 11);
            peer.send(0, &[header(0), frame(MAC, 60, 0)].concat());
            rx.queue
        },
        |harness, _| {
            // A buffer beyond the memory.
            let mut tx = harness.start(1);
            tx.driver.offer(&[Buffer::readable(1 << 40, 100)]).unwrap();
            tx.kick();
            tx
        },
    ];
    for spoil in spoil {
        for ring in RINGS {
            let (mut harness, peer) = activated("", tap_like(1), ring);
            let queue = spoil(&mut harness, &peer);
            wait_for_trouble(&harness);
            assert_eq!(harness.config_interrupts.count(), 1);
            harness.stop(queue);
            // After a reset it works again.
            harness.device.reset();
            let mut harness = DeviceHarness::new(harness.device, &harness.guest, ring);
            let mut tx = harness.start(1);
            tx.driver.send(&[&header(0), &frame(MAC, 60, 0)], &[]);
            tx.kick();
            assert_eq!(peer.receive(0)[VNET_HEADER..], frame(MAC, 60, 0));
        }
    }
}

#[test]
fn queue_starts_only_once_and_only_if_it_exists() {
    let (mut harness, _peer) = activated("", tap_like(1), 0);
    let running = harness.start(0);
    let resources = |harness: &DeviceHarness<Net>| crate::QueueResources {
        queue: crate::Queue::new(running.driver.config()).unwrap(),
        memory: harness.guest.memory().clone(),
        kick: running.kick.try_clone().unwrap(),
        interrupt: bus::testing::CountingInterrupt::pair().1,
        trouble: harness.trouble.clone(),
    };
    for index in [0, 3, 100] {
        let given = resources(&harness);
        assert!(harness.device.start_queue(index, given).is_err());
    }
    assert!(harness.device.stop_queue(1).is_none());
    assert!(harness.device.stop_queue(2).is_none());
    assert!(harness.device.stop_queue(77).is_none());
}
