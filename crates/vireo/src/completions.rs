//! `vireo completions`: what a shell needs to complete the command line.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::{Shell, generate};

use crate::failure::Result;
use crate::{cli, output};

pub(crate) const NAME: &str = "completions";

pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Prints a script that completes the command line in a shell")
        .after_help(
            "Example: vireo completions bash > ~/.local/share/bash-completion/completions/vireo",
        )
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .required(true)
                .value_parser(value_parser!(Shell))
                .help("The shell"),
        )
}

pub(crate) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let mut script = Vec::new();
    if let Some(shell) = matches.get_one::<Shell>("shell") {
        generate(*shell, &mut cli::command(), "vireo", &mut script);
    }
    output::print(&String::from_utf8_lossy(&script))
}
