//! The boundary to whatever executes the guest's instructions.
//!
//! ```text
//!   Accelerator ── create_vm ──▶ Vm ── create_vcpu ──▶ Vcpu ── run ──▶ Exit   (a value, one match)
//!    kvm | soft                  │ map memory           │ kick from any thread
//!    processor features          │ interrupts (MsiHost) │ x86: CpuState in and out
//!                                │ doorbells            ▼
//!                                └ clock            one thread each
//! ```
//!
//! - [`Accelerator`] is what the host offers: processor features, limits, virtual machines.
//! - [`Vm`] is one machine: its memory, its interrupts, its doorbells, its virtual processors.
//! - [`Vcpu`] is one virtual processor; it is run by one thread and answers with [`Exit`]s.
//! - [`X86Vcpu`] is the architecture's part: the neutral [`x86::CpuState`], external interrupts.
//!
//! No type of an accelerator crosses this line, and no down-cast leads back.

use std::sync::Arc;

use bus::{DoorbellHost, MsiHost, MsiMessage};
use memory::GuestRam;
use x86::cpuid::Cpuid;
use x86::{CpuState, HostCpu};

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

/// Why an accelerator could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// The accelerator is not to be had here.
    #[error("{accelerator} cannot be used here: {why}")]
    Unusable {
        /// Which accelerator.
        accelerator: &'static str,
        /// What is missing, and what to do.
        why: String,
    },
    /// The operating system refused a step.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// More virtual processors than the accelerator can run.
    #[error("{wanted} virtual processors were asked for, {accelerator} runs at most {limit} here")]
    TooManyVcpus {
        /// Which accelerator.
        accelerator: &'static str,
        /// How many were asked for.
        wanted: u32,
        /// How many there can be.
        limit: u32,
    },
    /// A state names something that this accelerator does not have.
    #[error("the processor state cannot be set: {0}")]
    State(String),
}

/// What the host offers.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// What the accelerator's processors can show to a guest, its paravirtual leaves included.
    pub cpu: HostCpu,
    /// Most virtual processors of one machine.
    pub max_vcpus: u32,
    /// First APIC ID that cannot be given to a processor.
    pub max_apic_id: u32,
}

/// A maker of virtual machines.
pub trait Accelerator: Send + Sync {
    /// `"kvm"`, `"soft"`.
    fn name(&self) -> &'static str;

    /// What it offers on this host.
    fn capabilities(&self) -> &Capabilities;

    /// Waits until the accelerator has found out whether it really runs guests here. Machines
    /// can be built meanwhile, but none may run before.
    ///
    /// # Errors
    /// It does not, and why.
    fn ready(&self) -> Result<(), AccelError>;

    /// Makes a machine with this memory. Its interrupt controllers are split: local APICs are
    /// the accelerator's, I/O APIC, PIC and PIT are the caller's.
    ///
    /// # Errors
    /// The host refused.
    fn create_vm(&self, ram: GuestRam) -> Result<Arc<dyn Vm>, AccelError>;
}

/// Time that a paravirtual clock shows to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockState {
    /// Nanoseconds since the machine began to run.
    pub nanoseconds: u64,
    /// Host real time at which that was so, in nanoseconds since 1970, where known.
    pub realtime: Option<u64>,
}

/// One virtual machine.
pub trait Vm: MsiHost + DoorbellHost {
    /// Makes processor `setup.index`. It starts as after power-on, waiting for a start-up IPI
    /// unless it is the first.
    ///
    /// # Errors
    /// Too many processors, or the host refused.
    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, AccelError>;

    /// The guest's memory map changed: map what is new, unmap what is gone.
    ///
    /// # Errors
    /// The host refused.
    fn memory_changed(&self) -> Result<(), AccelError>;

    /// Tells what I/O APIC pin `pin` sends, so that the end of a level-triggered interrupt
    /// comes back as [`Exit::EndOfInterrupt`]. `None`: masked.
    fn ioapic_route(&self, pin: u32, message: Option<MsiMessage>);

    /// Reads the paravirtual clock.
    ///
    /// # Errors
    /// The host refused.
    fn clock(&self) -> Result<ClockState, AccelError>;

    /// Sets the paravirtual clock, before processors run again.
    ///
    /// # Errors
    /// The host refused.
    fn set_clock(&self, clock: ClockState) -> Result<(), AccelError>;
}

/// How to make a virtual processor.
#[derive(Debug, Clone)]
pub struct VcpuSetup {
    /// Index, from 0; processor 0 is the bootstrap processor.
    pub index: u32,
    /// Local APIC ID, which is also what the accelerator knows the processor by.
    pub apic_id: u32,
    /// What CPUID shows, with this processor's own IDs.
    pub cpuid: Cpuid,
}

/// Why a processor came back from [`Vcpu::run`].
#[derive(Debug)]
pub enum Exit<'a> {
    /// IN: fill `data` in before the next run. A repeated string instruction brings several
    /// items of `size` bytes.
    PortRead {
        /// Port.
        port: u16,
        /// Bytes of one item: 1, 2 or 4.
        size: usize,
        /// All items.
        data: &'a mut [u8],
    },
    /// OUT.
    PortWrite {
        /// Port.
        port: u16,
        /// Bytes of one item: 1, 2 or 4.
        size: usize,
        /// All items.
        data: &'a [u8],
    },
    /// A read outside of memory: fill `data` in before the next run.
    MemoryRead {
        /// Guest-physical address.
        address: u64,
        /// What is read.
        data: &'a mut [u8],
    },
    /// A write outside of memory.
    MemoryWrite {
        /// Guest-physical address.
        address: u64,
        /// What is written.
        data: &'a [u8],
    },
    /// The guest ended a level-triggered interrupt with this vector.
    EndOfInterrupt {
        /// Vector.
        vector: u8,
    },
    /// The processor takes an external interrupt now ([`X86Vcpu::request_interrupt_window`]).
    InterruptWindow,
    /// Kicked, or a signal came.
    Interrupted,
    /// A fault while delivering a double fault: the processor shut down (SDM vol. 3A 6.15).
    TripleFault,
    /// The accelerator cannot go on with this processor.
    Failed {
        /// Its words, with the numbers that a report needs.
        why: String,
    },
}

/// One virtual processor, run by one thread.
pub trait Vcpu: Send {
    /// Runs until something needs the caller.
    ///
    /// # Errors
    /// The host refused; what the guest did wrong is an [`Exit`].
    fn run(&mut self) -> Result<Exit<'_>, AccelError>;

    /// Completes the instruction of the last exit without running on, so that the state can
    /// be read: a read that was filled in has then reached its register.
    ///
    /// # Errors
    /// The host refused.
    fn finish_exit(&mut self) -> Result<(), AccelError>;

    /// What makes [`Vcpu::run`] return with [`Exit::Interrupted`], from any thread.
    fn kicker(&self) -> Arc<dyn Kick>;

    /// The processor's x86 side.
    fn x86(&mut self) -> &mut dyn X86Vcpu;
}

/// Interrupts a running processor.
pub trait Kick: Send + Sync {
    /// Makes the processor's current or next run return at once.
    fn kick(&self);
}

/// What only an x86 processor has.
pub trait X86Vcpu {
    /// The complete state; the processor must not be running.
    ///
    /// # Errors
    /// The host refused.
    fn state(&mut self) -> Result<CpuState, AccelError>;

    /// Sets the complete state.
    ///
    /// # Errors
    /// The host refused, or the state names what this processor does not have.
    fn set_state(&mut self, state: &CpuState) -> Result<(), AccelError>;

    /// Whether an external interrupt (from the PIC) would be taken now, as of the last exit.
    fn ready_for_interrupt(&mut self) -> bool;

    /// Delivers an external interrupt; only when [`X86Vcpu::ready_for_interrupt`].
    ///
    /// # Errors
    /// The host refused.
    fn inject_interrupt(&mut self, vector: u8) -> Result<(), AccelError>;

    /// Asks for [`Exit::InterruptWindow`] as soon as an external interrupt would be taken.
    fn request_interrupt_window(&mut self, wanted: bool);

    /// Raises a non-maskable interrupt.
    ///
    /// # Errors
    /// The host refused.
    fn inject_nmi(&mut self) -> Result<(), AccelError>;
}
