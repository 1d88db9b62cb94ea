use block::DiskSpec;
use block::throttle::ThrottleLimits;
use spec::{Properties, Property, Size, Spec, SpecError};

use super::model::ID_LEN;

/// The host takes no longer scatter list at once (IOV_MAX), and chains are as long as queues.
const MAX_QUEUE_SIZE: u16 = 1024;

spec::choice! {
    /// What becomes of a read that the host fails.
    pub enum ReadErrorPolicy {
        /// The guest is told.
        Report = "report",
        /// The guest is told that it worked.
        Ignore = "ignore",
        /// The guest is stopped; the read is made again when it goes on.
        Stop = "stop",
        /// Report.
        Auto = "auto",
    }
}

spec::choice! {
    /// What becomes of a write, flush or discard that the host fails.
    pub enum WriteErrorPolicy {
        /// The guest is told.
        Report = "report",
        /// The guest is told that it worked.
        Ignore = "ignore",
        /// The guest is stopped; the write is made again when it goes on.
        Stop = "stop",
        /// Stop when the host has no room, and report otherwise.
        Enospc = "enospc",
        /// Enospc.
        Auto = "auto",
    }
}

spec::spec! {
    /// The device's part of a disk.
    pub struct BlkDeviceSpec("virtio-blk-pci") {
        /// Number of request queues, each with an interrupt of its own; one for each virtual
        /// processor when not given.
        num_queues: Option<u16>,
        /// Number of descriptors of each queue, a power of two up to 1024.
        queue_size: u16 = 256,
        /// What the guest sees as the disk's serial number, at most 20 bytes.
        serial: Option<String>,
        /// Name of an I/O thread that serves queues; with several, queues take turns.
        iothread: Vec<String>,
        /// Smallest unit that the guest may address, in bytes; the host's when not given.
        logical_block_size: Option<Size>,
        /// Smallest unit that is written without reading, in bytes; the host's when not given.
        physical_block_size: Option<Size>,
        /// Show the guest a volatile write cache that it has to flush; as the cache mode says
        /// when not given.
        write_cache: Option<bool>,
        /// What becomes of a read that the host fails: the guest is told (report), is told that
        /// it worked (ignore), or is stopped until `cont`, when the read is made again (stop).
        rerror: ReadErrorPolicy = ReadErrorPolicy::Report,
        /// What becomes of a write that the host fails: as for reads, or stop when the host has no
        /// room and report otherwise (enospc).
        werror: WriteErrorPolicy = WriteErrorPolicy::Enospc,
    }
}

/// A virtio disk: the image, and the device in front of it.
#[derive(Debug, Clone, PartialEq)]
pub struct BlkSpec {
    /// The image.
    pub disk: DiskSpec,
    /// The device.
    pub device: BlkDeviceSpec,
    /// How many requests and bytes a second: `throttle-iops-total` and so on.
    pub throttle: ThrottleLimits,
}

/// In front of the names of the limits.
const THROTTLE: &str = "throttle-";

impl Spec for BlkSpec {
    const NAME: &'static str = "virtio-blk-pci";
    const HELP: &'static str = "A disk.";

    fn properties() -> Vec<Property> {
        let mut properties = DiskSpec::properties();
        properties.extend(BlkDeviceSpec::properties());
        let limits = ThrottleLimits::properties().into_iter();
        properties.extend(limits.map(|limit| Property {
            name: format!("{THROTTLE}{}", limit.name),
            ..limit
        }));
        properties
    }

    fn from_properties(mut given: Properties) -> Result<Self, SpecError> {
        given.only(Self::NAME, &Self::properties())?;
        let mut disk = Properties::new();
        for property in DiskSpec::properties() {
            if let Some(value) = given.remove(&property.name) {
                disk.set(&property.name, value);
            }
        }
        let mut limits = Properties::new();
        for property in ThrottleLimits::properties() {
            if let Some(value) = given.remove(&format!("{THROTTLE}{}", property.name)) {
                limits.set(&property.name, value);
            }
        }
        let spec = Self {
            disk: DiskSpec::from_properties(disk)?,
            device: BlkDeviceSpec::from_properties(given)?,
            throttle: ThrottleLimits::from_properties(limits.clone())?,
        };
        spec.device.check()?;
        spec.throttle.check().map_err(|why| {
            let text = limits.iter().map(|(name, value)| format!("{name}={value}"));
            SpecError::Syntax {
                spec: ThrottleLimits::NAME,
                text: text.collect::<Vec<_>>().join(","),
                why: why.to_string(),
            }
        })?;
        Ok(spec)
    }

    fn to_properties(&self) -> Properties {
        let mut properties = self.disk.to_properties();
        for (name, value) in self.device.to_properties().iter() {
            properties.set(name, value.clone());
        }
        for (name, value) in self.throttle.to_properties().iter() {
            properties.set(&format!("{THROTTLE}{name}"), value.clone());
        }
        properties
    }
}

impl BlkDeviceSpec {
    fn check(&self) -> Result<(), SpecError> {
        let bad = |name: &str, value: String, why: &str| SpecError::Bad {
            spec: Self::NAME,
            name: name.to_owned(),
            value,
            why: why.to_owned(),
        };
        if self.num_queues == Some(0) {
            return Err(bad("num-queues", "0".into(), "expected at least 1"));
        }
        if !(2..=MAX_QUEUE_SIZE).contains(&self.queue_size) || !self.queue_size.is_power_of_two() {
            let why = "expected a power of two from 2 to 1024";
            return Err(bad("queue-size", self.queue_size.to_string(), why));
        }
        if let Some(serial) = &self.serial
            && serial.len() > ID_LEN
        {
            return Err(bad("serial", serial.clone(), "expected at most 20 bytes"));
        }
        for (name, size) in [
            ("logical-block-size", self.logical_block_size),
            ("physical-block-size", self.physical_block_size),
        ] {
            if let Some(size) = size
                && !(size.0.is_power_of_two() && (512..=2 << 20).contains(&size.0))
            {
                let why = "expected a power of two from 512 to 2M";
                return Err(bad(name, size.to_string(), why));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_are_read_from_one_description() {
        let spec = BlkSpec::parse("a.img,cache=none,num-queues=4,serial=S1,iothread=a,iothread=b")
            .unwrap();
        assert_eq!(spec.disk.cache, block::Cache::None);
        assert_eq!(spec.device.num_queues, Some(4));
        assert_eq!(spec.device.iothread, ["a", "b"]);
        let error = (spec.device.rerror, spec.device.werror);
        assert_eq!(error, (ReadErrorPolicy::Report, WriteErrorPolicy::Enospc));
        let again = BlkSpec::from_properties(spec.to_properties()).unwrap();
        assert_eq!(again, spec);
    }

    #[test]
    fn mistakes_name_the_property() {
        let error = |text| BlkSpec::parse(text).unwrap_err().to_string();
        assert!(error("a.img,cahce=none").contains("did you mean \"cache\"?"));
        assert!(error("a.img,queue-size=100").contains("power of two"));
        assert!(error("a.img,serial=012345678901234567890").contains("at most 20"));
        assert!(error("a.img,logical-block-size=600").contains("power of two"));
        assert!(error("cache=none").contains("\"file\" is missing"));
        assert!(error("a.img,rerror=enospc").contains("expected one of report, ignore, stop"));
    }

    #[test]
    fn limits_are_properties_of_the_disk() {
        let text = "a.img,throttle-bps-total=10M,throttle-iops-read=5,throttle-iops-read-max=9";
        let spec = BlkSpec::parse(text).unwrap();
        assert_eq!(spec.throttle.bps_total, Some(10 << 20));
        assert_eq!(spec.throttle.iops_read_max, Some(9));
        assert_eq!(
            BlkSpec::from_properties(spec.to_properties()).unwrap(),
            spec
        );
        let error = |text| BlkSpec::parse(text).unwrap_err().to_string();
        let text = error("a.img,throttle-iops-read-max=9");
        assert!(text.contains("iops-read-max needs iops-read"), "{text}");
        let text = error("a.img,throttle-iops-reed=9");
        assert!(
            text.contains("did you mean \"throttle-iops-read\"?"),
            "{text}"
        );
    }
}
