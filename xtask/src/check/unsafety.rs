//! Where unsafe code is allowed: ARCHITECTURE.md lists exactly these modules, with a reason.

use std::collections::BTreeMap;

use super::Finding;
use super::tree::Tree;

const DOCUMENT: &str = "ARCHITECTURE.md";
const HEADING: &str = "## Unsafe modules";

/// Compares the list with the sources.
pub(super) fn check(tree: &Tree) -> anyhow::Result<Vec<Finding>> {
    let document = tree.text(DOCUMENT)?;
    let listed = listed(&document);
    let mut findings = Vec::new();
    for (path, text) in tree.sources() {
        if allows_unsafe(text) && !listed.contains_key(path) {
            let what = format!("allows unsafe code, and {DOCUMENT} does not list it");
            findings.push(Finding::new(path, what));
        }
    }
    for (path, (line, reason)) in &listed {
        let place = format!("{DOCUMENT}:{line}");
        if !tree.text(path).is_ok_and(|text| allows_unsafe(&text)) {
            findings.push(Finding::new(
                &*place,
                format!("{path} allows no unsafe code"),
            ));
        }
        if reason.is_empty() {
            findings.push(Finding::new(place, format!("{path} has no reason")));
        }
    }
    Ok(findings)
}

/// Whether a source has an `allow` or `expect` of the lint.
fn allows_unsafe(source: &str) -> bool {
    let lint = "unsafe_code";
    ["allow(", "expect("].iter().any(|level| {
        source.match_indices(level).any(|(start, _)| {
            let inside = &source[start + level.len()..];
            let end = inside.find(')').unwrap_or(inside.len());
            // The list of lints ends where the reason begins.
            let lints = inside[..end].split("reason").next().unwrap_or_default();
            lints.split(',').any(|word| word.trim() == lint)
        })
    })
}

/// Path to line number and reason, out of the table under the heading.
fn listed(document: &str) -> BTreeMap<&str, (usize, &str)> {
    document
        .lines()
        .zip(1..)
        .skip_while(|(line, _)| *line != HEADING)
        .skip(1)
        .take_while(|(line, _)| !line.starts_with("## "))
        .filter_map(|(line, number)| {
            let mut cells = line.strip_prefix("| `")?.split('|');
            let path = cells.next()?.trim().trim_end_matches('`');
            Some((path, (number, cells.next()?.trim())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // In pieces, so that this file does not look like one of them.
    const ONE_LINE: &str = concat!(
        "//! A door.\n#![al",
        "low(unsafe_code, reason = \"maps memory\")]\n"
    );
    const LINES: &str = concat!(
        "#![al",
        "low(\n    unsafe_code,\n    reason = \"a long one\"\n)]\n"
    );

    fn found(list: &str, sources: &[(&str, &str)]) -> Vec<String> {
        let document = format!(
            "# A\n\n{HEADING}\n\n| file | why |\n|---|---|\n{list}\n## B\n| `z.rs` | no |\n"
        );
        let mut files = vec![(DOCUMENT, document.as_str())];
        files.extend(sources);
        let findings = check(&Tree::of(&files)).unwrap();
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_complete_list_passes() {
        let list = "| `a.rs` | maps |\n| `b.rs` | calls C |\n";
        assert_eq!(found(list, &[("a.rs", ONE_LINE), ("b.rs", LINES)]), [""; 0]);
    }

    #[test]
    fn modules_without_a_line_and_lines_without_a_module_are_found() {
        assert_eq!(
            found("", &[("a.rs", LINES)]),
            ["a.rs: allows unsafe code, and ARCHITECTURE.md does not list it"]
        );
        let safe = "#![allow(dead_code, reason = \"unsafe_code\")]\n";
        assert_eq!(
            found("| `a.rs` | |\n", &[("a.rs", safe)]),
            [
                "ARCHITECTURE.md:7: a.rs allows no unsafe code",
                "ARCHITECTURE.md:7: a.rs has no reason"
            ]
        );
    }
}
