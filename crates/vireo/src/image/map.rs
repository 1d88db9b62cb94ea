//! `vireo image map`.

use std::process::ExitCode;

use block::{BlockStatus, StatusKind};
use clap::{ArgMatches, Command};
use serde_json::{Value, json};

use super::common;
use crate::failure::{Failure, Result};
use crate::output;

pub(super) const NAME: &str = "map";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Tells where the parts of a disk are")
        .arg(common::format("Format of the image"))
        .arg(common::output())
        .arg(common::backing_files())
        .arg(common::file("file", "FILE", "The image"))
}

/// A part of the disk.
struct Part {
    start: u64,
    status: BlockStatus,
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let spec = common::spec_to_read(matches, "file", "format")?;
    let node = common::open(&spec, common::METADATA)?.node();
    let parts = common::thread("map")?
        .spawn_task(move || async move {
            let mut parts: Vec<Part> = Vec::new();
            let mut at = 0;
            while at < node.size() {
                let status = node.block_status(at, node.size() - at).await?;
                let start = at;
                at += status.len.max(1);
                match parts.last_mut() {
                    Some(last) if goes_on(last, &status) => last.status.len += status.len,
                    _ => parts.push(Part { start, status }),
                }
            }
            Ok::<_, std::io::Error>(parts)
        })
        .join();
    let parts = parts
        .map_err(|error| Failure::failed(&error))?
        .map_err(|error| Failure::Failed(format!("cannot read the tables: {error}")))?;
    match common::wants_json(matches) {
        true => output::print_json(&parts.iter().map(as_json).collect()),
        false => output::print(&as_text(&parts)),
    }
}

fn goes_on(last: &Part, next: &BlockStatus) -> bool {
    let before = &last.status;
    let host = match (before.host, next.host) {
        (Some(before_at), Some(at)) => before_at + before.len == at,
        (None, None) => true,
        _ => false,
    };
    before.kind == next.kind && before.depth == next.depth && host
}

fn as_json(part: &Part) -> Value {
    let BlockStatus {
        len,
        kind,
        host,
        depth,
    } = part.status;
    let data = matches!(kind, StatusKind::Data | StatusKind::Compressed);
    let mut value = json!({
        "start": part.start,
        "length": len,
        "depth": depth,
        "present": kind != StatusKind::Unallocated,
        "zero": !data,
        "data": data,
        "compressed": kind == StatusKind::Compressed,
    });
    if let (Some(host), Value::Object(map)) = (host, &mut value) {
        map.insert("offset".into(), json!(host));
    }
    value
}

fn as_text(parts: &[Part]) -> String {
    let mut rows = vec![
        ["Offset", "Length", "Mapped to", "Depth"]
            .map(String::from)
            .to_vec(),
    ];
    for part in parts {
        let status = &part.status;
        if !matches!(status.kind, StatusKind::Data | StatusKind::Compressed) {
            continue;
        }
        let place = match status.host {
            Some(host) => format!("{host:#x}"),
            None => "compressed".to_owned(),
        };
        rows.push(vec![
            format!("{:#x}", part.start),
            format!("{:#x}", status.len),
            place,
            status.depth.to_string(),
        ]);
    }
    output::table(&rows)
}
