//! `cargo xtask fuzz-cpu`: random instructions for as long as one likes.
//!
//! Arguments: `host` (the interpreter against the host) or `translator` (translated code against
//! the interpreter), minutes, first seed.

use std::env;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use conformance::Backend;
use conformance::compare::search;
use conformance::host::Host;
use conformance::interpreter::Interpreter;
use conformance::system::Soft;
use translator::Options;

/// Failures after which there is enough to do.
const ENOUGH: usize = 10;

fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = env::args().skip(1);
    let what = arguments.next().context("host or translator?")?;
    let minutes: f64 = arguments.next().context("how many minutes?")?.parse()?;
    let seed: u64 = arguments.next().context("which seed?")?.parse()?;
    let (mut oracle, mut other): (Box<dyn Backend>, Box<dyn Backend>) = match what.as_str() {
        "host" => (Box::new(Host::new()), Box::new(Interpreter::new())),
        "translator" => {
            let options = Options {
                exact_flags: true,
                ..Options::default()
            };
            (
                Box::new(Interpreter::new()),
                Box::new(Soft::translated(options)),
            )
        }
        _ => bail!("\"{what}\" is neither host nor translator"),
    };
    let start = Instant::now();
    let mut executed = 0;
    // Translated code is 64-bit code; for the interpreter there are both kinds.
    let kinds: &[u32] = if what == "host" { &[64, 32] } else { &[64] };
    let mut failures = Vec::new();
    for (n, &bits) in kinds.iter().enumerate() {
        let share = (n + 1) as f64 / kinds.len() as f64;
        let end = start + Duration::from_secs_f64(minutes * 60.0 * share);
        let so_far = executed;
        let stop = &mut |count| {
            executed = so_far + count;
            Instant::now() >= end
        };
        failures.append(&mut search(
            &mut *oracle,
            &mut *other,
            seed,
            ENOUGH,
            bits,
            stop,
        ));
    }
    for failure in &failures {
        println!("{failure}\n");
    }
    eprintln!(
        "{what}: {executed} instructions from seed {seed}, {} failures",
        failures.len()
    );
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
