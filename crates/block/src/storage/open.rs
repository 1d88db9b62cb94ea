use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::file::{Abilities, Direct, FileStorage, Image, Kind};
use super::host::{self, Alignment};
use super::lock::{self, LockError, Permissions};
use crate::spec::{Discard, DiskSpec, Locking};
use crate::stripes::Stripes;
use crate::{BlockError, Limits};

/// Stripes of read-modify-writes: bytes of each, more than any block has, and how many.
const STRIPE: u64 = 64 << 10;
const STRIPES: usize = 64;

impl FileStorage {
    /// Opens and locks the file or device that `spec` names.
    ///
    /// # Errors
    /// It does not exist, may not be opened, is nothing that holds a disk, is empty, is used by
    /// another process, or cannot be reached past the page cache although that was asked for.
    pub fn open(spec: &DiskSpec) -> Result<Self, BlockError> {
        let storage = Self::open_any(spec)?;
        match storage.size.load(Ordering::Relaxed) {
            0 => Err(BlockError::Empty {
                path: spec.file.clone(),
            }),
            _ => Ok(storage),
        }
    }

    /// As [`FileStorage::open`], for a file that is made, or emptied when it exists. A device
    /// keeps what it has.
    pub(crate) fn create(spec: &DiskSpec) -> Result<Self, BlockError> {
        if !spec.file.exists() {
            let made = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&spec.file);
            made.map_err(|source| cannot_open(&spec.file, source))?;
        }
        let storage = Self::open_any(spec)?;
        if storage.kind == Kind::File {
            // Only now that it is locked.
            storage
                .image
                .file
                .set_len(0)
                .map_err(|source| cannot_open(&spec.file, source))?;
            storage.size.store(0, Ordering::Relaxed);
        }
        Ok(storage)
    }

    pub(crate) fn open_any(spec: &DiskSpec) -> Result<Self, BlockError> {
        let path = &spec.file;
        // Before it is opened: opening a pipe waits for its other end, and a tape rewinds.
        let metadata = std::fs::metadata(path).map_err(|source| cannot_open(path, source))?;
        kind(path, &metadata)?;
        let file = open(spec)?;
        let metadata = file
            .metadata()
            .map_err(|source| cannot_open(path, source))?;
        // Again: the path may lead elsewhere by now.
        let kind = kind(path, &metadata)?;
        let image = Image {
            locked: lock(spec, &file)?,
            file,
        };
        let file = &image.file;
        let fail = |what| {
            move |source| BlockError::Host {
                what,
                path: path.clone(),
                source,
            }
        };
        let size = match kind {
            Kind::File => Ok(metadata.len()),
            Kind::Device => host::device_size(file),
        }
        .map_err(fail("find out the size of"))?;
        if i64::try_from(size).is_err() {
            return Err(fail("use")(io::ErrorKind::FileTooLarge.into()));
        }
        let direct = match spec.cache.is_direct() {
            false => None,
            true => Some(Direct {
                alignment: host::direct_alignment(file).ok_or_else(|| no_direct(path))?,
                stripes: Stripes::new(STRIPE, STRIPES),
            }),
        };
        let (logical, physical) = match kind {
            Kind::File => (512, 4096),
            Kind::Device => (
                host::logical_block_size(file).map_err(fail("find out the block size of"))?,
                host::physical_block_size(file).map_err(fail("find out the block size of"))?,
            ),
        };
        let alignment = direct.as_ref().map_or(
            Alignment {
                memory: 1,
                request: 1,
            },
            |direct| direct.alignment,
        );
        let unmap = spec.discard == Discard::Unmap && !spec.read_only;
        Ok(Self {
            path: path.clone(),
            image: Arc::new(image),
            kind,
            read_only: spec.read_only,
            aio: spec.aio,
            cache: spec.cache,
            direct,
            unmap,
            limits: Limits {
                request_alignment: alignment.request,
                memory_alignment: alignment.memory,
                logical_block_size: logical,
                physical_block_size: physical.max(logical),
                discard_granularity: physical.max(logical),
                can_discard: unmap,
            },
            size: AtomicU64::new(size),
            can: Abilities::all(),
            lost_writes: AtomicI32::new(0),
        })
    }

    /// The first bytes, for the recognition of other formats.
    pub(crate) fn peek(&self) -> Result<[u8; 16], BlockError> {
        // O_DIRECT wants whole aligned blocks.
        let fail = |source| BlockError::Host {
            what: "read the first bytes of",
            path: self.path.clone(),
            source,
        };
        let mut block = event::IoBuf::zeroed_aligned(4096, 4096)
            .ok_or_else(|| fail(io::ErrorKind::OutOfMemory.into()))?;
        let mut first = [0; 16];
        if let Some(bytes) = block.bytes_mut() {
            self.image.file.read_at(bytes, 0).map_err(fail)?;
            first.copy_from_slice(&bytes[..16]);
        }
        Ok(first)
    }
}

fn kind(path: &Path, metadata: &Metadata) -> Result<Kind, BlockError> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(Kind::File);
    }
    if kind.is_block_device() {
        return Ok(Kind::Device);
    }
    Err(BlockError::NotAnImage {
        path: path.to_owned(),
        what: match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_char_device() => "a character device",
            () if kind.is_fifo() => "a pipe",
            () if kind.is_socket() => "a socket",
            () => "a special file",
        },
    })
}

fn open(spec: &DiskSpec) -> Result<File, BlockError> {
    let direct = if spec.cache.is_direct() {
        libc::O_DIRECT
    } else {
        0
    };
    let options = |flags| {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(!spec.read_only)
            .custom_flags(flags);
        options
    };
    options(direct).open(&spec.file).map_err(|source| {
        // Told apart from other invalid arguments by trying without.
        if source.raw_os_error() == Some(libc::EINVAL)
            && direct != 0
            && options(0).open(&spec.file).is_ok()
        {
            return no_direct(&spec.file);
        }
        cannot_open(&spec.file, source)
    })
}

fn no_direct(path: &Path) -> BlockError {
    BlockError::Open {
        path: path.to_owned(),
        hint: " past the page cache: its file system has no O_DIRECT; use cache=writeback",
        source: io::Error::from_raw_os_error(libc::EINVAL),
    }
}

fn cannot_open(path: &Path, source: io::Error) -> BlockError {
    let hint = match source.kind() {
        io::ErrorKind::NotFound => {
            ": give the path of an existing image (`truncate -s 10G FILE` makes an empty raw one)"
        }
        io::ErrorKind::PermissionDenied => {
            ": this user may not; change its owner or mode, or use read-only=on if it may be read"
        }
        io::ErrorKind::ReadOnlyFilesystem => ": use read-only=on",
        _ => "",
    };
    BlockError::Open {
        path: path.to_owned(),
        hint,
        source,
    }
}

/// Whether the image was locked.
fn lock(spec: &DiskSpec, file: &File) -> Result<bool, BlockError> {
    if spec.locking == Locking::Off {
        return Ok(false);
    }
    let used = match spec.read_only {
        true => Permissions::CONSISTENT_READ,
        false => Permissions::CONSISTENT_READ.and(Permissions::WRITE),
    };
    // As QEMU's disks: whoever would change the size needs to write too.
    let shared = Permissions::CONSISTENT_READ
        .and(Permissions::WRITE_UNCHANGED)
        .and(Permissions::RESIZE);
    match lock::lock(file, used, shared) {
        Ok(()) => Ok(true),
        Err(LockError::InUse(other)) => Err(BlockError::InUse {
            path: spec.file.clone(),
            other,
        }),
        Err(LockError::Host(source)) if spec.locking == Locking::On => Err(BlockError::Lock {
            path: spec.file.clone(),
            source,
        }),
        Err(LockError::Host(source)) => {
            log::warn!(
                "{}: not locked against other processes: {source}",
                spec.file.display()
            );
            Ok(false)
        }
    }
}
