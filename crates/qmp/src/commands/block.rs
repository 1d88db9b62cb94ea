//! qapi/block*.json: disks.

use crate::Empty;

command! {
    /// Tells a disk that its image has another size.
    BlockResize = "block_resize" -> Empty {
        /// The device's name.
        #[serde(default)]
        device: Option<String>,
        /// The node's name.
        #[serde(default)]
        node_name: Option<String>,
        /// New size in bytes.
        size: u64,
    }
}
