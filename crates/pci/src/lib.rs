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
