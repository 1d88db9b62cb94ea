//! Instructions on every processor that there is, and whether all agree.
//!
//! ```text
//!   snippets/*.txt ──▶ Snippet ─┐                ┌─▶ Interpreter   processor's Cpu
//!                               ├─▶ Case ─▶ Backend ─▶ Host        this process, CPL 3
//!   seed ──▶ random::Generator ─┘                └─▶ Soft          the same with the translator
//!                                        Outcome: registers, memory, fault
//! ```
//!
//! All backends have the same linear memory: code at [`CODE`], two pages of data at [`DATA`]
//! between pages that are not there, and a read-only page at [`READ_ONLY`].
//!
//! Layout:
//! - [`case`]: what runs, and what comes out.
//! - [`interpreter`], [`host`]: the backends.
//! - [`system`]: a machine around a case, for processors that only run whole ones.
//! - [`accelerated`]: whatever is behind `accel`'s boundary.
//! - [`snippet`]: cases as text, with what must come out.
//! - [`random`]: cases out of the table of instruction codes.
//! - [`compare`]: two backends on one case, and the instruction that they differ about.

pub mod accelerated;
pub mod case;
pub mod compare;
pub mod host;
pub mod interpreter;
pub mod random;
pub mod snippet;
pub mod system;

use x86::FeatureSet;

pub use case::{Case, Fault, Outcome, Registers};

/// Linear address of the code.
pub const CODE: u64 = 0x1000_0000;
/// Bytes of code.
pub const CODE_LEN: usize = 0x10000;
/// Bytes behind a case's code that are HLT, which is privileged, but for the way out.
pub const BEHIND: usize = 256;
/// Linear address of the data.
pub const DATA: u64 = 0x1100_0000;
/// Bytes of data.
pub const DATA_LEN: usize = 0x2000;
/// Bases of FS and GS, but on the host, which has its own.
pub const SEGMENTS: [u64; 2] = [DATA, DATA + 0x1000];
/// Linear address of a page of zeros that cannot be written.
pub const READ_ONLY: u64 = 0x1110_0000;
/// Its length in bytes.
pub const READ_ONLY_LEN: usize = 0x1000;

/// A processor in user mode.
pub trait Backend {
    /// Its name in messages.
    fn name(&self) -> &'static str;

    /// Features that it shows.
    fn features(&self) -> FeatureSet {
        processor::classify::supported_features().features()
    }

    /// Whether it is this process.
    fn is_host(&self) -> bool {
        false
    }

    /// Whether the flags at a fault are exact.
    fn exact_flags(&self) -> bool {
        true
    }

    /// Whether a jump to an address that is not canonical faults at the jump, with nothing
    /// pushed or popped, and not at its target.
    fn exact_jumps(&self) -> bool {
        true
    }

    /// Runs the case to its end or to its first fault.
    fn run(&mut self, case: &Case) -> Outcome;
}
