//! A description as a configuration file.

use machine::{common_properties, sections};
use spec::{Properties, Property, Value};

use super::said::{Said, own_sections};

/// A configuration that says the same as the command line did. Devices stand in one list, so
/// that they keep their order, by which they get their slots.
pub(super) fn toml(said: &Said) -> String {
    let mut text = String::new();
    for section in own_sections() {
        let header = format!("[{}]", section.name);
        for (_, given) in said.own().filter(|(name, _)| *name == section.name) {
            table(&mut text, &header, given, &section.properties);
        }
    }
    for section in sections() {
        let header = match section.repeats {
            true => format!("[[{}]]", section.name),
            false => format!("[{}]", section.name),
        };
        let here = said
            .description
            .said()
            .filter(|(name, _)| *name == section.name);
        for (_, given) in here {
            table(&mut text, &header, given, &(section.properties)());
        }
    }
    for device in &said.description.devices {
        let mut known = (device.device.properties)();
        known.extend(common_properties(device.device.place));
        let header = format!("[[device]]\ntype = {}", quoted(device.device.name));
        table(&mut text, &header, &device.properties, &known);
    }
    text
}

fn table(text: &mut String, header: &str, given: &Properties, known: &[Property]) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(header);
    text.push('\n');
    for (name, value) in given.iter() {
        let kind = known
            .iter()
            .find(|p| p.name == name)
            .map_or("text", |p| &p.kind);
        text.push_str(&format!("{name} = {}\n", written(value, kind)));
    }
}

/// A value in TOML; what the command line gave as text gets the type of its property.
fn written(value: &Value, kind: &str) -> String {
    let kind = kind.split(" (").next().unwrap_or(kind);
    match value {
        Value::Bool(on) => on.to_string(),
        Value::Int(number) => number.to_string(),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(|item| written(item, kind)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Text(text) => match (kind, text.as_str()) {
            ("on|off", "on" | "yes" | "true") => "true".into(),
            ("on|off", "off" | "no" | "false") => "false".into(),
            ("integer", text)
                if text
                    .parse::<i64>()
                    .is_ok_and(|number| number.to_string() == text) =>
            {
                text.to_owned()
            }
            (_, text) => quoted(text),
        },
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
