use serde::{Deserialize, Serialize};

/// Kind of the payload.
pub const KIND: &str = "fw-cfg";
/// Version of the payload.
pub const VERSION: u32 = 1;

/// What the guest has done. The items themselves come from the machine's configuration, except
/// what the guest wrote into the writable ones.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Selected key.
    pub selected: u16,
    /// Offset of the next byte in the selected item.
    pub offset: u32,
    /// Upper half of the DMA address.
    pub dma_high: u32,
    /// Name and content of each writable file.
    pub written: Vec<(String, Vec<u8>)>,
}
