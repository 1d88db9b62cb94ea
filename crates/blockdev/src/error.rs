use std::io;

use block::BlockError;
use qmp::{ErrorClass, QmpError};

/// Why the graph was not changed.
#[derive(Debug, thiserror::Error)]
pub enum BlockdevError {
    /// The options of a node make no sense.
    #[error("{0}")]
    Options(String),
    /// There is no such node.
    #[error("Cannot find node '{0}': see query-named-block-nodes")]
    NoNode(String),
    /// There is neither a device nor a node of that name.
    #[error("Cannot find device='{0}' nor node-name='{0}'")]
    NoDevice(String),
    /// The name is taken.
    #[error("Node name '{0}' is in use already: choose another one")]
    Duplicate(String),
    /// Somebody uses the node.
    #[error("Node '{node}' is busy: {why}")]
    Busy {
        /// The node.
        node: String,
        /// Who, and what for.
        why: String,
    },
    /// It cannot be done with this node.
    #[error("Node '{node}' {why}")]
    Unsuitable {
        /// The node.
        node: String,
        /// What it is or has not: a predicate.
        why: String,
    },
    /// An image could not be opened, made or changed.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The host failed.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A qcow2 image refused.
    #[error("cannot {what} of node '{node}'")]
    Qcow2 {
        /// What was being done.
        what: &'static str,
        /// The node.
        node: String,
        /// The reason.
        #[source]
        source: block::qcow2::Qcow2Error,
    },
    /// A command cannot be done for another reason.
    #[error("{0}")]
    Refused(String),
}

impl BlockdevError {
    pub(crate) fn unsuitable(node: &str, why: impl Into<String>) -> Self {
        Self::Unsuitable {
            node: node.to_owned(),
            why: why.into(),
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl From<BlockdevError> for QmpError {
    fn from(error: BlockdevError) -> Self {
        let class = match &error {
            BlockdevError::NoDevice(_) => ErrorClass::DeviceNotFound,
            _ => ErrorClass::GenericError,
        };
        let mut desc = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let text = cause.to_string();
            // Some repeat their cause.
            if !desc.ends_with(&text) {
                desc.push_str(": ");
                desc.push_str(&text);
            }
            source = cause.source();
        }
        Self { class, desc }
    }
}
