use serde::{Deserialize, Serialize};
use state::StateError;

use super::model::FIFO_SIZE;

/// Kind of the payload.
pub const KIND: &str = "ns16550a";
/// Version of the payload.
pub const VERSION: u32 = 1;

/// The registers of a 16550A.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Interrupt enable register.
    pub ier: u8,
    /// FIFO control register: enable and trigger bits.
    pub fcr: u8,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// Error bits of the line status register that wait to be read (overrun).
    pub lsr_errors: u8,
    /// Modem status register: inputs in the upper half, deltas in the lower.
    pub msr: u8,
    /// Scratch register.
    pub scr: u8,
    /// Divisor latch. The rate is not emulated.
    pub divisor: u16,
    /// Bytes received and not read.
    pub rx: Vec<u8>,
    /// Bytes to transmit that the other side has not taken.
    pub tx: Vec<u8>,
    /// The transmitter became empty and nobody has been told.
    pub thre_pending: bool,
    /// Bytes lie below the trigger level and the guest has not come for them.
    pub timeout_pending: bool,
}

impl State {
    /// Checks what no UART could hold.
    ///
    /// # Errors
    /// [`StateError::Invalid`] names the value.
    pub fn check(&self) -> Result<(), StateError> {
        if self.rx.len() > FIFO_SIZE || self.tx.len() > FIFO_SIZE {
            return Err(StateError::Invalid {
                kind: KIND,
                why: format!(
                    "{} received and {} unsent bytes in FIFOs of {FIFO_SIZE}",
                    self.rx.len(),
                    self.tx.len()
                ),
            });
        }
        Ok(())
    }
}
