//! What an image consists of.

use crate::Error;

/// A file that the recipe puts into the image, owned by root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Absolute path inside the image; missing parent directories are made.
    pub path: String,
    /// Permission bits, for example `0o644`.
    pub mode: u32,
    /// The contents.
    pub contents: Vec<u8>,
}

impl File {
    /// A plain file that everyone may read (mode 0644).
    pub fn new(path: impl Into<String>, contents: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            mode: 0o644,
            contents: contents.into(),
        }
    }

    /// The same file with other permission bits.
    #[must_use]
    pub fn with_mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }
}

/// A Debian system: packages, files and a script.
///
/// The system holds Debian's required packages, apt, and [`packages`](Self::packages) with their
/// dependencies but without recommendations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// Debian package names.
    pub packages: Vec<String>,
    /// Files that are there before `packages` are configured, for settings which their maintainer
    /// scripts read.
    pub early_files: Vec<File>,
    /// Files that are put in once all packages are configured.
    pub files: Vec<File>,
    /// A script for `sh -eu`, run inside the image after `files` are there; may be empty.
    pub script: String,
    /// Environment of the maintainer scripts and of `script`. This is also how secrets reach the
    /// script: they never stand on a command line.
    pub environment: Vec<(String, String)>,
    /// Options for dpkg, for example `path-exclude=/usr/share/doc/*`; they stay in the image.
    pub dpkg_options: Vec<String>,
}

impl Recipe {
    /// Checks everything that reaches a program's arguments.
    ///
    /// # Errors
    /// [`Error::BadRecipe`] for a package name that Debian does not allow (Debian policy section
    /// 5.6.1) or for a file path that is not absolute or climbs out of the image.
    pub fn check(&self) -> Result<(), Error> {
        for package in &self.packages {
            let mut bytes = package.bytes();
            let first_is_fine = bytes
                .next()
                .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            let rest_is_fine = bytes.all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.')
            });
            if !first_is_fine || !rest_is_fine || package.len() < 2 {
                return Err(Error::BadRecipe {
                    field: "package",
                    value: package.clone(),
                    reason: "a Debian package name has two or more of a-z, 0-9, +, - and .",
                });
            }
        }
        for file in self.early_files.iter().chain(&self.files) {
            let inside = file.path.strip_prefix('/').is_some_and(|rest| {
                !rest.is_empty() && rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
            });
            // tar reads the names one a line.
            if !inside || file.path.contains('\n') {
                return Err(Error::BadRecipe {
                    field: "file",
                    value: file.path.clone(),
                    reason: "the path must be absolute and plain",
                });
            }
        }
        Ok(())
    }

    /// A text that differs whenever the image would: the key for a cache of built images.
    ///
    /// It contains [`environment`](Self::environment) as it is: hash it, do not show it. Package
    /// versions are not part of it: a cache keeps an image until its recipe changes.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!("{} {self:?}", env!("CARGO_PKG_VERSION"))
    }
}

#[cfg(test)]
mod tests;
