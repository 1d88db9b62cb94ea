//! Which frames the driver wants (VIRTIO 1.3 sections 5.1.6.5.1 to 5.1.6.5.3).

use serde::{Deserialize, Serialize};

/// Entries of each address table; with more, everything of the kind is let through.
pub(super) const TABLE: usize = 64;
/// VLAN identifiers.
pub(super) const VLANS: u16 = 4096;
/// Bytes of a frame that a decision needs: addresses, type, and the tag.
pub(super) const HEAD: usize = 18;

const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];

/// A card's address.
pub(super) type Address = [u8; 6];

/// What is let through by kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mode {
    pub promiscuous: bool,
    pub all_multicast: bool,
    pub all_unicast: bool,
    pub no_multicast: bool,
    pub no_unicast: bool,
    pub no_broadcast: bool,
}

/// Addresses that are let through.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Table {
    pub addresses: Vec<Address>,
    /// There were more than fit.
    pub overflow: bool,
}

impl Table {
    pub fn new(addresses: Vec<Address>) -> Self {
        if addresses.len() > TABLE {
            return Self {
                addresses: Vec::new(),
                overflow: true,
            };
        }
        Self {
            addresses,
            overflow: false,
        }
    }

    fn has(&self, address: &[u8]) -> bool {
        self.overflow || self.addresses.iter().any(|a| a == address)
    }
}

/// A bit for each VLAN.
pub(super) type Vlans = Box<[u64; VLANS as usize / 64]>;

/// A decision about frames, made of settings that do not change.
pub(super) struct Filter {
    pub mode: Mode,
    pub mac: Address,
    pub unicast: Table,
    pub multicast: Table,
    /// `None`: the driver does not filter VLANs.
    pub vlans: Option<Vlans>,
}

impl Filter {
    /// Whether every frame is let through, whatever it is.
    pub fn is_open(&self) -> bool {
        self.mode.promiscuous
    }

    /// Whether the frame that begins with `head` (at most [`HEAD`] bytes) is let through.
    pub fn accepts(&self, head: &[u8]) -> bool {
        let mode = &self.mode;
        if mode.promiscuous {
            return true;
        }
        let Some(to) = head.get(..6) else {
            return false;
        };
        if let Some(vlans) = &self.vlans
            && head.get(12..14) == Some(&ETHERTYPE_VLAN[..])
            && let Some(&[high, low]) = head.get(14..16)
        {
            let vlan = u16::from_be_bytes([high, low]) % VLANS;
            if vlans[usize::from(vlan / 64)] & 1 << (vlan % 64) == 0 {
                return false;
            }
        }
        if to == [0xff; 6] {
            !mode.no_broadcast
        } else if to[0] & 1 != 0 {
            !mode.no_multicast && (mode.all_multicast || self.multicast.has(to))
        } else {
            !mode.no_unicast && (mode.all_unicast || to == self.mac || self.unicast.has(to))
        }
    }
}
