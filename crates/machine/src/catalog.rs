//! The device types, one line each.
//!
//! To add a device: its folder in the crate that it belongs to, with a spec beside it; a
//! function in [`crate::devices`] that makes it from its spec; and a line in [`catalog`]. The
//! command line, the configuration file, `device_add`, help and documentation follow.

use std::sync::Arc;

use spec::{Properties, Property, Spec, SpecError};
use virtio::balloon::{BalloonControl, BalloonSpec};
use virtio::blk::{BlkHandle, BlkSpec};
use virtio::console::ConsoleSpec;
use virtio::net::NetSpec;
use virtio::rng::RngSpec;

use crate::devices;
use crate::error::MachineError;
use crate::settings::{DebugExitSpec, RootPortSpec};
use crate::site::Site;

/// A kind of device that a user can put into a machine.
#[derive(Debug)]
pub struct DeviceType {
    /// Name: QEMU's, where QEMU has the device.
    pub name: &'static str,
    /// Option of its own on the command line, and section in the configuration file.
    pub shorthand: Option<&'static str>,
    /// What it is.
    pub help: &'static str,
    /// Its own properties.
    pub properties: fn() -> Vec<Property>,
    /// Where it goes.
    pub place: Place,
    pub(crate) build: fn(&mut Site<'_>, Properties) -> Result<Built, MachineError>,
    pub(crate) check: fn(Properties) -> Result<(), SpecError>,
}

/// Where devices of a type go, which decides about the properties that every device there has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A PCI slot, as a virtio device.
    Virtio,
    /// A PCI slot.
    Pci,
    /// Fixed ports.
    Isa,
}

/// A device that was made, not yet in its place.
pub(crate) struct Built {
    pub(crate) part: Part,
    pub(crate) abilities: Abilities,
}

/// What a device is to the machine.
pub(crate) enum Part {
    /// A virtio device, which gets the transport that its place says.
    Virtio(Box<dyn virtio::VirtioDevice>),
    /// A root port, behind which others go.
    RootPort(Arc<pci::RootPort>),
    /// Ports of its own.
    Ports(chipset::PortMap, Arc<dyn state::Stateful + Sync>),
}

/// What control can do with a device beyond what it can do with every one.
#[derive(Default, Clone)]
pub(crate) struct Abilities {
    /// It is a disk.
    pub(crate) disk: Option<BlkHandle>,
    /// It is a balloon.
    pub(crate) balloon: Option<BalloonControl>,
}

const fn device<S: Spec>(
    shorthand: Option<&'static str>,
    place: Place,
    build: fn(&mut Site<'_>, Properties) -> Result<Built, MachineError>,
) -> DeviceType {
    let check = crate::description::check::<S>;
    DeviceType {
        name: S::NAME,
        shorthand,
        help: S::HELP,
        properties: S::properties,
        place,
        build,
        check,
    }
}

/// Every device type.
#[must_use]
pub fn catalog() -> &'static [DeviceType] {
    const CATALOG: &[DeviceType] = &[
        device::<BlkSpec>(Some("disk"), Place::Virtio, devices::disk),
        device::<NetSpec>(Some("net"), Place::Virtio, devices::net),
        device::<ConsoleSpec>(Some("console"), Place::Virtio, devices::console),
        device::<RngSpec>(Some("rng"), Place::Virtio, devices::rng),
        device::<BalloonSpec>(Some("balloon"), Place::Virtio, devices::balloon),
        device::<RootPortSpec>(Some("root-port"), Place::Pci, devices::root_port),
        device::<DebugExitSpec>(None, Place::Isa, devices::debug_exit),
    ];
    CATALOG
}

/// The type with this name or shorthand.
///
/// # Errors
/// There is none; the nearest known name is given.
pub fn find(name: &str) -> Result<&'static DeviceType, MachineError> {
    let known = || {
        catalog()
            .iter()
            .flat_map(|d| [Some(d.name), d.shorthand])
            .flatten()
    };
    catalog()
        .iter()
        .find(|d| d.name == name || d.shorthand == Some(name))
        .ok_or_else(|| {
            let sections = crate::description::sections().iter().map(|s| s.name);
            MachineError::Description(match spec::nearest(name, known().chain(sections)) {
                Some(near) => format!("unknown device or section {name:?}; did you mean {near:?}?"),
                None => format!(
                    "unknown device or section {name:?}; \"vireo devices\" lists the devices"
                ),
            })
        })
}
