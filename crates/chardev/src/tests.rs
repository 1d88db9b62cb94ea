use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event::{IoThread, IoThreadConfig};

use super::*;

/// A front that takes `room` bytes at a time and remembers them.
#[derive(Default)]
struct Recorder {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    received: Vec<u8>,
    room: usize,
    wakes: u32,
    connections: Vec<bool>,
}

impl Front for Recorder {
    fn receive(&self, data: &[u8]) -> usize {
        let mut inner = self.inner.lock().unwrap();
        let taken = data.len().min(inner.room);
        inner.room -= taken;
        inner.received.extend_from_slice(&data[..taken]);
        taken
    }

    fn can_send(&self) {
        self.inner.lock().unwrap().wakes += 1;
    }

    fn connected(&self, connected: bool) {
        self.inner.lock().unwrap().connections.push(connected);
    }
}

impl Recorder {
    fn until(&self, what: &str, done: impl Fn(&Inner) -> bool) {
        let begin = Instant::now();
        while !done(&self.inner.lock().unwrap()) {
            assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn give_room(&self, link: &Link, room: usize) {
        self.inner.lock().unwrap().room += room;
        link.resume();
    }
}

fn thread() -> IoThread {
    IoThread::spawn(IoThreadConfig::new("chardev-test")).unwrap()
}

#[test]
fn targets_parse_as_they_are_shown() {
    for text in ["stdio", "pty", "null", "file:/tmp/a:b", "unix:/run/x"] {
        assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
    }
    for text in ["", "file:", "unix", "stdio:x", "tcp:1"] {
        assert!(
            text.parse::<Target>().unwrap_err().contains("file:PATH"),
            "{text}"
        );
    }
}

#[test]
fn a_file_gets_all_output() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (mut chardev, link) = Chardev::open(&Target::File(path.clone()), None).unwrap();
    let thread = thread();
    chardev.start(&thread, Arc::new(Recorder::default()));
    let text: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    let mut rest = text.as_slice();
    while !rest.is_empty() {
        let taken = link.send(rest);
        rest = &rest[taken..];
        if taken == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    drop(chardev);
    assert!(std::fs::read(path).unwrap() == text);
}

#[test]
fn a_socket_serves_one_client_after_the_other_with_flow_control() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (mut chardev, link) = Chardev::open(&Target::Unix(path.clone()), None).unwrap();
    assert!(
        Chardev::open(&Target::Unix(path.clone()), None).is_err(),
        "a live socket is not taken over"
    );
    let front = Arc::new(Recorder::default());
    let thread = thread();
    chardev.start(&thread, front.clone());
    assert_eq!(
        link.send(&[0; 100_000]),
        100_000,
        "nobody is there, nothing is kept"
    );
    // Looking whether the socket is live is a short visit.
    front.until("the visitor has gone", |i| i.connections == [true, false]);
    front.inner.lock().unwrap().connections.clear();
    for round in 1..=2usize {
        let mut client = UnixStream::connect(&path).unwrap();
        front.until("connects", |i| {
            i.connections.iter().filter(|c| **c).count() == round
        });
        client.write_all(b"hello").unwrap();
        front.give_room(&link, 2);
        front.until("takes two", |i| i.received.ends_with(b"he"));
        front.give_room(&link, 3);
        front.until("takes the rest", |i| i.received.ends_with(b"hello"));
        assert_eq!(link.send(b"answer"), 6);
        let mut answer = [0; 6];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
        drop(client);
        front.until("closes", |i| {
            i.connections.iter().filter(|c| !**c).count() == round
        });
    }
    drop(chardev);
    assert!(!path.exists());
    // A socket that a dead process left behind is taken over.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    Chardev::open(&Target::Unix(path), None).unwrap();
}

#[test]
fn a_reader_that_does_not_read_holds_the_guest_back_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (mut chardev, link) = Chardev::open(&Target::Unix(path.clone()), None).unwrap();
    let front = Arc::new(Recorder::default());
    let thread = thread();
    chardev.start(&thread, front.clone());
    let mut client = UnixStream::connect(&path).unwrap();
    front.until("connects", |i| i.connections == [true]);
    let mut sent = 0usize;
    let begin = Instant::now();
    let mut refused = 0;
    while refused < 50 {
        let taken = link.send(&[(sent % 256) as u8]);
        sent += taken;
        refused = if taken == 0 { refused + 1 } else { 0 };
        if taken == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
    let mut got = vec![0; sent];
    client.read_exact(&mut got).unwrap();
    assert!(got.iter().enumerate().all(|(i, b)| *b == (i % 256) as u8));
    front.until("tells of room", |i| i.wakes > 0);
}

#[test]
fn a_client_that_leaves_is_noticed_although_the_guest_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (mut chardev, _link) = Chardev::open(&Target::Unix(path.clone()), None).unwrap();
    let front = Arc::new(Recorder::default());
    let thread = thread();
    chardev.start(&thread, front.clone());
    for round in 1..=2usize {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"nobody reads this").unwrap();
        drop(client);
        front.until("comes and goes", |i| {
            i.connections == [true, false].repeat(round)
        });
    }
}

#[test]
fn a_pty_carries_both_ways() {
    let (mut chardev, link) = Chardev::open(&Target::Pty, None).unwrap();
    let name = chardev
        .description()
        .strip_prefix("pty:")
        .unwrap()
        .to_owned();
    let front = Arc::new(Recorder::default());
    let thread = thread();
    chardev.start(&thread, front.clone());
    front.give_room(&link, 100);
    let mut terminal = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name)
        .unwrap();
    terminal.write_all(b"typed\r").unwrap();
    front.until("receives", |i| i.received == b"typed\r");
    link.send(b"login: ");
    let mut prompt = [0; 7];
    terminal.read_exact(&mut prompt).unwrap();
    assert_eq!(&prompt, b"login: ");
}
