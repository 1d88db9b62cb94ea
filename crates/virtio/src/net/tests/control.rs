//! The control queue, and what it changes.

use super::*;

const OK: [u8; 1] = [0];
const ERR: [u8; 1] = [1];

fn table(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for table in [unicast, multicast] {
        bytes.extend((table.len() as u32).to_le_bytes());
        bytes.extend(table.concat());
    }
    bytes
}

fn filter() -> Filter {
    Filter {
        mode: Mode {
            promiscuous: false,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
        },
        mac: MAC,
        unicast: Table::new(vec![[2, 0, 0, 0, 0, 1]]),
        multicast: Table::new(vec![[1, 0, 0x5e, 0, 0, 1]]),
        vlans: None,
    }
}

#[test]
fn filter_decides_by_kind_and_table() {
    let accepts = |filter: &Filter, to: [u8; 6]| filter.accepts(&frame(to, 60, 0)[..18]);
    let (broadcast, group, other) = ([0xff; 6], [1, 0, 0x5e, 0, 0, 2], [2, 0, 0, 0, 0, 2]);
    let f = filter();
    assert!(accepts(&f, MAC) && accepts(&f, [2, 0, 0, 0, 0, 1]) && accepts(&f, broadcast));
    assert!(accepts(&f, [1, 0, 0x5e, 0, 0, 1]));
    assert!(!accepts(&f, group) && !accepts(&f, other));
    let changed = |change: fn(&mut Filter)| {
        let mut f = filter();
        change(&mut f);
        f
    };
    assert!(accepts(&changed(|f| f.mode.all_multicast = true), group));
    assert!(accepts(&changed(|f| f.mode.all_unicast = true), other));
    assert!(accepts(&changed(|f| f.mode.promiscuous = true), other));
    assert!(!accepts(
        &changed(|f| f.mode.no_broadcast = true),
        broadcast
    ));
    assert!(!accepts(&changed(|f| f.mode.no_unicast = true), MAC));
    assert!(!accepts(
        &changed(|f| f.mode.no_multicast = true),
        [1, 0, 0x5e, 0, 0, 1]
    ));
    assert!(accepts(
        &changed(|f| f.unicast = Table::new(vec![[2; 6]; 65])),
        other
    ));
    assert!(!accepts(
        &changed(|f| f.unicast = Table::new(vec![[4; 6]; 64])),
        other
    ));
    assert!(!f.accepts(&MAC[..5]));
}

#[test]
fn filter_knows_vlans() {
    let mut f = filter();
    let mut bits = Box::new([0; 64]);
    bits[1] = 1 << 3;
    f.vlans = Some(bits);
    let mut tagged = frame(MAC, 60, 0);
    for (tag, wanted) in [
        ([0, 67], true),
        ([0xf0, 67], true),
        ([0, 66], false),
        ([0xf, 0xff], false),
    ] {
        tagged[12..16].copy_from_slice(&[0x81, 0, tag[0], tag[1]]);
        assert_eq!(f.accepts(&tagged[..18]), wanted, "{tag:?}");
    }
    assert!(f.accepts(&frame(MAC, 60, 0)));
}

#[test]
fn driver_sets_filters() {
    for ring in RINGS {
        let (mut harness, peer) = activated("", tap_like(1), ring);
        let mut control = harness.start(2);
        let mut rx = Receiver::new(harness.start(0), 64, 1600);
        let other = [2, 0, 0, 0, 0, 5];
        let offer = |rx: &mut Receiver, wanted: &[[u8; 6]]| {
            // Our own address comes last, so that whatever passed came before.
            for to in [[1, 0, 0x5e, 0, 0, 7], other, MAC] {
                peer.send(0, &[header(0), frame(to, 100, 0)].concat());
            }
            for to in wanted {
                assert_eq!(rx.frame().1, frame(*to, 100, 0));
            }
            rx.fill(wanted.len());
        };
        offer(&mut rx, &[[1, 0, 0x5e, 0, 0, 7], other, MAC]);
        assert_eq!(control.request(&[&[0, 0], &[0]], &[1]), OK);
        offer(&mut rx, &[MAC]);
        assert_eq!(control.request(&[&[0, 2], &[1]], &[1]), OK);
        offer(&mut rx, &[other, MAC]);
        assert_eq!(control.request(&[&[0, 2], &[0]], &[1]), OK);
        let tables = table(&[other], &[[1, 0, 0x5e, 0, 0, 7]]);
        assert_eq!(control.request(&[&[1, 0], &tables], &[1]), OK);
        offer(&mut rx, &[[1, 0, 0x5e, 0, 0, 7], other, MAC]);
        // Another address of the card.
        assert_eq!(control.request(&[&[1, 0], &table(&[], &[])], &[1]), OK);
        assert_eq!(control.request(&[&[1, 1], &other], &[1]), OK);
        assert_eq!(harness.device.handle().mac(), Mac(other));
        let mut mac = [0; 6];
        harness.device.config_read(0, &mut mac);
        assert_eq!(mac, other);
        peer.send(0, &[header(0), frame(MAC, 100, 0)].concat());
        peer.send(0, &[header(0), frame(other, 100, 0)].concat());
        assert_eq!(rx.frame().1, frame(other, 100, 0));
        // Tagged frames come only for known VLANs.
        let mut tagged = frame(other, 100, 0);
        tagged[12..16].copy_from_slice(&[0x81, 0, 0, 9]);
        peer.send(0, &[header(0), tagged.clone()].concat());
        rx.nothing();
        assert_eq!(control.request(&[&[2, 0], &[9, 0]], &[1]), OK);
        peer.send(0, &[header(0), tagged.clone()].concat());
        assert_eq!(rx.frame().1, tagged);
        assert_eq!(control.request(&[&[2, 1], &[9, 0]], &[1]), OK);
        peer.send(0, &[header(0), tagged.clone()].concat());
        rx.nothing();
    }
}

#[test]
fn wrong_commands_are_refused() {
    let (mut harness, _peer) = activated("", tap_like(2), RING_EVENT_IDX);
    let mut control = harness.start(4);
    let huge = vec![0; 100 << 10];
    for (command, data) in [
        ([9, 0], &[0][..]),
        ([0, 6], &[0]),
        ([0, 0], &[]),
        ([0, 0], &[0, 0]),
        ([1, 0], &[1, 0, 0, 0]),
        ([1, 0], &[0xff; 12]),
        ([1, 0], &[0; 9]),
        ([1, 1], &[0; 5]),
        ([2, 0], &[0, 0x10]),
        ([2, 0], &[0]),
        ([4, 0], &[0, 0]),
        ([4, 0], &[3, 0]),
        ([4, 1], &[0; 8]),
        ([5, 0], &[0xff; 8]),
        ([5, 0], &[0; 4]),
        ([1, 0], &huge),
    ] {
        let whole = [&command, data].concat();
        let answer = control.request(&[&whole], &[1]);
        assert_eq!(answer, ERR, "{command:?}");
    }
    assert!(!harness.trouble.is_set());
    // Without room for an answer there is none.
    control.driver.send(&[&[0, 0], &[0]], &[]);
    control.kick();
    wait_for_trouble(&harness);
    harness.stop(control);
}

#[test]
fn driver_uses_several_pairs() {
    let (net, peer) = card(",queues=3", tap_like(3), vec![thread(0), thread(0)]);
    let mut harness = DeviceHarness::new(net, &Guest::new(32 << 20), RING_EVENT_IDX);
    let mut pairs: Vec<(Receiver, HarnessQueue)> = (0..3)
        .map(|pair| {
            let rx = Receiver::new(harness.start(2 * pair), 64, 1600);
            (rx, harness.start(2 * pair + 1))
        })
        .collect();
    let mut control = harness.start(6);
    assert_eq!(peer.asked().queue_pairs, 1);
    peer.send(1, &[header(0), frame(MAC, 100, 1)].concat());
    pairs[1].0.nothing();
    assert_eq!(control.request(&[&[4, 0], &[3, 0]], &[1]), OK);
    assert_eq!(peer.asked().queue_pairs, 3);
    for (i, (rx, tx)) in pairs.iter_mut().enumerate() {
        if i != 1 {
            peer.send(i, &[header(0), frame(MAC, 100, i)].concat());
        }
        assert_eq!(rx.frame().1, frame(MAC, 100, i));
        tx.driver.send(&[&header(0), &frame(MAC, 70, i)], &[]);
        tx.kick();
        assert_eq!(peer.receive(i)[VNET_HEADER..], frame(MAC, 70, i));
    }
    assert_eq!(control.request(&[&[4, 0], &[1, 0]], &[1]), OK);
    assert_eq!(peer.asked().queue_pairs, 1);
    peer.send(2, &[header(0), frame(MAC, 100, 1)].concat());
    pairs[2].0.nothing();
    harness.stop(control);
    harness.device.reset();
}

#[test]
fn control_queue_is_the_third_for_a_driver_of_one_pair() {
    let (net, _peer) = card(",queues=4", tap_like(4), vec![thread(0)]);
    let features = net.features() & !feature::MQ | VERSION_1;
    let mut harness = DeviceHarness::with_features(net, &Guest::new(16 << 20), features);
    let mut control = harness.start(2);
    assert_eq!(control.request(&[&[0, 0], &[0]], &[1]), OK);
    assert_eq!(control.request(&[&[4, 0], &[2, 0]], &[1]), ERR);
    let (_, state) = harness.stop(control);
    assert_eq!(state.next_avail, 2);
}

#[test]
fn offloads_are_what_was_negotiated_until_the_driver_wants_less() {
    let (mut harness, peer) = activated("", tap_like(1), 0);
    assert_eq!(peer.asked().offloads, ALL);
    let mut control = harness.start(2);
    let set = |bits: u64| bits.to_le_bytes();
    let less = feature::GUEST_CSUM | feature::GUEST_TSO4;
    assert_eq!(control.request(&[&[5, 0], &set(less)], &[1]), OK);
    let csum_and_tso4 = Offloads {
        csum: true,
        tso4: true,
        ..Offloads::default()
    };
    assert_eq!(peer.asked().offloads, csum_and_tso4);
    // Nothing goes without checksums.
    assert_eq!(
        control.request(&[&[5, 0], &set(feature::GUEST_TSO6)], &[1]),
        OK
    );
    assert_eq!(peer.asked().offloads, Offloads::default());
    assert_eq!(control.request(&[&[5, 0], &set(feature::CSUM)], &[1]), ERR);
    harness.stop(control);
    harness.device.reset();
    let features = VERSION_1 | less;
    let harness = DeviceHarness::with_features(harness.device, &harness.guest, features);
    assert_eq!(peer.asked().offloads, csum_and_tso4);
    let mut device = harness.device;
    device.reset();
    assert_eq!(peer.asked().offloads, Offloads::default());
}

#[test]
fn driver_announces_itself_when_asked() {
    let (mut harness, _peer) = activated("", tap_like(1), 0);
    let handle = harness.device.handle();
    let status = |net: &Net| {
        let mut status = [0; 2];
        net.config_read(6, &mut status);
        status[0]
    };
    assert!(handle.announce());
    assert_eq!(harness.config_interrupts.count(), 1);
    assert_eq!(status(&harness.device), 3);
    let mut control = harness.start(2);
    assert_eq!(control.request(&[&[3, 0]], &[1]), OK);
    assert_eq!(status(&harness.device), 1);
    harness.stop(control);
    harness.device.reset();
    assert!(!handle.announce());
    assert_eq!(status(&harness.device), 1);
}

#[test]
fn state_goes_to_another_card() {
    let (mut harness, _peer) = activated(",queues=2", tap_like(2), 0);
    let mut control = harness.start(4);
    let other = [2, 0, 0, 0, 0, 5];
    for (command, data) in [
        ([0, 0], &[0][..]),
        ([1, 1], &other),
        ([2, 0], &[200, 1]),
        ([4, 0], &[2, 0]),
        ([5, 0], &[2, 0, 0, 0, 0, 0, 0, 0]),
        ([1, 0], &table(&[[2; 6]], &[[3; 6]])),
    ] {
        assert_eq!(control.request(&[&command, data], &[1]), OK, "{command:?}");
    }
    harness.device.handle().set_link(false);
    harness.stop(control);
    let saved = harness.device.save().unwrap();
    assert!(saved.to_text().contains("guest_offloads"));

    let (mut next, peer) = card(
        ",queues=2,mac=52:54:00:00:00:99",
        tap_like(2),
        vec![thread(0)],
    );
    next.restore(saved.clone()).unwrap();
    assert_eq!(next.save().unwrap(), saved);
    let features = harness.features;
    let next = DeviceHarness::with_features(next, &harness.guest, features);
    assert_eq!(peer.asked().queue_pairs, 2);
    let csum = Offloads {
        csum: true,
        ..Offloads::default()
    };
    assert_eq!(peer.asked().offloads, csum);
    assert_eq!(next.device.handle().mac(), Mac(other));
    assert!(!next.device.handle().is_link_up());
    // A reset forgets what the driver set, but not the cable.
    let mut device = next.device;
    device.reset();
    assert_eq!(device.handle().mac(), Mac([0x52, 0x54, 0, 0, 0, 0x99]));
    assert!(!device.handle().is_link_up());
    assert_eq!(peer.asked().queue_pairs, 1);

    let (mut single, _peer) = card("", tap_like(1), vec![thread(0)]);
    let error = single.restore(saved).unwrap_err().to_string();
    assert!(
        error.contains("2 pairs of queues, this one has 1"),
        "{error}"
    );
    let mut wrong = NetState {
        max_queue_pairs: 1,
        settings: single.shared.settings().clone(),
    };
    wrong.settings.vlans.insert(4096);
    let payload = Payload::encode(KIND, VERSION, &wrong).unwrap();
    assert!(single.restore(payload).is_err());
}

fn model() -> Model {
    Model {
        mac: MAC,
        mtu: None,
        speed: None,
        queue_pairs: 3,
        queue_size: 256,
        offloads: ALL,
    }
}

proptest! {
    #[test]
    fn any_command_leaves_possible_settings(
        commands in prop::collection::vec(
            (0..7u8, 0..7u8, prop_oneof![
                prop::collection::vec(any::<u8>(), 0..20),
                (0..100usize).prop_map(|n| table(&vec![[2; 6]; n], &vec![[3; 6]; n / 2])),
                (0..5000u16).prop_map(|n| n.to_le_bytes().to_vec()),
            ]),
            0..30,
        ),
    ) {
        let model = model();
        let mut settings = Settings::new(&model);
        let features = model.features();
        for (class, command, data) in commands {
            if let Some((next, effect)) = settings.command(features, 3, [class, command], &data) {
                prop_assert!(effect == Effect::QueuePairs || next.queue_pairs == settings.queue_pairs);
                settings = next;
            }
            prop_assert_eq!(settings.check(&model), Ok(()));
            settings.filter(features).accepts(&data);
            prop_assert!(!settings.offloads(0).csum);
        }
        let bytes = Payload::encode(KIND, VERSION, &settings).unwrap();
        prop_assert_eq!(bytes.decode::<Settings>(KIND, VERSION).unwrap(), settings);
    }
}

#[test]
fn nothing_is_commanded_without_its_feature() {
    let model = model();
    let settings = Settings::new(&model);
    for class in 0..6 {
        for command in 0..6 {
            for len in 0..9 {
                assert_eq!(
                    settings.command(0, 3, [class, command], &vec![0; len]),
                    None
                );
            }
        }
    }
}
