use std::io;
use std::path::PathBuf;

/// Why something about NBD failed.
///
/// Failures of single requests are plain [`io::Error`]s with an error number, as everywhere in
/// the block layer.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// An address is written in a way that is not understood.
    #[error("{given:?} is no address of an NBD server: {why}")]
    Address {
        /// What was said.
        given: String,
        /// What is wrong with it.
        why: String,
    },
    /// No socket there.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The server does not answer.
    #[error("cannot connect to the NBD server at {address}")]
    Connect {
        /// Where.
        address: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The server does not do what the protocol demands.
    #[error("the NBD server at {address} breaks the protocol: {what}")]
    Protocol {
        /// Where.
        address: String,
        /// What it did.
        what: String,
    },
    /// The server does not want.
    #[error("the NBD server at {address} refuses {what}: {why}")]
    Refused {
        /// Where.
        address: String,
        /// What was asked of it.
        what: String,
        /// Its reason.
        why: String,
    },
    /// The export is not what was asked for.
    #[error("the export {name:?} of the NBD server at {address} {why}")]
    Export {
        /// Where.
        address: String,
        /// The export's name.
        name: String,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// There is an export of that name.
    #[error("there is an export named {0:?} already")]
    Exists(String),
    /// There is no export of that name.
    #[error("there is no export named {0:?}")]
    NoExport(String),
    /// Clients use it.
    #[error("the export {name:?} is in use by {clients} clients")]
    InUse {
        /// The export's name.
        name: String,
        /// How many.
        clients: usize,
    },
    /// A name, a description or a bitmap's name cannot be said in the protocol.
    #[error("{what} has to have at most {most} bytes, and no NUL")]
    Name {
        /// Whose.
        what: &'static str,
        /// Bytes.
        most: usize,
    },
    /// A TLS credential is not there or makes no sense.
    #[error("cannot use the TLS credential {}: {why}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No thread to serve on.
    #[error("cannot start a thread")]
    Thread(#[from] event::EventError),
    /// The thread that would know is gone.
    #[error("the thread has ended")]
    Gone(#[from] event::TaskGone),
}
