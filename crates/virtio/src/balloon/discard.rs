//! Giving guest memory back to the host.
#![allow(unsafe_code, reason = "gives back pages of the guest's mapping")]

use std::io;
use std::os::unix::fs::MetadataExt;

use memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, Ram};

/// Size of a host page where there are no huge pages.
const PAGE: u64 = 4096;

/// Gives back the host pages that lie wholly within `address .. address + len`; they read as
/// zero afterwards. What is not RAM is left out.
///
/// # Errors
/// The host refuses.
pub(super) fn discard(ram: &Ram, address: u64, len: u64) -> io::Result<()> {
    let end = address.saturating_add(len);
    for region in ram.iter() {
        let base = region.start_addr().raw_value();
        // Guest and host addresses agree modulo the page size of the region.
        let page = page_size(region)?;
        let from = address.max(base).next_multiple_of(page);
        let to = end.min(base + region.len()) / page * page;
        let Some(len) = to.checked_sub(from).filter(|len| *len != 0) else {
            continue;
        };
        let slice = ram
            .get_slice(GuestAddress(from), len as usize)
            .map_err(io::Error::other)?;
        // A shared mapping's pages belong to its file, from which they must go too.
        let advice = if region.flags() & libc::MAP_SHARED != 0 {
            libc::MADV_REMOVE
        } else {
            libc::MADV_DONTNEED
        };
        let start = slice.ptr_guard_mut().as_ptr();
        // SAFETY: the range is within a mapping of guest memory, which is only accessed
        // volatilely; that its content changes is what any processor of the guest could do.
        if unsafe { libc::madvise(start.cast(), slice.len(), advice) } != 0 {
            return Err(io::Error::last_os_error());
        }
        memory::written(ram, from, len);
    }
    Ok(())
}

fn page_size(region: &impl GuestMemoryRegion) -> io::Result<u64> {
    match region.file_offset() {
        Some(file) if region.is_hugetlbfs() == Some(true) => Ok(file.file().metadata()?.blksize()),
        _ => Ok(PAGE),
    }
}
