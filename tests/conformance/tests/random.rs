//! Random instructions on the interpreter and on the host.

use std::time::{Duration, Instant};

use conformance::compare::search;
use conformance::host::Host;
use conformance::interpreter::Interpreter;

/// Instructions of one run.
const INSTRUCTIONS: u64 = 1_000_000;
/// A slow machine runs fewer.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn the_interpreter_does_what_the_host_does() {
    let start = Instant::now();
    let first = std::env::var("SEED").map_or(1, |s| s.parse().expect("SEED is a number"));
    let mut executed = 0;
    let failures = search(
        &mut Host::new(),
        &mut Interpreter::new(),
        first,
        8,
        &mut |count| {
            executed = count;
            count >= INSTRUCTIONS || start.elapsed() > LIMIT
        },
    );
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    println!("{executed} instructions in {:?}", start.elapsed());
    assert!(executed > 10_000, "only {executed} instructions");
}
