//! Keeps the process small.
#![allow(
    unsafe_code,
    reason = "two calls of the C library's allocator settings"
)]

/// One heap for all threads. glibc otherwise makes one for each thread, up to eight for each
/// processor, and what is freed in one is of no use to the others. Our threads do not allocate
/// while they serve the guest, so they do not contend for it. Call it before any thread starts.
pub(crate) fn keep_small() {
    // SAFETY: mallopt takes plain numbers and may be called at any time.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives back to the host what is free in the heap: the command line's parser and the texts of
/// its help, before the machine that lives for long.
pub(crate) fn give_back() {
    // SAFETY: malloc_trim takes a plain number and touches only free memory.
    unsafe { libc::malloc_trim(0) };
}
