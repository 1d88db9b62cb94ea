//! Which crate may depend on which: the law of crates/README.md.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Finding;
use super::tree::Tree;

/// Names that say nothing, so that anything could go there.
const EMPTY_NAMES: [&str; 7] = [
    "base", "common", "helpers", "lib", "misc", "shared", "utils",
];

/// A package of the workspace.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    /// Whether it is under crates/, where the law is; tasks and tests may use everything.
    pub(super) is_crate: bool,
    /// Normal and build dependencies.
    pub(super) dependencies: Vec<String>,
    pub(super) features: Vec<String>,
}

/// The packages of the workspace, out of `cargo metadata`.
pub(super) fn packages(metadata: &Value) -> anyhow::Result<Vec<Package>> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a string");
    let members = metadata["workspace_members"].as_array();
    let members = members.context("cargo metadata has no members")?;
    let all = metadata["packages"].as_array();
    all.context("cargo metadata has no packages")?
        .iter()
        .filter(|package| members.contains(&package["id"]))
        .map(|package| {
            let dependencies = package["dependencies"].as_array();
            Ok(Package {
                name: text(&package["name"])?,
                is_crate: text(&package["manifest_path"])?.contains("/crates/"),
                dependencies: dependencies
                    .context("a package without dependencies")?
                    .iter()
                    .filter(|dependency| dependency["kind"] != "dev")
                    .map(|dependency| text(&dependency["name"]))
                    .collect::<anyhow::Result<_>>()?,
                features: package["features"]
                    .as_object()
                    .map(|features| features.keys().cloned().collect())
                    .unwrap_or_default(),
            })
        })
        .collect()
}

/// `crate/feature` for every feature that switches tests on.
pub(super) fn test_features(packages: &[Package]) -> Vec<String> {
    let of = |package: &Package| {
        let tests = package.features.iter().filter(|f| f.ends_with("-tests"));
        tests
            .map(|feature| format!("{}/{feature}", package.name))
            .collect::<Vec<_>>()
    };
    packages.iter().flat_map(of).collect()
}

/// Every crate takes the workspace's lints: one that does not could use unsafe code unseen.
pub(super) fn lints(tree: &Tree) -> Vec<Finding> {
    let is_member = |path: &str| {
        let folder = ["crates/", "tests/", "xtask/"]
            .iter()
            .any(|f| path.starts_with(f));
        folder && path.ends_with("/Cargo.toml")
    };
    let takes_lints = |text: &str| {
        let manifest: Option<toml::Table> = text.parse().ok();
        manifest.is_some_and(|manifest| {
            let lints = manifest
                .get("lints")
                .and_then(|lints| lints.get("workspace"));
            lints == Some(&toml::Value::Boolean(true))
        })
    };
    tree.files()
        .filter(|(path, text)| is_member(path) && !takes_lints(text))
        .map(|(path, _)| Finding::new(path, "does not take the lints of the workspace"))
        .collect()
}

/// The law as crates/README.md has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Law {
    /// Names of the layers, the lowest first.
    layers: Vec<String>,
    /// Crate to index of its layer.
    layer_of: BTreeMap<String, usize>,
    /// Dependencies that only these crates may have.
    only: BTreeMap<String, Vec<String>>,
}

impl Law {
    /// Reads the tables: the rows of "layer | crate | ..." in the order of the layers, and the
    /// rows of "dependency | only in | ...".
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut law = Self {
            layers: Vec::new(),
            layer_of: BTreeMap::new(),
            only: BTreeMap::new(),
        };
        let mut table = "";
        for line in text.lines() {
            let Some(cells) = cells(line) else {
                table = "";
                continue;
            };
            match (table, cells.as_slice()) {
                ("", [first, ..]) => table = first,
                (_, [first, ..]) if first.starts_with('-') => {}
                ("layer", [layer, name, ..]) => {
                    let known = law.layers.iter().position(|known| known == layer);
                    let index = known.unwrap_or_else(|| {
                        law.layers.push((*layer).to_owned());
                        law.layers.len() - 1
                    });
                    let before = law.layer_of.insert(unquoted(name), index);
                    ensure!(before.is_none(), "crates/README.md has {name} twice");
                }
                ("dependency", [dependency, crates, ..]) => {
                    let crates = crates.split(',').map(unquoted).collect();
                    law.only.insert(unquoted(dependency), crates);
                }
                _ => {}
            }
        }
        ensure!(
            !law.layers.is_empty(),
            "crates/README.md has no table that begins with \"layer | crate\""
        );
        Ok(law)
    }

    /// What breaks the law.
    pub(super) fn check(&self, packages: &[Package]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for package in packages.iter().filter(|package| package.is_crate) {
            let name = package.name.as_str();
            let place = format!("crates/{name}/Cargo.toml");
            let mut complain = |what: String| findings.push(Finding::new(&*place, what));
            if EMPTY_NAMES.contains(&name) {
                complain(format!(
                    "a crate named {name} says nothing about its content"
                ));
            }
            for dependency in &package.dependencies {
                if packages
                    .iter()
                    .any(|p| p.name == *dependency && !p.is_crate)
                {
                    complain(format!(
                        "{name} depends on {dependency}, which is no crate of crates/"
                    ));
                }
                if let Some(only) = self.only.get(dependency)
                    && !only.iter().any(|allowed| allowed == name)
                {
                    complain(format!("only {} may use {dependency}", only.join(" and ")));
                }
            }
            let Some(&layer) = self.layer_of.get(name) else {
                complain(format!("{name} is in no layer of crates/README.md"));
                continue;
            };
            for dependency in &package.dependencies {
                if let Some(&other) = self.layer_of.get(dependency)
                    && other > layer
                {
                    complain(format!(
                        "{name} ({}) depends on {dependency} ({})",
                        self.layers[layer], self.layers[other]
                    ));
                }
            }
        }
        let is_there = |name: &str| packages.iter().any(|p| p.is_crate && p.name == name);
        let gone = self.layer_of.keys().filter(|name| !is_there(name));
        findings.extend(
            gone.map(|name| Finding::new("crates/README.md", format!("there is no crate {name}"))),
        );
        findings
    }
}

/// The cells of a row of a table.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

fn unquoted(cell: &str) -> String {
    cell.trim().trim_matches('`').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAW: &str = "\
# Crates

| layer | crate | what |
|-------|-------|------|
| facts | `x86` | registers |
| mechanism | `bus` | dispatch |
| mechanism | `accel-kvm` | KVM |
| devices | `pci` | PCI |

Some words.

| dependency | only in | why |
|---|---|---|
| `kvm-ioctls` | `accel-kvm` | the boundary |
";

    fn package(name: &str, dependencies: &[&str]) -> Package {
        Package {
            name: name.to_owned(),
            is_crate: name != "xtask",
            dependencies: dependencies.iter().map(|&d| d.to_owned()).collect(),
            features: Vec::new(),
        }
    }

    fn found(packages: &[Package]) -> Vec<String> {
        let known = ["x86", "bus", "accel-kvm", "pci"];
        let mut all: Vec<Package> = known
            .iter()
            .filter(|&&name| packages.iter().all(|p| p.name != name))
            .map(|&name| package(name, &[]))
            .collect();
        all.extend(packages.iter().map(|p| {
            let dependencies: Vec<&str> = p.dependencies.iter().map(String::as_str).collect();
            package(&p.name, &dependencies)
        }));
        let findings = Law::parse(LAW).unwrap().check(&all);
        findings.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn own_and_earlier_layers_may_be_used() {
        let good = [
            package("pci", &["bus", "x86", "serde"]),
            package("accel-kvm", &["bus", "kvm-ioctls"]),
            package("xtask", &["pci", "x86"]),
        ];
        assert_eq!(found(&good), [""; 0]);
    }

    #[test]
    fn a_later_layer_may_not() {
        let bad = [package("x86", &["pci"])];
        assert_eq!(found(&bad), ["x86 (facts) depends on pci (devices)"]);
        assert_eq!(
            found(&[package("bus", &["xtask"]), package("xtask", &[])]),
            ["bus depends on xtask, which is no crate of crates/"]
        );
    }

    #[test]
    fn some_dependencies_have_one_place() {
        let bad = [package("pci", &["kvm-ioctls"])];
        assert_eq!(found(&bad), ["only accel-kvm may use kvm-ioctls"]);
    }

    #[test]
    fn table_and_workspace_name_the_same_crates() {
        assert_eq!(
            found(&[package("utils", &[])]),
            [
                "a crate named utils says nothing about its content",
                "utils is in no layer of crates/README.md"
            ]
        );
        let gone = Law::parse(LAW).unwrap().check(&[package("x86", &[])]);
        assert_eq!(gone.len(), 3);
        assert_eq!(
            gone[0].to_string(),
            "crates/README.md: there is no crate accel-kvm"
        );
    }

    #[test]
    fn a_readme_without_a_table_is_no_law() {
        assert!(Law::parse("# Crates\n").is_err());
        let twice = format!("{LAW}\n| layer | crate |\n|-|-|\n| devices | `x86` |\n");
        assert!(Law::parse(&twice).is_err());
    }

    #[test]
    fn dev_dependencies_are_free_and_test_features_are_found() {
        let metadata = serde_json::json!({
            "workspace_members": ["a 1"],
            "packages": [
                {
                    "id": "a 1",
                    "name": "a",
                    "manifest_path": "/home/me/vireo/crates/a/Cargo.toml",
                    "dependencies": [
                        { "name": "b", "kind": null },
                        { "name": "c", "kind": "dev" },
                        { "name": "d", "kind": "build" },
                    ],
                    "features": { "kvm-tests": [], "testing": [] },
                },
                { "id": "b 1", "name": "b", "dependencies": [], "features": {} },
            ],
        });
        let packages = packages(&metadata).unwrap();
        assert_eq!(packages.len(), 1);
        assert!(packages[0].is_crate);
        assert_eq!(packages[0].dependencies, ["b", "d"]);
        assert_eq!(test_features(&packages), ["a/kvm-tests"]);
    }

    #[test]
    fn lints_are_not_optional() {
        let with = "[package]\nname = \"a\"\n[lints]\nworkspace = true\n";
        let without = "[package]\nname = \"b\"\n";
        let tree = Tree::of(&[
            ("crates/a/Cargo.toml", with),
            ("crates/b/Cargo.toml", without),
            ("fuzz/Cargo.toml", without),
        ]);
        let findings = lints(&tree);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].place, "crates/b/Cargo.toml");
    }
}
