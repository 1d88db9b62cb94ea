use ::net::{Backend, BackendSpec, Mac};
use spec::{Properties, Property, Spec, SpecError};

/// The host takes no longer scatter list at once (IOV_MAX), and chains are as long as queues.
const MAX_QUEUE_SIZE: u16 = 1024;
/// As many as a tap has.
const MAX_QUEUES: u16 = 256;
/// Bytes that every link of IPv4 must take (RFC 791), which the specification asks for.
const MIN_MTU: u16 = 68;

spec::spec! {
    /// The device's part of a network card.
    pub struct NetDeviceSpec("virtio-net-pci") {
        /// The card's address; made from its place in the machine when not given.
        mac: Option<Mac>,
        /// Largest payload of a frame in bytes that the guest is told; it then uses that instead
        /// of 1500.
        mtu: Option<u16>,
        /// Number of pairs of queues, each pair with interrupts of its own.
        queues: u16 = 1,
        /// Number of descriptors of each queue, a power of two from 2 to 1024.
        queue_size: u16 = 256,
        /// Speed of the link that the guest is told, in Mbit/s.
        speed: Option<u32>,
        /// Name of an I/O thread that serves queues; with several, pairs take turns.
        iothread: Vec<String>,
    }
}

/// A virtio network card: the network on the host, and the device in front of it.
#[derive(Debug, Clone, PartialEq)]
pub struct NetSpec {
    /// The network on the host.
    pub backend: BackendSpec,
    /// The device.
    pub device: NetDeviceSpec,
}

impl NetSpec {
    /// Opens the network on the host.
    ///
    /// # Errors
    /// The host refuses.
    pub fn open(&self) -> Result<Backend, ::net::NetError> {
        ::net::open(&self.backend, self.device.queues, self.device.mtu)
    }
}

impl Spec for NetSpec {
    const NAME: &'static str = "virtio-net-pci";
    const HELP: &'static str = "A network card.";

    fn properties() -> Vec<Property> {
        let mut properties = BackendSpec::properties();
        properties.extend(NetDeviceSpec::properties());
        properties
    }

    fn from_properties(mut given: Properties) -> Result<Self, SpecError> {
        given.only(Self::NAME, &Self::properties())?;
        let mut backend = Properties::new();
        for property in BackendSpec::properties() {
            if let Some(value) = given.remove(&property.name) {
                backend.set(&property.name, value);
            }
        }
        let spec = Self {
            backend: BackendSpec::from_properties(backend)?,
            device: NetDeviceSpec::from_properties(given)?,
        };
        spec.device.check()?;
        Ok(spec)
    }

    fn to_properties(&self) -> Properties {
        let mut properties = self.backend.to_properties();
        for (name, value) in self.device.to_properties().iter() {
            properties.set(name, value.clone());
        }
        properties
    }
}

impl NetDeviceSpec {
    fn check(&self) -> Result<(), SpecError> {
        let bad = |name: &str, value: String, why: &str| SpecError::Bad {
            spec: Self::NAME,
            name: name.to_owned(),
            value,
            why: why.to_owned(),
        };
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return Err(bad("queues", self.queues.to_string(), "expected 1 to 256"));
        }
        if !(2..=MAX_QUEUE_SIZE).contains(&self.queue_size) || !self.queue_size.is_power_of_two() {
            let why = "expected a power of two from 2 to 1024";
            return Err(bad("queue-size", self.queue_size.to_string(), why));
        }
        if let Some(mtu) = self.mtu
            && mtu < MIN_MTU
        {
            return Err(bad("mtu", mtu.to_string(), "expected at least 68 bytes"));
        }
        if let Some(speed) = self.speed
            && i32::try_from(speed).is_err()
        {
            return Err(bad(
                "speed",
                speed.to_string(),
                "expected at most 2147483647",
            ));
        }
        Ok(())
    }
}
