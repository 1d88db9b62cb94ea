//! Changing the size of the disk.

use std::sync::atomic::Ordering;

use super::checkpoint::Free;
use super::header::{MAX_L1_BYTES, MAX_SIZE, l1_entries};
use super::layout::{Entry, L1Entry};
use super::{Core, Qcow2Error};
use crate::BlockError;
use crate::storage::Storage;

impl<S: Storage> Core<S> {
    /// Gives the disk `size` bytes. What is new reads as zeros.
    pub(crate) async fn resize(&self, size: u64) -> Result<(), Qcow2Error> {
        if self.read_only {
            return Err(Qcow2Error::Unsupported("it is open read-only"));
        }
        if self.is_corrupt() {
            return Err(Qcow2Error::MarkedCorrupt);
        }
        if size > MAX_SIZE || !size.is_multiple_of(super::SECTOR) {
            return Err(Qcow2Error::Unsupported(
                "sizes are multiples of 512 bytes, up to 2^62",
            ));
        }
        let (version, snapshots) = {
            let header = self.header();
            (header.version, header.snapshots)
        };
        if snapshots != 0 && version < 3 {
            return Err(Qcow2Error::Unsupported(
                "a version 2 image with internal snapshots cannot be resized",
            ));
        }
        if self.has_sleeping_bitmaps() {
            return Err(Qcow2Error::Unsupported(
                "it has dirty bitmaps that do not record; enable or remove them first",
            ));
        }
        let _ranges = self.ranges.all().await;
        let old = self.size();
        match size.cmp(&old) {
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Greater => self.grow(old, size).await?,
            std::cmp::Ordering::Less => self.shrink(size).await?,
        }
        if let Some(data) = &self.data {
            data.resize(size).await.map_err(|error| match error {
                BlockError::Host { source, .. } => {
                    Qcow2Error::io("resize the external data file")(source)
                }
                _ => Qcow2Error::Unsupported("the external data file cannot have that size"),
            })?;
        }
        Ok(())
    }

    /// See [`super::Qcow2::make_empty`].
    pub(crate) async fn make_empty(&self) -> Result<(), Qcow2Error> {
        let fail = || Qcow2Error::io("empty the image");
        if self.read_only {
            return Err(Qcow2Error::Unsupported("it is open read-only"));
        }
        if self.is_corrupt() {
            return Err(Qcow2Error::MarkedCorrupt);
        }
        let _ranges = self.ranges.all().await;
        self.drop_from(0).await.map_err(fail())?;
        self.flush().await.map_err(fail())
    }

    /// See [`super::Qcow2::set_backing`].
    pub(crate) async fn set_backing(
        &self,
        name: Option<&[u8]>,
        format: Option<&str>,
    ) -> Result<(), Qcow2Error> {
        if self.read_only {
            return Err(Qcow2Error::Unsupported("it is open read-only"));
        }
        let long = |name: &[u8]| name.len() > super::header::MAX_BACKING_NAME as usize;
        if name.is_some_and(|name| name.is_empty() || long(name) || name.contains(&0)) {
            return Err(Qcow2Error::Unsupported(
                "names of other files have 1 to 1023 bytes",
            ));
        }
        let fail = || Qcow2Error::io("write the header");
        let _ranges = self.ranges.all().await;
        self.flush().await.map_err(fail())?;
        let mut header = self.header().clone();
        header.backing_file = name.map(<[u8]>::to_vec);
        header.backing_format = format.filter(|_| name.is_some()).map(str::to_owned);
        // Before anything is written.
        header.encode()?;
        let guard = self.checkpoint_lock().await;
        self.update_header(&guard, |old| {
            old.backing_file = header.backing_file;
            old.backing_format = header.backing_format;
        })
        .await
        .map_err(fail())
    }

    async fn grow(&self, old: u64, size: u64) -> Result<(), Qcow2Error> {
        let layout = &self.layout;
        let fail = || Qcow2Error::io("write the larger tables");
        let needed = l1_entries(size, layout.cluster_bits, layout.extended);
        if needed * 8 > MAX_L1_BYTES {
            return Err(Qcow2Error::Unsupported(
                "the L1 table would be too large; larger clusters allow larger disks",
            ));
        }
        if needed > self.l1().words.len() as u64 {
            self.move_l1(needed as usize).await.map_err(fail())?;
        }
        // The rest of the last cluster, and what would show through from the backing file.
        let cluster_end = old.next_multiple_of(layout.cluster()).min(size);
        let hidden_end = self.backing_size().min(size).max(cluster_end);
        if hidden_end > old {
            self.zero_locked(old..hidden_end, true)
                .await
                .map_err(fail())?;
        }
        self.flush().await.map_err(fail())?;
        self.set_size(size).await
    }

    async fn set_size(&self, size: u64) -> Result<(), Qcow2Error> {
        let guard = self.checkpoint_lock().await;
        self.update_header(&guard, |header| header.size = size)
            .await
            .map_err(Qcow2Error::io("write the header"))?;
        self.size.store(size, Ordering::Release);
        self.resize_bitmaps(size);
        Ok(())
    }

    /// Replaces the L1 table by one with `entries` entries.
    async fn move_l1(&self, entries: usize) -> std::io::Result<()> {
        let bits = self.layout.cluster_bits;
        self.before_allocation().await?;
        self.flush().await?;
        let mut words = self.l1().words.clone();
        words.resize(entries, 0);
        let clusters = (entries as u64 * 8).div_ceil(self.layout.cluster());
        let first = self.allocate_metadata(clusters).await?;
        let guard = self.checkpoint_lock().await;
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.resize((clusters << bits) as usize, 0);
        let offset = first << bits;
        self.write_metadata(&guard, offset, &bytes).await?;
        // The refcounts of the new table, and the table itself.
        let lazy = self.is_lazy();
        self.checkpoint(&guard, lazy).await?;
        let (old, old_entries) = {
            let header = self.header();
            (header.l1_offset >> bits, u64::from(header.l1_size))
        };
        self.update_header(&guard, |header| {
            header.l1_offset = offset;
            header.l1_size = entries as u32;
        })
        .await?;
        self.l1_mut().words = words;
        drop(guard);
        let old_clusters = (old_entries * 8).div_ceil(self.layout.cluster());
        self.lower(old..old + old_clusters).await
    }

    async fn shrink(&self, size: u64) -> Result<(), Qcow2Error> {
        let layout = &self.layout;
        let fail = || Qcow2Error::io("give the end of the disk back");
        let end = size.next_multiple_of(layout.cluster());
        if end > size {
            self.zero_locked(size..end.min(self.size()), false)
                .await
                .map_err(fail())?;
        }
        self.drop_from(end >> layout.cluster_bits)
            .await
            .map_err(fail())?;
        self.flush().await.map_err(fail())?;
        self.set_size(size).await
    }

    /// Gives up all clusters from `first` on, and the tables that have no others.
    async fn drop_from(&self, first: u64) -> std::io::Result<()> {
        let layout = &self.layout;
        let per_table = layout.l2_entries();
        let per_slice = layout.slice_entries();
        let tables = self.l1().words.len() as u64;
        self.before_allocation().await?;
        for table in first / per_table..tables {
            if self.l1_entry(table)?.offset == 0 {
                continue;
            }
            let start = (table * per_table).max(first);
            let end = (table + 1) * per_table;
            for index in start / per_slice..end.div_ceil(per_slice) {
                let slice = self.l2_slice_to_change(index).await?;
                for cluster in (index * per_slice).max(start)..((index + 1) * per_slice).min(end) {
                    let old = self.checked_entry(&slice, cluster).await?;
                    if old != Entry::NONE {
                        self.set_entry(&slice, cluster, Entry::NONE);
                        self.forget_entry(old, true);
                    }
                }
            }
            self.relieve().await;
            if start == table * per_table {
                self.drop_table(table).await?;
            }
        }
        Ok(())
    }

    /// Gives up a table without entries.
    async fn drop_table(&self, table: u64) -> std::io::Result<()> {
        let layout = &self.layout;
        let place = usize::try_from(table).unwrap_or(usize::MAX);
        let L1Entry { offset, .. } = self.l1_entry(table)?;
        {
            let mut l1 = self.l1_mut();
            if let Some(word) = l1.words.get_mut(place) {
                *word = 0;
            }
            l1.changed.insert(place);
        }
        let slices = table * layout.slices()..(table + 1) * layout.slices();
        self.l2.forget(slices);
        let cluster = offset >> layout.cluster_bits;
        self.frees().push(Free {
            clusters: cluster..cluster + 1,
            punch: true,
            metadata: true,
        });
        Ok(())
    }
}
