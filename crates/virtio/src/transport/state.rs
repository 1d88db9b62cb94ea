use pci::EndpointState;
use serde::{Deserialize, Serialize};
use state::Payload;

use super::common::CommonState;
use crate::queue::QueueState;

/// Kind of the payload.
pub const KIND: &str = "virtio-pci";
/// Version of the payload.
pub const VERSION: u32 = 1;

/// The state of a virtio function: transport, queues and device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Configuration space, MSI-X and INTx.
    pub endpoint: EndpointState,
    /// The common configuration structure.
    pub common: CommonState,
    /// The ISR status register.
    pub isr: u8,
    /// The configuration generation.
    pub generation: u8,
    /// Whether the device showed DEVICE_NEEDS_RESET.
    pub needs_reset: bool,
    /// Where the running queues stopped; `None` for those that did not run.
    pub queues: Vec<Option<QueueState>>,
    /// The device's own state.
    pub device: Payload,
}
