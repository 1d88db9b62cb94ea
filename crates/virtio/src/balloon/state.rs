use serde::{Deserialize, Serialize};

/// Kind of the payload.
pub const KIND: &str = "virtio-balloon";
/// Version of the payload.
pub const VERSION: u32 = 1;

/// The balloon's registers. Statistics are not part of it: the guest is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Pages that the host wants in the balloon.
    pub num_pages: u32,
    /// Pages that the guest has put into the balloon.
    pub actual: u32,
    /// What the guest fills free pages with.
    pub poison_val: u32,
    /// Seconds between two requests for statistics; 0 when there are none.
    pub polling_interval: u32,
}
