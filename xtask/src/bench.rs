//! `cargo xtask bench`: Vireo and its rivals in turn, in one run; on real KVM but for `cpu` and `block`.
//!
//! ```text
//!  outside                              the box of kvm-host (or this machine's own KVM)
//!  ┌─────────────────────┐  plan.json  ┌──────────────────────────────────────────────┐
//!  │ boot, disk, net,    │ ──────────> │ bench inside: for each round, for each case: │
//!  │ memory              │             │   Vireo, QEMU, ... one after the other       │
//!  │                     │  records    │     @init ... @shell ... @end   (guest)      │
//!  │ results: tables     │ <────────── │     smaps, KVM's counters       (host)       │
//!  └─────────────────────┘             └──────────────────────────────────────────────┘
//! ```
//!
//! | file             | what                                                              |
//! |------------------|-------------------------------------------------------------------|
//! | `vmm.rs`         | how each monitor is told to run the same guest                     |
//! | `guest_files.rs` | what the guest boots; its side is in benches/guest                 |
//! | `running.rs`     | a monitor that runs: the guest's markers, the process's memory     |
//! | `exits.rs`       | KVM's counters and trace events                                    |
//! | `boxes.rs`       | what came out, over all boxes: one that dies is followed by another |
//! | `results.rs`     | medians, ranges, ratios                                            |
//!
//! Every other file is a benchmark; `cpu` and `block` need no KVM and no box. Times are never judged
//! here: only ratios within a run mean something.

mod block;
mod boot;
mod boxes;
mod cpu;
mod disk;
mod exits;
mod guest_files;
mod inside;
mod memory;
mod net;
mod results;
mod running;
mod vmm;

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::kvm_host::{BOX_FAILED, Drive, End, HostBox};
use crate::{guest_image, project};
use boxes::Gathered;
use results::Record;
use vmm::{Kind, Vmm};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Time from starting the program to the guest's init and to a shell on its disk; memory.
    Boot(boot::Args),
    /// fio in the guest: requests per second, and exits for each.
    Disk(disk::Args),
    /// iperf3 and an echo between guest and host, by tap and by user-mode networking.
    Net(net::Args),
    /// Resident memory of an idle machine beside its guest's.
    Memory(memory::Args),
    /// Without KVM: the software processor beside QEMU's TCG and this machine's own processor.
    Cpu(cpu::Args),
    /// `vireo image` beside qemu-img: converting, checking, requests, opening; no KVM is needed.
    Block(block::Args),
    /// The part that runs where KVM is.
    #[command(hide = true)]
    Inside { plan: PathBuf },
}

/// What all benchmarks can be told.
#[derive(clap::Args)]
pub struct Common {
    /// How often each monitor runs, in turn; one more round before them is not counted.
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: u32,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// A vireo to measure instead of building a release; several stand beside each other.
    #[arg(long, value_name = "[NAME=]PATH")]
    vireo: Vec<String>,
    /// More lines for every vireo's configuration file, such as "[machine]\ni8042 = false".
    #[arg(long, value_name = "TOML", default_value = "")]
    vireo_config: String,
    /// Firecracker's program, to be measured too.
    #[arg(long, value_name = "PATH")]
    firecracker: Option<PathBuf>,
    /// Cloud Hypervisor's program, to be measured too.
    #[arg(long, value_name = "PATH")]
    cloud_hypervisor: Option<PathBuf>,
    /// Measure only these monitors of those that would be.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// End after this many seconds.
    #[arg(long, default_value_t = 3600, value_name = "S")]
    timeout: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables.
    Text,
    /// One JSON object.
    Json,
}

/// What the part inside has to do; all paths are those outside, which it sees too.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    rounds: u32,
    vmms: Vec<Vmm>,
    /// What an earlier box has done.
    done: BTreeSet<Turn>,
    kernel: PathBuf,
    initramfs: PathBuf,
    /// What the initramfs runs.
    script: PathBuf,
    job: Job,
}

#[derive(Debug, Serialize, Deserialize)]
enum Job {
    Boot(boot::Plan),
    Disk(disk::Plan),
    Net(net::Plan),
    Memory(memory::Plan),
}

/// A line of what the part inside has to say.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Record(Record),
    Text(String),
    /// All since the last such message was of this turn, which is complete.
    Done(Turn),
    /// The same, but the turn will be tried once more.
    Again(Turn),
    /// The same, but the monitor is left out from now on.
    Failed(Turn),
}

/// One monitor in one round.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Turn {
    round: u32,
    vmm: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Boot(args) => boot::run(args),
        What::Disk(args) => disk::run(args),
        What::Net(args) => net::run(args),
        What::Memory(args) => memory::run(args),
        What::Cpu(args) => cpu::run(args),
        What::Block(args) => block::run(args),
        What::Inside { plan } => Ok(inside::run(plan)),
    }
}

impl Common {
    /// The monitors to be measured: Vireo, `qemus`, and those given by their paths.
    fn vmms(&self, qemus: Vec<Vmm>) -> anyhow::Result<Vec<Vmm>> {
        let mut vmms = Vec::new();
        for text in &self.vireo {
            let (name, path) = text.split_once('=').unwrap_or(("vireo", text));
            vmms.push(Vmm::new(name, Kind::Vireo, &existing(Path::new(path))?));
        }
        if vmms.is_empty() {
            vmms.push(Vmm::new("vireo", Kind::Vireo, &release_build()?));
        }
        for vmm in &mut vmms {
            vmm.configuration.clone_from(&self.vireo_config);
        }
        vmms.extend(qemus);
        for (name, kind, path) in [
            ("firecracker", Kind::Firecracker, &self.firecracker),
            (
                "cloud-hypervisor",
                Kind::CloudHypervisor,
                &self.cloud_hypervisor,
            ),
        ] {
            if let Some(path) = path {
                vmms.push(Vmm::new(name, kind, &existing(path)?));
            }
        }
        if !self.only.is_empty() {
            vmms.retain(|vmm| self.only.contains(&vmm.name));
            ensure!(!vmms.is_empty(), "no monitor is called {:?}", self.only);
        }
        Ok(vmms)
    }

    /// Runs `job` in the box, with `script` of benches/guest under each monitor, and prints what
    /// came out.
    fn measure(&self, vmms: Vec<Vmm>, script: &str, job: Job) -> anyhow::Result<ExitCode> {
        self.measure_with_drive(vmms, script, job, None)
    }

    /// The same with an empty disk of a name and size more.
    fn measure_with_drive(
        &self,
        vmms: Vec<Vmm>,
        script: &str,
        job: Job,
        drive: Option<(&str, u64)>,
    ) -> anyhow::Result<ExitCode> {
        let guest = guest_image::ensure(false)?;
        let folder = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in(project::target()?)?;
        let mut host = HostBox {
            timeout: Duration::from_secs(self.timeout),
            ..HostBox::default()
        };
        host.add_guest()?;
        if let Some((name, size)) = drive {
            let file = folder.path().join(format!("{name}.img"));
            File::create(&file)
                .and_then(|file| file.set_len(size))
                .context("cannot create a disk image")?;
            host.drives.push(Drive {
                file,
                name: name.to_owned(),
            });
        }
        for vmm in &vmms {
            // Programs stand in folders that the box does not see otherwise.
            if let Some(parent) = vmm.program.parent().filter(|p| p.is_absolute()) {
                host.shares.push(parent.to_owned());
            }
        }
        let script = project::root().join("benches/guest").join(script);
        let gathered = Gathered::new(vmms.iter().map(|vmm| vmm.name.clone()).collect());
        let plan = Plan {
            rounds: self.rounds,
            vmms,
            done: BTreeSet::new(),
            kernel: guest.vmlinux.clone(),
            initramfs: guest_files::initramfs(&guest, &script, &[], folder.path())?,
            script,
            job,
        };
        // A copy, because cargo may build anew while this runs.
        let program = folder.path().join("xtask");
        fs::copy("/proc/self/exe", &program).context("cannot copy this program")?;
        let before = load();
        let (gathered, ending) = boxes::run(
            host,
            plan,
            &program,
            &folder.path().join("plan.json"),
            gathered,
        )?;
        let after = load();
        let boxes = gathered.boxes;
        match self.output {
            Output::Text => {
                print!("{}", gathered.results.table());
                for text in &gathered.texts {
                    println!("{text}");
                }
                println!(
                    "{} of {} rounds in turn{}; the host's load was {before} before and {after} after \
                     (it counts what else runs there)",
                    gathered.complete_rounds(self.rounds),
                    self.rounds,
                    match boxes {
                        1 => String::new(),
                        n => format!(", in {n} boxes: those before the last died"),
                    }
                );
            }
            Output::Json => {
                let json = serde_json::json!({
                    "results": gathered.results.json(),
                    "texts": gathered.texts,
                    "rounds": gathered.complete_rounds(self.rounds),
                    "boxes": boxes,
                    "load": { "before": before, "after": after },
                });
                println!("{json:#}");
            }
        }
        let outcome = match ending {
            Ok(outcome) => outcome,
            Err(error) if gathered.results.is_empty() => return Err(error),
            Err(error) => {
                eprintln!("bench: {error:#}; these are the results until then");
                return Ok(ExitCode::from(BOX_FAILED));
            }
        };
        let status = outcome.report();
        if outcome.end == End::Exited(0) {
            ensure!(!gathered.results.is_empty(), "nothing was measured");
        }
        Ok(ExitCode::from(status))
    }
}

fn existing(path: &Path) -> anyhow::Result<PathBuf> {
    fs::canonicalize(path).with_context(|| format!("no program {}", path.display()))
}

fn release_build() -> anyhow::Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "vireo"])
        .current_dir(project::root())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cannot build vireo");
    Ok(project::target()?.join("release/vireo"))
}

/// The host's load over the last minute.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}
