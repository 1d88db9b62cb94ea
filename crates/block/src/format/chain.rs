//! From a description to a node: recognising formats, and opening what images refer to.
//!
//! Whoever made an image chose the names in its header; it may have been a guest, who would like
//! to see the host's files. So a name leads to a file only through the [`Gate`], and what a file's
//! bytes look like decides nothing unless its name agrees.

use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use event::{IoThread, IoThreadConfig};
use luks::{LuksError, Passphrase};

use super::Raw;
use super::qcow2::{Opened, Qcow2, Qcow2Error, Qcow2Options, References};
use crate::crypt::{self, EraseKey, key_of};
use crate::graph::Vertex;
use crate::spec::{BackingFiles, DiskSpec, Format};
use crate::storage::{AnyStorage, Encrypted, FileStorage, Storage};
use crate::{BlockError, CryptError, Node};

/// Formats that are recognised.
const MAGIC: [(&[u8], &str); 7] = [
    (QCOW2, "a qcow2 image"),
    (LUKS, "a LUKS image"),
    (b"QED\0", "a QED image"),
    (b"KDMV", "a VMDK image"),
    (b"# Disk Descripto", "a VMDK descriptor"),
    (b"vhdxfile", "a VHDX image"),
    (b"conectix", "a VHD image"),
];
const QCOW2: &[u8] = b"QFI\xfb";
const LUKS: &[u8] = b"LUKS\xba\xbe";

/// Images below one another.
const MAX_DEPTH: usize = 200;

/// How to open an image beside what its description says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// Open the backing file too; without it, what the image does not have reads as zeros.
    pub backing: bool,
    /// Count references anew when the image was not closed.
    pub repair_dirty: bool,
    /// Open for writing what is marked corrupt or dirty, in order to repair it.
    pub ignore_marks: bool,
    /// An encrypted image opens without its passphrase; its data is then out of reach.
    pub metadata_only: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            backing: true,
            repair_dirty: true,
            ignore_marks: false,
            metadata_only: false,
        }
    }
}

/// An open image.
#[derive(Clone)]
pub enum Image {
    /// A raw one.
    Raw(Arc<Raw<AnyStorage>>),
    /// A qcow2 one.
    Qcow2(Arc<Qcow2<AnyStorage>>),
    /// A LUKS one.
    Luks(Arc<Raw<Encrypted<AnyStorage>>>),
}

impl Image {
    /// The disk in it.
    #[must_use]
    pub fn node(&self) -> Arc<dyn Node> {
        match self {
            Self::Raw(raw) => Arc::<Raw<AnyStorage>>::clone(raw),
            Self::Qcow2(qcow2) => Arc::<Qcow2<AnyStorage>>::clone(qcow2),
            Self::Luks(luks) => Arc::<Raw<Encrypted<AnyStorage>>>::clone(luks),
        }
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> Format {
        match self {
            Self::Raw(_) => Format::Raw,
            Self::Qcow2(_) => Format::Qcow2,
            Self::Luks(_) => Format::Luks,
        }
    }
}

/// The passphrases of an encrypted image. It is open for writing, and nothing else changes them.
impl Image {
    /// The storage with the LUKS header, and where that begins.
    fn luks_header(&self) -> Result<(&AnyStorage, u64), CryptError> {
        let found = match self {
            Self::Raw(_) => None,
            Self::Qcow2(qcow2) => qcow2.luks_header().map(|at| (qcow2.storage(), at)),
            Self::Luks(luks) => Some((luks.storage().storage(), 0)),
        };
        found.ok_or_else(|| LuksError::NotLuks.into())
    }

    /// Lets another passphrase open the image, beside a known one: in this key slot, or in the
    /// first that is free. `iter_time` is how long trying it is to take. Which slot it has.
    ///
    /// # Errors
    /// There is no LUKS header; `known` opens no slot; the slot is in use, or all are; the host
    /// fails.
    pub async fn add_key(
        &self,
        known: &Passphrase,
        new: &Passphrase,
        slot: Option<usize>,
        iter_time: Duration,
    ) -> Result<usize, CryptError> {
        let (storage, at) = self.luks_header()?;
        crypt::add_key(storage, at, known, new, slot, iter_time).await
    }

    /// Takes passphrases away, and overwrites their key material. The last slot in use is kept
    /// unless `force`: nobody could decrypt the image again. Which slots were erased.
    ///
    /// # Errors
    /// There is no LUKS header; there is no such slot in use, or it is the last one; the host
    /// fails.
    pub async fn erase_key(
        &self,
        which: EraseKey<'_>,
        force: bool,
    ) -> Result<Vec<usize>, CryptError> {
        let (storage, at) = self.luks_header()?;
        crypt::erase_key(storage, at, which, force).await
    }
}

/// An open image by itself, and the file below it.
pub struct Layer {
    /// The image; its backing edge leads nowhere yet.
    pub image: Image,
    /// How to open its backing file, if its header names one and it may be opened.
    pub below: Option<DiskSpec>,
}

/// Opens the disk that `spec` describes. Blocks until that is done.
///
/// # Errors
/// See [`BlockError`]: each names the path and says what to do.
pub fn open(spec: &DiskSpec) -> Result<Arc<dyn Node>, BlockError> {
    let storage = FileStorage::open(spec)?;
    if format(spec, storage.peek()?)? == Format::Raw {
        return Ok(Arc::new(Raw::new(node_name(spec), storage)));
    }
    let failed = |source| BlockError::Host {
        what: "start a thread to open",
        path: spec.file.clone(),
        source,
    };
    let config = IoThreadConfig {
        // Repairs go deep.
        stack_size: 2 << 20,
        ..IoThreadConfig::new("open")
    };
    let thread = IoThread::spawn(config).map_err(|error| failed(std::io::Error::other(error)))?;
    let task = spec.clone();
    let opened = thread.spawn_task(move || async move {
        let options = OpenOptions::default();
        let image = open_below(&task, Some(storage.into()), &options, &mut Vec::new()).await?;
        Ok(image.node())
    });
    opened
        .join()
        .unwrap_or_else(|gone| Err(failed(std::io::Error::other(gone))))
}

/// As [`open`], on an I/O thread, with the format in sight.
///
/// # Errors
/// As [`open`].
pub async fn open_image(spec: &DiskSpec, options: &OpenOptions) -> Result<Image, BlockError> {
    open_below(spec, None, options, &mut Vec::new()).await
}

/// Opens the file that `spec` names, without regard to its format; it may be empty.
///
/// # Errors
/// As [`open`].
pub fn open_storage(spec: &DiskSpec) -> Result<AnyStorage, BlockError> {
    FileStorage::open_any(spec).map(AnyStorage::from)
}

/// Opens the image that `spec` describes without its backing file; `storage` and `data` are its
/// files where these are open already. On an I/O thread.
///
/// # Errors
/// As [`open`].
pub async fn open_layer(
    spec: &DiskSpec,
    storage: Option<AnyStorage>,
    data: Option<AnyStorage>,
    options: &OpenOptions,
) -> Result<Layer, BlockError> {
    open_layer_with_key(spec, storage, data, None, options).await
}

/// As [`open_layer`]; `key` is the passphrase of an encrypted image, in place of the one in its
/// description's key file.
///
/// # Errors
/// As [`open`].
pub async fn open_layer_with_key(
    spec: &DiskSpec,
    storage: Option<AnyStorage>,
    data: Option<AnyStorage>,
    key: Option<Passphrase>,
    options: &OpenOptions,
) -> Result<Layer, BlockError> {
    let storage = match storage {
        Some(storage) => storage,
        None => open_storage(spec)?,
    };
    if Storage::size(&storage) == 0 {
        return Err(BlockError::Empty {
            path: spec.file.clone(),
        });
    }
    match format_of(spec, &storage).await? {
        Format::Raw => Ok(Layer {
            image: Image::Raw(Arc::new(Raw::new(node_name(spec), storage))),
            below: None,
        }),
        Format::Qcow2 => qcow2(spec, storage, data, key, options).await,
        Format::Luks => Ok(Layer {
            image: Image::Luks(luks(spec, storage, key, options).await?),
            below: None,
        }),
    }
}

/// The passphrase of an image: the one that is given, or that of a file.
fn key_for(spec: &DiskSpec, key: Option<Passphrase>) -> Result<Option<Passphrase>, BlockError> {
    key.map_or_else(|| key_of(spec), |key| Ok(Some(key)))
}

async fn luks(
    spec: &DiskSpec,
    storage: AnyStorage,
    key: Option<Passphrase>,
    options: &OpenOptions,
) -> Result<Arc<Raw<Encrypted<AnyStorage>>>, BlockError> {
    let failed = |source| BlockError::Luks {
        what: "open",
        path: spec.file.clone(),
        source,
    };
    let key = key_for(spec, key)?;
    if key.is_none() && !options.metadata_only {
        return Err(failed(CryptError::NoKey));
    }
    let opened = Encrypted::open(storage, key.as_ref()).await;
    let storage = opened.map_err(failed)?;
    Ok(Arc::new(Raw::encrypted(node_name(spec), storage)))
}

/// A file for a new image, empty. One that exists loses its content.
///
/// # Errors
/// It cannot be made, or another process uses it.
pub fn create_file(spec: &DiskSpec) -> Result<FileStorage, BlockError> {
    FileStorage::create(spec)
}

fn node_name(spec: &DiskSpec) -> String {
    let path = || spec.file.display().to_string();
    spec.node_name.clone().unwrap_or_else(path)
}

async fn format_of(spec: &DiskSpec, storage: &AnyStorage) -> Result<Format, BlockError> {
    match (spec.format, storage) {
        (Some(format), _) => Ok(format),
        (None, AnyStorage::File(file)) => format(spec, file.peek()?),
        (None, AnyStorage::Other(_)) => {
            let failed = |source| BlockError::Host {
                what: "read the first bytes of",
                path: spec.file.clone(),
                source,
            };
            let mut first = storage.first_bytes().await.map_err(failed)?;
            first.resize(16, 0);
            format(spec, first.try_into().unwrap_or_default())
        }
    }
}

/// The format that the user said, or the one that name and content agree on.
fn format(spec: &DiskSpec, first: [u8; 16]) -> Result<Format, BlockError> {
    if let Some(format) = spec.format {
        return Ok(format);
    }
    let found = MAGIC.iter().find(|(magic, _)| first.starts_with(magic));
    let named_qcow2 = spec.file.extension() == Some(OsStr::new("qcow2"));
    match found {
        Some((magic, _)) if named_qcow2 && *magic == QCOW2 => Ok(Format::Qcow2),
        None if named_qcow2 => Err(BlockError::Qcow2 {
            what: "open (or say format=raw)",
            path: spec.file.clone(),
            source: Qcow2Error::NotQcow2,
        }),
        None => Ok(Format::Raw),
        Some((magic, looks_like)) => Err(BlockError::Probe {
            path: spec.file.clone(),
            looks_like,
            hint: match *magic {
                QCOW2 => ", and format=qcow2 if it is a qcow2 image",
                LUKS => ", and format=luks,key-file=FILE if it is to be decrypted here",
                _ => "",
            },
        }),
    }
}

type Opening<'a> = Pin<Box<dyn Future<Output = Result<Image, BlockError>> + 'a>>;

/// Opens an image and what is below it; `above` are the files whose backing files led here.
fn open_below<'a>(
    spec: &'a DiskSpec,
    storage: Option<AnyStorage>,
    options: &'a OpenOptions,
    above: &'a mut Vec<PathBuf>,
) -> Opening<'a> {
    Box::pin(async move {
        let Layer { image, below } = open_layer(spec, storage, None, options).await?;
        if let (Image::Qcow2(qcow2), Some(below)) = (&image, below)
            && options.backing
        {
            let gate = Gate { spec };
            above.push(canonical(&spec.file));
            if above.contains(&canonical(&below.file)) || above.len() > MAX_DEPTH {
                let why = "which leads back to itself, or too deep".to_owned();
                let named = below.file.as_os_str().as_bytes();
                return Err(gate.refuse("the backing file", named, why));
            }
            // A file below is read, whatever is done to the one above.
            let options = OpenOptions {
                metadata_only: options.metadata_only,
                ..OpenOptions::default()
            };
            let opened = open_below(&below, None, &options, above).await;
            let node = opened.map_err(gate.chain())?.node();
            qcow2.backing().lead(Some(Vertex::new(node.name(), node)));
        }
        Ok(image)
    })
}

async fn qcow2(
    spec: &DiskSpec,
    storage: AnyStorage,
    data: Option<AnyStorage>,
    key: Option<Passphrase>,
    options: &OpenOptions,
) -> Result<Layer, BlockError> {
    let failed = |source| BlockError::Qcow2 {
        what: "open",
        path: spec.file.clone(),
        source,
    };
    let references = References::read(&storage).await.map_err(failed)?;
    let gate = Gate { spec };
    let data = match (&references.data_file, references.needs_data_file, data) {
        (_, false, _) => None,
        (_, true, Some(data)) => Some(data),
        (None, true, None) => return Err(failed(Qcow2Error::NoDataFile)),
        (Some(named), true, None) => {
            let file = gate.pass("the external data file", named)?;
            let spec = DiskSpec {
                file,
                format: Some(Format::Raw),
                ..spec.clone()
            };
            Some(open_storage(&spec).map_err(gate.chain())?)
        }
    };
    let below = match &references.backing_file {
        Some(named) if options.backing => {
            let (file, format) = gate.backing(named, references.backing_format.as_deref())?;
            Some(DiskSpec {
                file,
                format,
                read_only: true,
                node_name: None,
                ..spec.clone()
            })
        }
        _ => None,
    };
    let files = Opened {
        image: storage,
        data,
        backing: None,
    };
    let qcow2_options = Qcow2Options {
        l2_cache: spec.l2_cache_size.0,
        refcount_cache: spec.refcount_cache_size.0,
        discard: spec.discard,
        discard_no_unref: spec.discard_no_unref,
        repair_dirty: options.repair_dirty,
        ignore_marks: options.ignore_marks,
        key: key_for(spec, key)?,
        metadata_only: options.metadata_only,
    };
    let image = Qcow2::open(node_name(spec), files, qcow2_options).await;
    Ok(Layer {
        image: Image::Qcow2(Arc::new(image.map_err(failed)?)),
        below,
    })
}

fn canonical(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Says which files the header of an image may name.
struct Gate<'a> {
    /// The image.
    spec: &'a DiskSpec,
}

impl Gate<'_> {
    fn refuse(&self, what: &'static str, named: &[u8], why: String) -> BlockError {
        BlockError::Reference {
            path: self.spec.file.clone(),
            what,
            named: String::from_utf8_lossy(named).into_owned(),
            why,
        }
    }

    fn chain(&self) -> impl FnOnce(BlockError) -> BlockError {
        let path = self.spec.file.clone();
        move |source| BlockError::Chain {
            path,
            source: Box::new(source),
        }
    }

    /// The path that a name leads to, if it may.
    fn pass(&self, what: &'static str, named: &[u8]) -> Result<PathBuf, BlockError> {
        let name = named.strip_prefix(b"file:").unwrap_or(named);
        let first_colon = name.iter().position(|byte| *byte == b':');
        let first_slash = name.iter().position(|byte| *byte == b'/');
        let protocol = first_colon
            .filter(|colon| first_slash.is_none_or(|slash| *colon < slash))
            .is_some();
        if protocol {
            let why = "which is no path of a file: only files are supported there".to_owned();
            return Err(self.refuse(what, named, why));
        }
        let directory = match self.spec.file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let path = directory.join(OsStr::from_bytes(name));
        match self.spec.backing_files {
            BackingFiles::Any => Ok(path),
            BackingFiles::None => {
                let why = "and backing-files=none does not allow any".to_owned();
                Err(self.refuse(what, named, why))
            }
            BackingFiles::SameDirectory => {
                // Where it does not exist, opening says so.
                let inside = match (path.canonicalize(), directory.canonicalize()) {
                    (Ok(path), Ok(directory)) => path.starts_with(directory),
                    _ => true,
                };
                let why = || {
                    "which is not in its directory; say backing-files=any if you trust the image"
                        .to_owned()
                };
                match inside {
                    true => Ok(path),
                    false => Err(self.refuse(what, named, why())),
                }
            }
        }
    }

    /// The path and format of a backing file, if it may be opened.
    fn backing(
        &self,
        named: &[u8],
        format: Option<&str>,
    ) -> Result<(PathBuf, Option<Format>), BlockError> {
        const WHAT: &str = "the backing file";
        let path = self.pass(WHAT, named)?;
        match format {
            Some("raw" | "file" | "host_device") => Ok((path, Some(Format::Raw))),
            Some("qcow2") => Ok((path, Some(Format::Qcow2))),
            Some("luks") => Ok((path, Some(Format::Luks))),
            // Name and content have to agree.
            None => Ok((path, None)),
            Some(other) => {
                let why = format!("whose format {other:?} is not supported");
                Err(self.refuse(WHAT, named, why))
            }
        }
    }
}
