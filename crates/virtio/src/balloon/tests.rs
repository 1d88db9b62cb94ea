use std::sync::mpsc;
use std::time::{Duration, Instant};

use ::spec::Spec;
use event::IoThreadConfig;
use memory::{HugePages, Options};
use proptest::prelude::*;

use super::*;
use crate::features::{RING_EVENT_IDX, RING_PACKED, VERSION_1};
use crate::testing::{Buffer, DeviceHarness, Guest, PciDriver};
use crate::{TransportOptions, VirtioPci};

const RAM: u64 = 4 << 20;

fn guest(shared: bool) -> Guest {
    let options = Options {
        shared,
        huge: HugePages::Never,
        ..Options::default()
    };
    Guest::with_memory(memory::allocate(&[(0, RAM)], &options).unwrap())
}

fn balloon(guest: &Guest, text: &str) -> (Balloon, BalloonControl) {
    let thread = IoThread::spawn(IoThreadConfig::new("balloon-test")).unwrap();
    let spec = BalloonSpec::parse(text).unwrap();
    Balloon::new(&spec, guest.memory().clone(), thread)
}

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

fn fill(guest: &Guest, page: u64) {
    guest.write(page << 12, &[0xaa; 4096]);
}

fn is_zero(guest: &Guest, page: u64) -> bool {
    guest.read(page << 12, 4096).iter().all(|b| *b == 0)
}

#[test]
fn inflated_pages_go_back_to_the_host() {
    for (shared, features) in [(false, 0), (true, RING_PACKED | RING_EVENT_IDX)] {
        let guest = guest(shared);
        let (device, _) = balloon(&guest, "");
        let mut harness = DeviceHarness::new(device, &guest, features);
        let mut inflate = harness.start(0);
        for page in 0x300..0x310 {
            fill(&guest, page);
        }
        // Also twice the same, far outside, and half a number at the end.
        let mut list = numbers(&[0x301, 0x303, 0x302, 0x303, 0x30f, u32::MAX, 0x400]);
        list.extend([5, 3]);
        inflate.request(&[&list], &[]);
        for page in 0x300..0x310 {
            let gone = matches!(page, 0x301..=0x303 | 0x30f);
            assert_eq!(is_zero(&guest, page), gone, "{page:#x}");
        }
        let mut deflate = harness.start(1);
        deflate.request(&[&numbers(&[0x301])], &[]);
        fill(&guest, 0x301);
        assert!(!is_zero(&guest, 0x301) && !harness.trouble.is_set());
    }
}

#[test]
fn a_long_list_is_taken_in_batches() {
    let guest = guest(false);
    let (device, _) = balloon(&guest, "");
    let mut harness = DeviceHarness::new(device, &guest, 0);
    let mut inflate = harness.start(0);
    for page in [0x200, 0x3ff] {
        fill(&guest, page);
    }
    let mut pages = vec![0x7fff_ffff; 1000];
    pages[0] = 0x200;
    pages.extend([0x3ff]);
    inflate.request(&[&numbers(&pages)], &[]);
    assert!(is_zero(&guest, 0x200) && is_zero(&guest, 0x3ff));
}

#[test]
fn reported_memory_goes_back_unless_it_is_poisoned() {
    for index in [3, 4] {
        let guest = guest(false);
        let (device, _) = balloon(&guest, "");
        let mut harness = DeviceHarness::new(device, &guest, 0);
        let mut reporting = harness.start(index);
        let mut report = |page: u64, count: u32| {
            let buffer = Buffer::writable(page << 12, count << 12);
            reporting.driver.offer(&[buffer]).unwrap();
            reporting.kick();
            reporting.wait();
        };
        for page in 0x300..0x304 {
            fill(&guest, page);
        }
        report(0x301, 2);
        let zero: Vec<_> = (0x300..0x304).map(|page| is_zero(&guest, page)).collect();
        assert_eq!(zero, [false, true, true, false]);
        harness.device.config_write(12, &[0xaa; 4]);
        report(0x300, 1);
        assert!(!is_zero(&guest, 0x300));
        harness.device.config_write(12, &[0; 4]);
        report(0x300, 1);
        assert!(is_zero(&guest, 0x300));
    }
}

#[test]
fn without_statistics_linux_gives_their_number_to_reporting() {
    let guest = guest(false);
    let (device, _) = balloon(&guest, "");
    let features = VERSION_1 | F_PAGE_REPORTING;
    let mut harness = DeviceHarness::with_features(device, &guest, features);
    let mut reporting = harness.start(2);
    fill(&guest, 0x300);
    let buffer = Buffer::writable(0x300 << 12, 4096);
    reporting.driver.offer(&[buffer]).unwrap();
    reporting.kick();
    reporting.wait();
    assert!(is_zero(&guest, 0x300));
}

fn stats(entries: &[(u16, u64)]) -> Vec<u8> {
    let entry = |(tag, value): &(u16, u64)| {
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend(value.to_le_bytes());
        bytes
    };
    entries.iter().flat_map(entry).collect()
}

fn wait_for(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < end, "it does not happen");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn the_guest_is_asked_for_statistics() {
    let guest = guest(false);
    let (device, control) = balloon(&guest, "");
    let mut harness = DeviceHarness::new(device, &guest, 0);
    let mut queue = harness.start(2);
    assert_eq!(control.stats(), Stats::default());
    let first = stats(&[(4, 1000), (5, 2000), (99, 1), (0, 7)]);
    let (id, _) = queue.driver.send(&[&first], &[]);
    queue.kick();
    wait_for(|| control.stats().last_update.is_some());
    let told: Vec<_> = control.stats().iter().collect();
    assert_eq!(
        told,
        [
            ("stat-swap-in", 7),
            ("stat-free-memory", 1000),
            ("stat-total-memory", 2000)
        ]
    );
    assert!(!queue.driver.used_available(), "the buffer is kept");
    control.set_polling_interval(3600);
    assert_eq!(queue.wait(), (id, 0));
    queue.driver.send(&[&stats(&[(4, 1001)])], &[]);
    queue.kick();
    wait_for(|| control.stats().iter().eq([("stat-free-memory", 1001)]));
    // The kept buffer is the driver's again when the queue stops.
    let (driver, state) = harness.stop(queue);
    assert_eq!((state.in_flight, state.next_avail), (0, 1));
    let mut queue = harness.start_with(2, driver, state);
    wait_for(|| control.stats().last_update.is_some());
    control.set_polling_interval(3600);
    queue.wait();
    control.set_polling_interval(0);
    assert_eq!(control.polling_interval(), 0);
}

#[test]
fn host_and_guest_agree_on_a_size_through_the_registers() {
    let guest = guest(false);
    let (device, control) = balloon(&guest, "deflate-on-oom=on");
    let (sender, changes) = mpsc::channel();
    control.on_change(move |bytes| sender.send(bytes).unwrap());
    let options = TransportOptions::default();
    let function = VirtioPci::new(Box::new(device), guest.memory().clone(), &options).unwrap();
    control.set_target(RAM - (1 << 20));
    let mut driver = PciDriver::probe(Arc::clone(&function), &guest);
    assert_eq!(driver.offered() & 0x3f, 0b11_0110);
    driver.start(u64::MAX);
    assert_eq!(driver.device_config(0, 4), [0, 1, 0, 0]);
    driver.write_device_config(0, &[9; 4]);
    driver.write_device_config(4, &0x80u32.to_le_bytes());
    assert_eq!(driver.device_config(0, 8), [0, 1, 0, 0, 0x80, 0, 0, 0]);
    assert_eq!(changes.try_iter().collect::<Vec<_>>(), [RAM - (512 << 10)]);
    assert_eq!(control.actual(), RAM - (512 << 10));
    _ = driver.take_vectors();
    control.set_target(u64::MAX);
    assert_eq!((driver.take_vectors(), driver.generation()), (vec![0], 1));
    assert_eq!(driver.device_config(0, 4), [0; 4]);
    control.set_target(0);
    assert_eq!(driver.device_config(0, 4), [0, 4, 0, 0]);
    driver.write_device_config(12, &[7; 4]);

    control.set_polling_interval(30);
    let saved = ::state::Stateful::save(&*function).unwrap();
    let (device, control) = balloon(&guest, "deflate-on-oom=on");
    let other = VirtioPci::new(Box::new(device), guest.memory().clone(), &options).unwrap();
    ::state::Stateful::restore(&*other, saved.clone()).unwrap();
    assert_eq!(::state::Stateful::save(&*other).unwrap(), saved);
    assert_eq!(control.polling_interval(), 30);
    assert_eq!(control.actual(), RAM - (512 << 10));
    ::state::Stateful::reset(&*other);
    assert_eq!(control.actual(), RAM, "a fresh guest has an empty balloon");
}

proptest! {
    #[test]
    fn any_access_to_the_registers_is_survived(
        writes in proptest::collection::vec((prop_oneof![0..20u64, any::<u64>()], proptest::collection::vec(any::<u8>(), 0..20)), 0..20),
    ) {
        let mut model = Model { num_pages: 77, ..Model::default() };
        for (offset, data) in writes {
            model.write(offset, &data);
            let mut read = [0; 20];
            model.read(offset, &mut read);
            prop_assert_eq!(model.num_pages, 77);
        }
    }
}
