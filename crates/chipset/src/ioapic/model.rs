use bus::MsiMessage;

use super::state::State;

/// Number of interrupt inputs.
pub const PINS: usize = 24;

/// I/O APIC version: 0x20 has the EOI register.
const APIC_VERSION: u32 = 0x20;

/// IOREGSEL.
const INDEX: u64 = 0x00;
/// IOWIN.
const DATA: u64 = 0x10;
/// EOI register of version 0x20 (ICH9 datasheet 13.5.4).
const EOI: u64 = 0x40;

const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_REDIRECTION: u8 = 0x10;

/// One redirection table entry (82093AA datasheet 3.2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rte(pub u64);

impl Rte {
    /// An entry after reset.
    pub const MASKED: Self = Self(Self::MASK);

    const VECTOR: u64 = 0xff;
    const DELIVERY_MODE: u64 = 0x7 << 8;
    const LOGICAL: u64 = 1 << 11;
    const DELIVERY_STATUS: u64 = 1 << 12;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASK: u64 = 1 << 16;
    const READ_ONLY: u64 = Self::DELIVERY_STATUS | Self::REMOTE_IRR;
    /// Vector to mask, and the destination with its extension in bits 49 to 55.
    const DEFINED: u64 = 0x1_ffff | 0xfffe << 48;

    /// The interrupt vector.
    #[must_use]
    pub fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Whether the pin is masked.
    #[must_use]
    pub fn masked(self) -> bool {
        self.0 & Self::MASK != 0
    }

    /// Whether the pin is level-triggered.
    #[must_use]
    pub fn level(self) -> bool {
        self.0 & Self::LEVEL != 0
    }

    /// Whether a processor is servicing the level-triggered interrupt.
    #[must_use]
    pub fn remote_irr(self) -> bool {
        self.0 & Self::REMOTE_IRR != 0
    }

    /// The message that the entry sends (Intel SDM vol. 3A 11.11; the extended destination in
    /// address bits 5 to 11 as KVM_FEATURE_MSI_EXT_DEST_ID defines it).
    #[must_use]
    pub fn message(self) -> MsiMessage {
        let destination = self.0 >> 56 & 0xff;
        let extended = self.0 >> 49 & 0x7f;
        let logical = u64::from(self.0 & Self::LOGICAL != 0);
        let trigger = if self.level() { 0b11 << 14 } else { 0 };
        MsiMessage {
            address: 0xfee0_0000 | destination << 12 | extended << 5 | logical << 2,
            data: (self.0 & (Self::VECTOR | Self::DELIVERY_MODE)) as u32 | trigger,
        }
    }

    fn replaced_by(self, value: u64) -> Self {
        let written = value & Self::DEFINED & !Self::READ_ONLY | self.0 & Self::READ_ONLY;
        let entry = Self(written);
        if entry.level() {
            entry
        } else {
            Self(written & !Self::REMOTE_IRR)
        }
    }
}

/// What the model does to the world.
pub trait Output {
    /// The message that `pin` will send from now on.
    fn route(&mut self, pin: u32, message: Option<MsiMessage>);

    /// A message leaves now.
    fn send(&mut self, message: MsiMessage);
}

/// The I/O APIC's registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    state: State,
    /// What was told by [`Output::route`] last.
    routes: [Option<MsiMessage>; PINS],
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// After power-on.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::new(),
            routes: [None; PINS],
        }
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes over `state`, which [`State::check`] has passed, and tells the routes that differ.
    /// Nothing is sent: what was to be sent has been.
    pub fn set_state(&mut self, state: State, out: &mut dyn Output) {
        self.state = state;
        for pin in 0..PINS {
            let entry = self.entry(pin);
            // An entry that is masked while its interrupt is serviced still needs its route, or
            // the end of the interrupt would not come back from the processor.
            let used = !entry.masked() || entry.remote_irr();
            self.set_route(pin, used.then(|| entry.message()), out);
        }
    }

    /// Power-on state, but wires keep their levels.
    pub fn reset(&mut self, out: &mut dyn Output) {
        let levels = self.state.levels;
        let state = State {
            levels,
            ..State::new()
        };
        self.set_state(state, out);
    }

    /// Sets the level of a pin.
    pub fn set_level(&mut self, pin: u32, level: bool, out: &mut dyn Output) {
        let Some(index) = usize::try_from(pin).ok().filter(|p| *p < PINS) else {
            return;
        };
        let bit = 1 << index;
        let rose = level && self.state.levels & bit == 0;
        if level {
            self.state.levels |= bit;
        } else {
            self.state.levels &= !bit;
        }
        let entry = self.entry(index);
        if entry.level() {
            self.service_level(index, out);
        } else if rose && !entry.masked() {
            // An edge on a masked pin is lost (82093AA datasheet 3.2.4, bit 16).
            out.send(entry.message());
        }
    }

    /// A processor has ended the interrupt with this vector.
    pub fn eoi(&mut self, vector: u8, out: &mut dyn Output) {
        for pin in 0..PINS {
            let entry = self.entry(pin);
            if entry.level() && entry.remote_irr() && entry.vector() == vector {
                self.set_entry(pin, Rte(entry.0 & !Rte::REMOTE_IRR));
                self.service_level(pin, out);
            }
        }
    }

    /// Reads the 32-bit register at `offset`.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            INDEX => u32::from(self.state.index),
            DATA => match self.state.index {
                REG_ID | REG_ARBITRATION => u32::from(self.state.id) << 24,
                REG_VERSION => APIC_VERSION | (PINS as u32 - 1) << 16,
                index => match redirection(index) {
                    Some((pin, false)) => self.entry(pin).0 as u32,
                    Some((pin, true)) => (self.entry(pin).0 >> 32) as u32,
                    None => 0,
                },
            },
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset`.
    pub fn write(&mut self, offset: u64, value: u32, out: &mut dyn Output) {
        match offset {
            INDEX => self.state.index = value as u8,
            EOI => self.eoi(value as u8, out),
            DATA => match self.state.index {
                REG_ID => self.state.id = (value >> 24 & 0xf) as u8,
                index => {
                    if let Some((pin, high)) = redirection(index) {
                        self.write_half(pin, high, value, out);
                    }
                }
            },
            _ => (),
        }
    }

    fn write_half(&mut self, pin: usize, high: bool, value: u32, out: &mut dyn Output) {
        let old = self.entry(pin);
        let value = if high {
            old.0 & 0xffff_ffff | u64::from(value) << 32
        } else {
            old.0 & !0xffff_ffff | u64::from(value)
        };
        let new = old.replaced_by(value);
        self.set_entry(pin, new);
        // A mask does not take the route away: guests mask and unmask often, and routes are
        // expensive to change.
        if !new.masked() {
            self.set_route(pin, Some(new.message()), out);
        }
        if new.level() {
            self.service_level(pin, out);
        }
    }

    fn service_level(&mut self, pin: usize, out: &mut dyn Output) {
        let entry = self.entry(pin);
        let high = self.state.levels & 1 << pin != 0;
        if high && entry.level() && !entry.masked() && !entry.remote_irr() {
            self.set_entry(pin, Rte(entry.0 | Rte::REMOTE_IRR));
            out.send(entry.message());
        }
    }

    fn entry(&self, pin: usize) -> Rte {
        self.state
            .redirection
            .get(pin)
            .map_or(Rte::MASKED, |e| Rte(*e))
    }

    fn set_entry(&mut self, pin: usize, entry: Rte) {
        if let Some(slot) = self.state.redirection.get_mut(pin) {
            *slot = entry.0;
        }
    }

    fn set_route(&mut self, pin: usize, message: Option<MsiMessage>, out: &mut dyn Output) {
        if let Some(route) = self.routes.get_mut(pin).filter(|r| **r != message) {
            *route = message;
            out.route(pin as u32, message);
        }
    }
}

/// The pin behind a register index, and whether it is the entry's upper half.
fn redirection(index: u8) -> Option<(usize, bool)> {
    let n = usize::from(index.checked_sub(REG_REDIRECTION)?);
    (n / 2 < PINS).then_some((n / 2, n % 2 == 1))
}
