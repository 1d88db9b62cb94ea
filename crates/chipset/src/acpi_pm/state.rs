use serde::{Deserialize, Serialize};

/// Kind of the payload.
pub const KIND: &str = "ich9-acpi-pm";
/// Version of the payload.
pub const VERSION: u32 = 1;

/// The registers of the power management block. Every value of every field is possible.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// PM1 status.
    pub pm1_sts: u16,
    /// PM1 enable.
    pub pm1_en: u16,
    /// PM1 control.
    pub pm1_cnt: u16,
    /// General purpose events: status.
    pub gpe0_sts: u64,
    /// General purpose events: enable.
    pub gpe0_en: u64,
    /// SMI control and enable.
    pub smi_en: u32,
    /// Advanced power management control (port 0xb2).
    pub apmc: u8,
    /// Advanced power management status (port 0xb3).
    pub apms: u8,
    /// Tick of the timer up to which its overflows are in the status.
    pub tick: u64,
}
