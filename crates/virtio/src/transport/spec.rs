use pci::Express;
use spec::{Properties, Property, Spec, SpecError};

use super::TransportOptions;

spec::spec! {
    /// How a virtio device appears on the PCI bus.
    pub struct TransportSpec("virtio-pci") {
        /// Offer the packed ring, which takes fewer memory accesses for each request.
        packed: bool = false,
        /// Let both sides say when they want to be notified, which saves exits and interrupts.
        event_idx: bool = true,
        /// Let a request's descriptors be in a table of their own.
        indirect_desc: bool = true,
        /// Number of MSI-X vectors, 0 for none; one for each queue and one more when not given.
        vectors: Option<u16>,
        /// Doorbells are I/O ports too, the fastest way on many hosts; never behind a root port.
        port_doorbells: bool = true,
    }
}

impl TransportSpec {
    /// The options for the device that is called `name`.
    #[must_use]
    pub fn options(&self, name: &str, express: Option<Express>) -> TransportOptions {
        TransportOptions {
            name: name.to_owned(),
            packed: self.packed,
            event_idx: self.event_idx,
            indirect_desc: self.indirect_desc,
            vectors: self.vectors,
            port_doorbells: self.port_doorbells,
            express,
        }
    }
}

/// A device's spec together with its transport's: what a user writes in one line.
#[derive(Debug, Clone, PartialEq)]
pub struct PciSpec<S> {
    /// The device.
    pub device: S,
    /// The transport.
    pub transport: TransportSpec,
}

impl<S: Spec> Spec for PciSpec<S> {
    const NAME: &'static str = S::NAME;
    const HELP: &'static str = S::HELP;

    fn properties() -> Vec<Property> {
        let mut properties = S::properties();
        properties.extend(TransportSpec::properties());
        properties
    }

    fn from_properties(mut given: Properties) -> Result<Self, SpecError> {
        // Here, so that an unknown name is compared with those of both.
        given.only(Self::NAME, &Self::properties())?;
        let mut transport = Properties::new();
        for property in TransportSpec::properties() {
            if let Some(value) = given.remove(&property.name) {
                transport.set(&property.name, value);
            }
        }
        Ok(Self {
            transport: TransportSpec::from_properties(transport)?,
            device: S::from_properties(given)?,
        })
    }

    fn to_properties(&self) -> Properties {
        let mut properties = self.device.to_properties();
        for (name, value) in self.transport.to_properties().iter() {
            properties.set(name, value.clone());
        }
        properties
    }
}
