//! `cargo xtask bench cpu`: the software processor, QEMU's TCG and this machine's own processor in
//! turn, the same programs on all of them.
//!
//! ```text
//!   benches/cpu/main.rs, job.sh, loop.py
//!      │
//!      ├── native   on this machine
//!      ├── vireo    a guest with 1 processor, one with 2, one that boots to its login prompt
//!      └── tcg      the same guests
//! ```
//!
//! Runs on this machine itself, without KVM and without the box. Each result has a number that
//! depends on all that was computed; where two differ, a processor has computed something wrong,
//! and the benchmark fails. Rows that hang or end the monitor fail alone: the guest is started
//! anew for those after them.

mod rows;
mod tables;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use image_build::Outputs;

use super::inside::Site;
use super::running::Running;
use super::vmm::{Disk, Guest, Kind as VmmKind, Net, Vmm};
use super::{Output, existing, guest_files, load, release_build};
use crate::{guest_image, project};
use rows::{IDLE, INIT, Kind, LOGIN, MEMORY, ROWS, Row};
use tables::{NATIVE, Outcome, Table};

#[derive(clap::Args)]
pub struct Args {
    /// How often each runs, in turn.
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: u32,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// A vireo to measure instead of building a release; several stand beside each other.
    #[arg(long, value_name = "[NAME=]PATH")]
    vireo: Vec<String>,
    /// Options of every vireo's software processor, as in its configuration: engine = "interpret".
    #[arg(long, value_name = "TOML", default_value = "")]
    accel: String,
    /// Measure only these of native, vireo and tcg.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Measure only these rows.
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    rows: Vec<String>,
    /// Leave out these rows.
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    without: Vec<String>,
    /// How long each piece of work is repeated at least.
    #[arg(long, default_value_t = 0.3, value_name = "S")]
    seconds: f64,
    /// One short round without devices and login, for a first look.
    #[arg(long)]
    quick: bool,
    /// A row that takes longer has failed.
    #[arg(long, default_value_t = 180, value_name = "S")]
    limit: u64,
    /// More words for the guests' kernel, the same for every machine.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    append: String,
    /// List the rows.
    #[arg(long)]
    list: bool,
}

/// The guests' memory; no power of two, so that no other big mapping has this size.
const MEMORY_MIB: u32 = 768;
/// Bytes of the disk that fio works on.
const DISK: u64 = 256 << 20;
/// As user-mode networks have them.
const NET: &str = "10.0.2.15/24,10.0.2.2";
/// How often a guest is started anew after a row that ended or hung it.
const RESTARTS: u32 = 8;
/// How long a guest at its prompt is left alone, then watched.
const SETTLE: Duration = Duration::from_secs(8);
const WATCH: Duration = Duration::from_secs(5);

/// Where something runs.
enum Column {
    Native,
    Machine(Vmm),
}

impl Column {
    fn name(&self) -> &str {
        match self {
            Self::Native => NATIVE,
            Self::Machine(vmm) => &vmm.name,
        }
    }
}

/// A run of the benchmark.
struct Bench {
    rows: Vec<&'static Row>,
    seconds: f64,
    limit: Duration,
    /// For the guests' kernel.
    append: String,
    site: Site,
    guest: Outputs,
    tools: PathBuf,
    table: Table,
    /// What is tried no more: row and column.
    broken: BTreeSet<(&'static str, String)>,
    notes: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.list {
        for row in &ROWS {
            println!("{:<20} {} [{}]", row.name, row.title, row.unit.name());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let rows = chosen(args)?;
    let columns = columns(args)?;
    let folder = tempfile::Builder::new()
        .prefix("bench-cpu-")
        .tempdir_in(project::target()?)?;
    let folder = folder.path();
    let guest = guest_image::ensure_with_compiler(false)?;
    let sources = project::root().join("benches/cpu");
    let tools = folder.join("tools");
    fs::create_dir_all(tools.as_path()).context("cannot make a folder")?;
    guest_files::compile(&sources.join("main.rs"), &tools.join("cpu"))?;
    fs::copy(sources.join("loop.py"), tools.join("loop.py")).context("cannot copy loop.py")?;
    let script = sources.join("job.sh");
    let in_guest = [tools.join("cpu"), tools.join("loop.py")];
    let in_guest: Vec<&Path> = in_guest.iter().map(PathBuf::as_path).collect();
    let site = Site {
        plan_rounds: args.rounds,
        vmms: Vec::new(),
        done: BTreeSet::new(),
        kernel: guest.vmlinux.clone(),
        initramfs: guest_files::initramfs(&guest, &script, &in_guest, folder)?,
        script,
        disk: guest.image.clone(),
        scratch: folder.to_owned(),
    };
    let names = columns.iter().map(|column| column.name().to_owned());
    let mut bench = Bench {
        rows,
        seconds: if args.quick { 0.1 } else { args.seconds },
        limit: Duration::from_secs(args.limit),
        append: format!("console=ttyS0 quiet {}", args.append),
        site,
        guest,
        tools,
        table: Table::new(names.collect()),
        broken: BTreeSet::new(),
        notes: Vec::new(),
    };
    bench.prepare_disk()?;
    let server = bench.iperf_server()?;
    let before = load();
    let rounds = if args.quick { 1 } else { args.rounds };
    let outcome = bench.rounds(rounds, &columns);
    drop(server);
    outcome?;
    bench.print(args.output, rounds, &before)
}

/// The rows that the arguments choose.
fn chosen(args: &Args) -> anyhow::Result<Vec<&'static Row>> {
    for name in args.rows.iter().chain(&args.without) {
        ensure!(
            rows::find(name).is_some(),
            "no row is called {name} (see --list)"
        );
    }
    let is_chosen = |row: &&Row| {
        let is_in = |names: &[String]| names.iter().any(|name| name == row.name);
        let by_default = !args.quick || !matches!(row.kind, Kind::Device | Kind::Login);
        let wanted = if args.rows.is_empty() {
            by_default
        } else {
            is_in(&args.rows)
        };
        wanted && !is_in(&args.without)
    };
    let rows: Vec<&Row> = ROWS.iter().filter(is_chosen).collect();
    ensure!(!rows.is_empty(), "no rows are left");
    Ok(rows)
}

/// This machine, every Vireo, TCG.
fn columns(args: &Args) -> anyhow::Result<Vec<Column>> {
    let is_wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|n| n == name);
    let mut columns = Vec::new();
    if is_wanted(NATIVE) {
        columns.push(Column::Native);
    }
    let mut vireos = Vec::new();
    for text in &args.vireo {
        let (name, path) = text.split_once('=').unwrap_or(("vireo", text));
        if is_wanted(name) {
            vireos.push((name, existing(Path::new(path))?));
        }
    }
    if args.vireo.is_empty() && is_wanted("vireo") {
        vireos.push(("vireo", release_build()?));
    }
    for (name, path) in vireos {
        let mut vmm = Vmm::new(name, VmmKind::Vireo, &path);
        vmm.emulated = true;
        vmm.accel = toml::from_str(&args.accel).context("--accel")?;
        columns.push(Column::Machine(vmm));
    }
    let tcg = Vmm::qemu_tcg();
    if is_wanted(&tcg.name) {
        columns.push(Column::Machine(tcg));
    }
    ensure!(!columns.is_empty(), "nothing is called {:?}", args.only);
    Ok(columns)
}

/// A process that ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bench {
    fn has(&self, name: &str) -> bool {
        self.rows.iter().any(|row| row.name == name)
    }

    fn has_kind(&self, kind: Kind) -> bool {
        self.rows.iter().any(|row| row.kind == kind)
    }

    fn disk(&self) -> PathBuf {
        self.site.scratch.join("disk.img")
    }

    /// What was never written would be read without any disk.
    fn prepare_disk(&self) -> anyhow::Result<()> {
        let mut file = File::create(self.disk()).context("cannot create a disk image")?;
        file.set_len(DISK).context("cannot size a disk image")?;
        if self.has("disk-read") || self.has("disk-write") {
            let block: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
            for _ in 0..DISK >> 20 {
                file.write_all(&block).context("cannot fill a disk image")?;
            }
            file.sync_all()?;
        }
        Ok(())
    }

    fn iperf_server(&self) -> anyhow::Result<Option<Server>> {
        if !self.has("net-send") && !self.has("net-receive") {
            return Ok(None);
        }
        let child = Command::new("iperf3")
            .args(["--server", "--bind", "127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run iperf3")?;
        Ok(Some(Server(child)))
    }

    fn rounds(&mut self, rounds: u32, columns: &[Column]) -> anyhow::Result<()> {
        for round in 1..=rounds {
            for column in columns {
                eprintln!("{} round {round}", column.name());
                match column {
                    Column::Native => self.native()?,
                    Column::Machine(vmm) => self.machine(vmm)?,
                }
            }
        }
        Ok(())
    }

    /// The rows of a kind that still work in a column.
    fn wanted(&self, column: &str, choose: impl Fn(Kind) -> bool) -> Vec<&'static Row> {
        let is_broken = |row: &Row| self.broken.contains(&(row.name, column.to_owned()));
        let rows = self.rows.iter().copied();
        rows.filter(|row| choose(row.kind) && !is_broken(row))
            .collect()
    }

    fn fail(&mut self, row: &'static Row, column: &str, why: &str) {
        eprintln!("  {}: failed: {why}", row.name);
        self.broken.insert((row.name, column.to_owned()));
        self.table.add(row, column, Outcome::Failed(one_line(why)));
    }

    fn native(&mut self) -> anyhow::Result<()> {
        let rows = self.wanted(NATIVE, |kind| kind.cpus().is_some());
        if rows.is_empty() {
            return Ok(());
        }
        let words = format!(
            "{} bench.tools={} bench.folder={} bench.disk={}",
            self.words(&rows),
            self.tools.display(),
            self.site.scratch.join("work").display(),
            self.disk().display()
        );
        let mut command = Command::new("sh");
        command
            .arg(&self.site.script)
            .env("BENCH_WORDS", words)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let mut running = Running::start(command, &self.site.scratch)?;
        if let Some((row, why)) = self.follow(&mut running, NATIVE, &rows) {
            self.fail(row, NATIVE, &why);
        }
        Ok(())
    }

    fn words(&self, rows: &[&Row]) -> String {
        let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
        format!(
            "bench.rows={} bench.seconds={}",
            names.join(","),
            self.seconds
        )
    }

    fn machine(&mut self, vmm: &Vmm) -> anyhow::Result<()> {
        for cpus in [1, 2] {
            let mut rows = self.wanted(&vmm.name, |kind| kind.cpus() == Some(cpus));
            let is_for_machine = cpus == 1 && self.has_kind(Kind::Machine);
            let mut restarts = 0;
            let mut is_first = true;
            while !rows.is_empty() || (is_first && is_for_machine) {
                let Some((row, why)) = self.job(vmm, cpus, &rows, is_first && cpus == 1)? else {
                    break;
                };
                self.fail(row, &vmm.name, &why);
                is_first = false;
                restarts += 1;
                let done = rows.iter().position(|r| r.name == row.name);
                rows.drain(..done.map_or(0, |position| position + 1));
                if restarts > RESTARTS || done.is_none() {
                    for row in rows.drain(..) {
                        self.fail(row, &vmm.name, "given up: others failed before it");
                    }
                }
            }
        }
        if self.has_kind(Kind::Login) {
            let rows = self.wanted(&vmm.name, |kind| kind == Kind::Login);
            if let (Some(first), Err(error)) = (rows.first(), self.login(vmm, &rows)) {
                self.fail(first, &vmm.name, &format!("{error:#}"));
            }
        }
        Ok(())
    }

    /// A guest that runs `rows`; gives back the row at which it went wrong, and why.
    fn job(
        &mut self,
        vmm: &Vmm,
        cpus: u32,
        rows: &[&'static Row],
        is_first: bool,
    ) -> anyhow::Result<Option<(&'static Row, String)>> {
        let guest = self.guest(cpus, rows);
        let mut running = self.site.start(vmm, &guest)?;
        let init_row = rows::find(INIT).context("a row is missing")?;
        match running.wait_for("init", self.limit) {
            Ok(init) => {
                eprintln!("  {INIT}: {:.2} s", init.at.as_secs_f64());
                if is_first && self.has(INIT) {
                    let cost = Outcome::cost(init.at.as_secs_f64());
                    self.table.add(init_row, &vmm.name, cost);
                }
            }
            Err(error) => return Ok(Some((init_row, format!("{error:#}")))),
        }
        if let Some(failure) = self.follow(&mut running, &vmm.name, rows) {
            return Ok(Some(failure));
        }
        if cpus == 1 && self.has(MEMORY) {
            let beside = running.memory_beside(MEMORY_MIB)?;
            let row = rows::find(MEMORY).context("a row is missing")?;
            self.table.add(row, &vmm.name, Outcome::cost(beside));
        }
        Ok(None)
    }

    fn guest(&self, cpus: u32, rows: &[&Row]) -> Guest {
        let words = format!("{} {} bench.net={NET}", self.append, self.words(rows));
        let mut guest = self.site.guest(&words);
        guest.memory_mib = MEMORY_MIB;
        guest.cpus = cpus;
        guest.disks.push(Disk {
            file: self.disk(),
            read_only: false,
            cache: "none".to_owned(),
        });
        guest.net = Some(Net::User);
        guest
    }

    /// Follows a job row by row; gives back the row at which it went wrong, and why.
    fn follow(
        &mut self,
        running: &mut Running,
        column: &str,
        rows: &[&'static Row],
    ) -> Option<(&'static Row, String)> {
        let mut next = rows.first().copied();
        loop {
            let now = next.unwrap_or(&ROWS[0]);
            let began = match running.wait_for_any(&["begin", "done"], self.limit) {
                Ok((0, Some(marker))) => marker,
                Ok((_, Some(_))) => return None,
                Ok((_, None)) => return Some((now, "nothing more is heard of the guest".into())),
                Err(error) => return Some((now, format!("{error:#}"))),
            };
            let position = rows.iter().position(|row| row.name == began.rest);
            let Some(row) = position.and_then(|position| rows.get(position)) else {
                return Some((now, format!("an unknown row begins: {}", began.rest)));
            };
            next = position
                .and_then(|position| rows.get(position + 1))
                .copied();
            let end = match running.wait_for("end", self.limit) {
                Ok(end) => end,
                Err(error) => return Some((row, format!("{error:#}"))),
            };
            let text = end.rest.strip_prefix(row.name).unwrap_or(&end.rest).trim();
            eprintln!("  {}: {text}", row.name);
            let (outcome, inside) = Outcome::parse(text);
            let outside = (end.at - began.at).as_secs_f64();
            self.compare_clocks(row, column, inside, outside);
            if let Outcome::Failed(why) = outcome {
                self.fail(row, column, &why);
            } else {
                self.table.add(row, column, outcome);
            }
        }
    }

    /// A guest's clock that runs wrongly would tell wrong times.
    fn compare_clocks(&mut self, row: &Row, column: &str, inside: f64, outside: f64) {
        // Starting the program takes a moment, which only counts outside.
        let is_fast = inside > outside * 1.1 + 0.1;
        let is_slow = inside < (outside - 1.5) * 0.8;
        if inside > 0.0 && (is_fast || is_slow) {
            self.notes.push(format!(
                "{}: {column}'s clock says {inside:.2} s, this machine's {outside:.2} s",
                row.name
            ));
        }
    }

    /// Debian with its own init, to its login prompt and then left alone.
    fn login(&mut self, vmm: &Vmm, rows: &[&'static Row]) -> anyhow::Result<()> {
        let Some(first) = rows.first() else {
            return Ok(());
        };
        // Both machines write to a fresh copy.
        let disk = self.site.scratch.join("login.img");
        let status = Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .args([&self.guest.image, &disk])
            .status()
            .context("cannot run cp")?;
        ensure!(
            status.success(),
            "cannot copy {}",
            self.guest.image.display()
        );
        let words = format!("{} root=/dev/vda rw", self.append);
        let mut guest = self.site.guest(&words);
        guest.initramfs.clone_from(&self.guest.initrd);
        guest.memory_mib = MEMORY_MIB;
        guest.net = Some(Net::User);
        guest.disks = vec![Disk {
            file: disk,
            read_only: false,
            cache: "writeback".to_owned(),
        }];
        let mut running = self.site.start(vmm, &guest)?;
        let prompt = running.wait_for_text(" login:", self.limit)?;
        let Some(prompt) = prompt else {
            bail!("no login prompt within {} s", self.limit.as_secs());
        };
        let to_prompt = cpu_seconds(running.pid())?;
        eprintln!("  {LOGIN}: {:.2} s", prompt.as_secs_f64());
        let mut costs = vec![(LOGIN, prompt.as_secs_f64()), ("login-cpu", to_prompt)];
        if self.has(IDLE) || self.has("login-memory") {
            thread::sleep(SETTLE);
            let (begin, before) = (Instant::now(), cpu_seconds(running.pid())?);
            thread::sleep(WATCH);
            let used = cpu_seconds(running.pid())? - before;
            costs.push((IDLE, used / begin.elapsed().as_secs_f64() * 100.0));
            costs.push(("login-memory", running.memory_beside(MEMORY_MIB)?));
        }
        ensure!(first.kind == Kind::Login, "not a row of the login prompt");
        for (name, cost) in costs {
            if let Some(row) = rows.iter().find(|row| row.name == name) {
                self.table.add(row, &vmm.name, Outcome::cost(cost));
            }
        }
        Ok(())
    }

    fn print(&self, output: Output, rounds: u32, before: &str) -> anyhow::Result<ExitCode> {
        let after = load();
        match output {
            Output::Text => {
                print!("{}", self.table.text());
                for note in &self.notes {
                    println!("{note}");
                }
                println!(
                    "medians of {rounds} rounds in turn; ratios are of cost, whatever the unit; \
                     the machine's load was {before} before and {after} after"
                );
            }
            Output::Json => {
                let json = serde_json::json!({
                    "results": self.table.json(),
                    "notes": self.notes,
                    "rounds": rounds,
                    "load": { "before": before, "after": after },
                });
                println!("{json:#}");
            }
        }
        ensure!(!self.table.is_empty(), "nothing was measured");
        let failures = self.table.failures().len();
        if failures > 0 {
            eprintln!("{failures} rows failed");
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The end of what was said, on one line.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    let skip = line.chars().count().saturating_sub(300);
    line.chars().skip(skip).collect()
}

/// Processor time of a process (proc(5), fields 14 and 15 of stat), which Linux counts in 100ths.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The second field is a name in parentheses that may hold anything.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u32 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u32>().ok())
        .sum();
    Ok(f64::from(ticks) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_time() {
        let before = cpu_seconds(std::process::id()).unwrap();
        assert!(before >= 0.0);
        assert!(cpu_seconds(u32::MAX).is_err());
    }

    #[test]
    fn a_report_is_one_line() {
        assert_eq!(one_line("it ended\n  with 1\r\n"), "it ended with 1");
        assert_eq!(one_line(&"x".repeat(999)).len(), 300);
    }
}
