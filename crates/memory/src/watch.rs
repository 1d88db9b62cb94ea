//! Who wants to know when devices write which pages.
//!
//! A software processor translates the guest's code and must hear of every change to it. Its own
//! stores it sees itself; those of devices come by here:
//!
//! ```text
//!   device ── writes guest memory ──▶ written(ram, address, len) ── page watched? ──▶ listener
//! ```
//!
//! Under KVM nobody listens, and [`written`] is one look at that.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, OnceLock};

use vm_memory::bitmap::{Bitmap, NewBitmap, WithBitmapSlice};
use vm_memory::{GuestMemoryBackend, MmapRegion};

use crate::Ram;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Page numbers have 40 bits (SDM vol. 3A 4.1.4: physical addresses have at most 52).
const NUMBER_BITS: u32 = 40;
const LEAF_BITS: u32 = 14;
const MIDDLE_BITS: u32 = 14;
const ROOT_BITS: u32 = NUMBER_BITS - MIDDLE_BITS - LEAF_BITS;

/// A page is watched if its byte is not zero.
type Leaf = Box<[AtomicU8]>;
type Middle = Box<[OnceLock<Leaf>]>;

/// Is told of writes to watched pages.
pub trait WriteListener: Send + Sync {
    /// A device has written these bytes, which are in one page or in several that follow each
    /// other.
    fn written(&self, address: u64, len: u64);
}

/// Which pages of a machine's memory are watched, and by whom.
#[derive(Default)]
pub struct WriteWatch {
    listener: OnceLock<Arc<dyn WriteListener>>,
    /// Three levels, made where pages are watched.
    root: OnceLock<Box<[OnceLock<Middle>]>>,
}

fn table<T>(bits: u32) -> Box<[OnceLock<T>]> {
    (0..1usize << bits).map(|_| OnceLock::new()).collect()
}

/// Indices of a page's flag in the three levels.
fn indices(address: u64) -> (usize, usize, usize) {
    let part = |shift: u32, bits: u32| ((address / PAGE) >> shift) as usize & ((1 << bits) - 1);
    (
        part(MIDDLE_BITS + LEAF_BITS, ROOT_BITS),
        part(LEAF_BITS, MIDDLE_BITS),
        part(0, LEAF_BITS),
    )
}

impl WriteWatch {
    /// Names who is told; once, before pages are watched.
    ///
    /// # Errors
    /// Somebody is already.
    pub fn listen(&self, listener: Arc<dyn WriteListener>) -> Result<(), Arc<dyn WriteListener>> {
        self.listener.set(listener)
    }

    fn flag(&self, address: u64) -> Option<&AtomicU8> {
        let (root, middle, leaf) = indices(address);
        let flags = self.root.get()?[root].get()?[middle].get()?;
        Some(&flags[leaf])
    }

    /// Whether the page of this guest address is watched.
    #[must_use]
    pub fn is_watched(&self, address: u64) -> bool {
        self.flag(address)
            .is_some_and(|flag| flag.load(Ordering::SeqCst) != 0)
    }

    /// Watches the page of this guest address. Returns whether it was not watched before.
    ///
    /// Whoever reads the page afterwards sees what was written before, or hears of it.
    pub fn watch(&self, address: u64) -> bool {
        let (root, middle, leaf) = indices(address);
        let flags = self.root.get_or_init(|| table(ROOT_BITS))[root]
            .get_or_init(|| table(MIDDLE_BITS))[middle]
            .get_or_init(|| (0..1 << LEAF_BITS).map(|_| AtomicU8::new(0)).collect());
        flags[leaf].swap(1, Ordering::SeqCst) == 0
    }

    /// Watches the page of this guest address no longer.
    pub fn unwatch(&self, address: u64) {
        if let Some(flag) = self.flag(address) {
            flag.store(0, Ordering::SeqCst);
        }
    }

    /// A device has written `len` bytes; the listener hears of those that are in watched pages.
    #[inline]
    pub fn written(&self, address: u64, len: u64) {
        if let Some(listener) = self.listener.get() {
            self.tell(&**listener, address, len);
        }
    }

    #[cold]
    fn tell(&self, listener: &dyn WriteListener, address: u64, len: u64) {
        // The writes must be visible before the flags are looked at: see `watch`.
        fence(Ordering::SeqCst);
        let end = address.saturating_add(len);
        let mut at = address;
        while at < end {
            let next = (at / PAGE + 1).saturating_mul(PAGE).min(end);
            if self.is_watched(at) {
                listener.written(at, next - at);
            }
            at = next;
        }
    }

    /// All memory has changed: the listener hears of every watched page.
    pub fn all_written(&self) {
        let (Some(listener), Some(root)) = (self.listener.get(), self.root.get()) else {
            return;
        };
        fence(Ordering::SeqCst);
        let leaves = root.iter().enumerate().flat_map(|(r, middle)| {
            let middle = middle.get().map(|table| table.iter().enumerate());
            middle.into_iter().flatten().map(move |(m, leaf)| {
                let first = ((r << MIDDLE_BITS | m) as u64) << LEAF_BITS;
                (first, leaf.get())
            })
        });
        for (first, leaf) in leaves {
            for (page, flag) in (first..).zip(leaf.into_iter().flatten()) {
                if flag.load(Ordering::SeqCst) != 0 {
                    listener.written(page * PAGE, PAGE);
                }
            }
        }
    }
}

impl fmt::Debug for WriteWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteWatch")
            .field("listened", &self.listener.get().is_some())
            .finish_non_exhaustive()
    }
}

/// What a region of guest memory carries: the watch that all of them share. For vm-memory it
/// stands where a dirty bitmap would, but is told by [`written`] alone: most of what devices
/// write, they hand to the kernel by address, and vm-memory does not see it.
#[derive(Debug, Clone, Default)]
pub struct Watched(pub(crate) Arc<WriteWatch>);

impl WithBitmapSlice<'_> for Watched {
    type S = ();
}

impl Bitmap for Watched {
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, _offset: usize) {}
}

impl NewBitmap for Watched {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

/// The watch of this memory. `None`: there is no memory.
#[must_use]
pub fn write_watch(ram: &Ram) -> Option<&Arc<WriteWatch>> {
    let region = ram.iter().next()?;
    Some(&MmapRegion::bitmap(region).0)
}

/// Tells that a device has written these bytes of guest memory. Every device does so after it
/// has written and before the guest learns of it; [`crate::Ram`]'s own methods do not.
///
/// What the rings of virtio pass is told by `virtio::Queue`.
#[inline]
pub fn written(ram: &Ram, address: u64, len: u64) {
    if let Some(watch) = write_watch(ram) {
        watch.written(address, len);
    }
}

/// Tells that anything in guest memory may have been written: a new kernel was loaded.
pub fn all_written(ram: &Ram) {
    if let Some(watch) = write_watch(ram) {
        watch.all_written();
    }
}
