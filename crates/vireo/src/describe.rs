//! Properties as help shows them.

use machine::{DeviceType, Place, Section};
use spec::Property;

use crate::output::{TIED, WIDTH, wrap};

/// Each property on a line of its own with its type, and under it what it does and its default.
pub(crate) fn properties(list: &[Property], indent: usize) -> String {
    let mut text = String::new();
    let (margin, inner) = (" ".repeat(indent), " ".repeat(indent + 4));
    for property in list {
        text.push_str(&format!("{margin}{}={}\n", property.name, property.kind));
        for line in wrap(&explanation(property), WIDTH - indent - 4) {
            text.push_str(&format!("{inner}{line}\n"));
        }
    }
    text
}

fn explanation(property: &Property) -> String {
    let note = match &property.default {
        Some(default) if default.is_empty() => "[default: empty]".to_owned(),
        Some(default) => format!("[default: {default}]"),
        None if property.required => "[must be given]".to_owned(),
        None => return property.help.clone(),
    };
    format!("{} {}", property.help, note.replace(' ', &TIED.to_string()))
}

/// A section of the machine's own.
pub(crate) fn section(section: &Section) -> String {
    format!(
        "{}\n{}",
        section.help,
        properties(&(section.properties)(), 2)
    )
}

/// A device type with its properties, and those that it has by its place.
pub(crate) fn device(device: &DeviceType) -> String {
    let option = device
        .shorthand
        .map(|s| format!(", --{s}"))
        .unwrap_or_default();
    let own = (device.properties)();
    let mut text = format!(
        "{}{option}: {}\n{}",
        device.name,
        device.help,
        properties(&own, 2)
    );
    let common = common(device);
    if !common.is_empty() {
        text.push_str(&format!(
            "as every {}:\n{}",
            place(device.place),
            properties(&common, 2)
        ));
    }
    text
}

/// What a device has by its place, without what it has itself.
pub(crate) fn common(device: &DeviceType) -> Vec<Property> {
    let own = (device.properties)();
    let mut common = machine::common_properties(device.place);
    common.retain(|property| own.iter().all(|o| o.name != property.name));
    common
}

/// What devices of a place are called.
pub(crate) fn place(place: Place) -> &'static str {
    match place {
        Place::Virtio => "virtio device",
        Place::Pci => "PCI device",
        Place::Isa => "ISA device",
    }
}
