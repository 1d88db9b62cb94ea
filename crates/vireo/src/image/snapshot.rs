//! `vireo image snapshot`.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use block::qcow2::{Snapshot, SnapshotRequest};
use block::{BlockError, DiskSpec, Image};
use clap::{ArgGroup, ArgMatches, Command};
use serde_json::{Value, json};

use super::common;
use crate::failure::{Failure, Result};
use crate::output;

pub(super) const NAME: &str = "snapshot";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Lists, makes, applies and deletes the snapshots inside an image")
        .arg(common::format("Format of the image"))
        .arg(common::flag("list", "List them; this is done when nothing else is said").short('l'))
        .arg(common::text("create", "NAME", "Make one of the disk as it is").short('c'))
        .arg(common::text("apply", "NAME", "Make the disk as it was then").short('a'))
        .arg(common::text("delete", "NAME", "Delete one").short('d'))
        .group(ArgGroup::new("action").args(["list", "create", "apply", "delete"]))
        .arg(common::output())
        .arg(common::backing_files())
        .arg(common::file(
            "file",
            "FILE",
            "The image; no running machine uses it",
        ))
}

#[derive(Clone)]
enum Action {
    List,
    Create(SnapshotRequest),
    Apply(String),
    Delete(String),
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let word = |name: &str| matches.get_one::<String>(name).cloned();
    let action = match (word("create"), word("apply"), word("delete")) {
        (Some(name), ..) => {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            Action::Create(SnapshotRequest {
                name,
                date_sec: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
                date_nsec: now.subsec_nanos(),
                vm_clock_nsec: 0,
            })
        }
        (_, Some(name), _) => Action::Apply(name),
        (_, _, Some(name)) => Action::Delete(name),
        _ => Action::List,
    };
    let spec = DiskSpec {
        read_only: matches!(action, Action::List),
        ..common::spec(matches, "file", "format")?
    };
    let image = common::open(&spec, common::METADATA)?;
    let Image::Qcow2(qcow2) = image.clone() else {
        return Err(Failure::Failed(format!(
            "{} is no qcow2 image: it has no snapshots",
            spec.file.display()
        )));
    };
    let is_list = matches!(action, Action::List);
    let snapshots = common::run(move || async move {
        let done = match &action {
            Action::List => qcow2.snapshots().await,
            Action::Create(request) => qcow2.create_snapshot(request).await.map(|_| Vec::new()),
            Action::Apply(name) => qcow2.apply_snapshot(name).await.map(|()| Vec::new()),
            Action::Delete(name) => qcow2.delete_snapshot(name).await.map(|()| Vec::new()),
        };
        done.map_err(|source| BlockError::Qcow2 {
            what: "snapshot",
            path: spec.file.clone(),
            source,
        })
    });
    let closed = common::close(&image);
    let snapshots = snapshots?;
    closed?;
    match is_list {
        false => Ok(ExitCode::SUCCESS),
        true if common::wants_json(matches) => {
            output::print_json(&snapshots.iter().map(as_json).collect())
        }
        true => output::print(&as_text(&snapshots)),
    }
}

pub(super) fn as_json(snapshot: &Snapshot) -> Value {
    json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": snapshot.vm_clock_nsec / 1_000_000_000,
        "vm-clock-nsec": snapshot.vm_clock_nsec % 1_000_000_000,
    })
}

fn as_text(snapshots: &[Snapshot]) -> String {
    let mut rows = vec![
        ["Id", "Name", "VM state", "Seconds since 1970"]
            .map(String::from)
            .to_vec(),
    ];
    for snapshot in snapshots {
        rows.push(vec![
            snapshot.id.clone(),
            snapshot.name.clone(),
            common::human(snapshot.vm_state_size),
            snapshot.date_sec.to_string(),
        ]);
    }
    output::table(&rows)
}
