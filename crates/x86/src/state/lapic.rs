//! Local APIC registers.

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The local APIC's register page (SDM vol. 3A 11.4.1): its first 1 KiB, one register at each
/// multiple of 16.
///
/// In x2APIC mode too, as KVM's KVM_GET_LAPIC gives it with KVM_CAP_X2APIC_API: the ID is the full
/// 32 bits at 0x20 then (bits 31:24 in xAPIC mode), ICR's upper half at 0x310.
#[derive(Clone, PartialEq, Eq)]
pub struct LapicState {
    regs: Box<[u8; LapicState::LEN]>,
}

#[expect(missing_docs, reason = "register offsets with the manual's names")]
impl LapicState {
    pub const ID: usize = 0x20;
    pub const VERSION: usize = 0x30;
    pub const TPR: usize = 0x80;
    pub const PPR: usize = 0xa0;
    pub const LDR: usize = 0xd0;
    pub const DFR: usize = 0xe0;
    pub const SVR: usize = 0xf0;
    pub const ISR: usize = 0x100;
    pub const TMR: usize = 0x180;
    pub const IRR: usize = 0x200;
    pub const ESR: usize = 0x280;
    pub const LVT_CMCI: usize = 0x2f0;
    pub const ICR_LOW: usize = 0x300;
    pub const ICR_HIGH: usize = 0x310;
    pub const LVT_TIMER: usize = 0x320;
    pub const LVT_THERMAL: usize = 0x330;
    pub const LVT_PMC: usize = 0x340;
    pub const LVT_LINT0: usize = 0x350;
    pub const LVT_LINT1: usize = 0x360;
    pub const LVT_ERROR: usize = 0x370;
    pub const TIMER_INITIAL: usize = 0x380;
    pub const TIMER_CURRENT: usize = 0x390;
    pub const TIMER_DIVIDE: usize = 0x3e0;
}

impl LapicState {
    /// Length of the page that is kept, bytes.
    pub const LEN: usize = 1024;
    /// Mask bit of every LVT register.
    pub const LVT_MASKED: u32 = 1 << 16;

    /// State after power-on in xAPIC mode (SDM vol. 3A 11.4.7.1): all LVT entries masked, software
    /// disabled. IDs above 255 exist in x2APIC mode only and show their low 8 bits.
    pub fn reset(apic_id: u32) -> Self {
        let mut state = LapicState {
            regs: Box::new([0; Self::LEN]),
        };
        state.set(Self::ID, apic_id << 24);
        // Six LVT entries, an integrated APIC.
        state.set(Self::VERSION, 0x0005_0014);
        state.set(Self::DFR, 0xffff_ffff);
        state.set(Self::SVR, 0xff);
        for offset in [
            Self::LVT_TIMER,
            Self::LVT_THERMAL,
            Self::LVT_PMC,
            Self::LVT_LINT0,
            Self::LVT_LINT1,
            Self::LVT_ERROR,
        ] {
            state.set(offset, Self::LVT_MASKED);
        }
        state
    }

    /// From the bytes of the page.
    pub fn from_bytes(regs: [u8; Self::LEN]) -> Self {
        LapicState {
            regs: Box::new(regs),
        }
    }

    /// The bytes of the page.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.regs
    }

    /// The register at this offset; zero beyond the page.
    pub fn get(&self, offset: usize) -> u32 {
        match self.regs.get(offset..).and_then(|r| r.first_chunk()) {
            Some(bytes) => u32::from_le_bytes(*bytes),
            None => 0,
        }
    }

    /// Sets the register at this offset; beyond the page nothing happens.
    pub fn set(&mut self, offset: usize, value: u32) {
        if let Some(bytes) = self
            .regs
            .get_mut(offset..)
            .and_then(|r| r.first_chunk_mut())
        {
            *bytes = value.to_le_bytes();
        }
    }
}

impl fmt::Debug for LapicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A thousand zeros help nobody: show the registers that hold something.
        f.debug_map()
            .entries(
                (0..Self::LEN)
                    .step_by(16)
                    .map(|offset| (format!("{offset:#x}"), self.get(offset)))
                    .filter(|(_, value)| *value != 0)
                    .map(|(offset, value)| (offset, format!("{value:#x}"))),
            )
            .finish()
    }
}

impl Serialize for LapicState {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        crate::bytes::serialize(self.regs.as_slice(), out)
    }
}

impl<'de> Deserialize<'de> for LapicState {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let bytes = crate::bytes::deserialize(input)?;
        let regs = bytes
            .try_into()
            .map_err(|b: Vec<u8>| D::Error::invalid_length(b.len(), &"1024 bytes"))?;
        Ok(LapicState { regs })
    }
}
