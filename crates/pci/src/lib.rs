//! PCI Express: configuration space, BARs, interrupts, and the functions of a q35 board.
//!
//! ```text
//!   vCPU ─ ports 0xcf8/0xcfc ─┐                   ┌─ 00:00.0 HostBridge  (ECAM base, PAM)
//!        ─ ECAM 0xb000_0000 ──┴▶ RootComplex ─────┼─ 00:01.0 a device
//!                                bus, device,     ├─ 00:02.0 RootPort ─ 01:00.0 a device
//!                                function         └─ 00:1f.0 Lpc  (PMBASE, PIRQ routing)
//!
//!   a device = Endpoint (ConfigSpace, BARs on the buses, Msix, INTx wire) + its BarHandler
//! ```
//!
//! - [`Function`] is what sits in a slot; [`SlotResources`] is what the slot offers.
//! - [`ConfigBuilder`] makes a [`ConfigSpace`], the pure model of a function's registers.
//! - [`Endpoint`] is the shell around it that every device uses.
//! - [`Msix`] holds the vectors; [`Msix::interrupt`] is what a worker triggers.
//! - [`intx_gsi`] is the wiring of interrupt pins, for ACPI's `_PRT`.
//!
//! # A device
//!
//! A device keeps an [`Endpoint`], passes its [`Function`] calls on to it, and answers for its
//! BARs. Its configuration space is put together once:
//!
//! ```
//! use pci::{BarKind, ConfigBuilder, Endpoint, Express, Identity, IntxPin, MsixLayout};
//!
//! # fn main() -> Result<(), pci::PciError> {
//! let mut config = ConfigBuilder::endpoint(Identity {
//!     vendor: 0x1af4,
//!     device: 0x1044,
//!     revision: 1,
//!     class: 0x00ff00,
//!     subsystem_vendor: 0x1af4,
//!     subsystem: 0x1100,
//! });
//! config.interrupt_pin(IntxPin::A);
//! let (msix, size) = MsixLayout::own_bar(1, 2);
//! config.bar(1, BarKind::Memory32 { prefetchable: false }, size)?;
//! config.bar(4, BarKind::Memory64 { prefetchable: true }, 0x4000)?;
//! config.msix(msix)?;
//! config.express(Express::IntegratedEndpoint { function_level_reset: true })?;
//! let endpoint = Endpoint::new(config.build());
//! assert!(endpoint.msix().is_some());
//! # Ok(())
//! # }
//! ```

mod access;
mod bdf;
mod config;
mod endpoint;
mod error;
mod function;
mod host_bridge;
mod intx;
mod lpc;
mod msix;
pub mod regs;
mod root_complex;
mod root_port;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod topology;
mod waiting;

pub use bdf::Bdf;
pub use config::{
    BarKind, ConfigBuilder, ConfigSpace, ConfigState, Effects, Express, Identity, MsixLayout,
};
pub use endpoint::{Endpoint, EndpointState};
pub use error::PciError;
pub use function::{BarHandler, Bridge, BusNumbers, Function, IsRam, SlotResources};
pub use host_bridge::{HostBridge, PamHandler, PamSegment, pam_segments};
pub use intx::{IntxPin, PIRQ_GSI_BASE, PirqRouter, intx_gsi, intx_pirq};
pub use lpc::{Lpc, LpcHandler, LpcSettings};
pub use msix::{Msix, MsixState, MsixVectorState};
pub use root_complex::{CONFIG_PORTS, ECAM_BASE, ECAM_SIZE, HostResources, RootComplex};
pub use root_port::{RootPort, RootPortConfig, SlotHandler};
pub use topology::PciBus;

#[cfg(test)]
mod tests;
