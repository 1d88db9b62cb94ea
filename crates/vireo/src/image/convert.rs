//! `vireo image convert`.

use std::io;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::buffer::Parts;
use block::qcow2::CreateOptions;
use block::{Cache, DiskSpec, Format, Image, IoBuf, Node, OpenOptions, StatusKind, WriteFlags};
use clap::{ArgMatches, Command};

use super::common;
use super::copying::{self, End};
use super::encryption;
use crate::failure::{Failure, Result};

pub(super) const NAME: &str = "convert";

/// Zeros of at least so many bytes leave holes; in a qcow2 image, of a cluster, but never of more
/// than the second number.
const SPARSE: u64 = 4096;
const SPARSE_CLUSTER: u64 = 64 << 10;
/// Bytes that are read and then written, and how many times a thread does that at once. Little, so
/// that what was read is still in the processor's cache when it is looked through and written.
const WINDOW: u64 = 1 << 20;
const AT_ONCE: usize = 3;
/// The same where clusters are compressed, which takes so long that one at a time of each task is
/// enough to keep all processors busy.
const COMPRESS_WINDOW: u64 = 256 << 10;
const COMPRESS_AT_ONCE: usize = 4;
/// How far the source is asked at once for what it has.
const LOOK: u64 = 256 << 20;

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Copies a disk into a new image, of another format for instance")
        .arg(common::format("Format of the source"))
        .arg(
            common::second_format("output-format", 'O', "Format of the new image")
                .default_value("raw"),
        )
        .arg(super::create::options())
        .arg(common::flag("compress", "Compress the new image (qcow2)").short('c'))
        .arg(common::flag("progress", "Show progress").short('p'))
        .arg(common::flag("quiet", "Say nothing, not even progress on a terminal").short('q'))
        .arg(common::backing_files())
        .arg(encryption::key_file())
        .arg(common::file("source", "SOURCE", "The image to read"))
        .arg(common::file(
            "target",
            "TARGET",
            "The image to make; one that exists is replaced",
        ))
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let source_spec = common::spec_to_read(matches, "source", "format")?;
    let source = common::open(&source_spec, OpenOptions::default())?.node();
    let mut create = CreateOptions::new(source.size());
    let (_, words) = super::create::apply(matches, &mut create)?;
    if create.size < source.size() {
        return Err(Failure::Usage(
            "the new disk would be smaller than the source".into(),
        ));
    }
    if create.backing_file.is_some() {
        return Err(Failure::Usage(
            "a copy is complete: it has no backing file".into(),
        ));
    }
    let target_spec = DiskSpec {
        // A copy that a host's crash destroys can be made again.
        cache: Cache::Unsafe,
        key_file: words.key_file(),
        ..common::spec(matches, "target", "output-format")?
    };
    create.encryption = words.resolve(target_spec.format)?;
    if same_file(&source_spec, &target_spec) {
        return Err(Failure::Usage("source and target are the same file".into()));
    }
    let compress = matches.get_flag("compress");
    if compress && create.encryption.is_some() {
        return Err(Failure::Usage(
            "an encrypted image cannot be compressed".into(),
        ));
    }
    if compress && target_spec.format != Some(Format::Qcow2) {
        return Err(Failure::Usage(
            "only a qcow2 image (-O qcow2) is compressed".into(),
        ));
    }
    let (made, options) = (target_spec.clone(), create.clone());
    common::run(move || async move { block::create_image(&made, &options).await })?;
    let target = common::open(&target_spec, OpenOptions::default())?;
    let size = source.size();
    let (window, at_once) = match compress {
        true => (COMPRESS_WINDOW, COMPRESS_AT_ONCE),
        false => (WINDOW, AT_ONCE),
    };
    let copy = Arc::new(Copy {
        source,
        node: target.node(),
        target: target.clone(),
        compress,
        // A new LUKS file is full of noise.
        zeros: target_spec.format == Some(Format::Luks),
        cluster: create.cluster_size,
        // Two windows never share a cluster: both would want to allocate it.
        window: window.max(create.cluster_size).min(copying::PIECE),
        unit: match target_spec.format {
            Some(Format::Qcow2) => create.cluster_size.clamp(SPARSE, SPARSE_CLUSTER),
            _ => SPARSE,
        },
        known: Mutex::new((0..0, false)),
        buffers: Mutex::default(),
    });
    let step = move |at, len| {
        let copy = Arc::clone(&copy);
        Box::pin(async move { copy.piece(at, len).await }) as std::pin::Pin<Box<_>>
    };
    let show = matches.get_flag("progress")
        || !matches.get_flag("quiet") && io::IsTerminal::is_terminal(&io::stderr());
    let copied = copying::all_pieces(size, "convert", show, at_once, Arc::new(step));
    // Whatever happened, the image is one that can be opened.
    let closed = common::close(&target);
    match copied? {
        End::Complete => closed.map(|()| ExitCode::SUCCESS),
        End::Interrupted => Err(Failure::Failed(format!(
            "interrupted: {} is consistent, but not complete",
            target_spec.file.display()
        ))),
    }
}

fn same_file(a: &DiskSpec, b: &DiskSpec) -> bool {
    let real = |spec: &DiskSpec| std::fs::canonicalize(&spec.file).ok();
    real(a).is_some() && real(a) == real(b)
}

struct Copy {
    source: Arc<dyn Node>,
    target: Image,
    node: Arc<dyn Node>,
    compress: bool,
    /// Zeros are written like all other bytes.
    zeros: bool,
    /// The target's.
    cluster: u64,
    /// Bytes that are read at once.
    window: u64,
    /// Zeros are looked for in units of so many bytes.
    unit: u64,
    /// What the source said last: a range, and whether it has data.
    known: Mutex<(Range<u64>, bool)>,
    /// Buffers of a window each that nobody uses: fresh memory costs more than the copying.
    buffers: Mutex<Vec<IoBuf>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Copy {
    /// Whether the source has data at `at`, and up to where that is so.
    async fn has_data(&self, at: u64) -> io::Result<(bool, u64)> {
        {
            let (range, is_data) = &*lock(&self.known);
            if range.contains(&at) {
                return Ok((*is_data, range.end));
            }
        }
        let len = LOOK.min(self.source.size() - at);
        let status = self.source.block_status(at, len).await?;
        let is_data = matches!(status.kind, StatusKind::Data | StatusKind::Compressed);
        let end = at + status.len.clamp(1, len);
        *lock(&self.known) = (at..end, is_data);
        Ok((is_data, end))
    }

    /// Copies a piece.
    async fn piece(&self, start: u64, len: u64) -> io::Result<()> {
        let end = start + len;
        let mut at = start;
        while at < end {
            let len = self.window.min(end - at);
            self.copy_window(at, len).await?;
            at += len;
        }
        Ok(())
    }

    /// Copies a window. What reads as zeros is left out: the target is new.
    async fn copy_window(&self, start: u64, len: u64) -> io::Result<()> {
        let end = start + len;
        if self.zeros {
            return self.copy(start, len).await;
        }
        let mut at = start;
        while at < end {
            let (is_data, mut until) = self.has_data(at).await?;
            if is_data {
                // Neighbours that are data too are read at once.
                while until < end {
                    match self.has_data(until).await? {
                        (true, more) => until = more,
                        (false, _) => break,
                    }
                }
                until = until.min(end);
                if self.compress {
                    // Whole clusters of the target.
                    let from = (at - at % self.cluster).max(start);
                    until = until.next_multiple_of(self.cluster).min(end);
                    self.copy_compressed(from, until - from).await?;
                } else {
                    self.copy(at, until - at).await?;
                }
            }
            at = until;
        }
        Ok(())
    }

    async fn read(&self, at: u64, len: u64) -> io::Result<IoBuf> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let used = lock(&self.buffers).pop();
        let mut buf = match used {
            Some(buf) => buf,
            None => IoBuf::zeroed_aligned(len.max(self.window as usize), 4096)
                .ok_or(io::ErrorKind::OutOfMemory)?,
        };
        rewind(&mut buf, len)?;
        let (result, mut buf) = self.source.read_vectored(buf, at).await;
        result?;
        rewind(&mut buf, len)?;
        Ok(buf)
    }

    fn keep(&self, mut buf: IoBuf) {
        // One that an operation still has comes back as another, empty one.
        if buf.rewind(self.window as usize) {
            lock(&self.buffers).push(buf);
        }
    }

    async fn copy(&self, at: u64, len: u64) -> io::Result<()> {
        let buf = self.read(at, len).await?;
        let flags = WriteFlags::default();
        if self.zeros {
            let (result, buf) = self.node.write_vectored(buf, at, flags).await;
            self.keep(buf);
            return result;
        }
        let bytes = buf.bytes().and_then(|bytes| bytes.get(..len as usize));
        let runs = copying::data_runs(bytes.unwrap_or_default(), at, self.unit);
        let parts = Parts::new(buf);
        let writes = runs.into_iter().map(|run| {
            let part = parts.part(run.start, run.len());
            self.node.write_vectored(part, at + run.start as u64, flags)
        });
        let mut result = Ok(());
        for (written, _) in event::join_all(writes.collect::<Vec<_>>()).await {
            result = result.and(written);
        }
        self.keep(parts.into_whole());
        result
    }

    async fn copy_compressed(&self, at: u64, len: u64) -> io::Result<()> {
        let Image::Qcow2(target) = &self.target else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let buf = self.read(at, len).await?;
        let bytes = buf.bytes().and_then(|bytes| bytes.get(..len as usize));
        let clusters = bytes
            .unwrap_or_default()
            .chunks(self.cluster as usize)
            .zip(0u64..);
        let mut result = Ok(());
        for (cluster, index) in clusters.filter(|(cluster, _)| !copying::is_zero(cluster)) {
            // The last one is compressed before the next one is begun: memory is for what is
            // worked on, and streams follow one another as they will be read.
            let at = at + index * self.cluster;
            result = target.write_compressed(cluster.to_vec(), at).await;
            if result.is_err() {
                break;
            }
        }
        self.keep(buf);
        result
    }
}

/// Makes the buffer stand for its first `len` bytes.
fn rewind(buf: &mut IoBuf, len: usize) -> io::Result<()> {
    match buf.rewind(len) {
        true => Ok(()),
        false => Err(io::ErrorKind::OutOfMemory.into()),
    }
}
