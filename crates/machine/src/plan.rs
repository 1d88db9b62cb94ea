//! What was said, resolved once into what will be done.

use std::fs::File;
use std::path::{Path, PathBuf};

use memory::HugePages as Pages;
use x86::topology::Topology;

use crate::description::{Description, DeviceDescription};
use crate::error::MachineError;
use crate::settings::{
    AccelSpec, CpuSpec, CpusSpec, HugePages, IoThreadSpec, KernelSpec, MachineSettings, MemorySpec,
    QmpSpec, SerialSpec,
};

/// Bytes of translated code that make sense: less is full at once, more is out of the reach of
/// a relative jump.
const MIN_CACHE: u64 = 1 << 20;
const MAX_CACHE: u64 = 1 << 30;

/// A machine as it will be.
pub struct Plan {
    pub(crate) settings: MachineSettings,
    pub(crate) accel: AccelSpec,
    pub(crate) uuid: [u8; 16],
    pub(crate) cpu: x86::CpuSpec,
    pub(crate) topology: Topology,
    pub(crate) memory: MemorySpec,
    pub(crate) memory_options: memory::Options,
    pub(crate) kernel: Option<KernelPlan>,
    pub(crate) serial: Vec<chardev::Target>,
    pub(crate) iothreads: Vec<IoThreadPlan>,
    pub(crate) qmp: Vec<PathBuf>,
    pub(crate) devices: Vec<DeviceDescription>,
}

/// A kernel whose files are open: they are read again at each reset.
pub(crate) struct KernelPlan {
    pub(crate) name: String,
    pub(crate) image: File,
    pub(crate) initrd: Option<File>,
    pub(crate) spec: KernelSpec,
}

/// An I/O thread.
pub(crate) struct IoThreadPlan {
    pub(crate) name: String,
    pub(crate) cpus: Option<Vec<usize>>,
    pub(crate) poll_us: u32,
}

impl Plan {
    /// Resolves a description: fills in defaults, opens the kernel, and finds contradictions.
    ///
    /// # Errors
    /// What makes no sense, with the value and what to do.
    pub fn new(description: Description) -> Result<Self, MachineError> {
        let settings: MachineSettings = description.single()?;
        let accel: AccelSpec = description.single()?;
        if !(MIN_CACHE..=MAX_CACHE).contains(&accel.cache.0) {
            return Err(MachineError::Description(format!(
                "accel: cache={}: expected 1M to 1G",
                accel.cache
            )));
        }
        let cpus: CpusSpec = description.single()?;
        let memory: MemorySpec = description.single()?;
        let cpu: CpuSpec = description.single()?;
        let cpu = x86::CpuSpec::parse(&cpu.model)
            .map_err(MachineError::step("understand the processor model"))?;
        let topology = Topology::resolve(
            Some(cpus.count),
            cpus.sockets,
            None,
            cpus.cores,
            cpus.threads,
        )
        .map_err(MachineError::step("lay out the processors"))?;
        let kernel = match description.mentions::<KernelSpec>() {
            true => Some(KernelPlan::open(description.single()?)?),
            false => None,
        };
        if memory.numa_nodes == 0 || memory.numa_nodes > cpus.count.max(1) {
            return Err(MachineError::Description(format!(
                "memory: numa-nodes={}: expected 1 to the number of processors, {}",
                memory.numa_nodes, cpus.count
            )));
        }
        let memory_options = memory::Options {
            shared: memory.shared,
            huge: match memory.hugepages {
                HugePages::Transparent => Pages::Transparent,
                HugePages::Off => Pages::Never,
                HugePages::Hugetlb2M => Pages::Hugetlb2M,
                HugePages::Hugetlb1G => Pages::Hugetlb1G,
            },
            prealloc: memory.prealloc,
            mergeable: memory.mergeable,
        };
        let uuid = match &settings.uuid {
            Some(text) => parse_uuid(text)?,
            None => random_uuid()?,
        };
        let serial: Vec<chardev::Target> = description
            .all::<SerialSpec>()?
            .into_iter()
            .map(|s| s.to)
            .collect();
        if serial.len() > 4 {
            return Err(MachineError::Description(format!(
                "{} serial ports: a PC has at most 4",
                serial.len()
            )));
        }
        Ok(Self {
            uuid,
            cpu,
            topology,
            memory,
            memory_options,
            kernel,
            serial,
            iothreads: description
                .all::<IoThreadSpec>()?
                .iter()
                .map(IoThreadPlan::new)
                .collect::<Result<_, _>>()?,
            qmp: description
                .all::<QmpSpec>()?
                .into_iter()
                .map(|q| q.path)
                .collect(),
            devices: description.devices,
            accel,
            settings,
        })
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }
}

impl KernelPlan {
    fn open(spec: KernelSpec) -> Result<Self, MachineError> {
        let image = open_image("kernel", &spec.image)?;
        let initrd = spec
            .initrd
            .as_deref()
            .map(|path| open_image("initrd", path))
            .transpose()?;
        Ok(Self {
            name: spec.image.display().to_string(),
            image,
            initrd,
            spec,
        })
    }
}

fn open_image(what: &str, path: &Path) -> Result<File, MachineError> {
    File::open(path).map_err(MachineError::step(format!(
        "open the {what} {}",
        path.display()
    )))
}

impl IoThreadPlan {
    fn new(spec: &IoThreadSpec) -> Result<Self, MachineError> {
        let mut cpus = Vec::new();
        for item in spec.cpus.iter().flat_map(|item| item.split(':')) {
            let bad = || {
                MachineError::Description(format!(
                    "iothread {}: cpus={item}: expected N or N-M",
                    spec.id
                ))
            };
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let first: usize = first.parse().map_err(|_| bad())?;
            let last: usize = last.parse().map_err(|_| bad())?;
            if first > last || last >= 4096 {
                return Err(bad());
            }
            cpus.extend(first..=last);
        }
        Ok(Self {
            name: spec.id.clone(),
            cpus: (!cpus.is_empty()).then_some(cpus),
            poll_us: spec.poll_us,
        })
    }
}

/// Parses the canonical form, 8-4-4-4-12 hexadecimal digits (RFC 9562 section 4).
fn parse_uuid(text: &str) -> Result<[u8; 16], MachineError> {
    let bad = || {
        MachineError::Description(format!(
            "machine: uuid={text}: expected 8-4-4-4-12 hexadecimal digits"
        ))
    };
    let groups: Vec<&str> = text.split('-').collect();
    if groups.iter().map(|g| g.len()).collect::<Vec<_>>() != [8, 4, 4, 4, 12] || !text.is_ascii() {
        return Err(bad());
    }
    let digits = groups.concat();
    let mut uuid = [0; 16];
    for (i, byte) in uuid.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
    }
    Ok(uuid)
}

/// A random UUID (version 4, RFC 9562 section 5.4).
fn random_uuid() -> Result<[u8; 16], MachineError> {
    use std::io::Read;
    let mut uuid = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut uuid))
        .map_err(MachineError::step("read /dev/urandom for a UUID"))?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// The canonical form of a UUID.
pub(crate) fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_parse_as_they_are_shown() {
        let text = "123e4567-e89b-42d3-a456-426614174000";
        assert_eq!(uuid_text(&parse_uuid(text).unwrap()), text);
        assert!(parse_uuid("123e4567").is_err());
        assert!(parse_uuid("123e4567-e89b-42d3-a456-42661417400g").is_err());
        let random = random_uuid().unwrap();
        assert_eq!((random[6] >> 4, random[8] >> 6), (4, 2));
    }

    #[test]
    fn contradictions_are_found_before_anything_is_made() {
        let refused = |options: &[(&str, &str)]| {
            let mut description = Description::new();
            for (name, text) in options {
                description.add(name, text).unwrap();
            }
            crate::error::chain(&Plan::new(description).err().expect("refused"))
        };
        assert!(refused(&[("cpus", "4,sockets=3")]).contains("4 CPUs cannot be 3 sockets"));
        assert!(refused(&[("cpu", "Haswel")]).contains("Haswell"));
        assert!(refused(&[("kernel", "/nowhere/vmlinuz")]).contains("/nowhere/vmlinuz"));
        assert!(refused(&[("memory", "1G,numa-nodes=2")]).contains("numa-nodes=2"));
        assert!(refused(&[("iothread", "io1,cpus=3-1")]).contains("cpus=3-1"));
        assert!(refused(&[("machine", "uuid=x")]).contains("uuid=x"));
        assert!(refused(&[("accel", "soft,cache=4K")]).contains("expected 1M to 1G"));
    }
}
