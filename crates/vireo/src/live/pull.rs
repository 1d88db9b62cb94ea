//! `vireo pull`.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use serde_json::json;

use super::follow::{Job, WhenReady};
use super::{common, disk, follow};
use crate::failure::Result;
use crate::image::common::text;
use crate::output;

pub(super) const NAME: &str = "pull";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about(
            "Merges images of a running machine's disk upwards, into the active one (block-stream)",
        )
        .long_about(
            "Merges images of a running machine's disk upwards: what is below is copied into the \
             active image, while the guest goes on. Then it needs no image below, or only the one \
             of --base. The files below are not changed.",
        )
        .after_help(
            "Example: vireo pull vm.sock disk0\n\
             Ctrl-C cancels it: the disk stays as it was, and what is copied need not be again.",
        )
        .arg(common::vm())
        .arg(common::disk())
        .arg(text(
            "base",
            "NODE",
            "The image that stays below: a node or a file",
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
    if let Some(given) = matches.get_one::<String>("base") {
        arguments["base-node"] = disk.node(given)?.into();
    }
    let before = disk.chain.len();
    let quiet = matches.get_flag("quiet");
    let job = Job {
        id: &id,
        what: format!("pull {}", disk.id),
        when_ready: WhenReady::Pivot,
        quiet,
    };
    job.run(client, "block-stream", arguments)?;
    if quiet {
        return Ok(ExitCode::SUCCESS);
    }
    let disk = disk::one(client, &disk.id)?;
    output::print(&format!(
        "{}: {before} images are {} now\n",
        disk.id,
        disk.chain.len()
    ))
}
