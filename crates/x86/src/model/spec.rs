//! The wish for a processor, as written: `MODEL[,+feature|,-feature|,name=value]...`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ModelVersion;
use crate::cpuid::{Feature, Vendor};
use crate::error::{CpuError, nearest};

/// What a processor is modelled on.
#[derive(Debug, Clone, Copy)]
pub enum Base {
    /// All that the accelerator supports on this host.
    Host,
    /// A named model.
    Model(ModelVersion),
}

/// A wish for a processor: "Haswell,-tsx,+pdpe1gb", "host,phys-bits=46".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuSpec {
    base: Base,
    features: BTreeMap<Feature, bool>,
    options: CpuSpecOptions,
}

/// What of a processor can be chosen besides features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuSpecOptions {
    /// Vendor instead of the model's.
    pub vendor: Option<Vendor>,
    /// Family instead of the model's.
    pub family: Option<u16>,
    /// Model number instead of the model's.
    pub model: Option<u8>,
    /// Stepping instead of the model's.
    pub stepping: Option<u8>,
    /// Brand string instead of the model's, at most 48 characters.
    pub model_id: Option<String>,
    /// Highest basic leaf: leaves beyond it are cut off.
    pub level: Option<u32>,
    /// Highest extended leaf: leaves beyond it are cut off.
    pub xlevel: Option<u32>,
    /// Physical address bits; the host's if not given.
    pub phys_bits: Option<u8>,
    /// At most this many physical address bits of the host's.
    pub host_phys_bits_limit: Option<u8>,
    /// Frequency of the time stamp counter, Hz; the host's if not given.
    pub tsc_frequency: Option<u64>,
    /// Whether the guest sees that it runs on KVM, with KVM's paravirtual features.
    pub kvm: bool,
    /// Whether there are performance counters. Without a word "host" has them, a named model not.
    pub pmu: Option<bool>,
    /// Whether caches are the host's. Without a word those of "host" are, a named model's not.
    pub host_cache_info: Option<bool>,
    /// Whether there is a third-level cache.
    pub l3_cache: bool,
    /// Whether features of the model that the host lacks are an error, or just left out.
    pub enforce: bool,
    /// Whether "host" leaves out what cannot move to another host.
    pub migratable: bool,
}

impl Default for CpuSpecOptions {
    fn default() -> Self {
        CpuSpecOptions {
            vendor: None,
            family: None,
            model: None,
            stepping: None,
            model_id: None,
            level: None,
            xlevel: None,
            phys_bits: None,
            host_phys_bits_limit: None,
            tsc_frequency: None,
            kvm: true,
            pmu: None,
            host_cache_info: None,
            l3_cache: true,
            enforce: true,
            migratable: true,
        }
    }
}

/// Names of the options with what they do.
const OPTIONS: &[(&str, &str)] = &[
    ("vendor", "vendor, 12 characters"),
    ("family", "family, 0 to 270"),
    ("model", "model number, 0 to 255"),
    ("stepping", "stepping, 0 to 15"),
    ("model-id", "brand string"),
    ("level", "highest basic CPUID leaf"),
    ("xlevel", "highest extended CPUID leaf"),
    (
        "phys-bits",
        "physical address bits, 32 to 52 (default: the host's)",
    ),
    (
        "host-phys-bits",
        "on: as many physical address bits as the host has; off: 40",
    ),
    (
        "host-phys-bits-limit",
        "at most so many physical address bits of the host's",
    ),
    (
        "tsc-frequency",
        "frequency of the time stamp counter in Hz (default: the host's)",
    ),
    ("kvm", "show KVM's paravirtual features (default: on)"),
    (
        "pmu",
        "performance counters (default: on for host, off for the others)",
    ),
    (
        "host-cache-info",
        "show the host's caches (default: on for host, off for the others)",
    ),
    ("l3-cache", "show a third-level cache (default: on)"),
    (
        "enforce",
        "refuse to start when the host lacks a feature (default: on)",
    ),
    (
        "migratable",
        "host: leave out what cannot move to another host (default: on)",
    ),
];

/// Physical address bits of "host-phys-bits=off": what most machines had when it was invented.
const FIXED_PHYS_BITS: u8 = 40;

impl CpuSpec {
    /// A processor with all that the host has.
    pub fn host() -> Self {
        CpuSpec {
            base: Base::Host,
            features: BTreeMap::new(),
            options: CpuSpecOptions::default(),
        }
    }

    /// Reads `MODEL[,...]`. Later words win over earlier ones.
    ///
    /// # Errors
    /// [`CpuError::NoModel`], [`CpuError::UnknownModel`], [`CpuError::UnknownProperty`] and
    /// [`CpuError::BadValue`], each with what would be right.
    pub fn parse(text: &str) -> Result<Self, CpuError> {
        let mut words = text.split(',').map(str::trim);
        let model = words.next().unwrap_or_default();
        let mut spec = CpuSpec {
            base: Base::find(model)?,
            ..Self::host()
        };
        for word in words.filter(|w| !w.is_empty()) {
            spec.change(word)?;
        }
        Ok(spec)
    }

    /// What can be chosen besides features: each option's name and a line of help.
    pub fn options_help() -> impl Iterator<Item = (&'static str, &'static str)> {
        OPTIONS.iter().copied()
    }

    /// What it is modelled on.
    pub fn base(&self) -> Base {
        self.base
    }

    /// Features turned on and off.
    pub fn features(&self) -> impl Iterator<Item = (Feature, bool)> + '_ {
        self.features.iter().map(|(&f, &on)| (f, on))
    }

    /// The other choices.
    pub fn options(&self) -> &CpuSpecOptions {
        &self.options
    }

    /// The other choices, to be changed.
    pub fn options_mut(&mut self) -> &mut CpuSpecOptions {
        &mut self.options
    }

    /// Turns a feature (or a group of them, such as "tsx") on or off.
    ///
    /// # Errors
    /// [`CpuError::UnknownProperty`].
    pub fn set_feature(&mut self, name: &str, on: bool) -> Result<(), CpuError> {
        let found = Feature::lookup(name);
        if found.is_empty() {
            return Err(self.unknown(name));
        }
        self.features.extend(found.into_iter().map(|f| (f, on)));
        Ok(())
    }

    fn change(&mut self, word: &str) -> Result<(), CpuError> {
        if let Some(name) = word.strip_prefix('+') {
            return self.set_feature(name, true);
        }
        if let Some(name) = word.strip_prefix('-') {
            return self.set_feature(name, false);
        }
        let (name, value) = word.split_once('=').unwrap_or((word, "on"));
        let (name, value) = (name.trim(), value.trim());
        let plain = name.replace('_', "-");
        let o = &mut self.options;
        match plain.as_str() {
            "vendor" => o.vendor = Some(value.parse()?),
            "family" => o.family = Some(number(&plain, value, 0, 0x10e)? as u16),
            "model" => o.model = Some(number(&plain, value, 0, 0xff)? as u8),
            "stepping" => o.stepping = Some(number(&plain, value, 0, 0xf)? as u8),
            "model-id" => {
                if value.len() > 48 || !value.is_ascii() {
                    return Err(bad(&plain, value, "at most 48 ASCII characters"));
                }
                o.model_id = Some(value.to_owned());
            }
            "level" => o.level = Some(number(&plain, value, 1, 0xffff)? as u32),
            "xlevel" => {
                o.xlevel = Some(number(&plain, value, 0x8000_0001, 0x8000_ffff)? as u32);
            }
            "phys-bits" => o.phys_bits = Some(number(&plain, value, 32, 52)? as u8),
            "host-phys-bits" => {
                o.phys_bits = (!switch(&plain, value)?).then_some(FIXED_PHYS_BITS);
            }
            "host-phys-bits-limit" => {
                o.host_phys_bits_limit = Some(number(&plain, value, 32, 52)? as u8);
            }
            "tsc-frequency" | "tsc-freq" => {
                // The counter's frequency is set in kHz, as 32 bits.
                let hz = number(
                    "tsc-frequency",
                    value,
                    1_000_000,
                    u64::from(u32::MAX) * 1000,
                )?;
                o.tsc_frequency = Some(hz);
            }
            "kvm" => o.kvm = switch(&plain, value)?,
            "pmu" => o.pmu = Some(switch(&plain, value)?),
            "host-cache-info" => o.host_cache_info = Some(switch(&plain, value)?),
            "l3-cache" => o.l3_cache = switch(&plain, value)?,
            "enforce" => o.enforce = switch(&plain, value)?,
            "migratable" => o.migratable = switch(&plain, value)?,
            _ if Feature::lookup(&plain).is_empty() => return Err(self.unknown(name)),
            _ => {
                let on = switch(&plain, value)?;
                self.set_feature(&plain, on)?;
            }
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> CpuError {
        CpuError::UnknownProperty {
            model: self.base.name(),
            name: name.to_owned(),
            nearest: nearest(
                name,
                Feature::all_names()
                    .chain(OPTIONS.iter().map(|(name, _)| *name))
                    .collect::<Vec<_>>()
                    .into_iter(),
            ),
        }
    }
}

impl Base {
    /// "host" ("max" is the same here), or a model.
    fn find(name: &str) -> Result<Self, CpuError> {
        if name.is_empty() || name.contains('=') || name.starts_with(['+', '-']) {
            return Err(CpuError::NoModel);
        }
        if name == "host" || name == "max" {
            return Ok(Base::Host);
        }
        if let Some(found) = ModelVersion::find(name) {
            return Ok(Base::Model(found));
        }
        let known: Vec<String> = ModelVersion::all().flat_map(|v| v.names()).collect();
        Err(CpuError::UnknownModel {
            name: name.to_owned(),
            nearest: nearest(
                name,
                known
                    .iter()
                    .map(String::as_str)
                    .chain(std::iter::once("host")),
            ),
        })
    }

    /// The name that finds it.
    pub fn name(&self) -> String {
        match self {
            Base::Host => "host".to_owned(),
            Base::Model(version) => version.name(),
        }
    }
}

impl PartialEq for Base {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Base {}

impl FromStr for CpuSpec {
    type Err = CpuError;

    fn from_str(text: &str) -> Result<Self, CpuError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for CpuSpec {
    type Error = CpuError;

    fn try_from(text: String) -> Result<Self, CpuError> {
        Self::parse(&text)
    }
}

impl From<CpuSpec> for String {
    fn from(spec: CpuSpec) -> String {
        spec.to_string()
    }
}

impl fmt::Display for CpuSpec {
    /// Text that [`CpuSpec::parse`] reads back to an equal value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base.name())?;
        // A name that also stands for a group comes first, so that its members, which follow, win.
        let is_group = |feature: Feature| Feature::lookup(feature.name()).len() > 1;
        let mut features: Vec<_> = self.features().collect();
        features.sort_by_key(|&(feature, _)| !is_group(feature));
        for (feature, on) in features {
            write!(f, ",{}{feature}", if on { '+' } else { '-' })?;
        }
        let o = &self.options;
        let texts = [
            ("vendor", o.vendor.map(|v| v.to_string())),
            ("family", o.family.map(|v| v.to_string())),
            ("model", o.model.map(|v| v.to_string())),
            ("stepping", o.stepping.map(|v| v.to_string())),
            ("model-id", o.model_id.clone()),
            ("level", o.level.map(|v| format!("{v:#x}"))),
            ("xlevel", o.xlevel.map(|v| format!("{v:#x}"))),
            ("phys-bits", o.phys_bits.map(|v| v.to_string())),
            (
                "host-phys-bits-limit",
                o.host_phys_bits_limit.map(|v| v.to_string()),
            ),
            ("tsc-frequency", o.tsc_frequency.map(|v| v.to_string())),
            ("kvm", not_default(o.kvm, true)),
            ("pmu", o.pmu.map(on_off)),
            ("host-cache-info", o.host_cache_info.map(on_off)),
            ("l3-cache", not_default(o.l3_cache, true)),
            ("enforce", not_default(o.enforce, true)),
            ("migratable", not_default(o.migratable, true)),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                write!(f, ",{name}={value}")?;
            }
        }
        Ok(())
    }
}

fn on_off(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

fn not_default(value: bool, default: bool) -> Option<String> {
    (value != default).then(|| on_off(value))
}

fn switch(property: &str, value: &str) -> Result<bool, CpuError> {
    match value {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => Err(bad(property, value, "on or off")),
    }
}

fn number(property: &str, value: &str, min: u64, max: u64) -> Result<u64, CpuError> {
    let parsed = match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => value.parse(),
    };
    parsed
        .ok()
        .filter(|n| (min..=max).contains(n))
        .ok_or_else(|| {
            let range = if max > 0xffff {
                format!("a number from {min:#x} to {max:#x}")
            } else {
                format!("a number from {min} to {max}")
            };
            bad(property, value, &range)
        })
}

fn bad(property: &str, value: &str, expected: &str) -> CpuError {
    CpuError::BadValue {
        property: property.to_owned(),
        value: value.to_owned(),
        expected: expected.to_owned(),
    }
}
