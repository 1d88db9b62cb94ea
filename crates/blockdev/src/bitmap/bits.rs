//! A bit for each piece of a disk, changed by many threads at once without a lock.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;

/// Bits of a word.
const WORD: u64 = 64;
/// Words of a segment: 32 KiB of memory, which is there once a bit of it is set.
const WORDS: usize = 4096;
/// Bits of a segment.
const SEGMENT: u64 = WORD * WORDS as u64;

type Words = Box<[AtomicU64]>;

/// Some of the words.
#[derive(Default)]
struct Segment {
    words: OnceLock<Words>,
    /// How many of its bits are set, so that a search passes over what has none.
    set: AtomicU64,
}

impl Segment {
    fn words(&self) -> &Words {
        self.words
            .get_or_init(|| (0..WORDS).map(|_| AtomicU64::new(0)).collect())
    }
}

/// The words of a disk of some size. A resize makes another one with the same segments, so that
/// who still works with the old one changes the same bits.
struct Map {
    /// Bytes of the disk.
    size: u64,
    segments: Vec<Arc<Segment>>,
}

/// Which pieces of a disk are set.
///
/// The order that copying relies on: who changes the disk sets bits *after* the change; who copies
/// clears bits *before* it reads. Both are read-modify-writes of the same word, so of a change and
/// a copy at the same time, either the copy has the change, or the bit is set again after it.
pub(crate) struct Bits {
    /// Bytes of a piece are two to the power of it.
    shift: u32,
    map: ArcSwap<Map>,
    /// Held while the size changes.
    resizing: Mutex<()>,
    /// How many are set.
    set: AtomicU64,
}

impl Bits {
    /// None set. `granularity`, the bytes of a piece, is a power of two.
    pub(crate) fn new(size: u64, granularity: u64) -> Self {
        let bits = Self {
            shift: granularity.trailing_zeros().min(63),
            map: ArcSwap::from_pointee(Map {
                size: 0,
                segments: Vec::new(),
            }),
            resizing: Mutex::new(()),
            set: AtomicU64::new(0),
        };
        bits.resize(size);
        bits
    }

    /// Bytes of a piece.
    pub(crate) fn granularity(&self) -> u64 {
        1 << self.shift
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.map.load().size
    }

    /// Bytes of all pieces that are set; the last one counts as a whole.
    pub(crate) fn count(&self) -> u64 {
        self.set.load(Ordering::Acquire) << self.shift
    }

    /// Whether none is set.
    pub(crate) fn is_empty(&self) -> bool {
        self.set.load(Ordering::Acquire) == 0
    }

    /// The bits of the pieces that a range touches, within the disk.
    fn bits_of(&self, map: &Map, range: &Range<u64>) -> Range<u64> {
        let end = range.end.min(map.size);
        if range.start >= end {
            return 0..0;
        }
        range.start >> self.shift..((end - 1) >> self.shift) + 1
    }

    /// Calls `change` with each word that has some of the bits, and the mask of them.
    fn each_word(
        map: &Map,
        bits: Range<u64>,
        make: bool,
        mut change: impl FnMut(&Segment, &AtomicU64, u64),
    ) {
        let mut at = bits.start;
        while at < bits.end {
            let Some(segment) = map.segments.get((at / SEGMENT) as usize) else {
                return;
            };
            if !make && segment.words.get().is_none() {
                at = (at / SEGMENT + 1) * SEGMENT;
                continue;
            }
            let end = (at / WORD + 1) * WORD;
            let mask = !0 << (at % WORD) & !0 >> end.saturating_sub(bits.end);
            if let Some(word) = segment.words().get((at % SEGMENT / WORD) as usize) {
                change(segment, word, mask);
            }
            at = end;
        }
    }

    /// Sets every piece that the range touches.
    pub(crate) fn set(&self, range: Range<u64>) {
        let map = self.map.load();
        let bits = self.bits_of(&map, &range);
        Self::each_word(&map, bits, true, |segment, word, mask| {
            let new = mask & !word.fetch_or(mask, Ordering::SeqCst);
            let new = u64::from(new.count_ones());
            segment.set.fetch_add(new, Ordering::AcqRel);
            self.set.fetch_add(new, Ordering::AcqRel);
        });
    }

    /// Clears every piece that the range touches.
    pub(crate) fn clear(&self, range: Range<u64>) {
        let map = self.map.load();
        let bits = self.bits_of(&map, &range);
        self.clear_bits(&map, bits);
    }

    fn clear_bits(&self, map: &Map, bits: Range<u64>) {
        Self::each_word(map, bits, false, |segment, word, mask| {
            let old = mask & word.fetch_and(!mask, Ordering::SeqCst);
            let old = u64::from(old.count_ones());
            segment.set.fetch_sub(old, Ordering::AcqRel);
            self.set.fetch_sub(old, Ordering::AcqRel);
        });
    }

    /// Sets or clears all.
    pub(crate) fn fill(&self, value: bool) {
        match value {
            true => self.set(0..u64::MAX),
            false => self.clear(0..u64::MAX),
        }
    }

    /// Whether the range touches a piece that is set.
    pub(crate) fn any(&self, range: Range<u64>) -> bool {
        if self.is_empty() {
            return false;
        }
        let map = self.map.load();
        let bits = self.bits_of(&map, &range);
        self.find(&map, bits, true).is_some()
    }

    /// The first bit of some that is set, or that is not.
    fn find(&self, map: &Map, bits: Range<u64>, value: bool) -> Option<u64> {
        let mut at = bits.start;
        while at < bits.end {
            let segment = map.segments.get((at / SEGMENT) as usize)?;
            let words = match segment.words.get() {
                Some(words) if !value || segment.set.load(Ordering::SeqCst) != 0 => words,
                None if !value => return Some(at),
                _ => {
                    at = (at / SEGMENT + 1) * SEGMENT;
                    continue;
                }
            };
            let word = words.get((at % SEGMENT / WORD) as usize)?;
            let word = word.load(Ordering::SeqCst);
            let found = if value { word } else { !word } & !0 << (at % WORD);
            if found != 0 {
                let bit = at / WORD * WORD + u64::from(found.trailing_zeros());
                return (bit < bits.end).then_some(bit);
            }
            at = (at / WORD + 1) * WORD;
        }
        None
    }

    /// The first run of set pieces in a range, cut off at its ends and at the disk's.
    pub(crate) fn next(&self, range: Range<u64>) -> Option<Range<u64>> {
        let map = self.map.load();
        let bits = self.bits_of(&map, &range);
        let first = self.find(&map, bits.clone(), true)?;
        let end = self.find(&map, first..bits.end, false);
        let end = end.map_or(u64::MAX, |bit| bit << self.shift);
        let from = (first << self.shift).max(range.start);
        Some(from..end.min(range.end).min(map.size))
    }

    /// All runs of set pieces.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let run = self.next(at..u64::MAX)?;
            at = run.end;
            Some(run)
        })
    }

    /// Sets what is set in `other`, whose granularity may be another.
    pub(crate) fn merge(&self, other: &Bits) {
        for run in other.runs() {
            self.set(run);
        }
    }

    /// Changes the size of the disk. New pieces are not set.
    pub(crate) fn resize(&self, size: u64) {
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.map.load();
        let bits = |size: u64| match size.checked_sub(1) {
            Some(last) => (last >> self.shift) + 1,
            None => 0,
        };
        if size < old.size {
            self.clear_bits(&old, bits(size)..bits(old.size));
        }
        let count = bits(size).div_ceil(SEGMENT) as usize;
        let mut segments: Vec<_> = old.segments.iter().take(count).map(Arc::clone).collect();
        segments.resize_with(count, Arc::default);
        self.map.store(Arc::new(Map { size, segments }));
    }
}
