//! The 8254 interval timer, ports 0x40 to 0x43, and the speaker port 0x61.
//!
//! ```text
//!   counter 0 ──▶ IRQ 0        deadline of the next rise ──▶ [TimerHost]
//!   counter 2 ──▶ port 0x61 bit 5 (calibration loops read it; there is no speaker)
//! ```

mod channel;
mod model;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use ::state::{Payload, StateError, Stateful};
use bus::{Action, IrqLine};

use crate::clock::{Timer, TimerHost, TimerTarget, with_timer};
use crate::ports::{PortMap, Ports, bank};
use crate::{checked, lock};

pub use model::{CONTROL, COUNTER_0, FREQUENCY, Line, Model, PORT_61};
pub use state::{Access, ChannelState, KIND, State, VERSION};

/// The interval timer as a device.
pub struct Pit {
    model: Mutex<Model>,
    irq: IrqLine,
    clock: Arc<dyn TimerHost>,
    timer: Box<dyn Timer>,
}

impl Pit {
    /// A timer after power-on, with counter 0 on `irq`.
    #[must_use]
    pub fn new(clock: &Arc<dyn TimerHost>, irq: IrqLine) -> Arc<Self> {
        with_timer(clock, |timer| Self {
            model: Mutex::new(Model::new()),
            irq,
            clock: Arc::clone(clock),
            timer,
        })
    }

    /// The port ranges of the device.
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> PortMap {
        vec![bank(self, COUNTER_0, 4), bank(self, PORT_61, 1)]
    }

    fn with<R>(&self, f: impl FnOnce(&mut Model, u64) -> R) -> R {
        let mut model = lock(&self.model);
        let now = self.clock.now_ns();
        let result = f(&mut model, now);
        let line = model.line(now);
        if line.edge {
            self.irq.set(false);
            self.irq.set(true);
        }
        self.irq.set(line.level);
        self.timer.arm(model.deadline(now));
        result
    }
}

impl TimerTarget for Pit {
    fn timer_expired(&self) {
        self.with(|_, _| ());
    }
}

impl Ports for Pit {
    fn read_port(&self, port: u16) -> u8 {
        self.with(|model, now| model.read(port, now))
    }

    fn write_port(&self, port: u16, value: u8) -> Action {
        self.with(|model, now| model.write(port, value, now));
        Action::None
    }
}

impl Stateful for Pit {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, VERSION, lock(&self.model).state())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        let state: State = checked(self, payload.decode(KIND, VERSION), State::check)?;
        let mut model = lock(&self.model);
        *model = Model::from_state(state);
        self.irq.set(model.level());
        // What came due since the save follows at once, from the timer.
        self.timer.arm(Some(self.clock.now_ns()));
        Ok(())
    }

    fn reset(&self) {
        self.with(|model, _| *model = Model::new());
    }
}
