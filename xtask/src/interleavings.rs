//! `cargo xtask interleavings`: the locks of the block layer under a scheduler that tries one
//! interleaving of threads after the other (crates/block/src/sync.rs).

use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};

use crate::project;

#[derive(clap::Args)]
pub struct Args {
    /// Interleavings of each scenario and kind.
    #[arg(long, default_value_t = 100, value_name = "N")]
    times: u32,
    /// Only tests whose name has this in it.
    #[arg(default_value = "interleavings")]
    filter: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    flags.push_str(" --cfg shuttle");
    // A folder of its own: with other flags everything is built anew.
    let target = project::target()?.join("shuttle");
    let status = Command::new("cargo")
        .args(["test", "--package", "block", "--lib", "--target-dir"])
        .arg(target)
        .arg(&args.filter)
        .env("RUSTFLAGS", flags.trim_start())
        .env("VIREO_INTERLEAVINGS", args.times.to_string())
        // The scheduler prints a trace of its own for what it finds.
        .env("RUST_BACKTRACE", "0")
        .current_dir(project::root())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "an interleaving failed: see above");
    Ok(ExitCode::SUCCESS)
}
