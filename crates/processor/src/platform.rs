//! What a processor asks of the machine around it.

use crate::stop::Exception;

/// What surrounds a processor and answers at once: its local APIC, its clock, the paravirtual
/// interface, the performance counters. Everything slower is a [`crate::DeviceRequest`].
pub trait Platform {
    /// Reads device memory that is answered on the spot (the local APIC's page). `None`: the
    /// machine has to be asked.
    fn device_read(&mut self, address: u64, size: u8) -> Option<u64>;

    /// Writes device memory that is handled on the spot (the local APIC's page, doorbells). Tells
    /// whether it was; if not, the machine has to be asked.
    fn device_write(&mut self, address: u64, size: u8, value: u64) -> bool;

    /// OUT to a port that is handled on the spot (doorbells). Tells whether it was.
    fn port_write(&mut self, port: u16, size: u8, value: u32) -> bool;

    /// RDMSR of an MSR that is not the processor core's own: APIC_BASE, x2APIC, TSC_DEADLINE,
    /// KVM's paravirtual ones, performance counters, microcode. `Err` is what the guest gets.
    ///
    /// # Errors
    /// #GP(0): there is no such MSR.
    fn read_msr(&mut self, index: u32) -> Result<u64, Exception>;

    /// WRMSR, as [`Platform::read_msr`].
    ///
    /// # Errors
    /// #GP(0): there is no such MSR, or it does not take the value.
    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Exception>;

    /// The host's time stamp counter as this machine's clock counts it: TSC without the guest's
    /// own offset, which is the core's.
    fn tsc(&mut self) -> u64;

    /// Task priority class (CR8).
    fn task_priority(&mut self) -> u8;

    /// Sets the task priority class.
    fn set_task_priority(&mut self, class: u8);

    /// RDPMC of this counter.
    ///
    /// # Errors
    /// #GP(0): there is no such counter.
    fn read_pmc(&mut self, counter: u32) -> Result<u64, Exception>;

    /// How many instructions the processor has completed so far: told before each access to an
    /// MSR or a counter of the platform's. For those who count.
    fn retired(&mut self, _count: u64) {}

    /// VMCALL or VMMCALL from ring 0: KVM's hypercalls (Linux's Documentation/virt/kvm/x86/
    /// hypercalls.rst). Takes number and arguments a0 to a3; returns RAX.
    fn hypercall(&mut self, number: u64, arguments: [u64; 4]) -> u64;

    /// The guest did something that serializes (SDM vol. 3A 8.3): code that other processors or
    /// devices changed must be seen from here on.
    fn serialize(&mut self);
}
