//! Where a [`Cpu`] lives: behind a guard page and room for a stack, so that translated code may
//! use its address as the stack pointer.
#![allow(
    unsafe_code,
    reason = "maps memory of its own with a guard page, and owns the Cpu in it"
)]

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::mmu::{TLB_ENTRIES, Tlb, TlbEntry};
use crate::state::{Cpu, CpuSetup};

const GUARD: usize = 4096;

/// Size of the host's large pages. The soft TLB is read at nearly every access of the guest's: one
/// large page costs the host's own TLB less than two hundred small ones.
const LARGE: usize = 2 << 20;

/// What is mapped behind the guard.
const PIECE: usize = CpuBox::LEN.next_multiple_of(LARGE);

/// Why a processor could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// The host has no memory for it.
    #[error("cannot map {size} bytes for a processor's state")]
    Map {
        /// Bytes.
        size: usize,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Owns a [`Cpu`]:
///
/// ```text
///   [guard page][reserve: 64 KiB, a stack that grows down from the Cpu][Cpu][soft TLB]
/// ```
pub struct CpuBox {
    cpu: NonNull<Cpu>,
}

// SAFETY: a CpuBox owns its mapping and the Cpu in it as a Box would; a Cpu is Send.
unsafe impl Send for CpuBox where Cpu: Send {}

impl CpuBox {
    /// Bytes below the [`Cpu`] that its user may use as a stack.
    pub const RESERVE: usize = 64 << 10;

    /// Distance from the [`Cpu`] to its soft TLB.
    pub const TLB: usize = size_of::<Cpu>().next_multiple_of(4096);

    const LEN: usize = Self::RESERVE + Self::TLB + size_of::<Tlb>();

    /// A processor after power-on.
    ///
    /// # Errors
    /// The host has no memory.
    pub fn new(setup: CpuSetup) -> Result<CpuBox, ProcessorError> {
        let fail = || ProcessorError::Map {
            size: PIECE,
            source: io::Error::last_os_error(),
        };
        let room = PIECE + LARGE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                room,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(fail());
        }
        // What is before it stays a guard of at least a page.
        let before = (start as usize + GUARD).next_multiple_of(LARGE) - start as usize;
        let base = start.wrapping_byte_add(before);
        // SAFETY: inside of the mapping just made, which nothing uses.
        let opened = unsafe { libc::mprotect(base, PIECE, libc::PROT_READ | libc::PROT_WRITE) };
        let place = base.wrapping_byte_add(Self::RESERVE).cast::<Cpu>();
        let Some(cpu) = NonNull::new(place).filter(|_| opened == 0) else {
            let error = fail();
            // SAFETY: the mapping just made.
            unsafe { libc::munmap(start, room) };
            return Err(error);
        };
        // SAFETY: the parts of the mapping before the guard and behind the piece, if there are
        // any. Small pages do too where the host has no large ones.
        unsafe {
            if before > GUARD {
                libc::munmap(start, before - GUARD);
            }
            if before < LARGE {
                libc::munmap(base.wrapping_byte_add(PIECE), LARGE - before);
            }
            libc::madvise(base, PIECE, libc::MADV_HUGEPAGE);
        }
        // SAFETY: page-aligned memory of these sizes, made above and owned by nobody else; zeros
        // are a Tlb.
        unsafe {
            let tlb = TlbPlace::new(cpu.byte_add(Self::TLB).cast());
            cpu.write(Cpu::new(setup, tlb));
        }
        Ok(CpuBox { cpu })
    }

    /// Address of the [`Cpu`], which stays where it is.
    #[must_use]
    pub fn as_ptr(&mut self) -> *mut Cpu {
        self.cpu.as_ptr()
    }
}

/// The soft TLB of a [`Cpu`], which lies behind it in its [`CpuBox`].
pub struct TlbPlace(NonNull<Tlb>);

// SAFETY: a TlbPlace is the only one to know its Tlb, as a Box would be; the memory is unmapped
// only after the Cpu that has the TlbPlace is gone.
unsafe impl Send for TlbPlace {}

impl TlbPlace {
    /// An empty one.
    ///
    /// # Safety
    /// The memory there is zeros, belongs to nobody else, and outlives the result.
    unsafe fn new(place: NonNull<Tlb>) -> Self {
        let mut place = TlbPlace(place);
        for view in place.iter_mut() {
            for slot in [0, TLB_ENTRIES - 1] {
                view[slot] = TlbEntry::never(slot);
            }
        }
        place
    }
}

impl Deref for TlbPlace {
    type Target = Tlb;

    fn deref(&self) -> &Tlb {
        // SAFETY: `new` was promised that it is valid and nobody else's.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for TlbPlace {
    fn deref_mut(&mut self) -> &mut Tlb {
        // SAFETY: as above, and `&mut self` makes it the only one.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for CpuBox {
    fn drop(&mut self) {
        // SAFETY: written in `new`, dropped only here; the mapping is the one made in `new`.
        unsafe {
            self.cpu.drop_in_place();
            let start = self.cpu.as_ptr().byte_sub(GUARD + Self::RESERVE);
            libc::munmap(start.cast(), GUARD + PIECE);
        }
    }
}

impl Deref for CpuBox {
    type Target = Cpu;

    fn deref(&self) -> &Cpu {
        // SAFETY: valid from `new` to `drop`.
        unsafe { self.cpu.as_ref() }
    }
}

impl DerefMut for CpuBox {
    fn deref_mut(&mut self) -> &mut Cpu {
        // SAFETY: as above, and `&mut self` makes it the only one.
        unsafe { self.cpu.as_mut() }
    }
}

impl std::fmt::Debug for CpuBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuBox")
            .field("rip", &self.rip)
            .finish_non_exhaustive()
    }
}
