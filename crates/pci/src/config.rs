use bus::{Range, Space};
use serde::{Deserialize, Serialize};
use state::StateError;

use crate::regs::*;

mod build;
pub use build::{BarKind, ConfigBuilder, Express, Identity, MsixLayout};

/// Size of configuration space of a function without PCI Express capability.
const CONVENTIONAL_SIZE: u16 = 0x100;
/// Size of configuration space of a PCI Express function.
const EXPRESS_SIZE: u16 = 0x1000;

/// The configuration space of one function: what its registers hold, which bits software can
/// write or clear, and what a write means. It is made by a [`ConfigBuilder`].
///
/// ```text
///   write d:  value = (value & !write | d & write) & !(d & clear)
/// ```
///
/// Beyond the registers in use it reads as zero, beyond its size (256 bytes, 4096 with a PCI
/// Express capability) as all ones.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    value: Vec<u8>,
    /// Value after power-on.
    initial: Vec<u8>,
    /// Bits that software writes.
    write: Vec<u8>,
    /// Bits that software clears by writing 1.
    clear: Vec<u8>,
    /// Bits that the function itself changes: neither software's nor fixed.
    status: Vec<u8>,
    bars: [Option<Bar>; 6],
    size: u16,
    msix: Option<(u16, MsixLayout)>,
    express: Option<u16>,
    flr: bool,
}

/// A base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bar {
    kind: BarKind,
    size: u64,
}

/// What a write to configuration space changed, beyond the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effects {
    /// A BAR is now decoded elsewhere, or no longer.
    pub decode: bool,
    /// Bus Master Enable changed.
    pub bus_master: bool,
    /// Interrupt Disable changed.
    pub intx: bool,
    /// MSI-X Enable or Function Mask changed.
    pub msix: bool,
    /// Software asked for a Function Level Reset.
    pub function_reset: bool,
}

/// The registers of a [`ConfigSpace`], to be saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// The bytes from offset 0 up to the last register in use.
    pub registers: Vec<u8>,
}

impl ConfigSpace {
    /// Reads `data.len()` bytes at `offset`.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = usize::from(offset).saturating_add(i);
            *byte = match self.value.get(at) {
                Some(value) => *value,
                None if at < usize::from(self.size) => 0,
                None => 0xff,
            };
        }
    }

    /// Writes `data` at `offset` as software does.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Effects {
        let command = self.u16(COMMAND);
        let ranges = self.bar_ranges();
        let msix = self.msix_control();
        for (i, byte) in data.iter().enumerate() {
            let at = usize::from(offset).saturating_add(i);
            if at >= self.value.len() {
                break;
            }
            let kept = self.value[at] & !self.write[at];
            self.value[at] = (kept | byte & self.write[at]) & !(byte & self.clear[at]);
        }
        let changed = command ^ self.u16(COMMAND);
        Effects {
            decode: ranges != self.bar_ranges(),
            bus_master: changed & COMMAND_BUS_MASTER != 0,
            intx: changed & COMMAND_INTX_DISABLE != 0,
            msix: msix != self.msix_control(),
            function_reset: self.asks_for_reset(offset, data),
        }
    }

    /// Device Control bit 15, Initiate Function Level Reset, which reads as 0
    /// (PCI Express 4.0 section 7.5.3.4).
    fn asks_for_reset(&self, offset: u16, data: &[u8]) -> bool {
        let Some(at) = self.express.filter(|_| self.flr) else {
            return false;
        };
        usize::from(at + 9)
            .checked_sub(usize::from(offset))
            .and_then(|i| data.get(i))
            .is_some_and(|byte| byte & 0x80 != 0)
    }

    /// The 8-bit register at `offset`; 0 where none is.
    #[must_use]
    pub fn u8(&self, offset: u16) -> u8 {
        self.value.get(usize::from(offset)).copied().unwrap_or(0)
    }

    /// The little-endian 16-bit register at `offset`.
    #[must_use]
    pub fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.u8(offset), self.u8(offset.saturating_add(1))])
    }

    /// The little-endian 32-bit register at `offset`.
    #[must_use]
    pub fn u32(&self, offset: u16) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset.saturating_add(2))) << 16
    }

    /// Changes bits as the function itself does, without regard to what software may write:
    /// `mask` says which bits of the 16-bit register at `offset` become those of `bits`.
    /// Where no register is, nothing happens.
    pub fn update(&mut self, offset: u16, mask: u16, bits: u16) {
        let new = self.u16(offset) & !mask | bits & mask;
        for (i, byte) in new.to_le_bytes().into_iter().enumerate() {
            if let Some(register) = self.value.get_mut(usize::from(offset) + i) {
                *register = byte;
            }
        }
    }

    /// Where BAR `bar` is decoded now: `None` while the command register does not allow it, and
    /// for the addresses that sizing leaves behind (0, and the very end of the space).
    #[must_use]
    pub fn bar_range(&self, bar: usize) -> Option<(Space, Range)> {
        let Bar { kind, size } = (*self.bars.get(bar)?)?;
        let offset = BAR0 + 4 * bar as u16;
        let low = self.u32(offset);
        let command = self.u16(COMMAND);
        let (space, base, limit) = match kind {
            BarKind::Io => (Space::Port, u64::from(low & !0x3), 0xffff),
            BarKind::Memory32 { .. } => (Space::Memory, u64::from(low & !0xf), 0xffff_fffe),
            BarKind::Memory64 { .. } => {
                let high = u64::from(self.u32(offset + 4)) << 32;
                (Space::Memory, high | u64::from(low & !0xf), u64::MAX - 1)
            }
        };
        let enabled = match space {
            Space::Port => command & COMMAND_IO != 0,
            Space::Memory => command & COMMAND_MEMORY != 0,
        };
        let range = Range::new(base, size);
        let fits = range.last().is_some_and(|last| last <= limit);
        (enabled && base != 0 && fits).then_some((space, range))
    }

    /// Where each BAR is decoded now.
    #[must_use]
    pub fn bar_ranges(&self) -> [Option<(Space, Range)>; 6] {
        std::array::from_fn(|bar| self.bar_range(bar))
    }

    /// Whether the function may read and write memory by itself.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.u16(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// Where the MSI-X structures are, if the function has that capability.
    #[must_use]
    pub fn msix_layout(&self) -> Option<MsixLayout> {
        self.msix.map(|(_, layout)| layout)
    }

    /// MSI-X Enable and Function Mask.
    #[must_use]
    pub fn msix_control(&self) -> (bool, bool) {
        match self.msix {
            Some((at, _)) => {
                let control = self.u16(at + 2);
                (
                    control & MSIX_ENABLE != 0,
                    control & MSIX_FUNCTION_MASK != 0,
                )
            }
            None => (false, false),
        }
    }

    /// Sets Interrupt Status and tells the level of the function's INTx wire: high only while
    /// neither Interrupt Disable nor MSI-X keeps it low.
    pub fn set_interrupt_status(&mut self, level: bool) -> bool {
        let bits = if level { STATUS_INTERRUPT } else { 0 };
        self.update(STATUS, STATUS_INTERRUPT, bits);
        level && self.u16(COMMAND) & COMMAND_INTX_DISABLE == 0 && !self.msix_control().0
    }

    /// Back to the values after power-on.
    pub fn reset(&mut self) {
        self.value.copy_from_slice(&self.initial);
    }

    /// The registers as plain data.
    #[must_use]
    pub fn save(&self) -> ConfigState {
        ConfigState {
            registers: self.value.clone(),
        }
    }

    /// Takes over saved registers. On an error nothing changes.
    ///
    /// # Errors
    /// The registers are those of another function: another size, or a fixed bit differs
    /// (identity, BAR sizes, capabilities). `kind` names the model in the error.
    pub fn restore(&mut self, kind: &'static str, state: &ConfigState) -> Result<(), StateError> {
        let new = &state.registers;
        if new.len() != self.value.len() {
            return Err(StateError::Invalid {
                kind,
                why: format!(
                    "configuration space has {} bytes of registers, not {}",
                    new.len(),
                    self.value.len()
                ),
            });
        }
        for (at, byte) in new.iter().enumerate() {
            let fixed = !(self.write[at] | self.clear[at] | self.status[at]);
            if (byte ^ self.initial[at]) & fixed != 0 {
                return Err(StateError::Invalid {
                    kind,
                    why: format!(
                        "configuration space differs at {at:#x}: {byte:#04x} instead of {:#04x}",
                        self.initial[at]
                    ),
                });
            }
        }
        self.value.copy_from_slice(new);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
