//! The facts of the x86-64 processor: what a register, an MSR, a CPUID leaf or a CPU model *is*.
//!
//! Nothing here does anything: no I/O, no threads, no unsafe code. Accelerators fill and apply
//! [`CpuState`]; boot protocols, migration, the debugger and QMP read and write it.
//!
//! ```text
//!            boot protocols   migration   gdb, QMP
//!                   \             |          /
//!                    v            v         v
//!    +---------------------------------------------------+
//!    | CpuState = Regs + Sregs + DebugRegs + XSAVE + XCR |
//!    |            + MSRs + local APIC + PendingEvents    |
//!    +---------------------------------------------------+
//!                    ^                      ^
//!               accel-kvm              accel-soft
//! ```
//!
//! Layout:
//! - [`state`]: the neutral processor state.
//! - [`msr`], [`cr`]: numbers and bits with the names the manuals give them.
//! - [`cpuid`]: leaves and named feature bits.
//! - [`model`]: named processors, and what a guest sees of the one it asked for.
//! - [`topology`]: sockets, dies, cores, threads and APIC IDs.
//!
//! "SDM" in these pages is Intel's Software Developer's Manual, "APM" AMD's Architecture
//! Programmer's Manual; both are named with volume and section.

mod bytes;
pub mod cpuid;
pub mod cr;
mod error;
pub mod model;
pub mod msr;
pub mod state;
pub mod topology;

pub use cpuid::{Cpuid, CpuidEntry, Feature, FeatureSet, Signature, Vendor};
pub use error::CpuError;
pub use model::{CpuSpec, CpuTemplate, HostCpu};
pub use state::{
    CpuState, DebugRegs, DescriptorTable, ExceptionState, InterruptState, LapicState, MpState,
    NmiState, PendingEvents, Regs, Segment, SmiState, Sregs,
};
pub use topology::{CpuPlace, Topology};
