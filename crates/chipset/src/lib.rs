//! The devices that make a PC of a processor and memory: what stands in the ICH9 and around it.
//!
//! ```text
//!            ports                             pins             messages, INTR
//!   vCPU ──▶ [Bus] ─▶ pit rtc i8042 uart ──▶ [Gsi] ─▶ ioapic ──▶ MsiHost ──▶ local APICs
//!                     acpi_pm                   └───▶ pic ─────▶ ExtIntSink ─▶ LINT0
//!                     fw_cfg debug_exit debugcon pvpanic post
//!                        │
//!                     Clock, TimerHost, SerialOutput, GuestMemoryAccess: what the machine gives
//! ```
//!
//! Every device is a folder: `model.rs` is the pure register model (no clock, thread, lock or
//! file: what it needs to know is an argument), `state.rs` its plain data, `mod.rs` the thin
//! shell that owns the lock, the wires and the timers. A shell's `ports()` lists the port ranges
//! it answers, ready for [`bus::Bus::insert`].
//!
//! A shell sets its wires and arms its timers with its own lock held, so that the last level set
//! is always the newest one. Locks are taken in the direction of the picture, never against it:
//! interrupt controllers do not call devices, and a [`TimerHost`] must hold no lock of its own
//! while it calls [`TimerTarget::timer_expired`].

pub mod acpi_pm;
pub mod clock;
pub mod debug_exit;
pub mod debugcon;
mod error;
pub mod fw_cfg;
mod gsi;
pub mod i8042;
pub mod ioapic;
pub mod pic;
pub mod pit;
mod ports;
pub mod post;
pub mod pvpanic;
pub mod rtc;
pub mod uart;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use clock::{Clock, Timer, TimerHost, TimerTarget};
pub use error::ChipsetError;
pub use gsi::Gsi;
pub use ports::{PortBank, PortMap, Ports, bank};

use std::sync::{Mutex, MutexGuard, PoisonError};

use ::state::{StateError, Stateful};

/// Locks a device. A panic elsewhere leaves registers that are still registers, so the device
/// goes on.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A decoded state that `check` passes; resets the device when there is none. A device with a
/// wire must not reset before a good state: the wire would fall and rise, which is an edge to a
/// controller that was restored earlier.
pub(crate) fn checked<S>(
    device: &dyn Stateful,
    decoded: Result<S, StateError>,
    check: impl FnOnce(&S) -> Result<(), StateError>,
) -> Result<S, StateError> {
    decoded
        .and_then(|state| check(&state).map(|()| state))
        .inspect_err(|_| device.reset())
}

#[cfg(test)]
mod tests;
