//! `cargo xtask kvm-host -- COMMAND`: KVM in a box.
//!
//! Development machines and CI have no usable /dev/kvm (one that merely opens proves nothing), but
//! QEMU's TCG emulates AMD's SVM with nested paging, and Debian's kvm-amd runs in that. The box is
//! a small Debian host with a true /dev/kvm, started for one command and thrown away after it:
//!
//! ```text
//!  outside                                   the box (QEMU, TCG)
//!  ┌───────────────┐   initramfs: run.sh    ┌─────────────────────────────┐
//!  │ HostBox::run  │ ─────────────────────> │ initramfs init: modules, root│
//!  │               │   virtio-serial        │ box init: shares, kvm-amd    │
//!  │ stdout ◄──────┼────────────────────────┤ COMMAND                      │
//!  │ stderr ◄──────┼────────────────────────┤   │ /dev/kvm                 │
//!  │ status ◄──────┼────────────────────────┤   └─ the machine under test  │
//!  │ project ◄─────┼──────── 9p ───────────>│ same path as outside         │
//!  │ drives  ──────┼──── virtio-blk ───────>│ /dev/disk/by-id/virtio-NAME  │
//!  └───────────────┘    (snapshots)         └─────────────────────────────┘
//! ```
//!
//! COMMAND finds in its environment: `VIREO_SCRATCH` (a folder for big files that vanish; 9p does
//! not do O_DIRECT), `VIREO_DRIVE_NAME` per drive (name in capitals, dashes as underscores), and
//! `VIREO_KVM_HOST` (`box` or `direct`). Where the caller says that the hardware's KVM works
//! (`VIREO_HOST_KVM=1`), the same command runs directly with the same environment.

mod clock;
pub mod cpio;
pub mod emulator;
pub mod image;
mod qemu;
mod script;
mod terminal;

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::{project, setup};

/// Exit status when the time limit has passed, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// Exit status when the box itself failed.
pub const BOX_FAILED: u8 = 125;

#[derive(clap::Args)]
pub struct Args {
    /// Processors of the box.
    #[arg(long, default_value_t = 2, value_name = "N")]
    smp: u32,
    /// Memory of the box in MiB.
    #[arg(long, default_value_t = 3072, value_name = "MIB")]
    memory: u32,
    /// End the box after this many seconds (status 124).
    #[arg(long, default_value_t = 600, value_name = "S")]
    timeout: u64,
    /// Share another folder, at the same path (the project and its target folder always are).
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// Attach a raw disk image as a throw-away snapshot: /dev/disk/by-id/virtio-NAME.
    #[arg(long, value_name = "FILE[,name=NAME]", value_parser = Drive::parse)]
    drive: Vec<Drive>,
    /// Attach the Debian guest of "cargo xtask guest-image" as the drive "guest", and give the
    /// paths of its kernels as VIREO_GUEST_VMLINUX, VIREO_GUEST_VMLINUZ, VIREO_GUEST_INITRD.
    #[arg(long)]
    guest: bool,
    /// Size of /scratch in MiB (sparse).
    #[arg(long, default_value_t = 16384, value_name = "MIB")]
    scratch: u64,
    /// Set a variable in COMMAND's environment.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Connect COMMAND to this terminal.
    #[arg(long, short)]
    interactive: bool,
    /// Another argument for the box's QEMU; may be repeated.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu_arg: Vec<OsString>,
    /// Say at the end on standard error how long the start and the command took.
    #[arg(long)]
    timing: bool,
    /// Build the box's image anew, with today's package versions.
    #[arg(long)]
    rebuild: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// A disk that the box sees, without being able to change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// A raw image.
    pub file: PathBuf,
    /// The virtio-blk serial: at most 20 letters, digits, dashes.
    pub name: String,
}

impl Drive {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (file, name) = match text.rsplit_once(",name=") {
            Some((file, name)) => (file, name.to_owned()),
            None => (
                text,
                PathBuf::from(text)
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            ),
        };
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if name.is_empty() || name.len() > 20 || !plain {
            bail!(
                "a drive's name has 1 to 20 letters, digits and dashes, not {name:?}; say FILE,name=NAME"
            );
        }
        if ["root", "scratch"].contains(&name.as_str()) {
            bail!("the box itself has a drive {name:?}; say FILE,name=NAME");
        }
        Ok(Self {
            file: file.into(),
            name,
        })
    }

    fn variable(&self) -> String {
        format!(
            "VIREO_DRIVE_{}",
            self.name.to_ascii_uppercase().replace('-', "_")
        )
    }
}

fn parse_variable(text: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = text.split_once('=').context("say NAME=VALUE")?;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if name.is_empty() || !plain || name.as_bytes()[0].is_ascii_digit() {
        bail!("{name:?} is no name of a variable");
    }
    Ok((name.to_owned(), value.to_owned()))
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::from(run_args(args).unwrap_or_else(|error| {
        eprintln!("kvm-host: {error:#}");
        BOX_FAILED
    })))
}

fn run_args(args: &Args) -> anyhow::Result<u8> {
    let mut host = HostBox {
        smp: args.smp,
        memory_mib: args.memory,
        timeout: Duration::from_secs(args.timeout),
        shares: args.share.clone(),
        drives: args.drive.clone(),
        scratch_mib: args.scratch,
        environment: args.env.clone(),
        qemu_arguments: args.qemu_arg.clone(),
        rebuild: args.rebuild,
        direct: hardware_kvm(),
    };
    if args.guest {
        host.add_guest()?;
    }
    let outcome = if args.interactive {
        host.run_interactive(&args.command)?
    } else {
        host.run(&args.command, &mut io::stdout(), &mut io::stderr())?
    };
    if args.timing {
        let start = outcome.started.map_or_else(
            || "never".to_owned(),
            |t| format!("{:.2} s", t.as_secs_f64()),
        );
        eprintln!(
            "kvm-host: command started after {start}, ended after {:.2} s",
            outcome.ended.as_secs_f64()
        );
    }
    Ok(outcome.report())
}

/// A host with a working /dev/kvm for one command at a time.
#[derive(Clone, Debug)]
pub struct HostBox {
    /// Processors.
    pub smp: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Everything ends after this time, counted from the box's start.
    pub timeout: Duration,
    /// Folders that the command sees at their own paths, beside the project's and the target folder.
    pub shares: Vec<PathBuf>,
    /// Disks.
    pub drives: Vec<Drive>,
    /// Size of the scratch disk in MiB; it is sparse.
    pub scratch_mib: u64,
    /// More environment for the command.
    pub environment: Vec<(String, String)>,
    /// More arguments for the box's QEMU.
    pub qemu_arguments: Vec<OsString>,
    /// Build the box's image even if it is there.
    pub rebuild: bool,
    /// This machine's own KVM is known to work: run the command on it directly.
    pub direct: bool,
}

impl Default for HostBox {
    fn default() -> Self {
        Self {
            smp: 2,
            memory_mib: 3072,
            timeout: Duration::from_secs(600),
            shares: Vec::new(),
            drives: Vec::new(),
            scratch_mib: 16 << 10,
            environment: Vec::new(),
            qemu_arguments: Vec::new(),
            rebuild: false,
            direct: hardware_kvm(),
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status (128 + n after signal n).
    Exited(u8),
    /// By the time limit.
    TimedOut,
    /// By SIGINT or SIGTERM to this process.
    Interrupted,
}

/// What became of a command.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Time from the start of the box to the start of the command.
    pub started: Option<Duration>,
    /// Time from the start of the box to the command's end.
    pub ended: Duration,
}

impl Outcome {
    /// Whether this process was asked to end.
    pub fn interrupted(&self) -> bool {
        self.end == End::Interrupted
    }

    /// The status for a shell; says what happened where the status alone would not.
    pub fn report(&self) -> u8 {
        match self.end {
            End::Exited(status) => status,
            End::TimedOut => {
                eprintln!(
                    "kvm-host: time limit reached after {:.0} s",
                    self.ended.as_secs_f64()
                );
                TIMED_OUT
            }
            End::Interrupted => {
                eprintln!("kvm-host: interrupted");
                130
            }
        }
    }
}

impl HostBox {
    /// Attaches the Debian guest as the drive "guest".
    pub fn add_guest(&mut self) -> anyhow::Result<()> {
        let guest = crate::guest_image::ensure(false)?;
        self.drives.push(Drive {
            file: guest.image.clone(),
            name: "guest".to_owned(),
        });
        for (name, path) in [
            ("VMLINUX", &guest.vmlinux),
            ("VMLINUZ", &guest.vmlinuz),
            ("INITRD", &guest.initrd),
        ] {
            self.environment.push((
                format!("VIREO_GUEST_{name}"),
                path.to_string_lossy().into_owned(),
            ));
        }
        Ok(())
    }

    /// Runs `command` where /dev/kvm works, copying what it prints to `stdout` and `stderr` as it
    /// comes. Its standard input is empty.
    ///
    /// # Errors
    /// The box cannot be built or fails itself; a command that fails is an [`Outcome`].
    pub fn run(
        &self,
        command: &[OsString],
        stdout: &mut (dyn Write + Send),
        stderr: &mut (dyn Write + Send),
    ) -> anyhow::Result<Outcome> {
        if self.direct {
            return self.run_directly(command, Some((stdout, stderr)));
        }
        setup::ensure_packages()?;
        let image = image::ensure(self.rebuild)?;
        qemu::run(
            self,
            &image,
            command,
            qemu::Console::Streams(stdout, stderr),
        )
    }

    /// Runs `command` with this process's terminal as its own.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_interactive(&self, command: &[OsString]) -> anyhow::Result<Outcome> {
        if self.direct {
            return self.run_directly(command, None);
        }
        setup::ensure_packages()?;
        let image = image::ensure(self.rebuild)?;
        qemu::run(self, &image, command, qemu::Console::Terminal)
    }

    /// Runs `command` on this machine; without streams it shares ours.
    fn run_directly(
        &self,
        command: &[OsString],
        streams: Option<(&mut (dyn Write + Send), &mut (dyn Write + Send))>,
    ) -> anyhow::Result<Outcome> {
        let begin = Instant::now();
        let scratch = tempfile::Builder::new()
            .prefix("scratch-")
            .tempdir_in(project::target()?)?;
        let (program, arguments) = command.split_first().context("no command")?;
        let mut child = Command::new(program);
        child
            .args(arguments)
            .env("VIREO_KVM_HOST", "direct")
            .env("VIREO_SCRATCH", scratch.path());
        for drive in &self.drives {
            // Callers treat drives as read-only: in the box changes vanish, here they would not.
            child.env(drive.variable(), std::path::absolute(&drive.file)?);
        }
        child.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if streams.is_some() {
            child
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
        }
        let mut child = child
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
        let end = std::thread::scope(|scope| {
            if let Some((stdout, stderr)) = streams {
                if let Some(out) = &mut out {
                    scope.spawn(move || qemu::copy(out, stdout));
                }
                if let Some(err) = &mut err {
                    scope.spawn(move || qemu::copy(err, stderr));
                }
            }
            let interrupted = terminal::Interrupts::watch()?;
            let end = loop {
                if let Some(status) = child.try_wait()? {
                    let status = status
                        .code()
                        .or(status.signal().map(|n| 128 + n))
                        .unwrap_or(255);
                    break End::Exited(u8::try_from(status).unwrap_or(255));
                }
                let late = begin.elapsed() >= self.timeout;
                if late || interrupted.seen() {
                    child.kill()?;
                    child.wait()?;
                    break if late {
                        End::TimedOut
                    } else {
                        End::Interrupted
                    };
                }
                std::thread::sleep(Duration::from_millis(20));
            };
            anyhow::Ok(end)
        })?;
        Ok(Outcome {
            end,
            started: Some(Duration::ZERO),
            ended: begin.elapsed(),
        })
    }
}

/// Whether this machine's own KVM runs ordinary guests. Only who started us can say so: /dev/kvm
/// of a nested or paravirtual host opens and then runs nothing.
fn hardware_kvm() -> bool {
    env::var_os("VIREO_HOST_KVM").is_some_and(|value| value == "1")
}

#[cfg(test)]
mod tests;
