//! `vireo`: the command.
//!
//! ```text
//!   vireo run ────▶ run.rs ─▶ what was said (options, --config) ─▶ machine::Plan ─▶ machine::run
//!   vireo devices │ cpus │ accel-check          what there is to say, and what this host can do
//!   vireo image create │ info │ check │ convert │ ...        disk images, in qemu-img's words
//!   vireo export IMAGE --nbd ADDRESS            a disk image for others
//!   vireo image build debian                    a guest to try it with
//!   vireo disks │ snapshot │ commit │ ... VM       disks of a machine that runs
//!   vireo qmp SOCKET COMMAND                    a word to a machine that runs
//!   vireo completions SHELL
//! ```
//!
//! | file           | what                                                             |
//! |----------------|------------------------------------------------------------------|
//! | `cli.rs`       | the command line, and its errors on one line                      |
//! | `run.rs`       | `vireo run`; `run/options.rs` derives its options from the specs  |
//! | `describe.rs`  | properties as help shows them                                     |
//! | `logger.rs`    | log lines with time and level, limited where a guest can cause them |
//! | `client.rs`    | what speaks to the control socket of a machine                    |
//! | `live/`        | the commands for disks of a machine that runs                     |
//! | `progress.rs`  | how far long work is                                              |
//! | `failure.rs`   | errors, and the process's exit status                             |
//! | `heap.rs`      | keeps the process small                                           |
//!
//! Every other file is a subcommand.

mod accel_check;
mod cli;
mod client;
mod completions;
mod cpus;
mod describe;
mod devices;
mod export;
mod failure;
mod heap;
mod image;
mod live;
mod logger;
mod output;
mod progress;
mod qmp;
mod run;

use std::process::ExitCode;

use clap::ArgMatches;

use crate::failure::{Failure, Result};

fn main() -> ExitCode {
    heap::keep_small();
    let result = cli::parse(std::env::args_os()).and_then(dispatch);
    chardev::restore_terminal();
    log::logger().flush();
    result.unwrap_or_else(Failure::report)
}

fn dispatch(mut matches: ArgMatches) -> Result<ExitCode> {
    match matches.remove_subcommand() {
        Some((name, matches)) => match name.as_str() {
            run::NAME => run::execute(matches),
            devices::NAME => devices::execute(&matches),
            cpus::NAME => cpus::execute(&matches),
            accel_check::NAME => accel_check::execute(&matches),
            image::NAME => image::execute(&matches),
            export::NAME => export::execute(&matches),
            qmp::NAME => qmp::execute(&matches),
            completions::NAME => completions::execute(&matches),
            name => live::execute(name, &matches),
        },
        // The parser has asked for a subcommand.
        None => Ok(ExitCode::SUCCESS),
    }
}
