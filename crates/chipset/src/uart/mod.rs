//! The 16550A serial port: COM1 to COM4.
//!
//! ```text
//!   guest ──THR──▶ FIFO ──▶ [SerialOutput::write] (may take less: the transmitter stays busy)
//!   guest ◀─RBR── FIFO ◀── receive(bytes) -> how many fit     [SerialOutput::space]: send more
//!                    └──▶ IRQ 4 or 3
//! ```

mod model;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use ::state::{Payload, StateError, Stateful};
use bus::{Action, IrqLine};

use crate::ports::{PortMap, Ports, bank};
use crate::{checked, lock};

pub use model::{FIFO_SIZE, Model, PORTS};
pub use state::{KIND, State, VERSION};

/// First ports of COM1 to COM4.
pub const COM_PORTS: [u16; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];
/// Interrupts of COM1 to COM4.
pub const COM_IRQS: [u32; 4] = [4, 3, 4, 3];

/// The other end of the line. Called with the UART locked: neither function may block or call
/// the UART.
pub trait SerialOutput: Send {
    /// Takes bytes that the guest has sent; returns how many. When it is fewer than all, the
    /// rest stays in the transmitter, which the guest sees as busy, and the output's owner calls
    /// [`Uart::resume_output`] when it can take more.
    fn write(&mut self, bytes: &[u8]) -> usize;

    /// The receiver, which has turned bytes away, has room again: [`Uart::receive`] more.
    fn space(&mut self);
}

struct Inner {
    model: Model,
    output: Box<dyn SerialOutput>,
    turned_away: bool,
}

/// A serial port as a device.
pub struct Uart {
    base: u16,
    inner: Mutex<Inner>,
    irq: IrqLine,
}

impl Uart {
    /// A serial port at `base` that interrupts by `irq` and sends to `output`.
    #[must_use]
    pub fn new(base: u16, irq: IrqLine, output: Box<dyn SerialOutput>) -> Arc<Self> {
        Arc::new(Self {
            base,
            inner: Mutex::new(Inner {
                model: Model::new(),
                output,
                turned_away: false,
            }),
            irq,
        })
    }

    /// The port ranges of the device.
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> PortMap {
        vec![bank(self, self.base, PORTS)]
    }

    /// Bytes arrive on the line; returns how many fit. When it is fewer than all,
    /// [`SerialOutput::space`] tells when to offer the rest.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        self.with(|inner| {
            let count = inner.model.receive(bytes);
            inner.turned_away = count < bytes.len();
            count
        })
    }

    /// A break arrives on the line.
    pub fn receive_break(&self) {
        self.with(|inner| inner.model.receive_break());
    }

    /// The output can take more.
    pub fn resume_output(&self) {
        self.with(|_| ());
    }

    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        let had_space = inner.model.space() > 0;
        let result = f(inner);
        // A byte that was sent and taken at once still lowers and raises the wire: an
        // edge-triggered controller must see the transmitter become empty again.
        self.irq.set(inner.model.irq());
        if !inner.model.unsent().is_empty() {
            let taken = inner.output.write(inner.model.unsent());
            inner.model.sent(taken);
        }
        if inner.turned_away && !had_space && inner.model.space() > 0 {
            inner.turned_away = false;
            inner.output.space();
        }
        self.irq.set(inner.model.irq());
        result
    }
}

impl Ports for Uart {
    fn read_port(&self, port: u16) -> u8 {
        self.with(|inner| inner.model.read(port.wrapping_sub(self.base)))
    }

    fn write_port(&self, port: u16, value: u8) -> Action {
        self.with(|inner| inner.model.write(port.wrapping_sub(self.base), value));
        Action::None
    }
}

impl Stateful for Uart {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, VERSION, lock(&self.inner).model.state())
    }

    /// Unsent bytes go on to the new output with the next access or
    /// [`Uart::resume_output`].
    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        let state: State = checked(self, payload.decode(KIND, VERSION), State::check)?;
        let mut inner = lock(&self.inner);
        inner.model = Model::from_state(state);
        self.irq.set(inner.model.irq());
        Ok(())
    }

    fn reset(&self) {
        let mut inner = lock(&self.inner);
        inner.model = Model::new();
        self.irq.set(false);
        if std::mem::take(&mut inner.turned_away) {
            inner.output.space();
        }
    }
}
