//! Character devices: where the bytes of a serial port or a console come from and go to.
//!
//! ```text
//!   guest side                      I/O thread                       host side
//!   UART, virtio-console            one task a chardev
//!
//!   Link::send ──▶ [buffer 64 KiB] ──▶ write ──────────────────────▶ terminal, file,
//!     └ how much fitted      └ Front::can_send when there is room    pty, unix socket
//!   Front::receive ◀───────── read, only while the front takes it ◀──
//!     └ how much it took     ▲
//!   Link::resume ────────────┘ the front has room again
//! ```
//!
//! Both directions have flow control: nothing is dropped as long as the other side is there, and
//! nothing is buffered without bound. What a guest sends while no client is connected to its
//! socket or pty is thrown away, as on a real line with nobody at the other end.

mod error;
mod link;
mod pump;
mod target;
mod terminal;
#[cfg(test)]
mod tests;

pub use error::ChardevError;
pub use link::{Front, Link};
pub use pump::{Chardev, Escape, listen};
pub use target::Target;
pub use terminal::{RawTerminal, restore_terminal};
