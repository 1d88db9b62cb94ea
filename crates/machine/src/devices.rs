//! From specs to devices: one function for each type of the catalog.

use std::sync::Arc;

use spec::{Properties, Spec};
use virtio::balloon::{Balloon, BalloonSpec};
use virtio::blk::{Blk, BlkHandle, BlkSpec, IoStatus};
use virtio::console::{Console, ConsoleSpec};
use virtio::net::{Net, NetSpec};
use virtio::rng::{Rng, RngSpec};

use crate::catalog::{Abilities, Built, Part};
use crate::error::MachineError;
use crate::settings::{DebugExitSpec, RootPortSpec};
use crate::site::Site;

fn virtio(device: impl virtio::VirtioDevice + 'static) -> Built {
    Built {
        part: Part::Virtio(Box::new(device)),
        abilities: Abilities::default(),
    }
}

pub(crate) fn disk(site: &mut Site<'_>, properties: Properties) -> Result<Built, MachineError> {
    let spec = BlkSpec::from_properties(properties)?;
    let id = site.id.as_deref();
    let opened = site.blockdev.open_disk(&site.name, &spec.disk);
    let node = opened.map_err(MachineError::device(BlkSpec::NAME, id, "open its image"))?;
    let threads = site.threads.choose(&spec.device.iothread)?;
    let queues = u16::try_from(site.cpus.min(64)).unwrap_or(1);
    let device = Blk::new(&spec, node, threads, queues).map_err(MachineError::device(
        BlkSpec::NAME,
        id,
        "make it",
    ))?;
    let handle = device.handle();
    let graph = Arc::downgrade(site.blockdev);
    handle.limits_below(move || {
        graph
            .upgrade()
            .map_or_else(Vec::new, |graph| graph.unthrottled())
    });
    let disk = Disk(site.name.clone(), handle.clone());
    site.blockdev.set_device(&site.name, Arc::new(disk));
    let mut built = virtio(device);
    built.abilities.disk = Some(handle);
    Ok(built)
}

/// A virtio disk, by its name, as the block graph sees it.
struct Disk(String, BlkHandle);

impl blockdev::Device for Disk {
    fn qdev(&self) -> String {
        format!("/machine/peripheral/{}/virtio-backend", self.0)
    }

    fn totals(&self, operation: block::Operation) -> block::Totals {
        self.1.totals(operation)
    }

    fn throttle(&self) -> &Arc<block::throttle::Throttle> {
        self.1.throttle()
    }

    fn io_status(&self) -> &'static str {
        match self.1.io_status() {
            IoStatus::Ok => "ok",
            IoStatus::Failed => "failed",
            IoStatus::NoSpace => "nospace",
        }
    }
}

pub(crate) fn net(site: &mut Site<'_>, properties: Properties) -> Result<Built, MachineError> {
    let spec = NetSpec::from_properties(properties)?;
    let mac = net::Mac::from_seed(site.next_seed());
    let id = site.id.as_deref();
    let backend = net::open(&spec.backend, spec.device.queues, spec.device.mtu)
        .map_err(MachineError::device(NetSpec::NAME, id, "connect it"))?;
    let threads = site.threads.choose(&spec.device.iothread)?;
    let device = Net::new(&spec, backend, threads, mac).map_err(MachineError::device(
        NetSpec::NAME,
        id,
        "make it",
    ))?;
    Ok(virtio(device))
}

pub(crate) fn console(site: &mut Site<'_>, properties: Properties) -> Result<Built, MachineError> {
    let spec = ConsoleSpec::from_properties(properties)?;
    let thread = site
        .threads
        .choose(&spec.iothread.iter().cloned().collect::<Vec<_>>())?
        .remove(0);
    let (device, chardevs) = Console::open(&spec, thread, Arc::clone(&site.escape)).map_err(
        MachineError::device(ConsoleSpec::NAME, site.id.as_deref(), "make it"),
    )?;
    site.chardevs.extend(chardevs);
    Ok(virtio(device))
}

pub(crate) fn rng(site: &mut Site<'_>, properties: Properties) -> Result<Built, MachineError> {
    let spec = RngSpec::from_properties(properties)?;
    let device = Rng::new(&spec, site.threads.default_thread().clone()).map_err(
        MachineError::device(RngSpec::NAME, site.id.as_deref(), "make it"),
    )?;
    Ok(virtio(device))
}

pub(crate) fn balloon(site: &mut Site<'_>, properties: Properties) -> Result<Built, MachineError> {
    let spec = BalloonSpec::from_properties(properties)?;
    let (device, control) = Balloon::new(
        &spec,
        site.ram.clone(),
        site.threads.default_thread().clone(),
    );
    let mut built = virtio(device);
    built.abilities.balloon = Some(control);
    Ok(built)
}

pub(crate) fn root_port(
    site: &mut Site<'_>,
    properties: Properties,
) -> Result<Built, MachineError> {
    let spec = RootPortSpec::from_properties(properties)?;
    let slot = spec.slot.unwrap_or(site.next_slot);
    site.next_slot = slot.saturating_add(1);
    let config = pci::RootPortConfig {
        port: (slot & 0xff) as u8,
        slot,
        multifunction: false,
    };
    let port = pci::RootPort::new(config, None).map_err(MachineError::device(
        RootPortSpec::NAME,
        Some(&spec.id),
        "make it",
    ))?;
    site.id = Some(spec.id);
    Ok(Built {
        part: Part::RootPort(port),
        abilities: Abilities::default(),
    })
}

pub(crate) fn debug_exit(
    site: &mut Site<'_>,
    properties: Properties,
) -> Result<Built, MachineError> {
    let spec = DebugExitSpec::from_properties(properties)?;
    let device = chipset::debug_exit::DebugExit::new(spec.iobase, spec.iosize).map_err(
        MachineError::device(DebugExitSpec::NAME, site.id.as_deref(), "make it"),
    )?;
    Ok(Built {
        part: Part::Ports(device.ports(), device),
        abilities: Abilities::default(),
    })
}
