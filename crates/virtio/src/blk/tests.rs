mod errors;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::spec::Spec;
use block::storage::memory::Memory;
use block::{Node, Operation, Raw};
use event::{IoThread, IoThreadConfig};
use proptest::prelude::*;

use super::*;
use crate::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use crate::testing::{Buffer, DeviceHarness, Guest, HarnessQueue};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const SIZE: usize = 64 << 10;
/// How long a test waits before it fails.
const PATIENCE: Duration = Duration::from_secs(10);

fn thread(poll: u64) -> IoThread {
    let mut config = IoThreadConfig::new("blk-test");
    config.poll_max = Duration::from_micros(poll);
    IoThread::spawn(config).unwrap()
}

fn guest() -> Guest {
    Guest::new(16 << 20)
}

fn device(properties: &str, node: Arc<dyn Node>) -> Blk {
    let spec = BlkSpec::parse(&format!("unused.img{properties}")).unwrap();
    Blk::new(&spec, node, vec![thread(0)], 1).unwrap()
}

/// A device over memory, activated.
fn memory_disk(properties: &str, read_only: bool) -> (DeviceHarness<Blk>, Memory) {
    let memory = Memory::new(SIZE, read_only);
    let node = Arc::new(Raw::new("disk".into(), memory.clone()));
    let device = device(properties, node);
    let ring = RING_EVENT_IDX | RING_INDIRECT_DESC;
    (DeviceHarness::new(device, &guest(), ring), memory)
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut segment = [0; 16];
    segment[..8].copy_from_slice(&sector.to_le_bytes());
    segment[8..12].copy_from_slice(&sectors.to_le_bytes());
    segment[12..].copy_from_slice(&flags.to_le_bytes());
    segment
}

/// Sends one request and returns data and status, whatever the device says it has written.
fn ask(queue: &mut HarnessQueue, header: [u8; 16], out: &[u8], len: u32) -> (Vec<u8>, u8, u32) {
    let guest = queue.driver.guest().clone();
    let mut chain = vec![Buffer::readable(guest.put(&header), 16)];
    if !out.is_empty() {
        chain.push(Buffer::readable(guest.put(out), out.len() as u32));
    }
    let data = guest.alloc(len as usize + 1, 16);
    if len != 0 {
        chain.push(Buffer::writable(data, len));
    }
    let status = guest.put(&[0xff]);
    chain.push(Buffer::writable(status, 1));
    let id = queue.driver.offer(&chain).unwrap();
    queue.kick();
    let (used, written) = queue.wait();
    assert_eq!(used, id);
    let answer = guest.read(status, 1)[0];
    (guest.read(data, len as usize), answer, written)
}

#[test]
fn reads_writes_flushes_and_identifies() {
    let (mut harness, memory) = memory_disk(",serial=ABC", false);
    let mut queue = harness.start(0);
    let data: Vec<u8> = (0..1024).map(|i| i as u8).collect();
    assert_eq!(ask(&mut queue, header(OUT, 3), &data, 0).1, OK);
    assert_eq!(memory.bytes()[1536..2560], data);
    let (read, status, written) = ask(&mut queue, header(IN, 3), &[], 1024);
    assert_eq!((status, written), (OK, 1025));
    assert_eq!(read, data);
    assert_eq!(ask(&mut queue, header(FLUSH, 0), &[], 0).1, OK);
    assert_eq!(memory.flushes(), 1);
    let (id, status, written) = ask(&mut queue, header(GET_ID, 0), &[], 20);
    assert_eq!((status, written), (OK, 21));
    assert_eq!(id, *b"ABC\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    // Less room than the whole serial number.
    assert_eq!(ask(&mut queue, header(GET_ID, 0), &[], 2).0, *b"AB");

    let totals = |operation| harness.device.handle().totals(operation);
    assert_eq!(totals(Operation::Write).bytes, 1024);
    assert_eq!(totals(Operation::Read).operations, 1);
    assert_eq!(totals(Operation::Flush).operations, 1);
}

#[test]
fn every_answer_that_is_waited_for_raises_an_interrupt() {
    let (mut harness, _memory) = memory_disk("", false);
    let mut queue = harness.start(0);
    for i in 1..5 {
        queue.driver.enable_interrupts();
        assert_eq!(ask(&mut queue, header(IN, 0), &[], 512).1, OK);
        let end = Instant::now() + PATIENCE;
        while queue.interrupts.count() < i {
            assert!(Instant::now() < end, "interrupt {i} is missing");
            std::thread::yield_now();
        }
    }
}

#[test]
fn discards_and_write_zeroes_take_several_segments() {
    let (mut harness, memory) = memory_disk("", false);
    memory.bytes().fill(7);
    let mut queue = harness.start(0);
    let two = [segment(1, 1, 0), segment(4, 2, 1)].concat();
    assert_eq!(ask(&mut queue, header(WRITE_ZEROES, 0), &two, 0).1, OK);
    {
        let bytes = memory.bytes();
        assert!(bytes[512..1024].iter().all(|b| *b == 0));
        assert!(bytes[2048..3072].iter().all(|b| *b == 0));
        assert_eq!(bytes.iter().filter(|b| **b == 0).count(), 1536);
    }
    assert_eq!(memory.discarded(), 1024);
    let two = [segment(0, 8, 0), segment(64, 64, 0)].concat();
    assert_eq!(ask(&mut queue, header(DISCARD, 0), &two, 0).1, OK);
    assert_eq!(memory.discarded(), 1024 + 72 * 512);
    for (data, status) in [
        (segment(0, 8, 1).to_vec(), UNSUPP),
        (segment(0, 8, 2).to_vec(), UNSUPP),
        (segment(127, 2, 0).to_vec(), IOERR),
        (segment(u64::MAX, 1, 0).to_vec(), IOERR),
        (segment(0, u32::MAX, 0).to_vec(), IOERR),
        (segment(0, 8, 0)[..15].to_vec(), IOERR),
        (segment(0, 1, 0).repeat(33), IOERR),
    ] {
        assert_eq!(ask(&mut queue, header(DISCARD, 0), &data, 0).1, status);
    }
    assert_eq!(memory.discarded(), 1024 + 72 * 512);
    assert!(harness.device.handle().totals(Operation::Unmap).invalid >= 7);
}

#[test]
fn impossible_requests_fail_and_the_queue_goes_on() {
    let (mut harness, memory) = memory_disk("", false);
    let mut queue = harness.start(0);
    let sector = vec![1; 512];
    let last = SIZE as u64 / 512;
    for (header, out, len, status) in [
        (header(IN, last), &[][..], 512, IOERR),
        (header(IN, last - 1), &[], 1024, IOERR),
        (header(IN, u64::MAX), &[], 512, IOERR),
        (header(IN, 0), &[], 511, IOERR),
        (header(IN, 0), &[], 0, IOERR),
        (header(OUT, last), &sector, 0, IOERR),
        (header(OUT, 0), &sector[..100], 0, IOERR),
        (header(99, 0), &[], 0, UNSUPP),
        (header(0x8000_0000, 0), &sector, 512, UNSUPP),
    ] {
        let (_, answer, written) = ask(&mut queue, header, out, len);
        assert_eq!(answer, status, "{header:?} {} {len}", out.len());
        assert_eq!(written, u32::from(len == 0));
    }
    assert!(memory.bytes().iter().all(|b| *b == 0));
    assert_eq!(ask(&mut queue, header(IN, 0), &[], 512).1, OK);
    assert!(!harness.trouble.is_set());
}

#[test]
fn the_hosts_failures_become_ioerr() {
    let (mut harness, memory) = memory_disk("", false);
    let mut queue = harness.start(0);
    for errno in [libc::EIO, libc::ENOSPC] {
        memory.fail_with(errno);
        assert_eq!(ask(&mut queue, header(OUT, 0), &[1; 512], 0).1, IOERR);
        assert_eq!(ask(&mut queue, header(FLUSH, 0), &[], 0).1, IOERR);
        let (_, status, written) = ask(&mut queue, header(IN, 0), &[], 512);
        assert_eq!((status, written), (IOERR, 0));
    }
    memory.fail_with(0);
    assert_eq!(ask(&mut queue, header(OUT, 0), &[1; 512], 0).1, OK);
    assert_eq!(harness.device.handle().totals(Operation::Write).failed, 2);
}

#[test]
fn read_only_disks_say_so_and_refuse() {
    let (mut harness, memory) = memory_disk("", true);
    assert_ne!(harness.features & feature::RO, 0);
    assert_eq!(
        harness.features & (feature::DISCARD | feature::WRITE_ZEROES),
        0
    );
    let mut queue = harness.start(0);
    assert_eq!(ask(&mut queue, header(OUT, 0), &[1; 512], 0).1, IOERR);
    let zero = segment(0, 1, 0);
    assert_eq!(ask(&mut queue, header(WRITE_ZEROES, 0), &zero, 0).1, UNSUPP);
    assert_eq!(ask(&mut queue, header(IN, 0), &[], 512).1, OK);
    assert!(memory.bytes().iter().all(|b| *b == 0));
}

#[test]
fn writes_are_stable_when_the_cache_is_off() {
    let stable = |device: Blk, memory: &Memory, features: u64, wce: Option<u8>| {
        let mut harness = DeviceHarness::with_features(device, &guest(), features);
        if let Some(wce) = wce {
            harness.device.config_write(32, &[wce]);
        }
        let mut queue = harness.start(0);
        assert_eq!(ask(&mut queue, header(OUT, 0), &[1; 512], 0).1, OK);
        harness.stop(queue);
        memory.stable_writes() == 1
    };
    let both = feature::FLUSH | feature::CONFIG_WCE | crate::features::VERSION_1;
    let none = crate::features::VERSION_1;
    for (properties, features, wce, expected) in [
        ("", both, None, false),
        ("", both, Some(0), true),
        ("", none, None, true),
        (",cache=writethrough", both, None, true),
        (",cache=writethrough", both, Some(1), false),
        (",write-cache=off", both, None, true),
        (",cache=directsync,write-cache=on", both, None, false),
    ] {
        let memory = Memory::new(SIZE, false);
        let node = Arc::new(Raw::new("disk".into(), memory.clone()));
        let device = device(properties, node);
        let case = format!("{properties} {features:#x} {wce:?}");
        assert_eq!(stable(device, &memory, features, wce), expected, "{case}");
    }
}

#[test]
fn scattered_headers_data_and_status_are_one_request() {
    for indirect in [false, true] {
        let (mut harness, memory) = memory_disk("", false);
        let mut queue = harness.start(0);
        let guest = harness.guest.clone();
        let header = header(OUT, 1);
        let data: Vec<u8> = (0..1024).map(|i| (i / 3) as u8).collect();
        // The header in two pieces, the second of which also starts the data.
        let mixed = [&header[10..], &data[..5]].concat();
        let readable = [&header[..10], &mixed, &data[5..600], &data[600..]];
        let mut chain: Vec<Buffer> = readable
            .iter()
            .map(|bytes| Buffer::readable(guest.put(bytes), bytes.len() as u32))
            .collect();
        let status = guest.put(&[0xff]);
        chain.push(Buffer::writable(status, 1));
        let offered = match indirect {
            true => queue.driver.offer_indirect(&chain),
            false => queue.driver.offer(&chain),
        };
        offered.unwrap();
        queue.kick();
        assert_eq!(queue.wait().1, 1);
        assert_eq!(guest.read(status, 1), [OK]);
        assert_eq!(memory.bytes()[512..1536], data);
    }
}

#[test]
fn chains_without_header_or_status_need_a_reset_and_lose_nothing() {
    type Hostile = fn(&Guest) -> Vec<Buffer>;
    let hostile: [Hostile; 4] = [
        |guest| vec![Buffer::readable(guest.put(&[0; 15]), 15)],
        |guest| vec![Buffer::readable(guest.put(&header(IN, 0)), 16)],
        |guest| vec![Buffer::writable(guest.alloc(64, 16), 64)],
        |guest| {
            vec![
                Buffer::readable(guest.put(&header(IN, 0)), 16),
                Buffer::writable(1 << 40, 513),
            ]
        },
    ];
    for make in hostile {
        let (mut harness, _memory) = memory_disk("", false);
        let mut queue = harness.start(0);
        let guest = harness.guest.clone();
        // Good requests are in front of the bad one, and are answered, be it at once or later.
        let (good, _) = queue.driver.send(&[&header(GET_ID, 0)], &[20, 1]);
        let (later, _) = queue.driver.send(&[&header(FLUSH, 0)], &[1]);
        let chain = make(&guest);
        queue.driver.offer(&chain).unwrap();
        queue.kick();
        assert_eq!(queue.wait().0, good);
        assert_eq!(queue.wait().0, later);
        let end = Instant::now() + PATIENCE;
        while !harness.trouble.is_set() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(queue.driver.collect().is_none());
        assert_eq!(harness.config_interrupts.count(), 1);
        // The worker still stops, and after a reset all is well.
        harness.stop(queue);
        harness.device.reset();
        let mut harness = DeviceHarness::new(harness.device, &guest, RING_EVENT_IDX);
        let mut queue = harness.start(0);
        assert_eq!(ask(&mut queue, header(IN, 0), &[], 512).1, OK);
    }
}

#[test]
fn many_requests_in_flight_cost_few_interrupts() {
    for (ring, poll) in [
        (0, 0),
        (RING_EVENT_IDX, 0),
        (RING_EVENT_IDX, 50),
        (RING_PACKED | RING_EVENT_IDX, 50),
        (RING_PACKED, 0),
    ] {
        let memory = Memory::new(SIZE, false);
        let node = Arc::new(Raw::new("disk".into(), memory.clone()));
        let spec = BlkSpec::parse("unused.img,num-queues=2").unwrap();
        let device = Blk::new(&spec, node, vec![thread(poll), thread(poll)], 1).unwrap();
        let mut harness = DeviceHarness::new(device, &guest(), ring);
        assert_ne!(harness.features & feature::MQ, 0);
        let mut queues = [harness.start(0), harness.start(1)];
        for round in 0..20u64 {
            for (q, queue) in queues.iter_mut().enumerate() {
                for i in 0..20 {
                    let data = [(round + i) as u8; 512];
                    let sector = q as u64 * 20 + i;
                    let request = header(OUT, sector);
                    queue.driver.send(&[&request, &data], &[1]);
                }
                queue.kick();
            }
            for queue in &mut queues {
                for _ in 0..20 {
                    assert_eq!(queue.wait().1, 1);
                }
                // As Linux does after each round.
                queue.driver.enable_interrupts();
            }
        }
        for (q, queue) in queues.into_iter().enumerate() {
            let count = queue.interrupts.count();
            assert!(count <= 400, "{count} interrupts");
            let (driver, state) = harness.stop(queue);
            assert_eq!((driver.in_flight(), state.in_flight), (0, 0));
            for i in 0..20 {
                assert_eq!(memory.bytes()[(q * 20 + i) * 512], (19 + i) as u8);
            }
        }
        assert_eq!(
            harness.device.handle().totals(Operation::Write).operations,
            800
        );
    }
}

#[test]
fn stopping_waits_for_what_is_in_flight() {
    let (mut harness, _memory) = memory_disk("", false);
    let mut queue = harness.start(0);
    for i in 0..64 {
        queue.driver.send(&[&header(IN, i)], &[512, 1]);
    }
    queue.kick();
    let _ = queue.wait();
    let (mut driver, state) = harness.stop(queue);
    let mut answered = 1;
    while driver.collect().is_some() {
        answered += 1;
    }
    assert_eq!(state.in_flight, 0);
    assert_eq!(usize::from(state.next_used), answered);
    assert_eq!(state.next_avail, state.next_used);
}

#[test]
fn a_saved_disk_goes_on_where_it_stopped() {
    let (mut harness, memory) = memory_disk("", false);
    harness.device.config_write(32, &[0]);
    let mut queue = harness.start(0);
    assert_eq!(ask(&mut queue, header(OUT, 0), &[5; 512], 0).1, OK);
    let (mut driver, state) = harness.stop(queue);
    // Offered while nobody serves the queue.
    driver.send(&[&header(IN, 0)], &[512, 1]);
    let saved = harness.device.save().unwrap();
    assert_eq!(harness.device.save().unwrap(), saved);

    let node = Arc::new(Raw::new("disk".into(), memory));
    let mut fresh = device("", node);
    fresh.restore(saved.clone()).unwrap();
    assert_eq!(fresh.save().unwrap(), saved);
    let mut writeback = [9];
    fresh.config_read(32, &mut writeback);
    assert_eq!(writeback, [0]);
    let mut harness = DeviceHarness::with_features(fresh, &harness.guest, harness.features);
    let mut queue = harness.start_with(0, driver, state);
    assert_eq!(queue.wait().1, 513);
    assert_eq!(ask(&mut queue, header(IN, 0), &[], 512).0, [5; 512]);
    harness.stop(queue);
    harness.device.reset();
    harness.device.config_read(32, &mut writeback);
    assert_eq!(writeback, [1]);

    let other = Arc::new(Raw::new("disk".into(), Memory::new(SIZE / 2, false)));
    let error = device("", other).restore(saved).unwrap_err().to_string();
    assert!(
        error.contains("128 sectors") && error.contains("64"),
        "{error}"
    );
}

#[test]
fn a_new_size_reaches_the_driver() {
    let (mut harness, _memory) = memory_disk("", false);
    let mut queue = harness.start(0);
    assert_eq!(ask(&mut queue, header(IN, 128), &[], 512).1, IOERR);
    harness.device.handle().resize(2 * SIZE as u64).unwrap();
    assert_eq!(harness.config_interrupts.count(), 1);
    let mut capacity = [0; 8];
    harness.device.config_read(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 256);
    assert_eq!(ask(&mut queue, header(IN, 128), &[], 512).1, OK);
}

#[test]
fn a_disk_behind_the_transport_is_found_used_and_resized() {
    let memory = Memory::new(SIZE, false);
    let node = Arc::new(Raw::new("disk".into(), memory.clone()));
    let disk = device(",num-queues=3", node);
    let control = disk.handle();
    let guest = guest();
    let options = crate::TransportSpec::parse("")
        .unwrap()
        .options("disk", None);
    let function = crate::VirtioPci::new(Box::new(disk), guest.memory().clone(), &options).unwrap();
    let mut driver = crate::testing::PciDriver::probe(function, &guest);
    assert_eq!(driver.queues(), 3);
    let mut queues = driver.start(!0);
    assert_eq!(driver.device_config(34, 2), [3, 0]);
    for (i, queue) in queues.iter_mut().enumerate() {
        let data = [i as u8 + 1; 512];
        queue.send(&[&header(OUT, i as u64), &data], &[1]);
        driver.kick(i as u16);
        driver.wait_vector(i as u32 + 1);
        assert_eq!(queue.collect().unwrap().1, 1);
        assert_eq!(memory.bytes()[i * 512..(i + 1) * 512], data);
    }
    let generation = driver.generation();
    control.resize(2 * SIZE as u64).unwrap();
    driver.wait_vector(0);
    assert_eq!(driver.device_config(0, 8), 256u64.to_le_bytes());
    assert_ne!(driver.generation(), generation);
    assert_eq!(control.totals(Operation::Write).operations, 3);
    // A reset stops the workers; the disk can be started again.
    driver.set_status(0);
    let mut queues = driver.start(!0);
    queues[2].send(&[&header(FLUSH, 0)], &[1]);
    driver.kick(2);
    driver.wait_vector(3);
    assert_eq!(memory.flushes(), 1);
}

#[test]
fn impossible_block_sizes_are_refused() {
    let make = |properties: &str| {
        let node = Arc::new(Raw::new("disk".into(), Memory::new(SIZE + 512, false)));
        let spec = BlkSpec::parse(&format!("a.img{properties}")).unwrap();
        Blk::new(&spec, node, vec![thread(0)], 1).err()
    };
    assert_eq!(make(""), None);
    let text = |properties| make(properties).unwrap().to_string();
    assert!(text(",logical-block-size=4K").contains("no multiple"));
    assert!(text(",logical-block-size=2K,physical-block-size=1K").contains("larger than"));
    let node = Arc::new(Raw::new("disk".into(), Memory::new(SIZE, false)));
    let spec = BlkSpec::parse("a.img").unwrap();
    assert_eq!(
        Blk::new(&spec, node, vec![], 1).err(),
        Some(BlkError::NoThread)
    );
}

/// What a guest may do to a disk of 128 sectors.
#[derive(Debug, Clone)]
enum Step {
    Read(u64, u64),
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (0..128u64, 1..40u64).prop_map(|(at, len)| (at, len.min(128 - at)));
    let step = prop_oneof![
        3 => place().prop_map(|(at, len)| Step::Read(at, len)),
        4 => (place(), any::<u8>()).prop_map(|((at, len), seed)| Step::Write(at, len, seed)),
        1 => (place(), any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero(at, len, unmap)),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_in_a_file_behaves_like_an_array(
        steps in steps(),
        cache in prop_oneof![Just("none"), Just("writeback"), Just("directsync")],
        packed in any::<bool>(),
    ) {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp");
        std::fs::create_dir_all(&target).unwrap();
        let directory = tempfile::tempdir_in(target).unwrap();
        let path = directory.path().join("disk.img");
        std::fs::write(&path, vec![0; SIZE]).unwrap();
        let properties = format!("{},cache={cache},num-queues=2", path.display());
        let spec = BlkSpec::parse(&properties).unwrap();
        let node = block::open(&spec.disk).unwrap();
        let device = Blk::new(&spec, node, vec![thread(20)], 1).unwrap();
        let ring = RING_EVENT_IDX | if packed { RING_PACKED } else { 0 };
        let mut harness = DeviceHarness::new(device, &guest(), ring);
        let mut queues = [harness.start(0), harness.start(1)];
        let mut model = vec![0; SIZE];
        for (i, step) in steps.into_iter().enumerate() {
            let queue = &mut queues[i % 2];
            let range = |at: u64, len: u64| at as usize * 512..(at + len) as usize * 512;
            let status = match step {
                Step::Read(at, len) => {
                    let (data, status, _) = ask(queue, header(IN, at), &[], len as u32 * 512);
                    prop_assert!(data == model[range(at, len)]);
                    status
                }
                Step::Write(at, len, seed) => {
                    let data: Vec<u8> = (0..len * 512).map(|i| (i as u8) ^ seed).collect();
                    model[range(at, len)].copy_from_slice(&data);
                    ask(queue, header(OUT, at), &data, 0).1
                }
                Step::Zero(at, len, unmap) => {
                    model[range(at, len)].fill(0);
                    let segment = segment(at, len as u32, unmap.into());
                    ask(queue, header(WRITE_ZEROES, 0), &segment, 0).1
                }
                Step::Flush => ask(queue, header(FLUSH, 0), &[], 0).1,
            };
            prop_assert_eq!(status, OK);
        }
        prop_assert!(std::fs::read(&path).unwrap() == model);
    }

    #[test]
    fn nonsense_never_stops_the_worker(
        chains in prop::collection::vec(
            prop::collection::vec((any::<bool>(), 0..2000u32, any::<u64>()), 1..6),
            1..20,
        ),
        kinds in prop::collection::vec(prop_oneof![0..16u32, any::<u32>()], 20),
    ) {
        let (mut harness, _memory) = memory_disk("", false);
        let mut queue = harness.start(0);
        let guest = harness.guest.clone();
        for (chain, kind) in chains.iter().zip(kinds) {
            let buffers: Vec<Buffer> = chain
                .iter()
                .enumerate()
                .map(|(i, &(writable, len, sector))| {
                    let address = guest.alloc(len as usize + 16, 16);
                    if i == 0 {
                        guest.write(address, &header(kind, sector % 200));
                    }
                    Buffer { address, len: len.max(1), writable }
                })
                .collect();
            queue.driver.offer(&buffers);
        }
        queue.kick();
        harness.stop(queue);
    }
}
