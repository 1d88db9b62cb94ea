//! Where the user's devices go on PCI.

use std::collections::BTreeMap;
use std::sync::Arc;

use pci::{Bdf, Function, RootComplex, RootPort};

use crate::error::MachineError;
use crate::site::SlotSpec;

/// Device 0 is the host bridge.
const FIRST: u8 = 1;
/// Device 31 is the ICH9.
const LAST: u8 = 30;

/// Bus 0 and the root ports on it.
pub(crate) struct Slots {
    root: Arc<RootComplex>,
    ports: BTreeMap<String, Arc<RootPort>>,
}

impl Slots {
    pub(crate) fn new(root: Arc<RootComplex>) -> Self {
        Self {
            root,
            ports: BTreeMap::new(),
        }
    }

    /// Devices can from now on say `bus=id`.
    pub(crate) fn add_port(&mut self, id: &str, port: Arc<RootPort>) {
        self.ports.insert(id.to_owned(), port);
    }

    /// Whether the device will sit behind a root port, where it is an endpoint of PCI Express.
    pub(crate) fn is_behind_port(&self, slot: &SlotSpec) -> bool {
        slot.bus.is_some()
    }

    /// Puts a function into the slot that was asked for, or the next free one.
    pub(crate) fn place(
        &self,
        slot: &SlotSpec,
        function: Arc<dyn Function>,
    ) -> Result<Option<Bdf>, MachineError> {
        let Some(bus) = &slot.bus else {
            let bdf = self.choose(slot.addr)?;
            self.root
                .add(bdf, function)
                .map_err(MachineError::step(format!("put a device at {bdf}")))?;
            return Ok(Some(bdf));
        };
        let Some(port) = self.ports.get(bus) else {
            let known: Vec<&str> = self.ports.keys().map(String::as_str).collect();
            return Err(MachineError::Description(
                match spec::nearest(bus, known.iter().copied()) {
                    Some(near) => format!("there is no root port {bus:?}; did you mean {near:?}?"),
                    None => format!(
                        "there is no root port {bus:?} before this device; add --root-port id={bus}"
                    ),
                },
            ));
        };
        if slot.addr.is_some_and(|addr| addr != 0) {
            return Err(MachineError::Description(format!(
                "addr={} behind root port {bus:?}: a port has the one device 0",
                slot.addr.unwrap_or_default()
            )));
        }
        port.insert(function).map_err(MachineError::step(format!(
            "put a device behind root port {bus:?}"
        )))?;
        Ok(None)
    }

    fn choose(&self, addr: Option<u8>) -> Result<Bdf, MachineError> {
        let free =
            |device: u8| Bdf::new(0, device, 0).filter(|bdf| self.root.function(*bdf).is_none());
        match addr {
            Some(device) if !(FIRST..=LAST).contains(&device) => Err(MachineError::Description(
                format!("addr={device}: devices of bus 0 are {FIRST} to {LAST}"),
            )),
            Some(device) => free(device).ok_or_else(|| {
                MachineError::Description(format!("addr={device}: another device is there"))
            }),
            None => (FIRST..=LAST).find_map(free).ok_or_else(|| {
                MachineError::Description(
                    "all slots of bus 0 are taken; put devices behind root ports".into(),
                )
            }),
        }
    }
}
