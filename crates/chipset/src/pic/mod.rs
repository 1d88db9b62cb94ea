//! The pair of 8259A interrupt controllers (IRQ 0 to 15), ports 0x20, 0xa0 and 0x4d0.
//!
//! ```text
//!   IRQ 0 1 _ 3 4 5 6 7 ──▶ master ──INTR──▶ [ExtIntSink] (LINT0 of the boot processor)
//!           ▲                  ▲
//!           └── slave ◀── IRQ 8 to 15        acknowledge() ◀── INTA: the vector
//! ```

mod model;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use ::state::{Payload, StateError, Stateful};
use bus::{Action, IrqSink};

use crate::checked;
use crate::ports::{PortMap, Ports, bank};

pub use model::{
    Chip, ELCR_MASTER, ELCR_SLAVE, MASTER_COMMAND, MASTER_DATA, Pair, SLAVE_COMMAND, SLAVE_DATA,
};
pub use state::{ChipState, InitStep, KIND, State, VERSION};

/// Where the INTR wire ends: the boot processor's LINT0.
///
/// While it is high and the processor takes external interrupts, its loop calls
/// [`Pic::acknowledge`] and injects the vector.
pub trait ExtIntSink: Send + Sync {
    /// The wire's level changed to `asserted`. Called with the PIC locked: do not call back.
    fn set_intr(&self, asserted: bool);
}

struct Inner {
    pair: Pair,
    intr: bool,
}

/// The interrupt controllers as a device.
pub struct Pic {
    inner: Mutex<Inner>,
    sink: Arc<dyn ExtIntSink>,
}

impl Pic {
    /// A pair after power-on whose INTR goes to `sink`.
    #[must_use]
    pub fn new(sink: Arc<dyn ExtIntSink>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                pair: Pair::new(),
                intr: false,
            }),
            sink,
        })
    }

    /// The port ranges of the device.
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> PortMap {
        vec![
            bank(self, MASTER_COMMAND, 2),
            bank(self, SLAVE_COMMAND, 2),
            bank(self, ELCR_MASTER, 2),
        ]
    }

    /// The interrupt acknowledge cycle: returns the vector and puts it in service.
    #[must_use]
    pub fn acknowledge(&self) -> u8 {
        self.with(Pair::acknowledge)
    }

    /// The level of INTR.
    #[must_use]
    pub fn intr(&self) -> bool {
        crate::lock(&self.inner).intr
    }

    fn with<R>(&self, f: impl FnOnce(&mut Pair) -> R) -> R {
        let mut inner = crate::lock(&self.inner);
        let result = f(&mut inner.pair);
        let intr = inner.pair.intr();
        if inner.intr != intr {
            inner.intr = intr;
            self.sink.set_intr(intr);
        }
        result
    }
}

impl IrqSink for Pic {
    fn set_level(&self, pin: u32, level: bool) {
        self.with(|pair| pair.set_level(pin, level));
    }
}

impl Ports for Pic {
    fn read_port(&self, port: u16) -> u8 {
        self.with(|pair| pair.read(port))
    }

    fn write_port(&self, port: u16, value: u8) -> Action {
        self.with(|pair| pair.write(port, value));
        Action::None
    }
}

impl Stateful for Pic {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, VERSION, &crate::lock(&self.inner).pair.state())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        let state: State = checked(self, payload.decode(KIND, VERSION), State::check)?;
        self.with(|pair| *pair = Pair::from_state(state));
        Ok(())
    }

    fn reset(&self) {
        self.with(|pair| {
            // Wires keep their levels across a reset: their owners will not repeat them.
            let levels = pair.state();
            let mut fresh = Pair::new().state();
            fresh.master.levels = levels.master.levels & !0x04;
            fresh.slave.levels = levels.slave.levels;
            *pair = Pair::from_state(fresh);
        });
    }
}
