use proptest::prelude::*;

use super::*;

pub(crate) fn layout(cluster_bits: u32, extended: bool) -> Layout {
    Layout {
        version: 3,
        cluster_bits,
        refcount_order: 4,
        extended,
        data_file: false,
    }
}

#[test]
fn sizes_follow_from_cluster_bits() {
    let usual = layout(16, false);
    assert_eq!(usual.l2_entries(), 8192);
    assert_eq!(usual.slice_entries(), 512);
    assert_eq!(usual.block_refcounts(), 32768);
    assert_eq!(usual.max_refcount(), 0xffff);
    let small = layout(9, false);
    assert_eq!(small.slice(), 512);
    assert_eq!(small.slices(), 1);
    let extended = layout(16, true);
    assert_eq!(extended.l2_entries(), 4096);
    assert_eq!(extended.subcluster(), 2048);
    assert_eq!(extended.mask(3, 32), !7);
    assert_eq!(extended.all(), u32::MAX);
    assert_eq!(usual.all(), 1);
}

proptest! {
    #[test]
    fn entries_survive_encoding(
        bits in 14..=21u32,
        extended in any::<bool>(),
        cluster in 1..1u64 << 30,
        allocated in any::<u32>(),
        zero in any::<u32>(),
        copied in any::<bool>(),
    ) {
        let layout = layout(bits, extended);
        let (allocated, zero) = match extended {
            true => (allocated, zero & !allocated),
            false => (1 - (zero & 1), zero & 1),
        };
        let entry = Entry::Standard { host: Some(cluster << bits), copied, allocated, zero };
        let (word, bitmap) = entry.encode(&layout);
        prop_assert_eq!(Entry::decode(word, bitmap, &layout).unwrap(), entry);
    }

    #[test]
    fn compressed_entries_survive_encoding(
        bits in 9..=21u32,
        offset in 0..1u64 << 40,
        length in 1..1u64 << 9,
    ) {
        let layout = layout(bits, false);
        let (word, bitmap) = Entry::Compressed { offset, bytes: length }.encode(&layout);
        let Ok(Entry::Compressed { offset: found, bytes }) = Entry::decode(word, bitmap, &layout)
        else {
            panic!("not compressed")
        };
        prop_assert_eq!(found, offset);
        prop_assert!(bytes >= length && bytes < length + 512);
    }

    #[test]
    fn no_word_panics(word in any::<u64>(), bitmap in any::<u64>(), bits in 14..=21u32,
        extended in any::<bool>(), data_file in any::<bool>()) {
        let layout = Layout { data_file, ..layout(bits, extended) };
        let _ = Entry::decode(word, bitmap, &layout);
        let _ = L1Entry::decode(word, &layout);
        let _ = refcount_block(word, &layout);
    }
}
