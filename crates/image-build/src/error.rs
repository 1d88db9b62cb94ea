//! The crate's error type.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that the build runs is not installed.
    #[error("{program} is not installed; on Debian: apt-get install {package}")]
    MissingProgram {
        /// The program's name.
        program: &'static str,
        /// The Debian package that brings it.
        package: &'static str,
    },
    /// An output file is there already and overwriting was not asked for.
    #[error("{} exists already; choose another name or ask to overwrite it (--force)", path.display())]
    OutputExists {
        /// The file.
        path: PathBuf,
    },
    /// The output's name leaves no room for the files beside it.
    #[error("{} is no name for an image: {reason}", path.display())]
    BadOutput {
        /// The name given.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A directory's file system is too full to begin.
    #[error(
        "not enough room in {}: the build needs about {} MiB and {} MiB are free",
        path.display(), need >> 20, free >> 20
    )]
    NoSpace {
        /// The directory.
        path: PathBuf,
        /// Bytes needed.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// The image's size cannot hold the system.
    #[error("an image of {} MiB is too small: the system needs at least {} MiB", size >> 20, (need >> 20) + 1)]
    TooSmall {
        /// Bytes asked for.
        size: u64,
        /// Bytes needed.
        need: u64,
    },
    /// The recipe holds something that cannot work.
    #[error("{field} {value:?}: {reason}")]
    BadRecipe {
        /// Which part of the recipe.
        field: &'static str,
        /// The offending value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A program that the build runs failed.
    #[error("{what} failed: {program} ended with {status}; its last words:\n{tail}")]
    Program {
        /// What the program was to do.
        what: &'static str,
        /// The program's name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it printed.
        tail: String,
    },
    /// The finished tree holds no kernel, or no initramfs though the recipe asks for one.
    #[error("no {what} in the image's /boot; does the recipe install a kernel package?")]
    NoKernel {
        /// What is missing.
        what: &'static str,
    },
    /// A kernel image could not be taken apart.
    #[error("cannot extract vmlinux from {}: {reason}", path.display())]
    BadKernel {
        /// The bzImage.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What we were doing.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: wraps an [`io::Error`] with what we were doing to which file.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
