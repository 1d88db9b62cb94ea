//! Guest memory as a processor sees it: the map, and which pages hold code.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

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
    /// ([`crate::Cpu::drop_writes`]).
    fn marked(&self, page: u64);
}

/// Flag of a page: code was translated from it.
const CODE: u8 = 1;

const LEAF_BITS: u32 = 14;
const MIDDLE_BITS: u32 = 14;
/// Page numbers have 40 bits (SDM vol. 3A 4.1.4: at most 52 bits of physical address).
const ROOT_BITS: u32 = 40 - MIDDLE_BITS - LEAF_BITS;

type Leaf = Box<[AtomicU8]>;
type Middle = Box<[OnceLock<Leaf>]>;

/// Flags of the guest's pages, shared by all processors.
#[derive(Default)]
pub struct CodePages {
    root: OnceLock<Box<[OnceLock<Middle>]>>,
    watch: OnceLock<Arc<dyn CodeWatch>>,
    /// Taken by locked instructions that no host instruction can lock: those across pages, and
    /// those on devices.
    split: Mutex<()>,
}

fn empty<T>(bits: u32) -> Box<[OnceLock<T>]> {
    (0..1usize << bits).map(|_| OnceLock::new()).collect()
}

fn indices(physical: u64) -> (usize, usize, usize) {
    let page = physical >> 12 & ((1 << 40) - 1);
    let leaf = page & ((1 << LEAF_BITS) - 1);
    let middle = page >> LEAF_BITS & ((1 << MIDDLE_BITS) - 1);
    (
        (page >> (LEAF_BITS + MIDDLE_BITS)) as usize,
        middle as usize,
        leaf as usize,
    )
}

impl CodePages {
    /// No page holds code.
    #[must_use]
    pub fn new() -> Arc<CodePages> {
        Arc::default()
    }

    /// Names who is told. Once; a second watch is refused and returned.
    ///
    /// # Errors
    /// There is one already.
    pub fn set_watch(&self, watch: Arc<dyn CodeWatch>) -> Result<(), Arc<dyn CodeWatch>> {
        self.watch.set(watch)
    }

    /// Whether the page of this address holds code.
    #[must_use]
    pub fn is_code(&self, physical: u64) -> bool {
        let (root, middle, leaf) = indices(physical);
        let flag = self
            .root
            .get()
            .and_then(|root_table| root_table[root].get())
            .and_then(|middle_table| middle_table[middle].get());
        flag.is_some_and(|flags| flags[leaf].load(Ordering::SeqCst) & CODE != 0)
    }

    /// Makes the page of this address a code page and tells the watch. Returns whether it was
    /// none before.
    pub fn mark(&self, physical: u64) -> bool {
        let (root, middle, leaf) = indices(physical);
        let flags = self.root.get_or_init(|| empty(ROOT_BITS))[root]
            .get_or_init(|| empty(MIDDLE_BITS))[middle]
            .get_or_init(|| (0..1usize << LEAF_BITS).map(|_| AtomicU8::new(0)).collect());
        let new = flags[leaf].fetch_or(CODE, Ordering::SeqCst) & CODE == 0;
        if new && let Some(watch) = self.watch.get() {
            watch.marked(physical & !0xfff);
        }
        new
    }

    /// The page of this address holds code no longer: stores go straight to it again.
    pub fn unmark(&self, physical: u64) {
        if self.is_code(physical) {
            let (root, middle, leaf) = indices(physical);
            let flags = self.root.get_or_init(|| empty(ROOT_BITS))[root]
                .get_or_init(|| empty(MIDDLE_BITS))[middle]
                .get();
            if let Some(flags) = flags {
                flags[leaf].fetch_and(!CODE, Ordering::SeqCst);
            }
        }
    }

    /// Tells the watch of a store into a code page; nothing if the pages hold no code.
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
