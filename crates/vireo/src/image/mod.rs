//! `vireo image`: disk images, in the words of qemu-img, and guests to try it with.
//!
//! | file         | what                                                          |
//! |--------------|---------------------------------------------------------------|
//! | `common.rs`  | options that several have; opening images, on I/O threads      |
//! | `encryption.rs` | what `-o` and options say about passphrases            |
//! | `remote.rs`  | images that a server has                                      |
//! | `copying.rs` | work on a whole disk, by all processors, with progress         |
//! | `build.rs`   | `image build debian`                                           |
//!
//! Every other file is a subcommand.

mod amend;
mod bench;
mod bitmap;
mod build;
mod check;
mod commit;
pub(crate) mod common;
mod compare;
mod convert;
mod copying;
mod create;
mod encryption;
mod info;
mod map;
mod rebase;
mod remote;
mod resize;
mod snapshot;

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use crate::failure::{Failure, Result};

pub(crate) const NAME: &str = "image";

pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Makes, checks, converts and compares disk images, and builds guests")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(create::command())
        .subcommand(info::command())
        .subcommand(check::command())
        .subcommand(convert::command())
        .subcommand(resize::command())
        .subcommand(compare::command())
        .subcommand(map::command())
        .subcommand(snapshot::command())
        .subcommand(bench::command())
        .subcommand(rebase::command())
        .subcommand(commit::command())
        .subcommand(bitmap::command())
        .subcommand(amend::command())
        .subcommand(build::command())
}

pub(crate) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    match matches.subcommand() {
        Some((create::NAME, matches)) => create::execute(matches),
        Some((info::NAME, matches)) => info::execute(matches),
        Some((check::NAME, matches)) => check::execute(matches),
        Some((convert::NAME, matches)) => convert::execute(matches),
        Some((resize::NAME, matches)) => resize::execute(matches),
        Some((compare::NAME, matches)) => compare::execute(matches),
        Some((bitmap::NAME, matches)) => bitmap::execute(matches),
        Some((rebase::NAME, matches)) => rebase::execute(matches),
        Some((commit::NAME, matches)) => commit::execute(matches),
        Some((bench::NAME, matches)) => bench::execute(matches),
        Some((snapshot::NAME, matches)) => snapshot::execute(matches),
        Some((map::NAME, matches)) => map::execute(matches),
        Some((amend::NAME, matches)) => amend::execute(matches),
        Some((build::NAME, matches)) => build::execute(matches),
        _ => Err(Failure::Usage(
            "image: say what to do; --help lists it".into(),
        )),
    }
}
