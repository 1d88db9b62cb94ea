//! `cargo xtask bench block`: `vireo image` beside qemu-img, on the same files, in turn.
//!
//! ```text
//!   a generated disk: data, zeros, holes ──▶ raw, qcow2, compressed qcow2      (once)
//!        │
//!        └─ for each round, for each row: vireo, qemu-img (the other way round in every second
//!           round), each with its input in the page cache and no output of an earlier run
//! ```
//!
//! What was converted is compared with its source in the first round. The processes' times and
//! their peaks of memory are what time(1) says. Where the image is served by NBD, the rival is
//! QEMU's storage daemon, and the client is qemu-img. Runs on this machine itself, without KVM; on
//! a file system whose disk is slow or shared, `--folder` on a tmpfs shows the programs' own cost.

mod content;
mod rows;
mod serving;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};

use super::results::{Record, Results, aligned, number_text};
use super::{Output, existing, load, release_build};
use crate::project;

use rows::{Job, ROWS, Row};
use serving::Server;

#[derive(clap::Args)]
pub struct Args {
    /// How often each program runs, in turn.
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: u32,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// A vireo to measure instead of building a release.
    #[arg(long, value_name = "PATH")]
    vireo: Option<PathBuf>,
    /// Another qemu-img than the one in PATH.
    #[arg(long, value_name = "PATH", default_value = "qemu-img")]
    qemu_img: PathBuf,
    /// Measure only these rows.
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    rows: Vec<String>,
    /// MiB of the disk that is copied, read and written.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    size: u64,
    /// Requests of the rows with random ones.
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    requests: u64,
    /// Where the images are made, in a folder that is removed at the end.
    #[arg(long, value_name = "PATH")]
    folder: Option<PathBuf>,
    /// One round of a small disk, for a first look.
    #[arg(long)]
    quick: bool,
    /// List the rows.
    #[arg(long)]
    list: bool,
}

const VIREO: &str = "vireo";
const QEMU: &str = "qemu-img";
/// MiB and requests of a quick run.
const QUICK: (u64, u64) = (256, 20_000);
/// Requests at a time.
const DEPTH: u64 = 32;
/// Bytes from one request to the next: far, and over all of a disk whose size is a power of two.
const STEP: u64 = 4096 * 7919;

/// A run of the benchmark.
struct Bench {
    vireo: PathBuf,
    qemu_img: PathBuf,
    folder: PathBuf,
    size: u64,
    requests: u64,
    /// How qemu-img reaches files.
    aio: &'static str,
    results: Results,
}

/// What a program used.
struct Used {
    seconds: f64,
    processor: f64,
    peak_mib: f64,
    said: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.list {
        for row in &ROWS {
            println!("{:<18} {}", row.name, row.title);
        }
        return Ok(ExitCode::SUCCESS);
    }
    for name in &args.rows {
        let is_known = ROWS.iter().any(|row| row.name == name);
        ensure!(is_known, "no row is called {name} (see --list)");
    }
    let is_wanted =
        |row: &&Row| args.rows.is_empty() || args.rows.iter().any(|name| name == row.name);
    let rows: Vec<&Row> = ROWS.iter().filter(is_wanted).collect();
    let rounds = if args.quick { 1 } else { args.rounds.max(1) };
    let parent = match &args.folder {
        Some(folder) => existing(folder)?,
        None => project::target()?,
    };
    let folder = tempfile::Builder::new()
        .prefix("bench-block-")
        .tempdir_in(parent)?;
    let (mib, requests) = match args.quick {
        true => QUICK,
        false => (args.size.max(8), args.requests.max(1)),
    };
    let mut bench = Bench {
        vireo: match &args.vireo {
            Some(path) => existing(path)?,
            None => release_build()?,
        },
        qemu_img: args.qemu_img.clone(),
        folder: folder.path().to_owned(),
        size: mib << 20,
        requests,
        aio: "threads",
        results: Results::new(vec![VIREO.to_owned(), QEMU.to_owned()]),
    };
    let before = load();
    bench.prepare(&rows)?;
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for row in &rows {
            let order = match round % 2 {
                0 => [VIREO, QEMU],
                _ => [QEMU, VIREO],
            };
            for program in order {
                bench.measure(row, program, round == 0)?;
            }
        }
    }
    let after = load();
    match args.output {
        Output::Text => {
            print!("{}", bench.table(&rows));
            println!(
                "medians of {rounds} rounds in turn, a disk of {mib} MiB; ratios of speed, more \
                 than 1: vireo is faster; qemu-img's requests by aio={}; the machine's load was \
                 {before} before and {after} after",
                bench.aio
            );
        }
        Output::Json => {
            let json = serde_json::json!({
                "results": bench.results.json(),
                "rounds": rounds,
                "mib": mib,
                "aio": bench.aio,
                "load": { "before": before, "after": after },
            });
            println!("{json:#}");
        }
    }
    ensure!(!bench.results.is_empty(), "nothing was measured");
    Ok(ExitCode::SUCCESS)
}

impl Bench {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The images that `rows` read, all written by qemu-img but for the source itself.
    fn prepare(&mut self, rows: &[&Row]) -> anyhow::Result<()> {
        let source = self.file("source.raw");
        content::write(&source, self.size).context("cannot make the disk")?;
        let mut inputs: Vec<&str> = rows.iter().filter_map(|row| row.job.input()).collect();
        inputs.sort_unstable();
        inputs.dedup();
        for name in inputs {
            let file = self.file(name);
            let path = file.as_os_str();
            match name {
                "source.qcow2" => {
                    self.qemu(&["convert", "-f", "raw", "-O", "qcow2"], &[&source, &file])?;
                }
                "zlib.qcow2" | "zstd.qcow2" => {
                    let kind = name.trim_end_matches(".qcow2");
                    let option = format!("compression_type={kind}");
                    let words = ["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", &option];
                    self.qemu(&words, &[&source, &file])?;
                }
                "tables.qcow2" => {
                    // As many tables as 256 GiB need at the usual size; data nobody looks at.
                    let size = format!("{}M", self.size >> 12);
                    let words = [
                        "create",
                        "-q",
                        "-f",
                        "qcow2",
                        "-o",
                        "preallocation=metadata",
                    ];
                    let command = Command::new(&self.qemu_img)
                        .args(words)
                        .arg(path)
                        .arg(size)
                        .output();
                    finish(command, "qemu-img create")?;
                }
                "full.raw" | "full.qcow2" => {
                    let kind = name.trim_start_matches("full.");
                    let size = self.size.to_string();
                    let words = ["create", "-q", "-f", kind, "-o", "preallocation=full"];
                    let command = Command::new(&self.qemu_img)
                        .args(words)
                        .arg(path)
                        .arg(size)
                        .output();
                    finish(command, "qemu-img create")?;
                }
                "huge.qcow2" => {
                    let words = ["create", "-q", "-f", "qcow2"];
                    let command = Command::new(&self.qemu_img)
                        .args(words)
                        .arg(path)
                        .arg("16T")
                        .output();
                    finish(command, "qemu-img create")?;
                }
                _ => (),
            }
        }
        let probe = Command::new(&self.qemu_img)
            .args(["bench", "-c", "1", "-f", "raw", "-i", "io_uring"])
            .arg(&source)
            .output();
        if probe.is_ok_and(|output| output.status.success()) {
            self.aio = "io_uring";
        }
        Ok(())
    }

    fn qemu(&self, words: &[&str], files: &[&Path]) -> anyhow::Result<()> {
        let output = Command::new(&self.qemu_img)
            .args(words)
            .args(files)
            .output();
        finish(output, &format!("qemu-img {}", words[0]))
    }

    /// One run of a program in a row.
    fn measure(&mut self, row: &Row, program: &str, compare: bool) -> anyhow::Result<()> {
        let Some(words) = self.command(row, program)? else {
            return Ok(());
        };
        if let Some(input) = row.job.input() {
            warm(&self.file(input)).with_context(|| format!("cannot read {input}"))?;
        }
        let image = |input| self.file(input);
        let socket = self.file("nbd");
        let server = match row.job {
            Job::Serve { input, .. } if program == VIREO => {
                Some(Server::vireo(&self.vireo, &image(input), &socket)?)
            }
            Job::Serve { input, .. } => Some(Server::qemu(&image(input), &socket)?),
            _ => None,
        };
        let used = self
            .time(&words)
            .with_context(|| format!("{}: {program}", row.name))?;
        drop(server);
        let mut values = BTreeMap::from([
            ("processor [s]".to_owned(), used.processor),
            ("peak [MiB]".to_owned(), used.peak_mib),
        ]);
        match row.job {
            Job::Requests { .. } | Job::Serve { .. } => {
                let seconds = seconds_said(&used.said)
                    .with_context(|| format!("{program} does not tell its time: {}", used.said))?;
                let rate = self.requests as f64 / seconds;
                values.insert("requests [1/s]".to_owned(), rate);
            }
            Job::Convert { .. } | Job::Check { .. } | Job::Open => {
                values.insert("time [s]".to_owned(), used.seconds);
            }
        }
        if let Job::Convert { input, .. } = row.job {
            let output = self.file("output");
            values.insert("size [MiB]".to_owned(), stored_mib(&output)?);
            if compare {
                let (input, output) = (self.file(input), output.clone());
                self.qemu(&["compare", "-q"], &[&input, &output])
                    .with_context(|| format!("{}: {program} made another disk", row.name))?;
            }
            remove(&output)?;
        }
        if let Job::Requests { output: true, .. } = row.job {
            remove(&self.file("output"))?;
        }
        self.results.add(Record {
            case: row.name.to_owned(),
            vmm: program.to_owned(),
            values,
        });
        Ok(())
    }

    /// What `program` is told in a row; `None`: it has no such thing. Makes what it writes to.
    fn command(&self, row: &Row, program: &str) -> anyhow::Result<Option<Vec<OsString>>> {
        let mut words: Vec<OsString> = match program {
            VIREO if !matches!(row.job, Job::Serve { .. }) => {
                vec![self.vireo.clone().into(), "image".into()]
            }
            _ => vec![self.qemu_img.clone().into()],
        };
        let mut say = |text: &[&str]| words.extend(text.iter().map(OsString::from));
        match row.job {
            Job::Convert {
                input,
                from,
                to,
                compress,
            } => {
                say(&["convert", "-f", from, "-O", to]);
                let option = format!("compression_type={}", compress.unwrap_or("zlib"));
                if compress.is_some() {
                    say(&["-c", "-o", &option]);
                }
                remove(&self.file("output"))?;
                words.extend([self.file(input).into(), self.file("output").into()]);
            }
            Job::Check { input } => {
                say(&["check", "-f", "qcow2"]);
                words.push(self.file(input).into());
            }
            Job::Open => {
                // Opened in full, and one request.
                say(&["bench", "-f", "qcow2", "-c", "1", "-d", "1"]);
                words.push(self.file("huge.qcow2").into());
            }
            Job::Requests {
                input,
                output,
                format,
                write,
                queues,
                cache,
            } => {
                if program == QEMU && queues > 1 {
                    return Ok(None);
                }
                let (count, depth, step) = (
                    self.requests.to_string(),
                    DEPTH.to_string(),
                    STEP.to_string(),
                );
                say(&[
                    "bench", "-f", format, "-c", &count, "-d", &depth, "-s", "4096",
                ]);
                say(&["-S", &step, "-t", cache]);
                if write {
                    say(&["-w"]);
                }
                let queues = queues.to_string();
                match program {
                    VIREO => say(&["--queues", &queues, "--output", "json"]),
                    _ => say(&["-i", self.aio]),
                }
                let file = self.file(if output { "output" } else { input });
                if output {
                    remove(&file)?;
                    let size = self.size.to_string();
                    let made = Command::new(&self.qemu_img)
                        .args(["create", "-q", "-f", format])
                        .arg(&file)
                        .arg(size)
                        .output();
                    finish(made, "qemu-img create")?;
                }
                words.push(file.into());
            }
            Job::Serve { write, .. } => {
                let [count, depth, step] = [self.requests, DEPTH, STEP].map(|n| n.to_string());
                say(&["bench", "-f", "raw", "-c", &count, "-d", &depth]);
                say(&["-s", "4096", "-S", &step]);
                if write {
                    say(&["-w"]);
                }
                words.push(serving::uri(&self.file("nbd")).into());
            }
        }
        Ok(Some(words))
    }

    /// Runs a program under time(1).
    fn time(&self, words: &[OsString]) -> anyhow::Result<Used> {
        let report = self.file("time");
        let begin = Instant::now();
        let output = Command::new("time")
            .args(["-q", "-f", "%U %S %M", "-o"])
            .arg(&report)
            .args(words)
            .stdin(Stdio::null())
            .output()
            .context("cannot run time(1): cargo xtask setup")?;
        let seconds = begin.elapsed().as_secs_f64();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "it ended with {}: {said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let report = fs::read_to_string(&report).context("cannot read what time(1) says")?;
        let numbers: Vec<f64> = report.split_whitespace().flat_map(str::parse).collect();
        let [user, system, peak_kib] = numbers[..] else {
            bail!("time(1) says {report:?}");
        };
        Ok(Used {
            seconds,
            processor: user + system,
            peak_mib: peak_kib / 1024.0,
            said,
        })
    }

    fn table(&self, rows: &[&Row]) -> String {
        let mut lines = vec![
            ["", "vireo", QEMU, "ratio", "range", "processor", "peak MiB"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for row in rows {
            let (metric, unit) = match row.job {
                Job::Requests { .. } | Job::Serve { .. } => ("requests [1/s]", "/s"),
                _ => ("time [s]", " s"),
            };
            let of = |metric: &str| {
                [VIREO, QEMU].map(|program| self.results.summary(row.name, program, metric))
            };
            let [ours, theirs] = of(metric);
            let show = |value: Option<f64>, unit| {
                value.map_or("-".to_owned(), |v| format!("{}{unit}", number_text(v)))
            };
            // Each round has its own ratio: what else the machine did then, it did to both.
            let mut ratios: Vec<f64> = match (&ours, &theirs) {
                (Some(ours), Some(theirs)) => ours
                    .values
                    .iter()
                    .zip(&theirs.values)
                    .map(|(ours, theirs)| match row.job {
                        Job::Requests { .. } | Job::Serve { .. } => ours / theirs,
                        _ => theirs / ours,
                    })
                    .collect(),
                _ => Vec::new(),
            };
            ratios.sort_by(f64::total_cmp);
            let range = match (ratios.first(), ratios.last()) {
                (Some(low), Some(high)) => format!("{low:.2} - {high:.2}"),
                _ => String::new(),
            };
            let pair = |metric: &str| {
                of(metric)
                    .map(|summary| show(summary.map(|s| s.median), ""))
                    .join(" / ")
            };
            let ratio = ratios.get(ratios.len() / 2);
            lines.push(vec![
                row.title.to_owned(),
                show(ours.map(|s| s.median), unit),
                show(theirs.map(|s| s.median), unit),
                ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
                range,
                pair("processor [s]"),
                pair("peak [MiB]"),
            ]);
        }
        aligned(&lines)
    }
}

fn finish(output: io::Result<std::process::Output>, what: &str) -> anyhow::Result<()> {
    let output = output.with_context(|| format!("cannot run {what}"))?;
    ensure!(
        output.status.success(),
        "{what} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn remove(file: &Path) -> anyhow::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// Reads a file into the page cache.
fn warm(file: &Path) -> io::Result<()> {
    io::copy(&mut File::open(file)?, &mut io::sink()).map(drop)
}

/// MiB that a file takes on its disk.
fn stored_mib(file: &Path) -> anyhow::Result<f64> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(file).with_context(|| format!("no {}", file.display()))?;
    Ok(metadata.blocks() as f64 / 2048.0)
}

/// The seconds that a program says its requests took: as JSON, or as qemu-img says it.
fn seconds_said(text: &str) -> Option<f64> {
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(text) {
        return json["seconds"].as_f64();
    }
    let (_, rest) = text.split_once("Run completed in ")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_programs_tell_their_time() {
        let qemu = "Sending 10 read requests, 4096 bytes each, 32 in parallel (starting at \
                    offset 0, step size 4096)\nRun completed in 0.250 seconds.\n";
        assert_eq!(seconds_said(qemu), Some(0.25));
        assert_eq!(seconds_said("{\"seconds\": 1.5, \"depth\": 32}"), Some(1.5));
        assert_eq!(seconds_said("nothing"), None);
    }
}
