//! Repairing what a check found.
//!
//! Leaks are counted down where they are. Anything else is repaired by writing a new set of
//! refcounts behind everything that is used, making it valid by one write of the header, and then
//! checking again.

use super::check::{Check, CheckReport, Repair, entries, is_flagged};
use super::counts::Counts;
use super::header::incompatible;
use super::layout::{Entry, L1Entry};
use super::{Core, Qcow2Error};
use crate::storage::Storage;

impl<S: Storage> Core<S> {
    /// Checks and repairs. Nothing else uses the image.
    pub(crate) async fn check_and_repair(&self, repair: Repair) -> Result<CheckReport, Qcow2Error> {
        let fail = || Qcow2Error::io("repair the image");
        let before = self.check_references().await?;
        let found = before.report.clone();
        if found.corruptions == 0 && found.leaks == 0 && found.check_errors == 0 {
            self.clear_marks().await.map_err(fail())?;
            return Ok(found);
        }
        if found.check_errors != 0 {
            // What could not be read may refer to what looks like a leak.
            return Ok(found);
        }
        match repair {
            Repair::Leaks => self.repair_leaks(&before).await.map_err(fail())?,
            Repair::All => {
                self.repair_entries(&before.counts).await.map_err(fail())?;
                let counts = self.check_references().await?.counts;
                self.rebuild_refcounts(&counts).await?;
                // The old refcounts are not counted any more. The flags depend on the new ones.
                let counts = self.check_references().await?.counts;
                self.repair_flags(&counts).await.map_err(fail())?;
            }
        }
        let guard = self.checkpoint_lock().await;
        self.checkpoint(&guard, false).await.map_err(fail())?;
        drop(guard);
        let mut after = self.check_references().await?.report;
        after.corruptions_fixed = found.corruptions.saturating_sub(after.corruptions);
        after.leaks_fixed = found.leaks.saturating_sub(after.leaks);
        after.messages = found.messages;
        if after.corruptions == 0 && after.check_errors == 0 {
            self.clear_marks().await.map_err(fail())?;
        }
        Ok(after)
    }

    /// The image is neither dirty nor corrupt.
    async fn clear_marks(&self) -> std::io::Result<()> {
        let marks = incompatible::DIRTY | incompatible::CORRUPT;
        if self.header().incompatible & marks == 0 {
            return Ok(());
        }
        let guard = self.checkpoint_lock().await;
        self.update_header(&guard, |header| header.incompatible &= !marks)
            .await?;
        use std::sync::atomic::Ordering;
        self.is_corrupt.store(false, Ordering::Relaxed);
        self.is_marked_dirty.store(false, Ordering::Release);
        Ok(())
    }

    async fn repair_leaks(&self, check: &Check<'_, S>) -> std::io::Result<()> {
        if check.broken_blocks {
            return Ok(());
        }
        let per_block = self.layout.block_refcounts();
        let blocks = self.refcounts.state().table.len() as u64;
        for block in 0..blocks {
            if self.refcounts.state().table.get(block as usize) == Some(&0) {
                continue;
            }
            for cluster in block * per_block..(block + 1) * per_block {
                let used = check.counts.get(cluster);
                if self.refcount(cluster).await? > used {
                    self.set_refcount(cluster, used).await?;
                }
            }
            self.relieve().await;
        }
        Ok(())
    }

    /// Replaces entries that cannot be understood by ones without data.
    async fn repair_entries(&self, counts: &Counts) -> std::io::Result<()> {
        let layout = &self.layout;
        let limit = counts.end();
        let none = match layout.version {
            2 => Entry::NONE,
            _ => Entry::Standard {
                host: None,
                copied: false,
                allocated: 0,
                zero: layout.all(),
            },
        };
        let words = self.l1().words.clone();
        let mut seen = std::collections::HashSet::new();
        for (index, word) in words.iter().enumerate() {
            let table = L1Entry::decode(*word, layout).map(|entry| entry.offset);
            let table = match table {
                Ok(0) => continue,
                Ok(table) if table >> layout.cluster_bits < limit && seen.insert(table) => table,
                _ => {
                    let mut l1 = self.l1_mut();
                    if let Some(word) = l1.words.get_mut(index) {
                        *word = 0;
                    }
                    l1.changed.insert(index);
                    continue;
                }
            };
            let mut bytes = self.read_metadata(table, layout.cluster()).await?;
            let bad: Vec<usize> = entries(&bytes, layout)
                .enumerate()
                .filter(|(_, entry)| entry.is_err())
                .map(|(at, _)| at)
                .collect();
            let step = layout.entry_words() as usize * 8;
            for at in &bad {
                let (word, bitmap) = none.encode(layout);
                let both = [word.to_be_bytes(), bitmap.to_be_bytes()].concat();
                if let Some(to) = bytes.get_mut(at * step..(at + 1) * step) {
                    to.copy_from_slice(&both[..step]);
                }
            }
            if !bad.is_empty() {
                let guard = self.checkpoint_lock().await;
                self.write_metadata(&guard, table, &bytes).await?;
            }
        }
        let guard = self.checkpoint_lock().await;
        let l1: Vec<usize> = std::mem::take(&mut self.l1_mut().changed)
            .into_iter()
            .collect();
        if !l1.is_empty() {
            self.write_whole_l1(&guard).await?;
        }
        self.l2.clear();
        self.sync().await
    }

    async fn write_whole_l1(
        &self,
        guard: &std::sync::Arc<super::checkpoint::Guard>,
    ) -> std::io::Result<()> {
        let bytes: Vec<u8> = {
            let l1 = self.l1();
            l1.words
                .iter()
                .flat_map(|word| word.to_be_bytes())
                .collect()
        };
        let offset = self.header().l1_offset;
        self.write_metadata(guard, offset, &bytes).await
    }

    /// Makes the COPIED flags of the active tables agree with the refcounts.
    async fn repair_flags(&self, counts: &Counts) -> std::io::Result<()> {
        let layout = &self.layout;
        let alone = |offset: u64| counts.get(offset >> layout.cluster_bits) == 1;
        let words = self.l1().words.clone();
        let mut changed_l1 = false;
        let guard = self.checkpoint_lock().await;
        for (index, word) in words.iter().enumerate() {
            let entry = L1Entry::decode(*word, layout)?;
            if entry.offset == 0 {
                continue;
            }
            let right = L1Entry {
                copied: alone(entry.offset),
                ..entry
            };
            if right != entry {
                changed_l1 = true;
                if let Some(word) = self.l1_mut().words.get_mut(index) {
                    *word = right.encode();
                }
            }
            let mut bytes = self.read_metadata(entry.offset, layout.cluster()).await?;
            let decoded: Vec<_> = entries(&bytes, layout).collect();
            let step = layout.entry_words() as usize * 8;
            let mut changed = false;
            for (at, entry) in decoded.into_iter().enumerate() {
                if matches!(entry, Ok(Entry::Compressed { .. }))
                    && is_flagged(&bytes, at, layout)
                    && let Some(byte) = bytes.get_mut(at * step)
                {
                    *byte &= 0x7f;
                    changed = true;
                }
                if let Ok(Entry::Standard {
                    host: Some(host),
                    copied,
                    allocated,
                    zero,
                }) = entry
                {
                    let right = layout.data_file || alone(host);
                    if copied != right {
                        let entry = Entry::Standard {
                            host: Some(host),
                            copied: right,
                            allocated,
                            zero,
                        };
                        let (word, bitmap) = entry.encode(layout);
                        let both = [word.to_be_bytes(), bitmap.to_be_bytes()].concat();
                        if let Some(to) = bytes.get_mut(at * step..(at + 1) * step) {
                            to.copy_from_slice(&both[..step]);
                            changed = true;
                        }
                    }
                }
            }
            if changed {
                self.write_metadata(&guard, entry.offset, &bytes).await?;
            }
        }
        if changed_l1 {
            self.write_whole_l1(&guard).await?;
        }
        self.l2.clear();
        self.sync().await
    }

    /// Writes refcounts for everything that is used behind it, and makes them valid.
    async fn rebuild_refcounts(&self, counts: &Counts) -> Result<(), Qcow2Error> {
        let fail = || Qcow2Error::io("write new refcounts");
        let layout = &self.layout;
        let bits = layout.cluster_bits;
        let per_block = layout.block_refcounts();
        // What the old table and its blocks refer to is to be free: their references are taken
        // away.
        let old = self.refcount_clusters();
        let used = |cluster: u64| {
            let gone = old.get(&cluster).copied().unwrap_or(0);
            counts.get(cluster).saturating_sub(gone)
        };
        let end = counts
            .end()
            .max(self.image.size().div_ceil(layout.cluster()));
        let mut needed: Vec<u64> = counts
            .clusters()
            .filter(|cluster| used(*cluster) != 0)
            .map(|cluster| cluster / per_block)
            .collect();
        needed.dedup();
        // Blocks and table lie behind the end, one after the other, and count themselves.
        let (mut blocks, mut table) = (needed.len() as u64, 1u64);
        loop {
            let last = end + blocks + table;
            let mut all = needed.clone();
            all.extend(end / per_block..=(last - 1) / per_block);
            all.sort_unstable();
            all.dedup();
            let table_bytes = (all.last().copied().unwrap_or(0) + 1) * 8;
            let clusters = table_bytes.div_ceil(layout.cluster());
            if (all.len() as u64, clusters) == (blocks, table) {
                needed = all;
                break;
            }
            (blocks, table) = (all.len() as u64, clusters);
        }
        let most = super::header::MAX_REFCOUNT_TABLE_BYTES.max(layout.cluster());
        if table << bits > most {
            return Err(Qcow2Error::Unsupported("the image is too large"));
        }
        let own = end..end + blocks + table;
        let guard = self.checkpoint_lock().await;
        let mut words = vec![0u64; (table << bits >> 3) as usize];
        for (at, block) in needed.iter().enumerate() {
            let offset = (end + at as u64) << bits;
            let mut bytes = vec![0; layout.cluster() as usize];
            for index in 0..per_block {
                let cluster = block * per_block + index;
                let count = match own.contains(&cluster) {
                    true => 1,
                    false if cluster < end => used(cluster),
                    false => 0,
                };
                if count > layout.max_refcount() {
                    return Err(Qcow2Error::Unsupported(
                        "a cluster has more references than its refcount can count",
                    ));
                }
                put_refcount(&mut bytes, index, layout.refcount_order, count);
            }
            self.write_metadata(&guard, offset, &bytes)
                .await
                .map_err(fail())?;
            if let Some(word) = words.get_mut(*block as usize) {
                *word = offset;
            }
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let place = (end + blocks) << bits;
        self.write_metadata(&guard, place, &bytes)
            .await
            .map_err(fail())?;
        self.update_header(&guard, |header| {
            header.refcount_table_offset = place;
            header.refcount_table_clusters = table as u32;
        })
        .await
        .map_err(fail())?;
        self.refcounts.slices.clear();
        self.refcounts.replace(words, (place, table), own.end);
        self.note_metadata();
        Ok(())
    }

    /// The clusters of the refcount table and its blocks, and how often each was counted.
    fn refcount_clusters(&self) -> std::collections::HashMap<u64, u64> {
        let bits = self.layout.cluster_bits;
        let state = self.refcounts.state();
        let mut clusters = std::collections::HashMap::new();
        for cluster in 0..state.place.1 {
            *clusters
                .entry((state.place.0 >> bits) + cluster)
                .or_insert(0) += 1;
        }
        let mut seen = std::collections::HashSet::new();
        for word in &state.table {
            if let Ok(offset) = super::layout::refcount_block(*word, &self.layout)
                && offset != 0
                && seen.insert(offset)
            {
                *clusters.entry(offset >> bits).or_insert(0) += 1;
            }
        }
        clusters
    }
}

fn put_refcount(bytes: &mut [u8], at: u64, order: u32, count: u64) {
    let width = 1usize << order;
    let at = at as usize;
    match width {
        1 | 2 | 4 => {
            if let Some(byte) = bytes.get_mut(at * width / 8) {
                *byte |= (count as u8) << (at * width % 8);
            }
        }
        _ => {
            let size = width / 8;
            if let Some(to) = bytes.get_mut(at * size..(at + 1) * size) {
                to.copy_from_slice(&count.to_be_bytes()[8 - size..]);
            }
        }
    }
}
