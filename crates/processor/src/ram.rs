//! Guest memory as a processor sees it: the map, and which pages hold code.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use memory::{WriteListener, WriteWatch};

/// The guest's RAM as blocks; everything outside of them is a device. Replaced as a whole when
/// the map changes ([`crate::Cpu::set_ram`]).
#[derive(Debug)]
pub struct RamMap {
    blocks: Vec<memory::Block>,
    /// Keeps the mappings alive that the blocks name by address.
    _keep: Arc<memory::Ram>,
}

impl RamMap {
    /// A map of these blocks, which must be those of `keep` ([`memory::blocks`]).
    #[must_use]
    pub fn new(blocks: &[memory::Block], keep: Arc<memory::Ram>) -> Arc<RamMap> {
        Arc::new(RamMap {
            blocks: blocks.to_vec(),
            _keep: keep,
        })
    }

    /// Where `len` bytes at this guest-physical address are in this process, if all of them are
    /// in one block.
    #[must_use]
    #[inline]
    pub fn host(&self, physical: u64, len: usize) -> Option<*mut u8> {
        self.blocks.iter().find_map(|block| {
            let offset = physical.wrapping_sub(block.guest);
            let inside = offset < block.size && len as u64 <= block.size - offset;
            inside.then(|| (block.host + offset) as *mut u8)
        })
    }
}

/// Who is told about code pages. One for a machine; it knows all processors.
pub trait CodeWatch: Send + Sync {
    /// These bytes of a code page were changed; the change is in memory already.
    fn written(&self, physical: u64, len: u64);

    /// This page has become a code page: every processor has to drop its write entries of it
    /// ([`crate::Cpu::drop_writes`]), and to tell of the whole page if it had one.
    fn marked(&self, page: u64);
}

/// Which pages hold code, shared by all processors of a machine and by the memory that devices
/// write ([`memory::written`]).
#[derive(Default)]
pub struct CodePages {
    flags: Arc<WriteWatch>,
    /// How many of the processors have code of a page.
    holders: Mutex<HashMap<u64, u32>>,
    watch: OnceLock<Arc<dyn CodeWatch>>,
    /// Taken by locked instructions that no host instruction can lock: those across pages, and
    /// those on devices.
    split: Mutex<()>,
}

/// What devices have written.
struct FromDevices(Arc<dyn CodeWatch>);

impl WriteListener for FromDevices {
    fn written(&self, address: u64, len: u64) {
        self.0.written(address, len);
    }
}

impl CodePages {
    /// Of no memory in particular: the watch hears of processors' stores only.
    #[must_use]
    pub fn new() -> Arc<CodePages> {
        Arc::default()
    }

    /// Of this memory: the watch hears of what devices write to it too.
    #[must_use]
    pub fn of(ram: &memory::Ram) -> Arc<CodePages> {
        Arc::new(CodePages {
            flags: memory::write_watch(ram).cloned().unwrap_or_default(),
            ..CodePages::default()
        })
    }

    /// Names who is told. Once; a second watch is refused and returned.
    ///
    /// # Errors
    /// There is one already.
    pub fn set_watch(&self, watch: Arc<dyn CodeWatch>) -> Result<(), Arc<dyn CodeWatch>> {
        let from_devices = Arc::new(FromDevices(watch.clone()));
        if self.flags.listen(from_devices).is_err() {
            return Err(watch);
        }
        self.watch.set(watch)
    }

    /// Whether the page of this address holds code.
    #[must_use]
    #[inline]
    pub fn is_code(&self, physical: u64) -> bool {
        self.flags.is_watched(physical)
    }

    /// One more has code of the page of this address. If it was none before, this makes it a code
    /// page and tells the watch; returns whether that was so.
    pub fn mark(&self, physical: u64) -> bool {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        *holders.entry(physical >> 12).or_default() += 1;
        let new = self.flags.watch(physical);
        drop(holders);
        if new && let Some(watch) = self.watch.get() {
            watch.marked(physical & !0xfff);
        }
        new
    }

    /// One that called [`CodePages::mark`] has code of the page no longer. After the last one
    /// stores go straight to it again.
    pub fn unmark(&self, physical: u64) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut holder) = holders.entry(physical >> 12) {
            *holder.get_mut() -= 1;
            if *holder.get() == 0 {
                holder.remove();
                self.flags.unwatch(physical);
            }
        }
    }

    /// Tells the watch of a store, if it went into a code page.
    #[inline]
    pub fn written(&self, physical: u64, len: u64) {
        if self.is_code(physical)
            && let Some(watch) = self.watch.get()
        {
            watch.written(physical, len);
        }
    }

    pub(crate) fn split_lock(&self) -> MutexGuard<'_, ()> {
        self.split.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for CodePages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CodePages").finish_non_exhaustive()
    }
}
