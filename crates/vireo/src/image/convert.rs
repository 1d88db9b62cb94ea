//! `vireo image convert`.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use block::qcow2::CreateOptions;
use block::{Cache, DiskSpec, Format, Image, IoBuf, Node, OpenOptions, StatusKind, WriteFlags};
use clap::{ArgMatches, Command};

use super::common;
use super::copying::{self, End};
use super::encryption;
use crate::failure::{Failure, Result};

pub(super) const NAME: &str = "convert";

/// Zeros of at least so many bytes leave holes.
const SPARSE: usize = 4096;

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
    let copy = Arc::new(Copy {
        source,
        node: target.node(),
        target: target.clone(),
        compress,
        // A new LUKS file is full of noise.
        zeros: target_spec.format == Some(Format::Luks),
        cluster: create.cluster_size,
    });
    let step = move |at, len| {
        let copy = Arc::clone(&copy);
        Box::pin(async move { copy.piece(at, len).await }) as std::pin::Pin<Box<_>>
    };
    let show = matches.get_flag("progress")
        || !matches.get_flag("quiet") && io::IsTerminal::is_terminal(&io::stderr());
    let copied = copying::all_pieces(size, "convert", show, Arc::new(step));
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
    cluster: u64,
}

impl Copy {
    /// Copies a piece. What reads as zeros is left out: the target is new.
    async fn piece(&self, start: u64, len: u64) -> io::Result<()> {
        let end = start + len;
        let mut at = start;
        while at < end {
            if self.zeros {
                self.copy(at, end - at).await?;
                break;
            }
            let status = self.source.block_status(at, end - at).await?;
            let mut step = status.len.clamp(1, end - at);
            if matches!(status.kind, StatusKind::Data | StatusKind::Compressed) {
                // Neighbours that are data too are read at once.
                while at + step < end {
                    let next = self.source.block_status(at + step, end - at - step).await?;
                    if !matches!(next.kind, StatusKind::Data | StatusKind::Compressed) {
                        break;
                    }
                    step += next.len.clamp(1, end - at - step);
                }
                if self.compress {
                    // Whole clusters of the target.
                    let from = (at - at % self.cluster).max(start);
                    let to = (at + step).next_multiple_of(self.cluster).min(end);
                    self.copy_compressed(from, to - from).await?;
                    step = to - at;
                } else {
                    self.copy(at, step).await?;
                }
            }
            at += step;
        }
        Ok(())
    }

    async fn read(&self, at: u64, len: u64) -> io::Result<IoBuf> {
        let buf = IoBuf::zeroed_aligned(len as usize, 4096).ok_or(io::ErrorKind::OutOfMemory)?;
        let (result, buf) = self.source.read_vectored(buf, at).await;
        result.map(|()| buf)
    }

    async fn copy(&self, at: u64, len: u64) -> io::Result<()> {
        let buf = self.read(at, len).await?;
        let bytes = buf.bytes().unwrap_or_default();
        let flags = WriteFlags::default();
        let runs = copying::runs(bytes, SPARSE);
        if let [(_, _, zero)] = runs[..] {
            if !zero || self.zeros {
                // The buffer may have been advanced over by the read.
                let whole = whole(buf)?;
                self.node.write_vectored(whole, at, flags).await.0?;
            }
            return Ok(());
        }
        for (from, len, zero) in runs {
            if zero && !self.zeros {
                continue;
            }
            let part = common::buffer(bytes.get(from..from + len).unwrap_or_default())?;
            let at = at + from as u64;
            self.node.write_vectored(part, at, flags).await.0?;
        }
        Ok(())
    }

    async fn copy_compressed(&self, at: u64, len: u64) -> io::Result<()> {
        let Image::Qcow2(target) = &self.target else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let buf = self.read(at, len).await?;
        let bytes = buf.bytes().unwrap_or_default();
        let clusters = bytes.chunks(self.cluster as usize).zip(0u64..);
        let writes = clusters
            .filter(|(cluster, _)| !copying::is_zero(cluster))
            .map(|(cluster, index)| {
                target.write_compressed(cluster.to_vec(), at + index * self.cluster)
            });
        for done in event::join_all(writes.collect::<Vec<_>>()).await {
            done?;
        }
        Ok(())
    }
}

/// The buffer from its beginning, whatever was advanced over.
fn whole(buf: IoBuf) -> io::Result<IoBuf> {
    let Some(bytes) = buf.bytes() else {
        return Ok(buf);
    };
    if buf.len() == bytes.len() {
        return Ok(buf);
    }
    common::buffer(bytes)
}
