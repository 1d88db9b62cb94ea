//! `cargo xtask fuzz-cpu`: random instructions on the software processor.
//!
//! ```text
//!   interpreter ⇄ this host's processor        translated code ⇄ interpreter
//! ```
//!
//! What is found is printed as a snippet; it goes to tests/conformance/snippets when it is fixed.

use std::process::{Command, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};

use crate::project;

#[derive(clap::Args)]
pub struct Args {
    /// How long it runs.
    #[arg(long, default_value_t = 1.0, value_name = "N")]
    minutes: f64,
    /// First seed; another one every time when not given.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cargo = || {
        let mut cargo = Command::new("cargo");
        cargo.current_dir(project::root());
        cargo
    };
    let program = ["--package", "conformance", "--bin", "fuzz-cpu"];
    let built = cargo().arg("build").args(program).status()?;
    ensure!(built.success(), "fuzz-cpu does not build");
    let seed = match args.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64,
    };
    // At the same time: each needs a process of its own, for its signal handlers.
    let mut running = Vec::new();
    for what in ["host", "translator"] {
        let child = cargo()
            .args(["run", "--quiet"])
            .args(program)
            .args(["--", what, &args.minutes.to_string(), &seed.to_string()])
            .spawn()
            .context("cannot start cargo")?;
        running.push((what, child));
    }
    let mut failed = false;
    for (what, mut child) in running {
        let status = child.wait()?;
        if !status.success() {
            eprintln!("{what}: {status}");
            failed = true;
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
