//! `cargo xtask fuzz TARGET`: runs a fuzz target with the stable compiler.
//!
//! cargo-fuzz wants a nightly compiler for its sanitizers. Ours are safe Rust with overflow
//! checks and assertions, where a mistake is a panic; coverage instrumentation is all that
//! libFuzzer needs besides, and the stable compiler has that.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};

use crate::project;

/// What makes LLVM count edges and comparisons for libFuzzer.
const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 --cfg fuzzing";

/// Named so that the flags do not reach build scripts.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

#[derive(clap::Args)]
pub struct Args {
    /// Target of fuzz/targets, or "all", one after the other; what there is, when not given.
    target: Option<String>,
    /// How long each runs.
    #[arg(long, default_value_t = 1.0, value_name = "N")]
    minutes: f64,
    /// Further arguments for libFuzzer: files to be run once, or its options.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let targets = targets()?;
    let chosen: Vec<&String> = match args.target.as_deref() {
        None => {
            println!("{}", targets.join("\n"));
            return Ok(ExitCode::SUCCESS);
        }
        Some("all") => targets.iter().collect(),
        Some(name) => targets.iter().filter(|target| *target == name).collect(),
    };
    if chosen.is_empty() {
        bail!("there is no such target; there are {}", targets.join(", "));
    }
    build(&chosen)?;
    let mut crashed = Vec::new();
    for target in chosen {
        if !fuzz(target, args)? {
            crashed.push(target.as_str());
        }
    }
    if crashed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "crashed: {}; the inputs are in fuzz/artifacts",
        crashed.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

/// The names of the files in fuzz/targets.
fn targets() -> anyhow::Result<Vec<String>> {
    let folder = project::root().join("fuzz/targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        names.push(name.into_owned());
    }
    names.sort();
    Ok(names)
}

fn build(targets: &[&String]) -> anyhow::Result<()> {
    let mut command = Command::new("cargo");
    command
        .current_dir(project::root().join("fuzz"))
        .args(["build", "--release", "--target", PLATFORM])
        .env("RUSTFLAGS", FLAGS)
        .env("CARGO_TARGET_DIR", project::target()?.join("fuzz"));
    for target in targets {
        command.args(["--bin", target]);
    }
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "the fuzz targets do not build");
    Ok(())
}

/// Runs one target; tells whether it got through.
fn fuzz(target: &str, args: &Args) -> anyhow::Result<bool> {
    let fuzz = project::root().join("fuzz");
    let (corpus, artifacts) = (
        fuzz.join("corpus").join(target),
        fuzz.join("artifacts").join(target),
    );
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let program = project::target()?
        .join("fuzz")
        .join(PLATFORM)
        .join("release")
        .join(target);
    let seconds = (args.minutes * 60.0).ceil().max(1.0);
    let mut command = Command::new(program);
    command
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-timeout=20", "-max_len=4096", "-print_final_stats=1"])
        .arg(format!("-max_total_time={seconds}"));
    if args.rest.is_empty() {
        command.arg(&corpus);
        // What is found goes to the first folder; the others are only read.
        command.args(Some(fuzz.join("seeds").join(target)).filter(|seeds| seeds.is_dir()));
    }
    let status = command.args(&args.rest).status();
    Ok(status
        .with_context(|| format!("cannot run {target}"))?
        .success())
}
