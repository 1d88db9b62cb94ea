use std::time::Instant;

use ::spec::{Size, Spec};
use event::IoThreadConfig;

use super::*;
use crate::features::{RING_EVENT_IDX, RING_PACKED};
use crate::testing::{DeviceHarness, Guest, PciDriver};
use crate::{TransportOptions, VirtioPci};

fn thread() -> IoThread {
    IoThread::spawn(IoThreadConfig::new("rng-test")).unwrap()
}

fn rng(text: &str) -> Rng {
    Rng::new(&RngSpec::parse(text).unwrap(), thread()).unwrap()
}

#[test]
fn the_guest_gets_random_bytes() {
    for features in [0, RING_EVENT_IDX | RING_PACKED] {
        let guest = Guest::new(1 << 20);
        let mut harness = DeviceHarness::new(rng(""), &guest, features);
        let mut queue = harness.start(0);
        let first = queue.request(&[], &[16, 16]);
        let second = queue.request(&[], &[16, 16]);
        assert_eq!((first.len(), second.len()), (32, 32));
        assert_ne!(first, second);
        assert!(queue.interrupts.count() > 0);
        assert!(queue.request(&[b"only readable"], &[]).is_empty());
    }
}

#[test]
fn one_request_gets_at_most_64_kib() {
    let guest = Guest::new(1 << 20);
    let mut harness = DeviceHarness::new(rng(""), &guest, 0);
    let mut queue = harness.start(0);
    assert_eq!(queue.request(&[], &[128 << 10]).len(), 64 << 10);
}

#[test]
fn a_file_is_read_in_order_and_its_end_is_survived() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"0123456789").unwrap();
    let guest = Guest::new(1 << 20);
    let device = rng(file.path().to_str().unwrap());
    let mut harness = DeviceHarness::new(device, &guest, 0);
    let mut queue = harness.start(0);
    assert_eq!(queue.request(&[], &[6]), b"012345");
    assert_eq!(queue.request(&[], &[6]), b"6789");
    assert!(queue.request(&[], &[6]).is_empty());
    assert!(!harness.trouble.is_set());
}

#[test]
fn a_limit_holds_and_a_waiting_queue_can_be_stopped() {
    let guest = Guest::new(1 << 20);
    let mut harness = DeviceHarness::new(rng("max-bytes=24,period=300"), &guest, 0);
    let mut queue = harness.start(0);
    let start = Instant::now();
    assert_eq!(queue.request(&[], &[16]).len(), 16);
    assert_eq!(queue.request(&[], &[16]).len(), 8, "what is left");
    assert!(start.elapsed() < Duration::from_millis(300));
    assert_eq!(queue.request(&[], &[16]).len(), 16);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(queue.request(&[], &[16]).len(), 8);
    let (id, _) = queue.driver.send(&[], &[16]);
    queue.kick();
    let (driver, state) = harness.stop(queue);
    assert_eq!(state.in_flight, 0);
    let mut queue = harness.start_with(0, driver, state);
    assert_eq!(queue.wait(), (id, 16), "without another kick");
}

#[test]
fn the_whole_function_works_and_can_be_moved() {
    let guest = Guest::new(1 << 20);
    let options = TransportOptions::default();
    let function = || VirtioPci::new(Box::new(rng("")), guest.memory().clone(), &options).unwrap();
    let old = function();
    let mut driver = PciDriver::probe(Arc::clone(&old), &guest);
    let mut queues = driver.start(u64::MAX);
    queues[0].send(&[], &[8]);
    driver.kick(0);
    driver.wait_vector(1);
    assert_eq!(queues[0].collect().unwrap().1, 8);
    old.quiesce();
    queues[0].enable_interrupts();
    queues[0].send(&[], &[9]);
    driver.kick(0);
    let new = function();
    driver = driver.moved_to(Arc::clone(&new));
    ::state::Stateful::restore(&*new, ::state::Stateful::save(&*old).unwrap()).unwrap();
    new.resume();
    driver.wait_vector(1);
    assert_eq!(queues[0].collect().unwrap().1, 9);
}

#[test]
fn mistakes_are_told() {
    let missing = RngSpec::parse("/nonexistent").unwrap();
    let error = Rng::new(&missing, thread()).err().unwrap();
    assert!(error.to_string().contains("/nonexistent"));
    for text in ["max-bytes=0", "max-bytes=1,period=0"] {
        let spec = RngSpec::parse(text).unwrap();
        assert!(matches!(Rng::new(&spec, thread()), Err(RngError::Limit)));
    }
    let spec = RngSpec::parse("max-bytes=1K").unwrap();
    assert_eq!(spec.max_bytes, Some(Size(1024)));
}
