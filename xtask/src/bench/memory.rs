//! `cargo xtask bench memory`: what a monitor keeps resident beside its guest's memory, idle.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::boot::{memory_text, mib};
use super::inside::{self, Site};
use super::vmm::Vmm;
use super::{Common, Job};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Seconds of idleness before memory is looked at.
    #[arg(long, default_value_t = 5, value_name = "S")]
    idle: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    idle: u64,
}

const LIMIT: Duration = Duration::from_secs(180);

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let vmms = args.common.vmms(vec![Vmm::qemu(), Vmm::microvm()])?;
    let plan = Plan { idle: args.idle };
    args.common.measure(vmms, "boot.sh", Job::Memory(plan))
}

/// The part where KVM is.
pub fn inside(site: &Site, plan: &Plan) -> anyhow::Result<()> {
    site.rounds(|round, vmm| {
        if round == 0 {
            return Ok(());
        }
        let mut guest = site.guest("console=ttyS0 quiet");
        guest.net = inside::simple_net(vmm)?;
        let mut running = site.start(vmm, &guest)?;
        running.wait_for("shell", LIMIT)?;
        thread::sleep(Duration::from_secs(plan.idle));
        let memory = running.memory(guest.memory_mib)?;
        if round == 1 {
            inside::text(memory_text(vmm, &memory))?;
        }
        let values = BTreeMap::from([
            ("1 beside the guest's [MiB]".to_owned(), mib(memory.rest)),
            (
                "2 of that anonymous [MiB]".to_owned(),
                mib(memory.anonymous),
            ),
            ("3 guest's own [MiB]".to_owned(), mib(memory.guest)),
        ]);
        inside::record("memory, idle, 1 disk, 1 net", vmm, values)
    })
}
