//! A guest image with its kernel and configuration beside it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::progress::{Progress, Stage, Update};
use crate::tree::{Ext4, Tree};
use crate::{DebianGuest, Error, config, vmlinux};

/// How to build.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Replaces outputs that exist.
    pub force: bool,
    /// A directory that keeps downloaded packages for the next build.
    pub package_cache: Option<PathBuf>,
}

/// The names of an image and of the files beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outputs {
    /// The disk: an ext4 file system without a partition table.
    pub image: PathBuf,
    /// The kernel as Debian ships it (bzImage).
    pub vmlinuz: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The uncompressed kernel (ELF with a PVH entry).
    pub vmlinux: PathBuf,
    /// A Vireo configuration that boots the image.
    pub config: PathBuf,
}

/// What [`build`] made.
pub type Built = Outputs;

impl Outputs {
    /// The names for an image at `image`: the others have its name with their own ending.
    ///
    /// # Errors
    /// [`Error::BadOutput`] if the name is no UTF-8 file name or is one of the others'.
    pub fn beside(image: &Path) -> Result<Self, Error> {
        let bad = |reason| Error::BadOutput {
            path: image.to_owned(),
            reason,
        };
        if image.file_name().and_then(OsStr::to_str).is_none() {
            return Err(bad("it must end in a file name in UTF-8"));
        }
        let other = |ending: &str| image.with_extension(ending);
        let outputs = Self {
            image: image.to_owned(),
            vmlinuz: other("vmlinuz"),
            initrd: other("initrd"),
            vmlinux: other("vmlinux"),
            config: other("toml"),
        };
        if outputs.beside_image().contains(&image) {
            return Err(bad(
                "its ending is that of a file beside the image (vmlinuz, initrd, vmlinux, toml)",
            ));
        }
        Ok(outputs)
    }

    fn beside_image(&self) -> [&Path; 4] {
        [&self.vmlinuz, &self.initrd, &self.vmlinux, &self.config]
    }

    /// All five, the image last.
    fn all(&self) -> [&Path; 5] {
        let [a, b, c, d] = self.beside_image();
        [a, b, c, d, &self.image]
    }
}

/// Builds `guest` as a disk image at `output`, with kernel, initramfs and configuration beside it.
///
/// The outputs appear under their names only when all of them are complete, the image last. Needs
/// the network or a filled package cache, about half a minute to two, and the programs mmdebstrap
/// and mke2fs; without root also fakeroot and newuidmap.
///
/// # Errors
/// See [`Error`]: nothing is left behind.
pub fn build(
    guest: &DebianGuest,
    output: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Built, Error> {
    let recipe = guest.recipe()?;
    let outputs = Outputs::beside(output)?;
    if !options.force
        && let Some(path) = outputs
            .all()
            .into_iter()
            .find(|path| path.symlink_metadata().is_ok())
    {
        return Err(Error::OutputExists {
            path: path.to_owned(),
        });
    }
    let directory = output
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let tree = Tree::bootstrap(
        &recipe,
        directory,
        options.package_cache.as_deref(),
        progress,
    )?;

    let mut step = |stage, fraction| {
        progress.update(&Update {
            stage,
            fraction,
            detail: String::new(),
        });
    };
    let work = |path: &Path| {
        tree.work_directory()
            .join(path.file_name().unwrap_or_default())
    };
    step(Stage::FileSystem, 0.90);
    tree.write_ext4(
        &work(&outputs.image),
        &Ext4 {
            size: guest.size,
            label: DebianGuest::LABEL,
        },
    )?;

    step(Stage::Kernel, 0.96);
    let kernel = tree.kernel()?;
    let initrd = kernel.initrd.ok_or(Error::NoKernel {
        what: "initramfs (initrd.img-*)",
    })?;
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, work(to))
            .map(drop)
            .map_err(Error::io("copy", from))
    };
    copy(&kernel.vmlinuz, &outputs.vmlinuz)?;
    copy(&initrd, &outputs.initrd)?;
    vmlinux::extract(&kernel.vmlinuz, &work(&outputs.vmlinux))?;
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let text = config::text(
        &name(&outputs.image),
        &name(&outputs.vmlinux),
        &name(&outputs.initrd),
    );
    let path = work(&outputs.config);
    fs::write(&path, text).map_err(Error::io("write", &path))?;

    for path in outputs.all() {
        fs::rename(work(path), path).map_err(Error::io("create", path))?;
    }
    step(Stage::Done, 1.0);
    Ok(outputs)
}

#[cfg(test)]
mod tests;
