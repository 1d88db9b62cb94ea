//! Mapping guest memory on the host.
#![allow(unsafe_code, reason = "maps memory and hands the mapping to vm-memory")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use crate::{GuestRam, Ram, Watched};

const HUGE_2M: u64 = 2 << 20;
const HUGE_1G: u64 = 1 << 30;

/// Which page sizes back the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Small pages only.
    Never,
    /// Transparent huge pages where the host has them (madvise).
    #[default]
    Transparent,
    /// hugetlbfs pages of 2 MiB, reserved by the host's administrator.
    Hugetlb2M,
    /// hugetlbfs pages of 1 GiB.
    Hugetlb1G,
}

/// How to back the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Shared with other processes (vhost-user, and everything that takes a memfd) or private.
    pub shared: bool,
    /// Page sizes.
    pub huge: HugePages,
    /// Touch every page at the start.
    pub prealloc: bool,
    /// Let the kernel merge equal pages (KSM).
    pub mergeable: bool,
}

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused a mapping.
    #[error("cannot {what} {size} bytes of guest memory{hint}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// Size of the piece.
        size: u64,
        /// What the user may do about it.
        hint: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A piece is not a multiple of the page size.
    #[error(
        "guest memory of {size} bytes at {base:#x} is not a multiple of the page size of {page} bytes"
    )]
    Unaligned {
        /// Guest address.
        base: u64,
        /// Size.
        size: u64,
        /// The page size that was chosen.
        page: u64,
    },
    /// The pieces overlap or are empty.
    #[error("the guest memory map is not valid: {0}")]
    Map(String),
}

impl HugePages {
    fn size(self) -> u64 {
        match self {
            HugePages::Never | HugePages::Transparent => 4096,
            HugePages::Hugetlb2M => HUGE_2M,
            HugePages::Hugetlb1G => HUGE_1G,
        }
    }

    fn hint(self) -> &'static str {
        match self {
            HugePages::Never | HugePages::Transparent => "; give the guest less memory",
            HugePages::Hugetlb2M => {
                "; reserve pages in /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
            }
            HugePages::Hugetlb1G => {
                "; reserve pages in /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"
            }
        }
    }
}

/// Allocates `ranges` (guest address, size), which must ascend without overlap.
///
/// Memory is reserved lazily: a page costs something when it is first touched, unless
/// [`Options::prealloc`] is set. The mappings live as long as the process, so that a worker that
/// still holds a pointer can never meet unmapped memory.
///
/// # Errors
/// The host has no room, a size does not fit the page size, or the ranges overlap.
pub fn allocate(ranges: &[(u64, u64)], options: &Options) -> Result<GuestRam, MemoryError> {
    let mut regions = Vec::with_capacity(ranges.len());
    let watched = Watched::default();
    for &(base, size) in ranges {
        let page = options.huge.size();
        if size == 0 || base % page != 0 || size % page != 0 {
            return Err(MemoryError::Unaligned { base, size, page });
        }
        let mapping = map(size, options, watched.clone())?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(base))
            .ok_or_else(|| MemoryError::Map(format!("{base:#x}+{size:#x} wraps around")))?;
        regions.push(region);
    }
    let ram = Ram::from_regions(regions).map_err(|e| MemoryError::Map(e.to_string()))?;
    Ok(GuestRam::new(ram))
}

fn map(
    size: u64,
    options: &Options,
    watched: Watched,
) -> Result<vm_memory::MmapRegion<Watched>, MemoryError> {
    let fail = |what| {
        move |source| MemoryError::Host {
            what,
            size,
            hint: options.huge.hint(),
            source,
        }
    };
    let length =
        usize::try_from(size).map_err(|_| MemoryError::Map(format!("{size} bytes do not fit")))?;
    let hugetlb = match options.huge {
        HugePages::Hugetlb2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        HugePages::Hugetlb1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
        HugePages::Never | HugePages::Transparent => 0,
    };
    let file = if options.shared || hugetlb != 0 {
        let file = memfd(hugetlb).map_err(fail("create a memory file for"))?;
        file.set_len(size).map_err(fail("size a memory file for"))?;
        Some(file)
    } else {
        None
    };

    let address =
        reserve_aligned(length, options.huge.size().max(HUGE_2M)).map_err(fail("reserve"))?;
    let sharing = match (&file, options.shared) {
        (None, _) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        (Some(_), true) => libc::MAP_SHARED,
        (Some(_), false) => libc::MAP_PRIVATE,
    };
    let fd = file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    let flags = sharing | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the range was reserved above by us and nobody else knows it, so replacing the
    // reservation takes nothing away from anyone.
    let mapped = unsafe {
        libc::mmap(
            address,
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            fd,
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(fail("map")(io::Error::last_os_error()));
    }
    let advise = |advice| {
        // SAFETY: the range is the mapping made above; these pieces of advice do not change its content.
        unsafe { libc::madvise(mapped, length, advice) }
    };
    // Advice only: a kernel without THP or KSM runs the guest all the same.
    match options.huge {
        HugePages::Transparent => _ = advise(libc::MADV_HUGEPAGE),
        HugePages::Never => _ = advise(libc::MADV_NOHUGEPAGE),
        HugePages::Hugetlb2M | HugePages::Hugetlb1G => {}
    }
    if options.mergeable && advise(libc::MADV_MERGEABLE) != 0 {
        log::warn!(
            "the host cannot merge equal pages of the guest: {}",
            io::Error::last_os_error()
        );
    }
    // A core dump of the monitor must not carry the guest's memory.
    _ = advise(libc::MADV_DONTDUMP);
    if options.prealloc && advise(libc::MADV_POPULATE_WRITE) != 0 {
        return Err(fail("preallocate")(io::Error::last_os_error()));
    }

    let mut builder = MmapRegionBuilder::new_with_bitmap(length, watched)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(sharing | libc::MAP_NORESERVE)
        .with_hugetlbfs(hugetlb != 0);
    if let Some(file) = file {
        builder = builder.with_file_offset(FileOffset::new(file, 0));
    }
    // SAFETY: the pointer is the mapping of this length made above, and it is never unmapped.
    let builder = unsafe { builder.with_raw_mmap_pointer(mapped.cast()) };
    builder.build().map_err(|e| MemoryError::Map(e.to_string()))
}

/// Reserves address space whose start is a multiple of `align`: where guest and host addresses
/// agree modulo the huge page size, KVM maps huge pages.
fn reserve_aligned(length: usize, align: u64) -> io::Result<*mut libc::c_void> {
    let align = usize::try_from(align).map_err(io::Error::other)?;
    let padded = length
        .checked_add(align)
        .ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping without access rights, at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), padded, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let head = (start as usize).wrapping_neg() & (align - 1);
    let aligned = start.wrapping_byte_add(head);
    let tail = padded - head - length;
    // SAFETY: both ranges are parts of the reservation made above, before and after what is kept.
    unsafe {
        if head != 0 {
            libc::munmap(start, head);
        }
        if tail != 0 {
            libc::munmap(aligned.wrapping_byte_add(length), tail);
        }
    }
    Ok(aligned)
}

fn memfd(flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a valid C string; the call makes a new descriptor or fails.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}
