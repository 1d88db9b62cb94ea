use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn map(ram: u64, phys_bits: u8) -> Result<MemoryMap, BoardError> {
    MemoryMap::new(&MemoryMapConfig {
        ram,
        hotplug: 0,
        phys_bits,
    })
}

#[test]
fn small_guests_have_everything_below_the_hole() {
    let map = map(1024 * MIB, 40).unwrap();
    assert_eq!(map.ram_ranges(), [(0, 1024 * MIB)]);
    assert_eq!(map.high_ram, None);
    assert_eq!(
        map.pci64,
        Some(Range::new(mem::FOUR_GIB, 512 * GIB)),
        "the 64-bit window stands right above 4 GiB"
    );
}

#[test]
fn the_split_is_at_two_point_seven_five_gib() {
    let below = map(mem::LOW_RAM_SPLIT - RAM_ALIGN, 40).unwrap();
    assert_eq!(below.low_ram_end, 0xafe0_0000);
    assert_eq!(below.high_ram, None);
    let at = map(mem::LOW_RAM_SPLIT, 40).unwrap();
    assert_eq!(at.low_ram_end, 2 * GIB);
    assert_eq!(at.high_ram, Some(Range::new(4 * GIB, 768 * MIB)));
}

#[test]
fn two_tib_with_hot_plug_space() {
    let map = MemoryMap::new(&MemoryMapConfig {
        ram: 2048 * GIB,
        hotplug: 1024 * GIB,
        phys_bits: 46,
    })
    .unwrap();
    assert_eq!(map.ram_size(), 2048 * GIB);
    assert_eq!(map.hotplug, Some(Range::new(2050 * GIB, 1024 * GIB)));
    assert_eq!(map.pci64, Some(Range::new(3074 * GIB, 512 * GIB)));
}

#[test]
fn sizes_that_cannot_be_are_refused_with_their_values() {
    let text = |ram, bits| map(ram, bits).unwrap_err().to_string();
    assert_eq!(
        text(63 * MIB, 40),
        "66060288 bytes of memory are too little: the machine needs 64 MiB or more"
    );
    assert_eq!(
        text(65 * MIB, 40),
        "memory of 68157440 bytes is not a multiple of 2048 KiB"
    );
    assert!(text(64 * GIB, 36).contains("0x1080000000 does not fit in the processor's 36"));
    assert!(text(GIB, 31).contains("31 physical address bits"));
    assert!(text(u64::MAX - (RAM_ALIGN - 1), 52).contains("does not fit"));
}

#[test]
fn the_window_stays_clear_of_hypertransport() {
    let below = map(GIB, 40).unwrap().pci64.unwrap();
    assert!(below.base + below.size <= mem::HYPER_TRANSPORT);
    let above = map(1011 * GIB, 48).unwrap().pci64.unwrap();
    assert_eq!(above.base, 1 << 40);
    assert_eq!(map(1011 * GIB, 40).unwrap().pci64, None);
}

#[test]
fn e820_of_a_small_guest() {
    let map = map(256 * MIB, 40).unwrap();
    let entries: Vec<_> = map
        .e820(map.low_ram_end - 0x2_0000)
        .iter()
        .map(|e| (e.base, e.end(), e.kind))
        .collect();
    assert_eq!(
        entries,
        [
            (0, 0x9_fc00, E820Kind::Ram),
            (0x9_fc00, 0xa_0000, E820Kind::Reserved),
            (0xe_0000, 0x10_0000, E820Kind::Reserved),
            (0x10_0000, 0xffe_0000, E820Kind::Ram),
            (0xffe_0000, 0x1000_0000, E820Kind::Acpi),
            (0xb000_0000, 0xc000_0000, E820Kind::Reserved),
            (0xfeff_c000, 0xff00_0000, E820Kind::Reserved),
        ]
    );
}

#[test]
fn nodes_share_the_ram_across_the_hole() {
    let map = map(4 * GIB, 40).unwrap();
    assert_eq!(
        map.split(&[GIB, 2 * GIB, GIB]),
        [
            vec![Range::new(0, GIB)],
            vec![Range::new(GIB, GIB), Range::new(4 * GIB, GIB)],
            vec![Range::new(5 * GIB, GIB)],
        ]
    );
    assert_eq!(map.split(&[8 * GIB, GIB])[1], []);
}

proptest! {
    #[test]
    fn nothing_overlaps(
        ram in 32_u64..0x10_0000_0000, hotplug in 0_u64..0x1000_0000, phys_bits in 30_u8..54,
    ) {
        let config = MemoryMapConfig {
            ram: ram * RAM_ALIGN, hotplug: hotplug * RAM_ALIGN, phys_bits,
        };
        let Ok(map) = MemoryMap::new(&config) else { return Ok(()) };
        prop_assert_eq!(map.ram_size(), config.ram);
        let mut ranges: Vec<Range> =
            map.ram_ranges().iter().map(|&(base, size)| Range::new(base, size)).collect();
        ranges.extend([map.ecam, map.pci32]);
        ranges.extend(map.hotplug);
        ranges.extend(map.pci64);
        ranges.push(Range::new(mem::IO_APIC, mem::FOUR_GIB - mem::IO_APIC));
        ranges.sort_by_key(|range| range.base);
        for pair in ranges.windows(2) {
            prop_assert!(pair[0].last().unwrap() < pair[1].base, "{:x?}", pair);
        }
        for range in ranges.iter().filter(|range| range.base >= mem::FOUR_GIB) {
            prop_assert!(range.last().unwrap() >> phys_bits == 0);
        }
        let e820 = map.e820(map.low_ram_end);
        for pair in e820.windows(2) {
            prop_assert!(pair[0].end() <= pair[1].base);
        }
    }
}
