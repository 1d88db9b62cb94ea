use std::sync::Mutex;

use super::*;

#[test]
fn blocks_are_huge_page_aligned_and_hold_what_is_written() {
    for shared in [false, true] {
        let options = Options {
            shared,
            ..Options::default()
        };
        let ram = allocate(&[(0, 4 << 20), (1 << 32, 2 << 20)], &options).unwrap();
        let map = ram.memory();
        let blocks = blocks(&map);
        assert_eq!(blocks.len(), 2);
        assert!(blocks.iter().all(|b| b.host % (2 << 20) == 0));
        assert_eq!(total_size(&map), 6 << 20);
        map.write_obj(0x1234_5678u32, GuestAddress((1 << 32) + 16))
            .unwrap();
        assert_eq!(
            map.read_obj::<u32>(GuestAddress((1 << 32) + 16)).unwrap(),
            0x1234_5678
        );
        assert!(map.write_obj(0u8, GuestAddress(4 << 20)).is_err());
        assert_eq!(map.iter().all(|r| r.file_offset().is_some()), shared);
    }
}

#[test]
fn prealloc_touches_every_page() {
    let options = Options {
        prealloc: true,
        huge: HugePages::Never,
        ..Options::default()
    };
    let ram = allocate(&[(0, 1 << 20)], &options).unwrap();
    assert_eq!(
        ram.memory().read_obj::<u64>(GuestAddress(0xff000)).unwrap(),
        0
    );
}

#[test]
fn impossible_maps_are_refused_with_the_value() {
    let odd = allocate(&[(0, 4097)], &Options::default()).unwrap_err();
    assert!(odd.to_string().contains("4097"), "{odd}");
    let overlap = allocate(&[(0, 8192), (4096, 4096)], &Options::default());
    assert!(matches!(overlap, Err(MemoryError::Map(_))));
    let huge = Options {
        huge: HugePages::Hugetlb1G,
        ..Options::default()
    };
    assert!(allocate(&[(0, 1 << 20)], &huge).is_err());
}

#[derive(Default)]
struct Log(Mutex<Vec<(u64, u64)>>);

impl WriteListener for Log {
    fn written(&self, address: u64, len: u64) {
        self.0.lock().unwrap().push((address, len));
    }
}

#[test]
fn the_listener_hears_of_writes_to_watched_pages_in_every_region() {
    let high = 5 << 40;
    let ram = allocate(&[(0, 1 << 20), (high, 1 << 20)], &Options::default()).unwrap();
    let map = ram.memory();
    let watch = write_watch(&map).unwrap();
    // Nobody listens: nothing happens.
    written(&map, 0, 100);
    let log = Arc::new(Log::default());
    assert!(watch.listen(log.clone()).is_ok());
    assert!(watch.listen(log.clone()).is_err());
    let heard = || std::mem::take(&mut *log.0.lock().unwrap());
    written(&map, 0, 1 << 20);
    assert!(heard().is_empty());

    assert!(watch.watch(0x3123));
    assert!(!watch.watch(0x3000));
    assert!(watch.watch(high + 0x5000));
    assert!(watch.is_watched(0x3fff) && !watch.is_watched(0x4000));
    // A snapshot, too, and every region of it.
    let snapshot = Ram::clone(&map);
    written(&snapshot, 0x2ff0, 0x20);
    written(&snapshot, 0x3ff0, 0x20);
    written(&snapshot, 0x2000, 0x1000);
    written(&snapshot, 0x3008, 0);
    written(&snapshot, high, 1 << 20);
    written(&snapshot, u64::MAX - 3, 100);
    assert_eq!(
        heard(),
        [(0x3000, 0x10), (0x3ff0, 0x10), (high + 0x5000, 0x1000)]
    );
    all_written(&map);
    assert_eq!(heard(), [(0x3000, 0x1000), (high + 0x5000, 0x1000)]);
    watch.unwatch(0x3000);
    written(&map, 0x3000, 8);
    assert!(heard().is_empty());
}
