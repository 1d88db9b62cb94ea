//! What a guest may see differently under Vireo and under QEMU, each difference with its reason.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use serde::Deserialize;

/// One intended difference.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Which comparison it belongs to: lspci, cpu-flags or dmesg.
    pub what: String,
    /// Under which of the two it is: vireo or qemu.
    pub only: Side,
    /// The line; `*` stands for any text.
    pub line: String,
    /// Why it is so.
    pub reason: String,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Vireo.
    Vireo,
    /// QEMU.
    Qemu,
}

/// The list of intended differences.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    #[serde(default)]
    difference: Vec<Difference>,
}

impl Differences {
    /// Reads the list.
    ///
    /// # Errors
    /// It is no such list, or a reason is missing.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let list: Self = toml::from_str(text).context("the list of differences")?;
        for entry in &list.difference {
            ensure!(!entry.reason.is_empty(), "{:?} has no reason", entry.line);
        }
        Ok(list)
    }

    /// Compares what was seen as sets of lines; returns how many differences were intended.
    ///
    /// # Errors
    /// There are others; the error lists them.
    pub fn check(&self, what: &str, vireo: &str, qemu: &str) -> anyhow::Result<usize> {
        let set = |text: &str| -> BTreeSet<String> {
            text.lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let (vireo, qemu) = (set(vireo), set(qemu));
        let mut unknown = Vec::new();
        let mut known = 0;
        for (side, lines) in [
            (Side::Vireo, vireo.difference(&qemu)),
            (Side::Qemu, qemu.difference(&vireo)),
        ] {
            for line in lines {
                let intended = self.difference.iter().any(|entry| {
                    entry.what == what && entry.only == side && matches(&entry.line, line)
                });
                if intended {
                    known += 1;
                } else {
                    unknown.push(format!("  only under {side:?}: {line}"));
                }
            }
        }
        ensure!(
            unknown.is_empty(),
            "{what}: not in tests/guest/differences.toml:\n{}",
            unknown.join("\n")
        );
        Ok(known)
    }
}

/// Whether `line` is `pattern`, in which `*` stands for any text.
#[must_use]
pub fn matches(pattern: &str, line: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == line;
    };
    let Some(line) = line.strip_prefix(head) else {
        return false;
    };
    (0..=line.len())
        .filter(|&at| line.is_char_boundary(at))
        .any(|at| matches(rest, &line[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        assert!(matches("a*c*", "abbc"));
        assert!(matches("*", ""));
        assert!(!matches("a*c", "abcd"));
        assert!(!matches("a", "ab"));
    }

    #[test]
    fn unknown_differences_are_errors_on_either_side() {
        let list =
            "[[difference]]\nwhat = \"x\"\nonly = \"qemu\"\nline = \"old *\"\nreason = \"r\"\n";
        let list = Differences::parse(list).unwrap();
        assert_eq!(list.check("x", "a\nb", "b\na\n old 1\n").unwrap(), 1);
        let error = list.check("x", "a\nnew", "a").unwrap_err().to_string();
        assert!(error.contains("only under Vireo: new"), "{error}");
        list.check("x", "old 1", "").unwrap_err();
        list.check("y", "", "old 1").unwrap_err();
    }

    #[test]
    fn the_list_of_this_project_reads() {
        Differences::parse(include_str!("../differences.toml")).unwrap();
    }
}
