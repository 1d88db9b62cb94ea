//! Dirty bitmaps: which pieces of a disk were changed since some instant.
//!
//! ```text
//!   guest's write ──▶ [Vertex] ── after ──▶ [DirtyBitmap] live bits   always receives
//!                                                 ▲   │ freeze, while the edges are drained
//!                                  on failure     │   ▼
//!                                 (bits go back)  └─ frozen bits ──▶ a backup copies them
//! ```
//!
//! Marking takes no lock: one atomic operation for each 64 pieces. Memory comes into being where
//! bits are set, 32 KiB at a time.

mod bits;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use block::graph::{Change, Observer};

pub(crate) use self::bits::Bits;

/// Bytes that a bit may stand for: powers of two in this range (QEMU's limits).
const GRANULARITY: std::ops::RangeInclusive<u64> = 512..=2 << 30;
/// Bytes of a name that fit into a qcow2 image.
const LONGEST_NAME: usize = 1023;

/// Why something cannot be done to a bitmap. The texts are QEMU's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// The name is empty.
    #[error("Bitmap name cannot be empty")]
    NoName,
    /// The name does not fit into an image.
    #[error("Bitmap name is too long")]
    LongName,
    /// The granularity is none.
    #[error("Granularity must be a power of two between 512 bytes and 2 GiB")]
    Granularity,
    /// A job or an export uses it.
    #[error("Bitmap '{0}' is currently in use by another operation and cannot be used")]
    Busy(String),
    /// It may not be changed.
    #[error("Bitmap '{0}' is readonly and cannot be modified")]
    ReadOnly(String),
    /// It was not stored when the image was last used.
    #[error("Bitmap '{0}' is inconsistent and cannot be used")]
    Inconsistent(String),
    /// They are of disks of different sizes.
    #[error("Bitmaps are of different sizes (destination size is {to} and source size is {from})")]
    Sizes {
        /// Bytes of the disk whose bitmap was to be changed.
        to: u64,
        /// Bytes of the other one's.
        from: u64,
    },
}

/// A dirty bitmap. It is an observer of the node whose changes it records; whoever makes it adds
/// it to the node and removes it again, while the node's edges are drained where no change may
/// get lost.
pub struct DirtyBitmap {
    name: String,
    granularity: u64,
    live: ArcSwap<Bits>,
    recording: AtomicBool,
    persistent: AtomicBool,
    inconsistent: AtomicBool,
    read_only: AtomicBool,
    /// Users that keep others from changing it.
    users: Mutex<u32>,
}

/// What `query-block` tells of a bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes of the pieces that are set.
    pub count: u64,
    /// Bytes that a bit stands for.
    pub granularity: u64,
    /// It receives changes.
    pub recording: bool,
    /// A job or an export uses it.
    pub busy: bool,
    /// It is stored when the image is closed.
    pub persistent: bool,
    /// It was not stored when the image was last used.
    pub inconsistent: bool,
}

impl DirtyBitmap {
    /// A bitmap of a disk of `size` bytes with no bit set, which receives changes.
    ///
    /// # Errors
    /// The name or the granularity is none.
    pub fn new(
        name: impl Into<String>,
        size: u64,
        granularity: u64,
    ) -> Result<Arc<Self>, BitmapError> {
        let name = name.into();
        if name.is_empty() {
            return Err(BitmapError::NoName);
        }
        if name.len() > LONGEST_NAME {
            return Err(BitmapError::LongName);
        }
        if !granularity.is_power_of_two() || !GRANULARITY.contains(&granularity) {
            return Err(BitmapError::Granularity);
        }
        Ok(Arc::new(Self {
            name,
            granularity,
            live: ArcSwap::from_pointee(Bits::new(size, granularity)),
            recording: AtomicBool::new(true),
            persistent: AtomicBool::new(false),
            inconsistent: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
            users: Mutex::new(0),
        }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that a bit stands for.
    #[must_use]
    pub fn granularity(&self) -> u64 {
        self.granularity
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.live.load().size()
    }

    /// Bytes of the pieces that are set; the last one counts as a whole.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.live.load().count()
    }

    /// What `query-block` tells of it.
    #[must_use]
    pub fn info(&self) -> BitmapInfo {
        BitmapInfo {
            name: self.name.clone(),
            count: self.count(),
            granularity: self.granularity,
            recording: self.is_recording(),
            busy: self.is_busy(),
            persistent: self.is_persistent(),
            inconsistent: self.is_inconsistent(),
        }
    }

    /// Whether it receives changes.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.recording.load(Ordering::Acquire)
    }

    /// Lets it receive changes, or not. The caller asks [`DirtyBitmap::check`] first.
    pub fn set_recording(&self, recording: bool) {
        self.recording.store(recording, Ordering::Release);
    }

    /// Whether it is stored when the image is closed.
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.persistent.load(Ordering::Acquire)
    }

    /// Says whether it is stored when the image is closed.
    pub fn set_persistent(&self, persistent: bool) {
        self.persistent.store(persistent, Ordering::Release);
    }

    /// Whether it was not stored when the image was last used.
    #[must_use]
    pub fn is_inconsistent(&self) -> bool {
        self.inconsistent.load(Ordering::Acquire)
    }

    /// Says that it was not stored when the image was last used: it can only be removed.
    pub fn set_inconsistent(&self) {
        self.inconsistent.store(true, Ordering::Release);
        self.set_recording(false);
    }

    /// Whether commands may change it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// Says whether commands may change it.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Release);
    }

    /// Whether a job or an export uses it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        *self.users() != 0
    }

    fn users(&self) -> MutexGuard<'_, u32> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a command may change it.
    ///
    /// # Errors
    /// It is busy, read-only or inconsistent.
    pub fn check(&self) -> Result<(), BitmapError> {
        self.check_to_read()?;
        match self.is_read_only() {
            true => Err(BitmapError::ReadOnly(self.name.clone())),
            false => Ok(()),
        }
    }

    /// Whether somebody may begin to use it.
    ///
    /// # Errors
    /// It is busy or inconsistent.
    pub fn check_to_read(&self) -> Result<(), BitmapError> {
        if self.is_busy() {
            return Err(BitmapError::Busy(self.name.clone()));
        }
        match self.is_inconsistent() {
            true => Err(BitmapError::Inconsistent(self.name.clone())),
            false => Ok(()),
        }
    }

    /// Keeps others from changing it, until the claim is dropped.
    ///
    /// # Errors
    /// As [`DirtyBitmap::check_to_read`].
    pub fn claim(self: &Arc<Self>) -> Result<Claim, BitmapError> {
        if self.is_inconsistent() {
            return Err(BitmapError::Inconsistent(self.name.clone()));
        }
        let mut users = self.users();
        if *users != 0 {
            return Err(BitmapError::Busy(self.name.clone()));
        }
        *users += 1;
        drop(users);
        Ok(Claim(Arc::clone(self)))
    }

    /// Sets every piece that `range`, in bytes, touches, whether it is recording or not.
    pub fn mark(&self, range: Range<u64>) {
        self.live.load().set(range);
    }

    /// Clears every piece that `range`, in bytes, touches.
    pub fn reset(&self, range: Range<u64>) {
        self.live.load().clear(range);
    }

    /// Clears all. The bits that were set are returned, for [`DirtyBitmap::merge_back`].
    pub fn clear(&self) -> Backup {
        let empty = Arc::new(Bits::new(self.size(), self.granularity));
        Backup(self.live.swap(empty))
    }

    /// Sets again what was taken away.
    pub fn merge_back(&self, backup: &Backup) {
        self.live.load().merge(&backup.0);
    }

    /// A copy of its bits as they are.
    #[must_use]
    pub fn backup(&self) -> Backup {
        let copy = Bits::new(self.size(), self.granularity);
        copy.merge(&self.live.load());
        Backup(Arc::new(copy))
    }

    /// Makes the bits be those of a copy. Changes since then are lost.
    pub fn restore(&self, backup: &Backup) {
        let bits = Bits::new(self.size(), self.granularity);
        bits.merge(&backup.0);
        self.live.store(Arc::new(bits));
    }

    /// Sets what is set in `other`, whose granularity may be another.
    ///
    /// # Errors
    /// The disks are not of one size.
    pub fn merge(&self, other: &DirtyBitmap) -> Result<(), BitmapError> {
        let (to, from) = (self.size(), other.size());
        if to != from {
            return Err(BitmapError::Sizes { to, from });
        }
        self.live.load().merge(&other.live.load());
        Ok(())
    }

    /// Whether the piece at `offset` is set.
    #[must_use]
    pub fn is_dirty(&self, offset: u64) -> bool {
        self.live.load().any(offset..offset.saturating_add(1))
    }

    /// The runs of set pieces, in bytes, in ascending order, and cut off at the end of the disk.
    #[must_use]
    pub fn dirty_ranges(&self) -> Vec<Range<u64>> {
        self.live.load().runs().collect()
    }

    /// The parts of a range, in order: their lengths in bytes, and whether they are set. At most
    /// `most` of them.
    #[must_use]
    pub fn extents(&self, offset: u64, len: u64, most: usize) -> Vec<(u64, bool)> {
        let bits = self.live.load();
        let end = offset.saturating_add(len).min(bits.size());
        let (mut parts, mut at) = (Vec::new(), offset);
        while at < end && parts.len() < most {
            let run = bits.next(at..end).unwrap_or(end..end);
            if at < run.start {
                parts.push((run.start - at, false));
            }
            if run.start < run.end && parts.len() < most {
                parts.push((run.end - run.start, true));
            }
            at = run.end;
        }
        parts
    }

    /// Changes the size of the disk. New pieces are not set.
    pub fn resize(&self, size: u64) {
        self.live.load().resize(size);
    }

    /// Takes the bits away for somebody who copies what they stand for; from now on changes are
    /// recorded anew. While the edges to the node are drained.
    ///
    /// # Errors
    /// As [`DirtyBitmap::check_to_read`].
    pub(crate) fn freeze(self: &Arc<Self>) -> Result<Frozen, BitmapError> {
        let claim = self.claim()?;
        let bits = self.clear();
        Ok(Frozen { claim, bits })
    }
}

impl Observer for DirtyBitmap {
    fn after(&self, change: Change) {
        if change.len != 0 && self.is_recording() {
            self.mark(change.offset..change.offset.saturating_add(change.len));
        }
    }

    fn resized(&self, size: u64) {
        self.resize(size);
    }
}

/// Bits that were a bitmap's.
#[derive(Clone)]
pub struct Backup(Arc<Bits>);

/// Keeps others from changing a bitmap.
pub struct Claim(Arc<DirtyBitmap>);

impl Drop for Claim {
    fn drop(&mut self) {
        let mut users = self.0.users();
        *users = users.saturating_sub(1);
    }
}

/// The bits of a bitmap while a job copies what they stand for.
pub(crate) struct Frozen {
    claim: Claim,
    bits: Backup,
}

impl Frozen {
    /// The bits.
    pub(crate) fn bits(&self) -> &Bits {
        &self.bits.0
    }

    /// Nothing was copied: the bitmap has all its bits again.
    pub(crate) fn give_back(self) {
        self.claim.0.merge_back(&self.bits);
    }

    /// All was copied, except what is set in `left`.
    pub(crate) fn drop_all_but(self, left: Option<&Bits>) {
        if let Some(left) = left {
            self.claim.0.live.load().merge(left);
        }
    }
}
