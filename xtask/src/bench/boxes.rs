//! What comes out of a benchmark, over all boxes that it takes.
//!
//! QEMU's emulation may kill a box in the middle (docs/design/box.md). What the turns before
//! measured is kept; a fresh box goes on with the turns that are missing, after a warm-up of its
//! own. Measured ratios stay those of monitors in turn; only the pause between two turns is longer.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use super::results::Results;
use super::{Message, Plan, Turn};
use crate::kvm_host::{End, HostBox, Outcome};

/// Boxes for one benchmark.
const BOXES: u32 = 8;

/// Boxes in a row that died before any turn was complete, until another is no use.
const FRUITLESS: u32 = 2;

/// A box starts, and something is measured in it.
const LEAST_TIME: Duration = Duration::from_secs(20);

/// What came out so far.
pub struct Gathered {
    pub results: Results,
    pub texts: Vec<String>,
    /// Boxes that were started.
    pub boxes: u32,
    vmms: Vec<String>,
    done: BTreeSet<Turn>,
    /// Monitors that are left out.
    failed: BTreeSet<String>,
    /// Of a turn that is not complete.
    pending: Vec<Message>,
}

impl Turn {
    /// Whether nothing is left of this turn after those of `done`. A warm-up is needed as long as
    /// another round of the monitor is to come.
    pub fn is_done(&self, done: &BTreeSet<Turn>, rounds: u32) -> bool {
        let of = |round| Turn {
            round,
            vmm: self.vmm.clone(),
        };
        done.contains(self)
            && (self.round != 0 || (1..=rounds).all(|round| done.contains(&of(round))))
    }
}

impl Gathered {
    /// Nothing of `vmms` yet.
    pub fn new(vmms: Vec<String>) -> Self {
        Self {
            results: Results::new(vmms.clone()),
            texts: Vec::new(),
            boxes: 0,
            vmms,
            done: BTreeSet::new(),
            failed: BTreeSet::new(),
            pending: Vec::new(),
        }
    }

    /// The rounds, of `rounds`, that every monitor has done but those that are left out.
    pub fn complete_rounds(&self, rounds: u32) -> usize {
        let vmms = self.vmms.iter().filter(|vmm| !self.failed.contains(*vmm));
        let vmms: Vec<&String> = vmms.collect();
        if vmms.is_empty() {
            return 0;
        }
        let complete = |round: &u32| {
            vmms.iter().all(|&vmm| {
                self.done.contains(&Turn {
                    round: *round,
                    vmm: vmm.clone(),
                })
            })
        };
        (1..=rounds).filter(complete).count()
    }

    /// Takes what a box said, line by line. What an earlier box has left of a turn is forgotten.
    fn take(&mut self, said: &[u8]) {
        self.pending.clear();
        for line in String::from_utf8_lossy(said).split_inclusive('\n') {
            match serde_json::from_str(line) {
                Ok(message) => self.message(message),
                // The last words of one that died.
                Err(_) if !line.ends_with('\n') => {}
                Err(_) => eprint!("{line}"),
            }
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Record(_) | Message::Text(_) => self.pending.push(message),
            Message::Again(_) => self.pending.clear(),
            Message::Done(turn) => {
                // A second warm-up has nothing new to say.
                if self.done.insert(turn) {
                    self.keep();
                }
                self.pending.clear();
            }
            Message::Failed(turn) => {
                self.failed.insert(turn.vmm);
                self.keep();
            }
        }
    }

    /// Counts what is pending as measured.
    fn keep(&mut self) {
        for message in self.pending.drain(..) {
            match message {
                Message::Record(record) => self.results.add(record),
                Message::Text(text) => self.texts.push(text),
                _ => {}
            }
        }
    }

    /// Leaves out of `plan` what needs not be done any more; whether anything is left.
    fn shorten(&self, plan: &mut Plan) -> bool {
        plan.done.clone_from(&self.done);
        plan.vmms.retain(|vmm| !self.failed.contains(&vmm.name));
        plan.vmms.iter().any(|vmm| {
            (0..=plan.rounds).any(|round| {
                let turn = Turn {
                    round,
                    vmm: vmm.name.clone(),
                };
                !turn.is_done(&self.done, plan.rounds)
            })
        })
    }
}

/// Carries `plan` out by `program` in one box after the other, and says how the last ended. The
/// time limit of `host` is for all together.
///
/// # Errors
/// The plan cannot be written. That boxes died is told by the second value.
pub fn run(
    mut host: HostBox,
    plan: Plan,
    program: &Path,
    plan_file: &Path,
    gathered: Gathered,
) -> anyhow::Result<(Gathered, anyhow::Result<Outcome>)> {
    let command: Vec<OsString> = vec![
        program.into(),
        "bench".into(),
        "inside".into(),
        plan_file.into(),
    ];
    let boxes = if host.direct { 1 } else { BOXES };
    carry_out(plan, gathered, host.timeout, boxes, |plan, time, said| {
        fs::write(plan_file, serde_json::to_vec(plan)?).context("cannot write the plan")?;
        host.timeout = time;
        Ok(host.run(&command, said, &mut io::stderr()))
    })
}

/// The same with at most `most` boxes, each of which is run by `one` with the time that is left.
fn carry_out(
    mut plan: Plan,
    mut gathered: Gathered,
    limit: Duration,
    most: u32,
    mut one: impl FnMut(&Plan, Duration, &mut Vec<u8>) -> anyhow::Result<anyhow::Result<Outcome>>,
) -> anyhow::Result<(Gathered, anyhow::Result<Outcome>)> {
    let begin = Instant::now();
    let mut fruitless = 0;
    let ending = loop {
        let turns = gathered.done.len();
        let mut said = Vec::new();
        gathered.boxes += 1;
        let outcome = one(&plan, limit.saturating_sub(begin.elapsed()), &mut said)?;
        gathered.take(&said);
        let complete = !gathered.shorten(&mut plan);
        if !died(&outcome, complete) {
            break outcome;
        }
        fruitless = match gathered.done.len() == turns {
            true => fruitless + 1,
            false => 0,
        };
        let error = match outcome {
            Err(error) => error,
            Ok(outcome) => anyhow!("the benchmark in it ended with {:?}", outcome.end),
        };
        let number = gathered.boxes;
        let late = limit.saturating_sub(begin.elapsed()) < LEAST_TIME;
        if complete || late || number >= most || fruitless == FRUITLESS {
            break Err(error.context(format!("box {number} died")));
        }
        eprintln!(
            "bench: box {number} died ({error:#}); another, of {most} at most, goes on after {} turns",
            gathered.done.len()
        );
    };
    // What the last box left of a turn will not come again.
    gathered.keep();
    Ok((gathered, ending))
}

/// Whether another box can do better: this one, or the program in it, did not come to an end of its
/// own. 1 is the program's own failure.
fn died(outcome: &anyhow::Result<Outcome>, complete: bool) -> bool {
    match outcome {
        Err(_) => true,
        Ok(outcome) => match outcome.end {
            End::Exited(1) | End::TimedOut | End::Interrupted => false,
            End::Exited(_) => !complete,
        },
    }
}

#[cfg(test)]
mod tests;
