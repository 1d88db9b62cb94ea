//! `cargo xtask check`: the rules of the house.
//!
//! ```text
//!   tools   rustfmt, clippy, rustdoc, cargo-deny (if it is there)
//!   rules   layers        crates/README.md          may a crate depend on that one?
//!           tree          every file                sizes, left-over macros, registries
//!           maps          ARCHITECTURE.md and others  do the paths exist?
//!           unsafety      ARCHITECTURE.md           is every unsafe module listed?
//!           licences      deny.toml                 may we use that crate?
//! ```
//!
//! A rule reads texts and returns [`Finding`]s; only this file runs programs.

mod layers;
mod licences;
mod maps;
mod tree;
mod unsafety;

use std::fmt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::project;
use tree::Tree;

#[derive(clap::Args)]
pub struct Args {
    /// Leave out clippy and rustdoc, which compile.
    #[arg(long)]
    quick: bool,
    /// Also show what is worth a look but no error: files over 600 lines, the time of each step.
    #[arg(long, short)]
    verbose: bool,
}

/// Something that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    /// File, or file and line.
    place: String,
    what: String,
}

impl Finding {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let root = project::root();
    let metadata = metadata(&root)?;
    let packages = layers::packages(&metadata)?;
    let tree = Tree::read(&root)?;
    if args.verbose {
        tree.long_files()
            .iter()
            .for_each(|note| println!("note: {note}"));
    }
    let mut steps = Steps {
        verbose: args.verbose,
        failed: 0,
    };
    steps.rule("layers", || {
        let law = layers::Law::parse(&tree.text("crates/README.md")?)?;
        let mut findings = law.check(&packages);
        findings.extend(layers::lints(&tree));
        Ok(findings)
    });
    steps.rule("tree", || Ok(tree.check()));
    steps.rule("maps", || Ok(maps::check(&tree)));
    steps.rule("unsafety", || unsafety::check(&tree));
    steps.rule("licences", || {
        let policy = licences::Policy::parse(&tree.text("deny.toml")?)?;
        licences::check(&policy, &metadata)
    });
    steps.tool("rustfmt", cargo(&root, &["fmt", "--all", "--check"]));
    steps.tool("rustfmt fuzz", fuzz(&root, &["fmt", "--check"])?);
    if installed("cargo-deny") {
        let rules = ["deny", "check", "bans", "licenses", "sources"];
        steps.tool("cargo-deny", cargo(&root, &rules));
    }
    if !args.quick {
        let features = layers::test_features(&packages);
        steps.tool("clippy", clippy(&root, &features));
        // Without the fuzzer itself, which is C++.
        let mut library = fuzz(&root, &["clippy", "--quiet", "--no-default-features"])?;
        library.args(["--lib", "--tests", "--", "-D", "warnings"]);
        steps.tool("clippy fuzz", library);
        let mut doc = cargo(&root, &["doc", "--quiet", "--workspace", "--no-deps"]);
        // The tasks' comments are help texts of their options.
        doc.args(["--document-private-items", "--exclude", "xtask"])
            .env("RUSTDOCFLAGS", "-D warnings");
        steps.tool("rustdoc", doc);
    }
    Ok(steps.end())
}

/// Runs the steps and counts those that failed; all of them run in any case.
struct Steps {
    verbose: bool,
    failed: u32,
}

impl Steps {
    fn rule(&mut self, name: &str, step: impl FnOnce() -> anyhow::Result<Vec<Finding>>) {
        let start = Instant::now();
        let findings = step().unwrap_or_else(|e| vec![Finding::new(name, format!("{e:#}"))]);
        findings.iter().for_each(|finding| println!("{finding}"));
        self.say(name, start, findings.is_empty());
    }

    fn tool(&mut self, name: &str, mut command: Command) {
        let start = Instant::now();
        let good = match command.stdin(Stdio::null()).status() {
            Ok(status) => status.success(),
            Err(e) => {
                println!("{name}: cannot run {:?}: {e}", command.get_program());
                false
            }
        };
        self.say(name, start, good);
    }

    fn say(&mut self, name: &str, start: Instant, good: bool) {
        self.failed += u32::from(!good);
        let verdict = if good { "ok" } else { "FAILED" };
        if self.verbose {
            println!("check {name}: {verdict}, {:.1?}", start.elapsed());
        } else {
            println!("check {name}: {verdict}");
        }
    }

    fn end(self) -> ExitCode {
        if self.failed == 0 {
            return ExitCode::SUCCESS;
        }
        println!("{} checks failed", self.failed);
        ExitCode::FAILURE
    }
}

fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(arguments);
    command
}

/// The fuzz targets are a workspace of their own.
fn fuzz(root: &Path, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = cargo(&root.join("fuzz"), arguments);
    command.env("CARGO_TARGET_DIR", project::target()?.join("fuzz"));
    Ok(command)
}

fn clippy(root: &Path, features: &[String]) -> Command {
    let mut command = cargo(root, &["clippy", "--quiet", "--workspace", "--all-targets"]);
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
    command.args(["--", "-D", "warnings"]);
    command
}

/// Whether a program is in the search path.
fn installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    })
}

/// What cargo knows about all packages that this platform's build uses.
fn metadata(root: &Path) -> anyhow::Result<Value> {
    let arguments = [
        "metadata",
        "--format-version=1",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ];
    let output = cargo(root, &arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed");
    serde_json::from_slice(&output.stdout).context("cargo metadata's answer")
}
