//! Networks on the host that a guest's network card is connected to.
//!
//! ```text
//!   control thread                          an I/O thread
//!   NetSpec ─▶ [open] ─▶ Backend            queue pair i of the card
//!                 │        ├─ OpenPort i ──▶ [Port] receive ◀── frames ── tap queue i,
//!                 │        │                        send    ──▶         or libslirp,
//!                 │        └─ [Control] offloads, active pairs          or a test
//!                 └─ errors: no permission, port in use, no such library
//! ```
//!
//! A back end is opened on the control thread, so that every mistake of the user is told before
//! the guest starts; its ports are then made on the I/O threads that serve them. A port moves
//! frames between the host and pieces of guest memory and never waits: it says `WouldBlock`, and
//! [`Port::receivable`] and [`Port::sendable`] tell when to try again.
//!
//! - [`TapSpec`]: a network interface of the host (`/dev/net/tun`), with checksum and segmentation
//!   offloads and several queues.
//! - [`UserSpec`]: a private network behind address translation, by libslirp, which is only loaded
//!   when it is used; needs no permission.
//! - `testing` (feature): a network whose other end is a test.

mod address;
mod backend;
mod error;
mod fd;
mod spec;
mod tap;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod user;

pub use address::{HostForward, Ip, Mac, Network};
pub use backend::{Backend, Capabilities, Control, Offloads, OpenPort, Port, Ready, VNET_HEADER};
pub use error::NetError;
pub use spec::{BackendSpec, Script, TapSpec, UserSpec};

/// Opens the back end that `spec` describes, with `queues` pairs of queues, for frames whose
/// payload has at most `mtu` bytes (1500 when not given).
///
/// # Errors
/// The host refuses: the error names the value and what may be done.
pub fn open(spec: &BackendSpec, queues: u16, mtu: Option<u16>) -> Result<Backend, NetError> {
    match spec {
        BackendSpec::User(spec) => user::open(spec, queues, mtu),
        BackendSpec::Tap(spec) => tap::open(spec, queues),
    }
}
