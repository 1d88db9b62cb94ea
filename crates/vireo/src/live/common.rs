//! What the commands share.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, value_parser};
use spec::Size;

use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::image::common::{flag, text};

/// The machine.
pub(super) fn vm() -> Arg {
    Arg::new("vm")
        .value_name("VM")
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .help("The machine: the socket that --qmp made")
}

/// The disk.
pub(super) fn disk() -> Arg {
    Arg::new("disk")
        .value_name("DISK")
        .required(true)
        .help("The disk's id, as \"vireo disks VM\" shows it")
}

/// How fast a job may be.
pub(super) fn speed() -> Arg {
    text(
        "speed",
        "SIZE",
        "Bytes a second at most, with K, M, G; as fast as possible when not given",
    )
}

/// `--quiet`.
pub(super) fn quiet() -> Arg {
    flag("quiet", "Say nothing, and show no progress").short('q')
}

/// One word of the command line.
pub(super) fn word<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).map_or("", String::as_str)
}

/// A file of the command line, as the machine finds it: it may run in another directory.
pub(super) fn file(matches: &ArgMatches, name: &str) -> Result<PathBuf> {
    let path = matches.get_one::<PathBuf>(name);
    absolute(path.map_or(Path::new(""), PathBuf::as_path))
}

/// A path that means the same in every directory.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}

/// `--speed` in bytes a second; 0 when it was not given.
pub(super) fn speed_of(matches: &ArgMatches) -> Result<u64> {
    match matches.get_one::<String>("speed") {
        None => Ok(0),
        Some(word) => bytes("--speed", word),
    }
}

/// A number with K, M, G.
pub(super) fn bytes(option: &str, word: &str) -> Result<u64> {
    word.parse::<Size>()
        .map(|size| size.0)
        .map_err(|why| Failure::Usage(format!("{option} {word}: {why}")))
}

/// Connects to the machine.
pub(super) fn connect(matches: &ArgMatches) -> Result<Client> {
    let path = matches.get_one::<PathBuf>("vm");
    let path = path.map_or(Path::new(""), PathBuf::as_path);
    let begun = Client::connect(path).and_then(|mut client| {
        client.call("qmp_capabilities", None)?;
        Ok(client)
    });
    begun.map_err(|failure| failure.at(path.display()))
}
