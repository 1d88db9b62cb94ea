//! Persistent dirty bitmaps: recording writes in them, and changing them.
//!
//! While an image is open for writing, its recording bitmaps are in memory, and marked *in use* on
//! the disk: whoever finds that mark knows that they were not written back. Closing the image
//! writes them beside what is there, and makes them valid by one write of the header.

use std::ops::Range;
use std::sync::PoisonError;

use event::WriteFlags;

use super::bitmap::{ALL_SET, BitmapInfo};
use super::header::{BitmapsExtension, autoclear};
use super::{Core, Qcow2, Qcow2Error, buffer};
use crate::storage::Storage;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Bytes of all bitmaps of an image that are kept in memory.
const MAX_MEMORY: u64 = 256 << 20;
/// What a bit stands for, at least and at most.
const GRANULARITY: std::ops::RangeInclusive<u64> = 512..=1 << 31;
const LONGEST_NAME: usize = 1023;

const WRITE: &str = "write the bitmaps";

/// The bits of a bitmap.
struct Bits {
    /// Bytes that a bit stands for, as a shift.
    shift: u32,
    words: Box<[AtomicU64]>,
}

impl Bits {
    fn new(granularity: u64, size: u64) -> Self {
        let bits = size.div_ceil(granularity);
        Self {
            shift: granularity.trailing_zeros(),
            words: (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn set(&self, bytes: Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        for bit in bytes.start >> self.shift..=(bytes.end - 1) >> self.shift {
            let word = usize::try_from(bit / 64).ok();
            if let Some(word) = word.and_then(|at| self.words.get(at)) {
                let mask = 1 << (bit % 64);
                // Mostly it is set already, by somebody on another thread.
                if word.load(Ordering::Relaxed) & mask == 0 {
                    word.fetch_or(mask, Ordering::Relaxed);
                }
            }
        }
    }

    fn is_set(&self, bit: u64) -> bool {
        let word = usize::try_from(bit / 64).ok();
        let word = word.and_then(|at| self.words.get(at));
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (bit % 64) & 1 != 0)
    }
}

/// A bitmap of an image that is open.
struct Bitmap {
    info: BitmapInfo,
    /// In memory; otherwise it is on the disk as it was.
    bits: Option<Bits>,
}

/// The bitmaps of an image that is open.
#[derive(Default)]
pub(crate) struct Bitmaps {
    list: RwLock<Vec<Bitmap>>,
    /// Writes are to be recorded.
    recording: AtomicBool,
    /// The disk's directory is not what is in memory.
    changed: AtomicBool,
}

impl Bitmaps {
    fn list(&self) -> RwLockReadGuard<'_, Vec<Bitmap>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn list_mut(&self) -> RwLockWriteGuard<'_, Vec<Bitmap>> {
        self.list.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is about to be written.
    pub(crate) fn record(&self, bytes: Range<u64>) {
        if !self.recording.load(Ordering::Relaxed) {
            return;
        }
        for bitmap in self.list().iter() {
            if let (true, Some(bits)) = (bitmap.info.auto, &bitmap.bits) {
                bits.set(bytes.clone());
            }
        }
    }

    /// The bitmaps, as they are now.
    fn infos(&self) -> Vec<BitmapInfo> {
        self.list().iter().map(|b| b.info.clone()).collect()
    }
}

impl<S: Storage> Qcow2<S> {
    /// The persistent bitmaps.
    ///
    /// # Errors
    /// Their directory is damaged or cannot be read.
    pub async fn bitmaps(&self) -> Result<Vec<BitmapInfo>, Qcow2Error> {
        if !self.core.read_only {
            return Ok(self.core.bitmaps.infos());
        }
        let bitmaps = self.core.header().bitmaps;
        match bitmaps {
            Some(extension) => self.core.read_bitmaps(&extension).await,
            None => Ok(Vec::new()),
        }
    }

    /// Adds a bitmap in which writes are recorded from now on. It is on the disk when the image
    /// has been closed.
    ///
    /// # Errors
    /// There is one of that name, or it is impossible.
    pub fn add_bitmap(&self, name: &str, granularity: u64) -> Result<(), Qcow2Error> {
        self.core.add_bitmap(name, granularity)
    }

    /// Removes a bitmap.
    ///
    /// # Errors
    /// There is no such bitmap.
    pub fn remove_bitmap(&self, name: &str) -> Result<(), Qcow2Error> {
        self.core.change_bitmaps(|list| {
            let at = place(list, name)?;
            list.remove(at);
            Ok(())
        })
    }

    /// Clears all bits of a bitmap.
    ///
    /// # Errors
    /// There is no such bitmap, or it is not to be believed.
    pub fn clear_bitmap(&self, name: &str) -> Result<(), Qcow2Error> {
        let size = self.core.size();
        self.core.change_bitmaps(|list| {
            let bitmap = usable(list, name)?;
            bitmap.bits = Some(Bits::new(bitmap.info.granularity, size));
            Ok(())
        })
    }

    /// The bytes whose bits are set in a bitmap, in ascending order.
    ///
    /// # Errors
    /// There is no such bitmap, it is not to be believed, or it cannot be read.
    pub async fn dirty_ranges(&self, name: &str) -> Result<Vec<Range<u64>>, Qcow2Error> {
        self.core.list_read_only().await?;
        self.core.load_bitmap(name).await?;
        let mut list = self.core.bitmaps.list_mut();
        let bitmap = usable(&mut list, name)?;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let Some(bits) = &bitmap.bits else {
            return Ok(ranges);
        };
        let size = self.core.size();
        for bit in 0..size.div_ceil(1 << bits.shift) {
            if !bits.is_set(bit) {
                continue;
            }
            let start = bit << bits.shift;
            let end = start.saturating_add(1 << bits.shift).min(size);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        Ok(ranges)
    }

    /// Makes the bits of a bitmap be those of these bytes, and no others.
    ///
    /// # Errors
    /// There is no such bitmap, or it is not to be believed.
    pub fn set_dirty_ranges(&self, name: &str, ranges: &[Range<u64>]) -> Result<(), Qcow2Error> {
        let size = self.core.size();
        self.core.change_bitmaps(|list| {
            let bitmap = usable(list, name)?;
            let bits = Bits::new(bitmap.info.granularity, size);
            ranges.iter().for_each(|range| bits.set(range.clone()));
            bitmap.bits = Some(bits);
            Ok(())
        })
    }

    /// Says whether writes are recorded in a bitmap.
    ///
    /// # Errors
    /// There is no such bitmap, or it is not to be believed.
    pub async fn enable_bitmap(&self, name: &str, enable: bool) -> Result<(), Qcow2Error> {
        self.core.load_bitmap(name).await?;
        self.core.change_bitmaps(|list| {
            usable(list, name)?.info.auto = enable;
            Ok(())
        })
    }

    /// Sets the bits of `source` in `target` too.
    ///
    /// # Errors
    /// There is no such bitmap, or it is not to be believed.
    pub async fn merge_bitmap(&self, target: &str, source: &str) -> Result<(), Qcow2Error> {
        self.core.load_bitmap(source).await?;
        self.core.load_bitmap(target).await?;
        self.core.change_bitmaps(|list| {
            let (from, to) = (place(list, source)?, place(list, target)?);
            let (Some(source), Some(target)) = (list.get(from), list.get(to)) else {
                return Ok(());
            };
            if let (Some(from), Some(to)) = (&source.bits, &target.bits) {
                for bit in 0..from.words.len() as u64 * 64 {
                    if from.is_set(bit) {
                        let start = bit << from.shift;
                        to.set(start..start + (1 << from.shift));
                    }
                }
            }
            Ok(())
        })
    }
}

fn place(list: &[Bitmap], name: &str) -> Result<usize, Qcow2Error> {
    let found = list.iter().position(|bitmap| bitmap.info.name == name);
    found.ok_or_else(|| Qcow2Error::NoSuch {
        what: "bitmap",
        name: name.to_owned(),
    })
}

fn usable<'a>(list: &'a mut [Bitmap], name: &str) -> Result<&'a mut Bitmap, Qcow2Error> {
    let at = place(list, name)?;
    match list.get_mut(at) {
        Some(bitmap) if bitmap.info.is_known() => Ok(bitmap),
        _ => Err(Qcow2Error::Unsupported(
            "the bitmap was not written back, and can only be removed",
        )),
    }
}

impl<S: Storage> Core<S> {
    /// Takes up recording where the bitmaps on the disk left off.
    pub(crate) async fn open_bitmaps(&self) -> Result<(), Qcow2Error> {
        let (extension, valid) = {
            let header = self.header();
            let valid = header.autoclear & autoclear::BITMAPS != 0;
            (header.bitmaps, valid)
        };
        let Some(extension) = extension else {
            return Ok(());
        };
        let mut infos = self.read_bitmaps(&extension).await?;
        for info in &mut infos {
            // Somebody has written without recording.
            info.in_use |= !valid;
        }
        let names: Vec<String> = infos
            .iter()
            .filter(|info| info.auto && info.is_known())
            .map(|info| info.name.clone())
            .collect();
        let list = infos.into_iter().map(|info| Bitmap { info, bits: None });
        *self.bitmaps.list_mut() = list.collect();
        for name in &names {
            self.load_bitmap(name).await?;
        }
        if names.is_empty() {
            return Ok(());
        }
        // Before the first write.
        let guard = self.checkpoint_lock().await;
        for info in self.bitmaps.infos() {
            if names.contains(&info.name) {
                let flags = BitmapInfo {
                    in_use: true,
                    ..info
                }
                .flags();
                self.write_metadata(&guard, info.flags_offset, &flags.to_be_bytes())
                    .await
                    .map_err(Qcow2Error::io(WRITE))?;
            }
        }
        self.sync().await.map_err(Qcow2Error::io(WRITE))?;
        self.bitmaps.changed.store(true, Ordering::Relaxed);
        self.bitmaps.recording.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Lists the bitmaps of an image that is open read-only: nobody needs them before.
    async fn list_read_only(&self) -> Result<(), Qcow2Error> {
        if !self.read_only || !self.bitmaps.list().is_empty() {
            return Ok(());
        }
        let (extension, valid) = {
            let header = self.header();
            let valid = header.autoclear & autoclear::BITMAPS != 0;
            (header.bitmaps, valid)
        };
        let Some(extension) = extension else {
            return Ok(());
        };
        let mut infos = self.read_bitmaps(&extension).await?;
        for info in &mut infos {
            info.in_use |= !valid;
        }
        let list = infos.into_iter().map(|info| Bitmap { info, bits: None });
        *self.bitmaps.list_mut() = list.collect();
        Ok(())
    }

    /// Reads the bits of a bitmap, if they are not in memory.
    async fn load_bitmap(&self, name: &str) -> Result<(), Qcow2Error> {
        let info = {
            let mut list = self.bitmaps.list_mut();
            let bitmap = usable(&mut list, name)?;
            if bitmap.bits.is_some() {
                return Ok(());
            }
            bitmap.info.clone()
        };
        self.check_bitmap_memory(info.granularity)?;
        let bits = Bits::new(info.granularity, self.size());
        let words = self.layout.cluster() / 8;
        let table = self.read_bitmap_table(&info).await?;
        for ((offset, word), piece) in table.into_iter().zip(0u64..) {
            let from = usize::try_from(piece * words).unwrap_or(usize::MAX);
            let to = bits.words.iter().skip(from).take(words as usize);
            match offset {
                0 if word & ALL_SET != 0 => to.for_each(|w| w.store(u64::MAX, Ordering::Relaxed)),
                0 => (),
                offset => {
                    let bytes = self
                        .read_metadata(offset, self.layout.cluster())
                        .await
                        .map_err(Qcow2Error::io("read a bitmap"))?;
                    // Bit n is bit n mod 8 of byte n / 8.
                    for (to, from) in to.zip(bytes.chunks_exact(8)) {
                        let word = u64::from_le_bytes(from.try_into().unwrap_or_default());
                        to.store(word, Ordering::Relaxed);
                    }
                }
            }
        }
        let mut list = self.bitmaps.list_mut();
        usable(&mut list, name)?.bits = Some(bits);
        Ok(())
    }

    fn check_bitmap_memory(&self, granularity: u64) -> Result<(), Qcow2Error> {
        let list = self.bitmaps.list();
        let loaded = list.iter().filter_map(|bitmap| bitmap.bits.as_ref());
        let used: u64 = loaded.map(|bits| bits.words.len() as u64 * 8).sum();
        let more = self.size().div_ceil(granularity).div_ceil(8);
        match used.saturating_add(more) > MAX_MEMORY {
            true => Err(Qcow2Error::Unsupported(
                "the image's bitmaps take too much memory; a larger granularity takes less",
            )),
            false => Ok(()),
        }
    }

    fn add_bitmap(&self, name: &str, granularity: u64) -> Result<(), Qcow2Error> {
        if self.layout.version < 3 {
            return Err(Qcow2Error::Unsupported(
                "bitmaps need a version 3 image (compat=1.1)",
            ));
        }
        if !granularity.is_power_of_two() || !GRANULARITY.contains(&granularity) {
            return Err(Qcow2Error::Unsupported(
                "granularities are powers of two from 512 bytes to 2 GiB",
            ));
        }
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(Qcow2Error::Unsupported(
                "names of bitmaps have 1 to 1023 bytes",
            ));
        }
        self.check_bitmap_memory(granularity)?;
        let size = self.size();
        self.change_bitmaps(|list| {
            if place(list, name).is_ok() {
                return Err(Qcow2Error::Exists {
                    what: "bitmap",
                    name: name.to_owned(),
                });
            }
            list.push(Bitmap {
                info: BitmapInfo::new(name.to_owned(), granularity),
                bits: Some(Bits::new(granularity, size)),
            });
            Ok(())
        })
    }

    fn change_bitmaps(
        &self,
        change: impl FnOnce(&mut Vec<Bitmap>) -> Result<(), Qcow2Error>,
    ) -> Result<(), Qcow2Error> {
        if self.read_only {
            return Err(Qcow2Error::Unsupported("it is open read-only"));
        }
        let mut list = self.bitmaps.list_mut();
        change(&mut list)?;
        let recording = list.iter().any(|b| b.info.auto && b.bits.is_some());
        self.bitmaps.recording.store(recording, Ordering::Relaxed);
        self.bitmaps.changed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The disk has another size. What is new was not written.
    pub(crate) fn resize_bitmaps(&self, size: u64) {
        for bitmap in self.bitmaps.list_mut().iter_mut() {
            match &mut bitmap.bits {
                Some(bits) => {
                    let new = Bits::new(1 << bits.shift, size);
                    for (to, from) in new.words.iter().zip(&bits.words) {
                        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
                    }
                    *bits = new;
                }
                // Its table has another number of pieces now.
                None => bitmap.info.in_use = true,
            }
        }
        if !self.bitmaps.list().is_empty() {
            self.bitmaps.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether bitmaps exist that are not in memory.
    pub(crate) fn has_sleeping_bitmaps(&self) -> bool {
        self.bitmaps.list().iter().any(|b| b.bits.is_none())
    }

    /// Writes the bitmaps back, for the end. Nothing records any more.
    pub(crate) async fn store_bitmaps(&self) -> Result<(), Qcow2Error> {
        let fail = || Qcow2Error::io(WRITE);
        if !self.bitmaps.changed.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.before_allocation().await.map_err(fail())?;
        let bits = self.layout.cluster_bits;
        let old = self.header().bitmaps;
        let mut gone = Vec::new();
        if let Some(old) = old {
            gone.push((old.directory_offset, old.directory_size));
            for bitmap in self.read_bitmaps(&old).await? {
                let kept = self
                    .bitmaps
                    .list()
                    .iter()
                    .any(|b| b.bits.is_none() && b.info.flags_offset == bitmap.flags_offset);
                if !kept {
                    gone.extend(self.bitmap_places(&bitmap).await?);
                }
            }
        }
        let mut directory = Vec::new();
        let infos = self.bitmaps.infos();
        for (at, mut info) in infos.iter().cloned().enumerate() {
            if let Some(pieces) = self.bitmap_pieces(at) {
                let (offset, entries) = self.store_bitmap(pieces).await.map_err(fail())?;
                info.table_offset = offset;
                info.table_entries = entries;
            }
            directory.extend_from_slice(&info.encode());
        }
        let mut extension = None;
        if !directory.is_empty() {
            let offset = self.store_bytes(&directory).await.map_err(fail())?;
            extension = Some(BitmapsExtension {
                count: infos.len() as u32,
                directory_size: directory.len() as u64,
                directory_offset: offset,
            });
        }
        self.flush().await.map_err(fail())?;
        let guard = self.checkpoint_lock().await;
        self.update_header(&guard, |header| {
            header.bitmaps = extension;
            header.autoclear &= !autoclear::BITMAPS;
            if extension.is_some() {
                header.autoclear |= autoclear::BITMAPS;
            }
        })
        .await
        .map_err(fail())?;
        drop(guard);
        self.bitmaps.changed.store(false, Ordering::Relaxed);
        for (offset, length) in gone {
            let clusters = offset >> bits..offset.saturating_add(length).div_ceil(1 << bits);
            self.lower(clusters).await.map_err(fail())?;
        }
        Ok(())
    }

    /// The content of a bitmap in memory, in pieces of a cluster.
    fn bitmap_pieces(&self, at: usize) -> Option<Vec<Vec<u8>>> {
        let list = self.bitmaps.list();
        let bits = list.get(at)?.bits.as_ref()?;
        let count = self.size().div_ceil(1 << bits.shift).div_ceil(8);
        let bytes = bits.words.iter();
        let bytes = bytes.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
        let bytes: Vec<u8> = bytes.take(count as usize).collect();
        let pieces = bytes.chunks(self.layout.cluster() as usize);
        Some(pieces.map(<[u8]>::to_vec).collect())
    }

    /// Writes pieces and a table of them; where the table is, and its entries.
    async fn store_bitmap(&self, pieces: Vec<Vec<u8>>) -> std::io::Result<(u64, u32)> {
        let mut table = Vec::with_capacity(pieces.len() * 8);
        let entries = pieces.len() as u32;
        for piece in pieces {
            let word = match piece.iter().all(|byte| *byte == 0) {
                true => 0,
                false => self.store_bytes(&piece).await?,
            };
            table.extend_from_slice(&word.to_be_bytes());
        }
        Ok((self.store_bytes(&table).await?, entries))
    }

    /// Writes bytes to new clusters; where they are.
    async fn store_bytes(&self, bytes: &[u8]) -> std::io::Result<u64> {
        let clusters = (bytes.len() as u64).div_ceil(self.layout.cluster()).max(1);
        let first = self.allocate_metadata(clusters).await?;
        let offset = first << self.layout.cluster_bits;
        let mut bytes = bytes.to_vec();
        bytes.resize((clusters << self.layout.cluster_bits) as usize, 0);
        let buf = buffer::aligned(&bytes)?;
        let written = self.image.write(buf, offset, WriteFlags::default()).await;
        written.0.map(|()| offset)
    }
}
