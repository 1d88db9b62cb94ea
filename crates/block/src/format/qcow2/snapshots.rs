//! Internal snapshots: making, deleting and applying them.
//!
//! A snapshot is a copy of the L1 table. Everything below is shared, and counted once more for
//! each that shares it; what is shared has no COPIED flag and is copied before it is changed.
//!
//! Each operation has one write of the header that makes it valid. What is counted for the sake of
//! the new state is stable before that, and what the old state had is counted down after it, so
//! that a power cut leaves leaks at worst, or flags that `check` corrects.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use event::WriteFlags;

use super::check::entries;
use super::checkpoint::Free;
use super::counts::Counts;
use super::header::l1_entries;
use super::layout::{Entry, L1Entry};
use super::snapshot::{Snapshot, SnapshotRequest};
use super::{Core, Qcow2, Qcow2Error, buffer};
use crate::storage::Storage;

/// The message of a failed step.
const CHANGE: &str = "change the snapshots";

impl<S: Storage> Qcow2<S> {
    /// Makes a snapshot of the disk as it is. Requests wait meanwhile.
    ///
    /// # Errors
    /// The name is taken, the image cannot have snapshots or no more of them, or the host fails.
    pub async fn create_snapshot(&self, request: &SnapshotRequest) -> Result<String, Qcow2Error> {
        self.core.create_snapshot(request).await
    }

    /// Deletes a snapshot, by its id or name.
    ///
    /// # Errors
    /// There is no such snapshot, or the host fails.
    pub async fn delete_snapshot(&self, which: &str) -> Result<(), Qcow2Error> {
        self.core.delete_snapshot(which).await
    }

    /// Makes the disk as it was, by the snapshot's id or name. What is there now is lost.
    ///
    /// # Errors
    /// There is no such snapshot, or the host fails.
    pub async fn apply_snapshot(&self, which: &str) -> Result<(), Qcow2Error> {
        self.core.apply_snapshot(which).await?;
        self.watchers.tell(crate::Node::size(self));
        Ok(())
    }
}

fn find(snapshots: &[Snapshot], which: &str) -> Result<usize, Qcow2Error> {
    let by = |key: fn(&Snapshot) -> &str| snapshots.iter().position(|s| key(s) == which);
    by(|snapshot| &snapshot.id)
        .or_else(|| by(|snapshot| &snapshot.name))
        .ok_or_else(|| Qcow2Error::NoSuch {
            what: "snapshot",
            name: which.to_owned(),
        })
}

impl<S: Storage> Core<S> {
    fn check_snapshots(&self) -> Result<(), Qcow2Error> {
        if self.read_only {
            return Err(Qcow2Error::Unsupported("it is open read-only"));
        }
        if self.is_corrupt() {
            return Err(Qcow2Error::MarkedCorrupt);
        }
        if self.layout.data_file {
            return Err(Qcow2Error::Unsupported(
                "an image with an external data file cannot have internal snapshots",
            ));
        }
        Ok(())
    }

    async fn create_snapshot(&self, request: &SnapshotRequest) -> Result<String, Qcow2Error> {
        let fail = || Qcow2Error::io(CHANGE);
        self.check_snapshots()?;
        let _ranges = self.ranges.all().await;
        self.before_allocation().await.map_err(fail())?;
        self.flush().await.map_err(fail())?;
        let header = self.header().clone();
        let (mut snapshots, _) = self.read_snapshots(&header).await?;
        if snapshots.iter().any(|s| s.name == request.name) {
            return Err(Qcow2Error::Exists {
                what: "snapshot",
                name: request.name.clone(),
            });
        }
        if snapshots.len() >= super::header::MAX_SNAPSHOTS as usize
            || request.name.len() > usize::from(u16::MAX)
        {
            return Err(Qcow2Error::Unsupported(
                "too many snapshots, or too long a name",
            ));
        }
        let words = self.l1().words.clone();
        self.check_room(&words).await?;
        self.change_references(&words, true).await?;
        self.set_copied_flags(false).await?;
        let shared: Vec<u64> = self.l1().words.clone();
        let (l1_offset, _) = self.write_l1_copy(&shared).await?;
        let id = snapshots.iter().filter_map(|s| s.id.parse::<u64>().ok());
        let id = id.max().map_or(1, |id| id.saturating_add(1)).to_string();
        snapshots.push(Snapshot {
            id: id.clone(),
            name: request.name.clone(),
            date_sec: request.date_sec,
            date_nsec: request.date_nsec,
            vm_clock_nsec: request.vm_clock_nsec,
            vm_state_size: 0,
            disk_size: Some(self.size()),
            icount: None,
            l1_offset,
            l1_size: shared.len() as u32,
            unknown: Vec::new(),
        });
        self.replace_snapshots(&snapshots).await?;
        Ok(id)
    }

    async fn delete_snapshot(&self, which: &str) -> Result<(), Qcow2Error> {
        let fail = || Qcow2Error::io(CHANGE);
        self.check_snapshots()?;
        let _ranges = self.ranges.all().await;
        self.before_allocation().await.map_err(fail())?;
        self.flush().await.map_err(fail())?;
        let header = self.header().clone();
        let (mut snapshots, _) = self.read_snapshots(&header).await?;
        let gone = snapshots.remove(find(&snapshots, which)?);
        let words = self.read_l1(gone.l1_offset, gone.l1_size).await;
        let words = words.map_err(fail())?;
        self.replace_snapshots(&snapshots).await?;
        self.change_references(&words, false).await?;
        self.free_l1(gone.l1_offset, gone.l1_size);
        self.flush().await.map_err(fail())?;
        self.set_copied_flags(true).await?;
        self.flush().await.map_err(fail())
    }

    async fn apply_snapshot(&self, which: &str) -> Result<(), Qcow2Error> {
        let fail = || Qcow2Error::io(CHANGE);
        self.check_snapshots()?;
        if self.has_sleeping_bitmaps() {
            return Err(Qcow2Error::Unsupported(
                "it has dirty bitmaps that do not record; enable or remove them first",
            ));
        }
        let _ranges = self.ranges.all().await;
        self.before_allocation().await.map_err(fail())?;
        self.flush().await.map_err(fail())?;
        let header = self.header().clone();
        let (snapshots, _) = self.read_snapshots(&header).await?;
        let snapshot = snapshots
            .get(find(&snapshots, which)?)
            .ok_or(Qcow2Error::Corrupt("a snapshot is gone"))?;
        let size = snapshot.disk_size.unwrap_or_else(|| self.size());
        let needed = l1_entries(size, self.layout.cluster_bits, self.layout.extended);
        let words = self.read_l1(snapshot.l1_offset, snapshot.l1_size).await;
        let mut words = words.map_err(fail())?;
        if size > super::header::MAX_SIZE || needed > super::header::MAX_L1_BYTES / 8 {
            return Err(Qcow2Error::Corrupt("a snapshot's disk is too large"));
        }
        words.resize(words.len().max(needed as usize), 0);
        self.check_room(&words).await?;
        self.change_references(&words, true).await?;
        let (offset, entries) = self.write_l1_copy(&words).await?;
        let old = self.l1().words.clone();
        // The counts of what was shared are stable before the header leads there.
        self.flush().await.map_err(fail())?;
        let guard = self.checkpoint_lock().await;
        self.update_header(&guard, |header| {
            header.l1_offset = offset;
            header.l1_size = entries;
            header.size = size;
        })
        .await
        .map_err(fail())?;
        drop(guard);
        {
            let mut l1 = self.l1_mut();
            l1.words = words;
            l1.changed.clear();
        }
        self.l2.clear();
        self.decompressed.clear();
        self.size.store(size, std::sync::atomic::Ordering::Release);
        self.resize_bitmaps(size);
        self.bitmaps.record(0..size);
        self.change_references(&old, false).await?;
        self.free_l1(header.l1_offset, header.l1_size);
        self.flush().await.map_err(fail())?;
        self.set_copied_flags(true).await?;
        self.flush().await.map_err(fail())
    }

    /// What an L1 table refers to, one table after the other: the table's cluster and those of its
    /// entries.
    async fn references(&self, word: u64) -> Result<Vec<Range<u64>>, Qcow2Error> {
        let layout = &self.layout;
        let bits = layout.cluster_bits;
        let table = L1Entry::decode(word, layout)?.offset;
        if table == 0 {
            return Ok(Vec::new());
        }
        let bytes = self
            .read_metadata(table, layout.cluster())
            .await
            .map_err(Qcow2Error::io("read an L2 table"))?;
        let mut all = Vec::new();
        all.push(table >> bits..(table >> bits) + 1);
        for entry in entries(&bytes, layout) {
            match entry? {
                Entry::Standard {
                    host: Some(host), ..
                } => all.push(host >> bits..(host >> bits) + 1),
                Entry::Standard { host: None, .. } => (),
                Entry::Compressed { offset, bytes } => {
                    all.push(offset >> bits..((offset + bytes - 1) >> bits) + 1);
                }
            }
        }
        Ok(all)
    }

    /// Whether everything can be counted once more.
    async fn check_room(&self, l1: &[u64]) -> Result<(), Qcow2Error> {
        const FULL: Qcow2Error =
            Qcow2Error::Unsupported("the image's refcounts are too narrow for another snapshot");
        let most = self.layout.max_refcount();
        let mut more = Counts::default();
        for word in l1 {
            for clusters in self.references(*word).await? {
                for cluster in clusters {
                    if !more.add(cluster..cluster + 1) {
                        return Err(Qcow2Error::Unsupported("the image is too large"));
                    }
                    let count = self.refcount(cluster).await;
                    let count = count.map_err(Qcow2Error::io("read refcounts"))?;
                    if count.saturating_add(more.get(cluster)) > most {
                        return Err(FULL);
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts everything below an L1 table once more, or gives it up.
    async fn change_references(&self, l1: &[u64], raise: bool) -> Result<(), Qcow2Error> {
        for word in l1 {
            for clusters in self.references(*word).await? {
                match raise {
                    true => {
                        let raised = self.raise(clusters).await;
                        raised.map_err(Qcow2Error::io("count references"))?;
                    }
                    false => self.frees().push(Free {
                        clusters,
                        punch: true,
                        metadata: false,
                    }),
                }
            }
            self.relieve().await;
        }
        Ok(())
    }

    fn free_l1(&self, offset: u64, entries: u32) {
        let bits = self.layout.cluster_bits;
        let clusters = (u64::from(entries) * 8).div_ceil(self.layout.cluster());
        self.frees().push(Free {
            clusters: offset >> bits..(offset >> bits) + clusters,
            punch: true,
            metadata: true,
        });
    }

    /// Sets the COPIED flags of the active tables where a cluster has one reference, or clears
    /// all of them.
    async fn set_copied_flags(&self, by_refcount: bool) -> Result<(), Qcow2Error> {
        let fail = || Qcow2Error::io(CHANGE);
        let layout = &self.layout;
        let tables = self.l1().words.len() as u64;
        for table in 0..tables {
            let entry = self.l1_entry(table)?;
            if entry.offset == 0 {
                continue;
            }
            let alone = match by_refcount {
                true => self.is_alone(entry.offset).await.map_err(fail())?,
                false => false,
            };
            if alone != entry.copied {
                let mut l1 = self.l1_mut();
                if let Some(word) = l1.words.get_mut(table as usize) {
                    let copied = alone;
                    *word = L1Entry { copied, ..entry }.encode();
                }
                l1.changed.insert(table as usize);
            }
            if by_refcount && !alone {
                // Its entries are others' too, and have no flags.
                continue;
            }
            for index in table * layout.slices()..(table + 1) * layout.slices() {
                let Some(slice) = self.l2_slice(index).await.map_err(fail())? else {
                    break;
                };
                let first = index * layout.slice_entries();
                for cluster in first..first + layout.slice_entries() {
                    self.set_copied_flag(&slice, cluster, by_refcount)
                        .await
                        .map_err(fail())?;
                }
            }
            self.relieve().await;
        }
        Ok(())
    }

    async fn set_copied_flag(
        &self,
        slice: &Arc<super::slices::Slice>,
        cluster: u64,
        by_refcount: bool,
    ) -> io::Result<()> {
        if let Entry::Standard {
            host: Some(host),
            copied: old,
            allocated,
            zero,
        } = self.entry(slice, cluster)?
        {
            let copied = by_refcount && self.is_alone(host).await?;
            if copied != old {
                let entry = Entry::Standard {
                    host: Some(host),
                    copied,
                    allocated,
                    zero,
                };
                self.set_entry(slice, cluster, entry);
            }
        }
        Ok(())
    }

    async fn is_alone(&self, offset: u64) -> io::Result<bool> {
        Ok(self.refcount(offset >> self.layout.cluster_bits).await? == 1)
    }

    /// Writes an L1 table without flags to new clusters: its offset and entries.
    async fn write_l1_copy(&self, words: &[u64]) -> Result<(u64, u32), Qcow2Error> {
        let fail = || Qcow2Error::io(CHANGE);
        let layout = &self.layout;
        let clusters = (words.len() as u64 * 8).div_ceil(layout.cluster()).max(1);
        let first = self.allocate_metadata(clusters).await.map_err(fail())?;
        let mut bytes = Vec::with_capacity(words.len() * 8);
        for word in words {
            let copied = false;
            let entry = L1Entry::decode(*word, layout)?;
            let word = L1Entry { copied, ..entry }.encode();
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes.resize((clusters << layout.cluster_bits) as usize, 0);
        let offset = first << layout.cluster_bits;
        let buf = buffer::aligned(&bytes).map_err(fail())?;
        let written = self.image.write(buf, offset, WriteFlags::default()).await;
        written.0.map_err(fail())?;
        Ok((offset, words.len() as u32))
    }

    /// Writes another table of snapshots and makes it valid.
    async fn replace_snapshots(&self, snapshots: &[Snapshot]) -> Result<(), Qcow2Error> {
        let fail = || Qcow2Error::io(CHANGE);
        let layout = &self.layout;
        let old = self.header().clone();
        let old_bytes = match old.snapshots {
            0 => 0,
            _ => self.read_snapshots(&old).await?.1,
        };
        let mut bytes: Vec<u8> = snapshots.iter().flat_map(Snapshot::encode).collect();
        let mut offset = 0;
        if !bytes.is_empty() {
            let clusters = (bytes.len() as u64).div_ceil(layout.cluster());
            bytes.resize((clusters << layout.cluster_bits) as usize, 0);
            let first = self.allocate_metadata(clusters).await.map_err(fail())?;
            offset = first << layout.cluster_bits;
            let buf = buffer::aligned(&bytes).map_err(fail())?;
            let written = self.image.write(buf, offset, WriteFlags::default()).await;
            written.0.map_err(fail())?;
        }
        self.flush().await.map_err(fail())?;
        let guard = self.checkpoint_lock().await;
        self.update_header(&guard, |header| {
            header.snapshots = snapshots.len() as u32;
            header.snapshots_offset = offset;
        })
        .await
        .map_err(fail())?;
        drop(guard);
        if old_bytes != 0 {
            let first = old.snapshots_offset >> layout.cluster_bits;
            let clusters = old_bytes.div_ceil(layout.cluster());
            let clusters = first..first + clusters;
            self.lower(clusters).await.map_err(fail())?;
        }
        self.flush().await.map_err(fail())
    }
}
