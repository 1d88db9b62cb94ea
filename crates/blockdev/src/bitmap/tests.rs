use std::collections::BTreeSet;
use std::sync::Arc;

use block::graph::{Change, ChangeKind, Observer};
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Set(u64, u64),
    Clear(u64, u64),
    Resize(u64),
}

/// Pieces that a set has; pieces of `granularity` bytes of a disk of `size` bytes.
struct Model {
    set: BTreeSet<u64>,
    granularity: u64,
    size: u64,
}

impl Model {
    fn pieces(&self, offset: u64, len: u64) -> Range<u64> {
        let end = (offset + len).min(self.size);
        if offset >= end {
            return 0..0;
        }
        offset / self.granularity..(end - 1) / self.granularity + 1
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Set(offset, len) => self.set.extend(self.pieces(offset, len)),
            Step::Clear(offset, len) => {
                let pieces = self.pieces(offset, len);
                self.set.retain(|piece| !pieces.contains(piece));
            }
            Step::Resize(size) => {
                self.size = size;
                let granularity = self.granularity;
                self.set.retain(|piece| piece * granularity < size);
            }
        }
    }

    /// Runs of set pieces, cut off at the end of the disk.
    fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for piece in &self.set {
            let start = piece * self.granularity;
            let end = (start + self.granularity).min(self.size);
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        runs
    }
}

/// More than a segment at 512 bytes, so that there are several.
const LARGEST: u64 = 300 << 20;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![0..5000_u64, 0..LARGEST];
    let range = (0..LARGEST, len);
    let step = prop_oneof![
        5 => range.clone().prop_map(|(offset, len)| Step::Set(offset, len % 3_000_000)),
        3 => range.prop_map(|(offset, len)| Step::Clear(offset, len)),
        1 => (1..LARGEST).prop_map(Step::Resize),
    ];
    prop::collection::vec(step, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_bitmap_is_a_set(
        steps in steps(),
        shift in 12..24_u32,
        size in 1..LARGEST,
        looks in prop::collection::vec((0..LARGEST, 0..LARGEST), 4),
    ) {
        let granularity = 1 << shift;
        let bitmap = DirtyBitmap::new("b", size, granularity).unwrap();
        let mut model = Model { set: BTreeSet::new(), granularity, size };
        for step in &steps {
            model.step(step);
            match *step {
                Step::Set(offset, len) => bitmap.mark(offset..offset + len),
                Step::Clear(offset, len) => bitmap.reset(offset..offset + len),
                Step::Resize(size) => bitmap.resize(size),
            }
            prop_assert_eq!(bitmap.count(), model.set.len() as u64 * granularity);
        }
        prop_assert_eq!(bitmap.dirty_ranges(), model.runs());
        prop_assert_eq!(bitmap.size(), model.size);
        for (offset, len) in looks {
            let inside = offset < model.size;
            let piece = offset / granularity;
            prop_assert_eq!(bitmap.is_dirty(offset), inside && model.set.contains(&piece));
            // The extents are the range, and say of each byte what the set says.
            let extents = bitmap.extents(offset, len, usize::MAX);
            let end = (offset + len).min(model.size);
            let total: u64 = extents.iter().map(|(len, _)| len).sum();
            prop_assert_eq!(total, end.saturating_sub(offset));
            let mut at = offset;
            for (index, &(len, dirty)) in extents.iter().enumerate() {
                prop_assert!(len != 0);
                prop_assert!(index == 0 || extents[index - 1].1 != dirty);
                for place in [at, at + len - 1] {
                    prop_assert_eq!(model.set.contains(&(place / granularity)), dirty);
                }
                at += len;
            }
        }
    }

    #[test]
    fn merging_is_a_union(
        to in 9..22_u32,
        from in 9..22_u32,
        ranges in prop::collection::vec((0..20_000_000_u64, 1..100_000_u64), 0..20),
    ) {
        let size = 20_000_000;
        let sum = DirtyBitmap::new("to", size, 1 << to).unwrap();
        let other = DirtyBitmap::new("from", size, 1 << from).unwrap();
        let mut want = Model { set: BTreeSet::new(), granularity: 1 << to, size };
        for (index, &(offset, len)) in ranges.iter().enumerate() {
            if index % 2 == 0 {
                sum.mark(offset..offset + len);
                want.step(&Step::Set(offset, len));
            } else {
                other.mark(offset..offset + len);
            }
        }
        for run in other.dirty_ranges() {
            want.step(&Step::Set(run.start, run.end - run.start));
        }
        sum.merge(&other).unwrap();
        prop_assert_eq!(sum.dirty_ranges(), want.runs());
    }
}

#[test]
fn what_is_no_bitmap_is_refused() {
    let error = |name: &str, granularity| DirtyBitmap::new(name, 1 << 20, granularity).err();
    assert_eq!(error("", 65536), Some(BitmapError::NoName));
    assert_eq!(error(&"x".repeat(1024), 65536), Some(BitmapError::LongName));
    for granularity in [0, 1, 256, 513, 4 << 30] {
        assert_eq!(error("b", granularity), Some(BitmapError::Granularity));
    }
    assert_eq!(error("b", 512), None);
    assert_eq!(error("b", 2 << 30), None);
}

#[test]
fn disks_of_other_sizes_are_not_merged() {
    let one = DirtyBitmap::new("one", 1 << 20, 65536).unwrap();
    let other = DirtyBitmap::new("other", 2 << 20, 65536).unwrap();
    let error = BitmapError::Sizes {
        to: 1 << 20,
        from: 2 << 20,
    };
    assert_eq!(one.merge(&other), Err(error));
}

fn write(bitmap: &DirtyBitmap, offset: u64, len: u64) {
    bitmap.after(Change {
        kind: ChangeKind::Write,
        offset,
        len,
    });
}

#[test]
fn only_what_is_recording_records() {
    let bitmap = DirtyBitmap::new("b", 1 << 20, 4096).unwrap();
    bitmap.set_recording(false);
    write(&bitmap, 0, 512);
    assert_eq!(bitmap.count(), 0);
    bitmap.set_recording(true);
    write(&bitmap, 0, 0);
    assert_eq!(bitmap.count(), 0);
    write(&bitmap, 4095, 2);
    assert_eq!(bitmap.count(), 8192);
    bitmap.resized(4096);
    assert_eq!((bitmap.count(), bitmap.size()), (4096, 4096));
}

#[test]
fn what_is_taken_away_comes_back_or_not() {
    let bitmap = DirtyBitmap::new("b", 1 << 20, 4096).unwrap();
    bitmap.mark(0..8192);
    let frozen = bitmap.freeze().unwrap();
    assert_eq!(bitmap.check(), Err(BitmapError::Busy("b".to_owned())));
    assert!(bitmap.freeze().is_err());
    assert_eq!(bitmap.dirty_ranges(), []);
    // Changes are recorded meanwhile.
    write(&bitmap, 40960, 4096);
    frozen.give_back();
    assert_eq!(bitmap.dirty_ranges(), [0..8192, 40960..45056]);
    let frozen = bitmap.freeze().unwrap();
    write(&bitmap, 0, 512);
    frozen.drop_all_but(None);
    assert_eq!(
        bitmap.extents(0, 1 << 20, 2),
        [(4096, true), ((1 << 20) - 4096, false)]
    );
    let frozen = bitmap.freeze().unwrap();
    let left = Bits::new(1 << 20, 65536);
    left.set(65536..65537);
    frozen.drop_all_but(Some(&left));
    assert_eq!(
        bitmap.extents(0, 1 << 20, 2),
        [(65536, false), (65536, true)]
    );
    assert_eq!(bitmap.check(), Ok(()));
}

#[test]
fn a_command_on_a_bitmap_can_be_undone() {
    let bitmap = DirtyBitmap::new("b", 1 << 20, 4096).unwrap();
    bitmap.mark(0..4096);
    let before = bitmap.clear();
    assert_eq!(bitmap.count(), 0);
    bitmap.mark(8192..8193);
    bitmap.merge_back(&before);
    assert_eq!(bitmap.dirty_ranges(), [0..4096, 8192..12288]);
    let before = bitmap.backup();
    bitmap.mark(0..1 << 20);
    bitmap.restore(&before);
    assert_eq!(bitmap.dirty_ranges(), [0..4096, 8192..12288]);
}

#[test]
fn bitmaps_that_are_not_to_be_used() {
    let bitmap = DirtyBitmap::new("b", 1 << 20, 4096).unwrap();
    bitmap.set_read_only(true);
    assert_eq!(bitmap.check(), Err(BitmapError::ReadOnly("b".to_owned())));
    assert_eq!(bitmap.check_to_read(), Ok(()));
    bitmap.set_inconsistent();
    let error = Err(BitmapError::Inconsistent("b".to_owned()));
    assert_eq!(bitmap.check_to_read(), error);
    assert!(!bitmap.is_recording());
}

/// Many threads mark, one clears: what is marked after it was cleared is there, and the count is
/// that of the bits.
#[test]
fn threads_mark_at_once() {
    let bitmap = DirtyBitmap::new("b", 64 << 20, 512).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let bitmap = Arc::clone(&bitmap);
            scope.spawn(move || {
                for n in 0..20_000_u64 {
                    let piece = (n * 7 + thread * 131) % (128 << 10);
                    write(&bitmap, piece * 512, 512);
                    if n % 64 == 0 {
                        bitmap.reset(piece * 512..piece * 512 + 4096);
                    }
                }
            });
        }
        scope.spawn(|| {
            for n in 1..200_u64 {
                bitmap.resize((64 << 20) + n % 2 * (1 << 30));
            }
        });
    });
    let ranges = bitmap.dirty_ranges();
    let count: u64 = ranges.iter().map(|run| run.end - run.start).sum();
    assert_eq!(bitmap.count(), count);
    bitmap.reset(0..u64::MAX);
    assert_eq!(bitmap.count(), 0);
}
