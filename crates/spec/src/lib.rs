//! What a user may say about a part of the machine, declared once beside the part.
//!
//! A [`spec!`] is a plain struct whose fields are properties with a name, a type, a default and
//! a help text. The command line (`--disk file=a.img,cache=none`), the configuration file
//! (TOML), `device_add` (JSON), `vireo devices` and the documentation all derive from it.
//!
//! ```text
//!   "file=a.img,cache=none" ─┐
//!   [[disk]] file = "a.img" ─┼─▶ [Properties] ─▶ Spec::from_properties ─▶ BlkSpec { .. }
//!   {"file": "a.img"}       ─┘                        └─ unknown name: the nearest known one
//! ```
//!
//! ```
//! spec::choice! {
//!     /// How writes reach the disk.
//!     pub enum Cache {
//!         /// Through the host's page cache.
//!         Writeback = "writeback",
//!         /// Past the host's page cache (O_DIRECT).
//!         None = "none",
//!     }
//! }
//! spec::spec! {
//!     /// A disk.
//!     pub struct DiskSpec("disk") {
//!         /// Path of the image.
//!         file: std::path::PathBuf,
//!         /// How writes reach the disk.
//!         cache: Cache = Cache::Writeback,
//!         /// Number of request queues.
//!         num_queues: u16 = 1,
//!     }
//! }
//! use spec::Spec;
//! let disk = DiskSpec::parse("file=a.img,cache=none").unwrap();
//! assert_eq!(disk.num_queues, 1);
//! assert_eq!(DiskSpec::parse("file=a.img,cahce=none").unwrap_err().to_string(),
//!     r#"disk: unknown property "cahce"; did you mean "cache"?"#);
//! ```

mod field;
mod macros;
mod properties;
#[cfg(test)]
mod tests;

pub use field::{Field, Size};
pub use properties::{Properties, Value};

/// A property as help and documentation show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Name as the user writes it.
    pub name: String,
    /// Its type in words: `"size"`, `"on|off"`, `"writeback|none"`.
    pub kind: String,
    /// The default as text; `None` when the property must be given or is simply absent.
    pub default: Option<String>,
    /// Whether it must be given.
    pub required: bool,
    /// What it does, with its unit.
    pub help: String,
}

/// Why a description was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No such property.
    #[error("{spec}: unknown property {name:?}{}", suggestion(.nearest.as_deref(), .known))]
    Unknown {
        /// Which spec.
        spec: &'static str,
        /// What was written.
        name: String,
        /// The nearest known name, when one is near.
        nearest: Option<String>,
        /// All known names.
        known: Vec<String>,
    },
    /// A value is not of its property's type.
    #[error("{spec}: {name}={value}: {why}")]
    Bad {
        /// Which spec.
        spec: &'static str,
        /// Which property.
        name: String,
        /// What was written.
        value: String,
        /// What is wrong with it, and what is right.
        why: String,
    },
    /// A property that has no default is missing.
    #[error("{spec}: property {name:?} is missing ({help})")]
    Missing {
        /// Which spec.
        spec: &'static str,
        /// Which property.
        name: String,
        /// What it is for.
        help: String,
    },
    /// The text is not `name=value,...`.
    #[error("{spec}: {text:?}: {why}")]
    Syntax {
        /// Which spec.
        spec: &'static str,
        /// What was written.
        text: String,
        /// What is wrong with it.
        why: String,
    },
}

fn suggestion(nearest: Option<&str>, known: &[String]) -> String {
    match nearest {
        Some(name) => format!("; did you mean {name:?}?"),
        None => format!("; known are {}", known.join(", ")),
    }
}

/// A description of a part of the machine, made by [`spec!`].
pub trait Spec: Sized {
    /// Name of the part: `"virtio-blk"`.
    const NAME: &'static str;
    /// What the part is.
    const HELP: &'static str;

    /// The properties in the order of their declaration.
    fn properties() -> Vec<Property>;

    /// Makes the struct out of what the user said.
    ///
    /// # Errors
    /// An unknown, missing or ill-typed property.
    fn from_properties(given: Properties) -> Result<Self, SpecError>;

    /// The properties that differ from "absent", so that a running machine can be described.
    fn to_properties(&self) -> Properties;

    /// Parses `name=value,name=value`; a comma inside a value is written twice. The first item
    /// may leave out its name when it is the spec's first property: `a.img,cache=none`.
    ///
    /// # Errors
    /// As [`Spec::from_properties`], and text that is not of this form.
    fn parse(text: &str) -> Result<Self, SpecError> {
        let first = Self::properties().first().map(|p| p.name.clone());
        let given = Properties::parse(Self::NAME, first.as_deref(), text)?;
        Self::from_properties(given)
    }
}

/// The name among `known` that `name` was probably meant to be: at most a third of its letters
/// differ.
#[must_use]
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`: the optimal string
/// alignment distance.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let replace = last[j] + usize::from(ca != cb);
            let mut best = replace.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *ca == b[j - 1] && a[i - 1] == *cb {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[doc(hidden)]
pub mod __private {
    pub use super::properties::{help, take};
}
