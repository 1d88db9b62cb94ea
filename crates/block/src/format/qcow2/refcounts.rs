//! Refcounts, and the allocator over them.
//!
//! A refcount in memory may be written to the disk at any time: it is raised when a cluster is
//! taken, and lowered only when nothing on the disk refers to the cluster any more. A cluster
//! whose block does not exist has refcount 0; the block is made when the first cluster that it
//! counts is taken, and lies in that cluster.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use event::WriteFlags;
use nix::errno::Errno;

use super::header::MAX_REFCOUNT_TABLE_BYTES;
use super::layout::{Layout, refcount_block};
use super::slices::{Slice, Slices};
use super::{Core, Qcow2Error};
use crate::buffer;
use crate::storage::Storage;
use crate::stripes::Stripes;
use crate::sync::{Mutex, MutexGuard};

/// Clusters that were freed are remembered up to this number.
const RECYCLED: usize = 1 << 16;

/// Neighbouring clusters that were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Index of the first cluster.
    pub first: u64,
    pub count: u64,
    /// They were never used before, and read as zeros.
    pub virgin: bool,
}

/// The refcount table and what is known about free clusters.
pub(crate) struct Refcounts {
    pub(crate) slices: Slices,
    /// Held while a block is made.
    making: Stripes,
    state: Mutex<State>,
}

pub(crate) struct State {
    /// Words of the refcount table; there may be more than the table on the disk has room for.
    pub(crate) table: Vec<u64>,
    /// Indices of words that differ from the disk's.
    pub(crate) changed: BTreeSet<usize>,
    /// First byte and clusters of the table on the disk.
    pub(crate) place: (u64, u64),
    /// Where to look for a free cluster next.
    cursor: u64,
    /// Clusters from here on were never used.
    high: u64,
    recycled: BTreeSet<u64>,
    /// Where the next compressed cluster may begin, in a cluster that has room.
    pub(crate) compressed: Option<u64>,
    /// Clusters that hold metadata: no guest's data may be there.
    pub(crate) metadata: HashSet<u64>,
}

/// The refcount at `at` of a slice.
pub(crate) fn get(slice: &Slice, at: u64, order: u32) -> u64 {
    let (word, shift, mask) = place(at, order);
    slice.word(word) >> shift & mask
}

fn set(slice: &Slice, at: u64, order: u32, value: u64) {
    let (word, shift, mask) = place(at, order);
    let old = slice.word(word);
    slice.store(word, &[old & !(mask << shift) | value << shift]);
}

/// In which word a refcount is, and where in it: big-endian bytes, and less than a byte from the
/// least significant bit on.
fn place(at: u64, order: u32) -> (u64, u32, u64) {
    let width = 1u32 << order;
    let per_word = 64u64 >> order;
    let within = (at % per_word) as u32;
    let shift = match width >= 8 {
        true => 64 - width * (within + 1),
        false => {
            let bit = within * width;
            56 - bit / 8 * 8 + bit % 8
        }
    };
    (at / per_word, shift, u64::MAX >> (64 - width))
}

impl Refcounts {
    pub(crate) fn new(table: Vec<u64>, place: (u64, u64), capacity: u64) -> Self {
        Self {
            slices: Slices::new(capacity),
            making: Stripes::new(1, 1),
            state: Mutex::new(State {
                table,
                changed: BTreeSet::new(),
                place,
                cursor: 0,
                high: 0,
                recycled: BTreeSet::new(),
                compressed: None,
                metadata: HashSet::new(),
            }),
        }
    }

    /// Begins to look for free clusters at `cursor`; clusters from `high` on were never used.
    pub(crate) fn start(&self, cursor: u64, high: u64) {
        let mut state = self.state();
        state.cursor = cursor;
        state.high = high;
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another table is valid, in which clusters from `end` on are free.
    pub(crate) fn replace(&self, table: Vec<u64>, place: (u64, u64), end: u64) {
        let mut state = self.state();
        state.table = table;
        state.place = place;
        state.changed.clear();
        state.recycled.clear();
        state.metadata.clear();
        state.compressed = None;
        state.cursor = 0;
        state.high = state.high.max(end);
    }

    /// Clusters from here on are not used.
    pub(crate) fn end(&self) -> u64 {
        self.state().high
    }

    /// Whether anything is to be written.
    pub(crate) fn is_dirty(&self) -> bool {
        self.slices.dirty() != 0 || !self.state().changed.is_empty()
    }

    /// Whether one of these clusters holds metadata.
    pub(crate) fn holds_metadata(&self, clusters: Range<u64>) -> bool {
        let state = self.state();
        clusters.into_iter().any(|c| state.metadata.contains(&c))
    }

    /// Marks clusters as metadata.
    pub(crate) fn add_metadata(&self, clusters: Range<u64>) {
        self.state().metadata.extend(clusters);
    }

    /// These clusters do not hold metadata any more.
    pub(crate) fn remove_metadata(&self, clusters: Range<u64>) {
        let mut state = self.state();
        for cluster in clusters {
            state.metadata.remove(&cluster);
        }
    }
}

impl State {
    fn used(&mut self, clusters: Range<u64>) -> bool {
        let virgin = clusters.start >= self.high;
        self.high = self.high.max(clusters.end);
        for cluster in clusters {
            self.recycled.remove(&cluster);
        }
        virgin
    }

    fn freed(&mut self, cluster: u64) {
        match self.recycled.len() < RECYCLED {
            true => drop(self.recycled.insert(cluster)),
            false => self.cursor = self.cursor.min(cluster),
        }
    }
}

/// The first free clusters from `from` on, up to `most`.
fn free_run(slice: &Slice, from: u64, most: u64, layout: &Layout) -> Option<Range<u64>> {
    let order = layout.refcount_order;
    let end = layout.slice_refcounts();
    let first = (from..end).find(|at| get(slice, *at, order) == 0)?;
    let last = (first..end.min(first.saturating_add(most)))
        .find(|at| get(slice, *at, order) != 0)
        .unwrap_or(end.min(first.saturating_add(most)));
    Some(first..last)
}

impl<S: Storage> Core<S> {
    /// The slice that counts `cluster`; `None`: there is no block for it.
    async fn refcount_slice(&self, cluster: u64) -> io::Result<Option<Arc<Slice>>> {
        let layout = &self.layout;
        let index = cluster / layout.slice_refcounts();
        let block = cluster / layout.block_refcounts();
        let word = usize::try_from(block)
            .ok()
            .and_then(|block| self.refcounts.state().table.get(block).copied())
            .unwrap_or(0);
        let offset = refcount_block(word, layout)?;
        if offset == 0 {
            // Even if there is a slice: its block is being made.
            return Ok(None);
        }
        let at = offset + index % layout.slices() * layout.slice();
        let load = || self.read_metadata(at, layout.slice());
        Ok(Some(self.refcounts.slices.get(index, load).await?))
    }

    /// The refcount of a cluster.
    pub(crate) async fn refcount(&self, cluster: u64) -> io::Result<u64> {
        let slice = self.refcount_slice(cluster).await?;
        let at = cluster % self.layout.slice_refcounts();
        Ok(slice.map_or(0, |slice| get(&slice, at, self.layout.refcount_order)))
    }

    /// As [`Core::refcount_slice`], made when it does not exist.
    async fn refcount_slice_made(&self, cluster: u64) -> io::Result<Arc<Slice>> {
        let per_block = self.layout.block_refcounts();
        loop {
            if let Some(slice) = self.refcount_slice(cluster).await? {
                return Ok(slice);
            }
            let first = cluster - cluster % per_block;
            self.make_refcount_blocks(first, 0).await?;
        }
    }

    /// Makes the missing blocks for `count` clusters from `first` on and for the blocks, which
    /// lie behind them.
    async fn make_refcount_blocks(&self, first: u64, count: u64) -> io::Result<()> {
        let _making = self.refcounts.making.all().await;
        let layout = &self.layout;
        let per_block = layout.block_refcounts();
        let most = MAX_REFCOUNT_TABLE_BYTES.max(layout.cluster()) / 8;
        let here = first + count;
        let mut missing = self.missing_blocks(first..here.max(first + 1));
        // The blocks themselves may need blocks.
        loop {
            let all = self.missing_blocks(first..here + missing.len() as u64);
            if all.len() <= missing.len() {
                break;
            }
            missing = all;
        }
        if missing.last().is_some_and(|block| *block >= most) {
            return Err(Errno::EFBIG.into());
        }
        let clusters = here..here + missing.len() as u64;
        if clusters.contains(&0) || self.refcounts.holds_metadata(clusters.clone()) {
            return Err(self.corrupt("a refcount block is missing").await);
        }
        let zero_slice = vec![0; layout.slice() as usize];
        let mut made = Made {
            cache: &self.refcounts.slices,
            indices: Vec::new(),
        };
        let mut slices = Vec::new();
        for cluster in clusters.clone() {
            slices.push(match missing.contains(&(cluster / per_block)) {
                // Nobody else can know it.
                true => {
                    let index = cluster / layout.slice_refcounts();
                    made.indices.push(index);
                    self.refcounts.slices.insert(index, &zero_slice)
                }
                false => self.refcount_slice(cluster).await?.ok_or(Errno::EIO)?,
            });
        }
        {
            let mut state = self.refcounts.state();
            let place_in = |cluster: u64| cluster % layout.slice_refcounts();
            let order = layout.refcount_order;
            let claims = || clusters.clone().zip(&slices);
            if claims().any(|(cluster, slice)| get(slice, place_in(cluster), order) != 0) {
                // Somebody was faster; the caller tries again.
                return Ok(());
            }
            for (cluster, slice) in claims() {
                set(slice, place_in(cluster), order, 1);
                self.refcounts.slices.touch(slice);
            }
            state.used(clusters.clone());
        }
        for cluster in clusters.clone() {
            // All of it: what is not written would be read from the disk later.
            let zeros = buffer::zeroed(layout.cluster() as usize)?;
            let flags = WriteFlags::default();
            let offset = cluster << layout.cluster_bits;
            self.image.write(zeros, offset, flags).await.0?;
        }
        let mut state = self.refcounts.state();
        for (cluster, block) in clusters.zip(missing) {
            let index = usize::try_from(block).map_err(|_| Errno::EFBIG)?;
            if state.table.len() <= index {
                state.table.resize(index + 1, 0);
            }
            if let Some(word) = state.table.get_mut(index) {
                *word = cluster << layout.cluster_bits;
            }
            state.changed.insert(index);
            state.metadata.insert(cluster);
        }
        made.indices.clear();
        Ok(())
    }

    /// The blocks that these clusters need and that do not exist, in order.
    fn missing_blocks(&self, clusters: Range<u64>) -> Vec<u64> {
        if clusters.is_empty() {
            return Vec::new();
        }
        let per_block = self.layout.block_refcounts();
        let state = self.refcounts.state();
        let there = |block: &u64| {
            let word = usize::try_from(*block)
                .ok()
                .and_then(|b| state.table.get(b));
            word.is_some_and(|word| *word != 0)
        };
        (clusters.start / per_block..=(clusters.end - 1) / per_block)
            .filter(|block| !there(block))
            .collect()
    }

    /// Takes up to `want` neighbouring clusters, at least one.
    pub(crate) async fn allocate(&self, want: u64) -> io::Result<Run> {
        let layout = &self.layout;
        loop {
            let (from, recycled) = {
                let state = self.refcounts.state();
                match state.recycled.first() {
                    Some(first) => (*first, true),
                    None => (state.cursor, false),
                }
            };
            let slice = self.refcount_slice_made(from).await?;
            let base = from - from % layout.slice_refcounts();
            let taken = {
                let mut state = self.refcounts.state();
                let most = match recycled {
                    true => state.neighbours(from, want),
                    false => want,
                };
                let free = free_run(&slice, from - base, most.max(1), layout)
                    .map(|free| base + free.start..base + free.end)
                    .filter(|free| !recycled || free.start == from);
                match free {
                    None if recycled => {
                        state.recycled.remove(&from);
                        continue;
                    }
                    None => {
                        // Unless somebody has freed a cluster in front of it meanwhile.
                        if state.cursor == from {
                            state.cursor = base + layout.slice_refcounts();
                        }
                        continue;
                    }
                    Some(free) => self.take(&mut state, &slice, free, recycled),
                }
            };
            return match taken {
                Some(run) => Ok(run),
                None => Err(self.corrupt("metadata has refcount 0").await),
            };
        }
    }

    /// Takes clusters that are free; `None` when they hold metadata.
    fn take(
        &self,
        state: &mut State,
        slice: &Arc<Slice>,
        free: Range<u64>,
        recycled: bool,
    ) -> Option<Run> {
        if free.clone().any(|c| state.metadata.contains(&c)) {
            return None;
        }
        let per_slice = self.layout.slice_refcounts();
        for cluster in free.clone() {
            set(slice, cluster % per_slice, self.layout.refcount_order, 1);
        }
        self.refcounts.slices.touch(slice);
        if !recycled {
            state.cursor = free.end;
        }
        let virgin = state.used(free.clone()) && self.grows_with_zeros;
        Some(Run {
            first: free.start,
            count: free.end - free.start,
            virgin,
        })
    }

    /// Takes up to `want` clusters from `first` on, as far as they are free: how many.
    pub(crate) async fn allocate_at(&self, first: u64, want: u64) -> io::Result<u64> {
        let per_slice = self.layout.slice_refcounts();
        let mut count = 0;
        while count < want {
            let cluster = first + count;
            let slice = self.refcount_slice_made(cluster).await?;
            let base = cluster - cluster % per_slice;
            let taken = {
                let mut state = self.refcounts.state();
                let free = free_run(&slice, cluster - base, want - count, &self.layout)
                    .filter(|free| base + free.start == cluster);
                let Some(free) = free else { break };
                let clusters = base + free.start..base + free.end;
                self.take(&mut state, &slice, clusters, true)
            };
            match taken {
                Some(run) => count += run.count,
                None => return Err(self.corrupt("metadata has refcount 0").await),
            }
        }
        Ok(count)
    }

    /// Takes exactly `count` neighbouring clusters for metadata.
    pub(crate) async fn allocate_metadata(&self, count: u64) -> io::Result<u64> {
        loop {
            let run = self.allocate(count).await?;
            let mut have = run.count;
            if have < count {
                have += self
                    .allocate_at(run.first + have, count - have)
                    .await
                    .unwrap_or(0);
            }
            if have == count {
                let clusters = run.first..run.first + count;
                self.refcounts.add_metadata(clusters);
                return Ok(run.first);
            }
            // What was found is too short. It is given back after the next one is found, since
            // else it would be found again.
            let end = self.refcounts.state().high;
            self.make_refcount_blocks(end, count).await?;
            let taken = self.allocate_at(end, count).await?;
            self.give_back(run.first..run.first + have).await?;
            if taken == count {
                self.refcounts.add_metadata(end..end + count);
                return Ok(end);
            }
            self.give_back(end..end + taken).await?;
            let mut state = self.refcounts.state();
            state.high = state.high.max(end + taken + 1);
        }
    }

    /// Gives back clusters that were taken and to which nothing refers, nor ever did on the disk,
    /// and which no request is writing.
    pub(crate) async fn give_back(&self, clusters: Range<u64>) -> io::Result<()> {
        self.lower(clusters).await
    }

    /// Lowers refcounts by one. Nothing on the disk refers to the clusters for that count.
    pub(crate) async fn lower(&self, clusters: Range<u64>) -> io::Result<()> {
        let layout = &self.layout;
        for cluster in clusters {
            let Some(slice) = self.refcount_slice(cluster).await? else {
                return Err(self.corrupt("a cluster in use has no refcount").await);
            };
            let at = cluster % layout.slice_refcounts();
            let lowered = {
                let mut state = self.refcounts.state();
                let count = get(&slice, at, layout.refcount_order);
                if count != 0 {
                    set(&slice, at, layout.refcount_order, count - 1);
                    self.refcounts.slices.touch(&slice);
                }
                if count == 1 {
                    state.freed(cluster);
                    state.metadata.remove(&cluster);
                    let compressed = state.compressed.map(|at| at >> layout.cluster_bits);
                    if compressed == Some(cluster) {
                        state.compressed = None;
                    }
                }
                count != 0
            };
            if !lowered {
                return Err(self.corrupt("a cluster in use has refcount 0").await);
            }
        }
        Ok(())
    }

    /// Raises refcounts by one.
    pub(crate) async fn raise(&self, clusters: Range<u64>) -> io::Result<()> {
        let layout = &self.layout;
        for cluster in clusters {
            let slice = self.refcount_slice_made(cluster).await?;
            let at = cluster % layout.slice_refcounts();
            let _state = self.refcounts.state();
            let count = get(&slice, at, layout.refcount_order);
            if count >= layout.max_refcount() {
                return Err(Qcow2Error::Unsupported(
                    "the image's refcounts are too narrow for another reference to a cluster",
                )
                .into());
            }
            set(&slice, at, layout.refcount_order, count + 1);
            self.refcounts.slices.touch(&slice);
        }
        Ok(())
    }

    /// Adds a reference to the cluster in which a stream may begin at `at`. `None`: somebody else
    /// has taken that place; `Some(false)`: the cluster takes no more references.
    pub(crate) async fn join_stream(&self, at: u64) -> io::Result<Option<bool>> {
        let layout = &self.layout;
        let cluster = at >> layout.cluster_bits;
        let slice = self.refcount_slice_made(cluster).await?;
        let mut state = self.refcounts.state();
        if state.compressed != Some(at) {
            return Ok(None);
        }
        state.compressed = None;
        let place = cluster % layout.slice_refcounts();
        let count = get(&slice, place, layout.refcount_order);
        if count == 0 || count >= layout.max_refcount() {
            return Ok(Some(false));
        }
        set(&slice, place, layout.refcount_order, count + 1);
        self.refcounts.slices.touch(&slice);
        Ok(Some(true))
    }

    /// Sets the refcount of a cluster, whatever it was: for repairs.
    pub(crate) async fn set_refcount(&self, cluster: u64, count: u64) -> io::Result<()> {
        let layout = &self.layout;
        let slice = self.refcount_slice_made(cluster).await?;
        let at = cluster % layout.slice_refcounts();
        let mut state = self.refcounts.state();
        set(
            &slice,
            at,
            layout.refcount_order,
            count.min(layout.max_refcount()),
        );
        self.refcounts.slices.touch(&slice);
        match count {
            0 => state.freed(cluster),
            _ => drop(state.used(cluster..cluster + 1)),
        }
        Ok(())
    }
}

/// Slices of blocks that are being made; forgotten when that fails or is given up.
struct Made<'a> {
    cache: &'a Slices,
    indices: Vec<u64>,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        for index in &self.indices {
            self.cache.forget(*index..*index + 1);
        }
    }
}

impl State {
    /// How many clusters from `from` on are recycled ones, up to `most`.
    fn neighbours(&self, from: u64, most: u64) -> u64 {
        let run = self.recycled.range(from..).zip(from..);
        let run = run.take_while(|(have, want)| *have == want);
        run.take(usize::try_from(most).unwrap_or(usize::MAX))
            .count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_refcounts_are_where_the_format_says() {
        // Byte 0 is the most significant one of a word; within it the first refcount is least.
        assert_eq!(place(0, 0), (0, 56, 1));
        assert_eq!(place(7, 0), (0, 63, 1));
        assert_eq!(place(8, 0), (0, 48, 1));
        assert_eq!(place(3, 2), (0, 52, 15));
        assert_eq!(place(1, 3), (0, 48, 255));
        assert_eq!(place(0, 4), (0, 48, 0xffff));
        assert_eq!(place(5, 4), (1, 32, 0xffff));
        assert_eq!(place(9, 6), (9, 0, u64::MAX));
    }
}
