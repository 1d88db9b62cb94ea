//! The unpacked system: made by mmdebstrap, turned into file systems by mke2fs.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;
use tempfile::TempDir;

use crate::log::LogReader;
use crate::program::{self, FAKEROOT, MKE2FS, MMDEBSTRAP, NEWUIDMAP, TAR};
use crate::progress::{Progress, Stage, Update};
use crate::sources::Sources;
use crate::{Error, File, Recipe};

/// Room that mmdebstrap and the work directory each need beyond the packages' own size, in bytes.
const ROOM: u64 = 1 << 30;

/// A system unpacked from a [`Recipe`], in a work directory that disappears with it.
///
/// Not every file need belong to its later owner: without root the ownership stands in fakeroot's
/// database, which [`write_ext4`](Self::write_ext4) reads.
#[derive(Debug)]
pub struct Tree {
    work: TempDir,
    as_root: bool,
}

/// A kernel in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As in `uname -r`.
    pub version: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// The initramfs, if one was made.
    pub initrd: Option<PathBuf>,
}

/// An ext4 file system to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ext4<'a> {
    /// Size in bytes.
    pub size: u64,
    /// Volume label, at most 16 bytes.
    pub label: &'a str,
}

impl Tree {
    /// Builds the system in a work directory made inside `directory`.
    ///
    /// `package_cache` keeps downloaded packages for the next build; it may be shared between
    /// different recipes. Reports go from [`Stage::Download`] to [`Stage::Pack`].
    ///
    /// # Errors
    /// A program that is missing or fails, an unsound recipe, too little room.
    pub fn bootstrap(
        recipe: &Recipe,
        directory: &Path,
        package_cache: Option<&Path>,
        progress: &mut dyn Progress,
    ) -> Result<Self, Error> {
        recipe.check()?;
        progress.update(&Update {
            stage: Stage::Prepare,
            fraction: 0.0,
            detail: String::new(),
        });
        let as_root = geteuid().is_root();
        // Ask for all programs before the long work begins.
        MKE2FS.find()?;
        TAR.find()?;
        let mut command = MMDEBSTRAP.command()?;
        if !as_root {
            FAKEROOT.find()?;
            NEWUIDMAP.find()?;
        }
        check_room(directory, ROOM)?;
        check_room(&std::env::temp_dir(), ROOM)?;

        let work = tempfile::Builder::new()
            .prefix(".image-build-")
            .tempdir_in(directory)
            .map_err(Error::io("create a work directory in", directory))?;
        let tree = Self { work, as_root };
        tree.mmdebstrap(&mut command, recipe, package_cache)?;
        let mut reader = LogReader::default();
        program::run(&mut command, "building the Debian system", &mut |line| {
            if let Some(update) = reader.line(line) {
                progress.update(&update);
            }
        })?;
        tree.unpack()?;
        Ok(tree)
    }

    fn mmdebstrap(
        &self,
        command: &mut Command,
        recipe: &Recipe,
        cache: Option<&Path>,
    ) -> Result<(), Error> {
        let sources = Sources::of_this_machine()?;
        self.write("debian.sources", sources.text.as_bytes())?;
        let work = self.work.path();
        // Hooks split their arguments at blanks: only plain names relative to the work directory.
        command.current_dir(work).stdout(Stdio::null());
        command.args([
            "--variant=minbase",
            "--mode=auto",
            "--format=tar",
            "--verbose",
        ]);
        for option in &recipe.dpkg_options {
            command.arg(format!("--dpkgopt={option}"));
        }
        if !recipe.packages.is_empty() {
            command.arg(format!("--include={}", recipe.packages.join(",")));
        }
        if let Some(cache) = cache {
            fs::create_dir_all(cache).map_err(Error::io("create", cache))?;
            let cache = fs::canonicalize(cache).map_err(Error::io("find", cache))?;
            symlink(&cache, work.join("packages")).map_err(Error::io("link to", &cache))?;
            command.args([
                "--skip=download/empty",
                "--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives/",
                "--setup-hook=sync-in packages /var/cache/apt/archives/",
                // apt forgets the essential packages once they are installed.
                "--essential-hook=sync-out /var/cache/apt/archives packages",
                "--customize-hook=sync-out /var/cache/apt/archives packages",
            ]);
        }
        if !recipe.early_files.is_empty() {
            self.pack("early", &recipe.early_files)?;
            command.arg("--essential-hook=tar-in early.tar /");
        }
        if !recipe.files.is_empty() {
            self.pack("files", &recipe.files)?;
            command.arg("--customize-hook=tar-in files.tar /");
        }
        if !recipe.script.is_empty() {
            command.env("IMAGE_SCRIPT", &recipe.script);
            command.arg("--customize-hook=chroot \"$1\" sh -euc \"$IMAGE_SCRIPT\" >&2");
        }
        command.envs(recipe.environment.iter().map(|(key, value)| (key, value)));
        command.args([sources.suite.as_str(), "tree.tar", "debian.sources"]);
        Ok(())
    }

    /// Writes `files` to `NAME.tar` in the work directory, owned by root.
    fn pack(&self, name: &str, files: &[File]) -> Result<(), Error> {
        let root = self.work.path().join(name);
        let mut list = Vec::new();
        for file in files {
            let relative = file.path.trim_start_matches('/');
            let path = root.join(relative);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            }
            fs::write(&path, &file.contents).map_err(Error::io("write", &path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))
                .map_err(Error::io("set the mode of", &path))?;
            list.extend_from_slice(relative.as_bytes());
            list.push(b'\n');
        }
        let list_name = format!("{name}.list");
        self.write(&list_name, &list)?;
        let mut command = TAR.command()?;
        // Only the files are listed: directories that exist in the image keep their modes.
        command.current_dir(self.work.path()).args([
            "--owner=root:0",
            "--group=root:0",
            "--no-recursion",
        ]);
        command
            .arg(format!("--file={name}.tar"))
            .arg("--create")
            .arg(format!("--directory={name}"));
        command.args([
            "--verbatim-files-from",
            &format!("--files-from={list_name}"),
        ]);
        program::run(&mut command, "packing the recipe's files", &mut |_| {})
    }

    fn write(&self, name: &str, contents: &[u8]) -> Result<(), Error> {
        let path = self.work.path().join(name);
        let mut file = fs::File::create(&path).map_err(Error::io("create", &path))?;
        file.write_all(contents).map_err(Error::io("write", &path))
    }

    fn unpack(&self) -> Result<(), Error> {
        let path = self.path();
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        let mut command = self.with_owners(TAR, "-s")?;
        command.current_dir(self.work.path());
        // The kernel fills /dev itself, and containers may not make device nodes.
        command.args([
            "--extract",
            "--file=tree.tar",
            "--directory=tree",
            "--numeric-owner",
            "--same-permissions",
        ]);
        command.arg("--exclude=./dev/*");
        if self.as_root {
            // fakeroot's database loses the type of a file whose extended attributes are set. All
            // that is lost without them is that users may ping (a file capability).
            command.args(["--xattrs", "--xattrs-include=*"]);
        }
        program::run(&mut command, "unpacking the Debian system", &mut |_| {})?;
        let tar = self.work.path().join("tree.tar");
        fs::remove_file(&tar).map_err(Error::io("remove", &tar))
    }

    /// A command that sees every file's later owner; `mode` saves (-s) or loads (-i) fakeroot's
    /// database.
    fn with_owners(&self, program: program::Program, mode: &str) -> Result<Command, Error> {
        if self.as_root {
            return program.command();
        }
        let path = program.find()?;
        let mut command = FAKEROOT.command()?;
        command
            .arg(mode)
            .arg(self.work.path().join("owners"))
            .arg("--")
            .arg(path);
        Ok(command)
    }

    /// The root of the unpacked system. Files may be read; changes reach the file systems written
    /// later.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.work.path().join("tree")
    }

    /// The work directory around the tree, for files that are to be renamed to their final place.
    #[must_use]
    pub fn work_directory(&self) -> &Path {
        self.work.path()
    }

    /// The kernel that the system would boot.
    ///
    /// # Errors
    /// [`Error::NoKernel`] if there is none.
    pub fn kernel(&self) -> Result<Kernel, Error> {
        find_kernel(&self.path().join("boot"))
    }

    /// Writes the whole tree as an ext4 file system into the sparse file `path`.
    ///
    /// # Errors
    /// [`Error::TooSmall`] if the tree does not fit into `file_system.size`; mke2fs's own troubles.
    pub fn write_ext4(&self, path: &Path, file_system: &Ext4<'_>) -> Result<(), Error> {
        let tree = self.path();
        let used = disk_usage(&tree).map_err(Error::io("measure", &tree))?;
        // Inode tables, the journal and reserved blocks take their share.
        let need = used + used / 8 + (48 << 20);
        if file_system.size < need {
            return Err(Error::TooSmall {
                size: file_system.size,
                need,
            });
        }
        let directory = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        check_room(directory, used)?;
        let mut command = self.with_owners(MKE2FS, "-i")?;
        command.args(["-q", "-F", "-t", "ext4", "-m", "1", "-L", file_system.label]);
        // The file is new and sparse: it reads as zeroes, so nothing is left for the guest to zero.
        command
            .args(["-E", "assume_storage_prezeroed=1", "-d"])
            .arg(&tree);
        command
            .arg(path)
            .arg(format!("{}k", file_system.size >> 10))
            .stdout(Stdio::null());
        program::run(&mut command, "writing the file system", &mut |_| {})
    }
}

/// The kernel that `boot`'s parent links to as /vmlinuz, or else the last one by name.
fn find_kernel(boot: &Path) -> Result<Kernel, Error> {
    const PREFIX: &str = "vmlinuz-";
    let mut versions = Vec::new();
    for entry in fs::read_dir(boot).map_err(Error::io("list", boot))? {
        let name = entry.map_err(Error::io("list", boot))?.file_name();
        if let Some(version) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) {
            versions.push(version.to_owned());
        }
    }
    versions.sort();
    let linked = boot
        .parent()
        .and_then(|root| fs::read_link(root.join("vmlinuz")).ok())
        .and_then(|link| {
            link.file_name()?
                .to_str()?
                .strip_prefix(PREFIX)
                .map(str::to_owned)
        })
        .filter(|version| versions.contains(version));
    let version = linked.or_else(|| versions.pop()).ok_or(Error::NoKernel {
        what: "kernel (vmlinuz-*)",
    })?;
    let initrd = boot.join(format!("initrd.img-{version}"));
    Ok(Kernel {
        vmlinuz: boot.join(format!("{PREFIX}{version}")),
        initrd: initrd.is_file().then_some(initrd),
        version,
    })
}

/// Bytes that a directory's files take on a file system with blocks of 4 KiB.
fn disk_usage(directory: &Path) -> io::Result<u64> {
    let mut total = 4096;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += if metadata.is_dir() {
            disk_usage(&entry.path())?
        } else if metadata.is_file() && metadata.nlink() == 1 {
            metadata.len().next_multiple_of(4096)
        } else {
            // Hard links share their blocks; what little they count for hides in the reserve.
            0
        };
    }
    Ok(total)
}

fn check_room(directory: &Path, need: u64) -> Result<(), Error> {
    let stat = statvfs(directory)
        .map_err(|errno| Error::io("look for room in", directory)(errno.into()))?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    if free < need {
        return Err(Error::NoSpace {
            path: directory.to_owned(),
            need,
            free,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
