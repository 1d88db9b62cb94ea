use serde::{Deserialize, Serialize};
use state::StateError;

/// Kind of the payload.
pub const KIND: &str = "i8259-pair";
/// Version of the payload.
pub const VERSION: u32 = 1;

/// Which initialization command word the chip waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum InitStep {
    /// None: the chip works.
    #[default]
    Ready,
    /// ICW2, the vector base.
    Icw2,
    /// ICW3, the cascade.
    Icw3,
    /// ICW4, the modes.
    Icw4,
}

/// One 8259A.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipState {
    /// Interrupt request register.
    pub irr: u8,
    /// In-service register.
    pub isr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// Levels of the input pins.
    pub levels: u8,
    /// Edge/level control register: 1 is level-triggered.
    pub elcr: u8,
    /// The pin with the lowest priority, 0 to 7.
    pub lowest: u8,
    /// ICW2: vector of pin 0; the low three bits are zero.
    pub vector_base: u8,
    /// What initialization waits for.
    pub init: InitStep,
    /// ICW1.IC4: an ICW4 follows.
    pub wants_icw4: bool,
    /// ICW1.SNGL: no cascade, no ICW3.
    pub single: bool,
    /// ICW3 as written; the wiring of a PC does not depend on it.
    pub icw3: u8,
    /// ICW4.AEOI.
    pub auto_eoi: bool,
    /// Rotate in automatic EOI mode.
    pub rotate_on_auto_eoi: bool,
    /// ICW4.SFNM.
    pub special_fully_nested: bool,
    /// OCW3: special mask mode.
    pub special_mask: bool,
    /// OCW3: the next read is a poll.
    pub poll: bool,
    /// OCW3: port 0 reads the ISR instead of the IRR.
    pub read_isr: bool,
}

/// Both chips.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The one at 0x20.
    pub master: ChipState,
    /// The one at 0xa0, on pin 2 of the master.
    pub slave: ChipState,
}

impl ChipState {
    /// After power-on: uninitialized, nothing pending. Firmware always initializes it.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            irr: 0,
            isr: 0,
            imr: 0,
            levels: 0,
            elcr: 0,
            lowest: 7,
            vector_base: 0,
            init: InitStep::Ready,
            wants_icw4: false,
            single: false,
            icw3: 0,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            poll: false,
            read_isr: false,
        }
    }
}

impl Default for ChipState {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// Checks what no pair of chips could hold.
    ///
    /// # Errors
    /// [`StateError::Invalid`] names the value.
    pub fn check(&self) -> Result<(), StateError> {
        for chip in [&self.master, &self.slave] {
            if chip.lowest > 7 {
                return Err(StateError::Invalid {
                    kind: KIND,
                    why: format!("lowest priority pin {} of 0 to 7", chip.lowest),
                });
            }
        }
        Ok(())
    }
}
