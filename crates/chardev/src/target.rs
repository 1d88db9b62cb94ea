use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use spec::{Field, Value};

/// Where a chardev leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The process's standard input and output; a terminal is set to raw mode, and Ctrl-] there
    /// leaves.
    Stdio,
    /// Output to a file, which is emptied first; no input.
    File(PathBuf),
    /// A new pseudo-terminal, whose name is logged.
    Pty,
    /// A unix socket to listen at, one client at a time.
    Unix(PathBuf),
    /// Nowhere.
    Null,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, path) = text.split_once(':').unwrap_or((text, ""));
        match (kind, path) {
            ("stdio", "") => Ok(Self::Stdio),
            ("pty", "") => Ok(Self::Pty),
            ("null", "") => Ok(Self::Null),
            ("file", path) if !path.is_empty() => Ok(Self::File(path.into())),
            ("unix", path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err("expected stdio, file:PATH, pty, unix:PATH or null".into()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Pty => f.write_str("pty"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Null => f.write_str("null"),
        }
    }
}

impl Field for Target {
    fn kind() -> String {
        "stdio|file:PATH|pty|unix:PATH|null".into()
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        value.to_string().parse()
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Text(self.to_string()))
    }
}
