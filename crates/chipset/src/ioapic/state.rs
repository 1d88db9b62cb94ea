use serde::{Deserialize, Serialize};
use state::StateError;

use super::model::{PINS, Rte};

/// Kind of the payload.
pub const KIND: &str = "ioapic";
/// Version of the payload.
pub const VERSION: u32 = 1;

/// The registers of an I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// I/O APIC ID, 0 to 15.
    pub id: u8,
    /// Selected register (IOREGSEL).
    pub index: u8,
    /// Levels of the pins, one bit each.
    pub levels: u32,
    /// Redirection table, one entry per pin.
    pub redirection: Vec<u64>,
}

impl State {
    /// After power-on: every entry masked.
    #[must_use]
    pub fn new() -> Self {
        Self {
            id: 0,
            index: 0,
            levels: 0,
            redirection: vec![Rte::MASKED.0; PINS],
        }
    }

    /// Checks what no I/O APIC could hold.
    ///
    /// # Errors
    /// [`StateError::Invalid`] names the value.
    pub fn check(&self) -> Result<(), StateError> {
        let invalid = |why| Err(StateError::Invalid { kind: KIND, why });
        if self.redirection.len() != PINS {
            return invalid(format!("{} pins of {PINS}", self.redirection.len()));
        }
        if self.levels >> PINS != 0 {
            return invalid(format!("levels {:#x} of {PINS} pins", self.levels));
        }
        if self.id > 15 {
            return invalid(format!("id {} of 0 to 15", self.id));
        }
        Ok(())
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}
