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
