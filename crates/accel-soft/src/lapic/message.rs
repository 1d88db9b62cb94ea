//! Interrupt messages and whom they reach (SDM vol. 3A 11.6.2, 11.11, 11.12.10).

use bus::MsiMessage;

/// What a message does to the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// An interrupt for each target.
    Fixed,
    /// An interrupt for one of the targets.
    LowestPriority,
    /// System management, which these processors do not have.
    Smi,
    Nmi,
    Init,
    StartUp,
    /// As the PIC's.
    External,
}

impl Delivery {
    fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::External,
            _ => return None,
        })
    }
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The sender.
    Myself,
    /// Everybody.
    All,
    /// Everybody but the sender.
    Others,
    /// The APIC with this ID.
    Physical(u32),
    /// The APICs with these logical IDs.
    Logical(u32),
    /// Nobody: the message makes no sense.
    Nobody,
}

/// An interrupt message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) vector: u8,
    pub(crate) delivery: Delivery,
    /// Level-triggered: its end is told to the I/O APIC.
    pub(crate) level: bool,
    pub(crate) target: Target,
}

impl Message {
    /// What a write of the interrupt command register sends.
    pub(super) fn from_icr(low: u32, destination: u32) -> Self {
        let delivery = Delivery::from_bits(low >> 8);
        let level = low & 1 << 15 != 0;
        let asserted = low & 1 << 14 != 0;
        // An INIT level de-assert only synchronized arbitration IDs, long ago.
        let deassert = delivery == Some(Delivery::Init) && level && !asserted;
        let target = match (low >> 18 & 3, deassert || delivery.is_none()) {
            (_, true) => Target::Nobody,
            (1, _) => Target::Myself,
            (2, _) => Target::All,
            (3, _) => Target::Others,
            _ if low & 1 << 11 != 0 => Target::Logical(destination),
            _ => Target::Physical(destination),
        };
        Self {
            vector: low as u8,
            delivery: delivery.unwrap_or(Delivery::Fixed),
            // Interprocessor interrupts are edge-triggered.
            level: false,
            target,
        }
    }

    /// What a message-signalled interrupt sends. The destination's bits 8 to 14 are in the
    /// address' bits 5 to 11 (KVM_FEATURE_MSI_EXT_DEST_ID), or 8 to 31 in its upper half.
    pub(crate) fn from_msi(message: MsiMessage) -> Self {
        let low = message.address as u32;
        let destination =
            low >> 12 & 0xff | (low >> 5 & 0x7f) << 8 | (message.address >> 32) as u32 & !0xff;
        let logical = low & 1 << 2 != 0;
        let redirected = low & 1 << 3 != 0;
        let delivery = Delivery::from_bits(message.data >> 8);
        Self {
            vector: message.data as u8,
            delivery: match delivery {
                // The redirection hint lets the chip set choose (SDM vol. 3A 11.11.1).
                Some(Delivery::Fixed) if redirected && logical => Delivery::LowestPriority,
                other => other.unwrap_or(Delivery::Fixed),
            },
            level: message.data & 1 << 15 != 0,
            target: match (delivery, logical) {
                (None, _) => Target::Nobody,
                (_, true) => Target::Logical(destination),
                (_, false) => Target::Physical(destination),
            },
        }
    }
}

/// What of an APIC decides whether a message is for it. Fits into one word, so that senders on
/// other threads need no lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) enabled: bool,
    pub(crate) x2apic: bool,
    /// Flat model of logical IDs rather than the cluster model.
    pub(crate) flat: bool,
    /// 32 bits in x2APIC mode, 8 otherwise.
    pub(crate) id: u32,
    /// Logical ID outside of x2APIC mode.
    pub(crate) logical: u8,
}

impl Address {
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.id)
            | u64::from(self.logical) << 32
            | u64::from(self.enabled) << 40
            | u64::from(self.x2apic) << 41
            | u64::from(self.flat) << 42
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self {
            id: bits as u32,
            logical: (bits >> 32) as u8,
            enabled: bits >> 40 & 1 != 0,
            x2apic: bits >> 41 & 1 != 0,
            flat: bits >> 42 & 1 != 0,
        }
    }

    /// Whether the message is for this APIC; `sender` says whether it is its own.
    pub(crate) fn matches(&self, target: Target, sender: bool) -> bool {
        self.enabled
            && match target {
                Target::Nobody => false,
                Target::Myself => sender,
                Target::All => true,
                Target::Others => !sender,
                Target::Physical(id) => self.has_id(id),
                Target::Logical(ids) => self.has_logical(ids),
            }
    }

    fn has_id(&self, id: u32) -> bool {
        match self.x2apic {
            true => id == self.id || id == u32::MAX,
            false => id == self.id || id == 0xff || id == u32::MAX,
        }
    }

    fn has_logical(&self, ids: u32) -> bool {
        if ids == u32::MAX {
            return true;
        }
        if self.x2apic {
            return self.id >> 4 == ids >> 16 && ids >> (self.id & 0xf) & 1 != 0;
        }
        let Ok(ids) = u8::try_from(ids) else {
            return false;
        };
        match self.flat {
            true => ids & self.logical != 0,
            false => ids == 0xff || ids >> 4 == self.logical >> 4 && ids & self.logical & 0xf != 0,
        }
    }
}
