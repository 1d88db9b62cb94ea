use std::path::PathBuf;

use accel::AccelError;
use memory::MemoryError;
use spec::SpecError;

/// Why a machine could not be made, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// What the user described makes no sense.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Two statements contradict each other, or one is missing.
    #[error("{0}")]
    Description(String),
    /// The configuration file cannot be read.
    #[error("cannot read the configuration {path}")]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The configuration file is no TOML.
    #[error("{path} is not valid TOML: {why}")]
    ConfigSyntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        why: String,
    },
    /// The accelerator.
    #[error(transparent)]
    Accelerator(#[from] AccelError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A device could not be made.
    #[error("{device}{}: cannot {what}", id.as_ref().map(|id| format!(" {id:?}")).unwrap_or_default())]
    Device {
        /// Device type.
        device: &'static str,
        /// The user's name for it.
        id: Option<String>,
        /// What was being done.
        what: &'static str,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A step of building or running the machine failed.
    #[error("cannot {what}")]
    Step {
        /// What was being done.
        what: String,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl MachineError {
    /// Wraps the failure of a step.
    pub(crate) fn step<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let what = what.into();
        move |source| Self::Step {
            what,
            source: source.into(),
        }
    }

    /// Wraps the failure of a device.
    pub(crate) fn device<E>(
        device: &'static str,
        id: Option<&str>,
        what: &'static str,
    ) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let id = id.map(str::to_owned);
        move |source| Self::Device {
            device,
            id,
            what,
            source: source.into(),
        }
    }
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // A transparent wrapper repeats its source's words.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}
