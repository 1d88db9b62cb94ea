//! The software accelerator: machines where there is no KVM.
//!
//! ```text
//!   [Soft]     what its processors can show
//!     └ vm     memory map, messages to local APICs, doorbells, clock
//!       └ vcpu   the run loop: mailbox, events, sleep          one thread each
//!           ├ engine    interpreter or translator              (crates/processor, translator)
//!           ├ platform  what instructions ask for: lapic, paravirt, pmu, hypercall
//!           └ mailbox   what other threads have for it, and the word that says so
//! ```
//!
//! A processor's local APIC is its thread's own and needs no lock; whoever sends an interrupt
//! puts a bit into the processor's mailbox, and wakes it by futex if it sleeps. Its timer is a
//! signal to its own thread, so that a busy host delays nothing twice.
//!
//! The guest sees KVM's paravirtual interface. Design: docs/design/soft-processor.md.

mod clock;
mod doorbells;
mod engine;
mod host;
mod hypercall;
mod lapic;
mod mailbox;
mod options;
mod paravirt;
mod platform;
mod pmu;
mod soft;
mod state;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;

pub use options::{EngineKind, Options};
pub use soft::Soft;

/// What the accelerator is called.
pub(crate) const NAME: &str = "soft";
