//! `vireo image build`: a guest to try it with.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use image_build::progress::{Bar, Progress, Stage, Update};
use image_build::sources::Sources;
use image_build::{DebianGuest, Options};
use spec::Size;

use crate::failure::{Failure, Result};
use crate::output;

pub(super) const NAME: &str = "build";

pub(super) fn command() -> Command {
    let debian = Command::new("debian")
        .about("Builds a bootable Debian image from this machine's apt sources")
        .long_about(
            "Builds a bootable Debian image from this machine's own apt sources: systemd, a console on the \
             first serial port, networking by DHCP. Beside NAME.img it puts the kernel (NAME.vmlinux and \
             NAME.vmlinuz), the initial RAM disk (NAME.initrd) and a configuration that boots them (NAME.toml).",
        )
        .arg(path("out", "FILE", "The image to make").short('o').required(true))
        .arg(text("size", "SIZE", "Size of the disk, in bytes or with K, M, G; the file is sparse").default_value("2G"))
        .arg(text("password", "PASSWORD", "Root's password; without one root is logged in on the console by itself"))
        .arg(
            text("packages", "NAME,...", "More Debian packages; may be repeated")
                .action(ArgAction::Append)
                .value_delimiter(','),
        )
        .arg(flag("ssh", "Install an SSH server"))
        .arg(path("ssh-key", "FILE", "A public key that may log in as root by SSH (implies --ssh); may be repeated").action(ArgAction::Append))
        .arg(text("hostname", "NAME", "The guest's name").default_value("debian"))
        .arg(text("kernel-package", "NAME", "Debian's kernel package").default_value("linux-image-cloud-amd64"))
        .arg(text("release", "NAME", "Debian's release; must be that of this machine's apt sources [default: theirs]"))
        .arg(path("package-cache", "DIRECTORY", "Keep downloaded packages here for the next build"))
        .arg(flag("force", "Replace files that exist"));
    Command::new(NAME)
        .about("Builds a guest image")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(debian)
}

fn text(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn path(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    text(name, value, help).value_parser(value_parser!(PathBuf))
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let debian = matches.subcommand_matches("debian");
    let Some(matches) = debian else {
        return Err(Failure::Usage(
            "image: nothing but \"image build debian\" is known".into(),
        ));
    };
    check_release(matches)?;
    let guest = guest(matches)?;
    let options = Options {
        force: matches.get_flag("force"),
        package_cache: matches.get_one("package-cache").cloned(),
    };
    let output = matches
        .get_one::<PathBuf>("out")
        .map_or(Path::new("debian.img"), PathBuf::as_path);
    let mut progress = progress();
    let built = image_build::build(&guest, output, &options, progress.as_mut());
    drop(progress);
    let built = built.map_err(|e| Failure::failed(&e))?;
    output::print(&format!(
        "{} is ready; boot it with\n  vireo run --config {}\n",
        built.image.display(),
        built.config.display()
    ))
}

/// What was asked for.
fn guest(matches: &ArgMatches) -> Result<DebianGuest> {
    let word = |name: &str| matches.get_one::<String>(name).cloned();
    let mut guest = DebianGuest::default();
    if let Some(size) = word("size") {
        let bytes: Size = size
            .parse()
            .map_err(|why| Failure::Usage(format!("--size {size}: {why}")))?;
        guest.size = bytes.0;
    }
    guest.hostname = word("hostname").unwrap_or(guest.hostname);
    guest.kernel_package = word("kernel-package").unwrap_or(guest.kernel_package);
    guest.packages = matches
        .get_many("packages")
        .unwrap_or_default()
        .cloned()
        .collect();
    guest.root_password = word("password");
    for file in matches.get_many::<PathBuf>("ssh-key").unwrap_or_default() {
        let key = std::fs::read_to_string(file)
            .map_err(|e| Failure::Failed(format!("cannot read the key {}: {e}", file.display())))?;
        guest.authorized_keys.push(key.trim().to_owned());
    }
    guest.openssh = matches.get_flag("ssh") || !guest.authorized_keys.is_empty();
    Ok(guest)
}

/// Packages come from the machine's own sources, which have one release.
fn check_release(matches: &ArgMatches) -> Result<()> {
    let Some(release) = matches.get_one::<String>("release") else {
        return Ok(());
    };
    let suite = Sources::of_this_machine()
        .map_err(|e| Failure::failed(&e))?
        .suite;
    match *release == suite {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "--release {release}: this machine's apt sources have {suite}; leave the option out, or add {release} to them"
        ))),
    }
}

/// A bar on a terminal, else a line for each stage.
fn progress() -> Box<dyn Progress> {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        return Box::new(Bar::new());
    }
    let mut said: Option<Stage> = None;
    Box::new(move |update: &Update| {
        if said != Some(update.stage) {
            said = Some(update.stage);
            eprintln!("{:3.0}% {}", update.fraction * 100.0, update.stage);
        }
    })
}
