//! The catalogue of models, for help and for management tools.

use super::build::missing;
use super::{HostCpu, ModelVersion};
use crate::cpuid::Feature;

/// A line of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelListing {
    /// Name.
    pub name: String,
    /// The versioned name that it stands for, if it is not itself one.
    pub alias_of: Option<String>,
    /// Vendor; None for models that take the host's.
    pub vendor: Option<String>,
    /// In a few words.
    pub description: String,
    /// Names of the features that the host lacks; empty when it can run the model.
    pub missing: Vec<&'static str>,
}

impl ModelListing {
    /// Whether the host can run it.
    pub fn is_runnable(&self) -> bool {
        self.missing.is_empty()
    }
}

/// All models that can be asked for, "host" first, by vendor and age; each version under its own
/// name and under that of people's use.
pub fn list_models(host: &HostCpu) -> Vec<ModelListing> {
    let mut list = vec![ModelListing {
        name: "host".to_owned(),
        alias_of: None,
        vendor: Some(host.vendor().to_string()),
        description: "all that this host supports".to_owned(),
        missing: Vec::new(),
    }];
    for version in ModelVersion::all() {
        let versioned = version.versioned_name();
        let missing: Vec<_> = missing(version, host).iter().map(Feature::name).collect();
        for name in version.names() {
            list.push(ModelListing {
                alias_of: (name != versioned).then(|| versioned.clone()),
                name,
                vendor: version.own_vendor().map(|v| v.to_string()),
                description: version.model_id().to_owned(),
                missing: missing.clone(),
            });
        }
    }
    list
}
