//! `vireo snapshot`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgGroup, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use super::disk::{self, Disk};
use super::{common, target};
use crate::failure::{Failure, Result};
use crate::image::common::{flag, text};
use crate::output;

pub(super) const NAME: &str = "snapshot";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .override_usage(
            "vireo snapshot [OPTIONS] <VM> <DISK> <FILE|--internal <NAME>|--delete <NAME>>\n       \
             vireo snapshot [OPTIONS] <VM> --all-disks <DIR>",
        )
        .about("Keeps a running machine's disk as it is at this instant; writes go elsewhere")
        .long_about(
            "Keeps a running machine's disk as it is at this instant. With FILE, an overlay is made \
             there that takes the writes from now on, and the image below stays as it is: it can be \
             copied, and \"vireo commit\" merges the two again. With --internal the snapshot is \
             kept inside the image. --all-disks does it to all disks at one instant, or to none.",
        )
        .after_help(
            "Example: vireo snapshot vm.sock disk0 /images/disk0-monday.qcow2\n         \
             vireo snapshot vm.sock disk0 --internal before-update\n         \
             vireo snapshot vm.sock --all-disks /images/monday",
        )
        .arg(common::vm())
        .arg(
            common::disk()
                .required(false)
                .required_unless_present("all-disks")
                .conflicts_with("all-disks"),
        )
        .arg(
            Arg::new("file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("The overlay; it is made"),
        )
        .arg(text("internal", "NAME", "Keep it inside the image, with this name"))
        .arg(text("delete", "NAME", "Delete the snapshot of this name inside the image"))
        .arg(
            text(
                "all-disks",
                "DIR",
                "All disks that can be written, to overlays named DISK.qcow2 in this directory",
            )
            .value_parser(value_parser!(PathBuf)),
        )
        .group(
            ArgGroup::new("how")
                .args(["file", "internal", "delete", "all-disks"])
                .required(true),
        )
        .arg(text("node-name", "NAME", "A name for the overlay, to speak of it later").requires("file"))
        .arg(flag("existing", "The overlay is there, and is empty").requires("file"))
        .arg(common::quiet())
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let client = &mut common::connect(matches)?;
    let word = |name: &str| matches.get_one::<String>(name);
    let said = if let Some(directory) = matches.get_one::<PathBuf>("all-disks") {
        let directory = common::absolute(directory)?;
        let disks = disk::all(client)?;
        let (actions, said) = all(&disks, &directory)?;
        client.call("transaction", Some(json!({ "actions": actions })))?;
        said
    } else {
        let disk = disk::one(client, common::word(matches, "disk"))?;
        if let Some(name) = word("internal") {
            let arguments = json!({ "device": disk.id, "name": name });
            client.call("blockdev-snapshot-internal-sync", Some(arguments))?;
            format!("{}: snapshot {name:?} is in the image\n", disk.id)
        } else if let Some(name) = word("delete") {
            let arguments = json!({ "device": disk.id, "name": name });
            client.call("blockdev-snapshot-delete-internal-sync", Some(arguments))?;
            format!("{}: snapshot {name:?} is deleted\n", disk.id)
        } else {
            let file = common::file(matches, "file")?;
            let existing = matches.get_flag("existing");
            if !existing {
                target::refuse_existing(&file)?;
            }
            let mut arguments = overlay(&disk, &file);
            if existing {
                arguments["mode"] = "existing".into();
            }
            if let Some(name) = word("node-name") {
                arguments["snapshot-node-name"] = name.as_str().into();
            }
            client.call("blockdev-snapshot-sync", Some(arguments))?;
            told(&disk, &file)?
        }
    };
    match matches.get_flag("quiet") {
        true => Ok(ExitCode::SUCCESS),
        false => output::print(&said),
    }
}

fn overlay(disk: &Disk, file: &Path) -> Value {
    json!({
        "device": disk.id,
        "snapshot-file": file.display().to_string(),
        "format": "qcow2",
    })
}

fn told(disk: &Disk, file: &Path) -> Result<String> {
    Ok(format!(
        "{}: writes go to {}, and {} stays as it is\n",
        disk.id,
        file.display(),
        disk::text(disk.active()?, "file")
    ))
}

/// What is to be done to all disks, and what to say of it.
fn all(disks: &[Disk], directory: &Path) -> Result<(Vec<Value>, String)> {
    let mut actions = Vec::new();
    let mut said = String::new();
    for disk in disks {
        let Some(top) = disk.chain.first() else {
            continue;
        };
        if top.get("ro").and_then(Value::as_bool) == Some(true) {
            continue;
        }
        let file = directory.join(format!("{}.qcow2", disk.id));
        target::refuse_existing(&file)?;
        let data = overlay(disk, &file);
        actions.push(json!({ "type": "blockdev-snapshot-sync", "data": data }));
        said.push_str(&told(disk, &file)?);
    }
    match actions.is_empty() {
        true => Err(Failure::Failed(
            "the machine has no disk that can be written".into(),
        )),
        false => Ok((actions, said)),
    }
}
