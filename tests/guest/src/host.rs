//! What is to be had where the tests run, as `cargo xtask guest-tests` tells it in the environment.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, ensure};

/// Kernels, disks and places.
#[derive(Debug)]
pub struct Host {
    /// The program under test.
    pub vireo: PathBuf,
    /// The guest's kernel as an ELF file that boots by PVH.
    pub vmlinux: PathBuf,
    /// The same as a bzImage.
    pub vmlinuz: PathBuf,
    /// Debian's own initramfs.
    pub initrd: PathBuf,
    /// The guest's disk, which several may read at once; nobody writes.
    pub disk: PathBuf,
    /// A folder for big files, on a file system with O_DIRECT.
    pub scratch: PathBuf,
    /// Whether this is the box, where everything takes ten times as long.
    pub boxed: bool,
    /// What executes the guests, as `--accel` takes it.
    pub accel: String,
    /// Folder with the Python package qemu.qmp, where there is one.
    pub python: Option<PathBuf>,
    /// The other guest, with a compiler and more programs, for the scenario that wants it.
    pub programs: Option<Debian>,
}

/// A guest's disk with the kernel and the initramfs that belong to it.
#[derive(Debug)]
pub struct Debian {
    /// The disk, in the raw format; nobody writes.
    pub disk: PathBuf,
    /// The kernel as an ELF file.
    pub vmlinux: PathBuf,
    /// Debian's initramfs.
    pub initrd: PathBuf,
}

fn path(name: &str) -> anyhow::Result<PathBuf> {
    env::var_os(name)
        .map(PathBuf::from)
        .with_context(|| format!("{name} is not set; run the tests by cargo xtask guest-tests"))
}

impl Host {
    fn find() -> anyhow::Result<Self> {
        Ok(Self {
            vireo: path("VIREO_BIN")?,
            vmlinux: path("VIREO_GUEST_VMLINUX")?,
            vmlinuz: path("VIREO_GUEST_VMLINUZ")?,
            initrd: path("VIREO_GUEST_INITRD")?,
            disk: path("VIREO_DRIVE_GUEST")?,
            scratch: path("VIREO_SCRATCH")?,
            boxed: env::var_os("VIREO_KVM_HOST").is_some_and(|value| value == "box"),
            accel: env::var("VIREO_ACCEL").unwrap_or_else(|_| "kvm".to_owned()),
            python: env::var_os("VIREO_PYTHON_QMP").map(PathBuf::from),
            programs: match env::var_os("VIREO_PROGRAMS_DISK") {
                None => None,
                Some(disk) => Some(Debian {
                    disk: disk.into(),
                    vmlinux: path("VIREO_PROGRAMS_VMLINUX")?,
                    initrd: path("VIREO_PROGRAMS_INITRD")?,
                }),
            },
        })
    }

    /// This host.
    ///
    /// # Errors
    /// The tests were not started by `cargo xtask guest-tests`.
    pub fn get() -> anyhow::Result<&'static Self> {
        static HOST: OnceLock<Result<Host, String>> = OnceLock::new();
        HOST.get_or_init(|| Self::find().map_err(|e| format!("{e:#}")))
            .as_ref()
            .map_err(|why| anyhow::anyhow!("{why}"))
    }

    /// A disk with Debian on it for `user` alone, who may write.
    ///
    /// # Errors
    /// The image cannot be copied.
    pub fn writable_disk(&self, user: &str) -> anyhow::Result<PathBuf> {
        let variable = format!(
            "VIREO_DRIVE_{}",
            user.to_ascii_uppercase().replace('-', "_")
        );
        if self.boxed {
            // A throw-away snapshot of its own.
            return path(&variable);
        }
        let copy = self.scratch.join(user);
        let status = Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .args([&self.disk, &copy])
            .status()
            .context("cannot run cp")?;
        ensure!(status.success(), "cannot copy {}", self.disk.display());
        Ok(copy)
    }

    /// An empty file of `size` bytes in the scratch folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn empty_disk(&self, name: &str, size: u64) -> anyhow::Result<PathBuf> {
        let path = self.scratch.join(name);
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(size))
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// A small file in the scratch folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn file(&self, name: &str, contents: &[u8]) -> anyhow::Result<PathBuf> {
        let path = self.scratch.join(name);
        std::fs::write(&path, contents)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The small initramfs (see [`crate::initramfs`]), made once.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn small_initrd(&self) -> anyhow::Result<&'static Path> {
        static INITRD: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        INITRD
            .get_or_init(|| crate::initramfs::build(self).map_err(|e| format!("{e:#}")))
            .as_deref()
            .map_err(|why| anyhow::anyhow!("{why}"))
    }
}
