//! Paths that the documents name must exist: a map that rots is worse than none.

use super::Finding;
use super::tree::Tree;

/// The first part of what counts as a path of this repository.
const ROOTS: [&str; 9] = [
    ".cargo/", ".ci/", "benches/", "crates/", "docs/", "fuzz/", "tests/", "xtask/", "target/",
];

/// Made by programs, so that it need not be there.
const MADE: [&str; 3] = ["target/", "fuzz/corpus", "fuzz/artifacts"];

/// Paths in the documents that lead nowhere.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let documents = tree.files().filter(|(path, _)| path.ends_with(".md"));
    documents
        .flat_map(|(path, text)| dead_ends(tree, path, text))
        .collect()
}

fn dead_ends(tree: &Tree, document: &str, text: &str) -> Vec<Finding> {
    let folder = document.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut findings = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let mut complain = |path: &str| {
            let place = format!("{document}:{number}");
            findings.push(Finding::new(place, format!("there is no {path}")));
        };
        for word in words(line) {
            let made = MADE.iter().any(|made| word.starts_with(made));
            if ROOTS.iter().any(|root| word.starts_with(root)) && !made && !tree.has(word) {
                complain(word);
            }
        }
        for link in links(line) {
            let target = resolve(folder, link);
            if !tree.has(&target) {
                complain(&target);
            }
        }
    }
    findings
}

/// Words that may be paths: without the punctuation around them, and without placeholders.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| c.is_whitespace() || "`()[]|,;\"'│─".contains(c))
        .map(|word| word.trim_end_matches(['.', ':']))
        .map(|word| word.split_once(':').map_or(word, |(path, _)| path))
        .filter(|word| !word.contains(['*', '<', '{', '…', '$']) && !is_placeholder(word))
}

/// `crates/NAME/src` stands for any name.
fn is_placeholder(word: &str) -> bool {
    word.split('/').any(|part| {
        part.len() > 1
            && part
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    })
}

/// Targets of Markdown links within the repository.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(')')?.0))
        .map(|target| target.split_once('#').map_or(target, |(path, _)| path))
        .filter(|target| !target.is_empty() && !target.contains("://"))
}

fn resolve(folder: &str, link: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let tree = Tree::of(&[
            ("crates/bus/src/lib.rs", ""),
            ("docs/design/boot.md", text),
            ("README.md", ""),
        ]);
        check(&tree).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn paths_that_exist_pass() {
        assert_eq!(
            found("See `crates/bus/src/lib.rs`, crates/bus/, (crates/bus/src)."),
            [""; 0]
        );
        assert_eq!(
            found("[law](../../README.md#law) and [web](https://example.org)"),
            [""; 0]
        );
        assert_eq!(found("`crates/bus/src/lib.rs:12`: here"), [""; 0]);
    }

    #[test]
    fn paths_that_do_not_are_told_with_their_line() {
        let text = "one\ntwo `crates/bus/src/gone.rs`\n";
        assert_eq!(
            found(text),
            ["docs/design/boot.md:2: there is no crates/bus/src/gone.rs"]
        );
        assert_eq!(
            found("[law](README.md)"),
            ["docs/design/boot.md:1: there is no docs/design/README.md"]
        );
    }

    #[test]
    fn placeholders_and_made_folders_are_no_paths() {
        assert_eq!(found("crates/NAME/src crates/*/src crates/{a,b}"), [""; 0]);
        assert_eq!(found("target/guest/ fuzz/artifacts"), [""; 0]);
    }
}
