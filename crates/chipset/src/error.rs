/// Why a device could not be set up as asked.
#[derive(Debug, thiserror::Error)]
pub enum ChipsetError {
    /// A fw_cfg file name is empty, longer than 55 bytes or holds a NUL.
    #[error("fw_cfg file name {0:?} must have 1 to 55 bytes and no NUL")]
    FileName(String),
    /// A fw_cfg file of that name is there already.
    #[error("fw_cfg has a file {0:?} already")]
    FileExists(String),
    /// fw_cfg has no room for another file.
    #[error("fw_cfg holds at most {limit} files; {name:?} is one too many")]
    TooManyFiles {
        /// The file that did not fit.
        name: String,
        /// The limit.
        limit: usize,
    },
    /// An item is larger than a 32-bit size can say.
    #[error("fw_cfg item {name:?} of {size} bytes is larger than {limit} bytes")]
    ItemTooLarge {
        /// The item.
        name: String,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A numeric fw_cfg key is reserved or out of range.
    #[error(
        "fw_cfg key {0:#x} cannot be set: free are 0x02 to 0x18, 0x1a to 0x1f and 0x8000 to 0x801f"
    )]
    Key(u16),
    /// No fw_cfg file of that name.
    #[error("fw_cfg has no file {0:?}")]
    NoFile(String),
    /// A guest gave an address at which no memory is.
    #[error("no guest memory at {address:#x}, {length} bytes")]
    GuestAddress {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        length: usize,
    },
    /// isa-debug-exit at ports that do not exist.
    #[error("isa-debug-exit at {base:#x}: the size {size} must be 1, 2 or 4, and end by 0xffff")]
    DebugExitPorts {
        /// First port.
        base: u16,
        /// Number of ports.
        size: u16,
    },
}
