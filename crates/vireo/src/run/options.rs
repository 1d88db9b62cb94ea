//! The options of `vireo run`. Most derive from the machine's sections and the catalog of
//! devices: a new device has its option, with help, by being in the catalog.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use machine::{DeviceType, Place, Section, catalog, common_properties, sections};
use spec::{Properties, Property, Spec, Value};

use super::said::{ProcessSpec, Said};
use crate::failure::Result;
use crate::logger::LogSpec;
use crate::{cpus, describe, devices};

pub(super) const CONFIG: &str = "config";
pub(super) const PRINT_CONFIG: &str = "print-config";
const DEVICE: &str = "device";

/// Short options for single properties of sections: option, value, section, property, help.
const SINGLE: &[(&str, &str, &str, &str, &str)] = &[
    (
        "initrd",
        "FILE",
        "kernel",
        "initrd",
        "Initial RAM disk of the kernel",
    ),
    (
        "append",
        "TEXT",
        "kernel",
        "cmdline",
        "Command line of the kernel",
    ),
];

const MACHINE: &str = "Machine";
const DEVICES: &str = "Devices";
const PROCESS: &str = "Process";

const EXAMPLE: &str = "Example:
  vireo run --kernel vmlinuz --initrd initrd.img --append \"console=ttyS0 root=/dev/vda\" \\
    --disk root.img --cpus 2 --memory 1G --net user
Without --serial and --console the guest has this terminal as its first serial port; Ctrl-] there
leaves. --help explains every property.";

const GRAMMAR: &str = "Properties are written NAME=VALUE,NAME=VALUE. The first one in an option's list may leave out its
name: --disk a.img,cache=none. A comma inside a value is written twice. Sizes are in bytes or have
the unit K, M, G or T (powers of 1024). \"--OPTION help\" explains one option, \"--cpu help\" lists the
processor models, \"--device help\" the device types.

A configuration file says the same in TOML: a table [memory] for an option that is given once, an
array of tables [[disk]] for one that may be repeated, [[device]] with a type for any device.

The exit status is 0 when the guest powers off, 1 when the machine cannot start or go on, 2 when
what was typed makes no sense, 3 when the guest panics, 4 at a triple fault, 143 when a signal ends
it before the guest has powered off, and 2n+1 when the guest writes n to isa-debug-exit.";

/// An option that a spec stands behind.
#[derive(Clone, Copy)]
enum Derived {
    Section(&'static Section),
    Device(&'static DeviceType, &'static str),
}

fn derived() -> impl Iterator<Item = Derived> {
    let devices = catalog()
        .iter()
        .filter_map(|d| Some(Derived::Device(d, d.shorthand?)));
    sections().iter().map(Derived::Section).chain(devices)
}

impl Derived {
    fn name(self) -> &'static str {
        match self {
            Self::Section(section) => section.name,
            Self::Device(_, shorthand) => shorthand,
        }
    }

    fn properties(self) -> Vec<Property> {
        match self {
            Self::Section(section) => (section.properties)(),
            Self::Device(device, _) => (device.properties)(),
        }
    }

    fn repeats(self) -> bool {
        match self {
            Self::Section(section) => section.repeats,
            Self::Device(..) => true,
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Section(section) => describe::section(section),
            Self::Device(device, _) => describe::device(device),
        }
    }

    fn option(self) -> Arg {
        let (summary, heading) = match self {
            Self::Section(section) => (phrase(section.help), MACHINE),
            Self::Device(device, _) => (
                format!("{} ({})", phrase(device.help), device.name),
                DEVICES,
            ),
        };
        let repeated = if self.repeats() {
            "; may be repeated"
        } else {
            ""
        };
        spec_option(self.name(), &summary, repeated, &self.properties()).help_heading(heading)
    }
}

/// An option that takes properties.
fn spec_option(name: &'static str, summary: &str, repeated: &str, properties: &[Property]) -> Arg {
    let more = if properties.len() > 1 { "[,...]" } else { "" };
    // A switch says nothing without its name.
    let first = properties.first().filter(|p| p.kind != "on|off");
    let value = first.map_or("NAME=VALUE,...".into(), |p| {
        format!("{}{more}", p.name.to_uppercase())
    });
    let default = first.and_then(|p| Some((&p.name, p.default.as_deref()?)));
    let default = match default {
        Some((_, "")) | None => String::new(),
        Some((_, default)) if more.is_empty() => format!(" [default: {default}]"),
        Some((name, default)) => format!(" [default: {name}={default}]"),
    };
    let summary = format!("{summary}{repeated}");
    let long = format!("{summary}\n{}", describe::properties(properties, 2));
    let option = Arg::new(name)
        .long(name)
        .value_name(value)
        .action(ArgAction::Append)
        .help(format!("{summary}{default}"))
        .long_help(long.trim_end().to_owned());
    if properties.iter().any(|p| p.required) {
        return option;
    }
    // --rng alone is a device with all its defaults.
    option.num_args(0..=1).default_missing_value("")
}

/// A help text as a phrase: on one line, without its full stop.
fn phrase(help: &str) -> String {
    let words: Vec<&str> = help.split_whitespace().collect();
    words.join(" ").trim_end_matches('.').to_owned()
}

pub(crate) fn command() -> Command {
    let common = format!(
        "{GRAMMAR}\n\nEvery virtio device also has:\n{}",
        describe::properties(&common_properties(Place::Virtio), 2)
    );
    Command::new(super::NAME)
        .about("Runs a machine until it ends")
        .after_help(EXAMPLE)
        .after_long_help(format!("{EXAMPLE}\n\n{common}"))
        .args(derived().map(Derived::option))
        .args(
            SINGLE
                .iter()
                .map(|(option, value, section, property, help)| {
                    Arg::new(*option)
                        .long(*option)
                        .value_name(*value)
                        .help(*help)
                        .long_help(format!("{help}; as --{section} {property}={value}"))
                        .help_heading(MACHINE)
                }),
        )
        .arg(
            Arg::new(DEVICE)
                .long(DEVICE)
                .value_name("TYPE[,...]")
                .action(ArgAction::Append)
                .help("Any device by its type; may be repeated (\"vireo devices\" lists the types)")
                .help_heading(DEVICES),
        )
        .arg(
            spec_option(
                LogSpec::NAME,
                &phrase(LogSpec::HELP),
                "",
                &LogSpec::properties(),
            )
            .help_heading(PROCESS),
        )
        .arg(
            path(
                "pidfile",
                "File that holds the process's number from when the machine is built until it ends",
            )
            .value_parser(clap::builder::StringValueParser::new()),
        )
        .arg(path(
            CONFIG,
            "Read a configuration first; what the command line says wins, its devices come after",
        ))
        .arg(
            Arg::new(PRINT_CONFIG)
                .long(PRINT_CONFIG)
                .action(ArgAction::SetTrue)
                .help("Print a configuration that says the same as the command line, and end")
                .help_heading(PROCESS),
        )
}

fn path(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help(help)
        .help_heading(PROCESS)
}

/// What an option's `help` asks for, if one does.
pub(super) fn help_asked_for(matches: &ArgMatches) -> Option<Result<String>> {
    let asks = |name: &str| {
        let mut values = matches.get_many::<String>(name).unwrap_or_default();
        values.any(|value| value == "help")
    };
    if asks("cpu") {
        return Some(Ok(cpus::text(Path::new("/dev/kvm"))));
    }
    if asks(DEVICE) {
        return Some(Ok(devices::list()));
    }
    let mut types = matches.get_many::<String>(DEVICE).unwrap_or_default();
    if let Some(name) = types.find_map(|value| value.strip_suffix(",help")) {
        return Some(
            machine::find(name)
                .map(describe::device)
                .map_err(Into::into),
        );
    }
    if asks(LogSpec::NAME) {
        let properties = describe::properties(&LogSpec::properties(), 2);
        return Some(Ok(format!("{}\n{properties}", LogSpec::HELP)));
    }
    derived()
        .find(|option| asks(option.name()))
        .map(|option| Ok(option.describe()))
}

/// Adds what the command line says, devices in the order in which they were named.
pub(super) fn add(matches: &ArgMatches, said: &mut Said) -> Result<()> {
    let names = derived().map(Derived::name).chain([DEVICE]);
    let mut statements: Vec<(usize, &str, &str)> = Vec::new();
    for name in names {
        let values = matches.get_many::<String>(name).unwrap_or_default();
        let places = matches.indices_of(name).unwrap_or_default();
        statements.extend(
            places
                .zip(values)
                .map(|(place, value)| (place, name, value.as_str())),
        );
    }
    statements.sort_unstable();
    for (_, name, text) in statements {
        match name {
            DEVICE => said.description.add_device(text)?,
            _ => said.description.add(name, text)?,
        }
    }
    for (option, _, section, property, _) in SINGLE {
        if let Some(value) = matches.get_one::<String>(option) {
            said.description.set(section, property, value);
        }
    }
    for text in matches
        .get_many::<String>(LogSpec::NAME)
        .unwrap_or_default()
    {
        let first = LogSpec::properties().into_iter().next().map(|p| p.name);
        said.add_own(
            LogSpec::NAME,
            &Properties::parse(LogSpec::NAME, first.as_deref(), text)?,
        );
    }
    if let Some(path) = matches.get_one::<String>("pidfile") {
        let mut given = Properties::new();
        given.set("pidfile", Value::Text(path.clone()));
        said.add_own(ProcessSpec::NAME, &given);
    }
    Ok(())
}
