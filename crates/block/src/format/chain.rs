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

use event::{IoThread, IoThreadConfig};

use super::Raw;
use super::qcow2::{Opened, Qcow2, Qcow2Error, Qcow2Options, References};
use crate::spec::{BackingFiles, DiskSpec, Format};
use crate::storage::FileStorage;
use crate::{BlockError, Node};

/// Formats that are recognised.
const MAGIC: [(&[u8], &str); 6] = [
    (QCOW2, "a qcow2 image"),
    (b"QED\0", "a QED image"),
    (b"KDMV", "a VMDK image"),
    (b"# Disk Descripto", "a VMDK descriptor"),
    (b"vhdxfile", "a VHDX image"),
    (b"conectix", "a VHD image"),
];
const QCOW2: &[u8] = b"QFI\xfb";

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
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            backing: true,
            repair_dirty: true,
            ignore_marks: false,
        }
    }
}

/// An open image.
#[derive(Clone)]
pub enum Image {
    /// A raw one.
    Raw(Arc<Raw<FileStorage>>),
    /// A qcow2 one.
    Qcow2(Arc<Qcow2<FileStorage>>),
}

impl Image {
    /// The disk in it.
    #[must_use]
    pub fn node(&self) -> Arc<dyn Node> {
        match self {
            Self::Raw(raw) => Arc::<Raw<FileStorage>>::clone(raw),
            Self::Qcow2(qcow2) => Arc::<Qcow2<FileStorage>>::clone(qcow2),
        }
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> Format {
        match self {
            Self::Raw(_) => Format::Raw,
            Self::Qcow2(_) => Format::Qcow2,
        }
    }
}

/// Opens the disk that `spec` describes. Blocks until that is done.
///
/// # Errors
/// See [`BlockError`]: each names the path and says what to do.
pub fn open(spec: &DiskSpec) -> Result<Arc<dyn Node>, BlockError> {
    let storage = FileStorage::open(spec)?;
    if format(spec, &storage)? == Format::Raw {
        let name = node_name(spec);
        return Ok(Arc::new(Raw::new(name, storage)));
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
        let image = qcow2(&task, storage, &OpenOptions::default(), &mut Vec::new()).await?;
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
    open_below(spec, options, &mut Vec::new()).await
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

/// The format that the user said, or the one that name and content agree on.
fn format(spec: &DiskSpec, storage: &FileStorage) -> Result<Format, BlockError> {
    if let Some(format) = spec.format {
        return Ok(format);
    }
    let first = storage.peek()?;
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
            hint: match *magic == QCOW2 {
                true => ", and format=qcow2 if it is a qcow2 image",
                false => "",
            },
        }),
    }
}

type Opening<'a> = Pin<Box<dyn Future<Output = Result<Image, BlockError>> + 'a>>;

/// Opens an image; `above` are the files whose backing files led here.
fn open_below<'a>(
    spec: &'a DiskSpec,
    options: &'a OpenOptions,
    above: &'a mut Vec<PathBuf>,
) -> Opening<'a> {
    Box::pin(async move {
        let storage = FileStorage::open(spec)?;
        match format(spec, &storage)? {
            Format::Raw => Ok(Image::Raw(Arc::new(Raw::new(node_name(spec), storage)))),
            Format::Qcow2 => qcow2(spec, storage, options, above).await,
        }
    })
}

async fn qcow2(
    spec: &DiskSpec,
    storage: FileStorage,
    options: &OpenOptions,
    above: &mut Vec<PathBuf>,
) -> Result<Image, BlockError> {
    let failed = |source| BlockError::Qcow2 {
        what: "open",
        path: spec.file.clone(),
        source,
    };
    let references = References::read(&storage).await.map_err(failed)?;
    let gate = Gate { spec };
    let data = match (&references.data_file, references.needs_data_file) {
        (_, false) => None,
        (None, true) => return Err(failed(Qcow2Error::NoDataFile)),
        (Some(named), true) => {
            let file = gate.pass("the external data file", named)?;
            let spec = DiskSpec {
                file,
                format: Some(Format::Raw),
                ..spec.clone()
            };
            Some(FileStorage::open(&spec).map_err(gate.chain())?)
        }
    };
    let backing = match &references.backing_file {
        Some(named) if options.backing => {
            let (file, format) = gate.backing(named, references.backing_format.as_deref())?;
            above.push(canonical(&spec.file));
            if above.contains(&canonical(&file)) || above.len() > MAX_DEPTH {
                let why = "which leads back to itself, or too deep".to_owned();
                return Err(gate.refuse("the backing file", named, why));
            }
            let below = DiskSpec {
                file,
                format,
                read_only: true,
                node_name: None,
                ..spec.clone()
            };
            // A file below is read, whatever is done to the one above.
            let options = OpenOptions::default();
            let image = open_below(&below, &options, above).await;
            Some(image.map_err(gate.chain())?.node())
        }
        _ => None,
    };
    let files = Opened {
        image: storage,
        data,
        backing,
    };
    let qcow2_options = Qcow2Options {
        l2_cache: spec.l2_cache_size.0,
        refcount_cache: spec.refcount_cache_size.0,
        discard: spec.discard,
        discard_no_unref: spec.discard_no_unref,
        repair_dirty: options.repair_dirty,
        ignore_marks: options.ignore_marks,
    };
    let image = Qcow2::open(node_name(spec), files, qcow2_options).await;
    Ok(Image::Qcow2(Arc::new(image.map_err(failed)?)))
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
            // Name and content have to agree.
            None => Ok((path, None)),
            Some(other) => {
                let why = format!("whose format {other:?} is not supported");
                Err(self.refuse(WHAT, named, why))
            }
        }
    }
}
