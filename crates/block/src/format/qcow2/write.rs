//! Writing: in place where the clusters are there and ours alone, and to new clusters otherwise.
//!
//! ```text
//!   shared lock ──▶ all in place? ── yes ──▶ write
//!                        │ no
//!   exclusive lock ──▶ for each run of clusters:
//!                      take clusters ▶ write data and what surrounds it ▶ change the entries
//! ```
//!
//! An entry is changed when its data has been written, so that a checkpoint, which copies entries
//! and then flushes, never makes an entry stable before its data.

use std::io;
use std::ops::Range;

use event::{IoBuf, WriteFlags};

use super::compress::compress;
use super::layout::{Entry, compressed_offset_fits};
use super::refcounts::Run;
use super::{Core, Qcow2Error, SECTOR};
use crate::buffer::{self, Parts};
use crate::storage::Storage;
use crate::{Transfer, ZeroFlags};

/// Writes in place of one request that go to the host at the same time.
const AT_ONCE: usize = 16;

/// Clusters of a request that follow one another on the disk and on the host.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// First guest cluster.
    first: u64,
    count: u64,
    /// First byte on the host.
    host: u64,
    /// The host's clusters were taken for this request.
    new: bool,
    /// And read as zeros.
    virgin: bool,
}

/// What a group's first and last cluster need beside the data.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Guest bytes that are written, a superset of the data.
    start: u64,
    end: u64,
}

/// Takes note of a write that is given up while the host works on it.
struct Pending<'a, S: Storage> {
    core: &'a Core<S>,
    bytes: Range<u64>,
}

impl<S: Storage> Drop for Pending<'_, S> {
    fn drop(&mut self) {
        self.core.abandon(self.bytes.clone());
    }
}

impl<S: Storage> Core<S> {
    /// Writes all of `buf`.
    pub(crate) async fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> Transfer {
        if buf.is_empty() {
            return (Ok(()), buf);
        }
        let len = buf.len() as u64;
        {
            let _range = self.ranges.shared(offset..offset + len).await;
            let places = match self.is_encryptable(offset, len) {
                true => self.places(offset, len).await,
                false => Ok(None),
            };
            match places {
                Ok(Some(places)) => return self.write_in_place(buf, offset, &places, flags).await,
                Ok(None) => (),
                Err(error) => return (Err(error), buf),
            }
        }
        Box::pin(async move {
            let parts = Parts::new(buf);
            let mut result = {
                let _range = self
                    .ranges
                    .exclusive(self.whole_clusters(offset, len))
                    .await;
                self.write_new(&parts, offset, len).await
            };
            self.relieve().await;
            if flags.fua && result.is_ok() {
                result = self.flush().await;
            }
            (result, parts.into_whole())
        })
        .await
    }

    /// The bytes of all clusters that a range touches.
    pub(crate) fn whole_clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let cluster = self.layout.cluster();
        let end = offset.saturating_add(len);
        offset - offset % cluster..end.checked_next_multiple_of(cluster).unwrap_or(u64::MAX)
    }

    /// Where the range can be written in place: the host's ranges one after the other, or `None`
    /// when clusters are missing.
    async fn places(&self, offset: u64, len: u64) -> io::Result<Option<Places>> {
        let bits = self.layout.cluster_bits;
        let mut places = Places::default();
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let cluster = at >> bits;
            let index = self.slice_of(cluster);
            // A table that a snapshot shares has only entries that are shared.
            let Some(slice) = self.l2_slice(index).await? else {
                return Ok(None);
            };
            while at < end && self.slice_of(at >> bits) == index {
                let entry = self.checked_entry(&slice, at >> bits).await?;
                let within = self.layout.within(at);
                let step = (self.layout.cluster() - within).min(end - at);
                let subcluster = self.layout.subcluster();
                let touched = self
                    .layout
                    .mask(within / subcluster, (within + step).div_ceil(subcluster));
                match entry {
                    Entry::Standard {
                        host: Some(host),
                        copied: true,
                        allocated,
                        ..
                    } if allocated & touched == touched => places.add(host + within, step),
                    _ => return Ok(None),
                }
                at += step;
            }
        }
        Ok(Some(places))
    }

    async fn write_in_place(
        &self,
        buf: IoBuf,
        offset: u64,
        places: &Places,
        flags: WriteFlags,
    ) -> Transfer {
        debug_assert_eq!(places.len(), buf.len() as u64, "at {offset}");
        // To be stable, the mapping has to be so too.
        let by_flush = flags.fua && self.has_dirty_mappings();
        let flags = WriteFlags {
            fua: flags.fua && !by_flush,
        };
        let mut done = match &places.more[..] {
            [] => self.write_data(buf, places.first.0, offset, flags).await,
            _ => Box::pin(self.write_pieces_in_place(buf, offset, places, flags)).await,
        };
        if by_flush && done.0.is_ok() {
            done.0 = self.flush().await;
        }
        done
    }

    async fn write_pieces_in_place(
        &self,
        buf: IoBuf,
        offset: u64,
        places: &Places,
        flags: WriteFlags,
    ) -> Transfer {
        let parts = Parts::new(buf);
        let mut start = 0;
        let mut result = Ok(());
        let all: Vec<(u64, u64)> = std::iter::once(places.first)
            .chain(places.more.iter().copied())
            .collect();
        for batch in all.chunks(AT_ONCE) {
            let mut writes = Vec::with_capacity(batch.len());
            for (host, len) in batch {
                let part = parts.part(start, *len as usize);
                let guest = offset + start as u64;
                start += *len as usize;
                writes.push(self.write_data(part, *host, guest, flags));
            }
            for (written, _) in event::join_all(writes).await {
                result = result.and(written);
            }
        }
        (result, parts.into_whole())
    }

    /// Whether a range can be written without the rest of its sectors.
    fn is_encryptable(&self, offset: u64, len: u64) -> bool {
        self.crypt.is_none() || offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR)
    }

    /// Writes to the data file what the guest has at `guest`. If it is given up, the clusters are
    /// not used for anything else.
    async fn write_data(&self, buf: IoBuf, host: u64, guest: u64, flags: WriteFlags) -> Transfer {
        let pending = Pending {
            core: self,
            bytes: host..host + buf.len() as u64,
        };
        let done = match &self.crypt {
            None => self.data().write(buf, host, flags).await,
            Some(crypt) => {
                let data = self.data();
                Box::pin(crypt.write(data, buf, host, guest, flags)).await
            }
        };
        std::mem::forget(pending);
        done
    }

    /// Writes where clusters may be missing. The range is locked exclusively.
    pub(crate) async fn write_new(&self, parts: &Parts, offset: u64, len: u64) -> io::Result<()> {
        let bits = self.layout.cluster_bits;
        self.before_allocation().await?;
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let first = at >> bits;
            let index = self.slice_of(first);
            let slice = self.l2_slice_to_change(index).await?;
            let slice_end = (index + 1) * self.layout.slice_entries();
            let last = ((end - 1) >> bits) + 1;
            let group = self.group(&slice, first, last.min(slice_end)).await?;
            let until = ((group.first + group.count) << bits).min(end);
            let written = self
                .write_group(&slice, &group, parts, at - offset, at..until)
                .await;
            if let Err(error) = written {
                if group.new && !self.layout.data_file {
                    // Nothing refers to them, and the host is done with them.
                    let first = group.host >> bits;
                    self.give_back(first..first + group.count).await?;
                }
                return Err(error);
            }
            at = until;
        }
        Ok(())
    }

    /// The clusters from `first` on, before `last`, that can be written as one.
    async fn group(
        &self,
        slice: &super::slices::Slice,
        first: u64,
        last: u64,
    ) -> io::Result<Group> {
        let layout = &self.layout;
        let ours = |entry: Entry| match entry {
            Entry::Standard {
                host: Some(host),
                copied: true,
                ..
            } => Some(host),
            _ => None,
        };
        let mut count = 1;
        match ours(self.checked_entry(slice, first).await?) {
            Some(host) => {
                while first + count < last {
                    let entry = self.checked_entry(slice, first + count).await?;
                    if ours(entry) != Some(host + (count << layout.cluster_bits)) {
                        break;
                    }
                    count += 1;
                }
                Ok(Group {
                    first,
                    count,
                    host,
                    new: false,
                    virgin: false,
                })
            }
            None => {
                while first + count < last {
                    let entry = self.checked_entry(slice, first + count).await?;
                    if ours(entry).is_some() {
                        break;
                    }
                    count += 1;
                }
                let run = match layout.data_file {
                    // Guest and host offset are the same there.
                    true => Run {
                        first,
                        count,
                        virgin: false,
                    },
                    false => self.allocate(count).await?,
                };
                Ok(Group {
                    first,
                    count: run.count,
                    host: run.first << layout.cluster_bits,
                    new: true,
                    virgin: run.virgin,
                })
            }
        }
    }

    /// What has to be written around `bytes` in the group's first and last cluster.
    async fn frame(
        &self,
        slice: &super::slices::Slice,
        group: &Group,
        bytes: &Range<u64>,
    ) -> io::Result<Frame> {
        let layout = &self.layout;
        let mut frame = Frame {
            start: bytes.start,
            end: bytes.end,
        };
        let size = layout.subcluster();
        let last = group.first + group.count - 1;
        for (cluster, at) in [(group.first, bytes.start), (last, bytes.end - 1)] {
            let base = cluster << layout.cluster_bits;
            let sub = (at - base) / size;
            let around = match self.checked_entry(slice, cluster).await? {
                // A stream, or data of others: all of it moves to the new cluster.
                Entry::Compressed { .. } => base..base + layout.cluster(),
                Entry::Standard { allocated, .. } if group.new && allocated != 0 => {
                    base..base + layout.cluster()
                }
                Entry::Standard { allocated, .. } if allocated >> sub & 1 != 0 => {
                    match self.crypt {
                        None => continue,
                        Some(_) => at - at % SECTOR..at - at % SECTOR + SECTOR,
                    }
                }
                Entry::Standard { .. } => base + sub * size..base + (sub + 1) * size,
            };
            if around.contains(&bytes.start) {
                frame.start = around.start;
            }
            if around.contains(&(bytes.end - 1)) {
                frame.end = around.end;
            }
        }
        Ok(frame)
    }

    /// Writes `bytes` of the disk, which are the part of `parts` from `start` on, to a group, and
    /// changes its entries.
    async fn write_group(
        &self,
        slice: &std::sync::Arc<super::slices::Slice>,
        group: &Group,
        parts: &Parts,
        start: u64,
        bytes: Range<u64>,
    ) -> io::Result<()> {
        let layout = &self.layout;
        let base = group.first << layout.cluster_bits;
        let host_of = |guest: u64| group.host + (guest - base);
        let frame = self.frame(slice, group, &bytes).await?;
        let data = parts.part(start as usize, (bytes.end - bytes.start) as usize);
        let mut list = Vec::with_capacity(3);
        let mut from = bytes.start;
        for side in [frame.start..bytes.start, bytes.end..frame.end] {
            let head = side.end == bytes.start;
            let len = side.end - side.start;
            if len != 0 {
                // Encrypted, zeros are bytes like others.
                if self.crypt.is_none() && self.is_zero(side.start, len).await? {
                    if !group.virgin {
                        let flags = ZeroFlags::default();
                        let host = host_of(side.start);
                        self.data().write_zeroes(host, len, flags).await?;
                    }
                } else {
                    let old = self.read_old(side.start, len).await?;
                    if head {
                        from = side.start;
                    }
                    list.push((head, old));
                }
            }
        }
        let buf = match list.is_empty() {
            true => data,
            false => {
                let mut pieces = Vec::with_capacity(3);
                let mut tail = None;
                for (head, old) in list {
                    match head {
                        true => pieces.push(old),
                        false => tail = Some(old),
                    }
                }
                pieces.push(data);
                pieces.extend(tail);
                buffer::concatenated(pieces)
            }
        };
        let flags = WriteFlags::default();
        self.write_data(buf, host_of(from), from, flags).await.0?;
        for cluster in group.first..group.first + group.count {
            let base = cluster << layout.cluster_bits;
            let from = frame.start.max(base) - base;
            let to = frame.end.min(base + layout.cluster()) - base;
            let size = layout.subcluster();
            let written = layout.mask(from / size, to.div_ceil(size));
            let old = self.checked_entry(slice, cluster).await?;
            self.link(slice, cluster, old, host_of(base), written, group.new);
        }
        Ok(())
    }

    /// Makes an entry lead to its cluster on the host, where `written` subclusters have been
    /// written.
    fn link(
        &self,
        slice: &std::sync::Arc<super::slices::Slice>,
        cluster: u64,
        old: Entry,
        host: u64,
        written: u32,
        new: bool,
    ) {
        let (allocated, zero) = match old {
            Entry::Compressed { .. } => (0, 0),
            // Other subclusters were copied to a new cluster, or had no data.
            Entry::Standard {
                allocated, zero, ..
            } => (if new { 0 } else { allocated }, zero),
        };
        let allocated = allocated | written;
        let entry = Entry::Standard {
            host: Some(host),
            copied: true,
            allocated,
            zero: zero & !allocated,
        };
        if entry == old {
            return;
        }
        self.set_entry(slice, cluster, entry);
        if new {
            self.forget_entry(old, false);
        }
    }

    /// Writes a whole cluster in compressed form, where that is shorter.
    ///
    /// # Errors
    /// The host fails; or the image cannot have compressed clusters.
    pub(crate) async fn write_compressed(&self, data: Vec<u8>, offset: u64) -> io::Result<()> {
        let layout = &self.layout;
        if layout.data_file {
            return Err(Qcow2Error::Unsupported(
                "an image with an external data file cannot have compressed clusters",
            )
            .into());
        }
        if self.crypt.is_some() {
            return Err(Qcow2Error::Unsupported(
                "an encrypted image cannot have compressed clusters",
            )
            .into());
        }
        if layout.within(offset) != 0 || data.len() as u64 > layout.cluster() {
            return Err(Qcow2Error::Unsupported("only whole clusters are compressed").into());
        }
        let mut data = data;
        let len = data.len() as u64;
        data.resize(layout.cluster() as usize, 0);
        let kind = self.header().compression;
        let (data, stream) = event::unblock(move || {
            let stream = compress(kind, &data);
            (data, stream)
        })
        .await
        .map_err(io::Error::other)?;
        let Some(stream) = stream? else {
            let buf = buffer::aligned(&data[..len as usize])?;
            return self.write(buf, offset, WriteFlags::default()).await.0;
        };
        {
            let _range = self
                .ranges
                .exclusive(offset..offset + layout.cluster())
                .await;
            self.before_allocation().await?;
            let cluster = offset >> layout.cluster_bits;
            let slice = self.l2_slice_to_change(self.slice_of(cluster)).await?;
            let old = self.checked_entry(&slice, cluster).await?;
            let bytes = stream.len() as u64;
            let place = self.allocate_bytes(bytes).await?;
            if !compressed_offset_fits(place + bytes, layout) {
                return Err(nix::errno::Errno::EFBIG.into());
            }
            let buf = IoBuf::from_vec(stream);
            let flags = WriteFlags::default();
            self.write_data(buf, place, offset, flags).await.0?;
            let offset = place;
            self.set_entry(&slice, cluster, Entry::Compressed { offset, bytes });
            self.forget_entry(old, false);
        }
        self.relieve().await;
        Ok(())
    }

    /// Takes `len` bytes, at most a cluster, for a stream: behind the last one if there is room.
    async fn allocate_bytes(&self, len: u64) -> io::Result<u64> {
        let layout = &self.layout;
        let bits = layout.cluster_bits;
        while let Some(at) = self.open_stream() {
            let cluster = at >> bits;
            let room = layout.cluster() - layout.within(at);
            match self.join_stream(at).await? {
                None => continue,
                Some(false) => break,
                Some(true) if len <= room => {
                    self.keep_open(at + len);
                    return Ok(at);
                }
                Some(true) => {
                    if self.allocate_at(cluster + 1, 1).await? == 1 {
                        self.keep_open(at + len);
                        return Ok(at);
                    }
                    self.lower(cluster..cluster + 1).await?;
                    break;
                }
            }
        }
        let run = self.allocate(1).await?;
        let at = run.first << bits;
        self.keep_open(at + len);
        Ok(at)
    }

    fn open_stream(&self) -> Option<u64> {
        self.refcounts.state().compressed
    }

    fn keep_open(&self, at: u64) {
        if self.layout.within(at) != 0 {
            self.refcounts.state().compressed = Some(at);
        }
    }
}

/// Where a range is on the host: pieces one after the other.
#[derive(Default)]
struct Places {
    first: (u64, u64),
    more: Vec<(u64, u64)>,
}

impl Places {
    fn add(&mut self, host: u64, len: u64) {
        let last = self.more.last_mut().unwrap_or(&mut self.first);
        match last {
            (_, 0) => *last = (host, len),
            (at, have) if *at + *have == host => *have += len,
            _ => self.more.push((host, len)),
        }
    }

    fn len(&self) -> u64 {
        self.first.1 + self.more.iter().map(|(_, len)| len).sum::<u64>()
    }
}
