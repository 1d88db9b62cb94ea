//! `vireo throttle`.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value, json};

use super::{common, disk};
use crate::failure::{Failure, Result};
use crate::image::common::{output as output_option, wants_json};
use crate::output;

pub(super) const NAME: &str = "throttle";

/// The limits as properties of a disk have them, and as the control protocol does.
const LIMITS: [(&str, &str); 19] = [
    ("bps-total", "bps"),
    ("bps-read", "bps_rd"),
    ("bps-write", "bps_wr"),
    ("iops-total", "iops"),
    ("iops-read", "iops_rd"),
    ("iops-write", "iops_wr"),
    ("bps-total-max", "bps_max"),
    ("bps-read-max", "bps_rd_max"),
    ("bps-write-max", "bps_wr_max"),
    ("iops-total-max", "iops_max"),
    ("iops-read-max", "iops_rd_max"),
    ("iops-write-max", "iops_wr_max"),
    ("bps-total-max-length", "bps_max_length"),
    ("bps-read-max-length", "bps_rd_max_length"),
    ("bps-write-max-length", "bps_wr_max_length"),
    ("iops-total-max-length", "iops_max_length"),
    ("iops-read-max-length", "iops_rd_max_length"),
    ("iops-write-max-length", "iops_wr_max_length"),
    ("iops-size", "iops_size"),
];

pub(super) fn command() -> Command {
    let names: Vec<&str> = LIMITS.iter().map(|(name, _)| *name).collect();
    Command::new(NAME)
        .about("Limits the requests of a running machine's disk, and shows the limits")
        .after_help(format!(
            "Example: vireo throttle vm.sock disk0 iops-total=500 bps-write=20M\n         \
             vireo throttle vm.sock disk0 off\n\
             Limits that are not named stay as they are; 0 removes one.\n\
             Names: {}, group (a name that several disks may share).",
            names.join(", ")
        ))
        .arg(common::vm())
        .arg(common::disk())
        .arg(
            Arg::new("limits")
                .value_name("NAME=VALUE")
                .action(ArgAction::Append)
                .num_args(0..)
                .help("Limits to set, or \"off\" for none; without any, they are shown"),
        )
        .arg(output_option())
}

/// The limits that are in force, without those that are 0.
fn current(info: &Value) -> Map<String, Value> {
    let inserted = info.get("inserted");
    let limit = |name: &str| {
        let value = inserted?.get(name)?.as_u64()?;
        (value != 0).then_some(value)
    };
    let there = LIMITS
        .iter()
        .filter_map(|(name, old)| Some(((*name).to_owned(), limit(old)?.into())));
    let mut all: Map<String, Value> = there.collect();
    if let Some(group) = inserted.and_then(|top| top.get("group")) {
        all.insert("group".to_owned(), group.clone());
    }
    all
}

/// Changes limits as one word of the command line says.
fn apply(limits: &mut Map<String, Value>, word: &str) -> Result<()> {
    if word == "off" {
        let group = limits.remove("group");
        limits.clear();
        limits.extend(group.map(|group| ("group".to_owned(), group)));
        return Ok(());
    }
    let Some((name, value)) = word.split_once('=') else {
        return Err(Failure::Usage(format!(
            "{word:?}: expected NAME=VALUE, for example iops-total=500, or \"off\""
        )));
    };
    let name = name.replace('_', "-");
    if name == "group" {
        limits.insert(name, value.into());
        return Ok(());
    }
    // In the words of a disk's properties, or of the control protocol.
    let found = LIMITS
        .iter()
        .find(|(known, old)| *known == name || old.replace('_', "-") == name);
    let Some((name, _)) = found else {
        let near = spec::nearest(&name, LIMITS.iter().map(|(known, _)| *known));
        let advice = match near {
            Some(near) => format!("did you mean {near:?}?"),
            None => "--help lists the names".to_owned(),
        };
        return Err(Failure::Usage(format!(
            "there is no limit {name:?}: {advice}"
        )));
    };
    let number = common::bytes(name, value)?;
    limits.insert((*name).to_owned(), number.into());
    Ok(())
}

/// The arguments of `block_set_io_throttle`.
fn arguments(disk: &str, limits: &Map<String, Value>) -> Value {
    let mut arguments = json!({
        "device": disk,
        "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
    });
    for (name, old) in LIMITS {
        if let Some(value) = limits.get(name).filter(|value| value.as_u64() != Some(0)) {
            arguments[old] = value.clone();
        }
    }
    if let Some(group) = limits.get("group") {
        arguments["group"] = group.clone();
    }
    arguments
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let client = &mut common::connect(matches)?;
    let found = disk::one(client, common::word(matches, "disk"))?;
    let mut limits = current(&found.info);
    let words = matches.get_many::<String>("limits").unwrap_or_default();
    if words.len() != 0 {
        for word in words {
            apply(&mut limits, word)?;
        }
        let arguments = arguments(&found.id, &limits);
        client.call("block_set_io_throttle", Some(arguments))?;
        limits = current(&disk::one(client, &found.id)?.info);
    }
    if wants_json(matches) {
        return output::print_json(&Value::Object(limits));
    }
    if limits.keys().all(|name| name == "group") {
        return output::print(&format!("{}: no limits\n", found.id));
    }
    let row = |(name, value): (&String, &Value)| {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        vec![name.clone(), value]
    };
    let rows: Vec<_> = limits.iter().map(row).collect();
    output::print(&output::table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_not_named_stay() {
        let info = json!({"inserted": {"bps": 0, "iops": 500, "iops_max": 900, "group": "g"}});
        let mut limits = current(&info);
        apply(&mut limits, "bps-write=20M").unwrap();
        let set = arguments("d", &limits);
        assert_eq!((&set["iops"], &set["iops_max"]), (&json!(500), &json!(900)));
        assert_eq!((&set["bps_wr"], &set["bps"]), (&json!(20 << 20), &json!(0)));
        assert_eq!(set["group"], "g");
        apply(&mut limits, "bps_rd=1").unwrap();
        assert_eq!(limits["bps-read"], 1);
        apply(&mut limits, "off").unwrap();
        let set = arguments("d", &limits);
        assert_eq!((&set["iops"], set.get("iops_max")), (&json!(0), None));
        let Err(Failure::Usage(why)) = apply(&mut limits, "iops-totl=1") else {
            panic!("there is no such limit")
        };
        assert!(why.contains("iops-total"), "{why}");
        assert!(apply(&mut limits, "iops-total").is_err());
    }
}
