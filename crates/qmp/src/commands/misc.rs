//! qapi/control.json and qapi/misc.json: the program itself.

use serde::Serialize;

/// Three numbers (VersionTriple).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionTriple {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Micro.
    pub micro: u32,
}

/// Return of `query-version` (VersionInfo).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionInfo {
    /// The version of QEMU whose interface this is: what clients compare with.
    pub qemu: VersionTriple,
    /// The program and its own version.
    pub package: String,
}

/// One of `query-commands`' return (CommandInfo).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandInfo {
    /// Name.
    pub name: String,
}

/// Return of `query-name` (NameInfo).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NameInfo {
    /// The machine's name.
    pub name: String,
}

/// One of `query-iothreads`' return (IOThreadInfo).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct IoThreadInfo {
    /// Name.
    pub id: String,
    /// The kernel's number of the thread.
    pub thread_id: i64,
    /// Longest time to poll, in nanoseconds.
    pub poll_max_ns: i64,
    /// Factor by which the polling time grows; 0: the program's own.
    pub poll_grow: i64,
    /// Factor by which it shrinks; 0: the program's own.
    pub poll_shrink: i64,
    /// Largest batch of requests; 0: no limit but the ring's.
    pub aio_max_batch: i64,
}

command! {
    /// Asks for the version.
    QueryVersion = "query-version" -> VersionInfo
}
command! {
    /// Asks which commands there are.
    QueryCommands = "query-commands" -> Vec<CommandInfo>
}
command! {
    /// Asks for the machine's name.
    QueryName = "query-name" -> NameInfo
}
command! {
    /// Asks for the I/O threads.
    QueryIothreads = "query-iothreads" -> Vec<IoThreadInfo>
}

/// One of `x-query-device-states`' return. Not QEMU's: for people who debug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceState {
    /// Name of the part.
    pub id: String,
    /// Its state as text: kind, version, and every field by name.
    pub state: String,
}

command! {
    /// Asks for the state of every device, as it would be saved.
    QueryDeviceStates = "x-query-device-states" -> Vec<DeviceState>
}
