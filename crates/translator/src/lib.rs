//! The fast half of the software processor: guest x86-64 code becomes host x86-64 code, block by
//! block, and most instructions stay what they are.
//!
//! ```text
//!   Engine::run ──▶ find the block ──▶ enter ──▶ [ block ]──▶[ block ]──▶ exit ──▶ what is left
//!        ▲              │ none                       direct links,                 to do, often
//!        │              ▼                            jump cache                    by the
//!        │          decode, plan, copy ──▶ cache                                   interpreter
//!        └────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Whatever translated code cannot do it leaves at an instruction's boundary, with all registers
//! in place, and the interpreter (`Cpu::advance`) executes that instruction.
//!
//! Layout:
//! - `engine`: the run loop.
//! - `translate`, `plan`: from guest bytes to a block, and what becomes of each instruction.
//! - `copy`, `rewrite`, `system`, `switch`, `memory`: how each is written.
//! - `builder`, `exits`, `flags`, `registers`: what these share.
//! - `emit`: host instructions. `frame`: what they find at RSP. `thunks`: ways in and out.
//! - `cache`, `blocks`, `jumps`: where code is kept and how it is found.
//! - `signal`: copied instructions that fault.

mod blocks;
mod builder;
mod cache;
mod copy;
mod emit;
mod engine;
mod exits;
mod flags;
mod frame;
mod jumps;
mod memory;
mod plan;
mod registers;
mod rewrite;
mod signal;
mod switch;
mod system;
mod thunks;
mod translate;

#[cfg(test)]
mod tests;

pub use engine::Engine;

/// How to translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the code cache.
    pub cache_size: usize,
    /// Keeps the flags that no instruction will read, too. They are seen only by handlers of
    /// faults; it costs about a sixth of the speed.
    pub exact_flags: bool,
    /// The platform's time stamp counter is the host's own ([`processor::Platform::tsc`]), so
    /// that it can be read in place.
    pub host_tsc: bool,
    /// Uses BMI2 instructions if the host has them.
    pub bmi2: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_size: 64 << 20,
            exact_flags: false,
            host_tsc: false,
            bmi2: true,
        }
    }
}

/// Counts since the engine was made, but for the first two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Blocks there are.
    pub blocks: u64,
    /// Bytes of the cache in use.
    pub cache_used: u64,
    /// Blocks made.
    pub translated: u64,
    /// Blocks dropped because their code was written.
    pub dropped: u64,
    /// Times that the cache was emptied.
    pub flushes: u64,
    /// Exits to link one block to another.
    pub links: u64,
    /// Exits by indirect jumps, and jumps to other pages, that the jump cache did not have.
    pub indirect: u64,
    /// Exits because the soft TLB did not have an address.
    pub misses: u64,
    /// Those of them that the interpreter had to do.
    pub slow_accesses: u64,
    /// Calls of the interpreter.
    pub interpreted: u64,
}

/// Why there is no translator.
#[derive(Debug, thiserror::Error)]
pub enum TranslatorError {
    /// The host refused memory for code, or to run it.
    #[error("cannot {0}")]
    Memory(&'static str, #[source] std::io::Error),
    /// The cache is too small even for what it always holds.
    #[error("the code cache is too small")]
    Full,
    /// The host's processor lacks something.
    #[error("the host's processor lacks {0}")]
    Host(&'static str),
}
