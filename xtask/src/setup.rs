//! `cargo xtask setup`: installs the Debian packages of packages.txt, and fetches the box's QEMU.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail, ensure};
use nix::unistd::geteuid;

use crate::kvm_host::emulator;

/// The packages, in the file's order.
fn packages() -> impl Iterator<Item = &'static str> {
    include_str!("../packages.txt")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[derive(clap::Args)]
pub struct Args {
    /// Only say what is missing; the status is 1 if anything is.
    #[arg(long)]
    check: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.check {
        let missing = missing()?;
        println!("{}", missing.join(" "));
        return Ok(if missing.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    ensure_packages()?;
    let (emulator, version) = emulator::find(true);
    println!("the box's QEMU: {version}, {}", emulator.program.display());
    Ok(ExitCode::SUCCESS)
}

/// Sees to it that all packages of packages.txt are installed; does nothing if they are.
///
/// # Errors
/// Without root the error holds the command that installs them.
pub fn ensure_packages() -> anyhow::Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    if !geteuid().is_root() {
        bail!(
            "Debian packages are missing; install them with\n  sudo apt-get install --no-install-recommends {}",
            missing.join(" ")
        );
    }
    eprintln!("installing {}", missing.join(" "));
    // Lists may be absent (fresh containers) or name versions that the mirror has replaced.
    apt_get(&["update"]).context("apt-get update")?;
    if install(&missing).is_ok() {
        return Ok(());
    }
    // A package installed from elsewhere (backports) may keep the wanted ones out: go back to
    // what the sources have.
    let foreign = foreign_versions()?;
    ensure!(
        !foreign.is_empty(),
        "apt-get could not install {}",
        missing.join(" ")
    );
    eprintln!(
        "once more with the versions of this machine's sources: {}",
        foreign.join(" ")
    );
    let all: Vec<&str> = missing
        .into_iter()
        .chain(foreign.iter().map(String::as_str))
        .collect();
    install(&all).context("apt-get install")
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    let mut arguments = vec![
        "install",
        "--yes",
        "--no-install-recommends",
        "--allow-downgrades",
    ];
    arguments.extend(packages);
    apt_get(&arguments)
}

fn apt_get(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("apt-get")
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .context("cannot run apt-get; this needs a Debian machine")?;
    ensure!(
        status.success(),
        "apt-get {} ended with {status}",
        arguments.first().unwrap_or(&"")
    );
    Ok(())
}

/// The packages of packages.txt that are not installed.
fn missing() -> anyhow::Result<Vec<&'static str>> {
    let installed = installed()?;
    Ok(packages()
        .filter(|package| !installed.iter().any(|(name, _)| name == package))
        .collect())
}

/// Name and version of those packages of packages.txt that are installed.
fn installed() -> anyhow::Result<Vec<(String, String)>> {
    // The status is 1 when a package is unknown, which is no error here.
    let output = Command::new("dpkg-query")
        .args([
            "--show",
            "--showformat=${db:Status-Abbrev} ${binary:Package} ${Version}\\n",
            "--",
        ])
        .args(packages())
        .stderr(Stdio::null())
        .output()
        .context("cannot run dpkg-query; this needs a Debian machine")?;
    Ok(parse_installed(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_installed(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("ii")?.split_whitespace();
            let name = words.next()?.split(':').next()?.to_owned();
            Some((name, words.next()?.to_owned()))
        })
        .collect()
}

/// `NAME=VERSION` for installed packages whose version no source has, with the newest that one has.
fn foreign_versions() -> anyhow::Result<Vec<String>> {
    let mut foreign = Vec::new();
    for (name, version) in installed()? {
        let output = Command::new("apt-cache")
            .args(["madison", "--", &name])
            .output()
            .context("cannot run apt-cache")?;
        foreign.extend(
            other_version(&String::from_utf8_lossy(&output.stdout), &version)
                .map(|v| format!("{name}={v}")),
        );
    }
    Ok(foreign)
}

/// The first version that `apt-cache madison` lists ("name | version | source"), unless `installed`
/// is among them.
fn other_version(madison: &str, installed: &str) -> Option<String> {
    let versions: Vec<&str> = madison
        .lines()
        .filter_map(|line| Some(line.split('|').nth(1)?.trim()))
        .collect();
    if versions.contains(&installed) {
        None
    } else {
        versions.first().map(|&v| v.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_names_only() {
        for package in packages() {
            assert!(
                package
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b)),
                "{package:?}"
            );
        }
        assert!(packages().any(|p| p == "qemu-system-x86"));
    }

    #[test]
    fn only_packages_fully_installed_count() {
        let text = "ii  lz4 1.9.4-1\nrc  zstd 1.5.4\nun  kmod \nii  libslirp0:amd64 4.7.0-1\n";
        let names: Vec<_> = parse_installed(text)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["lz4", "libslirp0"]);
    }

    #[test]
    fn a_version_from_elsewhere_gives_way_to_the_sources_newest() {
        let madison = "qemu-utils | 1:7.2+b3 | http://deb.debian.org/debian bookworm/main amd64 Packages\n\
                       qemu-utils | 1:7.2+b1 | http://deb.debian.org/debian-security bookworm-security/main\n";
        assert_eq!(
            other_version(madison, "1:10.0~bpo12").as_deref(),
            Some("1:7.2+b3")
        );
        assert_eq!(other_version(madison, "1:7.2+b1"), None);
        assert_eq!(other_version("", "1.0"), None);
    }
}
