//! Bringing metadata to the disk in an order in which every prefix is a consistent image.
//!
//! The steps are those of `docs/design/block.md`.

use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::header::{Header, autoclear, compatible, incompatible};
use super::layout::{L1Entry, refcount_block};
use super::slices::Copy;
use super::{Core, buffer};
use crate::storage::Storage;
use crate::stripes::{OwnedGuard, Stripes};
use crate::sync::MutexGuard;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The lock of the checkpoint, which the buffers of its writes hold too.
pub(crate) type Guard = OwnedGuard;

/// References that are to be counted down when the tables without them are stable.
pub(crate) const MANY_FREES: usize = 4096;

/// A reference to clusters that was given up.
#[derive(Debug, Clone)]
pub(crate) struct Free {
    /// Clusters of the image.
    pub clusters: Range<u64>,
    /// Give the host's space back, when it was the last reference.
    pub punch: bool,
    /// An L2 table or the like, which is in the image in any case.
    pub metadata: bool,
}

/// Who makes a checkpoint, and who is served by another's.
pub(crate) struct Checkpoints {
    lock: Arc<Stripes>,
    /// Callers up to now.
    asked: AtomicU64,
    /// Callers for whom everything is stable.
    served: AtomicU64,
}

impl Checkpoints {
    pub(crate) fn new() -> Self {
        Self {
            lock: Arc::new(Stripes::new(1, 1)),
            asked: AtomicU64::new(0),
            served: AtomicU64::new(0),
        }
    }
}

/// What a checkpoint took from the caches; given back when it fails or is given up.
struct Taken<'a, S: Storage> {
    core: &'a Core<S>,
    frees: Vec<Free>,
    l2: Vec<Copy>,
    l1: Vec<usize>,
    refcounts: Vec<Copy>,
    table: Vec<usize>,
}

impl<S: Storage> Drop for Taken<'_, S> {
    fn drop(&mut self) {
        let core = self.core;
        for copy in &self.l2 {
            core.l2.touch(&copy.slice);
        }
        for copy in &self.refcounts {
            core.refcounts.slices.touch(&copy.slice);
        }
        core.l1_mut().changed.extend(self.l1.drain(..));
        let mut state = core.refcounts.state();
        state.changed.extend(self.table.drain(..));
        drop(state);
        core.frees().append(&mut self.frees);
    }
}

impl<S: Storage> Core<S> {
    pub(crate) fn frees(&self) -> MutexGuard<'_, Vec<Free>> {
        self.frees.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a mapping may differ from what is on the disk.
    pub(crate) fn has_dirty_mappings(&self) -> bool {
        self.l2.dirty() != 0
            || self.refcounts.is_dirty()
            || !self.l1().changed.is_empty()
            // A checkpoint has taken what was dirty, and is not over.
            || self.checkpoints.served.load(Ordering::Acquire)
                != self.checkpoints.asked.load(Ordering::Acquire)
    }

    /// Makes everything stable that completed before.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        let number = self.checkpoints.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let guard = Arc::new(self.checkpoints.lock.all_owned().await);
        if self.checkpoints.served.load(Ordering::Acquire) >= number {
            return Ok(());
        }
        let asked = self.checkpoints.asked.load(Ordering::Acquire);
        let lazy = self.is_lazy() && !self.refcounts.slices.is_pressed();
        self.checkpoint(&guard, lazy).await?;
        self.checkpoints.served.fetch_max(asked, Ordering::AcqRel);
        Ok(())
    }

    /// Makes a checkpoint when the caches ask for it. No lock is held.
    pub(crate) async fn relieve(&self) {
        let pressed = self.l2.is_pressed()
            || self.refcounts.slices.is_pressed()
            || self.frees().len() >= MANY_FREES;
        if pressed && let Err(error) = self.flush().await {
            // The guest's next flush reports it.
            log::warn!("cannot write a qcow2 image's metadata: {error}");
        }
    }

    /// Whether refcounts need not be on the disk while the image is open.
    pub(crate) fn is_lazy(&self) -> bool {
        self.header().compatible & compatible::LAZY_REFCOUNTS != 0
    }

    /// The steps, under the checkpoint's lock.
    pub(crate) async fn checkpoint(&self, guard: &Arc<Guard>, lazy: bool) -> io::Result<()> {
        // 1. Clusters to free come first: their mappings are among the slices taken after that.
        //    Refcounts come last: they cover all mappings that were taken.
        let mut taken = Taken {
            core: self,
            frees: std::mem::take(&mut *self.frees()),
            l2: self.l2.take_dirty(),
            l1: Vec::new(),
            refcounts: Vec::new(),
            table: Vec::new(),
        };
        let l1: Vec<(usize, u64)> = {
            let mut l1 = self.l1_mut();
            let changed = std::mem::take(&mut l1.changed);
            let word = |at: usize| l1.words.get(at).map(|word| (at, *word));
            changed.into_iter().filter_map(word).collect()
        };
        taken.l1 = l1.iter().map(|(at, _)| *at).collect();
        // 2. and 3.
        let mut old_table = None;
        if !lazy {
            old_table = self.write_refcounts(guard, &mut taken).await?;
        }
        self.sync().await?;
        // 4. A table was written as a whole before L1 led to it.
        if !taken.l2.is_empty() || !l1.is_empty() {
            self.write_l2(guard, &taken.l2).await?;
            self.write_l1(guard, &l1).await?;
            self.sync().await?;
        }
        taken.l2.clear();
        taken.l1.clear();
        taken.refcounts.clear();
        taken.table.clear();
        // 5.
        while let Some(free) = taken.frees.pop() {
            if let Err(error) = self.free(&free).await {
                // They leak: whether they were counted down is not known.
                log::warn!("cannot free clusters of a qcow2 image: {error}");
            }
        }
        if let Some(clusters) = old_table {
            self.refcounts.remove_metadata(clusters.clone());
            self.lower(clusters).await?;
        }
        Ok(())
    }

    /// Writes refcounts and the table of their blocks. Returns the clusters of an old table when
    /// it was replaced.
    async fn write_refcounts(
        &self,
        guard: &Arc<Guard>,
        taken: &mut Taken<'_, S>,
    ) -> io::Result<Option<Range<u64>>> {
        let room = {
            let state = self.refcounts.state();
            let needed = (state.table.len() as u64 * 8).div_ceil(self.layout.cluster());
            (needed > state.place.1).then_some(needed)
        };
        // Room for half as much again; taken before the refcounts are copied.
        let moved = match room {
            None => None,
            Some(needed) => {
                let clusters = needed + needed / 2;
                Some((self.allocate_metadata(clusters).await?, clusters))
            }
        };
        taken.refcounts = self.refcounts.slices.take_dirty();
        let (table, place) = {
            let mut state = self.refcounts.state();
            taken.table = std::mem::take(&mut state.changed).into_iter().collect();
            let words = taken.table.iter();
            let words = words.map(|at| (*at, state.table.get(*at).copied().unwrap_or(0)));
            (words.collect::<Vec<(usize, u64)>>(), state.place)
        };
        let writes = self.place_refcounts(&taken.refcounts)?;
        self.write_pieces(guard, writes).await?;
        let Some((first, clusters)) = moved else {
            if !table.is_empty() {
                self.sync().await?;
                let writes = words_by_sector(&table, place.0, |at| {
                    let state = self.refcounts.state();
                    // Blocks made since then are perhaps not stable.
                    let settled = !state.changed.contains(&at);
                    settled.then(|| state.table.get(at).copied().unwrap_or(0))
                });
                self.write_pieces(guard, writes).await?;
            }
            return Ok(None);
        };
        let mut bytes: Vec<u8> = {
            let state = self.refcounts.state();
            state.table.iter().flat_map(|w| w.to_be_bytes()).collect()
        };
        bytes.resize((clusters * self.layout.cluster()) as usize, 0);
        let offset = first << self.layout.cluster_bits;
        self.write_metadata(guard, offset, &bytes).await?;
        self.sync().await?;
        self.update_header(guard, |header| {
            header.refcount_table_offset = offset;
            header.refcount_table_clusters = clusters as u32;
        })
        .await?;
        self.refcounts.state().place = (offset, clusters);
        let old = place.0 >> self.layout.cluster_bits;
        Ok(Some(old..old + place.1))
    }

    /// Where copies of refcount slices belong. Those whose block is still being made stay dirty.
    fn place_refcounts(&self, copies: &[Copy]) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let layout = &self.layout;
        let mut writes = Vec::with_capacity(copies.len());
        for copy in copies {
            let index = copy.slice.index();
            let block = usize::try_from(index / layout.slices()).unwrap_or(usize::MAX);
            let word = self.refcounts.state().table.get(block).copied();
            let offset = refcount_block(word.unwrap_or(0), layout)?;
            match offset {
                0 => self.refcounts.slices.touch(&copy.slice),
                _ => writes.push((
                    offset + index % layout.slices() * layout.slice(),
                    copy.bytes.clone(),
                )),
            }
        }
        Ok(writes)
    }

    async fn write_l2(&self, guard: &Arc<Guard>, copies: &[Copy]) -> io::Result<()> {
        let layout = &self.layout;
        let mut writes = Vec::with_capacity(copies.len());
        for copy in copies {
            let index = copy.slice.index();
            let table = usize::try_from(index / layout.slices()).unwrap_or(usize::MAX);
            let word = self.l1().words.get(table).copied().unwrap_or(0);
            let offset = L1Entry::decode(word, layout)?.offset;
            if offset != 0 {
                let at = offset + index % layout.slices() * layout.slice();
                writes.push((at, copy.bytes.clone()));
            }
        }
        self.write_pieces(guard, writes).await
    }

    async fn write_l1(&self, guard: &Arc<Guard>, changed: &[(usize, u64)]) -> io::Result<()> {
        let offset = self.header().l1_offset;
        // Entries that changed after they were taken are not stable enough: their neighbours on
        // the disk are what was taken.
        let taken: std::collections::BTreeMap<usize, u64> = changed.iter().copied().collect();
        let writes = words_by_sector(changed, offset, |at| {
            let l1 = self.l1();
            match taken.get(&at) {
                Some(word) => Some(*word),
                None if l1.changed.contains(&at) => None,
                None => Some(l1.words.get(at).copied().unwrap_or(0)),
            }
        });
        self.write_pieces(guard, writes).await
    }

    /// Writes pieces, neighbours as one.
    async fn write_pieces(
        &self,
        guard: &Arc<Guard>,
        mut pieces: Vec<(u64, Vec<u8>)>,
    ) -> io::Result<()> {
        const LONGEST: usize = 1 << 20;
        const AT_ONCE: usize = 32;
        pieces.sort_by_key(|(offset, _)| *offset);
        let mut merged: Vec<(u64, Vec<u8>)> = Vec::with_capacity(pieces.len());
        for (offset, bytes) in pieces {
            match merged.last_mut() {
                Some((at, last))
                    if *at + last.len() as u64 == offset && last.len() + bytes.len() <= LONGEST =>
                {
                    last.extend_from_slice(&bytes);
                }
                _ => merged.push((offset, bytes)),
            }
        }
        for batch in merged.chunks(AT_ONCE) {
            let writes = batch.iter();
            let writes = writes.map(|(offset, bytes)| self.write_metadata(guard, *offset, bytes));
            for done in event::join_all(writes).await {
                done?;
            }
        }
        Ok(())
    }

    /// Counts a reference down, and gives the space back before anybody can take it again.
    async fn free(&self, free: &Free) -> io::Result<()> {
        let bits = self.layout.cluster_bits;
        let bytes = free.clusters.start << bits..free.clusters.end << bits;
        if self.is_abandoned(&bytes) {
            return Ok(());
        }
        if free.punch {
            let mut last = Vec::new();
            for cluster in free.clusters.clone() {
                if self.refcount(cluster).await? == 1 {
                    last.push(cluster);
                }
            }
            for run in last.chunk_by(|a, b| a + 1 == *b) {
                let (Some(first), len) = (run.first(), run.len() as u64) else {
                    continue;
                };
                let discarded = self.image.discard(first << bits, len << bits).await;
                if let Err(error) = discarded {
                    log::debug!("cannot give space back: {error}");
                }
            }
        }
        self.lower(free.clusters.clone()).await
    }

    /// A write to these bytes of the data was given up while the host worked on it.
    pub(crate) fn abandon(&self, bytes: Range<u64>) {
        let mut abandoned = self
            .abandoned
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        abandoned.push(bytes);
    }

    fn is_abandoned(&self, bytes: &Range<u64>) -> bool {
        let abandoned = self
            .abandoned
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        abandoned
            .iter()
            .any(|range| range.start < bytes.end && bytes.start < range.end)
    }

    /// Changes the header's fields, and flushes before and after. Under the checkpoint's lock.
    pub(crate) async fn update_header(
        &self,
        guard: &Arc<Guard>,
        change: impl FnOnce(&mut Header),
    ) -> io::Result<()> {
        let mut header = self.header().clone();
        change(&mut header);
        let whole = header.encode()?;
        // The fields alone, which one sector holds: extensions and names did not change.
        let fields = header.encode_fields(Header::backing_offset(&whole));
        let old = self.header().encode()?;
        let same_tail = old.len() == whole.len() && old[fields.len()..] == whole[fields.len()..];
        self.sync().await?;
        let bytes = if same_tail { &fields } else { &whole };
        let mut padded = self
            .read_metadata(0, self.layout.cluster().min(4096))
            .await?;
        match padded.get_mut(..bytes.len()) {
            Some(to) => {
                to.copy_from_slice(bytes);
                if !same_tail {
                    padded[bytes.len()..].fill(0);
                }
                self.write_metadata(guard, 0, &padded).await?;
            }
            None => self.write_metadata(guard, 0, bytes).await?,
        }
        self.sync().await?;
        *self.header() = header;
        Ok(())
    }

    /// Sets the dirty bit before the first change that lazy refcounts do not cover.
    pub(crate) async fn before_allocation(&self) -> io::Result<()> {
        if self.is_marked_dirty.load(Ordering::Acquire) || !self.is_lazy() {
            return Ok(());
        }
        let guard = Arc::new(self.checkpoints.lock.all_owned().await);
        if self.is_marked_dirty.load(Ordering::Acquire) {
            return Ok(());
        }
        self.update_header(&guard, |header| header.incompatible |= incompatible::DIRTY)
            .await?;
        self.is_marked_dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Sets the corrupt bit; not under the checkpoint's lock.
    pub(crate) async fn mark_corrupt(&self) -> io::Result<()> {
        if self.layout.version < 3 {
            return Ok(());
        }
        // The lock may be held by the one who found out: the header alone is written, which
        // nobody else does while it is marked.
        let mut header = self.header().clone();
        header.incompatible |= incompatible::CORRUPT;
        let whole = header.encode()?;
        let fields = header.encode_fields(Header::backing_offset(&whole));
        let buf = buffer::aligned(&fields)?;
        let flags = event::WriteFlags { fua: true };
        self.image.write(buf, 0, flags).await.0?;
        *self.header() = header;
        Ok(())
    }

    /// Everything on the disk, and the dirty bit gone.
    pub(crate) async fn close(&self) -> io::Result<()> {
        let _ranges = self.ranges.all().await;
        if !self.is_corrupt() {
            self.store_bitmaps().await?;
        }
        let guard = Arc::new(self.checkpoints.lock.all_owned().await);
        self.checkpoint(&guard, false).await?;
        // Again for what the first one has freed.
        if self.refcounts.is_dirty() {
            self.checkpoint(&guard, false).await?;
        }
        if self.is_marked_dirty.load(Ordering::Acquire) {
            self.update_header(&guard, |header| header.incompatible &= !incompatible::DIRTY)
                .await?;
            self.is_marked_dirty.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Takes the checkpoint's lock.
    pub(crate) async fn checkpoint_lock(&self) -> Arc<Guard> {
        Arc::new(self.checkpoints.lock.all_owned().await)
    }

    /// Forgets features that we would not keep up to date.
    pub(crate) async fn clear_unknown_features(&self) -> io::Result<()> {
        let mut known = autoclear::RAW_DATA_FILE;
        let (autoclear, has_bitmaps) = {
            let header = self.header();
            (header.autoclear, header.bitmaps.is_some())
        };
        if has_bitmaps {
            known |= autoclear::BITMAPS;
        }
        if autoclear & !known == 0 {
            return Ok(());
        }
        let guard = self.checkpoint_lock().await;
        self.update_header(&guard, |header| header.autoclear &= known)
            .await
    }
}

/// The sectors in which changed words of a table lie, as they are to be; a word that `current`
/// does not know makes the change be written word by word.
fn words_by_sector(
    changed: &[(usize, u64)],
    offset: u64,
    current: impl Fn(usize) -> Option<u64>,
) -> Vec<(u64, Vec<u8>)> {
    const WORDS: usize = 64;
    let mut writes = Vec::new();
    for sector in changed.chunk_by(|a, b| a.0 / WORDS == b.0 / WORDS) {
        let Some((first, _)) = sector.first() else {
            continue;
        };
        let start = first / WORDS * WORDS;
        let whole: Option<Vec<u64>> = (start..start + WORDS).map(&current).collect();
        match whole {
            Some(words) => writes.push((
                offset + start as u64 * 8,
                words.into_iter().flat_map(u64::to_be_bytes).collect(),
            )),
            None => writes.extend(
                sector
                    .iter()
                    .map(|(at, word)| (offset + *at as u64 * 8, word.to_be_bytes().to_vec())),
            ),
        }
    }
    writes
}
