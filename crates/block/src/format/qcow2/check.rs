//! Checking: the references to each cluster are counted, and compared with its refcount.

use std::collections::{BTreeMap, HashSet};

use event::IoBuf;

use super::counts::Counts;
use super::header::BitmapsExtension;
use super::layout::{Entry, L1Entry, Layout, refcount_block};
use super::{Core, Qcow2, Qcow2Error};
use crate::buffer;
use crate::storage::Storage;

/// Messages that are kept; further ones are only counted.
const MESSAGES: usize = 100;
/// Bytes of L2 tables that are read at the same time, and most tables.
const READ_AT_ONCE: u64 = 1 << 20;
const TABLES_AT_ONCE: usize = 16;

spec::choice! {
    /// What a check repairs.
    pub enum Repair {
        /// Clusters that are counted and not used.
        Leaks = "leaks",
        /// Everything that can be.
        All = "all",
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Contradictions that may destroy data.
    pub corruptions: u64,
    /// Clusters that are counted and not used: wasted space.
    pub leaks: u64,
    /// Parts of the image that could not be read.
    pub check_errors: u64,
    /// Contradictions that were repaired.
    pub corruptions_fixed: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Clusters of the disk that have data.
    pub allocated_clusters: u64,
    /// Of these, clusters that do not follow the one before on the host.
    pub fragmented_clusters: u64,
    /// Of these, compressed ones.
    pub compressed_clusters: u64,
    /// Where the last used cluster ends.
    pub image_end_offset: u64,
    /// What was found, in words; not all of it if it is very much.
    pub messages: Vec<String>,
}

impl CheckReport {
    fn say(&mut self, message: impl FnOnce() -> String) {
        if self.messages.len() < MESSAGES {
            self.messages.push(message());
        }
    }

    fn corruption(&mut self, message: impl FnOnce() -> String) {
        self.corruptions += 1;
        self.say(|| format!("ERROR {}", message()));
    }

    /// A cluster's refcount is not the number of references to it.
    fn refcount(&mut self, cluster: u64, has: u64, used: u64, cluster_bits: u32) {
        let shown = cluster << cluster_bits;
        match has > used {
            true => {
                self.leaks += 1;
                self.say(|| {
                    format!(
                        "Leaked cluster {cluster} at {shown:#x}: refcount {has}, {used} references"
                    )
                });
            }
            false => self.corruption(|| {
                format!("cluster {cluster} at {shown:#x}: refcount {has}, {used} references")
            }),
        }
    }
}

/// A check on its way.
pub(crate) struct Check<'a, S: Storage> {
    core: &'a Core<S>,
    pub(crate) report: CheckReport,
    pub(crate) counts: Counts,
    /// Clusters of the file.
    limit: u64,
    /// Active tables whose entries have to say whether they are alone.
    active: Vec<u64>,
    /// Some entry says it wrongly.
    wrong_flags: bool,
    /// The refcount blocks are where they cannot be, or count what they should not.
    pub(crate) broken_blocks: bool,
}

impl<S: Storage> Qcow2<S> {
    /// Checks the image, and repairs what `repair` says. Nothing else uses it.
    ///
    /// # Errors
    /// The host fails, or the image's tables cannot be repaired.
    pub async fn check(&self, repair: Option<Repair>) -> Result<CheckReport, Qcow2Error> {
        match repair {
            None => {
                let check = self.core.check_references().await?;
                Ok(check.report)
            }
            Some(repair) => self.core.check_and_repair(repair).await,
        }
    }
}

impl<S: Storage> Core<S> {
    /// Reads a table of one cluster.
    async fn read_table(&self, offset: u64) -> std::io::Result<IoBuf> {
        let buf = buffer::zeroed(self.layout.cluster() as usize)?;
        let (result, buf) = self.image.read(buf, offset).await;
        result.map(|()| buf)
    }

    /// Counts all references and compares.
    pub(crate) async fn check_references(&self) -> Result<Check<'_, S>, Qcow2Error> {
        let mut check = Check {
            core: self,
            report: CheckReport::default(),
            counts: Counts::default(),
            limit: self.image.size().div_ceil(self.layout.cluster()),
            active: Vec::new(),
            wrong_flags: false,
            broken_blocks: false,
        };
        check.count().await?;
        check.compare().await?;
        check.copied_flags().await?;
        check.report.total_clusters = self.size().div_ceil(self.layout.cluster());
        check.report.image_end_offset = check.counts.end() << self.layout.cluster_bits;
        Ok(check)
    }
}

impl<S: Storage> Check<'_, S> {
    fn layout(&self) -> Layout {
        self.core.layout
    }

    /// References from a structure at `offset`; `false` when it cannot be there.
    fn refer(&mut self, offset: u64, bytes: u64, what: &str) -> bool {
        let bits = self.layout().cluster_bits;
        if bytes == 0 {
            return true;
        }
        let end = offset.saturating_add(bytes).div_ceil(1 << bits);
        if end > self.limit {
            self.report
                .corruption(|| format!("{what} at {offset:#x} is beyond the end of the file"));
            return false;
        }
        if !self.counts.add(offset >> bits..end) {
            self.report.check_errors += 1;
            self.report
                .say(|| "the image is too large to be checked".into());
            return false;
        }
        true
    }

    /// The reference of an L2 entry. An active one says whether it is the only one.
    fn refer_data(&mut self, host: u64, copied: Option<bool>) {
        let cluster = host >> self.layout().cluster_bits;
        if cluster >= self.limit || !self.counts.add_one(cluster, copied) {
            // Says what is wrong.
            self.refer(host, self.layout().cluster(), "data");
            self.wrong_flags |= copied == Some(true);
        }
    }

    async fn count(&mut self) -> Result<(), Qcow2Error> {
        let layout = self.layout();
        let header = self.core.header().clone();
        self.refer(0, layout.cluster(), "header");
        let place = self.core.refcounts.state().place;
        self.refer(place.0, place.1 << layout.cluster_bits, "refcount table");
        self.refcount_blocks();
        let l1 = self.core.l1().words.clone();
        self.table(&l1, header.l1_offset, header.l1_size, true)
            .await?;
        if let Some(snapshot) = self.core.snapshot_tables(&header).await? {
            self.refer(snapshot.place, snapshot.bytes, "snapshot table");
            for (offset, size) in snapshot.l1 {
                match self.core.read_l1(offset, size).await {
                    Ok(l1) => self.table(&l1, offset, size, false).await?,
                    Err(error) => {
                        self.report.check_errors += 1;
                        self.report
                            .say(|| format!("a snapshot's L1 table at {offset:#x}: {error}"));
                    }
                }
            }
        }
        if let Some((offset, length)) = header.encryption {
            self.refer(offset, length, "encryption header");
        }
        if let Some(bitmaps) = header.bitmaps {
            self.bitmaps(&bitmaps).await?;
        }
        Ok(())
    }

    fn refcount_blocks(&mut self) {
        let layout = self.layout();
        let table = self.core.refcounts.state().table.clone();
        let mut seen = HashSet::new();
        for (index, word) in table.iter().enumerate() {
            match refcount_block(*word, &layout) {
                Ok(0) => (),
                Ok(offset) if seen.insert(offset) => {
                    if !self.refer(offset, layout.cluster(), "refcount block") {
                        self.broken_blocks = true;
                    }
                }
                Ok(offset) => {
                    self.broken_blocks = true;
                    self.report.corruption(|| {
                        format!("refcount block {index} is at {offset:#x}, where another is")
                    });
                }
                Err(_) => {
                    self.broken_blocks = true;
                    self.report
                        .corruption(|| format!("refcount block {index} is not aligned: {word:#x}"));
                }
            }
        }
    }

    /// References of an L1 table and of everything below.
    async fn table(
        &mut self,
        l1: &[u64],
        offset: u64,
        entries: u32,
        active: bool,
    ) -> Result<(), Qcow2Error> {
        let layout = self.layout();
        if !self.refer(offset, u64::from(entries) * 8, "L1 table") {
            return Ok(());
        }
        let mut seen = HashSet::new();
        let mut tables = Vec::new();
        for (index, word) in l1.iter().enumerate() {
            let table = match L1Entry::decode(*word, &layout) {
                Ok(entry) => entry.offset,
                Err(_) => {
                    self.report
                        .corruption(|| format!("L1 entry {index} is not aligned: {word:#x}"));
                    continue;
                }
            };
            if table == 0 || !self.refer(table, layout.cluster(), "L2 table") {
                continue;
            }
            if !seen.insert(table) {
                self.report
                    .corruption(|| format!("the L2 table at {table:#x} is used twice"));
                continue;
            }
            if active {
                self.active.push(index as u64);
            }
            tables.push((index as u64, table));
        }
        let core = self.core;
        let at_once = (READ_AT_ONCE >> layout.cluster_bits) as usize;
        for tables in tables.chunks(at_once.clamp(1, TABLES_AT_ONCE)) {
            let reads = tables.iter().map(|(_, table)| core.read_table(*table));
            let read = event::join_all(reads.collect::<Vec<_>>()).await;
            for ((index, table), read) in tables.iter().zip(read) {
                match &read {
                    Ok(buf) => self.l2_table(buf.bytes().unwrap_or_default(), *index, active),
                    Err(error) => {
                        self.report.check_errors += 1;
                        self.report
                            .say(|| format!("cannot read the L2 table at {table:#x}: {error}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn l2_table(&mut self, words: &[u8], table: u64, active: bool) {
        let layout = self.layout();
        let bits = layout.cluster_bits;
        let mut next = None;
        for (at, entry) in entries(words, &layout).enumerate() {
            let cluster = table * layout.l2_entries() + at as u64;
            match entry {
                Err(error) => {
                    let why = match error {
                        Qcow2Error::Corrupt(why) => why,
                        _ => "it cannot be understood",
                    };
                    self.report
                        .corruption(|| format!("guest cluster {cluster}: {why}"));
                }
                Ok(Entry::Standard { host: None, .. }) => (),
                Ok(Entry::Standard {
                    host: Some(host),
                    allocated,
                    copied,
                    ..
                }) => {
                    match layout.data_file {
                        // Nobody counts the clusters of a data file: each has one user.
                        true => self.wrong_flags |= active && !copied,
                        false => self.refer_data(host, active.then_some(copied)),
                    }
                    if active && allocated != 0 {
                        self.report.allocated_clusters += 1;
                        let follows = next.is_none_or(|next| next == host);
                        self.report.fragmented_clusters += u64::from(!follows);
                        next = Some(host + (1 << bits));
                    }
                }
                Ok(Entry::Compressed { offset, bytes }) => {
                    // Of its last sector, the cluster that holds its beginning counts.
                    self.refer(offset, bytes, "compressed data");
                    if active {
                        if is_flagged(words, at, &layout) {
                            self.report.corruption(|| {
                                format!(
                                    "guest cluster {cluster} is compressed and has the COPIED flag"
                                )
                            });
                        }
                        self.report.allocated_clusters += 1;
                        self.report.compressed_clusters += 1;
                        self.report.fragmented_clusters += 1;
                    }
                }
            }
        }
    }

    async fn bitmaps(&mut self, bitmaps: &BitmapsExtension) -> Result<(), Qcow2Error> {
        let found = self.core.bitmap_references(bitmaps).await;
        match found {
            Ok(references) => {
                for (offset, bytes) in references {
                    self.refer(offset, bytes, "bitmap");
                }
            }
            Err(error) => {
                self.report.check_errors += 1;
                self.report.say(|| format!("bitmaps: {error}"));
            }
        }
        Ok(())
    }

    /// Compares each refcount with what was counted.
    async fn compare(&mut self) -> Result<(), Qcow2Error> {
        let layout = self.layout();
        let per_block = layout.block_refcounts();
        let table = self.core.refcounts.state().table.clone();
        // Blocks that exist, each once, and those that should.
        let mut seen = HashSet::new();
        let mut exists = |word: &u64| {
            let offset = refcount_block(*word, &layout).unwrap_or(0);
            offset != 0 && offset >> layout.cluster_bits < self.limit && seen.insert(offset)
        };
        let mut blocks: BTreeMap<u64, u64> = table
            .iter()
            .zip(0u64..)
            .filter(|(word, _)| **word != 0)
            .map(|(word, block)| (block, *word))
            .collect();
        blocks.retain(|_, word| exists(word));
        for clusters in self.counts.used() {
            let last = clusters.end.saturating_sub(1) / per_block;
            for block in clusters.start / per_block..=last {
                blocks.entry(block).or_insert(0);
            }
        }
        for (block, word) in blocks {
            let offset = refcount_block(word, &layout).unwrap_or(0);
            let read = match offset {
                0 => None,
                offset => {
                    let read = self.core.read_table(offset).await;
                    Some(read.map_err(Qcow2Error::io("read a refcount block"))?)
                }
            };
            let bytes = read.as_ref().and_then(IoBuf::bytes).unwrap_or_default();
            let counts = &self.counts;
            let report = &mut self.report;
            let mut at = 0;
            while at < per_block {
                let first = block * per_block + at;
                let found = counts.from(first, per_block - at);
                for (word, cluster) in found.iter().zip(first..) {
                    self.wrong_flags |= word.is_flagged_wrongly();
                    let has = refcount_in(bytes, cluster - first + at, layout.refcount_order);
                    if has != word.count() {
                        report.refcount(cluster, has, word.count(), layout.cluster_bits);
                    }
                }
                at += found.len() as u64;
            }
        }
        Ok(())
    }

    /// Compares the flags of the active tables with what was counted.
    async fn copied_flags(&mut self) -> Result<(), Qcow2Error> {
        let layout = self.layout();
        if self.core.header().snapshots == 0 && layout.data_file {
            return Ok(());
        }
        let look_inside = self.wrong_flags;
        for index in std::mem::take(&mut self.active) {
            let Ok(entry) = self.core.l1_entry(index) else {
                continue;
            };
            let alone = self.counts.get(entry.offset >> layout.cluster_bits) == 1;
            if entry.copied != alone {
                self.report
                    .corruption(|| format!("L1 entry {index} has the wrong COPIED flag"));
            }
            if !look_inside {
                continue;
            }
            let Ok(bytes) = self
                .core
                .read_metadata(entry.offset, layout.cluster())
                .await
            else {
                continue;
            };
            for (at, entry) in entries(&bytes, &layout).enumerate() {
                if let Ok(Entry::Standard {
                    host: Some(host),
                    copied,
                    ..
                }) = entry
                {
                    let alone =
                        layout.data_file || self.counts.get(host >> layout.cluster_bits) == 1;
                    if copied != alone {
                        let cluster = index * layout.l2_entries() + at as u64;
                        self.report.corruption(|| {
                            format!("guest cluster {cluster} has the wrong COPIED flag")
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

/// The entries of a table's bytes.
pub(crate) fn entries<'a>(
    bytes: &'a [u8],
    layout: &'a Layout,
) -> impl Iterator<Item = Result<Entry, Qcow2Error>> + 'a {
    let step = layout.entry_words() as usize * 8;
    bytes.chunks_exact(step).map(move |entry| {
        let word = |at: usize| {
            let bytes = entry.get(at..at + 8).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u64::from_be_bytes)
        };
        match (word(0), word(8)) {
            (0, 0) => Ok(Entry::NONE),
            (word, bitmap) => Entry::decode(word, bitmap, layout),
        }
    })
}

/// Whether the entry at `at` of a table's bytes has the COPIED flag, whatever kind it is.
pub(crate) fn is_flagged(bytes: &[u8], at: usize, layout: &Layout) -> bool {
    let step = layout.entry_words() as usize * 8;
    bytes.get(at * step).is_some_and(|byte| byte & 0x80 != 0)
}

/// A refcount in a block's bytes; 0 without a block.
fn refcount_in(bytes: &[u8], at: u64, order: u32) -> u64 {
    fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        let found = bytes.get(at * N..).and_then(|rest| rest.first_chunk());
        found.copied().unwrap_or([0; N])
    }
    let at = at as usize;
    match order {
        3 => u8::from_be_bytes(bytes_at(bytes, at)).into(),
        4 => u16::from_be_bytes(bytes_at(bytes, at)).into(),
        5 => u32::from_be_bytes(bytes_at(bytes, at)).into(),
        6 => u64::from_be_bytes(bytes_at(bytes, at)),
        narrow => {
            let width = 1usize << narrow;
            let byte = bytes.get(at * width / 8).copied().unwrap_or(0);
            u64::from(byte >> (at * width % 8)) & ((1 << width) - 1)
        }
    }
}
