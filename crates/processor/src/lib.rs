//! One x86-64 processor in software: its state, its memory management unit, its events, and an
//! interpreter that gives every instruction its meaning.
//!
//! ```text
//!                 accel-soft (threads, local APICs, clock)
//!                   │ run, answer            ▲ Stop: device access, HLT, triple fault
//!                   ▼                        │
//!   ┌─────────────── Cpu ────────────────────────────────┐
//!   │ state ── hot registers at fixed offsets            │◀── translator (reads and writes them)
//!   │ mmu ──── page walk, soft TLB, access ──────────────┼──▶ guest RAM
//!   │ event ── exceptions, interrupts, IRET              │
//!   │ system ─ CRs, MSRs, CPUID, XSAVE, SYSCALL …        │
//!   │ interpret ─ integer instructions                   │
//!   │ native ── x87, SSE, AVX: run by the host itself    │
//!   │ classify ─ which instructions there are, and how   │
//!   └────────────────────────────────────────────────────┘
//! ```
//!
//! An instruction either completes or changes nothing: it stops with a [`Stop`], and the same
//! instruction runs again once the exception is delivered or the device has answered.
//!
//! Layout:
//! - [`state`]: [`Cpu`], and its way from and to [`x86::CpuState`].
//! - [`mmu`]: segmentation, page walks, the soft TLB, reads and writes.
//! - [`ram`]: guest memory as blocks, and which pages hold code.
//! - [`decode`]: instruction fetch.
//! - [`event`]: delivery of exceptions and interrupts, IRET, INIT.
//! - `run`: the loop, single steps, breakpoints.
//! - `segment`: descriptors, segment registers, far transfers.
//! - `system`: system instructions.
//! - [`classify`]: which instructions there are, and what may be done with each.
//! - [`native`]: x87, MMX, SSE and AVX instructions, run by the host.
//! - [`stop`]: exceptions, and what else keeps an instruction from completing.
//! - [`platform`]: what the processor asks of the machine around it.

pub mod classify;
pub mod decode;
pub mod event;
mod interpret;
pub mod mmu;
pub mod native;
pub mod platform;
pub mod ram;
mod run;
mod segment;
pub mod state;
pub mod stop;
mod system;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use mmu::{As, TlbEntry, Word};
pub use platform::Platform;
pub use ram::{CodePages, CodeWatch, RamMap};
pub use state::{Cpu, CpuBox, CpuSetup, Mode, ProcessorError, Seg};
pub use stop::{Access, DeviceRequest, Exception, Stop};
