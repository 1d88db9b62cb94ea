//! Disks of a machine that runs: snapshots, merges, copies, limits, over its control socket.
//!
//! ```text
//!   vireo COMMAND VM DISK ... ─▶ client.rs ─▶ QMP commands ─▶ the machine's block graph
//!                                    ▲               │
//!                          follow.rs └── the job ◀───┘   progress; Ctrl-C cancels it
//! ```
//!
//! | file          | what                                                        |
//! |---------------|-------------------------------------------------------------|
//! | `common.rs`   | options that several have                                    |
//! | `disk.rs`     | what the machine says of its disks                           |
//! | `follow.rs`   | a job until its end                                          |
//! | `target.rs`   | images that a machine writes to, made and given back         |
//!
//! Every other file is a command.
//!
//! Exit statuses: 0 done, 1 failed (or cancelled by somebody else), 2 what was typed makes no
//! sense, 130 cancelled by Ctrl-C.

mod backup;
mod commit;
mod common;
mod disk;
mod disks;
mod follow;
mod jobs;
mod mirror;
mod pull;
mod snapshot;
mod target;
mod throttle;

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use crate::failure::Result;

/// The commands.
pub(crate) fn commands() -> [Command; 8] {
    [
        disks::command(),
        snapshot::command(),
        commit::command(),
        pull::command(),
        mirror::command(),
        backup::command(),
        throttle::command(),
        jobs::command(),
    ]
}

/// Does one of them.
pub(crate) fn execute(name: &str, matches: &ArgMatches) -> Result<ExitCode> {
    match name {
        snapshot::NAME => snapshot::execute(matches),
        commit::NAME => commit::execute(matches),
        pull::NAME => pull::execute(matches),
        mirror::NAME => mirror::execute(matches),
        backup::NAME => backup::execute(matches),
        throttle::NAME => throttle::execute(matches),
        jobs::NAME => jobs::execute(matches),
        _ => disks::execute(matches),
    }
}
