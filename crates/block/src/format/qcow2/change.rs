//! Zeroes and discards: requests that change the mapping and move no data.

use std::io;
use std::ops::Range;

use super::Core;
use super::layout::Entry;
use crate::buffer::{self, Parts};
use crate::storage::Storage;
use crate::{Discard, ZeroFlags};

impl<S: Storage> Core<S> {
    /// Makes a range read as zeros.
    pub(crate) async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        {
            let range = self.whole_clusters(offset, len);
            let _range = self.ranges.exclusive(range).await;
            self.zero_locked(offset..offset + len, flags.may_unmap)
                .await?;
        }
        self.relieve().await;
        match flags.fua {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    /// As [`Core::write_zeroes`], while the range is locked.
    pub(crate) async fn zero_locked(&self, bytes: Range<u64>, may_unmap: bool) -> io::Result<()> {
        let unit = self.layout.subcluster();
        // What is beyond the disk's end belongs to its last cluster.
        let end = match bytes.end >= self.size() {
            true => bytes.end.next_multiple_of(unit),
            false => bytes.end,
        };
        let start = bytes.start.next_multiple_of(unit);
        let whole = start..end - end % unit;
        if whole.is_empty() {
            return self.write_zero_bytes(bytes).await;
        }
        if bytes.start < whole.start {
            self.write_zero_bytes(bytes.start..whole.start).await?;
        }
        if whole.end < bytes.end {
            self.write_zero_bytes(whole.end..bytes.end).await?;
        }
        self.zero_units(whole, may_unmap, false).await
    }

    /// Zeroes whole subclusters, or what the disk's end cuts off, while they are locked, so that
    /// they stay zeros whatever backing file there will be. (Version 3 only.)
    pub(crate) async fn hide_locked(&self, bytes: Range<u64>) -> io::Result<()> {
        let end = bytes.end.next_multiple_of(self.layout.subcluster());
        self.zero_units(bytes.start..end, true, true).await
    }

    /// Zeroes less than a cluster by writing, unless it reads so already.
    async fn write_zero_bytes(&self, bytes: Range<u64>) -> io::Result<()> {
        let len = bytes.end - bytes.start;
        if self.is_zero(bytes.start, len).await? {
            return Ok(());
        }
        let zeros = buffer::zeroed(usize::try_from(len).unwrap_or(usize::MAX))?;
        self.write_new(&Parts::new(zeros), bytes.start, len).await
    }

    /// Zeroes whole subclusters; with `always`, by an entry even if there is nothing to hide.
    async fn zero_units(&self, units: Range<u64>, may_unmap: bool, always: bool) -> io::Result<()> {
        let layout = &self.layout;
        let bits = layout.cluster_bits;
        let mut at = units.start;
        while at < units.end {
            let cluster = at >> bits;
            let index = self.slice_of(cluster);
            if !always
                && self.l1_entry(self.table_of(cluster))?.offset == 0
                && self.is_zero_below(at)
            {
                // Nothing is stored in all of the table.
                let next = (self.table_of(cluster) + 1).saturating_mul(layout.l2_entries());
                at = next.saturating_mul(layout.cluster()).min(units.end);
                continue;
            }
            if layout.version < 3 && !self.is_zero_below(at) {
                // There is no other way to hide the backing file.
                let end = ((cluster + 1) << bits).min(units.end);
                self.write_zero_bytes(at..end).await?;
                at = end;
                continue;
            }
            self.before_allocation().await?;
            let slice = self.l2_slice_to_change(index).await?;
            while at < units.end && self.slice_of(at >> bits) == index {
                let cluster = at >> bits;
                let base = cluster << bits;
                let end = (base + layout.cluster()).min(units.end);
                let old = self.checked_entry(&slice, cluster).await?;
                let unit = layout.subcluster();
                let mask = layout.mask((at - base) / unit, (end - base) / unit);
                match self.zeroed(old, at, mask, may_unmap, always) {
                    Zeroed::Entry(new) if new != old => {
                        self.set_entry(&slice, cluster, new);
                        if !keeps_cluster(old, new) {
                            if may_unmap && layout.data_file {
                                self.punch_kept(old).await;
                            }
                            self.forget_entry(old, may_unmap);
                        }
                    }
                    Zeroed::Entry(_) => (),
                    Zeroed::Data => self.write_zero_bytes(at..end).await?,
                }
                at = end;
            }
        }
        Ok(())
    }

    /// What becomes of an entry of which `mask` is to read as zeros.
    fn zeroed(&self, old: Entry, at: u64, mask: u32, may_unmap: bool, always: bool) -> Zeroed {
        let layout = &self.layout;
        let all = layout.all();
        let nothing_below = !always && self.is_zero_below(at - layout.within(at));
        let (host, copied, allocated, zero) = match old {
            Entry::Compressed { .. } if mask != all => return Zeroed::Data,
            Entry::Compressed { .. } => (None, false, 0, 0),
            Entry::Standard {
                host,
                copied,
                allocated,
                zero,
            } => (host, copied, allocated, zero),
        };
        let allocated = allocated & !mask;
        let zero = zero | mask;
        // The cluster is kept while it has data, or in order to be written again.
        let keep = host.is_some() && (allocated != 0 || copied && !may_unmap);
        if layout.version < 3 {
            return match keep {
                true => Zeroed::Data,
                false => Zeroed::Entry(Entry::NONE),
            };
        }
        if keep {
            return Zeroed::Entry(Entry::Standard {
                host,
                copied,
                allocated,
                zero,
            });
        }
        if nothing_below {
            // Without an entry it reads as zeros as well.
            return Zeroed::Entry(Entry::NONE);
        }
        Zeroed::Entry(Entry::Standard {
            host: None,
            copied: false,
            allocated: 0,
            zero,
        })
    }

    /// Gives whole clusters of a range back; they read as zeros then.
    pub(crate) async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let cluster = self.layout.cluster();
        let end = match offset + len >= self.size() {
            true => (offset + len).next_multiple_of(cluster),
            false => offset + len,
        };
        let whole = offset.next_multiple_of(cluster)..end - end % cluster;
        if whole.is_empty() {
            return Ok(());
        }
        {
            let _range = self.ranges.exclusive(whole.clone()).await;
            self.discard_locked(whole).await?;
        }
        self.relieve().await;
        Ok(())
    }

    /// As [`Core::discard`], of whole clusters, while they are locked.
    pub(crate) async fn discard_locked(&self, whole: Range<u64>) -> io::Result<()> {
        let layout = &self.layout;
        let bits = layout.cluster_bits;
        let punch = self.options.discard == Discard::Unmap;
        let mut at = whole.start;
        while at < whole.end {
            let cluster = at >> bits;
            let index = self.slice_of(cluster);
            if self.l1_entry(self.table_of(cluster))?.offset == 0 {
                let next = (self.table_of(cluster) + 1).saturating_mul(layout.l2_entries());
                at = next.saturating_mul(layout.cluster()).min(whole.end);
                continue;
            }
            self.before_allocation().await?;
            let slice = self.l2_slice_to_change(index).await?;
            while at < whole.end && self.slice_of(at >> bits) == index {
                let cluster = at >> bits;
                let old = self.checked_entry(&slice, cluster).await?;
                if let Some(new) = self.discarded(old, at) {
                    self.set_entry(&slice, cluster, new);
                    match keeps_cluster(old, new) || layout.data_file {
                        true => self.punch_kept(old).await,
                        false => self.forget_entry(old, punch),
                    }
                }
                at = (cluster + 1) << bits;
            }
        }
        Ok(())
    }

    /// What becomes of an entry that is discarded; `None`: nothing.
    fn discarded(&self, old: Entry, at: u64) -> Option<Entry> {
        let layout = &self.layout;
        if old == Entry::NONE || layout.version < 3 && !self.is_zero_below(at) {
            return None;
        }
        let hidden = Entry::Standard {
            host: None,
            copied: false,
            allocated: 0,
            zero: layout.all(),
        };
        let new = match old {
            Entry::Standard {
                host: host @ Some(_),
                copied: true,
                ..
            } if self.options.discard_no_unref && layout.version >= 3 => Entry::Standard {
                host,
                copied: true,
                allocated: 0,
                zero: layout.all(),
            },
            // What the backing file has must not come to light again.
            _ if self.is_zero_below(at) => Entry::NONE,
            _ => hidden,
        };
        (new != old && old != hidden).then_some(new)
    }

    /// Gives back the space of a cluster that keeps its place, now: later it may have data again.
    async fn punch_kept(&self, entry: Entry) {
        if let Entry::Standard {
            host: Some(host), ..
        } = entry
            && self.options.discard == Discard::Unmap
        {
            let discarded = self.data().discard(host, self.layout.cluster()).await;
            if let Err(error) = discarded {
                log::debug!("cannot give space back: {error}");
            }
        }
    }
}

/// How a cluster comes to read as zeros.
enum Zeroed {
    /// By this entry.
    Entry(Entry),
    /// By writing.
    Data,
}

/// Whether the cluster of the old entry is that of the new one.
fn keeps_cluster(old: Entry, new: Entry) -> bool {
    match (old, new) {
        (
            Entry::Standard {
                host: Some(old), ..
            },
            Entry::Standard {
                host: Some(new), ..
            },
        ) => old == new,
        _ => false,
    }
}
