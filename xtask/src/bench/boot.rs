//! `cargo xtask bench boot`: from starting the program to the guest's init, and to a shell on its
//! disk; resident memory beside the guest's.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::exits::{self, Trace, to_f64};
use super::inside::{self, Site};
use super::results::aligned;
use super::running::Memory;
use super::vmm::Vmm;
use super::{Common, Job};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Count exits instead of time: KVM's counters, and its trace events by reason and address.
    #[arg(long)]
    exits: bool,
    /// Lines of each histogram.
    #[arg(long, default_value_t = 25, value_name = "N")]
    lines: usize,
    /// Only with a quiet kernel, not also with one that logs to the serial port.
    #[arg(long)]
    quiet: bool,
    /// More words for the kernel's command line, the same for every monitor.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    append: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    consoles: Vec<Console>,
    /// Lines of each histogram, if exits are counted.
    exits: Option<usize>,
    append: String,
}

impl Plan {
    fn command_line(&self, console: Console) -> String {
        format!("{} {}", console.command_line(), self.append)
            .trim_end()
            .to_owned()
    }
}

/// What the guest's kernel says on the serial port, one exit for each byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Console {
    Quiet,
    Log,
}

impl Console {
    fn case(self) -> &'static str {
        match self {
            Self::Quiet => "boot, quiet",
            Self::Log => "boot, kernel log on ttyS0",
        }
    }

    fn command_line(self) -> &'static str {
        match self {
            Self::Quiet => "console=ttyS0 quiet",
            Self::Log => "console=ttyS0",
        }
    }
}

/// Time for a whole boot, after which something hangs.
const LIMIT: Duration = Duration::from_secs(400);

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let vmms = args.common.vmms(vec![Vmm::qemu(), Vmm::microvm()])?;
    let consoles = if args.quiet || args.exits {
        vec![Console::Quiet]
    } else {
        vec![Console::Quiet, Console::Log]
    };
    let plan = Plan {
        consoles,
        exits: args.exits.then_some(args.lines),
        append: args.append.clone(),
    };
    args.common.measure(vmms, "boot.sh", Job::Boot(plan))
}

/// The part where KVM is.
pub fn inside(site: &Site, plan: &Plan) -> anyhow::Result<()> {
    site.rounds(|round, vmm| {
        for &console in &plan.consoles {
            match plan.exits {
                None => boot(site, plan, vmm, console, round)?,
                Some(lines) if round > 0 => count_exits(site, plan, vmm, lines)?,
                Some(_) => {}
            }
        }
        Ok(())
    })
}

fn boot(site: &Site, plan: &Plan, vmm: &Vmm, console: Console, round: u32) -> anyhow::Result<()> {
    let mut guest = site.guest(&plan.command_line(console));
    guest.net = inside::simple_net(vmm)?;
    let mut running = site.start(vmm, &guest)?;
    let init = running.wait_for("init", LIMIT)?;
    let shell = running.wait_for("shell", LIMIT)?;
    // The monitor may still be at work, but not for long.
    thread::sleep(Duration::from_millis(300));
    let memory = running.memory(guest.memory_mib)?;
    let exits = exits::counter(running.pid(), "exits");
    eprintln!(
        "{} {} round {round}: init {:.3} s, shell {:.3} s, {} KiB",
        vmm.name,
        console.case(),
        init.at.as_secs_f64(),
        shell.at.as_secs_f64(),
        memory.rest
    );
    if round == 0 {
        if console == Console::Quiet {
            inside::text(memory_text(vmm, &memory))?;
        }
        return Ok(());
    }
    let mut values = BTreeMap::from([
        ("1 exec to init [s]".to_owned(), init.at.as_secs_f64()),
        ("2 exec to shell [s]".to_owned(), shell.at.as_secs_f64()),
        (
            "4 memory beside the guest's [MiB]".to_owned(),
            mib(memory.rest),
        ),
        (
            "5 of that anonymous [MiB]".to_owned(),
            mib(memory.anonymous),
        ),
        ("6 guest's own memory [MiB]".to_owned(), mib(memory.guest)),
    ]);
    if let Ok(nanoseconds) = init.rest.parse::<f64>() {
        // The guest's clock starts when its kernel does.
        let before = init.at.as_secs_f64() - nanoseconds / 1e9;
        values.insert("3 exec to the kernel's clock [s]".to_owned(), before);
    }
    if let Some(exits) = exits {
        values.insert("7 exits".to_owned(), to_f64(exits));
    }
    inside::record(console.case(), vmm, values)
}

/// Where the memory is, biggest first.
pub fn memory_text(vmm: &Vmm, memory: &Memory) -> String {
    let mut files: Vec<_> = memory.files.iter().collect();
    files.sort_by(|a, b| b.1.cmp(a.1));
    let mut text = format!(
        "{}: {} KiB resident beside the guest's: {} anonymous",
        vmm.name, memory.rest, memory.anonymous
    );
    for (name, kib) in files.iter().take(8) {
        text.push_str(&format!(", {kib} {name}"));
    }
    text
}

fn count_exits(site: &Site, plan: &Plan, vmm: &Vmm, lines: usize) -> anyhow::Result<()> {
    let mut guest = site.guest(&plan.command_line(Console::Quiet));
    guest.net = inside::simple_net(vmm)?;
    let trace = Trace::start()?;
    let mut running = site.start(vmm, &guest)?;
    running.wait_for("init", LIMIT)?;
    let at_init = exits::counters(running.pid());
    running.wait_for("shell", LIMIT)?;
    let at_shell = exits::counters(running.pid());
    drop(running);
    let histograms = trace.finish()?;

    let mut values = BTreeMap::new();
    for (name, value) in &at_init {
        values.insert(format!("{name} to init"), to_f64(*value));
    }
    for (name, value) in &at_shell {
        values.insert(format!("{name} to shell"), to_f64(*value));
    }
    inside::record("exits", vmm, values)?;
    for (title, histogram) in histograms {
        let total: u64 = histogram.iter().map(|(_, count)| count).sum();
        let mut rows = vec![vec![format!("{}: {title}", vmm.name), total.to_string()]];
        for (key, count) in histogram.iter().take(lines) {
            rows.push(vec![format!("  {key}"), count.to_string()]);
        }
        inside::text(aligned(&rows))?;
    }
    Ok(())
}

/// KiB in MiB.
pub fn mib(kib: u64) -> f64 {
    to_f64(kib) / 1024.0
}
