//! The part of a benchmark that runs where KVM is.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, ensure};

use super::running::Running;
use super::vmm::{Guest, Kind, Net, Vmm};
use super::{Job, Message, Plan, Record, Turn, boot, disk, exits, memory, net};

/// Where a benchmark runs, and what it runs.
pub struct Site {
    pub plan_rounds: u32,
    /// The monitors, each with what it can do.
    pub vmms: Vec<Vmm>,
    /// What an earlier box has done.
    pub done: BTreeSet<Turn>,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// What the guest runs, of benches/guest.
    pub script: PathBuf,
    /// The Debian guest's disk.
    pub disk: PathBuf,
    /// For big files.
    pub scratch: PathBuf,
}

pub fn run(plan: &Path) -> ExitCode {
    match carry_out(plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(plan: &Path) -> anyhow::Result<()> {
    let text = fs::read(plan).with_context(|| format!("cannot read {}", plan.display()))?;
    let plan: Plan = serde_json::from_slice(&text).context("cannot understand the plan")?;
    let scratch = env::var_os("VIREO_SCRATCH").context("VIREO_SCRATCH is not set")?;
    let scratch = PathBuf::from(scratch);
    exits::mount();
    let mut site = Site {
        plan_rounds: plan.rounds,
        vmms: plan.vmms,
        done: plan.done,
        kernel: local(&plan.kernel, &scratch, "vmlinux")?,
        initramfs: local(&plan.initramfs, &scratch, "initramfs")?,
        script: plan.script,
        disk: drive("guest")?,
        scratch: scratch.clone(),
    };
    for vmm in &mut site.vmms {
        if vmm.program.is_absolute() {
            vmm.program = local(&vmm.program, &scratch, &vmm.name)?;
        }
    }
    match plan.job {
        Job::Boot(plan) => boot::inside(&site, &plan),
        Job::Disk(plan) => disk::inside(&site, &plan),
        Job::Net(plan) => net::inside(&site, &plan),
        Job::Memory(plan) => memory::inside(&site, &plan),
    }
}

/// The device or file of a drive of the box.
pub fn drive(name: &str) -> anyhow::Result<PathBuf> {
    let variable = format!("VIREO_DRIVE_{}", name.to_ascii_uppercase());
    let path = env::var_os(&variable).with_context(|| format!("{variable} is not set"))?;
    Ok(path.into())
}

/// A copy of `file` on a local disk: the shared folders are slow, which would be measured.
fn local(file: &Path, scratch: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let copy = scratch.join(name);
    fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(copy)
}

impl Site {
    /// Calls `run` for each round and monitor in turn, but for what an earlier box has done; round 0
    /// is there to fill caches. What fails is tried once more, because it may be the box that killed
    /// the guest; a monitor that fails twice is reported and left out from then on.
    pub fn rounds(
        &self,
        mut run: impl FnMut(u32, &Vmm) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut failed: Vec<&str> = Vec::new();
        for round in 0..=self.plan_rounds {
            for vmm in &self.vmms {
                let turn = Turn {
                    round,
                    vmm: vmm.name.clone(),
                };
                let done = turn.is_done(&self.done, self.plan_rounds);
                if done || failed.contains(&vmm.name.as_str()) {
                    continue;
                }
                let mut result = run(round, vmm);
                if let Err(error) = &result {
                    eprintln!("{}: {error:#}; once more", vmm.name);
                    say(&Message::Again(turn.clone()))?;
                    result = run(round, vmm);
                }
                match result {
                    Ok(()) => say(&Message::Done(turn))?,
                    Err(error) => {
                        eprintln!("{}: {error:#}; it is left out", vmm.name);
                        failed.push(&vmm.name);
                        say(&Message::Failed(turn))?;
                    }
                }
            }
        }
        ensure!(
            failed.len() < self.vmms.len(),
            "no monitor could be measured"
        );
        Ok(())
    }

    /// The Debian guest with its disk, read-only.
    pub fn guest(&self, command_line: &str) -> Guest {
        Guest {
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            command_line: command_line.to_owned(),
            init_words: Vec::new(),
            memory_mib: 512,
            cpus: 1,
            disks: vec![super::vmm::Disk {
                file: self.disk.clone(),
                read_only: true,
                cache: "writeback".to_owned(),
            }],
            net: None,
        }
    }

    /// Starts `guest` under `vmm`.
    pub fn start(&self, vmm: &Vmm, guest: &Guest) -> anyhow::Result<Running> {
        let mut guest = guest.clone();
        guest.command_line = vmm.command_line(&guest.command_line, &guest.init_words);
        let folder = self.scratch.join("run");
        fs::create_dir_all(&folder).context("cannot make a folder")?;
        Running::start(vmm.command(&guest, &folder)?, &folder)
    }
}

/// A network for `vmm` that needs no permission, or a tap where it knows nothing else.
pub fn simple_net(vmm: &Vmm) -> anyhow::Result<Option<Net>> {
    Ok(match vmm.kind {
        Kind::QemuQ35 | Kind::QemuMicrovm => Some(Net::User),
        Kind::Vireo => {
            let devices = Command::new(&vmm.program)
                .arg("devices")
                .stdin(Stdio::null())
                .output()
                .context("cannot ask for its devices")?;
            let known = String::from_utf8_lossy(&devices.stdout).contains("virtio-net");
            if !known {
                eprintln!("{}: it has no virtio-net; measured without", vmm.name);
            }
            known.then_some(Net::User)
        }
        Kind::Firecracker | Kind::CloudHypervisor => {
            let name = "bench0";
            if !Path::new("/sys/class/net").join(name).exists() {
                let status = Command::new("ip")
                    .args(["tuntap", "add", name, "mode", "tap", "vnet_hdr"])
                    .status()
                    .context("cannot run ip")?;
                ensure!(status.success(), "cannot make the tap {name}");
            }
            Some(Net::Tap(name.to_owned()))
        }
    })
}

/// Hands a record over, one line of JSON.
pub fn record(case: &str, vmm: &Vmm, values: BTreeMap<String, f64>) -> anyhow::Result<()> {
    record_of(case, &vmm.name, values)
}

/// The same for what is no monitor.
pub fn record_of(case: &str, name: &str, values: BTreeMap<String, f64>) -> anyhow::Result<()> {
    say(&Message::Record(Record {
        case: case.to_owned(),
        vmm: name.to_owned(),
        values,
    }))
}

/// Hands a text over.
pub fn text(text: String) -> anyhow::Result<()> {
    say(&Message::Text(text))
}

fn say(message: &Message) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(message)?);
    Ok(())
}
