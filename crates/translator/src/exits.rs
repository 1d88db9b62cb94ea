//! The ways out of translated code.

use crate::switch::Switching;

/// One place where translated code returns to Rust. Its number is in ECX there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Guest instruction to go on with, relative to the code's page; all before it are done.
    pub(crate) rip: u64,
    /// Instructions completed that have not been counted.
    pub(crate) retired: u16,
    pub(crate) kind: Kind,
}

/// What is to be done there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Go on at `rip`, and let the jump whose operand is here lead there from now on.
    Link {
        /// Offset of the operand in the cache.
        operand: u32,
        /// Offset of this exit's own code, to which the operand leads without the link.
        stub: u32,
    },
    /// Go on at the address in R14.
    Indirect,
    /// Likewise, and let the code at hand jump there by itself from now on.
    Likely {
        /// Offset in the cache of the constant that the address is compared with.
        constant: u32,
        /// Offset of the operand of the jump that follows.
        operand: u32,
        /// Offset of this exit's own code, to which the operand leads without the block.
        stub: u32,
    },
    /// The soft TLB does not have the address in R14.
    Miss {
        write: bool,
        /// Bytes.
        size: u16,
        /// Offset of the code of the instruction, to try it again.
        resume: u32,
        /// That code takes the vector registers to be loaded.
        vectors: bool,
        /// The instruction has looked up another address before, which shares its entry of the
        /// TLB perhaps: to try it again could go on for ever.
        second: bool,
        /// It wanted an entry that is valid for stores, whatever it does.
        stack: bool,
    },
    /// The interpreter has to do the instruction at `rip`.
    Interpret,
    /// Likewise; from then on translated code knows how.
    Switch(Switching),
    /// Somebody wants the thread.
    Attention,
}

/// What is at ECX for an exit that has no number, which is a mistake.
pub(crate) const NONE: u32 = u32::MAX;
