//! The whole software processor in a machine: events, run loop, and translated code.

use std::path::Path;
use std::time::{Duration, Instant};

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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("snippets");
    let mut failures = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the snippets are there") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a text");
        for snippet in snippet::parse(&text).expect("snippets") {
            // Twice: the second time finds the code and the memory as the first has left them.
            for _ in 0..2 {
                let got = backend.run(&snippet.case);
                let differences = snippet.expected.differences(&got, snippet.undefined);
                if !differences.is_empty() {
                    failures.push(format!("{}\n  {}", snippet.name, differences.join("\n  ")));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn random(other: &mut dyn Backend, first: u64, instructions: u64) {
    let start = Instant::now();
    let failures = search(
        &mut Interpreter::new(),
        other,
        std::env::var("SEED").map_or(first, |s| s.parse().expect("SEED is a number")),
        8,
        &mut |count| count >= instructions || start.elapsed() > Duration::from_secs(20),
    );
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
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
    println!("{statistics:?}");
    // Most instructions were not the interpreter's after all.
    assert!(statistics.translated > 1000);
    assert!(statistics.interpreted < INSTRUCTIONS / 2, "{statistics:?}");
}
