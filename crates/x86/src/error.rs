//! What can be wrong with a wish for a processor.

use thiserror::Error;

/// Why there is no processor like that.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The text names no model.
    #[error("no CPU model is named: write one first, such as \"host\" or \"Haswell,-tsx\"")]
    NoModel,
    /// The model does not exist.
    #[error(
        "there is no CPU model {name:?}{}; --cpu help lists all",
        did_you_mean(nearest)
    )]
    UnknownModel {
        /// As written.
        name: String,
        /// A model with a similar name.
        nearest: Option<String>,
    },
    /// A property or feature does not exist.
    #[error(
        "CPU model {model}: there is no feature or property {name:?}{}",
        did_you_mean(nearest)
    )]
    UnknownProperty {
        /// Model that was to have it.
        model: String,
        /// As written.
        name: String,
        /// A name like it.
        nearest: Option<String>,
    },
    /// A property has a value that it cannot have.
    #[error("CPU property {property}={value}: expected {expected}")]
    BadValue {
        /// Property.
        property: String,
        /// Value as written.
        value: String,
        /// What would be good.
        expected: String,
    },
    /// The host lacks features of the model.
    #[error("{}", missing_text(model, features, alternatives))]
    Missing {
        /// The processor as asked for.
        model: String,
        /// Names of the features that the host lacks.
        features: Vec<String>,
        /// Models like it that this host can run.
        alternatives: Vec<String>,
    },
    /// A feature was asked for and what it needs was not.
    #[error(
        "CPU feature {feature} cannot be on without {needs}: add +{needs} or take +{feature} away"
    )]
    Conflict {
        /// The feature asked for.
        feature: String,
        /// What it needs and is off.
        needs: String,
    },
    /// Sockets, dies, cores and threads do not fit together or are too many.
    #[error("CPU topology: {0}")]
    Topology(String),
    /// The last processors cannot be addressed.
    #[error(
        "the last of {cpus} CPUs has APIC ID {apic_id}, and {what}: ask for fewer CPUs, or for \
         counts of dies, cores and threads that are powers of two (others leave holes)"
    )]
    Unreachable {
        /// Number of processors asked for.
        cpus: u32,
        /// Highest APIC ID.
        apic_id: u32,
        /// What stands in the way.
        what: String,
    },
    /// More physical address bits than the host has.
    #[error("phys-bits={asked}: this host has {host}")]
    PhysBits {
        /// Asked for.
        asked: u8,
        /// The host's.
        host: u8,
    },
}

pub(crate) fn did_you_mean(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!("; did you mean {name:?}?"),
        None => String::new(),
    }
}

fn missing_text(model: &str, features: &[String], alternatives: &[String]) -> String {
    let list = features.join(", ");
    let without: String = features.iter().map(|f| format!(",-{f}")).collect();
    let what = if features.len() == 1 {
        "a feature"
    } else {
        "features"
    };
    let instead = match alternatives {
        [] => "\"host\"".to_owned(),
        some => format!("{} or \"host\"", some.join(", ")),
    };
    format!(
        "this host cannot give CPU {model}: it lacks {what} of it ({list}); use \
         {model}{without}, or another model such as {instead}"
    )
}

/// The candidate that `name` was probably meant to be; in another case, above all.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str> + Clone,
) -> Option<String> {
    candidates
        .clone()
        .find(|c| c.eq_ignore_ascii_case(name))
        .or_else(|| spec::nearest(name, candidates))
        .map(str::to_owned)
}
