//! `vireo devices`: the device types and their properties, from their specs.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use machine::{DeviceType, catalog};
use serde_json::{Value, json};
use spec::Property;

use crate::failure::Result;
use crate::{describe, output};

pub(crate) const NAME: &str = "devices";

pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Lists the device types and their properties")
        .arg(
            Arg::new("type")
                .value_name("TYPE")
                .help("Explain one type, by its name or its option's"),
        )
        .arg(output::format_option())
}

pub(crate) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let one = matches
        .get_one::<String>("type")
        .map(|name| machine::find(name))
        .transpose()?;
    match (one, output::wants_json(matches)) {
        (Some(device), true) => output::print_json(&json(device)),
        (None, true) => output::print_json(&catalog().iter().map(json).collect()),
        (Some(device), false) => output::print(&describe::device(device)),
        (None, false) => output::print(&list()),
    }
}

/// All types with the names of their properties.
pub(crate) fn list() -> String {
    let mut rows = vec![
        ["TYPE", "OPTION", "WHAT IT IS, AND ITS PROPERTIES"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for device in catalog() {
        let names: Vec<String> = (device.properties)().into_iter().map(|p| p.name).collect();
        let option = device
            .shorthand
            .map(|s| format!("--{s}"))
            .unwrap_or_default();
        rows.push(vec![device.name.to_owned(), option, device.help.to_owned()]);
        rows.push(vec![String::new(), String::new(), names.join(", ")]);
    }
    format!(
        "{}\n\"vireo devices TYPE\" explains the properties of a type.\n",
        output::table(&rows)
    )
}

fn json(device: &DeviceType) -> Value {
    let list = |properties: &[Property]| -> Value {
        properties
            .iter()
            .map(|p| {
                json!({
                    "name": p.name,
                    "kind": p.kind,
                    "default": p.default,
                    "required": p.required,
                    "help": p.help,
                })
            })
            .collect()
    };
    json!({
        "type": device.name,
        "option": device.shorthand,
        "help": device.help,
        "place": describe::place(device.place),
        "properties": list(&(device.properties)()),
        "common-properties": list(&describe::common(device)),
    })
}
