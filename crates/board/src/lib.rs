//! The q35 PC as data: where things are, what the tables say, how a kernel is started.
//!
//! No device lives here. This crate answers questions: which addresses are RAM, which bytes
//! describe the machine to an operating system, and in which state a processor enters a kernel.
//!
//! ```text
//!   RAM size ─▶ memory_map ─┬─▶ e820 ──────────────┐
//!                           │                      ▼
//!   processors, NUMA, ──────┴─▶ acpi ──▶ RSDP ─▶ boot ─▶ guest memory + BootPlan (CpuState)
//!   windows, serial ports       smbios ───────────▲
//!                                  kernel, initrd, command line
//! ```
//!
//! Layout:
//! - [`address`]: every address, port and interrupt of the board.
//! - [`memory_map`]: RAM, holes, windows, e820.
//! - [`acpi`]: ACPI tables.
//! - [`smbios`]: SMBIOS structures.
//! - [`boot`]: starting a kernel without firmware.

pub mod acpi;
pub mod address;
pub mod boot;
mod error;
pub mod memory_map;
pub mod smbios;

pub use error::BoardError;
pub use memory_map::{E820Entry, E820Kind, MemoryMap, MemoryMapConfig};
