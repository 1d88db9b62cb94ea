//! `vireo image commit`.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use block::{
    BlockError, DiskSpec, Format, Image, Node, OpenOptions, StatusKind, WriteFlags, ZeroFlags,
};
use clap::{ArgMatches, Command};

use super::common;
use super::copying::{self, End};
use super::encryption;
use crate::failure::{Failure, Result};
use crate::output;

pub(super) const NAME: &str = "commit";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Copies what an image has into the image below, and empties it")
        .arg(common::format("Format of the image"))
        .arg(common::flag("keep", "Do not empty the image after that").short('d'))
        .arg(common::flag("progress", "Show progress").short('p'))
        .arg(common::flag("quiet", "Say nothing").short('q'))
        .arg(common::backing_files())
        .arg(encryption::key_file())
        .arg(common::file(
            "file",
            "FILE",
            "The image; no running machine uses it or the one below",
        ))
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let spec = common::spec(matches, "file", "format")?;
    let alone = OpenOptions {
        backing: false,
        ..OpenOptions::default()
    };
    let top = common::open(&spec, alone)?;
    let Image::Qcow2(qcow2) = top.clone() else {
        return Err(no_backing(&spec));
    };
    let references = qcow2.info().references;
    let Some(name) = references.backing_file else {
        return Err(no_backing(&spec));
    };
    let below_spec = common::beside(&spec, &name, references.backing_format.as_deref())?;
    let below = common::open(&below_spec, OpenOptions::default())?;
    let (from, to) = (top.node(), below.node());
    if from.size() > to.size() {
        let (to, size) = (Arc::clone(&to), from.size());
        common::run(move || async move { to.resize(size).await })?;
    }
    let size = from.size();
    let step = move |at, len| {
        let (from, to) = (Arc::clone(&from), Arc::clone(&to));
        Box::pin(async move { piece(&*from, &*to, at, len).await }) as std::pin::Pin<Box<_>>
    };
    let copied = copying::all_pieces(
        size,
        "commit",
        matches.get_flag("progress"),
        copying::AT_ONCE,
        Arc::new(step),
    );
    // The image below is stable before the one above is emptied.
    common::close(&below)?;
    if copied? == End::Interrupted {
        common::close(&top)?;
        return Err(Failure::Failed(
            "interrupted: nothing is lost, commit again".into(),
        ));
    }
    if !matches.get_flag("keep") {
        common::run(move || async move {
            qcow2
                .make_empty()
                .await
                .map_err(|source| BlockError::Qcow2 {
                    what: "empty",
                    path: spec.file.clone(),
                    source,
                })
        })?;
    }
    common::close(&top)?;
    match matches.get_flag("quiet") {
        true => Ok(ExitCode::SUCCESS),
        false => output::print("Image committed.\n"),
    }
}

fn no_backing(spec: &DiskSpec) -> Failure {
    let format = spec.format.map_or("", Format::word);
    Failure::Failed(format!(
        "{}: this {format} image has no backing file to commit to",
        spec.file.display()
    ))
}

/// Copies what `from` has by itself.
async fn piece(from: &dyn Node, to: &dyn Node, start: u64, len: u64) -> io::Result<()> {
    let end = start + len;
    let mut at = start;
    while at < end {
        let status = from.block_status(at, end - at).await?;
        let step = status.len.clamp(1, end - at);
        match status.kind {
            StatusKind::Unallocated => (),
            StatusKind::Zero => {
                let flags = ZeroFlags {
                    may_unmap: true,
                    fua: false,
                };
                to.write_zeroes(at, step, flags).await?;
            }
            StatusKind::Data | StatusKind::Compressed => {
                let buf = common::read(from, at, step).await?;
                let flags = WriteFlags::default();
                to.write_vectored(common::buffer(&buf)?, at, flags)
                    .await
                    .0?;
            }
        }
        at += step;
    }
    Ok(())
}
