//! Errors as the user sees them: one line, and an exit status.

use std::process::ExitCode;

use machine::MachineError;

/// What a subcommand comes to.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why the command ends without having done its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was typed makes no sense: status 2.
    Usage(String),
    /// It makes sense and cannot be done: status 1.
    Failed(String),
    /// Everything has been said already.
    Silent(ExitCode),
}

impl Failure {
    /// Tells the user; the process's exit status.
    pub(crate) fn report(self) -> ExitCode {
        let (message, status) = match self {
            Self::Usage(message) => (message, ExitCode::from(2)),
            Self::Failed(message) => (message, ExitCode::FAILURE),
            Self::Silent(status) => return status,
        };
        eprintln!("vireo: {message}");
        status
    }

    /// The same failure with a word in front about where it was.
    pub(crate) fn at(self, place: impl std::fmt::Display) -> Self {
        match self {
            Self::Usage(message) => Self::Usage(format!("{place}: {message}")),
            Self::Failed(message) => Self::Failed(format!("{place}: {message}")),
            Self::Silent(status) => Self::Silent(status),
        }
    }

    /// An error with its causes.
    pub(crate) fn failed(error: &dyn std::error::Error) -> Self {
        Self::Failed(machine::chain(error))
    }
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        let message = machine::chain(&error);
        match error {
            MachineError::Spec(_)
            | MachineError::Description(_)
            | MachineError::ConfigSyntax { .. } => Self::Usage(message),
            _ => Self::Failed(message),
        }
    }
}

impl From<spec::SpecError> for Failure {
    fn from(error: spec::SpecError) -> Self {
        MachineError::from(error).into()
    }
}
