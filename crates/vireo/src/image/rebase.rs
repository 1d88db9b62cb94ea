//! `vireo image rebase`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::Arc;

use block::{BlockError, Image, Node, OpenOptions, StatusKind, WriteFlags};
use clap::{ArgMatches, Command, value_parser};

use super::common;
use super::copying::{self, End};
use super::encryption;
use crate::failure::{Failure, Result};

pub(super) const NAME: &str = "rebase";

/// Bytes that are compared, and copied where they differ.
const UNIT: usize = 4096;

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Puts an image on top of another one; what its disk holds stays the same")
        .arg(common::format("Format of the image"))
        .arg(
            common::text("backing", "FILE", "The image to put it on; \"\" for none")
                .short('b')
                .required(true)
                .value_parser(value_parser!(OsString)),
        )
        .arg(common::second_format(
            "backing-format",
            'F',
            "Format of the image to put it on",
        ))
        .arg(
            common::flag(
                "unsafe",
                "Only record the name: the other image is known to have the same content",
            )
            .short('u'),
        )
        .arg(common::flag("progress", "Show progress").short('p'))
        .arg(common::flag("quiet", "Say nothing").short('q'))
        .arg(common::backing_files())
        .arg(encryption::key_file())
        .arg(common::file(
            "file",
            "FILE",
            "The image; no running machine uses it",
        ))
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let spec = common::spec(matches, "file", "format")?;
    let name = matches
        .get_one::<OsString>("backing")
        .map_or(&[][..], |n| n.as_bytes());
    let name = (!name.is_empty()).then(|| name.to_vec());
    let format = matches.get_one::<String>("backing-format").cloned();
    if name.is_some() && format.is_none() {
        return Err(Failure::Usage(
            "say the format of the other image (-F raw or -F qcow2): it is never guessed".into(),
        ));
    }
    let is_unsafe = matches.get_flag("unsafe");
    let options = OpenOptions {
        backing: !is_unsafe,
        ..OpenOptions::default()
    };
    let image = common::open(&spec, options)?;
    let Image::Qcow2(qcow2) = image.clone() else {
        return Err(Failure::Failed(
            "only a qcow2 image has a backing file".into(),
        ));
    };
    let mut copied = Ok(End::Complete);
    if !is_unsafe {
        let other = match &name {
            Some(name) => {
                let mut below = common::beside(&spec, name, format.as_deref())?;
                below.read_only = true;
                Some(common::open(&below, OpenOptions::default())?.node())
            }
            None => None,
        };
        let node = image.node();
        let size = node.size();
        let step = move |at, len| {
            let (node, other) = (Arc::clone(&node), other.clone());
            Box::pin(async move { piece(&*node, other.as_deref(), at, len).await })
                as std::pin::Pin<Box<_>>
        };
        let show = matches.get_flag("progress");
        copied = copying::all_pieces(size, "rebase", show, copying::AT_ONCE, Arc::new(step));
    }
    let recorded = match &copied {
        Ok(End::Complete) => common::run(move || async move {
            let recorded = qcow2.set_backing(name.as_deref(), format.as_deref()).await;
            recorded.map_err(|source| BlockError::Qcow2 {
                what: "rebase",
                path: spec.file.clone(),
                source,
            })
        }),
        _ => Ok(()),
    };
    common::close(&image)?;
    recorded?;
    match copied? {
        End::Complete => Ok(ExitCode::SUCCESS),
        End::Interrupted => Err(Failure::Failed(
            "interrupted: the image is on top of the same one as before".into(),
        )),
    }
}

/// Copies into the image what it has from below and the other image has not.
async fn piece(image: &dyn Node, other: Option<&dyn Node>, start: u64, len: u64) -> io::Result<()> {
    let end = start + len;
    let mut at = start;
    while at < end {
        let status = image.block_status(at, end - at).await?;
        let step = status.len.clamp(1, end - at);
        let own = status.depth == 0 && status.kind != StatusKind::Unallocated;
        if !own {
            let old = common::read(image, at, step).await?;
            let new = match other {
                Some(other) => common::read(other, at, step).await?,
                None => vec![0; old.len()],
            };
            let pairs = old.chunks(UNIT).zip(new.chunks(UNIT)).zip(0u64..);
            for ((old, _), index) in pairs.filter(|((old, new), _)| old != new) {
                let flags = WriteFlags::default();
                let at = at + index * UNIT as u64;
                image
                    .write_vectored(common::buffer(old)?, at, flags)
                    .await
                    .0?;
            }
        }
        at += step;
    }
    Ok(())
}
