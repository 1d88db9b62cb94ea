//! `vireo image resize`.

use std::process::ExitCode;

use block::OpenOptions;
use clap::{Arg, ArgMatches, Command};

use super::{common, encryption};
use crate::failure::{Failure, Result};
use crate::output;

pub(super) const NAME: &str = "resize";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Changes the size of the disk in an image")
        .arg(common::format("Format of the image"))
        .arg(common::flag(
            "shrink",
            "Allow the end of the disk to be cut off",
        ))
        .arg(common::backing_files())
        .arg(encryption::key_file())
        .arg(common::file("file", "FILE", "The image"))
        .arg(
            Arg::new("size")
                .value_name("[+|-]SIZE")
                .required(true)
                .allow_hyphen_values(true)
                .help("The new size, or by how much to change it"),
        )
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let spec = common::spec(matches, "file", "format")?;
    let word = matches.get_one::<String>("size").map_or("", String::as_str);
    let image = common::open(&spec, OpenOptions::default())?;
    let node = image.node();
    let old = node.size();
    let size = match word.split_at_checked(1) {
        Some(("+", rest)) => old.checked_add(common::size("SIZE", rest)?),
        Some(("-", rest)) => old.checked_sub(common::size("SIZE", rest)?),
        _ => Some(common::size("SIZE", word)?),
    };
    let size = size
        .filter(|size| *size != 0)
        .and_then(|size| size.checked_next_multiple_of(512))
        .ok_or_else(|| Failure::Usage(format!("{word}: no disk has that size")))?;
    if size < old && !matches.get_flag("shrink") {
        return Err(Failure::Usage(format!(
            "{} is larger ({}): shrink the file systems in it first, then say --shrink",
            spec.file.display(),
            common::human(old)
        )));
    }
    common::run(move || async move { node.resize(size).await })?;
    common::close(&image)?;
    output::print("Image resized.\n")
}
