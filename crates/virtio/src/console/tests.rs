use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ::event::IoThreadConfig;
use ::spec::Spec;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::model::{event, feature};
use super::*;
use crate::features::{RING_EVENT_IDX, RING_PACKED, VERSION_1};
use crate::testing::{Buffer, DeviceHarness, Guest, HarnessQueue, PciDriver};
use crate::{TransportOptions, VirtioPci};

/// How long a test waits before it fails.
const PATIENCE: Duration = Duration::from_secs(10);
const RINGS: [u64; 2] = [0, RING_EVENT_IDX | RING_PACKED];

fn thread() -> IoThread {
    IoThread::spawn(IoThreadConfig::new("console-test")).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A queue whose buffers the device fills.
struct Inbox {
    queue: HarnessQueue,
    buffers: BTreeMap<u16, Buffer>,
}

impl Inbox {
    fn new(queue: HarnessQueue) -> Self {
        Self {
            queue,
            buffers: BTreeMap::new(),
        }
    }

    fn offer(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            let (id, buffers) = self.queue.driver.send(&[], &[len]);
            self.buffers.insert(id, buffers[0]);
        }
        self.queue.kick();
    }

    fn try_next(&mut self) -> Option<Vec<u8>> {
        let (id, written) = self.queue.driver.collect()?;
        let buffer = self.buffers.remove(&id).unwrap();
        let guest = self.queue.driver.guest();
        Some(guest.read(buffer.address, written as usize))
    }

    fn next(&mut self) -> Vec<u8> {
        let mut got = None;
        until("a buffer is filled", || {
            got = self.try_next();
            got.is_some()
        });
        got.unwrap()
    }

    /// The next control message: port, event, value, and what follows.
    fn message(&mut self) -> (u32, u16, u16, Vec<u8>) {
        let bytes = self.next();
        let (control, tail) = Control::read_from_prefix(&bytes).unwrap();
        let Control { id, event, value } = control;
        (id.get(), event.get(), value.get(), tail.to_vec())
    }

    fn silent(&mut self) {
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(self.try_next(), None);
    }
}

/// A device with unix sockets for its targets, and its driver.
struct Rig {
    dir: tempfile::TempDir,
    harness: DeviceHarness<Console>,
    _chardevs: Vec<Chardev>,
    inbox: Inbox,
    outbox: HarnessQueue,
}

/// A console at `0`, port `agent` at `1`.
fn open(properties: &str) -> (tempfile::TempDir, Console, Vec<Chardev>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    let spec = format!("unix:{path}/0,port=agent@unix:{path}/1{properties}");
    let spec = ConsoleSpec::parse(&spec).unwrap();
    let (device, chardevs) = Console::open(&spec, thread(), Arc::new(|| {})).unwrap();
    (dir, device, chardevs)
}

impl Rig {
    fn new(properties: &str, ring: u64) -> Self {
        let (dir, device, chardevs) = open(properties);
        let mut harness = DeviceHarness::new(device, &Guest::new(16 << 20), ring);
        let mut inbox = Inbox::new(harness.start(2));
        inbox.offer(32, 64);
        let outbox = harness.start(3);
        Self {
            dir,
            harness,
            _chardevs: chardevs,
            inbox,
            outbox,
        }
    }

    /// A device whose driver has both ports and has them open.
    fn opened(ring: u64) -> Self {
        let mut rig = Self::new("", ring);
        rig.say(0, event::DEVICE_READY, 1);
        for id in 0..2 {
            rig.say(id, event::PORT_READY, 1);
            rig.say(id, event::PORT_OPEN, 1);
        }
        for _ in 0..5 {
            rig.inbox.message();
        }
        rig.inbox.silent();
        rig
    }

    fn connect(&self, port: usize) -> UnixStream {
        let client = UnixStream::connect(self.dir.path().join(port.to_string())).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// Connects to the console, and waits until the chardev serves the client.
    fn connect_console(&mut self) -> UnixStream {
        let mut client = self.connect(0);
        let mut receive = Inbox::new(self.harness.start(0));
        receive.offer(1, 1);
        client.write_all(b"x").unwrap();
        assert_eq!(receive.next(), b"x");
        client
    }

    fn say(&mut self, id: u32, event: u16, value: u16) {
        let message = Control::new(id, event, value);
        let answer = self.outbox.request(&[message.as_bytes()], &[]);
        assert!(answer.is_empty());
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

#[test]
fn ports_are_added_named_and_opened() {
    for ring in RINGS {
        let mut rig = Rig::new(",cols=80,rows=25", ring);
        rig.inbox.silent();
        rig.say(0, event::DEVICE_READY, 1);
        assert_eq!(rig.inbox.message(), (0, event::DEVICE_ADD, 1, vec![]));
        assert_eq!(rig.inbox.message(), (1, event::DEVICE_ADD, 1, vec![]));
        rig.say(0, event::PORT_READY, 1);
        assert_eq!(rig.inbox.message(), (0, event::CONSOLE_PORT, 1, vec![]));
        assert_eq!(rig.inbox.message(), (0, event::PORT_OPEN, 1, vec![]));
        let size = (0, event::RESIZE, 0, vec![80, 0, 25, 0]);
        assert_eq!(rig.inbox.message(), size);
        rig.say(1, event::PORT_READY, 1);
        let name = (1, event::PORT_NAME, 1, b"agent".to_vec());
        assert_eq!(rig.inbox.message(), name);
        rig.inbox.silent();
        for _ in 0..2 {
            let client = rig.connect(1);
            assert_eq!(rig.inbox.message(), (1, event::PORT_OPEN, 1, vec![]));
            drop(client);
            assert_eq!(rig.inbox.message(), (1, event::PORT_OPEN, 0, vec![]));
        }
        // The console stays open whoever looks at it.
        drop(rig.connect(0));
        rig.inbox.silent();
        assert!(rig.inbox.queue.interrupts.count() > 0);
        assert!(!rig.harness.trouble.is_set());
    }
}

#[test]
fn a_short_disconnection_is_told_also_to_a_slow_driver() {
    let mut model = Model::new(2, 0, 0);
    model.negotiated(feature::MULTIPORT);
    model.plug(1, Some("a".into()));
    model.received(&Control::new(0, event::DEVICE_READY, 1));
    model.received(&Control::new(1, event::PORT_READY, 1));
    let open = |model: &mut Model| {
        let message = model.next_message()?;
        let (control, _) = Control::read_from_prefix(&message).unwrap();
        Some((control.event.get(), control.value.get()))
    };
    assert_eq!(open(&mut model), Some((event::DEVICE_ADD, 1)));
    assert_eq!(open(&mut model), Some((event::PORT_NAME, 1)));
    for connected in [true, false, true] {
        model.set_host_open(1, connected);
    }
    assert_eq!(open(&mut model), Some((event::PORT_OPEN, 1)));
    assert_eq!(open(&mut model), None, "nobody saw the first client");
    for connected in [false, true, false, true] {
        model.set_host_open(1, connected);
    }
    assert_eq!(open(&mut model), Some((event::PORT_OPEN, 0)));
    assert_eq!(open(&mut model), Some((event::PORT_OPEN, 1)));
    assert_eq!(open(&mut model), None);
}

#[test]
fn input_waits_for_the_guest_and_none_is_lost() {
    for ring in RINGS {
        for (port, queue) in [(0, 0), (1, 4)] {
            let mut rig = Rig::opened(ring);
            let mut receive = Inbox::new(rig.harness.start(queue));
            rig.say(port as u32, event::PORT_OPEN, 0);
            let mut client = rig.connect(port);
            let sent = pattern(600_000);
            let writer = {
                let sent = sent.clone();
                std::thread::spawn(move || client.write_all(&sent).map(|()| client))
            };
            receive.offer(10, 7);
            receive.silent();
            rig.say(port as u32, event::PORT_OPEN, 1);
            let mut got = Vec::new();
            while got.len() < sent.len() {
                let bytes = receive.next();
                assert!(!bytes.is_empty());
                got.extend(bytes);
                if receive.buffers.is_empty() {
                    receive.offer(1, 60_000);
                }
            }
            assert!(got == sent);
            assert!(receive.queue.interrupts.count() > 0);
            drop(writer.join().unwrap().unwrap());
        }
    }
}

#[test]
fn output_waits_for_the_host_and_none_is_lost() {
    for ring in RINGS {
        let mut rig = Rig::opened(ring);
        let mut transmit = rig.harness.start(5);
        // While nobody is there, it goes nowhere, and does not wait either.
        transmit.request(&[&[0; 300_000]], &[]);
        let mut client = rig.connect(1);
        assert_eq!(rig.inbox.message(), (1, event::PORT_OPEN, 1, vec![]));
        let sent = pattern(900_000);
        let (id, _) = transmit
            .driver
            .send(&[&sent[..1], &sent[1..400_000], &sent[400_000..]], &[]);
        transmit.kick();
        // Longer than a console would wait.
        std::thread::sleep(Duration::from_millis(if ring == 0 { 1200 } else { 50 }));
        assert_eq!(transmit.driver.collect(), None, "the host does not read");
        let mut got = vec![0; sent.len()];
        client.read_exact(&mut got).unwrap();
        assert!(got == sent);
        assert_eq!(transmit.wait(), (id, 0));
        transmit.request(&[b"more"], &[]);
        client.read_exact(&mut got[..4]).unwrap();
        assert_eq!(&got[..4], b"more");
    }
}

#[test]
fn a_console_that_nobody_reads_stops_the_guest_only_for_a_moment() {
    let mut rig = Rig::opened(0);
    let mut transmit = rig.harness.start(1);
    let mut client = rig.connect_console();
    transmit.request(&[b"hello"], &[]);
    let mut hello = [0; 5];
    client.read_exact(&mut hello).unwrap();
    let begin = Instant::now();
    for _ in 0..20 {
        transmit.request(&[&[b'x'; 100_000]], &[]);
    }
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert!(begin.elapsed() < Duration::from_secs(15), "once, not often");
    // Once it is read, it goes on.
    let (done, end) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        let mut buffer = [0; 4096];
        while !got.ends_with(b"end") {
            let len = client.read(&mut buffer).unwrap();
            got.extend(&buffer[..len]);
        }
        done.send(()).unwrap();
        got.len()
    });
    until("the end arrives", || {
        transmit.request(&[b"end"], &[]);
        end.try_recv().is_ok()
    });
    assert!(reader.join().unwrap() < 2_000_000);
}

#[test]
fn a_driver_without_ports_has_a_console() {
    for ring in RINGS {
        let (dir, device, _chardevs) = open("");
        let features = feature::SIZE | VERSION_1 | ring;
        let guest = Guest::new(4 << 20);
        let mut harness = DeviceHarness::with_features(device, &guest, features);
        let mut receive = Inbox::new(harness.start(0));
        let mut transmit = harness.start(1);
        let mut client = UnixStream::connect(dir.path().join("0")).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"root\n").unwrap();
        receive.offer(1, 64);
        assert_eq!(receive.next(), b"root\n");
        transmit.request(&[b"login: "], &[]);
        let mut prompt = [0; 7];
        client.read_exact(&mut prompt).unwrap();
        assert_eq!(&prompt, b"login: ");
    }
}

#[test]
fn the_configuration_space_says_what_there_is_and_takes_emergency_writes() {
    let mut rig = Rig::new(",cols=80,rows=25,max-ports=8", 0);
    assert_eq!(
        rig.harness.device.queue_sizes(),
        [[128; 2], [32; 2], [128; 2], [128; 2], [128; 2]]
            .concat()
            .into_iter()
            .chain([128; 8])
            .collect::<Vec<_>>()
    );
    let read = |rig: &Rig| {
        let mut config = [0xff; 14];
        rig.harness.device.config_read(0, &mut config);
        config
    };
    assert_eq!(read(&rig), [80, 0, 25, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let handle = rig.harness.device.handle();
    handle.resize(80, 25);
    assert_eq!(rig.harness.config_interrupts.count(), 0);
    handle.resize(132, 43);
    assert_eq!(rig.harness.config_interrupts.count(), 1);
    assert_eq!(read(&rig)[..4], [132, 0, 43, 0]);

    rig.say(0, event::PORT_OPEN, 1);
    let mut client = rig.connect_console();
    for byte in *b"panic" {
        let value = [byte, 0xff, 0xff, 0xff];
        rig.harness.device.config_write(8, &value);
    }
    rig.harness.device.config_write(0, b"no");
    let mut panic = [0; 5];
    client.read_exact(&mut panic).unwrap();
    assert_eq!(&panic, b"panic");
}

#[test]
fn ports_come_and_go_while_the_guest_runs() {
    let mut rig = Rig::new(",max-ports=3", 0);
    let handle = rig.harness.device.handle();
    let mut transmit = rig.harness.start(7);
    transmit.request(&[b"nobody is there"], &[]);
    rig.say(0, event::DEVICE_READY, 1);
    for id in 0..2 {
        assert_eq!(rig.inbox.message().0, id);
    }
    let host = thread();
    let (told, events) = mpsc::channel();
    handle.watch(Box::new(move |name, open| {
        told.send((name.to_owned(), open)).unwrap();
    }));
    for round in 0..3 {
        let target = chardev::Target::Unix(rig.dir.path().join(format!("new{round}")));
        let (mut chardev, link) = Chardev::open(&target, None).unwrap();
        let name = format!("new{round}");
        let backend = PortBackend { name, link };
        let front = handle.plug(backend.clone()).unwrap();
        assert!(matches!(
            handle.plug(backend.clone()),
            Err(ConsoleError::Duplicate(_))
        ));
        let other = PortBackend {
            name: "other".into(),
            link: backend.link.clone(),
        };
        assert!(matches!(
            handle.plug(other),
            Err(ConsoleError::Full { wanted: 4, max: 3 })
        ));
        chardev.start(&host, front);
        assert_eq!(rig.inbox.message(), (2, event::DEVICE_ADD, 1, vec![]));
        rig.say(2, event::PORT_READY, 1);
        let (id, kind, _, name) = rig.inbox.message();
        assert_eq!((id, kind), (2, event::PORT_NAME));
        assert_eq!(name, format!("new{round}").as_bytes());
        rig.say(2, event::PORT_OPEN, 1);
        rig.say(2, event::PORT_OPEN, 1);
        let name = format!("new{round}");
        assert_eq!(events.recv_timeout(PATIENCE), Ok((name.clone(), true)));
        let client = UnixStream::connect(rig.dir.path().join(&name));
        assert_eq!(rig.inbox.message(), (2, event::PORT_OPEN, 1, vec![]));
        transmit.request(&[b"hello"], &[]);
        let mut hello = [0; 5];
        client.unwrap().read_exact(&mut hello).unwrap();
        assert_eq!(rig.inbox.message(), (2, event::PORT_OPEN, 0, vec![]));
        let status = handle.ports().pop().unwrap();
        assert_eq!(status.name.as_deref(), Some(&*name));
        assert!(status.guest_open && !status.host_open);
        handle.unplug(&name).unwrap();
        assert_eq!(events.recv_timeout(PATIENCE), Ok((name.clone(), false)));
        assert!(matches!(handle.unplug(&name), Err(ConsoleError::NoPort(_))));
        assert_eq!(rig.inbox.message(), (2, event::DEVICE_REMOVE, 1, vec![]));
    }
    rig.harness.device.reset();
    assert!(events.try_recv().is_err());
    assert!(!rig.harness.trouble.is_set());
}

#[test]
fn bytes_on_their_way_move_with_the_device() {
    for ring in RINGS {
        let mut old = Rig::opened(ring);
        let mut transmit = old.harness.start(5);
        let receive = Inbox::new(old.harness.start(4));
        let mut first = old.connect(1);
        assert_eq!(old.inbox.message(), (1, event::PORT_OPEN, 1, vec![]));
        first.write_all(b"input").unwrap();
        until("input is taken", || {
            old.harness.device.shared.ports[1].has_input()
        });
        let sent = pattern(900_000);
        let (id, _) = transmit.driver.send(&[&sent], &[]);
        transmit.kick();
        // Time for the host to take what it can, which is not all.
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(transmit.driver.collect(), None);
        // The machine is stopped and saved.
        let Rig {
            mut harness,
            inbox,
            outbox,
            _chardevs: chardevs,
            dir,
        } = old;
        let (mut transmit_driver, transmit_state) = harness.stop(transmit);
        assert_eq!(transmit_state.in_flight, 0);
        assert_eq!(transmit_driver.collect(), Some((id, 0)));
        let (receive_driver, receive_state) = harness.stop(receive.queue);
        harness.stop(inbox.queue);
        harness.stop(outbox);
        let payload = harness.device.save().unwrap();
        // What the old host had taken, it still delivers.
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            first.read_to_end(&mut got).map(|_| got)
        });
        drop(chardevs);
        let mut got = reader.join().unwrap().unwrap();
        assert!(got.len() < sent.len());
        let state: State = payload.clone().decode(KIND, VERSION).unwrap();
        assert_eq!(got.len() + state.ports[1].output.len(), sent.len());
        drop((harness, dir));

        let (dir, mut device, _chardevs) = open("");
        let mut second = UnixStream::connect(dir.path().join("1")).unwrap();
        second.set_read_timeout(Some(PATIENCE)).unwrap();
        until("the new client is there", || {
            device.handle().ports()[1].host_open
        });
        device.restore(payload.clone()).unwrap();
        assert_eq!(device.save().unwrap(), payload);
        assert!(device.handle().ports()[1].guest_open);
        let guest = transmit_driver.guest().clone();
        let mut harness = DeviceHarness::new(device, &guest, ring);
        let queue = harness.start_with(4, receive_driver, receive_state);
        let mut receive = Inbox::new(queue);
        receive.offer(1, 64);
        assert_eq!(receive.next(), b"input");
        let mut transmit = harness.start_with(5, transmit_driver, transmit_state);
        let mut rest = vec![0; sent.len() - got.len()];
        second.read_exact(&mut rest).unwrap();
        got.extend(rest);
        assert!(got == sent);
        transmit.request(&[b"more"], &[]);
        let mut more = [0; 4];
        second.read_exact(&mut more).unwrap();
        assert_eq!(&more, b"more");
    }
}

#[test]
fn nonsense_needs_a_reset_and_nothing_more() {
    type Hostile = fn(&Guest) -> Vec<Buffer>;
    let hostile: [(u16, Hostile); 4] = [
        (3, |guest| vec![Buffer::readable(guest.put(&[0; 7]), 7)]),
        (1, |_| vec![Buffer::readable(1 << 40, 10)]),
        (0, |guest| vec![Buffer::readable(guest.put(b"x"), 1)]),
        // A buffer that is too small for a message.
        (2, |guest| vec![Buffer::writable(guest.alloc(7, 1), 7)]),
    ];
    for (index, chain) in hostile {
        let (dir, device, _chardevs) = open("");
        let guest = Guest::new(4 << 20);
        let mut harness = DeviceHarness::new(device, &guest, 0);
        let mut outbox = harness.start(3);
        for (event, id) in [
            (event::DEVICE_READY, 0),
            (event::PORT_READY, 0),
            (event::PORT_OPEN, 0),
        ] {
            outbox.request(&[Control::new(id, event, 1).as_bytes()], &[]);
        }
        let mut client = UnixStream::connect(dir.path().join("0")).unwrap();
        client.write_all(b"input").unwrap();
        if index == 3 {
            harness.stop(outbox);
        }
        let mut queue = harness.start(index);
        queue.driver.offer(&chain(&guest)).unwrap();
        queue.kick();
        until("trouble", || harness.trouble.is_set());
        assert_eq!(harness.config_interrupts.count(), 1);
        assert!(queue.driver.collect().is_none());
        harness.stop(queue);
        if index != 3 {
            harness.device.stop_queue(3).unwrap();
        }
        harness.device.reset();
        let mut harness = DeviceHarness::new(harness.device, &guest, 0);
        let mut inbox = Inbox::new(harness.start(2));
        inbox.offer(4, 64);
        inbox.silent();
        let ready = Control::new(0, event::DEVICE_READY, 1);
        harness.start(3).request(&[ready.as_bytes()], &[]);
        assert_eq!(inbox.message(), (0, event::DEVICE_ADD, 1, vec![]));
        harness.device.stop_queue(2).unwrap();
        harness.device.stop_queue(3).unwrap();
    }
}

#[test]
fn other_devices_and_impossible_states_are_refused() {
    let (_dir, mut device, _chardevs) = open("");
    let state: State = device.save().unwrap().decode(KIND, VERSION).unwrap();
    let mut refuse = |change: fn(&mut State), words: &str| {
        let mut other = state.clone();
        change(&mut other);
        let payload = Payload::encode(KIND, VERSION, &other).unwrap();
        let error = device.restore(payload).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(device.shared.model().save(), state, "nothing changed");
    };
    refuse(|s| s.max_nr_ports = 3, "room for 3 ports");
    refuse(|s| s.ports[1].name = Some("other".into()), "1 (other)");
    refuse(|s| s.ports.truncate(1), "0 (the console)");
    refuse(|s| s.removals.push(2), "no place 2");
    refuse(|s| s.ports[0].input = vec![0; 4097], "too many bytes");
    let payload = ::state::no_state("virtio-rng");
    assert!(matches!(
        device.restore(payload),
        Err(StateError::Kind { .. })
    ));
}

#[test]
fn the_whole_function_works_and_can_be_moved() {
    let function = || {
        let (dir, device, chardevs) = open(",max-ports=4");
        let guest = Guest::new(8 << 20);
        (dir, device, chardevs, guest)
    };
    let options = TransportOptions::default();
    let (_dir, device, _chardevs, guest) = function();
    let old = VirtioPci::new(Box::new(device), guest.memory().clone(), &options).unwrap();
    let mut driver = PciDriver::probe(Arc::clone(&old), &guest);
    let mut queues = driver.start(!RING_PACKED);
    assert_eq!(queues.len(), 10);
    let say = |driver: &PciDriver, queue: &mut crate::testing::DriverQueue, event, id| {
        queue.enable_interrupts();
        queue.send(&[Control::new(id, event, 1).as_bytes()], &[]);
        driver.kick(3);
        driver.wait_vector(4);
        queue.collect().unwrap();
    };
    say(&driver, &mut queues[3], event::DEVICE_READY, 0);
    say(&driver, &mut queues[3], event::PORT_READY, 1);
    say(&driver, &mut queues[3], event::PORT_OPEN, 1);
    // Messages that were not sent yet move too.
    old.quiesce();
    let (dir, device, _chardevs, _) = function();
    let handle = device.handle();
    let new = VirtioPci::new(Box::new(device), guest.memory().clone(), &options).unwrap();
    driver = driver.moved_to(Arc::clone(&new));
    ::state::Stateful::restore(&*new, ::state::Stateful::save(&*old).unwrap()).unwrap();
    new.resume();
    let mut take = |driver: &PciDriver| {
        queues[2].enable_interrupts();
        let (_, buffers) = queues[2].send(&[], &[64]);
        driver.kick(2);
        driver.wait_vector(3);
        let written = queues[2].collect().unwrap().1;
        let bytes = guest.read(buffers[0].address, written as usize);
        let control = Control::read_from_prefix(&bytes).unwrap().0;
        (control.id.get(), control.event.get())
    };
    assert_eq!(take(&driver), (0, event::DEVICE_ADD));
    assert_eq!(take(&driver), (1, event::DEVICE_ADD));
    assert_eq!(take(&driver), (1, event::PORT_NAME));
    let mut client = UnixStream::connect(dir.path().join("1")).unwrap();
    assert_eq!(take(&driver), (1, event::PORT_OPEN));
    client.write_all(b"ping").unwrap();
    let (_, buffers) = queues[4].send(&[], &[64]);
    driver.kick(4);
    driver.wait_vector(5);
    assert_eq!(queues[4].collect().unwrap().1, 4);
    assert_eq!(guest.read(buffers[0].address, 4), b"ping");
    assert!(handle.ports()[1].guest_open);
    driver.set_status(0);
    assert!(!handle.ports()[1].guest_open);
}

#[test]
fn specs_are_read_and_mistakes_are_told() {
    let spec = ConsoleSpec::parse("stdio,port=a.b@unix:/x@y,port=c@null,max-ports=5").unwrap();
    assert_eq!(spec.to, Some(chardev::Target::Stdio));
    assert_eq!(spec.port[0].name, "a.b");
    assert_eq!(spec.port[0].to.to_string(), "unix:/x@y");
    let again = ConsoleSpec::from_properties(spec.to_properties()).unwrap();
    assert_eq!(again, spec);
    assert_eq!(ConsoleSpec::parse("").unwrap().to, None);

    let error = |text| ConsoleSpec::parse(text).unwrap_err().to_string();
    assert!(error("tcp:1").contains("unix:PATH"));
    assert!(error("port=x").contains("NAME@TARGET"));
    assert!(error("port=@null").contains("between 1 and"));
    assert!(error("port=a/b@null").contains("'/'"));
    assert!(error("port=a@nul").contains("unix:PATH"));

    let mistake = |text: &str| {
        let spec = ConsoleSpec::parse(text).unwrap();
        let opened = Console::open(&spec, thread(), Arc::new(|| {}));
        opened.err().unwrap()
    };
    assert!(matches!(mistake("null,cols=80"), ConsoleError::Size));
    assert!(matches!(mistake("null,cols=0,rows=0"), ConsoleError::Size));
    let twice = mistake("port=a@null,port=a@null").to_string();
    assert_eq!(twice, "there is a port \"a\" already");
    let full = ConsoleError::Full { wanted: 2, max: 1 };
    assert_eq!(
        mistake("port=a@null,max-ports=1").to_string(),
        full.to_string()
    );
    assert!(matches!(
        mistake("null,max-ports=512"),
        ConsoleError::Full { max: 512, .. }
    ));
    assert_eq!(
        mistake("null,port=a@unix:/nonexistent/x").to_string(),
        "port a"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the driver says and whatever happens to the ports, the device says only things
    /// that follow from one another, and comes to an end.
    #[test]
    fn the_model_keeps_the_protocol(
        steps in prop::collection::vec((0u8..8, 0u32..5, 0u16..9, 0u16..2), 1..80)
    ) {
        let mut model = Model::new(4, 80, 25);
        model.negotiated(feature::MULTIPORT);
        model.plug(0, None);
        // What a driver knows: ports that were added, and which of them are open.
        let mut known: BTreeMap<u32, bool> = BTreeMap::new();
        for (action, id, kind, value) in steps {
            match action {
                0 if model.free_place() == Some(id) => {
                    model.plug(id, Some(format!("p{id}")));
                }
                1 if id != 0 => model.unplug(id),
                2 => model.set_host_open(id, value != 0),
                3 => _ = model.resize(kind, kind),
                4 => {
                    let state = model.save();
                    model.restore(&state).unwrap();
                    prop_assert_eq!(model.save(), state);
                }
                5 => for _ in 0..64 {
                    let Some(message) = model.next_message() else { break };
                    let (control, tail) = Control::read_from_prefix(&message).unwrap();
                    let (id, value) = (control.id.get(), control.value.get());
                    match control.event.get() {
                        event::DEVICE_ADD => _ = known.entry(id).or_insert(false),
                        event::DEVICE_REMOVE => _ = known.remove(&id),
                        event::PORT_OPEN => {
                            prop_assert!(id == 0 || known.get(&id) == Some(&(value == 0)));
                            known.insert(id, value != 0);
                        }
                        event::PORT_NAME => prop_assert_eq!(tail, [b'p', b'0' + id as u8]),
                        event::CONSOLE_PORT => prop_assert_eq!(id, 0),
                        event::RESIZE => prop_assert!(id == 0 && tail.len() == 4),
                        other => prop_assert!(false, "message {}", other),
                    }
                },
                _ => {
                    if kind == event::PORT_READY {
                        // Only a driver that knows the port answers for it.
                        if !known.contains_key(&id) { continue; }
                        known.insert(id, false);
                    }
                    model.received(&Control::new(id, kind, value));
                }
            }
        }
        for _ in 0..64 {
            model.next_message();
        }
        prop_assert!(!model.has_message());
    }
}
