//! The configuration file.

use std::path::Path;

use machine::sections;
use spec::{Properties, Property};
use toml::Value;

use super::said::{Said, own_sections};
use crate::failure::{Failure, Result};

/// Adds what the file says. Relative paths in it are relative to its folder, so that it works
/// from everywhere.
pub(super) fn read(path: &Path, said: &mut Said) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Failure::Failed(format!(
            "cannot read the configuration {}: {e}",
            path.display()
        ))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    add(&text, folder, said).map_err(|failure| failure.at(path.display()))
}

fn add(text: &str, folder: &Path, said: &mut Said) -> Result<()> {
    let mut root: toml::Table = text.parse().map_err(|e| Failure::Usage(syntax(text, &e)))?;
    for (name, value) in &mut root {
        for table in tables(value) {
            let known = properties(name, table)?;
            rebase(table, &known, folder);
        }
    }
    for section in own_sections() {
        match root.remove(section.name) {
            Some(Value::Table(table)) => {
                said.add_own(section.name, &Properties::from_toml(section.name, table)?);
            }
            Some(_) => {
                return Err(Failure::Usage(format!(
                    "expected a table [{}]",
                    section.name
                )));
            }
            None => {}
        }
    }
    let others = toml::to_string(&root).map_err(|e| Failure::failed(&e))?;
    Ok(said.description.add_toml(&others)?)
}

/// What is wrong, and on which line, without the line itself.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let before = error
        .span()
        .and_then(|span| text.get(..span.start))
        .unwrap_or_default();
    format!(
        "line {}: {}",
        before.matches('\n').count() + 1,
        error.message().replace('\n', "; ")
    )
}

fn tables(value: &mut Value) -> Vec<&mut toml::Table> {
    match value {
        Value::Table(table) => vec![table],
        Value::Array(items) => items.iter_mut().filter_map(Value::as_table_mut).collect(),
        _ => Vec::new(),
    }
}

/// The properties that a table of this name can have.
fn properties(name: &str, table: &toml::Table) -> Result<Vec<Property>> {
    if let Some(section) = own_sections().into_iter().find(|s| s.name == name) {
        return Ok(section.properties);
    }
    if let Some(section) = sections().iter().find(|s| s.name == name) {
        return Ok((section.properties)());
    }
    match (name, table.get("type").and_then(Value::as_str)) {
        ("device", Some(kind)) => Ok((machine::find(kind)?.properties)()),
        // The description tells what is wrong.
        ("device", None) => Ok(Vec::new()),
        _ => Ok((machine::find(name)?.properties)()),
    }
}

fn rebase(table: &mut toml::Table, known: &[Property], folder: &Path) {
    for property in known {
        match table.get_mut(&property.name) {
            Some(Value::Array(items)) => items
                .iter_mut()
                .for_each(|item| rebase_value(item, &property.kind, folder)),
            Some(value) => rebase_value(value, &property.kind, folder),
            None => {}
        }
    }
}

/// Puts the folder before a path: a property of that type, or one of several words that may
/// hold one, such as `file:PATH`.
fn rebase_value(value: &mut Value, kind: &str, folder: &Path) {
    let Value::String(text) = value else { return };
    let kind = kind.split(" (").next().unwrap_or(kind);
    let start = match text.split_once(':') {
        _ if kind == "path" => 0,
        Some((word, _))
            if kind
                .split('|')
                .any(|k| k.strip_suffix(":PATH") == Some(word)) =>
        {
            word.len() + 1
        }
        _ => return,
    };
    let (word, path) = text.split_at(start);
    if !path.is_empty() {
        *text = format!("{word}{}", folder.join(path).display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::print;

    #[test]
    fn paths_are_relative_to_the_file() {
        let text = "[kernel]\nimage = \"vmlinux\"\ncmdline = \"quiet\"\n[[serial]]\nto = \"file:log\"\n\
                    [[serial]]\nto = \"stdio\"\n[[disk]]\nfile = \"/abs/a.img\"\n[[disk]]\nfile = \"b.img\"\n\
                    [process]\npidfile = \"vm.pid\"\n";
        let mut said = Said::default();
        add(text, Path::new("/vms/one"), &mut said).unwrap();
        let toml = print::toml(&said);
        for line in [
            "image = \"/vms/one/vmlinux\"",
            "cmdline = \"quiet\"",
            "to = \"file:/vms/one/log\"",
            "to = \"stdio\"",
            "file = \"/abs/a.img\"",
            "file = \"/vms/one/b.img\"",
            "pidfile = \"/vms/one/vm.pid\"",
        ] {
            assert!(toml.contains(line), "{line} is missing in\n{toml}");
        }
    }

    #[test]
    fn mistakes_tell_the_line_or_the_nearest_name() {
        let error = |text: &str| {
            let mut said = Said::default();
            match add(text, Path::new(""), &mut said).and_then(|()| said.check()) {
                Err(Failure::Usage(message)) => message,
                other => panic!("expected a usage error, got {other:?}"),
            }
        };
        assert!(error("[memory]\nsize = = 1\n").starts_with("line 2: "));
        assert!(error("[[dsk]]\nfile = \"a\"\n").contains("did you mean \"disk\"?"));
        assert!(error("[log]\nlevle = \"info\"\n").contains("did you mean \"level\"?"));
        assert!(error("log = 1\n").contains("[log]"));
    }
}
