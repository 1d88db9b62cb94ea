use serde::{Deserialize, Serialize};

use crate::chain::ChainState;

/// Name of the state.
pub(super) const KIND: &str = "virtio-blk";
/// Its version.
pub(super) const VERSION: u32 = 2;

/// What a driver can change, and what it was told about the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlkState {
    /// `writeback` of the configuration space.
    pub writeback: bool,
    /// Size of the disk in sectors of 512 bytes: a disk of another size is not the same disk.
    pub capacity: u64,
    /// Bytes of a logical block.
    pub logical_block_size: u32,
    /// Number of request queues.
    pub num_queues: u16,
    /// Requests that failed and are to be made again, by queue. Since version 2.
    #[serde(default)]
    pub kept: Vec<Vec<ChainState>>,
}
