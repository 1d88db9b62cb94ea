//! `cargo xtask bench disk`: fio in the guest, on a file and on a block device of the host.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::exits::Sampler;
use super::inside::{self, Site};
use super::running::Running;
use super::vmm::{Disk, Vmm};
use super::{Common, Job};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Seconds of each fio job, after one that is not counted.
    #[arg(long, default_value_t = 4, value_name = "S")]
    seconds: u32,
    /// What fio works on, of those there are.
    #[arg(long, value_enum, value_delimiter = ',',
        default_values_t = [Target::FileWriteback, Target::FileNone, Target::DeviceNone])]
    target: Vec<Target>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
enum Target {
    /// A raw file, through the host's page cache.
    FileWriteback,
    /// A raw file, past the host's page cache.
    FileNone,
    /// A block device, past the host's page cache.
    DeviceNone,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::FileWriteback => "file, cache=writeback",
            Self::FileNone => "file, cache=none",
            Self::DeviceNone => "device, cache=none",
        }
    }

    /// One word.
    fn word(self) -> &'static str {
        match self {
            Self::FileWriteback => "file-writeback",
            Self::FileNone => "file-none",
            Self::DeviceNone => "device-none",
        }
    }

    fn cache(self) -> &'static str {
        match self {
            Self::FileWriteback => "writeback",
            Self::FileNone | Self::DeviceNone => "none",
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    seconds: u32,
    targets: Vec<Target>,
}

/// The drive of the box that stands for a disk of the host.
const DRIVE: &str = "bench";
/// Bytes of each target: what fio uses of it.
const SIZE: u64 = 256 << 20;
/// Time for a boot, or for what is between two markers.
const LIMIT: Duration = Duration::from_secs(180);

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let variant = |of: Vmm, name: &str, aio: &str, packed| {
        let mut vmm = of;
        name.clone_into(&mut vmm.name);
        aio.clone_into(&mut vmm.disk.aio);
        vmm.disk.packed = packed;
        vmm
    };
    let vmms = args.common.vmms(vec![
        Vmm::qemu(),
        variant(Vmm::qemu(), "qemu-packed", "io_uring", true),
        variant(Vmm::qemu(), "qemu-native", "native", false),
        variant(Vmm::qemu(), "qemu-threads", "threads", false),
    ])?;
    let plan = Plan {
        seconds: args.seconds,
        targets: args.target.clone(),
    };
    args.common
        .measure_with_drive(vmms, "disk.sh", Job::Disk(plan), Some((DRIVE, SIZE)))
}

/// The part where KVM is.
pub fn inside(site: &Site, plan: &Plan) -> anyhow::Result<()> {
    let mut disks = Vec::new();
    for &target in &plan.targets {
        let file = match target {
            Target::FileWriteback | Target::FileNone => {
                site.scratch.join(format!("{}.img", target.word()))
            }
            Target::DeviceNone => inside::drive(DRIVE)?,
        };
        // What was never written is read without any disk.
        fill(&file)?;
        disks.push(Disk {
            file,
            read_only: false,
            cache: target.cache().to_owned(),
        });
    }
    site.rounds(|round, vmm| {
        if round == 0 {
            return Ok(());
        }
        if vmm.name == site.vmms[0].name {
            on_host(site, plan, &disks)?;
        }
        measure(site, plan, &disks, vmm, round)
    })
}

fn fill(path: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot fill {}", path.display());
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(context)?;
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    for _ in 0..SIZE >> 20 {
        file.write_all(&block).with_context(context)?;
    }
    File::sync_all(&file).with_context(context)
}

fn words(plan: &Plan, devices: &[String]) -> String {
    let mut text = format!("bench.seconds={}", plan.seconds);
    for (target, device) in plan.targets.iter().zip(devices) {
        text.push_str(&format!(" bench.target={}={device}", target.word()));
    }
    text
}

/// The same jobs without any virtual machine: what can be had at most.
fn on_host(site: &Site, plan: &Plan, disks: &[Disk]) -> anyhow::Result<()> {
    let devices: Vec<String> = disks
        .iter()
        .map(|disk| disk.file.to_string_lossy().into_owned())
        .collect();
    let mut command = Command::new("sh");
    command
        .arg(&site.script)
        .env("BENCH_WORDS", words(plan, &devices));
    let mut running = Running::start(command, &site.scratch)?;
    jobs(&mut running, plan, |case, values| {
        inside::record_of(case, "no VM", values)
    })
}

fn measure(site: &Site, plan: &Plan, disks: &[Disk], vmm: &Vmm, round: u32) -> anyhow::Result<()> {
    // The Debian guest's own disk is the first.
    let devices: Vec<String> = (b'b'..)
        .take(disks.len())
        .map(|letter| format!("/dev/vd{}", char::from(letter)))
        .collect();
    let mut guest = site.guest(&format!("console=ttyS0 quiet {}", words(plan, &devices)));
    guest.disks.extend(disks.iter().cloned());
    eprintln!("{} round {round}", vmm.name);
    let mut running = site.start(vmm, &guest)?;
    running.wait_for("init", LIMIT)?;
    jobs(&mut running, plan, |case, values| {
        inside::record(case, vmm, values)
    })
}

/// Follows the jobs as they go, and hands each one's values over.
fn jobs(
    running: &mut Running,
    plan: &Plan,
    mut record: impl FnMut(&str, BTreeMap<String, f64>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        let (word, marker) = running.wait_for_any(&["begin", "done"], LIMIT)?;
        let name = marker.context("no fio job begins")?.rest;
        if word == 1 {
            return Ok(());
        }
        let mut sampler = Sampler::new(running.pid());
        let end = running.sample_until("end", LIMIT, || sampler.sample())?;
        let values = fio_values(&end.rest, &sampler)?;
        let (target, job) = name.split_once('/').unwrap_or(("", &name));
        let target = plan.targets.iter().find(|t| t.word() == target);
        let case = format!("{}, {job}", target.map_or("?", |t| t.name()));
        eprintln!("  {case}: {:.0} requests/s", values[REQUESTS]);
        record(&case, values)?;
    }
}

const REQUESTS: &str = "1 requests [1/s]";

/// Of "error;read KiB/s;read requests/s;write KiB/s;write requests/s".
fn fio_values(text: &str, sampler: &Sampler) -> anyhow::Result<BTreeMap<String, f64>> {
    let fields: Vec<f64> = text
        .split(';')
        .map_while(|field| field.trim().parse().ok())
        .collect();
    let [0.0, read, reads, write, writes] = fields[..] else {
        bail!("fio failed: {text}");
    };
    let requests = reads + writes;
    let mut values = BTreeMap::from([
        (REQUESTS.to_owned(), requests),
        ("2 bandwidth [MiB/s]".to_owned(), (read + write) / 1024.0),
    ]);
    for (name, rate) in sampler.rates() {
        values.insert(format!("{name} per request"), rate / requests.max(1.0));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fio_says_is_added_up() {
        let values = fio_values("0;100;25;1948;487\r", &Sampler::new(0)).unwrap();
        assert_eq!(values[REQUESTS], 512.0);
        assert_eq!(values["2 bandwidth [MiB/s]"], 2.0);
        let error = fio_values("fio: no such file", &Sampler::new(0)).unwrap_err();
        assert!(error.to_string().contains("no such file"));
    }
}
