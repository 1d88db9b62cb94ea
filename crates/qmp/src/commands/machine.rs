//! qapi/machine.json: processors and memory.

use serde::Serialize;

use crate::Empty;

/// Where a processor is in the topology (CpuInstanceProperties).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuInstanceProperties {
    /// Socket.
    pub socket_id: u32,
    /// Core within the socket.
    pub core_id: u32,
    /// Thread within the core.
    pub thread_id: u32,
}

/// One of `query-cpus-fast`' return (CpuInfoFast).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuInfoFast {
    /// Index.
    pub cpu_index: u32,
    /// Path of the object.
    pub qom_path: String,
    /// The kernel's number of its thread.
    pub thread_id: i64,
    /// Place in the topology.
    pub props: CpuInstanceProperties,
    /// Always x86_64.
    pub target: &'static str,
}

/// Return of `query-kvm` (KvmInfo).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KvmInfo {
    /// In use.
    pub enabled: bool,
    /// Known to the program.
    pub present: bool,
}

/// Return of `query-uuid` (UuidInfo).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub struct UuidInfo {
    /// The machine's UUID.
    pub uuid: String,
}

/// Return of `query-balloon` (BalloonInfo).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BalloonInfo {
    /// The guest's memory without the balloon, in bytes.
    pub actual: u64,
}

/// Return of `query-memory-size-summary` (MemoryInfo).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryInfo {
    /// Memory that the machine began with, in bytes.
    pub base_memory: u64,
    /// Memory that was plugged in later, in bytes.
    pub plugged_memory: u64,
}

command! {
    /// Asks for the processors, without stopping them.
    QueryCpusFast = "query-cpus-fast" -> Vec<CpuInfoFast>
}
command! {
    /// Asks whether KVM is in use.
    QueryKvm = "query-kvm" -> KvmInfo
}
command! {
    /// Asks for the machine's UUID.
    QueryUuid = "query-uuid" -> UuidInfo
}
command! {
    /// Asks for the size of memory.
    QueryMemorySizeSummary = "query-memory-size-summary" -> MemoryInfo
}
command! {
    /// Asks for the balloon's size.
    QueryBalloon = "query-balloon" -> BalloonInfo
}
command! {
    /// Asks the guest to give memory back until it has `value` bytes.
    Balloon = "balloon" -> Empty {
        /// Target size of the guest's memory in bytes.
        value: u64,
    }
}
