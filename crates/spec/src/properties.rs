use std::collections::BTreeMap;

use crate::{Field, Property, SpecError, nearest};

/// A value as the user gave it, before its type is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// From JSON or TOML.
    Bool(bool),
    /// From JSON or TOML.
    Int(i128),
    /// From the command line always, from JSON and TOML when quoted.
    Text(String),
    /// From JSON or TOML, or a property given several times on the command line.
    List(Vec<Value>),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Bool(on) => f.write_str(if *on { "on" } else { "off" }),
            Value::Int(n) => write!(f, "{n}"),
            Value::Text(text) => f.write_str(text),
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                f.write_str(&items.join(":"))
            }
        }
    }
}

/// Named values that a user gave for one part of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties(BTreeMap<String, Value>);

impl Properties {
    /// No properties.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses `name=value,...`; see [`crate::Spec::parse`].
    ///
    /// # Errors
    /// An item without a name, or a name given twice (unless its values make a list).
    pub fn parse(spec: &'static str, first: Option<&str>, text: &str) -> Result<Self, SpecError> {
        let syntax = |why: String| SpecError::Syntax {
            spec,
            text: text.to_owned(),
            why,
        };
        let mut map = BTreeMap::new();
        for (i, item) in split_items(text).into_iter().enumerate() {
            if item.is_empty() && text.is_empty() {
                break;
            }
            let (name, value) = match (item.split_once('='), first) {
                (Some((name, value)), _) if !name.is_empty() && !name.contains(['/', ' ']) => {
                    (name, value)
                }
                (_, Some(first)) if i == 0 => (first, item.as_str()),
                _ => return Err(syntax(format!("{item:?} is not of the form name=value"))),
            };
            let value = Value::Text(value.to_owned());
            match map.remove(name) {
                None => _ = map.insert(name.to_owned(), value),
                Some(Value::List(mut items)) => {
                    items.push(value);
                    map.insert(name.to_owned(), Value::List(items));
                }
                Some(before) => _ = map.insert(name.to_owned(), Value::List(vec![before, value])),
            }
        }
        Ok(Self(map))
    }

    /// Takes a JSON object, as QMP's `device_add` gives it.
    ///
    /// # Errors
    /// A value that is no boolean, integer, string or list of these.
    pub fn from_json(
        spec: &'static str,
        object: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, SpecError> {
        let mut map = BTreeMap::new();
        for (name, json) in object {
            if json.is_null() {
                continue;
            }
            let shown = json.to_string();
            let value = from_json(json).ok_or_else(|| SpecError::Bad {
                spec,
                name: name.clone(),
                value: shown,
                why: "expected a boolean, an integer, a string, or a list of these".into(),
            })?;
            map.insert(name, value);
        }
        Ok(Self(map))
    }

    /// Takes a TOML table, as the configuration file gives it.
    ///
    /// # Errors
    /// A value that is no boolean, integer, string or list of these.
    pub fn from_toml(spec: &'static str, table: toml::Table) -> Result<Self, SpecError> {
        let json = serde_json::to_value(table).ok();
        match json {
            Some(serde_json::Value::Object(object)) => Self::from_json(spec, object),
            _ => Err(SpecError::Syntax {
                spec,
                text: String::new(),
                why: "expected a table".into(),
            }),
        }
    }

    /// Adds or replaces a value.
    pub fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// Removes a value and returns it.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// A value by name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// The values in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Fails when a name is left that `known` does not have.
    ///
    /// # Errors
    /// [`SpecError::Unknown`] with the nearest known name.
    pub fn only(&self, spec: &'static str, known: &[Property]) -> Result<(), SpecError> {
        let names = || known.iter().map(|p| p.name.as_str());
        match self
            .0
            .keys()
            .find(|name| !names().any(|known| known == *name))
        {
            None => Ok(()),
            Some(name) => Err(SpecError::Unknown {
                spec,
                name: name.clone(),
                nearest: nearest(name, names()).map(str::to_owned),
                known: names().map(str::to_owned).collect(),
            }),
        }
    }
}

fn from_json(json: serde_json::Value) -> Option<Value> {
    Some(match json {
        serde_json::Value::Bool(on) => Value::Bool(on),
        serde_json::Value::Number(n) => Value::Int(
            n.as_i64()
                .map(i128::from)
                .or_else(|| n.as_u64().map(i128::from))?,
        ),
        serde_json::Value::String(text) => Value::Text(text),
        serde_json::Value::Array(items) => {
            Value::List(items.into_iter().map(from_json).collect::<Option<_>>()?)
        }
        serde_json::Value::Null | serde_json::Value::Object(_) => return None,
    })
}

/// Splits at single commas; a doubled comma stands for one in the value.
fn split_items(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.peek() != Some(&',') {
            items.push(String::new());
            continue;
        }
        if c == ',' {
            chars.next();
        }
        if let Some(item) = items.last_mut() {
            item.push(c);
        }
    }
    items
}

/// Joins the lines of a doc comment.
#[must_use]
pub fn help(lines: &[&str]) -> String {
    lines
        .iter()
        .map(|line| line.trim())
        .collect::<Vec<_>>()
        .join(" ")
        .trim()
        .to_owned()
}

/// Takes the property `name` out of what was given, or its default.
///
/// # Errors
/// The value is of another type, or missing without a default.
pub fn take<T: Field>(
    spec: &'static str,
    name: &str,
    help: impl FnOnce() -> String,
    given: &mut Properties,
    default: Option<T>,
) -> Result<T, SpecError> {
    match given.remove(name) {
        Some(value) => T::from_value(&value).map_err(|why| SpecError::Bad {
            spec,
            name: name.to_owned(),
            value: value.to_string(),
            why,
        }),
        None => default
            .or_else(T::absent)
            .ok_or_else(|| SpecError::Missing {
                spec,
                name: name.to_owned(),
                help: help(),
            }),
    }
}
