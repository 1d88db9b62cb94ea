//! Random instructions on the interpreter and on the host.

use std::time::Instant;

use conformance::compare::search;
use conformance::host::Host;
use conformance::interpreter::Interpreter;

fn agree(bits: u32, instructions: u64) {
    let mut host = Host::new();
    let start = Instant::now();
    let first = std::env::var("SEED").map_or(1, |s| s.parse().expect("SEED is a number"));
    let mut executed = 0;
    let failures = search(
        &mut host,
        &mut Interpreter::new(),
        first,
        8,
        bits,
        &mut |count| {
            executed = count;
            count >= instructions
        },
    );
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    println!("{executed} instructions in {:?}", start.elapsed());
    assert!(executed >= instructions, "only {executed} instructions");
}

#[test]
fn the_interpreter_does_what_the_host_does() {
    agree(64, 1_000_000);
}

#[test]
fn in_32_bit_code_too() {
    agree(32, 200_000);
}
