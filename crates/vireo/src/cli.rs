//! The command line, and its errors on one line.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command};

use crate::failure::{Failure, Result};
use crate::{accel_check, completions, cpus, devices, export, image, live, qmp, run};

/// The whole command with its subcommands.
pub(crate) fn command() -> Command {
    Command::new("vireo")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs virtual machines")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(run::command())
        .subcommand(devices::command())
        .subcommand(cpus::command())
        .subcommand(accel_check::command())
        .subcommand(image::command())
        .subcommand(export::command())
        .subcommands(live::commands())
        .subcommand(qmp::command())
        .subcommand(completions::command())
}

/// Understands what was typed. The parser and its texts are gone when it returns.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<ArgMatches> {
    command()
        .try_get_matches_from(words)
        .map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                // A reader that has gone needs no help.
                _ = error.print();
                Failure::Silent(ExitCode::SUCCESS)
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                _ = error.print();
                Failure::Silent(ExitCode::from(2))
            }
            _ => Failure::Usage(one_line(&error.render().to_string()) + &advice(&error)),
        })
}

/// What to do about a word that the parser does not know and found nothing near to.
fn advice(error: &clap::Error) -> String {
    let near = [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg];
    if near.into_iter().any(|kind| error.get(kind).is_some()) {
        return String::new();
    }
    match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        (ErrorKind::InvalidSubcommand, Some(ContextValue::String(word))) => {
            let all = command();
            match spec::nearest(word, all.get_subcommands().map(Command::get_name)) {
                Some(name) => format!("; did you mean {name:?}?"),
                None => "; \"vireo --help\" lists them".into(),
            }
        }
        (ErrorKind::UnknownArgument, _) => "; --help lists the options".into(),
        _ => String::new(),
    }
}

/// The parser's error without its usage, on one line.
fn one_line(text: &str) -> String {
    let said = text.split("\n\nUsage:").next().unwrap_or(text);
    let said = said
        .split("\n\nFor more information")
        .next()
        .unwrap_or(said);
    let lines: Vec<&str> = said
        .lines()
        .map(|line| {
            line.trim()
                .trim_start_matches("error: ")
                .trim_start_matches("tip: ")
        })
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ").replace(":; ", ": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        command().debug_assert();
    }

    #[test]
    fn errors_take_one_line_and_name_what_is_near() {
        let words = ["vireo", "run", "--dsk", "a.img"].map(OsString::from);
        let Err(Failure::Usage(message)) = parse(words) else {
            panic!("expected a usage error")
        };
        assert!(!message.contains('\n'), "{message}");
        assert!(
            message.contains("--dsk") && message.contains("--disk"),
            "{message}"
        );
    }
}
