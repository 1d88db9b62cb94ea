//! The QEMU that the box runs under.
//!
//! Boxes under QEMU 7.2 die where guests exit often; under version 10 they live longer
//! (docs/design/box.md). Where the installed one is older, a newer one comes from the backports of
//! the machine's own Debian:
//!
//! ```text
//!   /etc/apt ── Debian's sources, and the same with Suites: CODENAME-backports
//!      │
//!      ▼
//!   apt-get --download-only, with folders of its own; what is installed counts as there
//!      │
//!      ▼
//!   target/qemu/KEY: unpacked, never installed; libraries that the machine has not, too
//! ```
//!
//! Where that does not work, the installed one has to do, and a line says so.

use std::env::consts::ARCH;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use image_build::sources::Sources;

use crate::{cache, project};

/// The first version that is known to be better than 7.2.
const NEW_ENOUGH: Version = Version(10, 0);

/// Counts up when this file changes what it makes of the same suite.
const REVISION: u32 = 1;

/// What the program needs of QEMU's own: all must lie where it is unpacked, because that is where
/// it looks for firmware and modules.
const PACKAGES: [&str; 4] = [
    "qemu-system-common",
    "qemu-system-data",
    "qemu-system-x86",
    "seabios",
];

const PROGRAM: &str = "qemu-system-x86_64";

/// After a failure the installed one is used without another attempt for this long.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Takes out of the machine's configuration what is run after updates: this is none of the machine.
const APT_CONFIGURATION: &str = "\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
";

/// Major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// A QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulator {
    /// A path, or a name for PATH.
    pub program: PathBuf,
    /// Where libraries are that the machine has not.
    pub libraries: Option<OsString>,
}

/// The QEMU for boxes; found once in a process.
pub fn ensure() -> &'static Emulator {
    static FOUND: OnceLock<Emulator> = OnceLock::new();
    FOUND.get_or_init(|| find(false).0)
}

/// The same with its version in words. `again` is set by those who want another attempt after a
/// failure.
pub fn find(again: bool) -> (Emulator, String) {
    let installed = Emulator {
        program: PROGRAM.into(),
        libraries: None,
    };
    let words = match installed.version() {
        Ok((version, words)) if version >= NEW_ENOUGH => return (installed, words),
        Ok((_, words)) => words,
        Err(error) => format!("unknown ({error:#})"),
    };
    match newer(again) {
        Ok(newer) => newer,
        Err(error) => {
            eprintln!("kvm-host: the box runs under the installed QEMU, {words}: {error:#}");
            (installed, words)
        }
    }
}

/// One from backports, fetched if it is not there.
fn newer(again: bool) -> anyhow::Result<(Emulator, String)> {
    let sources = Sources::of_this_machine()?;
    let recipe = format!("{REVISION} {}", sources.suite);
    let refusal = project::target()?.join("qemu/refusal");
    let get = |rebuild| {
        cache::folder("qemu", &recipe, rebuild, |folder| {
            if !again && let Some(why) = remembered(&refusal) {
                bail!("{why}");
            }
            let result = fetch(&sources, folder);
            match &result {
                Ok(()) => drop(fs::remove_file(&refusal)),
                // Without the note the next box asks again, no more.
                Err(error) => drop(fs::write(&refusal, format!("{error:#}"))),
            }
            result
        })
    };
    let emulator = Emulator::unpacked(&get(false)?);
    if let Ok(words) = emulator.new_enough() {
        return Ok((emulator, words));
    }
    // The machine's libraries are others than when it was fetched.
    let emulator = Emulator::unpacked(&get(true)?);
    let words = emulator.new_enough()?;
    Ok((emulator, words))
}

/// Why the last attempt failed, if that is not long ago.
fn remembered(refusal: &Path) -> Option<String> {
    let age = fs::metadata(refusal).ok()?.modified().ok()?.elapsed();
    if age.is_ok_and(|age| age > PATIENCE) {
        return None;
    }
    fs::read_to_string(refusal).ok()
}

impl Emulator {
    /// The one whose packages were unpacked in `folder`.
    fn unpacked(folder: &Path) -> Self {
        let libraries: Vec<PathBuf> = ["usr/lib", "lib"]
            .iter()
            .map(|lib| folder.join(lib).join(format!("{ARCH}-linux-gnu")))
            .filter(|path| has_libraries(path))
            .collect();
        Self {
            program: folder.join("usr/bin").join(PROGRAM),
            libraries: match libraries.as_slice() {
                [] => None,
                some => std::env::join_paths(some).ok(),
            },
        }
    }

    /// A command that runs it by way of `wrapper`, if that has words.
    pub fn command(&self, wrapper: &[&str]) -> Command {
        let mut command = match wrapper.split_first() {
            None => Command::new(&self.program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.program);
                command
            }
        };
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    /// What it says of itself; a library that is missing is an error.
    fn version(&self) -> anyhow::Result<(Version, String)> {
        let output = output(self.command(&[]).arg("--version"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        version(&text).with_context(|| format!("it says no version: {text:?}"))
    }

    fn new_enough(&self) -> anyhow::Result<String> {
        let (version, words) = self.version()?;
        ensure!(
            version >= NEW_ENOUGH,
            "QEMU {words} is not new enough either"
        );
        Ok(words)
    }

    /// Whether it finds its firmware and its modules.
    fn starts(&self) -> anyhow::Result<()> {
        let mut child = self
            .command(&[])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
            .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max"])
            .args(["-device", "virtio-serial-pci", "-monitor", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if let Some(mut monitor) = child.stdin.take() {
            // One that has ended already says why on its standard error.
            let _ = monitor.write_all(b"quit\n");
        }
        succeeded(&self.program, &child.wait_with_output()?)
    }
}

fn has_libraries(folder: &Path) -> bool {
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("lib") && name.contains(".so")
    })
}

/// Of "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)": the numbers, and "10.0.2".
fn version(text: &str) -> Option<(Version, String)> {
    let (_, rest) = text.split_once(" version ")?;
    let words = rest.split_whitespace().next()?;
    let mut numbers = words.split('.').map(str::parse);
    let major = numbers.next()?.ok()?;
    let minor = numbers.next()?.ok()?;
    Some((Version(major, minor), words.to_owned()))
}

/// The stanzas of `text` (deb822) that have `suite`, with its backports instead.
fn backports(text: &str, suite: &str) -> String {
    let has_suite = |stanza: &&str| {
        let suites = stanza
            .lines()
            .find_map(|line| line.strip_prefix("Suites: "));
        suites.is_some_and(|suites| suites.split(' ').any(|s| s == suite))
    };
    let mut out = String::new();
    for stanza in text.split("\n\n").filter(has_suite) {
        out.push('\n');
        for line in stanza.lines() {
            match line.strip_prefix("Suites: ") {
                Some(_) => out.push_str(&format!("Suites: {suite}-backports")),
                None => out.push_str(line),
            }
            out.push('\n');
        }
    }
    out
}

/// Fills `folder` with what the packages of the newer QEMU have.
fn fetch(sources: &Sources, folder: &Path) -> anyhow::Result<()> {
    let suite = format!("{}-backports", sources.suite);
    eprintln!("fetching QEMU from {suite}");
    let apt = folder.join("apt");
    let apt_get = private_apt(sources, &apt)?;
    output(apt_get().arg("update")).with_context(|| format!("no QEMU from {suite}"))?;
    output(
        apt_get()
            .args(["install", "--download-only", "--reinstall", "--yes"])
            .args(["--no-install-recommends", "--target-release", &suite])
            .args(PACKAGES),
    )
    .with_context(|| format!("no QEMU from {suite}"))?;
    for entry in fs::read_dir(apt.join("cache/archives"))? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("deb")) {
            output(Command::new("dpkg-deb").arg("-x").arg(&path).arg(folder))?;
        }
    }
    fs::remove_dir_all(&apt).with_context(|| format!("cannot remove {}", apt.display()))?;
    let emulator = Emulator::unpacked(folder);
    let context = || format!("QEMU of {suite} does not run here");
    emulator.new_enough().with_context(context)?;
    emulator.starts().with_context(context)
}

/// Makes an apt-get that has everything of its own in `apt` but the machine's proxies, and the
/// list of what is installed.
fn private_apt(sources: &Sources, apt: &Path) -> anyhow::Result<impl Fn() -> Command> {
    let (parts, lists, cache) = (apt.join("sources"), apt.join("lists"), apt.join("cache"));
    for path in [
        &parts,
        &lists.join("partial"),
        &cache.join("archives/partial"),
    ] {
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let text = format!(
        "{}{}",
        sources.text,
        backports(&sources.text, &sources.suite)
    );
    fs::write(parts.join("debian.sources"), text)?;
    let configuration = apt.join("apt.conf");
    fs::write(&configuration, APT_CONFIGURATION)?;
    let mut options = Vec::new();
    for (name, path) in [
        ("Dir::Etc::SourceList", Path::new("/dev/null")),
        ("Dir::Etc::SourceParts", &parts),
        ("Dir::Etc::Preferences", Path::new("/dev/null")),
        ("Dir::Etc::PreferencesParts", Path::new("/dev/null")),
        ("Dir::State::Lists", &lists),
        ("Dir::State::extended_states", &apt.join("extended_states")),
        ("Dir::Cache", &cache),
    ] {
        let mut option = OsString::from(format!("{name}="));
        option.push(path);
        options.push(option);
    }
    for option in [
        // Nothing of the machine is changed, so nothing of it is locked; root is not needed.
        "Debug::NoLocking=true",
        // _apt cannot enter every project's folder.
        "APT::Sandbox::User=root",
        "APT::Update::Error-Mode=any",
        "Acquire::Languages=none",
        "Acquire::Retries=2",
        "Acquire::http::Timeout=20",
        "Acquire::https::Timeout=20",
    ] {
        options.push(option.into());
    }
    Ok(move || {
        let mut command = Command::new("apt-get");
        command.arg("-qq").arg("-c").arg(&configuration);
        for option in &options {
            command.arg("-o").arg(option);
        }
        command
    })
}

/// Runs a program to its good end, in English.
fn output(command: &mut Command) -> anyhow::Result<Output> {
    let name = PathBuf::from(command.get_program());
    let output = command
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", name.display()))?;
    succeeded(&name, &output)?;
    Ok(output)
}

/// A failure in one line: the program's first complaint.
fn succeeded(program: &Path, output: &Output) -> anyhow::Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let complaint = text
        .lines()
        .find(|line| line.starts_with("E: "))
        .or_else(|| lines.next())
        .unwrap_or("it says nothing");
    ensure!(
        output.status.success(),
        "{} ended with {}: {complaint}",
        program.display(),
        output.status
    );
    Ok(())
}

#[cfg(test)]
mod tests;
