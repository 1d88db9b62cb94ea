//! The ICH9's ACPI power management: events, sleep and timer.
//!
//! ```text
//!   PMBASE + 0x00 PM1a_EVT  + 0x04 PM1a_CNT ─ SLP_EN ──▶ Action::Shutdown
//!          + 0x08 PM_TMR    + 0x20 GPE0      + 0x30 SMI_EN
//!   press_power_button(), raise_gpe() ──▶ status & enable ──▶ SCI
//!   0xb2 ACPI on and off
//! ```
//!
//! [`AcpiPm`] itself is the block at PMBASE, which the guest can move: whoever has the LPC
//! bridge's PMBASE register puts it on the bus.

mod model;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use ::state::{Payload, StateError, Stateful};
use bus::{Action, Device, SharedLine};

use crate::clock::{Timer, TimerHost, TimerTarget, with_timer};
use crate::ports::{PortMap, Ports, bank};
use crate::{checked, lock};

pub use model::{
    ACPI_DISABLE, ACPI_ENABLE, APMC, APMS, GPE0, GPE0_LENGTH, Model, PM_TIMER_HZ, PM_TMR, PM1_CNT,
    PM1_EVT, SIZE, SLP_TYP_S5, SMI_EN, TimerWidth, pm1,
};
pub use state::{KIND, State, VERSION};

/// The power management block as a device.
pub struct AcpiPm {
    model: Mutex<Model>,
    sci: SharedLine,
    clock: Arc<dyn TimerHost>,
    timer: Box<dyn Timer>,
}

impl AcpiPm {
    /// A block after power-on with its interrupt on `sci`.
    #[must_use]
    pub fn new(clock: &Arc<dyn TimerHost>, sci: SharedLine, width: TimerWidth) -> Arc<Self> {
        let model = Model::new(width, clock.now_ns());
        with_timer(clock, |timer| Self {
            model: Mutex::new(model),
            sci,
            clock: Arc::clone(clock),
            timer,
        })
    }

    /// The fixed port ranges: APM control and status. Not the block at PMBASE, which moves.
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> PortMap {
        vec![bank(self, APMC, 2)]
    }

    /// Presses the power button; tells whether the guest listens to it.
    pub fn press_power_button(&self) -> bool {
        self.with(|model, _| model.raise(pm1::PWRBTN))
    }

    /// Presses the sleep button; tells whether the guest listens to it.
    pub fn press_sleep_button(&self) -> bool {
        self.with(|model, _| model.raise(pm1::SLPBTN))
    }

    /// Raises general purpose event `bit`, 0 to 63, as `\_GPE._Exx` or `_Lxx` handles it; tells
    /// whether the guest has enabled it.
    pub fn raise_gpe(&self, bit: u32) -> bool {
        self.with(|model, _| model.raise_gpe(bit))
    }

    fn with<R>(&self, f: impl FnOnce(&mut Model, u64) -> R) -> R {
        let mut model = lock(&self.model);
        let now = self.clock.now_ns();
        let result = f(&mut model, now);
        self.sci.set(model.sci());
        self.timer.arm(model.deadline(now));
        result
    }
}

impl TimerTarget for AcpiPm {
    fn timer_expired(&self) {
        self.with(Model::advance);
    }
}

impl Device for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.with(|model, now| {
            for (at, byte) in (offset..).zip(data) {
                *byte = model.read(at, now);
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        self.with(|model, now| {
            let mut consequence = Action::None;
            for (at, byte) in (offset..).zip(data) {
                let action = model.write(at, *byte, now);
                if action != Action::None {
                    consequence = action;
                }
            }
            consequence
        })
    }
}

impl Ports for AcpiPm {
    fn read_port(&self, port: u16) -> u8 {
        lock(&self.model).read_port(port)
    }

    fn write_port(&self, port: u16, value: u8) -> Action {
        self.with(|model, _| model.write_port(port, value));
        Action::None
    }
}

impl Stateful for AcpiPm {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, VERSION, lock(&self.model).state())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        let state: State = checked(self, payload.decode(KIND, VERSION), |_| Ok(()))?;
        let mut model = lock(&self.model);
        *model = Model::from_state(model.width(), state);
        self.sci.set(model.sci());
        // What came due since the save follows at once, from the timer.
        self.timer.arm(Some(self.clock.now_ns()));
        Ok(())
    }

    fn reset(&self) {
        self.with(|model, now| *model = Model::new(model.width(), now));
    }
}
