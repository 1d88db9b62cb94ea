//! `cargo xtask guest-tests`: every test with real guests, on each accelerator.
//!
//! ```text
//!   cargo build vireo        ─┐                     ┌─▶ here: soft ──────────────────┐
//!   cargo test --no-run ──────┼─▶ units, a queue ───┼─▶ box: a batch of units on kvm ├─▶ verdicts
//!   pip: qemu.qmp            ─┘        ▲            └─▶ …                          ──┘      │
//!                                      └──────── what failed, alone, in a fresh box ◀───────┘
//! ```
//!
//! A unit is a test program of another crate, or a scenario: a boot with its checks. The software
//! processor needs no box; KVM needs one where the machine's own does not work. QEMU's
//! emulation of SVM now and then kills or hangs a guest, or the whole box, under any monitor
//! (docs/design/box.md); a unit to which that happens runs again in a box of its own.

mod counter;
mod suite;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::{cache, project};
use suite::{Suite, Unit};

#[derive(clap::Args)]
pub struct Args {
    /// Run only tests whose name contains this; "debian_1", "exits::", "accel-kvm".
    filter: Option<String>,
    /// What executes the guests; may be repeated. Without it: both.
    #[arg(long, value_enum)]
    accel: Vec<Accel>,
    /// Test a debug build of Vireo, which takes longer to run and has assertions on.
    #[arg(long)]
    debug: bool,
    /// Boxes at once.
    #[arg(long, default_value_t = 1, value_name = "N")]
    boxes: u32,
    /// How often a unit that failed is run again, alone in a fresh box.
    #[arg(long, default_value_t = 7, value_name = "N")]
    retries: u32,
    /// Processors of a box.
    #[arg(long, default_value_t = 2, value_name = "N")]
    smp: u32,
    /// End a unit after this many seconds.
    #[arg(long, default_value_t = 300, value_name = "S")]
    timeout: u64,
}

/// What executes the guests.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The software processor.
    Soft,
    /// KVM.
    Kvm,
}

impl Accel {
    /// Its name on Vireo's command line.
    fn name(self) -> &'static str {
        match self {
            Accel::Soft => "soft",
            Accel::Kvm => "kvm",
        }
    }
}

#[derive(clap::Args)]
pub struct DifferentialArgs {
    /// Test a debug build.
    #[arg(long)]
    debug: bool,
}

/// Test programs: package, name of the target, features. Those of other crates have a few tests
/// that need a real KVM or a real network.
const PROGRAMS: [(&str, &str, &str); 4] = [
    ("accel-kvm", "kvm", "kvm-tests"),
    ("conformance", "kvm", "kvm-tests"),
    ("net", "tap", "net-tests"),
    (SCENARIOS, "guest", "guest-tests"),
];

/// The package whose test program has the scenarios.
const SCENARIOS: &str = "guest-tests";

/// The scenario that compares Vireo with QEMU.
const DIFFERENTIAL: &str = "differential::";

/// The scenario with a guest of its own. It tests the software processor, and takes as long under
/// KVM in the box as all others together.
const PROGRAMS_IN_GUEST: &str = "programs::";

/// QEMU's own client for QMP, from PyPI.
const PYTHON_QMP: &str = "qemu.qmp==0.0.6";

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    let suite = Suite {
        boxes: args.boxes.max(1),
        smp: args.smp,
        limit: Duration::from_secs(args.timeout),
        retries: args.retries,
        ..Suite::new(build_vireo(profile(args.debug))?)
    };
    let accels = match args.accel.as_slice() {
        [] => &[Accel::Soft, Accel::Kvm],
        chosen => chosen,
    };
    let counts = suite.run(units(args.filter.as_deref(), accels)?)?;
    eprintln!("guest-tests: {:.0} s in all", begin.elapsed().as_secs_f64());
    // The last line, which scripts read.
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(counts.status())
}

/// `cargo xtask differential`: the comparison with QEMU alone.
pub fn run_differential(args: &DifferentialArgs) -> anyhow::Result<ExitCode> {
    let suite = Suite::new(build_vireo(profile(args.debug))?);
    let counts = suite.run(units(Some(DIFFERENTIAL), &[Accel::Kvm])?)?;
    Ok(counts.status())
}

fn profile(debug: bool) -> &'static str {
    if debug { "dev" } else { "release" }
}

/// Builds the test programs and finds out what there is to run.
fn units(filter: Option<&str>, accels: &[Accel]) -> anyhow::Result<Vec<Unit>> {
    // A package's name chooses all of its tests.
    let package = filter.filter(|filter| PROGRAMS.iter().any(|(package, ..)| package == filter));
    let mut units = Vec::new();
    for (name, target, feature) in PROGRAMS {
        let wanted = match (package, filter) {
            (Some(package), _) => package == name,
            (None, Some(_)) => name == SCENARIOS,
            (None, None) => true,
        };
        if !wanted {
            continue;
        }
        let program = build_test(name, target, feature)?;
        let command = quoted(&program)?;
        if name != SCENARIOS {
            // They need KVM, or the box's network.
            if accels.contains(&Accel::Kvm) {
                units.push(Unit::program(name, command));
            }
            continue;
        }
        let names = list(&program)?;
        let filter = filter.filter(|_| package.is_none());
        for &accel in accels {
            let chosen = scenarios(&names, filter).into_iter();
            // QEMU's machine has the same accelerator to be compared with only under KVM.
            let left_out = match accel {
                Accel::Soft => DIFFERENTIAL,
                Accel::Kvm => PROGRAMS_IN_GUEST,
            };
            let chosen = chosen.filter(|arguments| {
                !arguments
                    .trim_start_matches("--exact ")
                    .starts_with(left_out)
            });
            units.extend(chosen.map(|arguments| {
                let title = arguments.trim_start_matches("--exact ").to_owned();
                let command = format!("{command} --test-threads 1 {arguments}");
                Unit::scenario(title, command, accel)
            }));
        }
    }
    ensure!(
        !units.is_empty(),
        "no test's name contains {:?}",
        filter.unwrap_or_default()
    );
    Ok(units)
}

/// The names of a test program's tests.
fn list(program: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(program)
        .arg("--list")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} --list failed",
        program.display()
    );
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(|name| name.trim_start_matches("[] ").to_owned())
        .collect())
}

/// The scenarios among `names` that `filter` chooses, as arguments of the test program: a boot
/// with its checks as a whole ("debian_1::"), or a test that stands alone ("--exact exits::panic").
fn scenarios(names: &[String], filter: Option<&str>) -> Vec<String> {
    let mut chosen: Vec<String> = Vec::new();
    for name in names {
        if filter.is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        let scenario = name
            .split_once("::")
            .map(|(scenario, _)| format!("{scenario}::"))
            .filter(|scenario| names.contains(&format!("{scenario}boot")));
        let arguments = match (scenario, filter) {
            // Checks behind the last one that is wanted are left out.
            (Some(scenario), Some(filter)) if filter.starts_with(&scenario) => filter.to_owned(),
            (Some(scenario), _) => scenario,
            (None, _) => format!("--exact {name}"),
        };
        if !chosen.contains(&arguments) {
            chosen.push(arguments);
        }
    }
    chosen
}

/// Builds the program; its path.
pub fn build_vireo(profile: &str) -> anyhow::Result<PathBuf> {
    let artifacts = cargo(&[
        "build",
        "--profile",
        profile,
        "--package",
        "vireo",
        "--bin",
        "vireo",
    ])?;
    executable(&artifacts, "vireo", "bin")
}

/// Whether this machine's own KVM runs guests, which can be told only by trying it.
pub fn kvm_works(vireo: &Path) -> anyhow::Result<bool> {
    let output = Command::new(vireo)
        .arg("accel-check")
        .output()
        .with_context(|| format!("cannot run {}", vireo.display()))?;
    Ok(output.status.success())
}

/// Builds a test program, without optimisation: what takes time is the guests.
fn build_test(package: &str, target: &str, feature: &str) -> anyhow::Result<PathBuf> {
    let artifacts = cargo(&[
        "test",
        "--no-run",
        "--package",
        package,
        "--test",
        target,
        "--features",
        feature,
    ])?;
    executable(&artifacts, target, "test")
}

/// Runs cargo, whose complaints and progress go to our standard error; what it made.
fn cargo(arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(project::root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut artifacts = Vec::new();
    for line in BufReader::new(output).lines() {
        if let Ok(message) = serde_json::from_str::<Value>(&line?)
            && message["executable"].is_string()
        {
            artifacts.push(message);
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(artifacts)
}

fn executable(artifacts: &[Value], name: &str, kind: &str) -> anyhow::Result<PathBuf> {
    let found = artifacts.iter().find(|artifact| {
        artifact["target"]["name"] == name && artifact["target"]["kind"][0] == kind
    });
    let path = found.and_then(|artifact| artifact["executable"].as_str());
    Ok(path
        .with_context(|| format!("cargo built no {kind} {name}"))?
        .into())
}

fn quoted(path: &Path) -> anyhow::Result<String> {
    match path.to_str() {
        Some(text) if !text.contains('\'') => Ok(format!("'{text}'")),
        _ => bail!("{} cannot stand in a script", path.display()),
    }
}

/// The folder with qemu.qmp, fetched once.
fn python_qmp() -> anyhow::Result<PathBuf> {
    cache::folder("python-qmp", PYTHON_QMP, false, |folder| {
        eprintln!("fetching {PYTHON_QMP}");
        let pip = |program: &str| {
            Command::new(program)
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--no-deps",
                    "--no-compile",
                ])
                .args(["--disable-pip-version-check", "--target"])
                .arg(folder)
                .arg(PYTHON_QMP)
                .stdin(Stdio::null())
                .status()
        };
        let status = pip("python3").context("cannot run python3")?;
        ensure!(
            status.success(),
            "pip could not install {PYTHON_QMP}: {status}"
        );
        ensure!(
            fs::exists(folder.join("qemu/qmp"))?,
            "{PYTHON_QMP} has no package qemu.qmp"
        );
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_run_as_a_whole_and_others_alone() {
        let names = [
            "debian_1::boot",
            "debian_1::nproc",
            "exits::panic",
            "exits::reset",
        ]
        .map(str::to_owned);
        assert_eq!(
            scenarios(&names, None),
            ["debian_1::", "--exact exits::panic", "--exact exits::reset"]
        );
        assert_eq!(scenarios(&names, Some("nproc")), ["debian_1::"]);
        assert_eq!(scenarios(&names, Some("debian_1::n")), ["debian_1::n"]);
        assert_eq!(scenarios(&names, Some("panic")), ["--exact exits::panic"]);
    }

    #[test]
    fn what_cargo_built_is_found_by_name_and_kind() {
        let artifact = |name: &str, kind: &str, path: &str| serde_json::json!({ "target": { "name": name, "kind": [kind] }, "executable": path });
        let artifacts = [
            artifact("vireo", "lib", "/lib"),
            artifact("vireo", "bin", "/bin"),
        ];
        let path = executable(&artifacts, "vireo", "bin").unwrap();
        assert_eq!(path, Path::new("/bin"));
        executable(&artifacts, "guest", "test").unwrap_err();
    }
}
