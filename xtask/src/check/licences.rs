//! Whether the licences of all packages that we link are among those that deny.toml allows.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde_json::Value;

use super::Finding;

/// What deny.toml says about licences.
#[derive(Debug, Default)]
pub(super) struct Policy {
    allow: Vec<String>,
    /// Further licences for some packages.
    exceptions: BTreeMap<String, Vec<String>>,
}

impl Policy {
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let file: toml::Table = text.parse().context("deny.toml")?;
        let licences = file
            .get("licenses")
            .context("deny.toml has no [licenses]")?;
        let strings = |value: Option<&toml::Value>| -> Vec<String> {
            let values = value.and_then(toml::Value::as_array).into_iter().flatten();
            values
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()
        };
        let exceptions = licences.get("exceptions").and_then(toml::Value::as_array);
        let exceptions = exceptions.into_iter().flatten();
        Ok(Self {
            allow: strings(licences.get("allow")),
            exceptions: exceptions
                .filter_map(|exception| {
                    let name = exception.get("crate").or(exception.get("name"))?;
                    Some((name.as_str()?.to_owned(), strings(exception.get("allow"))))
                })
                .collect(),
        })
    }

    fn allows(&self, package: &str, licence: &str) -> bool {
        let more = self.exceptions.get(package);
        self.allow
            .iter()
            .chain(more.into_iter().flatten())
            .any(|allowed| allowed == licence)
    }
}

/// Checks every package of `cargo metadata`.
pub(super) fn check(policy: &Policy, metadata: &Value) -> anyhow::Result<Vec<Finding>> {
    let packages = metadata["packages"].as_array();
    // Only what the resolver chose for this platform.
    let nodes = metadata["resolve"]["nodes"].as_array();
    let used: Vec<&Value> = nodes
        .into_iter()
        .flatten()
        .map(|node| &node["id"])
        .collect();
    let mut findings = Vec::new();
    for package in packages.context("cargo metadata has no packages")? {
        if !used.contains(&&package["id"]) {
            continue;
        }
        let name = package["name"].as_str().unwrap_or_default();
        let place = format!("{name} {}", package["version"].as_str().unwrap_or_default());
        let Some(expression) = package["license"].as_str() else {
            findings.push(Finding::new(place, "names no licence"));
            continue;
        };
        match satisfied(expression, &|licence| policy.allows(name, licence)) {
            Ok(true) => {}
            Ok(false) => {
                let what = format!("its licence {expression} is not among those of deny.toml");
                findings.push(Finding::new(place, what));
            }
            Err(e) => findings.push(Finding::new(place, format!("licence {expression:?}: {e}"))),
        }
    }
    Ok(findings)
}

/// Evaluates an SPDX expression (SPDX 2.3 annex D); "/" is an old way to write OR.
fn satisfied(expression: &str, allows: &dyn Fn(&str) -> bool) -> anyhow::Result<bool> {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let result = either(&mut words, allows)?;
    match words.next() {
        None => Ok(result),
        Some(word) => bail!("{word:?} is left over"),
    }
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words, allows: &dyn Fn(&str) -> bool) -> anyhow::Result<bool> {
    let mut result = both(words, allows)?;
    while words.next_if_eq(&"OR").is_some() {
        result |= both(words, allows)?;
    }
    Ok(result)
}

fn both(words: &mut Words, allows: &dyn Fn(&str) -> bool) -> anyhow::Result<bool> {
    let mut result = one(words, allows)?;
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allows)?;
    }
    Ok(result)
}

fn one(words: &mut Words, allows: &dyn Fn(&str) -> bool) -> anyhow::Result<bool> {
    match words.next() {
        Some("(") => {
            let result = either(words, allows)?;
            if words.next() != Some(")") {
                bail!("a parenthesis is not closed");
            }
            Ok(result)
        }
        Some(word) if !["OR", "AND", "WITH", ")"].contains(&word) => {
            if words.next_if_eq(&"WITH").is_none() {
                return Ok(allows(word));
            }
            let exception = words.next().context("an exception is missing")?;
            Ok(allows(&format!("{word} WITH {exception}")))
        }
        other => bail!("a licence is missing before {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "\
[licenses]
allow = [\"MIT\", \"Apache-2.0\"]
exceptions = [{ crate = \"idents\", allow = [\"Unicode-3.0\"] }]
";

    #[test]
    fn expressions_are_evaluated() {
        let good = |text: &str| satisfied(text, &|l| ["MIT", "ISC"].contains(&l)).unwrap();
        assert!(good("MIT") && good("GPL-2.0-only OR MIT") && good("Apache-2.0/MIT"));
        assert!(good("(MIT OR GPL-3.0-only) AND ISC"));
        assert!(!good("GPL-2.0-only") && !good("MIT AND GPL-2.0-only"));
        assert!(!good("MIT AND GPL-2.0-only OR GPL-3.0-only"));
        assert!(!good("MIT WITH Some-exception"));
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["", "MIT OR", "MIT ISC", "(MIT", "OR MIT", "MIT WITH"] {
            assert!(satisfied(text, &|_| true).is_err(), "{text:?}");
        }
    }

    #[test]
    fn packages_that_are_used_need_an_allowed_licence() {
        let package = |name: &str, licence: Option<&str>| serde_json::json!({ "id": name, "name": name, "version": "1.0.0", "license": licence });
        let metadata = serde_json::json!({
            "packages": [
                package("good", Some("MIT OR GPL-2.0-only")),
                package("idents", Some("MIT AND Unicode-3.0")),
                package("others", Some("MIT AND Unicode-3.0")),
                package("silent", None),
                package("elsewhere", Some("GPL-2.0-only")),
            ],
            "resolve": { "nodes": [
                { "id": "good" }, { "id": "idents" }, { "id": "others" }, { "id": "silent" },
            ] },
        });
        let policy = Policy::parse(POLICY).unwrap();
        let findings = check(&policy, &metadata).unwrap();
        let places: Vec<&str> = findings.iter().map(|f| f.place.as_str()).collect();
        assert_eq!(places, ["others 1.0.0", "silent 1.0.0"]);
    }
}
