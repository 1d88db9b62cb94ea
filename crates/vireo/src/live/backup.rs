//! `vireo backup`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgGroup, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use super::disk::Disk;
use super::follow::{Job, WhenReady};
use super::target::{self, Wanted};
use super::{common, disk, follow};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::image::common::{flag, text};
use crate::output;

pub(super) const NAME: &str = "backup";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Copies a running machine's disk as it is at this instant, whole or what changed")
        .long_about(
            "Copies a running machine's disk as it is at this instant, while the guest goes on. \
             --bitmap NAME begins to record at that instant what changes; --incremental NAME copies \
             what was recorded, and records anew. The image of an increment lies on the backup \
             before it (--backing), and shows the whole disk.",
        )
        .after_help(
            "Example: vireo backup vm.sock disk0 monday.qcow2 --bitmap nightly\n         \
             vireo backup vm.sock disk0 tuesday.qcow2 --incremental nightly --backing monday.qcow2\n\
             Ctrl-C cancels it: a file that was made is removed, and what was recorded is kept.",
        )
        .arg(common::vm())
        .arg(common::disk())
        .arg(
            Arg::new("target")
                .value_name("TARGET")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The file that takes the copy; it is made"),
        )
        .arg(
            text("format", "FORMAT", "Its format")
                .short('f')
                .value_parser(PossibleValuesParser::new(["raw", "qcow2"]))
                .default_value("qcow2"),
        )
        .arg(text(
            "bitmap",
            "NAME",
            "Copy all, and record in this bitmap what changes from now on; it is kept in the image",
        ))
        .arg(text(
            "incremental",
            "BITMAP",
            "Copy only what this bitmap has recorded",
        ))
        .group(ArgGroup::new("which").args(["bitmap", "incremental"]))
        .arg(
            text("backing", "FILE", "The backup before, on which an increment lies")
                .short('b')
                .value_parser(value_parser!(PathBuf))
                .requires("incremental"),
        )
        .arg(
            text("backing-format", "FORMAT", "Its format")
                .short('F')
                .value_parser(PossibleValuesParser::new(["raw", "qcow2"]))
                .default_value("qcow2"),
        )
        .arg(flag("existing", "The file is there, and is written to"))
        .arg(flag("compress", "Write compressed clusters").short('c'))
        .arg(target::unencrypted())
        .arg(common::speed())
        .arg(common::quiet())
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let speed = common::speed_of(matches)?;
    let file = common::file(matches, "target")?;
    let format = common::word(matches, "format");
    let backing = matches.get_one::<PathBuf>("backing");
    let backing = backing.map(|path| common::absolute(path)).transpose()?;
    if format == "raw" && (backing.is_some() || matches.get_flag("compress")) {
        return Err(Failure::Usage(
            "only a qcow2 image lies on another, or is compressed".into(),
        ));
    }
    let client = &mut common::connect(matches)?;
    let disk = disk::one(client, common::word(matches, "disk"))?;
    target::check_secret(matches, &disk)?;
    let incremental = matches.get_one::<String>("incremental");
    if let Some(name) = incremental
        && !has_bitmap(&disk, name)
    {
        return Err(Failure::Failed(format!(
            "{} has no bitmap {name:?}: begin with a whole backup, with --bitmap {name}",
            disk.id
        )));
    }
    let wanted = Wanted {
        file: file.clone(),
        format,
        size: disk.size(),
        backing: backing.map(|path| (path, common::word(matches, "backing-format"))),
        existing: matches.get_flag("existing"),
    };
    let target = target::open(client, wanted)?;
    let done = copy(client, matches, &disk, &target.node, speed);
    if let Err(failure) = done {
        target.give_up(client);
        return Err(failure);
    }
    target.close(client)?;
    if matches.get_flag("quiet") {
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&match incremental {
        None => format!("{} has a copy of {}\n", file.display(), disk.id),
        Some(_) => format!("{} has what changed of {}\n", file.display(), disk.id),
    })
}

fn has_bitmap(disk: &Disk, name: &str) -> bool {
    let bitmaps = disk.bitmaps();
    bitmaps.iter().any(|b| disk::text(b, "name") == name)
}

fn copy(
    client: &mut Client,
    matches: &ArgMatches,
    disk: &Disk,
    target: &str,
    speed: u64,
) -> Result<()> {
    let id = follow::name(client, NAME, &disk.id)?;
    let mut backup = json!({
        "job-id": id,
        "device": disk.id,
        "target": target,
        "sync": "full",
        "speed": speed,
        "compress": matches.get_flag("compress"),
    });
    let mut actions: Vec<Value> = Vec::new();
    if let Some(name) = matches.get_one::<String>("incremental") {
        backup["sync"] = "incremental".into();
        backup["bitmap"] = name.as_str().into();
    }
    if let Some(name) = matches.get_one::<String>("bitmap") {
        let top = disk.active()?;
        let node = disk::text(top, "node-name");
        let mut bitmap = json!({ "node": node, "name": name });
        actions.push(match has_bitmap(disk, name) {
            true => json!({ "type": "block-dirty-bitmap-clear", "data": bitmap }),
            false => {
                // Other formats have no place for it: it is forgotten when the machine ends.
                bitmap["persistent"] = (disk::text(top, "drv") == "qcow2").into();
                json!({ "type": "block-dirty-bitmap-add", "data": bitmap })
            }
        });
    }
    actions.push(json!({ "type": "blockdev-backup", "data": backup }));
    let job = Job {
        id: &id,
        what: format!("backup {}", disk.id),
        when_ready: WhenReady::Pivot,
        quiet: matches.get_flag("quiet"),
    };
    job.run(client, "transaction", json!({ "actions": actions }))
}
