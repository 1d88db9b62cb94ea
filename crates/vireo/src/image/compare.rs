//! `vireo image compare`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{DiskSpec, Node, OpenOptions, StatusKind};
use clap::{ArgMatches, Command};

use super::common;
use super::copying::{self, End};
use super::encryption;
use crate::failure::{Failure, Result};
use crate::output;

pub(super) const NAME: &str = "compare";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Compares the disks in two images")
        .arg(common::format("Format of the first image"))
        .arg(common::second_format(
            "second-format",
            'F',
            "Format of the second image",
        ))
        .arg(
            common::flag(
                "strict",
                "Images of different size differ, even if the rest is zero",
            )
            .short('s'),
        )
        .arg(common::flag("progress", "Show progress").short('p'))
        .arg(common::flag("quiet", "Say nothing").short('q'))
        .arg(common::backing_files())
        .arg(encryption::key_file())
        .arg(encryption::second_key_file())
        .arg(common::file("first", "FIRST", "One image"))
        .arg(common::file("second", "SECOND", "The other one"))
        .after_help(
            "Exit status: 0 the images are identical, 1 they differ or could not be compared.",
        )
}

struct Pair {
    nodes: [Arc<dyn Node>; 2],
    /// The first byte that differs, as far as is known.
    first: AtomicU64,
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let first = common::spec_to_read(matches, "first", "format")?;
    let second = DiskSpec {
        key_file: matches.get_one::<PathBuf>("second-key-file").cloned(),
        ..common::spec_to_read(matches, "second", "second-format")?
    };
    let nodes = [
        common::open(&first, OpenOptions::default())?.node(),
        common::open(&second, OpenOptions::default())?.node(),
    ];
    let sizes = nodes.each_ref().map(|node| node.size());
    let say = |text: &str| match matches.get_flag("quiet") {
        true => Ok(ExitCode::SUCCESS),
        false => output::print(text),
    };
    if sizes[0] != sizes[1] && matches.get_flag("strict") {
        say("Strict mode: Image size mismatch!\n")?;
        return Ok(ExitCode::FAILURE);
    }
    let pair = Arc::new(Pair {
        nodes,
        first: AtomicU64::new(u64::MAX),
    });
    let step = {
        let pair = Arc::clone(&pair);
        move |at, len| {
            let pair = Arc::clone(&pair);
            Box::pin(async move { pair.piece(at, len).await }) as std::pin::Pin<Box<_>>
        }
    };
    let size = sizes[0].max(sizes[1]);
    let show = matches.get_flag("progress");
    match copying::all_pieces(size, "compare", show, copying::AT_ONCE, Arc::new(step))? {
        End::Interrupted => return Err(Failure::Failed("interrupted".into())),
        End::Complete => (),
    }
    match pair.first.load(Ordering::Relaxed) {
        u64::MAX => {
            if sizes[0] != sizes[1] {
                say("Warning: Image size mismatch!\n")?;
            }
            say("Images are identical.\n")
        }
        at => {
            say(&format!("Content mismatch at offset {at}!\n"))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

impl Pair {
    async fn piece(&self, start: u64, len: u64) -> io::Result<()> {
        if self.first.load(Ordering::Relaxed) < start {
            return Ok(());
        }
        let end = start + len;
        let mut at = start;
        while at < end {
            let [a, b] = [self.zeros(0, at, end).await?, self.zeros(1, at, end).await?];
            let both = a.min(b);
            if both != 0 {
                at += both;
                continue;
            }
            // Both are read up to where one has zeros again, or all of it.
            let [a, b] = [
                common::read(&*self.nodes[0], at, end - at).await?,
                common::read(&*self.nodes[1], at, end - at).await?,
            ];
            let differs = a.iter().zip(&b).position(|(a, b)| a != b);
            if let Some(offset) = differs {
                self.first.fetch_min(at + offset as u64, Ordering::Relaxed);
            }
            break;
        }
        Ok(())
    }

    /// How many bytes from `at` on are known to be zeros.
    async fn zeros(&self, which: usize, at: u64, end: u64) -> io::Result<u64> {
        let node = &self.nodes[which];
        let size = node.size();
        if at >= size {
            return Ok(end - at);
        }
        let status = node.block_status(at, end.min(size) - at).await?;
        Ok(match status.kind {
            StatusKind::Zero | StatusKind::Unallocated => status.len.max(1),
            StatusKind::Data | StatusKind::Compressed => 0,
        })
    }
}
