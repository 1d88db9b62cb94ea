//! A cache of table slices, of L2 tables or of refcount blocks.
//!
//! ```text
//!   absent ──get──▶ loading ──▶ ready, clean ◀──▶ ready, dirty
//!                    (one task)     │  nobody holds it
//!                                   ▼
//!                                absent
//! ```
//!
//! Slices are known by index, not by place. What is dirty or held by anybody stays, so that a
//! slice exists once. A change is a word that is stored under the slice's mutex, followed by
//! [`Slices::touch`]; a word may be read at any time.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::sync::{Arc, PoisonError};
use std::task::{Poll, Waker};

use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

const SHARDS: usize = 16;

/// A slice of a table: words in the machine's order.
pub(crate) struct Slice {
    index: u64,
    words: Box<[AtomicU64]>,
    /// Held while several words change together.
    changing: Mutex<()>,
    dirty: AtomicBool,
    /// Used since the cache last looked for something to drop.
    used: AtomicBool,
}

impl Slice {
    fn new(index: u64, bytes: &[u8]) -> Self {
        let word = |bytes: &[u8]| {
            let bytes = bytes.try_into().unwrap_or([0; 8]);
            AtomicU64::new(u64::from_be_bytes(bytes))
        };
        Self {
            index,
            words: bytes.chunks_exact(8).map(word).collect(),
            changing: Mutex::new(()),
            dirty: AtomicBool::new(false),
            used: AtomicBool::new(true),
        }
    }

    /// Index among the slices of its kind.
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    /// A word; beyond the end, 0.
    pub(crate) fn word(&self, at: u64) -> u64 {
        let word = usize::try_from(at).ok().and_then(|at| self.words.get(at));
        word.map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Stores words that belong together.
    pub(crate) fn store(&self, at: u64, words: &[u64]) {
        let _changing = lock(&self.changing);
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        for (word, value) in self.words.iter().skip(from).zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    /// What is to be written to the disk.
    fn bytes(&self) -> Vec<u8> {
        let _changing = lock(&self.changing);
        let words = self.words.iter().map(|word| word.load(Ordering::Relaxed));
        words.flat_map(u64::to_be_bytes).collect()
    }
}

enum Cell {
    Loading(Vec<Waker>),
    Ready(Arc<Slice>),
}

#[derive(Default)]
struct Shard {
    cells: HashMap<u64, Cell>,
    /// Indices of what is ready, in the order in which to look for something to drop.
    order: VecDeque<u64>,
}

/// The cache.
pub(crate) struct Slices {
    shards: [Mutex<Shard>; SHARDS],
    /// Slices that a shard keeps when it need not.
    capacity: usize,
    dirty: Mutex<Vec<Arc<Slice>>>,
    dirty_count: AtomicUsize,
}

/// A copy of a dirty slice, and the slice.
pub(crate) struct Copy {
    pub slice: Arc<Slice>,
    pub bytes: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slices {
    /// A cache of about `capacity` slices.
    pub(crate) fn new(capacity: u64) -> Self {
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            capacity: (capacity / SHARDS).max(2),
            dirty: Mutex::default(),
            dirty_count: AtomicUsize::new(0),
        }
    }

    fn shard(&self, index: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[(index % SHARDS as u64) as usize])
    }

    /// A slice that is there already.
    pub(crate) fn cached(&self, index: u64) -> Option<Arc<Slice>> {
        match self.shard(index).cells.get(&index) {
            Some(Cell::Ready(slice)) => {
                // Read first: the line is shared by all I/O threads.
                if !slice.used.load(Ordering::Relaxed) {
                    slice.used.store(true, Ordering::Relaxed);
                }
                Some(Arc::clone(slice))
            }
            _ => None,
        }
    }

    /// A slice, read by `load` when it is not there.
    pub(crate) async fn get<F>(
        &self,
        index: u64,
        load: impl FnOnce() -> F,
    ) -> io::Result<Arc<Slice>>
    where
        F: Future<Output = io::Result<Vec<u8>>>,
    {
        loop {
            if let Some(slice) = self.cached(index) {
                return Ok(slice);
            }
            if self.begin(index) {
                break;
            }
            self.loaded(index).await;
        }
        let loading = Loading { cache: self, index };
        let bytes = load().await?;
        std::mem::forget(loading);
        Ok(self.ready(Arc::new(Slice::new(index, &bytes))))
    }

    /// Whether it is up to the caller to load the slice.
    fn begin(&self, index: u64) -> bool {
        use std::collections::hash_map::Entry;
        match self.shard(index).cells.entry(index) {
            Entry::Vacant(cell) => {
                cell.insert(Cell::Loading(Vec::new()));
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Waits until nobody loads the slice.
    async fn loaded(&self, index: u64) {
        poll_fn(|cx| match self.shard(index).cells.get_mut(&index) {
            Some(Cell::Loading(waiting)) => {
                waiting.push(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
        .await;
    }

    /// A slice whose content is known, as it is new; one that is there already stays.
    pub(crate) fn insert(&self, index: u64, bytes: &[u8]) -> Arc<Slice> {
        if let Some(slice) = self.cached(index) {
            return slice;
        }
        self.ready(Arc::new(Slice::new(index, bytes)))
    }

    fn ready(&self, slice: Arc<Slice>) -> Arc<Slice> {
        let index = slice.index;
        let mut shard = self.shard(index);
        shard.make_room(self.capacity);
        shard.order.push_back(index);
        let old = shard.cells.insert(index, Cell::Ready(Arc::clone(&slice)));
        drop(shard);
        if let Some(Cell::Loading(waiting)) = old {
            waiting.into_iter().for_each(Waker::wake);
        }
        slice
    }

    /// The slice has changed.
    pub(crate) fn touch(&self, slice: &Arc<Slice>) {
        if !slice.dirty.swap(true, Ordering::AcqRel) {
            self.dirty_count.fetch_add(1, Ordering::Relaxed);
            lock(&self.dirty).push(Arc::clone(slice));
        }
    }

    /// How many slices are dirty, about.
    pub(crate) fn dirty(&self) -> usize {
        self.dirty_count.load(Ordering::Relaxed)
    }

    /// How many may be dirty before somebody should write them.
    pub(crate) fn is_pressed(&self) -> bool {
        self.dirty() > self.capacity * SHARDS / 2
    }

    /// Copies of what is dirty, which is clean from here on.
    pub(crate) fn take_dirty(&self) -> Vec<Copy> {
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        self.dirty_count.fetch_sub(dirty.len(), Ordering::Relaxed);
        let copy = |slice: Arc<Slice>| {
            // Before it is copied: a change after the copy makes it dirty again.
            slice.dirty.store(false, Ordering::SeqCst);
            let bytes = slice.bytes();
            Copy { slice, bytes }
        };
        dirty.into_iter().map(copy).collect()
    }

    /// Forgets everything. Nobody uses the cache, and what was dirty does not matter.
    pub(crate) fn clear(&self) {
        lock(&self.dirty).clear();
        self.dirty_count.store(0, Ordering::Relaxed);
        for shard in &self.shards {
            *lock(shard) = Shard::default();
        }
    }

    /// Forgets slices, dirty or not. Nobody uses them.
    pub(crate) fn forget(&self, indices: std::ops::Range<u64>) {
        let inside = |slice: &Arc<Slice>| indices.contains(&slice.index);
        let mut dirty = lock(&self.dirty);
        let before = dirty.len();
        dirty.retain(|slice| !inside(slice));
        self.dirty_count
            .fetch_sub(before - dirty.len(), Ordering::Relaxed);
        drop(dirty);
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.cells.retain(|index, _| !indices.contains(index));
            shard.order.retain(|index| !indices.contains(index));
        }
    }
}

impl Shard {
    /// Drops what nobody needs until there is room for one more, if that can be.
    fn make_room(&mut self, capacity: usize) {
        // Twice around: the first time takes away the marks of use.
        for _ in 0..2 * self.order.len() {
            if self.order.len() < capacity {
                return;
            }
            let Some(index) = self.order.pop_front() else {
                return;
            };
            match self.cells.get(&index) {
                Some(Cell::Ready(slice)) => {
                    // Clones are made under the shard's mutex only.
                    let free = Arc::strong_count(slice) == 1
                        && !slice.dirty.load(Ordering::Acquire)
                        && !slice.used.swap(false, Ordering::Relaxed);
                    match free {
                        true => drop(self.cells.remove(&index)),
                        false => self.order.push_back(index),
                    }
                }
                _ => continue,
            }
        }
    }
}

/// Lets others try when loading fails or is given up.
struct Loading<'a> {
    cache: &'a Slices,
    index: u64,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let removed = self.cache.shard(self.index).cells.remove(&self.index);
        if let Some(Cell::Loading(waiting)) = removed {
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
#[path = "slices_tests.rs"]
mod tests;

#[cfg(all(test, shuttle))]
#[path = "slices_interleavings.rs"]
mod interleavings;
