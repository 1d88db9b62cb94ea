//! The I/O APIC: 24 pins to messages (82093AA with the ICH9's EOI register), 0xfec00000.
//!
//! ```text
//!   pin n ──level──▶ redirection entry n ──▶ [bus::MsiHost::send] ──▶ local APICs
//!                        ▲        └─ message changed ──▶ [RouteObserver]
//!                        └─ eoi(vector) ◀── a processor's end of interrupt
//! ```

mod model;
mod state;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ::state::{Payload, StateError, Stateful};
use bus::{Action, Device, IrqSink, MsiHost, MsiMessage, Range};

use crate::{checked, lock};

pub use model::{Model, Output, PINS, Rte};
pub use state::{KIND, State, VERSION};

/// Where the I/O APIC stands in memory.
pub const MMIO: Range = Range::new(0xfec0_0000, 0x1000);

/// Told which message each pin sends.
///
/// KVM with a split interrupt controller needs it: it reports the end of a level-triggered
/// interrupt only for vectors that its routing table has under the first [`PINS`] numbers.
pub trait RouteObserver: Send + Sync {
    /// From now on `pin` sends `message`; `None` when it sends nothing, after a reset. Bit 15 of
    /// the data tells level-triggered ones. Comes before the first such message is sent, with
    /// the I/O APIC locked: do not call back. A pin keeps its route while it is masked.
    fn route_changed(&self, pin: u32, message: Option<MsiMessage>);
}

/// The I/O APIC as a device.
pub struct IoApic {
    model: Mutex<Model>,
    host: Arc<dyn MsiHost>,
    observer: Option<Arc<dyn RouteObserver>>,
    complained: AtomicBool,
}

struct Wires<'a>(&'a IoApic);

impl Output for Wires<'_> {
    fn route(&mut self, pin: u32, message: Option<MsiMessage>) {
        if let Some(observer) = &self.0.observer {
            observer.route_changed(pin, message);
        }
    }

    fn send(&mut self, message: MsiMessage) {
        if let Err(e) = self.0.host.send(message)
            && !self.0.complained.swap(true, Ordering::Relaxed)
        {
            log::warn!("I/O APIC: cannot send {message:x?}: {e} (said once)");
        }
    }
}

impl IoApic {
    /// An I/O APIC after power-on that sends to `host`.
    #[must_use]
    pub fn new(host: Arc<dyn MsiHost>, observer: Option<Arc<dyn RouteObserver>>) -> Arc<Self> {
        Arc::new(Self {
            model: Mutex::new(Model::new()),
            host,
            observer,
            complained: AtomicBool::new(false),
        })
    }

    /// A processor has ended the level-triggered interrupt `vector`.
    pub fn eoi(&self, vector: u8) {
        lock(&self.model).eoi(vector, &mut Wires(self));
    }
}

impl IrqSink for IoApic {
    fn set_level(&self, pin: u32, level: bool) {
        lock(&self.model).set_level(pin, level, &mut Wires(self));
    }
}

impl Device for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let shift = 8 * (offset & 3);
        let value = lock(&self.model).read(offset & !3) >> shift;
        bus::write_le(data, u64::from(value));
    }

    /// The data register takes 32-bit writes only; index and EOI have 8 bits that matter.
    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let value = bus::read_le(data) as u32;
        let mut model = lock(&self.model);
        if data.len() >= 4 || offset & 0x3f != 0x10 {
            model.write(offset, value, &mut Wires(self));
        }
        Action::None
    }
}

impl Stateful for IoApic {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, VERSION, lock(&self.model).state())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        let state: State = checked(self, payload.decode(KIND, VERSION), State::check)?;
        lock(&self.model).set_state(state, &mut Wires(self));
        Ok(())
    }

    fn reset(&self) {
        lock(&self.model).reset(&mut Wires(self));
    }
}
