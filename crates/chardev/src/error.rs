use std::io;
use std::path::PathBuf;

/// Why a chardev could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ChardevError {
    /// A file or socket.
    #[error("cannot {what} {path}")]
    Path {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The terminal or a pty.
    #[error("cannot {what}")]
    Terminal {
        /// What was being done.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}
