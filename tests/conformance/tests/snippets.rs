//! The snippets on every backend, each of which must give what they say.

use std::path::Path;

use conformance::Backend;
use conformance::host::Host;
use conformance::interpreter::Interpreter;
use conformance::snippet::{self, Snippet};

/// All snippets with the files that they are from.
fn all() -> Vec<(String, Snippet)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("snippets");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the snippets are there")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    let mut out = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a text");
        let name = file
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let snippets = snippet::parse(&text).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        out.extend(snippets.into_iter().map(|s| (name.clone(), s)));
    }
    out
}

fn run_all(backend: &mut dyn Backend) {
    let mut failures = Vec::new();
    let mut count = 0;
    for (file, snippet) in all() {
        count += 1;
        let got = backend.run(&snippet.case);
        let differences = snippet.expected.differences(&got, snippet.undefined);
        if !differences.is_empty() {
            failures.push(format!(
                "{file}: {}\n  expected / {}:\n  {}",
                snippet.name,
                backend.name(),
                differences.join("\n  ")
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert!(count > 20, "only {count} snippets");
}

#[test]
fn on_the_interpreter() {
    run_all(&mut Interpreter::new());
}

#[test]
fn on_the_host() {
    run_all(&mut Host::new());
}
