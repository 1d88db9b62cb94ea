//! `vireo mirror`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::json;

use super::follow::{Job, WhenReady};
use super::target::{self, Wanted};
use super::{common, disk, follow};
use crate::failure::Result;
use crate::image::common::{flag, text};
use crate::output;

pub(super) const NAME: &str = "mirror";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Moves a running machine's disk to another file, or leaves a copy there")
        .long_about(
            "Copies a running machine's disk to another file and keeps both the same; when they \
             are, the disk moves there. With --no-pivot it stays where it is, and the file is a \
             copy of that instant.",
        )
        .after_help(
            "Example: vireo mirror vm.sock disk0 /fast/disk0.qcow2\n\
             Ctrl-C cancels it: the disk stays where it is, and a file that was made is removed.",
        )
        .arg(common::vm())
        .arg(common::disk())
        .arg(
            Arg::new("target")
                .value_name("TARGET")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The new file; it is made"),
        )
        .arg(
            text(
                "format",
                "FORMAT",
                "Its format; that of the disk when not given",
            )
            .short('f')
            .value_parser(PossibleValuesParser::new(["raw", "qcow2"])),
        )
        .arg(
            text(
                "copy-mode",
                "MODE",
                "Copy the guest's writes soon after, or before they complete",
            )
            .value_parser(PossibleValuesParser::new(["background", "write-blocking"]))
            .default_value("background"),
        )
        .arg(flag("existing", "The file is there, and is overwritten"))
        .arg(flag("no-pivot", "Leave the disk where it is, and the copy"))
        .arg(target::unencrypted())
        .arg(common::speed())
        .arg(common::quiet())
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let speed = common::speed_of(matches)?;
    let file = common::file(matches, "target")?;
    let client = &mut common::connect(matches)?;
    let disk = disk::one(client, common::word(matches, "disk"))?;
    target::check_secret(matches, &disk)?;
    let own = match disk::text(disk.active()?, "drv") {
        "raw" => "raw",
        _ => "qcow2",
    };
    let format = matches.get_one::<String>("format");
    let target = target::open(
        client,
        Wanted {
            file: file.clone(),
            format: format.map_or(own, String::as_str),
            size: disk.size(),
            backing: None,
            existing: matches.get_flag("existing"),
        },
    )?;
    let quiet = matches.get_flag("quiet");
    let when_ready = match matches.get_flag("no-pivot") {
        true => WhenReady::Leave,
        false => WhenReady::Pivot,
    };
    let done = follow::name(client, NAME, &disk.id).and_then(|id| {
        let arguments = json!({
            "job-id": id,
            "device": disk.id,
            "target": target.node,
            "sync": "full",
            "speed": speed,
            "copy-mode": common::word(matches, "copy-mode"),
        });
        let job = Job {
            id: &id,
            what: format!("mirror {}", disk.id),
            when_ready,
            quiet,
        };
        job.run(client, "blockdev-mirror", arguments)
    });
    if let Err(failure) = done {
        target.give_up(client);
        return Err(failure);
    }
    if when_ready == WhenReady::Leave {
        target.close(client)?;
    }
    if quiet {
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&match when_ready {
        WhenReady::Pivot => format!("{} is in {} now\n", disk.id, file.display()),
        WhenReady::Leave => format!("{} has a copy of {}\n", file.display(), disk.id),
    })
}
