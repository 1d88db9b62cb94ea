//! QMP, the protocol that drives a machine: QEMU's names, arguments, replies, error classes and
//! events, for what Vireo has (QEMU, docs/interop/qmp-spec.rst; qapi/*.json).
//!
//! ```text
//!   socket ──bytes──▶ [Session] ── Request ──▶ [Table] ── typed command ──▶ handler
//!          ◀──bytes──    │   ◀── Result<Value, QmpError> ───────────────────────┘
//!                        └── [Event]s, once the client has negotiated
//! ```
//!
//! - [`Session`] is the protocol of one connection, without a socket: bytes in, bytes out.
//! - [`Command`] ties a name to the Rust types of its arguments and its return value; these
//!   types are the schema. [`commands`] has one file per family.
//! - [`Table`] holds a handler for each command that a program offers, and refuses the rest.
//! - [`Event`] is what the machine says unasked; [`events`] names those there are.

pub mod commands;
mod error;
pub mod events;
mod session;
mod table;
#[cfg(test)]
mod tests;

pub use error::{ErrorClass, QmpError};
pub use events::Event;
pub use session::{Request, Session};
pub use table::{Answer, AsyncTable, Command, Empty, Table};
