//! How the parts of the machine reach each other: addresses, interrupts and doorbells.
//!
//! ```text
//!            port 0x3f8 / address 0xfebd_0000              line, message
//!   vCPU ───────────▶ [Bus] ───▶ [Device] ───▶ worker ───▶ [IrqLine] [Interrupt] ───▶ vCPU
//!                                    └─ Action: what the write did to the machine
//!   vCPU ───────────▶ [DoorbellHost]: a write that only wakes a worker leaves by an eventfd
//! ```
//!
//! - [`Bus`] finds the device behind a port or an address, without a lock on the way.
//! - [`Device`] is anything with registers. A write returns its consequence as an [`Action`].
//! - [`IrqLine`] is a wire with a level, [`SharedLine`] a wire that several devices hold.
//! - [`MsiHost`] makes [`Interrupt`]s out of message-signalled interrupts.
//! - [`DoorbellHost`] turns writes to one address into an eventfd.

mod action;
mod device;
mod dispatch;
mod doorbell;
mod irq;
mod msi;

pub use action::{Action, ShutdownCause};
pub use device::{Device, fill_ones, read_le, write_le};
pub use dispatch::{Bus, BusError, Range};
pub use doorbell::{Doorbell, DoorbellAddress, DoorbellError, DoorbellHost, Space};
pub use irq::{IrqLine, IrqSink, SharedLine};
pub use msi::{Interrupt, InterruptSource, MsiError, MsiHost, MsiMessage, MsiRoute};
pub use vmm_sys_util::eventfd::EventFd;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod tests;
