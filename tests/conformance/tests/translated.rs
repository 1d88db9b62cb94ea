//! The whole software processor in a machine: events, run loop, and translated code.

use conformance::Backend;
use conformance::compare::search;
use conformance::interpreter::Interpreter;
use conformance::snippet;
use conformance::system::Soft;
use translator::Options;

/// Random instructions for the translator.
const INSTRUCTIONS: u64 = 300_000;

fn exact() -> Options {
    Options {
        cache_size: 4 << 20,
        exact_flags: true,
        ..Options::default()
    }
}

fn snippets(backend: &mut dyn Backend) {
    let failures = snippet::failures(backend, 2);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn random(other: &mut dyn Backend, first: u64, instructions: u64) {
    let mut executed = 0;
    let failures = search(
        &mut Interpreter::new(),
        other,
        std::env::var("SEED").map_or(first, |s| s.parse().expect("SEED is a number")),
        8,
        64,
        &mut |count| {
            executed = count;
            count >= instructions
        },
    );
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert!(executed >= instructions, "only {executed} were executed");
}

#[test]
fn snippets_in_the_run_loop() {
    snippets(&mut Soft::interpreted());
}

#[test]
fn snippets_translated() {
    snippets(&mut Soft::translated(exact()));
}

#[test]
fn random_instructions_in_the_run_loop() {
    random(&mut Soft::interpreted(), 10_000_000, 20_000);
}

#[test]
fn random_instructions_translated() {
    let mut translated = Soft::translated(exact());
    random(&mut translated, 20_000_000, INSTRUCTIONS);
    let statistics = translated.statistics().expect("a translator");
    // It was not all the interpreter's work.
    assert!(statistics.translated > 1000, "{statistics:?}");
}

#[test]
fn random_instructions_translated_with_live_flags_only() {
    let options = Options {
        exact_flags: false,
        ..exact()
    };
    random(&mut Soft::translated(options), 30_000_000, INSTRUCTIONS / 3);
}
