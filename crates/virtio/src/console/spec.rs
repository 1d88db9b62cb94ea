use std::fmt;
use std::str::FromStr;

use chardev::Target;
use spec::{Field, Value};

/// The guest makes a file of the name (`/dev/virtio-ports/NAME`): no longer than a file's.
const MAX_NAME: usize = 255;

// QEMU and libvirt know the device by this name; its `virtconsole` is `to`, and its
// `virtserialport` is `port`.
spec::spec! {
    /// A console (hvc0 in the guest), and named channels between guest and host.
    pub struct ConsoleSpec("virtio-serial-pci") {
        /// Where the console's bytes come from and go to; no console, only named ports, when not
        /// given.
        to: Option<Target>,
        /// A named port, which the guest sees as /dev/virtio-ports/NAME, for example
        /// org.qemu.guest_agent.0@unix:/run/vm/agent.sock.
        port: Vec<PortSpec>,
        /// Width of the console in characters; the guest's own idea when not given.
        cols: Option<u16>,
        /// Height of the console in characters.
        rows: Option<u16>,
        /// Number of ports, with the console's and those that are plugged in later; as many as
        /// there are now when not given.
        max_ports: Option<u16>,
        /// Name of the I/O thread that serves the device.
        iothread: Option<String>,
    }
}

/// A named port: `NAME@TARGET`. The name ends at the first `@`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// What the guest knows it by.
    pub name: String,
    /// Where its bytes come from and go to.
    pub to: Target,
}

/// Whether the guest can make a file of `name`.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let bad = |c: char| c == '/' || c == '@' || c.is_control() || c.is_whitespace();
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!(
            "a port's name is between 1 and {MAX_NAME} bytes long"
        ));
    }
    match name.chars().find(|c| bad(*c)) {
        Some(c) => Err(format!("a port's name cannot have {c:?} in it")),
        None => Ok(()),
    }
}

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, to) = text.split_once('@').ok_or(
            "expected NAME@TARGET, for example org.qemu.guest_agent.0@unix:/run/vm/agent.sock",
        )?;
        check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            to: to.parse()?,
        })
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.to)
    }
}

impl Field for PortSpec {
    fn kind() -> String {
        format!("NAME@{}", Target::kind())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        value.to_string().parse()
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Text(self.to_string()))
    }
}
