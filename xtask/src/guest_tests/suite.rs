//! Units, the queue of them, and the boxes that take them from it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::counter::{Counter, MARK, Verdict};
use super::{Accel, PROGRAMS_IN_GUEST, kvm_works, python_qmp};
use crate::guest_image;
use crate::kvm_host::{Drive, HostBox};

/// Memory of a box: a guest or two with a few hundred MiB each, one with 5 GiB of which it touches
/// little, and the page cache.
const MEMORY_MIB: u32 = 4096;

/// Most short units in one box: its start costs as much as one of them.
const BATCH: usize = 8;

/// Time for the start of a box, and for ending a unit that has had its time.
const START: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(15);

/// Boxes that ended before they ran anything, until it is the box that is at fault.
const DEAD_BOXES: u32 = 3;

/// Something that runs, and runs again, as a whole.
#[derive(Clone, Debug)]
pub struct Unit {
    title: String,
    command: String,
    accel: Accel,
    /// Short ones share a box.
    long: bool,
    /// How often it has failed.
    failures: u32,
}

impl Unit {
    /// A test program of a crate.
    pub fn program(package: &str, command: String) -> Self {
        Self {
            title: package.to_owned(),
            command,
            accel: Accel::Kvm,
            long: true,
            failures: 0,
        }
    }

    /// A boot with its checks, if its name ends in "::", or a single test.
    pub fn scenario(title: String, command: String, accel: Accel) -> Self {
        Self {
            long: title.ends_with("::"),
            title: format!("{title} on {}", accel.name()),
            command,
            accel,
            failures: 0,
        }
    }
}

/// How units are run.
pub struct Suite {
    /// The program under test.
    pub vireo: PathBuf,
    /// Boxes at once.
    pub boxes: u32,
    /// Processors of a box.
    pub smp: u32,
    /// Time for one long unit.
    pub limit: Duration,
    /// How often a unit that failed is tried again.
    pub retries: u32,
}

/// Tests that came to a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    /// A unit that ended without naming the test that failed counts as one.
    pub failed: u64,
}

impl Counts {
    /// What a shell is told.
    pub fn status(self) -> ExitCode {
        ExitCode::from(u8::from(self.failed != 0))
    }
}

/// What the boxes share.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Unit>,
    running: usize,
    /// Tests.
    passed: u64,
    failed_tests: u64,
    /// Units.
    failed: Vec<String>,
    again: Vec<String>,
    dead_boxes: u32,
    error: Option<anyhow::Error>,
}

impl Suite {
    /// One box at a time, with two processors.
    pub fn new(vireo: PathBuf) -> Self {
        Self {
            vireo,
            boxes: 1,
            smp: 2,
            limit: Duration::from_secs(300),
            retries: 7,
        }
    }

    /// Runs all units to a verdict and prints the count.
    pub fn run(&self, units: Vec<Unit>) -> anyhow::Result<Counts> {
        let direct = kvm_works(&self.vireo)?;
        let queue = Mutex::new(Queue {
            waiting: units.into(),
            ..Queue::default()
        });
        let idle = Condvar::new();
        thread::scope(|scope| {
            for _ in 0..self.boxes {
                scope.spawn(|| {
                    while let Some(batch) = take(&queue, &idle) {
                        let outcome = self.run_batch(direct, &batch);
                        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                        match outcome {
                            Ok(verdicts) => queue.settle(batch, &verdicts, self.retries),
                            Err(e) => queue.error = Some(e),
                        }
                        idle.notify_all();
                    }
                });
            }
        });
        let queue = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = queue.error {
            return Err(error);
        }
        if !queue.again.is_empty() {
            println!("\npassed when run again: {}", queue.again.join(", "));
        }
        if !queue.failed.is_empty() {
            println!("\nfailed: {}", queue.failed.join(", "));
        }
        println!(
            "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
            if queue.failed.is_empty() {
                "ok"
            } else {
                "FAILED"
            },
            queue.passed,
            queue.failed_tests
        );
        ensure!(queue.passed != 0 || !queue.failed.is_empty(), "no test ran");
        Ok(Counts {
            passed: queue.passed,
            failed: queue.failed_tests,
        })
    }

    /// Short units have half the time.
    fn limit_of(&self, unit: &Unit) -> Duration {
        match unit.long {
            true => self.limit,
            false => self.limit / 2,
        }
    }

    /// Runs `batch` in a box of its own. A box that dies leaves verdicts without a status.
    fn run_batch(&self, direct: bool, batch: &[Unit]) -> anyhow::Result<Vec<Verdict>> {
        let limits: Vec<Duration> = batch.iter().map(|unit| self.limit_of(unit)).collect();
        let mut host = HostBox {
            smp: self.smp,
            memory_mib: MEMORY_MIB,
            timeout: limits.iter().map(|limit| *limit + GRACE).sum::<Duration>() + START,
            ..HostBox::default()
        };
        let accel = batch.first().map_or(Accel::Kvm, |unit| unit.accel);
        host.direct |= direct || accel == Accel::Soft;
        host.environment
            .push(("VIREO_ACCEL".to_owned(), accel.name().to_owned()));
        host.add_guest()?;
        let image = host.drives[0].file.clone();
        // Those who write get a snapshot of their own.
        for name in ["guest-1", "guest-4"] {
            host.drives.push(Drive {
                file: image.clone(),
                name: name.to_owned(),
            });
        }
        for (name, path) in [
            ("VIREO_BIN", &self.vireo),
            ("VIREO_PYTHON_QMP", &python_qmp()?),
        ] {
            host.environment
                .push((name.to_owned(), path.to_string_lossy().into_owned()));
        }
        if batch
            .iter()
            .any(|unit| unit.title.starts_with(PROGRAMS_IN_GUEST))
        {
            let guest = guest_image::ensure_with_compiler(false)?;
            for (name, path) in [
                ("DISK", &guest.image),
                ("VMLINUX", &guest.vmlinux),
                ("INITRD", &guest.initrd),
            ] {
                let path = path.to_string_lossy().into_owned();
                host.environment
                    .push((format!("VIREO_PROGRAMS_{name}"), path));
            }
        }
        let mut script = String::new();
        for (number, unit) in batch.iter().enumerate() {
            let (title, command) = (&unit.title, &unit.command);
            let limit = limits[number].as_secs();
            writeln!(
                script,
                "echo '{MARK} {number}'; echo; echo '== {title}'; timeout -k 10 {limit} {command} 2>&1; echo '{MARK} {number} '$?"
            )
            .context("cannot write a script")?;
        }
        let command = ["sh", "-c", &script].map(OsString::from);
        let mut counter = Counter::new(io::stdout());
        let outcome = host.run(&command, &mut counter, &mut io::stderr());
        counter.finish()?;
        match outcome {
            Ok(outcome) if outcome.interrupted() => anyhow::bail!("interrupted"),
            Ok(_) => {}
            // A box that died is a verdict on what ran in it, not the end of everything.
            Err(e) => eprintln!("guest-tests: {e:#}"),
        }
        Ok(counter.verdicts)
    }
}

/// The next units for a box: those that failed before and long ones alone. Waits while others may
/// still give some back.
fn take(queue: &Mutex<Queue>, idle: &Condvar) -> Option<Vec<Unit>> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if queue.error.is_some() || (queue.waiting.is_empty() && queue.running == 0) {
            return None;
        }
        let mut batch: Vec<Unit> = queue.waiting.pop_front().into_iter().collect();
        let alone = |unit: &Unit| unit.long || unit.failures != 0;
        while batch.len() < BATCH
            && !batch.iter().any(alone)
            && queue
                .waiting
                .front()
                .is_some_and(|unit| !alone(unit) && unit.accel == batch[0].accel)
        {
            batch.extend(queue.waiting.pop_front());
        }
        if !batch.is_empty() {
            queue.running += 1;
            return Some(batch);
        }
        queue = idle.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

impl Queue {
    /// Notes a batch's verdicts; what failed goes back to the queue until it has had its tries,
    /// what was not reached goes back as it is.
    fn settle(&mut self, batch: Vec<Unit>, verdicts: &[Verdict], retries: u32) {
        self.running -= 1;
        if verdicts.is_empty() {
            self.dead_boxes += 1;
            if self.dead_boxes >= DEAD_BOXES {
                self.error = Some(anyhow::anyhow!(
                    "{DEAD_BOXES} boxes ended before they ran a test"
                ));
            }
        }
        for (number, mut unit) in batch.into_iter().enumerate() {
            let Some(verdict) = verdicts.iter().find(|v| v.unit == number) else {
                self.waiting.push_back(unit);
                continue;
            };
            if verdict.status == Some(0) && verdict.passed != 0 {
                self.passed += verdict.passed;
                if unit.failures != 0 {
                    self.again.push(unit.title);
                }
                continue;
            }
            unit.failures += 1;
            let why = match verdict.status {
                None => "the box died".to_owned(),
                Some(124) => "time limit".to_owned(),
                Some(0) => "no test ran".to_owned(),
                Some(status) => format!("status {status}"),
            };
            println!("\nguest-tests: {} ended badly ({why})", unit.title);
            if unit.failures > retries {
                self.passed += verdict.passed;
                self.failed_tests += verdict.failed.max(1);
                self.failed.push(unit.title);
            } else {
                self.waiting.push_back(unit);
            }
        }
        let _ = io::stdout().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(unit: usize, status: Option<u8>, passed: u64) -> Verdict {
        Verdict {
            unit,
            status,
            passed,
            ..Verdict::default()
        }
    }

    #[test]
    fn what_failed_is_tried_again_alone_and_what_was_not_reached_as_before() {
        let unit = |name: &str| Unit::scenario(name.to_owned(), name.to_owned(), Accel::Kvm);
        let queue = Mutex::new(Queue {
            waiting: ["exits::a", "exits::b", "exits::c", "debian::"]
                .map(unit)
                .into(),
            ..Queue::default()
        });
        let idle = Condvar::new();
        let titles = |batch: &[Unit]| {
            batch
                .iter()
                .map(|unit| unit.title.trim_end_matches(" on kvm").to_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let batch = take(&queue, &idle).unwrap();
        assert_eq!(titles(&batch), "exits::a exits::b exits::c");
        // The box died in b.
        let verdicts = [verdict(0, Some(0), 1), verdict(1, None, 0)];
        queue.lock().unwrap().settle(batch, &verdicts, 1);
        let batch = take(&queue, &idle).unwrap();
        assert_eq!(titles(&batch), "debian::");
        queue
            .lock()
            .unwrap()
            .settle(batch, &[verdict(0, Some(0), 5)], 1);
        let batch = take(&queue, &idle).unwrap();
        assert_eq!(titles(&batch), "exits::b");
        queue
            .lock()
            .unwrap()
            .settle(batch, &[verdict(0, Some(101), 3)], 1);
        let batch = take(&queue, &idle).unwrap();
        assert_eq!(titles(&batch), "exits::c");
        queue
            .lock()
            .unwrap()
            .settle(batch, &[verdict(0, Some(0), 1)], 1);
        assert!(take(&queue, &idle).is_none());
        let queue = queue.into_inner().unwrap();
        assert_eq!(
            (queue.passed, queue.failed_tests, queue.failed.join(" ")),
            (10, 1, "exits::b on kvm".to_owned())
        );
    }
}
