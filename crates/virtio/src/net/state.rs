use serde::{Deserialize, Serialize};

use super::model::Settings;

/// Name of the state.
pub(super) const KIND: &str = "virtio-net";
/// Its version.
pub(super) const VERSION: u32 = 1;

/// What a driver can change, and what it was told about the card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetState {
    /// Pairs of queues that the card has.
    pub max_queue_pairs: u16,
    /// What the driver, and control, have set.
    pub settings: Settings,
}
