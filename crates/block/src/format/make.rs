//! Making images.

use std::path::Path;

use event::{IoBuf, WriteFlags};

use super::qcow2::{CreateOptions, Opened, Preallocation, create, preallocate};
use crate::crypt::{self, new_header};
use crate::spec::{DiskSpec, Format};
use crate::storage::{FileStorage, Storage};
use crate::{BlockError, CryptError, NewEncryption, OpenOptions, open_image};

/// Zeros that are written at once.
const PIECE: u64 = 1 << 20;

/// Makes the image that `spec` names, of the format that it says, raw if it says none. On an I/O
/// thread.
///
/// What a qcow2 image gets beside `size` and `preallocation` does not concern a raw one.
///
/// # Errors
/// The options contradict one another, or the host refuses the file or its size.
pub async fn create_image(spec: &DiskSpec, options: &CreateOptions) -> Result<(), BlockError> {
    let failed = |source| BlockError::Qcow2 {
        what: "make",
        path: spec.file.clone(),
        source,
    };
    if spec.format == Some(Format::Luks) {
        return create_luks_file(spec, options).await;
    }
    if spec.format != Some(Format::Qcow2) {
        let storage = FileStorage::create(spec)?;
        storage.resize(options.size).await?;
        return fill(spec, &storage, options).await;
    }
    // Before a file is emptied.
    options.check().map_err(failed)?;
    let data = match &options.data_file {
        None => None,
        Some(name) => {
            let directory = spec.file.parent();
            let name = String::from_utf8_lossy(name).into_owned();
            let data = DiskSpec {
                file: directory.map_or_else(|| name.clone().into(), |d| d.join(&name)),
                ..spec.clone()
            };
            let storage = FileStorage::create(&data)?;
            storage.resize(options.size).await?;
            Some(storage)
        }
    };
    let storage = FileStorage::create(spec)?;
    create(&storage, options).await.map_err(failed)?;
    if options.preallocation == Preallocation::Off && !options.data_file_raw {
        return Ok(());
    }
    let files = Opened {
        image: storage,
        data,
        backing: None,
    };
    preallocate(files, options).await.map_err(failed)
}

/// Makes a LUKS image: nothing of it is stored but the header, or it has its space.
async fn create_luks_file(spec: &DiskSpec, options: &CreateOptions) -> Result<(), BlockError> {
    let failed = |source| BlockError::Luks {
        what: "make",
        path: spec.file.clone(),
        source,
    };
    let Some(new) = &options.encryption else {
        return Err(failed(CryptError::NoKey));
    };
    // Before a file is emptied.
    let header = new_header(new).await.map_err(failed)?;
    let storage = FileStorage::create(spec)?;
    let size = options.size.saturating_add(header.len() as u64);
    storage.resize(size).await?;
    let all = CreateOptions {
        size,
        ..options.clone()
    };
    // Noise that reads as noise: the space is what counts.
    fill(spec, &storage, &all).await?;
    crypt::write(&storage, 0, &header).await.map_err(failed)
}

/// Makes a LUKS image of `size` bytes for its user in a storage, whose content is lost. `path` is
/// for messages.
///
/// # Errors
/// No such header can be made, or the host refuses the size or a write.
pub async fn create_luks<S: Storage>(
    storage: &S,
    path: &Path,
    size: u64,
    new: &NewEncryption,
) -> Result<(), BlockError> {
    let failed = |source| BlockError::Luks {
        what: "make",
        path: path.to_owned(),
        source,
    };
    let header = new_header(new).await.map_err(failed)?;
    let all = size.saturating_add(header.len() as u64);
    storage.resize(all).await?;
    crypt::write(storage, 0, &header).await.map_err(failed)
}

/// Preallocates a raw image.
async fn fill(
    spec: &DiskSpec,
    storage: &FileStorage,
    options: &CreateOptions,
) -> Result<(), BlockError> {
    let failed = |source| BlockError::Host {
        what: "preallocate",
        path: spec.file.clone(),
        source,
    };
    match options.preallocation {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => storage.reserve(0, options.size).await.map_err(failed),
        Preallocation::Full => {
            let mut at = 0;
            while at < options.size {
                let piece = PIECE.min(options.size - at);
                let zeros = IoBuf::zeroed_aligned(piece as usize, 4096)
                    .ok_or_else(|| failed(std::io::ErrorKind::OutOfMemory.into()))?;
                let flags = WriteFlags::default();
                storage.write(zeros, at, flags).await.0.map_err(failed)?;
                at += piece;
            }
            storage.flush().await.map_err(failed)
        }
    }
}

/// Bytes of the disk in an image that somebody names as a backing file.
///
/// # Errors
/// It cannot be opened.
pub async fn image_size(spec: &DiskSpec) -> Result<u64, BlockError> {
    let spec = DiskSpec {
        read_only: true,
        ..spec.clone()
    };
    let options = OpenOptions {
        backing: false,
        metadata_only: true,
        ..OpenOptions::default()
    };
    Ok(open_image(&spec, &options).await?.node().size())
}
