//! Guest memory: where it comes from on the host, and how the rest of the program reaches it.
//!
//! ```text
//!   host:  memfd / anonymous / hugetlb mapping ─┐ (2 MiB aligned, so that the second-level
//!                                               │  page tables can use huge pages)
//!   guest: [0 .. hole)      [4 GiB .. )  ◀──────┘   one [Block] a range
//!            └──────── [GuestRam] ────────┘   a snapshot, swapped atomically on hot-plug
//! ```
//!
//! Access goes through vm-memory's volatile slices only: a guest writes its memory while we read
//! it, so a Rust reference to it would be undefined behaviour.
//!
//! Whoever writes guest memory on behalf of a device says so afterwards: [`written`].

use std::sync::Arc;

pub use vm_memory::{
    Address, AtomicAccess, ByteValued, Bytes, GuestAddress, GuestAddressSpace, GuestMemory,
    GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, VolatileMemory, VolatileMemoryError,
    VolatileSlice,
};

mod host;
#[cfg(test)]
mod tests;
mod watch;

pub use host::{HugePages, MemoryError, Options, allocate};
pub use watch::{Watched, WriteListener, WriteWatch, all_written, write_watch, written};

/// One snapshot of the guest's memory map.
pub type Ram = vm_memory::GuestMemoryMmap<Watched>;

/// The guest's memory map as devices hold it: cheap to clone, and `memory()` gives the current
/// snapshot.
pub type GuestRam = vm_memory::GuestMemoryAtomic<Ram>;

/// A snapshot of the map that keeps its mappings alive.
pub type RamSnapshot = vm_memory::atomic::GuestMemoryLoadGuard<Ram>;

/// A piece of guest memory: what an accelerator maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Guest-physical address of the first byte.
    pub guest: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address of the first byte in this process.
    pub host: u64,
}

/// The pieces of a snapshot in ascending order of guest address.
#[must_use]
pub fn blocks(ram: &Ram) -> Vec<Block> {
    ram.iter()
        .map(|region| Block {
            guest: region.start_addr().raw_value(),
            size: region.len(),
            host: region.get_mmap().as_ptr() as u64,
        })
        .collect()
}

/// Total size of a snapshot in bytes.
#[must_use]
pub fn total_size(ram: &Ram) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// A small map of anonymous memory `0 .. size` for tests.
///
/// # Errors
/// The host has no memory to give.
pub fn small(size: usize) -> Result<GuestRam, MemoryError> {
    allocate(
        &[(0, size as u64)],
        &Options {
            huge: HugePages::Never,
            ..Options::default()
        },
    )
}

/// Keeps a snapshot alive beside an operation that holds raw pointers into it (io_uring).
pub type KeepAlive = Arc<Ram>;
