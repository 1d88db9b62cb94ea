//! `cargo xtask guest-tests`: every test that needs a working KVM, in one box (or directly).
//!
//! ```text
//!   cargo build vireo        ─┐
//!   cargo test --no-run ──────┼─▶ box: run each test program, VIREO_BIN and the guest's files in
//!   pip: qemu.qmp            ─┘   its environment ─▶ output, counted by its "test result" lines
//! ```

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::kvm_host::{Drive, HostBox};
use crate::{cache, project};

#[derive(clap::Args)]
pub struct Args {
    /// Run only tests whose name contains this; "debian_1", "exits::", "accel-kvm".
    filter: Option<String>,
    /// Test a debug build of Vireo, which takes longer to run and has assertions on.
    #[arg(long)]
    debug: bool,
    /// Scenarios at once.
    #[arg(long, default_value_t = 1, value_name = "N")]
    jobs: u32,
    /// How often scenarios that failed are run again, each in a fresh box: emulated hardware
    /// virtualization now and then kills a guest under any monitor.
    #[arg(long, default_value_t = 2, value_name = "N")]
    retries: u32,
    /// Processors of the box.
    #[arg(long, default_value_t = 2, value_name = "N")]
    smp: u32,
    /// End everything after this many seconds (status 124).
    #[arg(long, default_value_t = 2400, value_name = "S")]
    timeout: u64,
}

#[derive(clap::Args)]
pub struct DifferentialArgs {
    /// Test a debug build.
    #[arg(long)]
    debug: bool,
}

/// Test programs: package, name of the target, features. Those of other crates have a few tests
/// that need a real KVM or a real network.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("accel-kvm", "kvm", "kvm-tests"),
    ("net", "tap", "net-tests"),
    ("guest-tests", "guest", "guest-tests"),
];

/// The scenario that compares Vireo with QEMU.
const DIFFERENTIAL: &str = "differential::";

/// QEMU's own client for QMP, from PyPI.
const PYTHON_QMP: &str = "qemu.qmp==0.0.6";

/// Memory of the box: two guests with a few hundred MiB each, one of them with 5 GiB of which it
/// touches little, and the page cache.
const MEMORY_MIB: u32 = 4096;

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    let programs: Vec<_> = PROGRAMS
        .into_iter()
        .filter(|(package, ..)| match &args.filter {
            // A package's name chooses all of its tests.
            Some(filter) if PROGRAMS.iter().any(|(p, ..)| p == filter) => package == filter,
            Some(_) => *package == "guest-tests",
            None => true,
        })
        .collect();
    let filter = args
        .filter
        .as_deref()
        .filter(|filter| PROGRAMS.iter().all(|(package, ..)| package != filter));
    let suite = Suite {
        profile: profile(args.debug),
        filter,
        jobs: args.jobs,
        smp: args.smp,
        timeout: Duration::from_secs(args.timeout),
        retries: args.retries,
    };
    let status = suite.run(&programs)?;
    eprintln!("guest-tests: {:.0} s in all", begin.elapsed().as_secs_f64());
    Ok(ExitCode::from(status))
}

/// `cargo xtask differential`: the comparison with QEMU alone.
pub fn run_differential(args: &DifferentialArgs) -> anyhow::Result<ExitCode> {
    let suite = Suite {
        profile: profile(args.debug),
        filter: Some(DIFFERENTIAL),
        jobs: 1,
        smp: 2,
        timeout: Duration::from_secs(900),
        retries: 2,
    };
    Ok(ExitCode::from(suite.run(&PROGRAMS[2..])?))
}

fn profile(debug: bool) -> &'static str {
    if debug { "dev" } else { "release" }
}

struct Suite<'a> {
    profile: &'static str,
    filter: Option<&'a str>,
    jobs: u32,
    smp: u32,
    timeout: Duration,
    retries: u32,
}

impl Suite<'_> {
    /// Builds and runs `programs`, and what fails again; the status for the shell.
    fn run(&self, programs: &[(&str, &str, &str)]) -> anyhow::Result<u8> {
        let vireo = build_vireo(self.profile)?;
        let mut script = String::from("failed=0\n");
        let mut guests = None;
        for (package, target, feature) in programs {
            let program = build_test(package, target, feature)?;
            let program = quoted(&program)?;
            script.push_str(&format!("echo; echo '== {package}'\n{program}"));
            if *package == "guest-tests" {
                script.push_str(&format!(" --test-threads {}", self.jobs));
                if let Some(filter) = self.filter {
                    ensure!(!filter.contains('\''), "a filter has no quotes");
                    script.push_str(&format!(" '{filter}'"));
                }
                guests = Some(program);
            }
            script.push_str(" || failed=1\n");
        }
        script.push_str("exit $failed\n");
        let mut total = self.attempt(&vireo, &script)?;
        for retry in 1..=self.retries {
            let (Some(program), false) = (&guests, total.scenarios.is_empty()) else {
                break;
            };
            let names: Vec<&str> = total.scenarios.iter().map(String::as_str).collect();
            println!(
                "\nguest-tests: FAILED, try {retry} again: {}",
                names.join(", ")
            );
            let mut script = String::from("failed=0\n");
            for name in names {
                script.push_str(&format!(
                    "{program} --test-threads 1 '{name}' || failed=1\n"
                ));
            }
            script.push_str("exit $failed\n");
            let again = self.attempt(&vireo, &script)?;
            // What was run again counts by its last run. A test program of another crate that
            // failed is not run again, and stays failed.
            total.failed = total.failed.saturating_sub(total.scenario_failures) + again.failed;
            total.passed += again.passed.saturating_sub(total.scenario_passes);
            total.status = u8::from(total.failed != 0).max(again.status);
            total.scenarios = again.scenarios;
            total.scenario_failures = again.scenario_failures;
            total.scenario_passes = again.scenario_passes;
        }
        println!("\n{} passed, {} failed", total.passed, total.failed);
        Ok(if total.status == 0 && total.passed == 0 {
            eprintln!("guest-tests: no test ran");
            1
        } else {
            total.status
        })
    }

    /// Runs `script` in a box of its own.
    fn attempt(&self, vireo: &Path, script: &str) -> anyhow::Result<Totals> {
        let mut host = HostBox {
            smp: self.smp,
            memory_mib: MEMORY_MIB,
            timeout: self.timeout,
            ..HostBox::default()
        };
        host.direct |= kvm_works(vireo)?;
        host.add_guest()?;
        let image = host.drives[0].file.clone();
        // Those who write get a snapshot of their own.
        for name in ["guest-1", "guest-4"] {
            host.drives.push(Drive {
                file: image.clone(),
                name: name.to_owned(),
            });
        }
        let mut set = |name: &str, path: &Path| {
            host.environment
                .push((name.to_owned(), path.to_string_lossy().into_owned()));
        };
        set("VIREO_BIN", vireo);
        set("VIREO_PYTHON_QMP", &python_qmp()?);
        let command = ["sh", "-c", script].map(OsString::from);
        let mut counter = Counter::new(io::stdout());
        let outcome = host.run(&command, &mut counter, &mut io::stderr())?;
        counter.flush()?;
        println!(
            "\nguest-tests: {} passed, {} failed, {} filtered out; in the box for {:.0} s",
            counter.passed,
            counter.failed,
            counter.filtered,
            outcome.ended.as_secs_f64()
        );
        // A scenario's tests are all run again, also those that passed.
        let passes = |scenario: &String| {
            counter
                .results
                .iter()
                .filter(|(n, ok)| *ok && n.starts_with(scenario.as_str()))
                .count() as u64
        };
        let scenario_failures = counter.results.iter().filter(|(_, ok)| !ok).count() as u64;
        let scenarios = counter.failed_scenarios();
        Ok(Totals {
            status: outcome.report(),
            passed: counter.passed,
            failed: counter.failed,
            scenario_passes: scenarios.iter().map(passes).sum(),
            scenario_failures,
            scenarios,
        })
    }
}

/// What came of one box.
struct Totals {
    status: u8,
    passed: u64,
    failed: u64,
    /// Scenarios with a test that failed, as filters for another run.
    scenarios: Vec<String>,
    /// Tests of those that failed, and that passed all the same.
    scenario_failures: u64,
    scenario_passes: u64,
}

/// Passes text on and adds up the summaries of the test programs in it.
struct Counter<W> {
    out: W,
    line: Vec<u8>,
    passed: u64,
    failed: u64,
    filtered: u64,
    /// Tests of scenarios, which have "::" in their names, and whether they passed.
    results: Vec<(String, bool)>,
}

impl<W: Write> Counter<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            line: Vec::new(),
            passed: 0,
            failed: 0,
            filtered: 0,
            results: Vec::new(),
        }
    }

    /// The scenarios that have to be run again: a boot with its checks as a whole, which all
    /// begin with its name, or a test that stands alone.
    fn failed_scenarios(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in self.results.iter().filter(|(_, ok)| !ok) {
            let scenario = name
                .split_once("::")
                .map_or(name.as_str(), |(scenario, _)| scenario);
            let boots = self
                .results
                .iter()
                .any(|(n, _)| *n == format!("{scenario}::boot"));
            let wanted = if boots {
                format!("{scenario}::")
            } else {
                name.clone()
            };
            if !names.contains(&wanted) {
                names.push(wanted);
            }
        }
        names
    }

    /// Takes note of "test debian_1::nproc ... ok", behind whose name another line may have got,
    /// and of the names in the list of failures at the end.
    fn note(&mut self, line: &str) {
        if let Some((name, _)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(' '))
        {
            if name.contains("::") {
                self.results.push((name.to_owned(), true));
            }
        } else if let Some(name) = line.strip_prefix("    ")
            && let Some(result) = self.results.iter_mut().find(|(n, _)| n == name.trim_end())
        {
            result.1 = false;
        }
    }

    /// "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; ..."
    fn count(&mut self) {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        self.note(&line);
        let Some(summary) = line.trim().strip_prefix("test result: ") else {
            return;
        };
        let words: Vec<&str> = summary
            .split([' ', ';', '.'])
            .filter(|word| !word.is_empty())
            .collect();
        for pair in words.windows(2) {
            let count = pair[0].parse().unwrap_or(0);
            match pair[1] {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "filtered" => self.filtered += count,
                _ => {}
            }
        }
    }
}

impl<W: Write> Write for Counter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        for &byte in bytes {
            if byte == b'\n' {
                self.count();
            } else {
                self.line.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
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
    fn summaries_are_added_up_however_they_come() {
        let mut counter = Counter::new(Vec::new());
        let text = "test a ... ok\n\ntest result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; \
                    2 filtered out; finished in 1.20s\n\ntest result: FAILED. 10 passed; 4 failed; \
                    0 ignored; 0 measured; 0 filtered out\n";
        for piece in text.as_bytes().chunks(7) {
            counter.write_all(piece).unwrap();
        }
        assert_eq!(
            (counter.passed, counter.failed, counter.filtered),
            (13, 4, 2)
        );
        assert_eq!(counter.out, text.as_bytes());
    }

    #[test]
    fn scenarios_that_failed_are_run_again_as_a_whole() {
        let mut counter = Counter::new(Vec::new());
        let text = "test debian_1::boot  ... ok\ntest debian_1::nproc ...   debian_1::x: FAILED\nFAILED\n\
                    test exits::panic ... FAILED\ntest exits::reset ... ok\n\nfailures:\n\n\
                    ---- exits::panic ----\n    not a test\n\nfailures:\n    debian_1::nproc\n    \
                    exits::panic\n\ntest result: FAILED. 2 passed; 2 failed; 0 ignored;\n";
        counter.write_all(text.as_bytes()).unwrap();
        assert_eq!(counter.failed_scenarios(), ["debian_1::", "exits::panic"]);
        assert_eq!((counter.passed, counter.failed), (2, 2));
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
