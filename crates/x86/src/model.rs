//! Named processors, and what a guest gets when it asks for one.
//!
//! ```text
//!   "Haswell,-tsx"                 HostCpu: what the accelerator supports
//!        │                              │
//!        v                              v
//!     CpuSpec ──────────────────────> build ── CpuError::Missing names what the host lacks
//!        + Model (data, one table        │
//!          per vendor)                   v
//!        + Topology                  CpuTemplate ── cpuid_for(vCPU) ──> Cpuid
//! ```
//!
//! Names, families and feature sets are those of QEMU's versioned models, so that management tools
//! that name them get what they expect. The x86-64-v2, -v3 and -v4 levels are those of the x86-64
//! psABI, section 3.1.1.

mod amd;
mod build;
mod generic;
mod host;
mod intel;
mod leaves;
mod list;
mod spec;
#[cfg(test)]
mod tests;

pub use build::build;
pub use host::HostCpu;
pub use leaves::CpuTemplate;
pub use list::{ModelListing, list_models};
pub use spec::{Base, CpuSpec, CpuSpecOptions};

use crate::cpuid::{Cache, Feature, FeatureSet, Signature, Vendor};

/// A named processor in its versions.
#[derive(Debug)]
pub struct Model {
    /// Name; also that of its first version.
    pub name: &'static str,
    /// Vendor; None for those that take the host's.
    vendor: Option<Vendor>,
    /// Family, model and stepping; None for those that differ by vendor.
    signature: Option<Signature>,
    /// Highest basic leaf.
    level: u32,
    /// Highest extended leaf.
    xlevel: u32,
    /// The brand string.
    model_id: &'static str,
    /// Names of its features, separated by white space.
    features: &'static [&'static str],
    /// Caches.
    caches: &'static [Cache],
    /// Versions after the first, each as a change of the one before it.
    versions: &'static [Version],
}

/// A later version of a model.
#[derive(Debug, Clone, Copy)]
struct Version {
    /// Name without the number, for versions that have one.
    alias: Option<&'static str>,
    /// Brand string, if changed.
    model_id: Option<&'static str>,
    /// Signature, if changed.
    signature: Option<Signature>,
    /// Features that it adds.
    add: &'static str,
    /// Features that it drops.
    remove: &'static str,
}

/// One version of a model, looked up by name.
#[derive(Debug, Clone, Copy)]
pub struct ModelVersion {
    model: &'static Model,
    /// 1 for the first.
    version: usize,
}

const fn signature(family: u16, model: u8, stepping: u8) -> Option<Signature> {
    Some(Signature {
        family,
        model,
        stepping,
    })
}

/// All models, oldest first within a vendor.
fn models() -> impl Iterator<Item = &'static Model> + Clone {
    generic::MODELS
        .iter()
        .chain(intel::MODELS)
        .chain(amd::MODELS)
}

impl ModelVersion {
    /// Finds "Haswell", "Haswell-v2" or "Haswell-noTSX".
    pub fn find(name: &str) -> Option<Self> {
        Self::all().find(|v| v.names().any(|n| n == name))
    }

    /// All versions of all models.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        models().flat_map(|model| {
            (1..=model.versions.len() + 1).map(move |version| ModelVersion { model, version })
        })
    }

    /// The name by which people know it: "Haswell", "Haswell-noTSX", "Icelake-Server-v3".
    pub fn name(&self) -> String {
        match self.steps().last() {
            None => self.model.name.to_owned(),
            Some(step) => match step.alias {
                Some(alias) => alias.to_owned(),
                None => self.versioned_name(),
            },
        }
    }

    /// The name with a version: "Haswell-v1". Models without a vendor have one version and no
    /// number, because their names end in one already.
    pub fn versioned_name(&self) -> String {
        if self.model.vendor.is_none() {
            return self.model.name.to_owned();
        }
        format!("{}-v{}", self.model.name, self.version)
    }

    /// Both, without repetition.
    pub fn names(&self) -> impl Iterator<Item = String> + use<> {
        let (name, versioned) = (self.name(), self.versioned_name());
        let second = (name != versioned).then_some(versioned);
        std::iter::once(name).chain(second)
    }

    /// The model that it is a version of.
    pub fn model(&self) -> &'static Model {
        self.model
    }

    /// Its vendor, where `host` is the host's.
    pub fn vendor(&self, host: Vendor) -> Vendor {
        self.model.vendor.unwrap_or(host)
    }

    /// Whether the model has a vendor of its own, rather than the host's.
    pub fn own_vendor(&self) -> Option<Vendor> {
        self.model.vendor
    }

    /// Family, model and stepping on a processor of this vendor.
    pub fn signature(&self, vendor: Vendor) -> Signature {
        self.steps()
            .iter()
            .rev()
            .find_map(|s| s.signature)
            .or(self.model.signature)
            .unwrap_or_else(|| generic::signature_for(vendor))
    }

    /// Brand string.
    pub fn model_id(&self) -> &'static str {
        self.steps()
            .iter()
            .rev()
            .find_map(|s| s.model_id)
            .unwrap_or(self.model.model_id)
    }

    /// Its features.
    pub fn features(&self) -> FeatureSet {
        let mut set: FeatureSet = self.model.features.iter().flat_map(|l| names(l)).collect();
        for step in self.steps() {
            for f in names(step.remove) {
                set.remove(f);
            }
            for f in names(step.add) {
                set.insert(f);
            }
        }
        set
    }

    /// Highest basic and highest extended leaf.
    pub fn levels(&self) -> (u32, u32) {
        (self.model.level, self.model.xlevel)
    }

    /// Its caches.
    pub fn caches(&self) -> &'static [Cache] {
        self.model.caches
    }

    /// The changes that lead from the first version to this one.
    fn steps(&self) -> &'static [Version] {
        &self.model.versions[..self.version - 1]
    }
}

impl Version {
    /// No change: the start of each row of the tables.
    const SAME: Version = Version {
        alias: None,
        model_id: None,
        signature: None,
        add: "",
        remove: "",
    };
}

/// The features named in this list. The tables' own test sees to it that every name is known.
fn names(list: &'static str) -> impl Iterator<Item = Feature> {
    list.split_whitespace().filter_map(Feature::named)
}
