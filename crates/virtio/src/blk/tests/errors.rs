//! Requests that the host fails, by policy, and limits.

use std::sync::{Arc, Mutex};

use ::block::throttle::ThrottleLimits;

use super::*;
use crate::testing::DriverQueue;

type Heard = Arc<Mutex<Vec<IoError>>>;

/// A device over memory with a listener, activated.
fn listening(
    properties: &str,
    ring: u64,
    memory: &Memory,
    guest: &Guest,
) -> (DeviceHarness<Blk>, Heard) {
    let node = Arc::new(Raw::new("disk".into(), memory.clone()));
    let device = device(properties, node);
    let heard = Heard::default();
    let ear = Arc::clone(&heard);
    let listener = move |error| ear.lock().unwrap().push(error);
    device.handle().on_error(Arc::new(listener));
    (DeviceHarness::new(device, guest, ring), heard)
}

/// Offers one request and returns its id and where its status will be.
fn offer(driver: &mut DriverQueue, header: [u8; 16], out: &[u8], len: u32) -> (u16, u64) {
    let guest = driver.guest().clone();
    let mut chain = vec![Buffer::readable(guest.put(&header), 16)];
    if !out.is_empty() {
        chain.push(Buffer::readable(guest.put(out), out.len() as u32));
    }
    if len != 0 {
        chain.push(Buffer::writable(guest.alloc(len as usize, 16), len));
    }
    let status = guest.put(&[0xff]);
    chain.push(Buffer::writable(status, 1));
    let id = match driver.config().features & RING_INDIRECT_DESC {
        0 => driver.offer(&chain),
        _ => driver.offer_indirect(&chain),
    };
    (id.unwrap(), status)
}

fn wait_until(mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < end, "it does not happen");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn each_policy_does_what_it_says() {
    use ErrorAction::{Ignore, Report, Stop};
    let write: (u32, &[u8], u32) = (OUT, &[1; 512], 0);
    let read: (u32, &[u8], u32) = (IN, &[], 512);
    let flush: (u32, &[u8], u32) = (FLUSH, &[], 0);
    for (properties, (kind, out, len), errno, action) in [
        ("", read, libc::EIO, Report),
        ("", write, libc::EIO, Report),
        ("", write, libc::ENOSPC, Stop),
        ("", flush, libc::ENOSPC, Stop),
        ("", flush, libc::EIO, Report),
        (",rerror=auto,werror=auto", read, libc::ENOSPC, Report),
        (",rerror=auto,werror=auto", write, libc::EDQUOT, Stop),
        (",rerror=ignore", read, libc::EIO, Ignore),
        (",rerror=ignore", write, libc::EIO, Report),
        (",werror=ignore", write, libc::ENOSPC, Ignore),
        (",werror=report", write, libc::ENOSPC, Report),
        (",rerror=stop", read, libc::EIO, Stop),
        (",werror=stop", flush, libc::EIO, Stop),
    ] {
        let case = format!("{properties} {kind} {errno}");
        let memory = Memory::new(SIZE, false);
        let (mut harness, heard) = listening(properties, 0, &memory, &guest());
        let handle = harness.device.handle();
        let mut queue = harness.start(0);
        memory.fail_with(errno);
        let (id, status) = offer(&mut queue.driver, header(kind, 0), out, len);
        queue.kick();
        wait_until(|| !heard.lock().unwrap().is_empty());
        let no_space = errno != libc::EIO;
        if action == Stop {
            let status = [IoStatus::Failed, IoStatus::NoSpace][usize::from(no_space)];
            assert_eq!((handle.kept(), handle.io_status()), (1, status), "{case}");
            assert!(queue.driver.collect().is_none(), "{case}");
        } else {
            // How many bytes are said to be written: all, or the status only.
            let written = if action == Ignore {
                len + 1
            } else {
                u32::from(len == 0)
            };
            assert_eq!(queue.wait(), (id, written), "{case}");
            let answer = if action == Ignore { OK } else { IOERR };
            assert_eq!(harness.guest.read(status, 1), [answer], "{case}");
            assert_eq!((handle.kept(), handle.io_status()), (0, IoStatus::Ok));
        }
        let told = heard.lock().unwrap().pop().unwrap();
        let expected = IoError {
            node: "disk".into(),
            is_read: kind == IN,
            action,
            no_space,
            reason: match errno {
                libc::EIO => "Input/output error",
                libc::ENOSPC => "No space left on device",
                _ => "Disk quota exceeded",
            }
            .into(),
        };
        assert_eq!(told, expected, "{case}");
    }
}

/// A guest's three writes to the same sector and a request after them; the first writes fail.
/// Returns what the guest waits for.
fn fail_three(
    harness: &mut DeviceHarness<Blk>,
    memory: &Memory,
) -> (HarnessQueue, Vec<(u16, u64)>) {
    memory.fail_with(libc::ENOSPC);
    // All before the device looks: it takes nothing more when the first has failed.
    let size = harness.device.queue_sizes()[0];
    let mut driver = DriverQueue::new(&harness.guest, size, harness.features);
    let waiting = (1..4u8)
        .map(|i| offer(&mut driver, header(OUT, 5), &[i; 512], 0))
        .collect();
    // Answered at once, and in a packed ring written over the descriptors of the first.
    let (id, _) = offer(&mut driver, header(GET_ID, 0), &[], 20);
    let mut queue = harness.start_with(0, driver, QueueState::default());
    assert_eq!(queue.wait(), (id, 21));
    let handle = harness.device.handle();
    wait_until(|| handle.kept() == 3);
    (queue, waiting)
}

const RINGS: [u64; 4] = [
    0,
    RING_EVENT_IDX | RING_INDIRECT_DESC,
    RING_PACKED,
    RING_PACKED | RING_EVENT_IDX | RING_INDIRECT_DESC,
];

#[test]
fn what_was_kept_is_made_again_in_its_order() {
    for ring in RINGS {
        let memory = Memory::new(SIZE, false);
        let (mut harness, heard) = listening("", ring, &memory, &guest());
        let (mut queue, mut waiting) = fail_three(&mut harness, &memory);
        // More comes, and stays in the ring.
        waits_behind(&mut queue, &mut waiting, &harness);
        let (driver, state) = harness.stop(queue);
        assert_ne!(state.in_flight, 0);
        // Once more, while there is no room.
        let queue = harness.start_with(0, driver, state);
        let handle = harness.device.handle();
        wait_until(|| heard.lock().unwrap().len() == 7 && handle.kept() == 4);
        let (driver, state) = harness.stop(queue);
        memory.fail_with(0);
        let mut queue = harness.start_with(0, driver, state);
        for (id, status) in waiting {
            assert_eq!(queue.wait(), (id, 1), "ring {ring:#x}");
            assert_eq!(harness.guest.read(status, 1), [OK]);
        }
        assert_eq!(
            memory.bytes()[5 * 512..7 * 512],
            [[3; 512], [9; 512]].concat()
        );
        assert_eq!((handle.kept(), handle.io_status()), (0, IoStatus::Ok));
        // Nobody was told of a failure.
        assert_eq!(handle.totals(Operation::Write).failed, 0);
        assert_eq!(handle.totals(Operation::Write).operations, 4);
        assert_eq!(ask(&mut queue, header(IN, 5), &[], 512).0, [3; 512]);
        assert_eq!(harness.stop(queue).1.in_flight, 0);
    }
}

fn waits_behind(
    queue: &mut HarnessQueue,
    waiting: &mut Vec<(u16, u64)>,
    harness: &DeviceHarness<Blk>,
) {
    waiting.push(offer(&mut queue.driver, header(OUT, 6), &[9; 512], 0));
    queue.kick.write(1).unwrap();
    std::thread::sleep(Duration::from_millis(2));
    assert!(queue.driver.collect().is_none());
    assert_eq!(harness.device.handle().kept(), 3);
    for (_, status) in waiting {
        assert_eq!(harness.guest.read(*status, 1), [0xff]);
    }
}

#[test]
fn what_was_kept_is_saved_and_made_again_elsewhere() {
    for ring in RINGS {
        let guest = guest();
        let memory = Memory::new(SIZE, false);
        let (mut harness, _) = listening("", ring, &memory, &guest);
        let (queue, waiting) = fail_three(&mut harness, &memory);
        let (driver, state) = harness.stop(queue);
        let saved = harness.device.save().unwrap();

        memory.fail_with(0);
        let (other, _) = listening("", ring, &memory, &guest);
        let mut fresh = other.device;
        fresh.reset();
        fresh.restore(saved.clone()).unwrap();
        assert_eq!(fresh.handle().kept(), 3);
        assert_eq!(fresh.save().unwrap(), saved);
        let mut harness = DeviceHarness::with_features(fresh, &guest, harness.features);
        let mut queue = harness.start_with(0, driver, state);
        for (id, status) in waiting {
            assert_eq!(queue.wait(), (id, 1), "ring {ring:#x}");
            assert_eq!(guest.read(status, 1), [OK]);
        }
        assert_eq!(memory.bytes()[5 * 512..6 * 512], [3; 512]);
    }
}

#[test]
fn a_state_of_before_there_were_kept_requests_is_understood() {
    #[derive(serde::Serialize)]
    struct Version1 {
        writeback: bool,
        capacity: u64,
        logical_block_size: u32,
        num_queues: u16,
    }
    let old = Version1 {
        writeback: false,
        capacity: SIZE as u64 / 512,
        logical_block_size: 512,
        num_queues: 1,
    };
    let old = Payload::encode(KIND, 1, &old).unwrap();
    let (mut harness, _memory) = memory_disk("", false);
    harness.device.restore(old).unwrap();
    let mut writeback = [9];
    harness.device.config_read(32, &mut writeback);
    assert_eq!(writeback, [0]);
    // And an impossible one of today is not.
    let mut state: BlkState = harness
        .device
        .save()
        .unwrap()
        .decode(KIND, VERSION)
        .unwrap();
    state.kept = vec![vec![crate::chain::ChainState {
        id: 1,
        descriptors: 0,
        readable: Vec::new(),
        writable: Vec::new(),
    }]];
    let payload = Payload::encode(KIND, VERSION, &state).unwrap();
    let error = harness.device.restore(payload).unwrap_err().to_string();
    assert!(error.contains("the request 1 cannot"), "{error}");
}

#[test]
fn a_reset_drops_what_was_kept() {
    let memory = Memory::new(SIZE, false);
    let (mut harness, _) = listening("", 0, &memory, &guest());
    let handle = harness.device.handle();
    // Of the device.
    let (queue, _) = fail_three(&mut harness, &memory);
    harness.stop(queue);
    assert_eq!(handle.kept(), 3);
    harness.device.reset();
    assert_eq!((handle.kept(), handle.io_status()), (0, IoStatus::Ok));
    // Of a queue, which begins anew.
    let guest = harness.guest.clone();
    let mut harness = DeviceHarness::new(harness.device, &guest, 0);
    let (queue, _) = fail_three(&mut harness, &memory);
    let (_, state) = harness.stop(queue);
    memory.fail_with(0);
    let mut queue = harness.start(0);
    assert_eq!(handle.kept(), 0);
    assert_eq!(ask(&mut queue, header(IN, 5), &[], 512).0, [0; 512]);
    harness.stop(queue);
    // What nobody kept cannot be gone on with.
    let driver = DriverQueue::new(&guest, 256, harness.features);
    let (_, interrupt) = bus::testing::CountingInterrupt::pair();
    let resources = QueueResources {
        queue: crate::Queue::restore(driver.config(), state).unwrap(),
        memory: guest.memory().clone(),
        kick: bus::EventFd::new(libc::EFD_NONBLOCK).unwrap(),
        interrupt,
        trouble: harness.trouble.clone(),
    };
    let error = harness.device.start_queue(0, resources).unwrap_err();
    assert!(error.to_string().contains("in flight"), "{error}");
    assert!(memory.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn behind_the_transport_a_pause_keeps_and_a_reset_drops() {
    use ::state::Stateful;

    let guest = guest();
    let memory = Memory::new(SIZE, false);
    let disk = device("", Arc::new(Raw::new("disk".into(), memory.clone())));
    let handle = disk.handle();
    handle.on_error(Arc::new(|_| ()));
    let options = crate::TransportSpec::parse("")
        .unwrap()
        .options("disk", None);
    let function = crate::VirtioPci::new(Box::new(disk), guest.memory().clone(), &options).unwrap();
    let mut driver = crate::testing::PciDriver::probe(Arc::clone(&function), &guest);
    let fail = |queue: &mut DriverQueue, driver: &mut crate::testing::PciDriver| {
        memory.fail_with(libc::ENOSPC);
        let (id, status) = offer(queue, header(OUT, 5), &[3; 512], 0);
        driver.kick(0);
        wait_until(|| handle.kept() == 1);
        function.quiesce();
        memory.fail_with(0);
        (id, status)
    };
    let mut queues = driver.start(!0);
    let (id, status) = fail(&mut queues[0], &mut driver);
    let saved = function.save().unwrap();
    function.resume();
    driver.wait_vector(1);
    assert_eq!(queues[0].collect(), Some((id, 1)));
    assert_eq!(guest.read(status, 1), [OK]);

    // From the saved state it is made once more.
    memory.bytes().fill(0);
    function.restore(saved).unwrap();
    assert_eq!(handle.kept(), 1);
    function.resume();
    wait_until(|| memory.bytes()[5 * 512] == 3);

    // The machine's reset while it is stopped, and a driver that begins anew.
    driver.set_status(0);
    let mut queues = driver.start(!0);
    memory.bytes().fill(0);
    fail(&mut queues[0], &mut driver);
    function.reset();
    assert_eq!(handle.kept(), 0);
    function.resume();
    assert!(memory.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn errors_that_a_guest_makes_at_will_are_told_now_and_then() {
    let memory = Memory::new(SIZE, false);
    let (mut harness, heard) = listening("", 0, &memory, &guest());
    let mut queue = harness.start(0);
    memory.fail_with(libc::EIO);
    let start = Instant::now();
    for _ in 0..50 {
        assert_eq!(ask(&mut queue, header(IN, 0), &[], 512).1, IOERR);
    }
    let told = heard.lock().unwrap().len() as u64;
    assert!(
        (1..=1 + start.elapsed().as_secs()).contains(&told),
        "{told}"
    );
    assert_eq!(harness.device.handle().totals(Operation::Read).failed, 50);
}

#[test]
fn limits_hold_and_do_not_delay_a_stop() {
    let (mut harness, memory) = memory_disk(",throttle-iops-write=20,throttle-bps-write=1M", false);
    let handle = harness.device.handle();
    let mut queue = harness.start(0);
    let start = Instant::now();
    for i in 0..6 {
        let (sector, data) = (header(OUT, i), [7; 512]);
        assert_eq!(ask(&mut queue, sector, &data, 0).1, OK);
    }
    // Three at once, and three in 50 ms each.
    assert!(
        start.elapsed() >= Duration::from_millis(140),
        "{:?}",
        start.elapsed()
    );
    // Reads have no limit.
    for _ in 0..40 {
        assert_eq!(ask(&mut queue, header(IN, 0), &[], 512).1, OK);
    }
    let group = handle.throttle().group();
    let slow = ThrottleLimits::parse("bps-total=1").unwrap();
    group.set_limits(&slow).unwrap();
    for i in 0..20 {
        offer(&mut queue.driver, header(OUT, 20 + i), &[9; 512], 0);
    }
    queue.kick();
    // The first goes; the next in 512 seconds.
    wait_until(|| queue.driver.collect().is_some() && group.waiting() == 19);
    let (mut driver, state) = harness.stop(queue);
    assert!(start.elapsed() < PATIENCE);
    assert_eq!((state.in_flight, group.waiting()), (0, 0));
    assert_eq!(std::iter::from_fn(|| driver.collect()).count(), 19);
    assert_eq!(memory.bytes()[39 * 512], 9);
    assert_eq!(handle.node().name(), "disk");

    // The same below the device.
    let slow = ThrottleGroup::new("slow", &slow).unwrap();
    let below = Arc::new(Throttle::new("below", Arc::clone(handle.node()), slow));
    let device = device("", Arc::clone(&below) as Arc<dyn Node>);
    let filter = Arc::clone(&below);
    device
        .handle()
        .limits_below(move || vec![filter.unthrottled()]);
    let mut harness = DeviceHarness::new(device, &harness.guest, 0);
    let mut queue = harness.start(0);
    for i in 0..5 {
        offer(&mut queue.driver, header(OUT, i), &[8; 512], 0);
    }
    queue.kick();
    wait_until(|| below.group().waiting() == 4);
    let (mut driver, _) = harness.stop(queue);
    assert_eq!(std::iter::from_fn(|| driver.collect()).count(), 5);

    let impossible = BlkSpec {
        throttle: ThrottleLimits::parse("iops-size=4K").unwrap(),
        ..BlkSpec::parse("a.img").unwrap()
    };
    let node = Arc::new(Raw::new("disk".into(), memory));
    let error = Blk::new(&impossible, node, vec![thread(0)], 1)
        .err()
        .unwrap();
    assert!(matches!(error, BlkError::Throttle(_)), "{error}");
}
