//! What translated code finds at RSP: a frame of its own, and right behind it the [`Cpu`].
//!
//! ```text
//!   CpuBox: [ guard page ][ reserve: signals, pushes …  | Frame ][ Cpu: registers … ][ soft TLB ]
//!                                                       ▲ RSP of translated code
//! ```

use std::mem::{offset_of, size_of};
use std::sync::atomic::AtomicU32;

use processor::state::Msrs;
use processor::{Cpu, CpuBox, Seg, TlbEntry};

use crate::emit::Mem;
use crate::jumps::Jump;
use crate::switch::{Switch, Switching};

/// Words that translated code needs at hand. The first 128 bytes are the cheapest to reach.
#[repr(C, align(64))]
pub(crate) struct Frame {
    /// Guest R12 to R15, which have no host register.
    pub(crate) high: [u64; 4],
    /// The processor's attention word.
    pub(crate) attention: *const AtomicU32,
    /// The jump cache of the mode at hand.
    pub(crate) jumps: *const Jump,
    /// Zero while the guest's vector registers are in the host's.
    pub(crate) vectors_away: u64,
    /// Instructions completed since the last exit.
    pub(crate) retired: u64,
    /// The linear address of the page whose code runs. Code is the same wherever its page is
    /// mapped, and finds what depends on it by this.
    pub(crate) page: u64,
    /// Of the jump cache's mode and epoch ([`crate::jumps::Table::key`]).
    pub(crate) key: u64,
    /// The page of the stack, and its host address less its linear one: an entry of the TLB that
    /// is valid for stores, or a page that no guest has.
    pub(crate) stack_tag: u64,
    pub(crate) stack_addend: u64,
    /// Values between the parts of one instruction.
    pub(crate) spare: [u64; 2],
    /// For PDEP: where in an offset into the TLB the page's low bits go.
    pub(crate) tlb_mask: u64,
    /// For PEXT: all but the offset in a page.
    pub(crate) page_mask: u64,
    /// How many likely jumps of the supervisor, and of programs, may miss until one of them is
    /// looked after.
    pub(crate) patience: [u64; 2],
    /// For PDEP: where in an offset into the jump cache the address' low bits go.
    pub(crate) jump_mask: u64,
    /// Host RSP to return to.
    pub(crate) host_rsp: u64,
    /// The processor's XSAVE area.
    pub(crate) fpu: *mut u8,
    /// Register values that an exit hands over: R14, R15.
    pub(crate) scratch: [u64; 2],
    /// Registers of a thunk.
    pub(crate) parked: [u64; 2],
    /// Arithmetic flags and DF, on entry and on exit.
    pub(crate) flags: u64,
    /// For PEXT and PDEP: flags that are in the host's register.
    pub(crate) host_flags: u64,
    /// For PEXT and PDEP: all flags but IF.
    pub(crate) not_interrupt: u64,
    /// For PEXT: the low 5 bits, and the low 6.
    pub(crate) low_bits: [u64; 2],
    /// MXCSR of Rust code.
    pub(crate) mxcsr: u32,
    /// `stack_tag` and `stack_addend` of no page.
    pub(crate) nowhere: [u64; 2],
    /// Flags that SYSCALL leaves as they are.
    pub(crate) kept_flags: u64,
    /// Changes of the mode, by the number of [`Switching`].
    pub(crate) switches: [Switch; 4],
}

/// Distance from RSP to the [`Cpu`].
pub(crate) const FRAME: usize = size_of::<Frame>();

/// A field of the frame.
macro_rules! frame {
    ($field:ident) => {
        crate::emit::Mem::frame(std::mem::offset_of!(crate::frame::Frame, $field) as i32)
    };
    ($field:ident, $index:expr) => {
        crate::emit::Mem::frame(
            (std::mem::offset_of!(crate::frame::Frame, $field) + 8 * usize::from($index)) as i32,
        )
    };
}
pub(crate) use frame;

fn cpu(offset: usize) -> Mem {
    Mem::frame((FRAME + offset) as i32)
}

/// A general register in the [`Cpu`].
pub(crate) fn gpr(index: u8) -> Mem {
    cpu(offset_of!(Cpu, gpr) + 8 * usize::from(index))
}

/// RFLAGS, without those that are in the host's register.
pub(crate) fn rflags() -> Mem {
    cpu(offset_of!(Cpu, rflags))
}

/// The mode.
pub(crate) fn mode() -> Mem {
    cpu(offset_of!(Cpu, mode))
}

/// Added to the host's time stamp counter.
pub(crate) fn tsc_offset() -> Mem {
    cpu(offset_of!(Cpu, tsc_offset))
}

/// The MSR TSC_AUX.
pub(crate) fn tsc_aux() -> Mem {
    cpu(offset_of!(Cpu, msrs) + offset_of!(Msrs, tsc_aux))
}

/// The MSR LSTAR.
pub(crate) fn lstar() -> Mem {
    cpu(offset_of!(Cpu, msrs) + offset_of!(Msrs, lstar))
}

/// CR0, CR2, CR3, CR4.
pub(crate) fn control(number: usize) -> Option<Mem> {
    Some(cpu(match number {
        0 => offset_of!(Cpu, cr0),
        2 => offset_of!(Cpu, cr2),
        3 => offset_of!(Cpu, cr3),
        4 => offset_of!(Cpu, cr4),
        _ => return None,
    }))
}

/// A field of what is known of a change of the mode.
pub(crate) fn switch(which: Switching, field: usize) -> Mem {
    let offset = offset_of!(Frame, switches) + which as usize * size_of::<Switch>();
    Mem::frame((offset + field) as i32)
}

/// Events that wait until the guest lets them in.
pub(crate) fn awaited() -> Mem {
    cpu(offset_of!(Cpu, awaited))
}

/// The MSR KERNEL_GS_BASE.
pub(crate) fn kernel_gs_base() -> Mem {
    cpu(offset_of!(Cpu, msrs) + offset_of!(Msrs, kernel_gs_base))
}

/// Selector of a segment, by the index of [`processor::state::seg`].
pub(crate) fn selector(index: usize) -> Mem {
    cpu(offset_of!(Cpu, segs) + index * size_of::<Seg>() + offset_of!(Seg, selector))
}

/// Base of a segment, by the index of [`processor::state::seg`].
pub(crate) fn segment_base(index: usize) -> Mem {
    cpu(offset_of!(Cpu, segs) + index * size_of::<Seg>() + offset_of!(Seg, base))
}

/// The rest of a segment: limit, selector, attributes.
pub(crate) fn segment_rest(index: usize) -> Mem {
    cpu(offset_of!(Cpu, segs) + index * size_of::<Seg>() + offset_of!(Seg, limit))
}

/// The beginning of one view of the TLB, plus an offset into its entries.
pub(crate) fn tlb(view: usize, offset: usize) -> i32 {
    (FRAME + CpuBox::TLB + view * processor::mmu::TLB_ENTRIES * size_of::<TlbEntry>() + offset)
        as i32
}
