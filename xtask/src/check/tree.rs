//! Every file of the repository, and the rules that concern files one by one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::Finding;

/// A file this long is refused.
const MAX_LINES: usize = 1200;
/// A file longer than this is worth a look.
const COMFORTABLE_LINES: usize = 600;
/// Files larger than this are data, not text.
const MAX_TEXT: u64 = 4 << 20;

/// Folders whose content is made by programs.
const MADE: [&str; 6] = [
    ".git",
    "target",
    "fuzz/target",
    "fuzz/corpus",
    "fuzz/artifacts",
    "fuzz/coverage",
];

/// What must not be left in a source file. Cut in two, so that this file passes.
const LEFT_OVER: [(&str, &str); 5] = [
    (concat!("to", "do!("), "is not finished"),
    (concat!("unimpl", "emented!("), "is not finished"),
    (concat!("db", "g!("), "prints for debugging"),
    (concat!("#[ig", "nore"), "a test that does not run"),
    (concat!("FIX", "ME"), "is not finished"),
];

/// What would make the build depend on somebody's own package mirror.
const MIRRORS: [&str; 6] = [
    concat!("replace-", "with"),
    concat!("sparse+", "http"),
    concat!("index-", "url"),
    concat!("[source", "."),
    concat!("[regis", "tries"),
    concat!("GOPR", "OXY"),
];

/// The only place from which packages come.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The texts of a repository by their paths.
pub(super) struct Tree(BTreeMap<String, String>);

impl Tree {
    /// Reads all text files under `root` that are not made by programs.
    pub(super) fn read(root: &Path) -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(root.join(&folder))
                .with_context(|| format!("cannot read the folder {folder:?}"))?;
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let path = match folder.as_str() {
                    "" => name,
                    folder => format!("{folder}/{name}"),
                };
                let kind = entry.file_type()?;
                if kind.is_dir() && !MADE.contains(&path.as_str()) {
                    folders.push(path);
                } else if kind.is_file() && entry.metadata()?.len() <= MAX_TEXT {
                    // Images and the like are no text.
                    if let Ok(text) = String::from_utf8(fs::read(entry.path())?) {
                        files.insert(path, text);
                    }
                }
            }
        }
        Ok(Self(files))
    }

    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let own = |(path, text): &(&str, &str)| (String::from(*path), String::from(*text));
        Self(files.iter().map(own).collect())
    }

    /// The text of a file that must be there.
    pub(super) fn text(&self, path: &str) -> anyhow::Result<String> {
        self.0
            .get(path)
            .cloned()
            .with_context(|| format!("there is no {path}"))
    }

    /// Paths and texts, in order.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Rust sources, in order.
    pub(super) fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files().filter(|(path, _)| path.ends_with(".rs"))
    }

    /// Whether there is a file or folder of this path.
    pub(super) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let folder = format!("{path}/");
        self.0.contains_key(path) || self.0.keys().any(|file| file.starts_with(&folder))
    }

    /// Sources that are longer than is comfortable.
    pub(super) fn long_files(&self) -> Vec<Finding> {
        self.sources()
            .map(|(path, text)| (path, text.lines().count()))
            .filter(|(_, lines)| *lines > COMFORTABLE_LINES)
            .map(|(path, lines)| Finding::new(path, format!("{lines} lines")))
            .collect()
    }

    /// Sizes, left-over macros and foreign registries.
    pub(super) fn check(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (path, text) in self.sources() {
            let lines = text.lines().count();
            if lines > MAX_LINES {
                let what = format!("{lines} lines, more than {MAX_LINES}: what are its two parts?");
                findings.push(Finding::new(path, what));
            }
            for (word, why) in LEFT_OVER {
                findings.extend(occurrences(path, text, word, why));
            }
        }
        for (path, text) in self.files() {
            if path.ends_with("Cargo.lock") {
                findings.extend(foreign_sources(path, text));
            }
            for word in MIRRORS {
                findings.extend(occurrences(path, text, word, "names a package mirror"));
            }
        }
        findings
    }
}

fn occurrences(path: &str, text: &str, word: &str, why: &str) -> Vec<Finding> {
    let finding = |number: usize| Finding::new(format!("{path}:{number}"), format!("{word} {why}"));
    text.lines()
        .zip(1..)
        .filter(|(line, _)| line.contains(word))
        .map(|(_, number)| finding(number))
        .collect()
}

fn foreign_sources(path: &str, lock: &str) -> Vec<Finding> {
    lock.lines()
        .zip(1..)
        .filter_map(|(line, number)| {
            let source = line.strip_prefix("source = ")?.trim_matches('"');
            let what = format!("a package comes from {source}");
            (source != REGISTRY).then(|| Finding::new(format!("{path}:{number}"), what))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(files: &[(&str, &str)]) -> Vec<String> {
        let findings = Tree::of(files).check();
        findings.into_iter().map(|finding| finding.place).collect()
    }

    #[test]
    fn long_files_are_refused_and_longish_ones_noted() {
        let (long, longish) = ("x\n".repeat(1201), "x\n".repeat(1200));
        assert_eq!(places(&[("a.rs", &long), ("b.rs", &longish)]), ["a.rs"]);
        let tree = Tree::of(&[("b.rs", &longish), ("c.rs", &"x\n".repeat(600))]);
        assert_eq!(tree.long_files(), [Finding::new("b.rs", "1200 lines")]);
        assert_eq!(places(&[("a.md", &long)]), [""; 0]);
    }

    #[test]
    fn what_was_left_over_is_found_with_its_line() {
        let source = format!("fn f() {{\n    {}1);\n}}\n", LEFT_OVER[2].0);
        assert_eq!(places(&[("a.rs", &source)]), ["a.rs:2"]);
        let test = format!("#[test]\n{} = \"slow\"]\nfn f() {{}}\n", LEFT_OVER[3].0);
        assert_eq!(places(&[("a.rs", &test)]), ["a.rs:2"]);
    }

    #[test]
    fn packages_come_from_the_one_registry() {
        let good = format!("source = \"{REGISTRY}\"\n");
        let bad = "name = \"x\"\nsource = \"git+https://example.org/x\"\n";
        assert_eq!(places(&[("Cargo.lock", &good)]), [""; 0]);
        assert_eq!(places(&[("fuzz/Cargo.lock", bad)]), ["fuzz/Cargo.lock:2"]);
        let config = format!("{}crates-io]\n{} = \"mine\"\n", MIRRORS[3], MIRRORS[0]);
        let found = places(&[(".cargo/config.toml", &config)]);
        assert_eq!(found, [".cargo/config.toml:2", ".cargo/config.toml:1"]);
    }

    #[test]
    fn folders_are_known_by_their_files() {
        let tree = Tree::of(&[("crates/a/src/lib.rs", "")]);
        assert!(tree.has("crates/a/") && tree.has("crates/a/src/lib.rs") && tree.has("crates"));
        assert!(!tree.has("crates/b") && !tree.has("crates/a/src/lib"));
    }
}
