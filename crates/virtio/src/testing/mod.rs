//! A virtio driver for tests: it does in guest memory and registers what a guest does.
//! (Feature `testing`.)
//!
//! ```text
//!   [Guest] memory      [DriverQueue] rings: offer, collect      [DeviceHarness] device alone
//!                                                                [PciDriver] through registers
//! ```

mod driver;
mod guest;
mod harness;
mod pci;

pub use driver::{Buffer, DriverQueue};
pub use guest::Guest;
pub use harness::{DeviceHarness, HarnessQueue};
pub use pci::PciDriver;
