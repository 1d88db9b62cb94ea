//! The device as the driver sees it: features, configuration space, and what a control command
//! means. No memory, descriptor or thread.

use std::collections::BTreeSet;

use ::net::Offloads;
use serde::{Deserialize, Serialize};
use zerocopy::{Immutable, IntoBytes, little_endian as le};

use super::filter::{Address, Filter, Mode, TABLE, Table, VLANS};

/// Feature bits (VIRTIO 1.3 section 5.1.3).
pub(super) mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const CTRL_VLAN: u64 = 1 << 19;
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const MQ: u64 = 1 << 22;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
    pub const SPEED_DUPLEX: u64 = 1 << 63;

    /// What CTRL_GUEST_OFFLOADS is about (section 5.1.6.5.6.1).
    pub const GUEST_OFFLOADS: u64 =
        GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
}

/// Classes and commands of the control queue (VIRTIO 1.3 section 5.1.6.5).
mod class {
    pub const RX: u8 = 0;
    pub const MAC: u8 = 1;
    pub const VLAN: u8 = 2;
    pub const ANNOUNCE: u8 = 3;
    pub const MQ: u8 = 4;
    pub const GUEST_OFFLOADS: u8 = 5;
}

/// Bits of the status field.
const STATUS_LINK_UP: u16 = 1;
const STATUS_ANNOUNCE: u16 = 2;

const DUPLEX_FULL: u8 = 1;
/// Speed and duplex that are not known.
const UNKNOWN: u32 = u32::MAX;

/// struct virtio_net_config (VIRTIO 1.3 section 5.1.4), as far as our features reach.
#[derive(Debug, Clone, IntoBytes, Immutable)]
#[repr(C, packed)]
struct Config {
    mac: Address,
    status: le::U16,
    max_virtqueue_pairs: le::U16,
    mtu: le::U16,
    speed: le::U32,
    duplex: u8,
}

/// What does not change while the device lives.
#[derive(Debug, Clone)]
pub(super) struct Model {
    /// The address after a reset.
    pub mac: Address,
    /// Bytes; `None`: the driver is not told.
    pub mtu: Option<u16>,
    /// Mbit/s; `None`: the driver is not told.
    pub speed: Option<u32>,
    pub queue_pairs: u16,
    pub queue_size: u16,
    pub offloads: Offloads,
}

/// What the driver and control can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    pub mac: Address,
    pub link_up: bool,
    /// The driver is asked to tell the network where it is.
    pub announce: bool,
    /// Pairs that the driver uses.
    pub queue_pairs: u16,
    /// What of the negotiated guest offloads the driver has left on, as feature bits; `None`:
    /// everything.
    pub guest_offloads: Option<u64>,
    pub mode: Mode,
    pub unicast: Table,
    pub multicast: Table,
    pub vlans: BTreeSet<u16>,
}

/// What a control command means for the rest of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing beyond the settings.
    Settings,
    /// The back end's offloads change.
    Offloads,
    /// The back end's queue pairs change.
    QueuePairs,
}

impl Model {
    pub fn features(&self) -> u64 {
        let mut features = feature::MAC
            | feature::MRG_RXBUF
            | feature::STATUS
            | feature::CTRL_VQ
            | feature::CTRL_RX
            | feature::CTRL_RX_EXTRA
            | feature::CTRL_VLAN
            | feature::CTRL_MAC_ADDR
            | feature::GUEST_ANNOUNCE;
        let Offloads {
            csum,
            tso4,
            tso6,
            ecn,
            uso,
        } = self.offloads;
        for (on, bits) in [
            (
                csum,
                feature::CSUM | feature::GUEST_CSUM | feature::CTRL_GUEST_OFFLOADS,
            ),
            (csum && tso4, feature::HOST_TSO4 | feature::GUEST_TSO4),
            (csum && tso6, feature::HOST_TSO6 | feature::GUEST_TSO6),
            (csum && ecn, feature::HOST_ECN | feature::GUEST_ECN),
            (
                csum && uso,
                feature::HOST_USO | feature::GUEST_USO4 | feature::GUEST_USO6,
            ),
            (self.mtu.is_some(), feature::MTU),
            (self.speed.is_some(), feature::SPEED_DUPLEX),
            (self.queue_pairs > 1, feature::MQ),
        ] {
            if on {
                features |= bits;
            }
        }
        features
    }

    pub fn config_read(&self, settings: &Settings, offset: u64, data: &mut [u8]) {
        let mut status = 0;
        if settings.link_up {
            status |= STATUS_LINK_UP;
        }
        if settings.announce {
            status |= STATUS_ANNOUNCE;
        }
        let config = Config {
            mac: settings.mac,
            status: status.into(),
            max_virtqueue_pairs: self.queue_pairs.into(),
            mtu: self.mtu.unwrap_or(0).into(),
            speed: self.speed.unwrap_or(UNKNOWN).into(),
            duplex: self.speed.map_or(UNKNOWN as u8, |_| DUPLEX_FULL),
        };
        data.fill(0);
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.as_bytes().get(offset..));
        for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *to = *from;
        }
    }
}

impl Settings {
    /// After a reset.
    pub fn new(model: &Model) -> Self {
        Self {
            mac: model.mac,
            link_up: true,
            announce: false,
            queue_pairs: 1,
            guest_offloads: None,
            // A driver that knows no filters gets everything.
            mode: Mode {
                promiscuous: true,
                all_multicast: false,
                all_unicast: false,
                no_multicast: false,
                no_unicast: false,
                no_broadcast: false,
            },
            unicast: Table::default(),
            multicast: Table::default(),
            vlans: BTreeSet::new(),
        }
    }

    /// Whether a device of `model` can have been set like this; otherwise why not.
    pub fn check(&self, model: &Model) -> Result<(), String> {
        if !(1..=model.queue_pairs).contains(&self.queue_pairs) {
            return Err(format!("{} pairs of queues are in use", self.queue_pairs));
        }
        if self.unicast.addresses.len() > TABLE || self.multicast.addresses.len() > TABLE {
            return Err("an address table is too long".into());
        }
        match self.vlans.last() {
            Some(&vlan) if vlan >= VLANS => Err(format!("there is no VLAN {vlan}")),
            _ => Ok(()),
        }
    }

    /// What frames towards the guest may leave undone, once `features` are negotiated.
    pub fn offloads(&self, features: u64) -> Offloads {
        let on = features & self.guest_offloads.unwrap_or(u64::MAX);
        let has = |bits| on & bits == bits;
        let csum = has(feature::GUEST_CSUM);
        Offloads {
            csum,
            tso4: csum && has(feature::GUEST_TSO4),
            tso6: csum && has(feature::GUEST_TSO6),
            ecn: csum && has(feature::GUEST_ECN),
            uso: csum && has(feature::GUEST_USO4 | feature::GUEST_USO6),
        }
    }

    /// The filter of a driver that has negotiated `features`.
    pub fn filter(&self, features: u64) -> Filter {
        let vlans = (features & feature::CTRL_VLAN != 0).then(|| {
            let mut bits = Box::new([0; VLANS as usize / 64]);
            for vlan in self.vlans.iter().filter(|vlan| **vlan < VLANS) {
                bits[usize::from(vlan / 64)] |= 1 << (vlan % 64);
            }
            bits
        });
        Filter {
            mode: self.mode.clone(),
            mac: self.mac,
            unicast: self.unicast.clone(),
            multicast: self.multicast.clone(),
            vlans,
        }
    }

    /// What the settings become by a command; `None` when it is refused. `data` is what follows
    /// class and command.
    pub fn command(
        &self,
        features: u64,
        max_queue_pairs: u16,
        [class, command]: [u8; 2],
        data: &[u8],
    ) -> Option<(Self, Effect)> {
        let wanted = match (class, command) {
            (class::RX, 0..=1) => feature::CTRL_RX,
            (class::RX, 2..=5) => feature::CTRL_RX_EXTRA,
            (class::MAC, 0) => feature::CTRL_RX,
            (class::MAC, 1) => feature::CTRL_MAC_ADDR,
            (class::VLAN, 0..=1) => feature::CTRL_VLAN,
            (class::ANNOUNCE, 0) => feature::GUEST_ANNOUNCE,
            (class::MQ, 0) => feature::MQ,
            (class::GUEST_OFFLOADS, 0) => feature::CTRL_GUEST_OFFLOADS,
            _ => return None,
        };
        if features & wanted == 0 {
            return None;
        }
        let mut next = self.clone();
        let effect = match (class, command) {
            (class::RX, _) => {
                let on = match data {
                    [on] => *on != 0,
                    _ => return None,
                };
                let mode = &mut next.mode;
                *match command {
                    0 => &mut mode.promiscuous,
                    1 => &mut mode.all_multicast,
                    2 => &mut mode.all_unicast,
                    3 => &mut mode.no_multicast,
                    4 => &mut mode.no_unicast,
                    _ => &mut mode.no_broadcast,
                } = on;
                Effect::Settings
            }
            (class::MAC, 0) => {
                let (unicast, rest) = addresses(data)?;
                let (multicast, rest) = addresses(rest)?;
                if !rest.is_empty() {
                    return None;
                }
                (next.unicast, next.multicast) = (Table::new(unicast), Table::new(multicast));
                Effect::Settings
            }
            (class::MAC, _) => {
                next.mac = data.try_into().ok()?;
                Effect::Settings
            }
            (class::VLAN, _) => {
                let vlan = u16::from_le_bytes(data.try_into().ok()?);
                if vlan >= VLANS {
                    return None;
                }
                if command == 0 {
                    next.vlans.insert(vlan);
                } else {
                    next.vlans.remove(&vlan);
                }
                Effect::Settings
            }
            (class::ANNOUNCE, _) => {
                next.announce = false;
                Effect::Settings
            }
            (class::MQ, _) => {
                next.queue_pairs = u16::from_le_bytes(data.try_into().ok()?);
                if !(1..=max_queue_pairs).contains(&next.queue_pairs) {
                    return None;
                }
                Effect::QueuePairs
            }
            _ => {
                let on = u64::from_le_bytes(data.try_into().ok()?);
                if on & !(features & feature::GUEST_OFFLOADS) != 0 {
                    return None;
                }
                next.guest_offloads = Some(on);
                Effect::Offloads
            }
        };
        Some((next, effect))
    }
}

/// struct virtio_net_ctrl_mac: a number and so many addresses. Returns also what follows.
fn addresses(data: &[u8]) -> Option<(Vec<Address>, &[u8])> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*count))
        .ok()?
        .checked_mul(size_of::<Address>())?;
    let (table, rest) = rest.split_at_checked(len)?;
    let (table, []) = table.as_chunks() else {
        return None;
    };
    Some((table.to_vec(), rest))
}
