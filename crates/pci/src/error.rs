use crate::Bdf;

/// Why a function could not be built or put into its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// The text is no address of the form `[bus:]device.function` in hexadecimal digits.
    #[error("{0:?} is no PCI address: expected [BUS:]DEVICE[.FUNCTION], such as 00:1f.0")]
    BadAddress(String),
    /// The base address register cannot have this size or number.
    #[error("BAR {bar} of {size:#x} bytes is impossible: {why}")]
    BadBar {
        /// Number of the register.
        bar: usize,
        /// Size asked for, in bytes.
        size: u64,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// The capability's list is full, or its two parts do not fit together.
    #[error("capability {id:#x} does not fit into configuration space: {why}")]
    BadCapability {
        /// Capability ID.
        id: u16,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// Another function is there already.
    #[error("PCI address {0} is taken")]
    Taken(Bdf),
    /// Only bus 0 is the root complex's own; other bus numbers are the guest's to give.
    #[error("PCI address {0} is not on the root bus: put the device behind a root port instead")]
    NotRootBus(Bdf),
    /// The root port has a device already.
    #[error("the root port's slot is occupied")]
    SlotOccupied,
    /// The root port has no device.
    #[error("the root port's slot is empty")]
    SlotEmpty,
    /// The guest works on an earlier request.
    #[error("the guest is already releasing the slot's device")]
    UnplugPending,
    /// A bridge behind a root port, which would need buses that no guest reserves.
    #[error("a root port's slot takes endpoints only, not bridges")]
    BridgeInSlot,
}
