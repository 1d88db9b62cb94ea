use std::io;
use std::path::PathBuf;

/// Why an image could not be opened or changed.
///
/// Failures of single requests are plain [`io::Error`]s: they carry the host's error number
/// (`ENOSPC`, `EIO`, ...), which is what an error policy decides by.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The host did not open the file.
    #[error("cannot open disk image {}{hint}", path.display())]
    Open {
        /// What the user named.
        path: PathBuf,
        /// What the user may do about it.
        hint: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The path leads to something that holds no disk.
    #[error("{} is {what}, not a disk image: give a regular file or a host block device", path.display())]
    NotAnImage {
        /// What the user named.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// There is no byte in it.
    #[error(
        "disk image {} is empty: give it a size first (`truncate -s 10G {}`), or insert a medium",
        path.display(), path.display()
    )]
    Empty {
        /// What the user named.
        path: PathBuf,
    },
    /// Another process uses the image in a way that excludes ours.
    #[error(
        "disk image {} is in use: another process {other}; stop that one first, or open the image \
         with read-only=on in all of them (locking=off overrides this, and two writers destroy a \
         file system)",
        path.display()
    )]
    InUse {
        /// What the user named.
        path: PathBuf,
        /// What the other process does.
        other: &'static str,
    },
    /// The file system cannot lock.
    #[error(
        "cannot lock disk image {}; use locking=auto or locking=off when no other process opens it",
        path.display()
    )]
    Lock {
        /// What the user named.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The format was not given and is probably not raw.
    #[error(
        "disk image {} looks like {looks_like}, and images are not probed, because a guest could \
         write such a header itself; say format=raw if the guest is to see these bytes as they are\
         {hint}",
        path.display()
    )]
    Probe {
        /// What the user named.
        path: PathBuf,
        /// The format whose magic number was found.
        looks_like: &'static str,
        /// What else the user may do.
        hint: &'static str,
    },
    /// A question to the host about an open image failed.
    #[error("cannot {what} {}", path.display())]
    Host {
        /// What was being done: a verb and what follows it.
        what: &'static str,
        /// What the user named.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An image's header names a file that it may not name, or in a way that is not supported.
    #[error("the qcow2 image {} needs {what} {named:?}, {why}", path.display())]
    Reference {
        /// The image.
        path: PathBuf,
        /// What the other file is to the image.
        what: &'static str,
        /// Its name as it is in the header.
        named: String,
        /// Why it is not opened.
        why: String,
    },
    /// Another file of an image could not be opened.
    #[error("cannot open what the qcow2 image {} needs", path.display())]
    Chain {
        /// The image.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<BlockError>,
    },
    /// Something about a qcow2 image.
    #[error("cannot {what} the qcow2 image {}", path.display())]
    Qcow2 {
        /// What was being done: a verb.
        what: &'static str,
        /// What the user named.
        path: PathBuf,
        /// The reason.
        #[source]
        source: crate::qcow2::Qcow2Error,
    },
    /// Something about a LUKS file.
    #[error("cannot {what} the LUKS image {}", path.display())]
    Luks {
        /// What was being done: a verb.
        what: &'static str,
        /// What the user named.
        path: PathBuf,
        /// The reason.
        #[source]
        source: crate::CryptError,
    },
    /// The image cannot have that size.
    #[error("cannot resize {} to {size} bytes: {why}", path.display())]
    Resize {
        /// What the user named.
        path: PathBuf,
        /// The size asked for, in bytes.
        size: u64,
        /// The reason.
        why: String,
    },
    /// There is nothing in the drive.
    #[error("there is no medium in the drive: insert one first")]
    NoMedium,
}
