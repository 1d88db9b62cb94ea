use serde::{Deserialize, Serialize};
use state::StateError;

use super::model::CELLS;

/// Kind of the payload.
pub const KIND: &str = "mc146818";
/// Version of the payload.
pub const VERSION: u32 = 1;

/// No offset is larger than this, in seconds; the years of two digits each that a guest can
/// write are far below.
pub(super) const OFFSET_LIMIT_S: u64 = 1_000_000_000_000;

/// The clock and its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Selected cell, 0 to 127.
    pub index: u8,
    /// Port 0x70 bit 7: NMI masked.
    pub nmi_masked: bool,
    /// All 128 cells. Cells of the time hold it only while the clock stands still.
    pub cells: Vec<u8>,
    /// The clock's time minus the host's time of day: whole seconds, rounded down.
    pub offset_s: i64,
    /// The rest of it in nanoseconds, below a second.
    pub offset_sub_ns: u32,
    /// Second (of the clock's time since 1970) up to which updates and alarms are in register C.
    pub second: i64,
    /// Cycle of the 32768 Hz oscillator up to which periodic flags are in register C.
    pub cycle: u64,
}

impl State {
    /// Checks what no clock could hold.
    ///
    /// # Errors
    /// [`StateError::Invalid`] names the value.
    pub fn check(&self) -> Result<(), StateError> {
        let invalid = |why| Err(StateError::Invalid { kind: KIND, why });
        if self.cells.len() != CELLS {
            return invalid(format!("{} cells of {CELLS}", self.cells.len()));
        }
        if usize::from(self.index) >= CELLS {
            return invalid(format!("index {:#x}", self.index));
        }
        if self.offset_s.abs_diff(0) > OFFSET_LIMIT_S || self.offset_sub_ns >= 1_000_000_000 {
            return invalid(format!("offset {} s", self.offset_s));
        }
        Ok(())
    }
}
