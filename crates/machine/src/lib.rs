//! The machine: from what the user says to a guest that runs, and its life until it ends.
//!
//! ```text
//!   options, TOML ──▶ [Description] ──▶ [Plan] ──▶ assemble ──▶ Machine
//!                      what was said     resolved              │ vCPU threads  (vcpu, gate)
//!                                                              │ inventory     (every part by id)
//!                                                              │ I/O threads   (site)
//!        signals, QMP, console ──▶ inbox ──▶ [control] ────────┘
//! ```
//!
//! | file             | what                                                        |
//! |------------------|-------------------------------------------------------------|
//! | `settings.rs`    | what can be said about the machine itself                    |
//! | `catalog.rs`     | the device types, one line each; `devices.rs` makes them     |
//! | `description.rs` | what was said, from the command line and from files          |
//! | `plan.rs`        | what will be done                                            |
//! | `assemble.rs`    | the board and the devices; `legacy.rs`, `slots.rs`, `serial.rs` |
//! | `boot.rs`        | what firmware would have done                                |
//! | `vcpu.rs`        | the processors' threads; `gate.rs` stops them                |
//! | `machine.rs`     | what is done to all parts at once: power on, reset, pause    |
//! | `control.rs`     | one message after the other; `commands.rs` is QMP's table    |
//! | `server.rs`      | QMP sockets                                                  |
//! | `run.rs`         | from beginning to end                                        |

mod assemble;
mod boot;
mod catalog;
mod clock;
mod commands;
mod control;
mod description;
mod devices;
mod error;
mod exit;
mod gate;
mod inventory;
mod legacy;
mod machine;
mod plan;
mod run;
mod serial;
mod server;
mod settings;
mod site;
mod slots;
#[cfg(test)]
mod tests;
mod vcpu;

pub use catalog::{DeviceType, Place, catalog, find};
pub use description::{Description, DeviceDescription, Section, sections};
pub use error::{MachineError, chain};
pub use exit::Outcome;
pub use plan::Plan;
pub use run::{Announce, accelerator, run, run_announced};
pub use site::common_properties;
