//! `vireo disks`.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use serde_json::{Value, json};

use super::disk::{self, Disk, number, text};
use super::{common, jobs};
use crate::failure::Result;
use crate::image::common::{human, output as output_option, wants_json};
use crate::output;

pub(super) const NAME: &str = "disks";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Shows a running machine's disks: their images, sizes, bitmaps and jobs")
        .after_help("Example: vireo disks vm.sock")
        .arg(common::vm())
        .arg(output_option())
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let client = &mut common::connect(matches)?;
    let disks = disk::all(client)?;
    let jobs = client.call("query-jobs", None)?;
    if wants_json(matches) {
        let disks: Vec<Value> = disks.iter().map(as_json).collect();
        return output::print_json(&json!({ "disks": disks, "jobs": jobs }));
    }
    if disks.is_empty() {
        return output::print("no disks\n");
    }
    let mut said = as_text(&disks);
    let jobs = jobs.as_array().cloned().unwrap_or_default();
    if !jobs.is_empty() {
        said.push('\n');
        said.push_str(&jobs::table(&jobs));
    }
    output::print(&said)
}

fn image(node: &Value, name: &str) -> u64 {
    node.get("image").map_or(0, |image| number(image, name))
}

fn list(node: &Value, place: &[&str]) -> Vec<String> {
    let found = place.iter().try_fold(node, |value, name| value.get(name));
    let all = found.and_then(Value::as_array);
    all.map(|all| all.iter().map(|one| text(one, "name").to_owned()).collect())
        .unwrap_or_default()
}

fn as_json(disk: &Disk) -> Value {
    let images: Vec<Value> = disk
        .chain
        .iter()
        .map(|node| {
            json!({
                "node-name": text(node, "node-name"),
                "file": text(node, "file"),
                "format": text(node, "drv"),
                "read-only": node.get("ro"),
                "virtual-size": image(node, "virtual-size"),
                "actual-size": image(node, "actual-size"),
                "dirty-bitmaps": node.get("dirty-bitmaps").cloned().unwrap_or_else(|| json!([])),
                "snapshots": node
                    .get("image")
                    .and_then(|image| image.get("snapshots").cloned())
                    .unwrap_or_else(|| json!([])),
            })
        })
        .collect();
    json!({
        "id": disk.id,
        "io-status": text(&disk.info, "io-status"),
        "images": images,
    })
}

fn as_text(disks: &[Disk]) -> String {
    let header = ["DISK", "NODE", "FORMAT", "SIZE", "ON DISK", "FILE"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for disk in disks {
        for (depth, node) in disk.chain.iter().enumerate() {
            let mut notes = Vec::new();
            if node.get("ro").and_then(Value::as_bool) == Some(true) {
                notes.push("read-only".to_owned());
            }
            for (what, place) in [
                ("bitmap", &["dirty-bitmaps"][..]),
                ("snapshot", &["image", "snapshots"]),
            ] {
                let names = list(node, place);
                notes.extend(names.iter().map(|name| format!("{what} {name}")));
            }
            let notes = match notes.is_empty() {
                true => String::new(),
                false => format!(" ({})", notes.join(", ")),
            };
            rows.push(vec![
                // The images below the active one stand under it.
                if depth == 0 {
                    disk.id.clone()
                } else {
                    String::new()
                },
                text(node, "node-name").to_owned(),
                text(node, "drv").to_owned(),
                human(image(node, "virtual-size")),
                human(image(node, "actual-size")),
                format!("{}{notes}", text(node, "file")),
            ]);
        }
        if disk.chain.is_empty() {
            rows.push(vec![disk.id.clone(), "(no image)".to_owned()]);
        }
    }
    output::table(&rows)
}
