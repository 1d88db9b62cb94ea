use serde::{Deserialize, Serialize};

/// Name of the state.
pub const KIND: &str = "virtio-console";
/// Its version.
pub const VERSION: u32 = 1;

/// What driver and device have told each other, and what is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Width in characters; 0 when not known.
    pub cols: u16,
    /// Height in characters; 0 when not known.
    pub rows: u16,
    /// `max_nr_ports` of the configuration space.
    pub max_nr_ports: u32,
    /// The driver sent DEVICE_READY.
    pub driver_ready: bool,
    /// Ports of whose removal the driver was not told yet.
    pub removals: Vec<u32>,
    /// The ports that are plugged in.
    pub ports: Vec<PortState>,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// Its number.
    pub id: u32,
    /// Its name; the console has none.
    pub name: Option<String>,
    /// What driver and device said about it.
    pub talk: Talk,
    /// Input that waits for the driver's buffers.
    pub input: Vec<u8>,
    /// Output that the driver had sent and the host had not taken.
    pub output: Vec<u8>,
}

/// What driver and device said about one port, and what the device is still to say.
///
/// What is to be said is a flag for each message and not a list of messages, so that a driver
/// that asks much and reads nothing costs no memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Talk {
    /// The driver sent PORT_READY.
    pub ready: bool,
    /// The driver's last PORT_OPEN: a program in the guest has the port open.
    pub guest_open: bool,
    /// The device's last PORT_OPEN.
    pub told_open: bool,
    /// The host's side was closed since, maybe only for a moment: the driver is to be told of
    /// that before it is told of the next opening.
    pub lapsed: bool,
    /// DEVICE_ADD is to be sent.
    pub add: bool,
    /// CONSOLE_PORT or PORT_NAME is to be sent.
    pub describe: bool,
    /// RESIZE is to be sent.
    pub resize: bool,
}
