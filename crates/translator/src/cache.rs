//! The code cache: memory that is mapped twice, once writable and once executable.

#![allow(
    unsafe_code,
    reason = "maps memory, and writes the writable one of its two mappings"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use crate::TranslatorError;

/// Machine code of one processor. Filled from its beginning to its end, and then emptied as a
/// whole.
#[derive(Debug)]
pub(crate) struct Cache {
    /// The writable mapping.
    write: NonNull<u8>,
    /// The executable mapping of the same memory.
    execute: NonNull<u8>,
    len: usize,
    used: usize,
    /// What [`Cache::clear`] keeps: the thunks.
    kept: usize,
    /// Where the part begins that was not made large pages.
    small: usize,
}

// SAFETY: the mappings belong to the cache alone, and all access takes `&mut self` (writes) or
// only computes addresses.
unsafe impl Send for Cache {}

/// Blocks start at multiples of this, as the host's instruction fetch likes it.
const ALIGNMENT: usize = 16;

impl Cache {
    /// Maps this many bytes, rounded up to pages, and at most 1 GiB.
    ///
    /// # Errors
    /// The host has no memory file, or forbids to map it for execution.
    pub(crate) fn new(len: usize) -> Result<Self, TranslatorError> {
        let len = len.clamp(64 << 10, 1 << 30).next_multiple_of(4096);
        let fail = |what| move || TranslatorError::Memory(what, io::Error::last_os_error());
        // SAFETY: the name is a constant with a terminator; the result is checked.
        let fd = unsafe { libc::memfd_create(c"translated".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(fail("make a file in memory for translated code")());
        }
        // SAFETY: the descriptor was just opened and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let size = libc::off_t::try_from(len).unwrap_or(libc::off_t::MAX);
        // SAFETY: plain system call on a descriptor that is open.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
            return Err(fail("size the memory of translated code")());
        }
        let map = |protection: i32| map(&fd, len, protection);
        let write = map(libc::PROT_READ | libc::PROT_WRITE)
            .ok_or_else(fail("map the memory of translated code"))?;
        let Some(execute) = map(libc::PROT_READ | libc::PROT_EXEC) else {
            let error = fail("map memory for execution")();
            // SAFETY: made above with this length, and used by nobody.
            unsafe { libc::munmap(write.as_ptr().cast(), len) };
            return Err(error);
        };
        Ok(Cache {
            write,
            execute,
            len,
            used: 0,
            kept: 0,
            small: 0,
        })
    }

    /// Offset at which the next code will lie.
    pub(crate) fn next(&self) -> usize {
        self.used
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether this many bytes fit in.
    pub(crate) fn fits(&self, len: usize) -> bool {
        self.len - self.used >= len.saturating_add(ALIGNMENT)
    }

    /// Appends code at [`Cache::next`]. Tells whether it fitted in.
    pub(crate) fn append(&mut self, code: &[u8]) -> bool {
        if !self.fits(code.len()) {
            return false;
        }
        // SAFETY: `used + code.len() <= len`, so the bytes lie in the writable mapping, which
        // Rust has no references into.
        unsafe {
            std::ptr::copy_nonoverlapping(
                code.as_ptr(),
                self.write.as_ptr().add(self.used),
                code.len(),
            );
        }
        self.used = (self.used + code.len()).next_multiple_of(ALIGNMENT);
        if self.used > self.small {
            self.enlarge();
        }
        true
    }

    /// Makes large pages of what the last code has begun to fill. Most hosts make none of
    /// memory files by themselves. Where it fails there are small ones for good.
    #[cold]
    fn enlarge(&mut self) {
        let start = self.small;
        self.small = usize::MAX;
        if start + LARGE > self.len {
            return;
        }
        for mapping in [self.write, self.execute] {
            // SAFETY: a whole piece of a mapping of our own, by the check above; its contents
            // stay the same.
            let result = unsafe {
                let at = mapping.as_ptr().add(start);
                libc::madvise(at.cast(), LARGE, libc::MADV_COLLAPSE)
            };
            if result != 0 {
                return;
            }
        }
        self.small = start + LARGE;
    }

    /// What is there now survives [`Cache::clear`].
    pub(crate) fn keep(&mut self) {
        self.kept = self.used;
    }

    /// Forgets all code but what is kept.
    pub(crate) fn clear(&mut self) {
        self.used = self.kept;
    }

    /// Makes the 32-bit relative operand at this offset lead to another offset.
    pub(crate) fn patch(&mut self, operand: usize, target: usize) {
        let relative = (target as i64 - (operand as i64 + 4)) as i32;
        if operand + 4 > self.used {
            debug_assert!(false, "a jump outside of the code");
            return;
        }
        // SAFETY: the operand lies in the mapping by the check above. This processor's thread is
        // the only one to run the code, and is here now.
        unsafe {
            self.write
                .as_ptr()
                .add(operand)
                .cast::<i32>()
                .write_unaligned(relative);
        }
    }

    /// Makes the 64-bit constant at this offset another.
    pub(crate) fn set_constant(&mut self, at: usize, value: u64) {
        if at + 8 > self.used {
            debug_assert!(false, "a constant outside of the code");
            return;
        }
        // SAFETY: as in `patch`.
        unsafe {
            self.write
                .as_ptr()
                .add(at)
                .cast::<u64>()
                .write_unaligned(value);
        }
    }

    /// Address at which the code at this offset runs.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.execute.as_ptr() as u64 + offset as u64
    }
}

/// Size of large pages: code is spread widely, and the host's instruction TLB is small.
const LARGE: usize = 2 << 20;

/// Maps the file at a multiple of [`LARGE`], in large pages if the host has some.
fn map(fd: &OwnedFd, len: usize, protection: i32) -> Option<NonNull<u8>> {
    let (room, anonymous) = (len + LARGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            room,
            libc::PROT_NONE,
            anonymous,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return None;
    }
    let at = (start as usize).next_multiple_of(LARGE);
    let before = at - start as usize;
    // SAFETY: all of this is inside of the mapping just made, or cuts off its ends.
    unsafe {
        let mapped = libc::mmap(
            at as *mut libc::c_void,
            len,
            protection,
            libc::MAP_SHARED | libc::MAP_FIXED,
            fd.as_raw_fd(),
            0,
        );
        if mapped == libc::MAP_FAILED {
            libc::munmap(start, room);
            return None;
        }
        if before != 0 {
            libc::munmap(start, before);
        }
        if before != LARGE {
            libc::munmap((at + len) as *mut libc::c_void, LARGE - before);
        }
        // Without large pages it works too.
        libc::madvise(mapped, len, libc::MADV_HUGEPAGE);
        NonNull::new(mapped.cast())
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: both were mapped with this length by `new`; the engine that could run the code
        // is going away.
        unsafe {
            libc::munmap(self.write.as_ptr().cast(), self.len);
            libc::munmap(self.execute.as_ptr().cast(), self.len);
        }
    }
}
