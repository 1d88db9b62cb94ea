use serde::Serialize;

/// Class of an error, for programs (QMP specification section 2.4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ErrorClass {
    /// Everything that a program need not tell apart.
    GenericError,
    /// The command does not exist, or not in this state of the session.
    CommandNotFound,
    /// The device is not active (balloon without a driver).
    DeviceNotActive,
    /// The device does not exist.
    DeviceNotFound,
    /// The accelerator cannot do it.
    KVMMissingCap,
}

/// A failed command: a class for programs, words for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{desc}")]
pub struct QmpError {
    /// Class.
    pub class: ErrorClass,
    /// What is wrong, with the value, and what to do.
    pub desc: String,
}

impl QmpError {
    /// An error of class GenericError.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::GenericError,
            desc: desc.into(),
        }
    }

    /// An error of class CommandNotFound.
    pub fn no_command(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::CommandNotFound,
            desc: desc.into(),
        }
    }

    /// An error of class DeviceNotFound.
    #[must_use]
    pub fn no_device(id: &str) -> Self {
        Self {
            class: ErrorClass::DeviceNotFound,
            desc: format!("Device '{id}' not found"),
        }
    }
}
