//! A process that is killed, with kill -9, at any moment of any job.
//!
//! ```text
//!   test ── starts ──▶ the same program as a child: a disk, a writer, a job
//!     ▲                      │ tells: "F n" writes before n are flushed, and how far the job is
//!     └──────── kill -9 ◀────┘
//!   then: the images check clean, the chain opens by its headers, what was flushed is there; a
//!   child does the job again, to its end, and the disk holds the same.
//! ```
//!
//! VIREO_KILL_SECONDS: seconds for each kind of job, 3 when not given. VIREO_KILL_SEED: the first
//! seed, for the round that failed.

mod child;
mod kinds;
mod model;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::{Arguments, Trial};

use kinds::Kind;

/// Bytes that are written.
const SIZE: usize = 8 << 20;
/// Bytes of a write.
const BLOCK: usize = 4096;

fn main() -> ExitCode {
    if let Some(order) = std::env::var_os("VIREO_KILL_CHILD") {
        let order = order.to_string_lossy().into_owned();
        child::run(&serde_json::from_str(&order).unwrap());
        return ExitCode::SUCCESS;
    }
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seconds = number("VIREO_KILL_SECONDS").unwrap_or(3);
    let trials = kinds::ALL.into_iter().map(|kind| {
        Trial::test(format!("killed_during_{}", kind.name()), move || {
            rounds(
                kind,
                Duration::from_secs(seconds),
                number("VIREO_KILL_SEED"),
            )
            .map_err(libtest_mimic::Failed::from)
        })
    });
    let arguments = Arguments::from_args();
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Rounds of one kind until the time is over, two at least.
fn rounds(kind: Kind, time: Duration, seed: Option<u64>) -> Result<(), String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut seed = seed.unwrap_or_else(|| now.unwrap_or_default().as_nanos() as u64 >> 10);
    let begun = Instant::now();
    let mut done = 0;
    while done < 2 || begun.elapsed() < time {
        kinds::round(kind, seed)
            .map_err(|why| format!("{}: VIREO_KILL_SEED={seed}: {why}", kind.name()))?;
        seed = seed.wrapping_add(1);
        done += 1;
    }
    eprintln!(
        "{}: {done} rounds, the last seed was {}",
        kind.name(),
        seed - 1
    );
    Ok(())
}
