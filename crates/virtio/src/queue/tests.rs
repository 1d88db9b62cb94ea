use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use memory::{GuestAddressSpace, WriteListener};
use proptest::prelude::*;

use super::*;
use crate::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, VERSION_1};
use crate::testing::{Buffer, DriverQueue, Guest};

const EVERY: [u64; 4] = [
    0,
    RING_EVENT_IDX | RING_INDIRECT_DESC,
    RING_PACKED,
    RING_PACKED | RING_EVENT_IDX | RING_INDIRECT_DESC,
];

fn pair(guest: &Guest, size: u16, features: u64) -> (DriverQueue, Queue) {
    let driver = DriverQueue::new(guest, size, VERSION_1 | features);
    let queue = Queue::new(driver.config()).unwrap();
    (driver, queue)
}

#[test]
fn a_chain_goes_there_and_back() {
    for features in EVERY {
        let guest = Guest::new(1 << 20);
        let ram = guest.memory().memory();
        let (mut driver, mut queue) = pair(&guest, 8, features);
        assert!(queue.pop(&ram).unwrap().is_none());
        // Often enough for several laps.
        for round in 0..50u32 {
            let text = round.to_string();
            let (id, answer) = driver.send(&[b"question ", text.as_bytes()], &[4, 16]);
            let chain = queue.pop(&ram).unwrap().unwrap();
            let mut reader = chain.reader(&ram);
            let mut bytes = vec![0; chain.readable_len() as usize];
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, format!("question {round}").as_bytes());
            let mut writer = chain.writer(&ram);
            writer.write_all(b"an answer").unwrap();
            queue.add_used(&ram, chain, 9).unwrap();
            assert_eq!(driver.collect(), Some((id, 9)));
            assert_eq!(guest.read(answer[0].address, 4), b"an a");
            assert_eq!(guest.read(answer[1].address, 5), b"nswer");
        }
        assert_eq!(queue.save().in_flight, 0);
    }
}

#[test]
fn an_undone_pop_pops_again() {
    for features in EVERY {
        let guest = Guest::new(1 << 20);
        let ram = guest.memory().memory();
        let (mut driver, mut queue) = pair(&guest, 4, features);
        for _ in 0..9 {
            let (a, _) = driver.send(&[b"a", b"b", b"c"], &[]);
            let (b, _) = driver.send(&[b"d"], &[]);
            let first = queue.pop(&ram).unwrap().unwrap();
            let second = queue.pop(&ram).unwrap().unwrap();
            queue.undo_pop(second);
            queue.undo_pop(first);
            assert_eq!(queue.save().in_flight, 0);
            for id in [a, b] {
                let chain = queue.pop(&ram).unwrap().unwrap();
                assert_eq!(chain.id(), id);
                queue.add_used(&ram, chain, 0).unwrap();
                assert_eq!(driver.collect(), Some((id, 0)));
            }
        }
    }
}

#[test]
fn pushed_chains_are_seen_together() {
    for features in EVERY {
        let guest = Guest::new(1 << 20);
        let ram = guest.memory().memory();
        let (mut driver, mut queue) = pair(&guest, 4, features);
        for _ in 0..7 {
            let ids = [1, 2, 3].map(|_| driver.send(&[], &[8]).0);
            for _ in ids {
                let chain = queue.pop(&ram).unwrap().unwrap();
                queue.push_used(&ram, chain, 8).unwrap();
                assert!(!driver.used_available());
            }
            queue.publish_used(&ram).unwrap();
            assert_eq!(ids.map(|_| driver.collect().unwrap().0), ids);
            assert!(driver.collect().is_none());
        }
    }
}

#[test]
fn the_driver_is_told_when_it_asks() {
    for features in EVERY {
        let guest = Guest::new(1 << 20);
        let ram = guest.memory().memory();
        let (mut driver, mut queue) = pair(&guest, 4, features);
        assert!(!queue.needs_notification(&ram).unwrap(), "nothing was used");
        // Nothing is known yet: the first one is told in any case.
        for round in 0..20 {
            let wanted = round == 0 || round % 3 == 1;
            if wanted {
                assert!(!driver.enable_interrupts());
            } else {
                driver.disable_interrupts();
            }
            driver.send(&[b"x"], &[]);
            let chain = queue.pop(&ram).unwrap().unwrap();
            queue.add_used(&ram, chain, 0).unwrap();
            assert_eq!(
                queue.needs_notification(&ram).unwrap(),
                wanted,
                "{features:x} {round}"
            );
            assert!(!queue.needs_notification(&ram).unwrap(), "only once");
            driver.collect().unwrap();
        }
    }
}

#[test]
fn an_event_index_ahead_is_told_when_it_is_reached() {
    for features in [RING_EVENT_IDX, RING_EVENT_IDX | RING_PACKED] {
        let guest = Guest::new(1 << 20);
        let ram = guest.memory().memory();
        let (mut driver, mut queue) = pair(&guest, 8, features);
        let mut use_one = |driver: &mut DriverQueue| {
            driver.send(&[b"x"], &[]);
            let chain = queue.pop(&ram).unwrap().unwrap();
            queue.add_used(&ram, chain, 0).unwrap();
            queue.needs_notification(&ram).unwrap()
        };
        assert!(use_one(&mut driver));
        for _ in 0..5 {
            while driver.collect().is_some() {}
            driver.enable_interrupts();
            // The wish is for the next one; it is not repeated for those behind it.
            assert!(use_one(&mut driver));
            for _ in 0..5 {
                assert!(!use_one(&mut driver));
            }
        }
    }
}

#[test]
fn the_device_is_kicked_when_it_asks() {
    for features in EVERY {
        let guest = Guest::new(1 << 20);
        let ram = guest.memory().memory();
        let (mut driver, mut queue) = pair(&guest, 4, features);
        for _ in 0..20 {
            assert!(!queue.enable_notification(&ram).unwrap());
            driver.send(&[b"x"], &[]);
            assert!(driver.needs_kick());
            queue.disable_notification(&ram).unwrap();
            driver.send(&[b"x"], &[]);
            assert!(!driver.needs_kick());
            for _ in 0..2 {
                let chain = queue.pop(&ram).unwrap().unwrap();
                queue.add_used(&ram, chain, 0).unwrap();
                driver.collect().unwrap();
            }
            driver.send(&[b"x"], &[]);
            assert!(queue.enable_notification(&ram).unwrap(), "one came before");
            let chain = queue.pop(&ram).unwrap().unwrap();
            queue.add_used(&ram, chain, 0).unwrap();
            driver.collect().unwrap();
        }
    }
}

fn popped(features: u64, chain: &[Buffer]) -> Result<Option<Chain>, QueueError> {
    let guest = Guest::new(1 << 20);
    let ram = guest.memory().memory();
    let (mut driver, mut queue) = pair(&guest, 4, features);
    if features & RING_INDIRECT_DESC != 0 {
        driver.offer_indirect(chain).unwrap();
    } else {
        driver.offer(chain).unwrap();
    }
    let first = queue.pop(&ram);
    if first.is_err() {
        assert!(queue.pop(&ram).is_err(), "an error stays");
        assert_eq!(queue.save(), QueueState::default());
    }
    first
}

#[test]
fn chains_without_sense_are_refused() {
    let r = Buffer::readable;
    let w = Buffer::writable;
    for features in EVERY {
        let bad = |chain: &[Buffer]| popped(features, chain).unwrap_err();
        assert!(matches!(
            bad(&[w(0x1000, 1), r(0x2000, 1)]),
            QueueError::Order
        ));
        assert!(matches!(
            bad(&[r(0x1000, 1), w(0x2000, 0)]),
            QueueError::Empty
        ));
        for (address, len) in [
            (1 << 20, 1),
            ((1 << 20) - 1, 2),
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
        ] {
            assert!(matches!(bad(&[r(address, len)]), QueueError::NotRam { .. }));
        }
    }
    for features in [RING_INDIRECT_DESC, RING_INDIRECT_DESC | RING_PACKED] {
        let five = [r(0x1000, 1); 5];
        assert!(matches!(
            popped(features, &five).unwrap_err(),
            QueueError::TooLong(4)
        ));
        assert!(popped(features, &five[1..]).unwrap().is_some());
    }
}

/// Writes one raw descriptor at the ring's start and makes it available.
fn raw(features: u64, address: u64, len: u32, flags: u16, table: &[u8]) -> QueueError {
    let guest = Guest::new(1 << 20);
    let ram = guest.memory().memory();
    let (mut driver, mut queue) = pair(&guest, 4, features);
    guest.write(0x8000, table);
    // A sound chain takes care of the index or the wrap counter; then its descriptor changes.
    driver.send(&[b"x"], &[]);
    let packed = features & RING_PACKED != 0;
    let mut bytes = [address.to_le_bytes().as_slice(), &len.to_le_bytes()].concat();
    if packed {
        bytes.extend([0, 0]);
        bytes.extend((flags | 1 << 7).to_le_bytes());
    } else {
        bytes.extend(flags.to_le_bytes());
        // A link to itself.
        bytes.extend([0, 0]);
    }
    guest.write(driver.config().desc_addr, &bytes);
    queue.pop(&ram).unwrap_err()
}

#[test]
fn indirect_tables_without_sense_are_refused() {
    let entry = |flags: u16, packed: bool| {
        let mut bytes = 0x1000u64.to_le_bytes().to_vec();
        bytes.extend(1u32.to_le_bytes());
        if packed {
            bytes.extend([0, 0]);
        }
        bytes.extend(flags.to_le_bytes());
        bytes.resize(16, 0);
        bytes
    };
    for packed in [0, RING_PACKED] {
        let on = RING_INDIRECT_DESC | packed;
        let is_packed = packed != 0;
        let plain = entry(0, is_packed);
        let off = raw(packed, 0x8000, 16, 4, &plain);
        assert!(matches!(off, QueueError::Indirect(_)), "{off}");
        let linked = raw(on, 0x8000, 16, 5, &plain);
        assert!(matches!(linked, QueueError::Indirect(_)), "{linked}");
        let nested = raw(on, 0x8000, 16, 4, &entry(4, is_packed));
        assert!(matches!(nested, QueueError::Indirect(_)), "{nested}");
        for len in [0, 15, 17, 1 << 20, u32::MAX] {
            let odd = raw(on, 0x8000, len, 4, &plain);
            assert!(matches!(odd, QueueError::Table(_)), "{odd}");
        }
        let outside = raw(on, 1 << 20, 16, 4, &plain);
        assert!(matches!(outside, QueueError::NotRam { .. }), "{outside}");
    }
    let looped = raw(RING_INDIRECT_DESC, 0x8000, 16, 4, &entry(1, false));
    assert!(matches!(looped, QueueError::TooLong(4)), "{looped}");
    let looped = raw(0, 0x1000, 1, 1, &[]);
    assert!(matches!(looped, QueueError::TooLong(4)), "{looped}");
    let mut beyond = entry(1, false);
    beyond[14] = 1;
    let beyond = raw(RING_INDIRECT_DESC, 0x8000, 16, 4, &beyond);
    assert!(matches!(beyond, QueueError::Index { .. }), "{beyond}");
}

#[test]
fn an_indirect_table_may_be_unaligned() {
    for packed in [0, RING_PACKED] {
        let guest = Guest::new(1 << 20);
        let ram = guest.memory().memory();
        let (mut driver, mut queue) = pair(&guest, 4, RING_INDIRECT_DESC | packed);
        driver.offer_indirect(&[Buffer::readable(0x1000, 7), Buffer::writable(0x2000, 9)]);
        let at = driver.config().desc_addr;
        let table = u64::from_le_bytes(guest.read(at, 8).try_into().unwrap());
        let bytes = guest.read(table, 32);
        guest.write(0x3001, &bytes);
        guest.write(at, &0x3001u64.to_le_bytes());
        let chain = queue.pop(&ram).unwrap().unwrap();
        assert_eq!((chain.readable_len(), chain.writable_len()), (7, 9));
    }
}

#[test]
fn a_greedy_driver_is_stopped() {
    let guest = Guest::new(1 << 20);
    let ram = guest.memory().memory();
    let (mut driver, mut queue) = pair(&guest, 4, 0);
    driver.send(&[b"x"], &[]);
    let index = driver.config().driver_addr + 2;
    guest.write(index, &5u16.to_le_bytes());
    assert!(matches!(
        queue.pop(&ram),
        Err(QueueError::AvailableIndex { .. })
    ));
    // The same head again and again, without waiting for its return.
    let mut popped = Vec::new();
    for round in 1..=4u16 {
        guest.write(index, &round.to_le_bytes());
        popped.push(queue.pop(&ram).unwrap().unwrap());
    }
    guest.write(index, &5u16.to_le_bytes());
    assert!(matches!(queue.pop(&ram), Err(QueueError::InFlight(4))));
    queue.add_used(&ram, popped.remove(0), 0).unwrap();
    assert!(queue.pop(&ram).unwrap().is_some());
}

#[test]
fn impossible_queues_are_refused() {
    let guest = Guest::new(1 << 20);
    let good = DriverQueue::new(&guest, 4, 0).config();
    let size = |size, features| {
        Queue::new(QueueConfig {
            size,
            features,
            ..good
        })
    };
    for bad in [0, 3, 32769, u16::MAX] {
        assert!(matches!(size(bad, 0), Err(QueueError::Size(_))));
    }
    assert!(size(3, RING_PACKED).is_ok() && size(MAX_SIZE, 0).is_ok());
    for (desc, driver, device) in [(8, 0, 0), (0, 1, 0), (0, 0, 2)] {
        let moved = QueueConfig {
            desc_addr: good.desc_addr + desc,
            driver_addr: good.driver_addr + driver,
            device_addr: good.device_addr + device,
            ..good
        };
        assert!(matches!(
            Queue::new(moved),
            Err(QueueError::Unaligned { .. })
        ));
    }
    // One chain is available.
    guest.write(good.driver_addr + 2, &1u16.to_le_bytes());
    for area in 0..3 {
        let mut outside = good;
        *[
            &mut outside.desc_addr,
            &mut outside.driver_addr,
            &mut outside.device_addr,
        ][area] = 1 << 20;
        let mut queue = Queue::new(outside).unwrap();
        let ram = guest.memory().memory();
        let any = [
            queue.pop(&ram).map(|_| ()),
            queue.enable_notification(&ram).map(|_| ()),
        ];
        let outside = any.map(|r| matches!(r, Err(QueueError::NotRam { .. })));
        assert_eq!(outside, [area < 2, area > 0]);
    }
    let state = QueueState {
        next_used: 4,
        ..QueueState::default()
    };
    let packed = QueueConfig {
        features: RING_PACKED,
        ..good
    };
    assert!(Queue::restore(packed, state).is_err());
    assert!(Queue::restore(good, state).is_ok());
    let state = QueueState {
        in_flight: 5,
        ..QueueState::default()
    };
    assert!(Queue::restore(good, state).is_err());
}

#[test]
fn a_buffer_over_two_regions_is_cut() {
    let options = memory::Options {
        huge: memory::HugePages::Never,
        ..Default::default()
    };
    let ranges = [(0, 0x10000), (0x10000, 0x10000)];
    let guest = Guest::with_memory(memory::allocate(&ranges, &options).unwrap());
    let ram = guest.memory().memory();
    let (mut driver, mut queue) = pair(&guest, 4, 0);
    guest.write(0xfff0, &[7; 32]);
    driver.offer(&[Buffer::readable(0xfff0, 32)]).unwrap();
    let chain = queue.pop(&ram).unwrap().unwrap();
    assert_eq!(chain.readable().len(), 2);
    let mut bytes = [0; 32];
    chain.reader(&ram).read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [7; 32]);
}

/// What a test of the model does next.
#[derive(Debug, Clone)]
enum Step {
    Offer {
        readable: u8,
        writable: u8,
        indirect: bool,
    },
    Pop,
    Use {
        which: usize,
        written: u32,
    },
    Push {
        which: usize,
        written: u32,
    },
    Publish,
    Undo,
    Collect,
    Notify(bool),
    SaveRestore,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4u8, 0..4u8, any::<bool>()).prop_map(|(readable, writable, indirect)| Step::Offer {
            readable,
            writable,
            indirect
        }),
        4 => Just(Step::Pop),
        3 => (any::<usize>(), any::<u32>()).prop_map(|(which, written)| Step::Use { which, written }),
        1 => (any::<usize>(), any::<u32>()).prop_map(|(which, written)| Step::Push { which, written }),
        1 => Just(Step::Publish),
        1 => Just(Step::Undo),
        4 => Just(Step::Collect),
        1 => any::<bool>().prop_map(Step::Notify),
        1 => Just(Step::SaveRestore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Device and driver agree with a model that has a list for each stage of a chain's life.
    #[test]
    fn device_and_driver_agree(
        size in 0..4u32,
        features in 0..EVERY.len(),
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let features = EVERY[features];
        let guest = Guest::new(4 << 20);
        let ram = guest.memory().memory();
        let (mut driver, mut queue) = pair(&guest, 1 << size, features);
        let mut offered: VecDeque<(u16, Vec<Buffer>)> = VecDeque::new();
        let mut popped: Vec<(Chain, Vec<Buffer>)> = Vec::new();
        let mut pushed: VecDeque<(u16, u32)> = VecDeque::new();
        let mut used: VecDeque<(u16, u32)> = VecDeque::new();
        let mut undoable = false;
        for step in steps {
            let undo = std::mem::take(&mut undoable);
            match step {
                Step::Offer { readable, writable, indirect } => {
                    let mut chain: Vec<Buffer> = (0..readable)
                        .map(|i| Buffer::readable(guest.alloc(64, 1), u32::from(i) + 1))
                        .collect();
                    chain.extend((0..writable)
                        .map(|i| Buffer::writable(guest.alloc(64, 1), u32::from(i) + 9)));
                    if chain.is_empty() || chain.len() > 1 << size {
                        continue;
                    }
                    let id = if indirect && features & RING_INDIRECT_DESC != 0 {
                        driver.offer_indirect(&chain)
                    } else {
                        driver.offer(&chain)
                    };
                    if let Some(id) = id {
                        offered.push_back((id, chain));
                    }
                }
                Step::Pop => {
                    prop_assert_eq!(queue.has_available(&ram).unwrap(), !offered.is_empty());
                    match (queue.pop(&ram).unwrap(), offered.pop_front()) {
                        (None, None) => {}
                        (Some(chain), Some((id, buffers))) => {
                            prop_assert_eq!(chain.id(), id);
                            let mut got: Vec<Buffer> = Vec::new();
                            got.extend(chain.readable().iter().map(|s| Buffer::readable(s.address, s.len)));
                            got.extend(chain.writable().iter().map(|s| Buffer::writable(s.address, s.len)));
                            prop_assert_eq!(&got, &buffers);
                            popped.push((chain, buffers));
                            undoable = true;
                        }
                        (device, model) => prop_assert!(false, "{device:?} {model:?}"),
                    }
                }
                Step::Use { which, written } if !popped.is_empty() => {
                    let (chain, _) = popped.swap_remove(which % popped.len());
                    used.extend(pushed.drain(..));
                    used.push_back((chain.id(), written));
                    queue.add_used(&ram, chain, written).unwrap();
                }
                Step::Push { which, written } if !popped.is_empty() => {
                    let (chain, _) = popped.swap_remove(which % popped.len());
                    pushed.push_back((chain.id(), written));
                    queue.push_used(&ram, chain, written).unwrap();
                }
                Step::Publish => {
                    queue.publish_used(&ram).unwrap();
                    used.extend(pushed.drain(..));
                }
                Step::Undo if undo => {
                    let (chain, buffers) = popped.pop().unwrap();
                    offered.push_front((chain.id(), buffers));
                    queue.undo_pop(chain);
                }
                Step::Collect => {
                    prop_assert_eq!(driver.used_available(), !used.is_empty());
                    prop_assert_eq!(driver.collect(), used.pop_front());
                }
                Step::Notify(on) => {
                    if on {
                        prop_assert_eq!(queue.enable_notification(&ram).unwrap(), !offered.is_empty());
                    } else {
                        queue.disable_notification(&ram).unwrap();
                    }
                }
                Step::SaveRestore => {
                    queue.publish_used(&ram).unwrap();
                    used.extend(pushed.drain(..));
                    let state = queue.save();
                    queue = Queue::restore(driver.config(), state).unwrap();
                    prop_assert_eq!(queue.save(), state);
                }
                _ => {}
            }
        }
    }

    /// No interrupt that the driver waits for is lost: whenever it sleeps, something is told
    /// before it could miss a chain.
    #[test]
    fn no_wake_up_is_lost(features in 0..EVERY.len(), batches in proptest::collection::vec((1..4u8, any::<bool>()), 1..60)) {
        let guest = Guest::new(1 << 20);
        let ram = guest.memory().memory();
        let (mut driver, mut queue) = pair(&guest, 4, EVERY[features]);
        let mut asleep = false;
        for (count, sleep) in batches {
            if !asleep {
                while driver.collect().is_some() {}
                if sleep {
                    asleep = !driver.enable_interrupts();
                } else {
                    driver.disable_interrupts();
                }
            }
            let offered = (0..count).take_while(|_| driver.offer(&[Buffer::readable(0x1000, 1)]).is_some()).count();
            for _ in 0..offered {
                let chain = queue.pop(&ram).unwrap().unwrap();
                queue.push_used(&ram, chain, 0).unwrap();
            }
            queue.publish_used(&ram).unwrap();
            let told = queue.needs_notification(&ram).unwrap();
            prop_assert!(!asleep || told || offered == 0);
            asleep &= !told;
        }
    }

    /// Rings full of garbage end in an error or in chains that are within RAM, never in a panic
    /// or an endless loop.
    #[test]
    fn garbage_is_survived(
        size in 1..9u16,
        features in 0..EVERY.len(),
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), 0..16u8, any::<u8>()], 0x400),
        state: (u16, u16, bool, bool, u16),
    ) {
        let guest = Guest::new(0x10000);
        let ram = guest.memory().memory();
        let config = QueueConfig {
            size,
            desc_addr: 0,
            driver_addr: 0x200,
            device_addr: 0x300,
            features: EVERY[features] | VERSION_1,
        };
        let (next_avail, next_used, avail_wrap, used_wrap, in_flight) = state;
        let state = QueueState {
            next_avail: next_avail % size,
            next_used: next_used % size,
            avail_wrap,
            used_wrap,
            in_flight: in_flight % size,
        };
        let Ok(mut queue) = Queue::restore(config, state) else {
            return Ok(());
        };
        guest.write(0, &bytes);
        for round in 0..20u32 {
            match queue.pop(&ram) {
                Ok(Some(chain)) => {
                    let total: u64 = chain.readable().iter().chain(chain.writable()).map(|s| u64::from(s.len)).sum();
                    prop_assert_eq!(total, u64::from(chain.readable_len()) + u64::from(chain.writable_len()));
                    for slice in chain.reader(&ram).slices().chain(chain.writer(&ram).slices()) {
                        prop_assert!(slice.is_ok());
                    }
                    queue.add_used(&ram, chain, round).unwrap();
                    let _ = queue.needs_notification(&ram);
                }
                Ok(None) => break,
                Err(_) => break,
            }
        }
        let _ = queue.disable_notification(&ram);
        let _ = queue.enable_notification(&ram);
        let _ = queue.save();
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<(u64, u64)>>);

impl WriteListener for Heard {
    fn written(&self, address: u64, len: u64) {
        self.0.lock().unwrap().push((address, len));
    }
}

#[test]
fn who_watches_memory_hears_of_rings_and_of_what_chains_received() {
    for features in EVERY {
        let guest = Guest::new(1 << 20);
        let ram = guest.memory().memory();
        let (mut driver, mut queue) = pair(&guest, 8, features);
        let heard = Arc::new(Heard::default());
        let watch = memory::write_watch(&ram).unwrap();
        assert!(watch.listen(heard.clone()).is_ok());
        for page in 0..(1 << 20) / 4096 {
            watch.watch(page * 4096);
        }
        let told = |at: u64, len: u64| {
            let heard = heard.0.lock().unwrap();
            heard.iter().any(|&(a, l)| a <= at && at + len <= a + l)
        };
        let (_, answer) = driver.send(&[b"question"], &[4, 16]);
        let chain = queue.pop(&ram).unwrap().unwrap();
        assert!(heard.0.lock().unwrap().is_empty(), "nothing is written yet");
        // However the bytes get there: the kernel may have written them.
        queue.add_used(&ram, chain, 20).unwrap();
        for segment in answer {
            assert!(told(segment.address, segment.len.into()));
        }
        let config = driver.config();
        let (used, len) = if features & RING_PACKED != 0 {
            (config.desc_addr + 8, 8)
        } else {
            (config.device_addr + 2, 2)
        };
        assert!(told(used, len));
        heard.0.lock().unwrap().clear();
        queue.disable_notification(&ram).unwrap();
        queue.enable_notification(&ram).unwrap();
        assert!(!heard.0.lock().unwrap().is_empty());
    }
}
