//! What the user said, before it is understood: from the command line, from a configuration
//! file, or both.
//!
//! Every statement belongs to a section: one of the machine's own ([`sections`]) or a device
//! type of the catalog, by its name (`device = virtio-blk-pci`) or its shorthand (`disk`).

use std::path::Path;

use spec::{Properties, Property, Spec, SpecError};
use virtio::TransportSpec;

use crate::catalog::{self, DeviceType, Place};
use crate::error::MachineError;
use crate::settings::{
    AccelSpec, CpuSpec, CpusSpec, IoThreadSpec, KernelSpec, MachineSettings, MemorySpec, QmpSpec,
    SerialSpec,
};
use crate::site::{self, SlotSpec};

/// A section of the description that is not a device.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Name in the configuration file, and the option on the command line.
    pub name: &'static str,
    /// Whether it can be said several times.
    pub repeats: bool,
    /// What it is.
    pub help: &'static str,
    /// Its properties.
    pub properties: fn() -> Vec<Property>,
    check: fn(Properties) -> Result<(), SpecError>,
}

/// Whether `S` understands what was given.
pub(crate) fn check<S: Spec>(given: Properties) -> Result<(), SpecError> {
    S::from_properties(given).map(drop)
}

const fn section<S: Spec>(repeats: bool) -> Section {
    Section {
        name: S::NAME,
        repeats,
        help: S::HELP,
        properties: S::properties,
        check: check::<S>,
    }
}

/// The machine's own sections.
#[must_use]
pub fn sections() -> &'static [Section] {
    const SECTIONS: &[Section] = &[
        section::<MachineSettings>(false),
        section::<AccelSpec>(false),
        section::<CpuSpec>(false),
        section::<CpusSpec>(false),
        section::<MemorySpec>(false),
        section::<KernelSpec>(false),
        section::<SerialSpec>(true),
        section::<IoThreadSpec>(true),
        section::<QmpSpec>(true),
    ];
    SECTIONS
}

/// A device as the user described it.
#[derive(Debug, Clone)]
pub struct DeviceDescription {
    /// Its type.
    pub device: &'static DeviceType,
    /// Its properties, those of the slot (`id`, `bus`, `addr`) among them.
    pub properties: Properties,
}

impl DeviceDescription {
    fn check(&self) -> Result<(), MachineError> {
        let own = (self.device.properties)();
        let all: Vec<_> = own
            .iter()
            .cloned()
            .chain(site::common_properties(self.device.place))
            .collect();
        self.properties.only(self.device.name, &all)?;
        let mut given = self.properties.clone();
        site::take::<SlotSpec>(&mut given, &own)?;
        if self.device.place == Place::Virtio {
            site::take::<TransportSpec>(&mut given, &own)?;
        }
        Ok((self.device.check)(given)?)
    }
}

/// All that the user said.
#[derive(Debug, Clone, Default)]
pub struct Description {
    singles: Vec<(&'static str, Properties)>,
    repeated: Vec<(&'static str, Properties)>,
    /// Devices in the order in which they were named.
    pub devices: Vec<DeviceDescription>,
}

impl Description {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what follows an option: `--disk file=a.img` is `add("disk", "file=a.img")`.
    ///
    /// # Errors
    /// No such section or device, or text that is not of the form `name=value,...`.
    pub fn add(&mut self, name: &str, text: &str) -> Result<(), MachineError> {
        if let Some(section) = sections().iter().find(|s| s.name == name) {
            // A processor model has commas of its own.
            let text = if section.name == CpuSpec::NAME && !text.starts_with("model=") {
                text.replace(',', ",,")
            } else {
                text.to_owned()
            };
            let first = (section.properties)().first().map(|p| p.name.clone());
            let properties = Properties::parse(section.name, first.as_deref(), &text)?;
            self.add_section(section, properties);
            return Ok(());
        }
        let device = catalog::find(name)?;
        let first = (device.properties)().first().map(|p| p.name.clone());
        let properties = Properties::parse(device.name, first.as_deref(), text)?;
        self.devices.push(DeviceDescription { device, properties });
        Ok(())
    }

    /// Adds what follows `--device`: `virtio-blk-pci,file=a.img`.
    ///
    /// # Errors
    /// As [`Description::add`].
    pub fn add_device(&mut self, text: &str) -> Result<(), MachineError> {
        let (name, rest) = text.split_once(',').unwrap_or((text, ""));
        let device = catalog::find(name)?;
        let properties = Properties::parse(device.name, None, rest)?;
        self.devices.push(DeviceDescription { device, properties });
        Ok(())
    }

    /// Sets one property of a section that is said once: `--initrd` is `set("kernel", "initrd", ..)`.
    pub fn set(&mut self, section: &'static str, property: &str, value: &str) {
        let mut properties = Properties::new();
        properties.set(property, spec::Value::Text(value.to_owned()));
        self.merge_single(section, properties);
    }

    /// Adds what a configuration file says; what is said later wins.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or says what is not understood.
    pub fn add_file(&mut self, path: &Path) -> Result<(), MachineError> {
        let text = std::fs::read_to_string(path).map_err(|source| MachineError::ConfigFile {
            path: path.to_owned(),
            source,
        })?;
        self.add_toml(&text).map_err(|e| match e {
            MachineError::ConfigSyntax { why, .. } => MachineError::ConfigSyntax {
                path: path.to_owned(),
                why,
            },
            other => other,
        })
    }

    /// Adds what a configuration in TOML says. Each section is a table, or an array of tables
    /// when it repeats; `[[device]]` names any device by its `type`.
    ///
    /// # Errors
    /// As [`Description::add_file`].
    pub fn add_toml(&mut self, text: &str) -> Result<(), MachineError> {
        let syntax = |why: String| MachineError::ConfigSyntax {
            path: "configuration".into(),
            why,
        };
        let root: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| syntax(e.to_string()))?;
        for (name, value) in root {
            let tables = match value {
                toml::Value::Table(table) => vec![table],
                toml::Value::Array(items) => items
                    .into_iter()
                    .map(|item| match item {
                        toml::Value::Table(table) => Ok(table),
                        other => Err(syntax(format!("[[{name}]] holds {other}, expected tables"))),
                    })
                    .collect::<Result<_, _>>()?,
                other => {
                    return Err(syntax(format!(
                        "{name} = {other}: expected a table [{name}]"
                    )));
                }
            };
            for table in tables {
                self.add_table(&name, table)?;
            }
        }
        Ok(())
    }

    fn add_table(&mut self, name: &str, mut table: toml::Table) -> Result<(), MachineError> {
        if let Some(section) = sections().iter().find(|s| s.name == name) {
            let properties = Properties::from_toml(section.name, table)?;
            self.add_section(section, properties);
            return Ok(());
        }
        let device = if name == "device" {
            match table.remove("type") {
                Some(toml::Value::String(kind)) => catalog::find(&kind)?,
                _ => {
                    return Err(MachineError::Description(
                        "[[device]] needs a type, such as \"virtio-rng-pci\"".into(),
                    ));
                }
            }
        } else {
            catalog::find(name)?
        };
        let properties = Properties::from_toml(device.name, table)?;
        self.devices.push(DeviceDescription { device, properties });
        Ok(())
    }

    fn add_section(&mut self, section: &Section, properties: Properties) {
        if section.repeats {
            self.repeated.push((section.name, properties));
        } else {
            self.merge_single(section.name, properties);
        }
    }

    fn merge_single(&mut self, name: &'static str, properties: Properties) {
        match self.singles.iter_mut().find(|(n, _)| *n == name) {
            Some((_, before)) => properties
                .iter()
                .for_each(|(key, value)| before.set(key, value.clone())),
            None => self.singles.push((name, properties)),
        }
    }

    /// What was said about the machine's own sections: those said once in the order of their
    /// first mention, then those that repeat.
    pub fn said(&self) -> impl Iterator<Item = (&'static str, &Properties)> {
        self.singles
            .iter()
            .chain(&self.repeated)
            .map(|(name, properties)| (*name, properties))
    }

    /// Checks the names and types of all properties, without opening anything.
    ///
    /// # Errors
    /// The first that is unknown, missing or ill-typed.
    pub fn check(&self) -> Result<(), MachineError> {
        for (name, properties) in self.said() {
            if let Some(section) = sections().iter().find(|s| s.name == name) {
                (section.check)(properties.clone())?;
            }
        }
        self.devices.iter().try_for_each(DeviceDescription::check)
    }

    /// A section that is said once, with defaults for what was not said.
    pub(crate) fn single<S: Spec>(&self) -> Result<S, MachineError> {
        let given = self.singles.iter().find(|(name, _)| *name == S::NAME);
        Ok(S::from_properties(
            given.map(|(_, p)| p.clone()).unwrap_or_default(),
        )?)
    }

    /// Whether a section was mentioned at all.
    pub(crate) fn mentions<S: Spec>(&self) -> bool {
        self.singles
            .iter()
            .chain(&self.repeated)
            .any(|(name, _)| *name == S::NAME)
    }

    /// A section that may be said several times.
    pub(crate) fn all<S: Spec>(&self) -> Result<Vec<S>, MachineError> {
        let given = self.repeated.iter().filter(|(name, _)| *name == S::NAME);
        given
            .map(|(_, p)| S::from_properties(p.clone()).map_err(Into::into))
            .collect()
    }
}
