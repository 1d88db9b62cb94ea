/// Why the guest asks for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownCause {
    /// The guest wrote S5 to the ACPI PM1 control register or the sleep control register.
    GuestPowerOff,
    /// The guest panicked and said so through pvpanic.
    GuestPanic,
    /// The guest wrote this value to isa-debug-exit; the process exits with `value << 1 | 1`.
    DebugExit(u32),
}

/// What a register access did to the machine beyond the device itself.
///
/// It is returned up to the virtual processor's loop, which is the only place that acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub enum Action {
    /// Nothing beyond the device.
    #[default]
    None,
    /// The machine resets: every device and processor.
    Reset,
    /// The machine ends.
    Shutdown(ShutdownCause),
    /// The guest panicked and goes on (crash loaded a kdump kernel, or it will power off itself).
    Panicked,
}
