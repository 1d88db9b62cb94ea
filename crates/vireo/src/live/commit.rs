//! `vireo commit`.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use serde_json::json;

use super::follow::{Job, WhenReady};
use super::{common, disk, follow};
use crate::failure::Result;
use crate::image::common::{flag, text};
use crate::output;

pub(super) const NAME: &str = "commit";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Merges images of a running machine's disk downwards, into the one below them")
        .long_about(
            "Merges images of a running machine's disk downwards: what they have is copied into the \
             one below, while the guest goes on. Then they are not used any more, and their files \
             can be deleted. Without --top it begins with the active image, and the disk moves to \
             the image below; without --base it ends in the lowest one.",
        )
        .after_help(
            "Example: vireo commit vm.sock disk0\n\
             Ctrl-C cancels it: the disk stays as it was, and the work can begin again.",
        )
        .arg(common::vm())
        .arg(common::disk())
        .arg(text("top", "NODE", "The uppermost image that is merged: a node or a file"))
        .arg(text("base", "NODE", "The image that takes the data: a node or a file"))
        .arg(flag(
            "no-pivot",
            "Leave the disk on the active image when everything is copied",
        ))
        .arg(common::speed())
        .arg(common::quiet())
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let speed = common::speed_of(matches)?;
    let client = &mut common::connect(matches)?;
    let disk = disk::one(client, common::word(matches, "disk"))?;
    let id = follow::name(client, NAME, &disk.id)?;
    let mut arguments = json!({ "job-id": id, "device": disk.id, "speed": speed });
    for (option, argument) in [("top", "top-node"), ("base", "base-node")] {
        if let Some(given) = matches.get_one::<String>(option) {
            arguments[argument] = disk.node(given)?.into();
        }
    }
    let before = disk.chain.len();
    let job = Job {
        id: &id,
        what: format!("commit {}", disk.id),
        when_ready: match matches.get_flag("no-pivot") {
            true => WhenReady::Leave,
            false => WhenReady::Pivot,
        },
        quiet: matches.get_flag("quiet"),
    };
    let quiet = job.quiet;
    job.run(client, "block-commit", arguments)?;
    if quiet {
        return Ok(ExitCode::SUCCESS);
    }
    let disk = disk::one(client, &disk.id)?;
    let now = disk::text(disk.active()?, "file");
    output::print(&format!(
        "{}: {before} images are {} now, the active one is {now}\n",
        disk.id,
        disk.chain.len(),
    ))
}
