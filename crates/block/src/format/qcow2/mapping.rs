//! From guest offsets to table entries, and back into the tables.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use event::WriteFlags;

use super::checkpoint::Free;
use super::layout::{Entry, L1Entry};
use super::slices::Slice;
use super::{Core, Qcow2Error, buffer};
use crate::Node;
use crate::storage::Storage;

/// What a range of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes of the data file from this offset on.
    Data(u64),
    /// Zeros; with a cluster on the host, where there is one.
    Zero(Option<u64>),
    /// What the backing file has, or zeros.
    Unallocated,
    /// Part of a compressed cluster: its stream's offset and length.
    Compressed(u64, u64),
}

/// A range of the disk that is of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub kind: Kind,
    pub len: u64,
}

impl Extent {
    /// Joins `next`, which follows on the disk, if it goes on where this one ends.
    fn join(&mut self, next: Extent) -> bool {
        let goes_on = match (self.kind, next.kind) {
            (Kind::Data(at), Kind::Data(next)) => at.checked_add(self.len) == Some(next),
            (Kind::Zero(Some(at)), Kind::Zero(Some(next))) => {
                at.checked_add(self.len) == Some(next)
            }
            (Kind::Zero(None), Kind::Zero(None)) | (Kind::Unallocated, Kind::Unallocated) => true,
            _ => false,
        };
        if goes_on {
            self.len += next.len;
        }
        goes_on
    }
}

impl<S: Storage> Core<S> {
    /// Which L2 slice maps a guest cluster.
    pub(crate) fn slice_of(&self, cluster: u64) -> u64 {
        cluster / self.layout.slice_entries()
    }

    /// Which L1 entry leads to a guest cluster.
    pub(crate) fn table_of(&self, cluster: u64) -> u64 {
        cluster / self.layout.l2_entries()
    }

    /// The L1 entry at `table`; beyond the end, one that leads nowhere.
    pub(crate) fn l1_entry(&self, table: u64) -> Result<L1Entry, Qcow2Error> {
        let word = usize::try_from(table)
            .ok()
            .and_then(|table| self.l1().words.get(table).copied());
        L1Entry::decode(word.unwrap_or(0), &self.layout)
    }

    /// The slice with this index; `None`: its table does not exist.
    pub(crate) async fn l2_slice(&self, index: u64) -> io::Result<Option<Arc<Slice>>> {
        if let Some(slice) = self.l2.cached(index) {
            return Ok(Some(slice));
        }
        let layout = &self.layout;
        let table = match self.l1_entry(index / layout.slices()) {
            Ok(entry) => entry.offset,
            Err(Qcow2Error::Corrupt(why)) => return Err(self.corrupt(why).await),
            Err(other) => return Err(other.into()),
        };
        if table == 0 {
            return Ok(None);
        }
        let offset = table + index % layout.slices() * layout.slice();
        let load = || self.load_l2(offset);
        Ok(Some(self.l2.get(index, load).await?))
    }

    /// Reads a slice, and refuses it when a guest could reach metadata through it.
    async fn load_l2(&self, offset: u64) -> io::Result<Vec<u8>> {
        let layout = &self.layout;
        let bytes = self.read_metadata(offset, layout.slice()).await?;
        if self.read_only || layout.data_file {
            return Ok(bytes);
        }
        let step = layout.entry_words() as usize * 8;
        let mut metadata = false;
        {
            let state = self.refcounts.state();
            for entry in bytes.chunks_exact(step) {
                let word = |at: usize| {
                    let bytes = entry.get(at..at + 8).and_then(|b| b.try_into().ok());
                    bytes.map_or(0, u64::from_be_bytes)
                };
                if let Ok(Entry::Standard { host: Some(at), .. }) =
                    Entry::decode(word(0), word(8), layout)
                {
                    metadata |= state.metadata.contains(&(at >> layout.cluster_bits));
                }
            }
        }
        match metadata {
            false => Ok(bytes),
            true => Err(self.corrupt("a data cluster is metadata too").await),
        }
    }

    /// The entry of a guest cluster in its slice.
    pub(crate) fn entry(&self, slice: &Slice, cluster: u64) -> Result<Entry, Qcow2Error> {
        let words = self.layout.entry_words();
        let at = cluster % self.layout.slice_entries() * words;
        let bitmap = if words == 2 { slice.word(at + 1) } else { 0 };
        Entry::decode(slice.word(at), bitmap, &self.layout)
    }

    /// Changes the entry of a guest cluster. Its range is locked.
    pub(crate) fn set_entry(&self, slice: &Arc<Slice>, cluster: u64, entry: Entry) {
        let words = self.layout.entry_words();
        let at = cluster % self.layout.slice_entries() * words;
        let (word, bitmap) = entry.encode(&self.layout);
        slice.store(at, &[word, bitmap][..words as usize]);
        self.l2.touch(slice);
    }

    /// Decodes an entry; one that is impossible marks the image.
    pub(crate) async fn checked_entry(&self, slice: &Slice, cluster: u64) -> io::Result<Entry> {
        match self.entry(slice, cluster) {
            Ok(entry) => Ok(entry),
            Err(Qcow2Error::Corrupt(why)) => Err(self.corrupt(why).await),
            Err(other) => Err(other.into()),
        }
    }

    /// What is at `offset`, and as much of `len` bytes as is of the same kind without asking for
    /// too much. At least a byte, unless `len` is 0.
    pub(crate) async fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        let layout = &self.layout;
        let mut found: Option<Extent> = None;
        let mut at = offset;
        let end = offset.saturating_add(len);
        while at < end {
            let cluster = at >> layout.cluster_bits;
            let index = self.slice_of(cluster);
            let per_slice = layout.slice_entries();
            let slice_end = (index + 1).saturating_mul(per_slice) << layout.cluster_bits;
            let Some(slice) = self.l2_slice(index).await? else {
                // The whole table is missing.
                let table = (self.table_of(cluster) + 1).saturating_mul(layout.l2_entries());
                let table_end = table << layout.cluster_bits;
                let next = Extent {
                    kind: Kind::Unallocated,
                    len: table_end.min(end) - at,
                };
                at += next.len;
                match &mut found {
                    None => found = Some(next),
                    Some(extent) => {
                        if !extent.join(next) {
                            break;
                        }
                    }
                }
                continue;
            };
            while at < end.min(slice_end) {
                let entry = self
                    .checked_entry(&slice, at >> layout.cluster_bits)
                    .await?;
                let next = self.piece(entry, at, end);
                match &mut found {
                    None => found = Some(next),
                    Some(extent) => {
                        if !extent.join(next) {
                            return Ok(*extent);
                        }
                    }
                }
                at += next.len;
            }
        }
        Ok(found.unwrap_or(Extent {
            kind: Kind::Unallocated,
            len: 0,
        }))
    }

    /// What is at `at` up to the next change inside the cluster or `end`.
    fn piece(&self, entry: Entry, at: u64, end: u64) -> Extent {
        let layout = &self.layout;
        let within = layout.within(at);
        let in_cluster = (layout.cluster() - within).min(end - at);
        let (host, allocated, zero) = match entry {
            Entry::Compressed { offset, bytes } => {
                return Extent {
                    kind: Kind::Compressed(offset, bytes),
                    len: in_cluster,
                };
            }
            Entry::Standard {
                host,
                allocated,
                zero,
                ..
            } => (host, allocated, zero),
        };
        let size = layout.subcluster();
        let first = within / size;
        let of = |sub: u64| (allocated >> sub & 1, zero >> sub & 1);
        let same = (first..u64::from(layout.subclusters()))
            .take_while(|sub| of(*sub) == of(first))
            .count() as u64;
        let len = ((first + same) * size - within).min(in_cluster);
        let kind = match (of(first), host) {
            ((1, _), Some(host)) => Kind::Data(host + within),
            ((_, 1), host) => Kind::Zero(host.map(|host| host + within)),
            _ => Kind::Unallocated,
        };
        Extent { kind, len }
    }

    /// The slice with this index in a table that may be changed.
    pub(crate) async fn l2_slice_to_change(&self, index: u64) -> io::Result<Arc<Slice>> {
        let table = index / self.layout.slices();
        if !self.l1_entry(table)?.copied {
            self.own_table(table).await?;
        }
        match self.l2_slice(index).await? {
            Some(slice) => Ok(slice),
            None => Err(self.corrupt("an L2 table is missing").await),
        }
    }

    /// Makes the table at `table` one that only the active L1 refers to.
    async fn own_table(&self, table: u64) -> io::Result<()> {
        let _table = self.tables.exclusive(table..table + 1).await;
        let layout = &self.layout;
        let old = self.l1_entry(table)?;
        if old.copied {
            return Ok(());
        }
        let place = usize::try_from(table).unwrap_or(usize::MAX);
        if place >= self.l1().words.len() {
            return Err(Qcow2Error::Corrupt("the L1 table is too short").into());
        }
        self.before_allocation().await?;
        let first = self.allocate_metadata(1).await?;
        let offset = first << layout.cluster_bits;
        // A shared table is not dirty: its slices would have been changed after it was copied.
        let bytes = match old.offset {
            0 => vec![0; layout.cluster() as usize],
            shared => self.read_metadata(shared, layout.cluster()).await?,
        };
        let flags = WriteFlags::default();
        let written = self
            .image
            .write(buffer::aligned(&bytes)?, offset, flags)
            .await;
        if let Err(error) = written.0 {
            self.give_back(first..first + 1).await?;
            return Err(error);
        }
        let mut l1 = self.l1_mut();
        if let Some(word) = l1.words.get_mut(place) {
            let copied = true;
            *word = L1Entry { offset, copied }.encode();
        }
        l1.changed.insert(place);
        drop(l1);
        if old.offset != 0 {
            let cluster = old.offset >> layout.cluster_bits;
            self.frees().push(Free {
                clusters: cluster..cluster + 1,
                punch: false,
                metadata: true,
            });
        }
        Ok(())
    }

    /// The reference of an entry to its cluster is given up. Its slice has been changed already.
    pub(crate) fn forget_entry(&self, entry: Entry, punch: bool) {
        if self.layout.data_file {
            // A cluster of a data file has one place, and nobody counts.
            return;
        }
        let bits = self.layout.cluster_bits;
        let clusters = match entry {
            Entry::Standard {
                host: Some(host), ..
            } => host >> bits..(host >> bits) + 1,
            Entry::Standard { host: None, .. } => return,
            Entry::Compressed { offset, bytes } => {
                self.decompressed.forget(offset);
                offset >> bits..((offset + bytes - 1) >> bits) + 1
            }
        };
        let mut frees = self.frees();
        if let Some(last) = frees.last_mut()
            && last.clusters.end == clusters.start
            && last.punch == punch
            && !last.metadata
        {
            last.clusters.end = clusters.end;
            return;
        }
        frees.push(Free {
            clusters,
            punch,
            metadata: false,
        });
    }

    /// Bytes of the backing file, 0 without one.
    pub(crate) fn backing_size(&self) -> u64 {
        self.backing.size()
    }

    /// Whether what is unallocated at or after `offset` reads as zeros.
    pub(crate) fn is_zero_below(&self, offset: u64) -> bool {
        self.backing_size() <= offset
    }

    /// Whether the image was found to be corrupt.
    pub(crate) fn is_corrupt(&self) -> bool {
        self.is_corrupt.load(Ordering::Relaxed)
    }
}
