//! The PS/2 keyboard controller with keyboard and mouse, ports 0x60, 0x64 and 0x92.
//!
//! ```text
//!   key() ─────▶ keyboard ──▶ translation ─┐
//!   pointer() ─▶ mouse ────────────────────┴─▶ output buffer ──▶ port 0x60, IRQ 1 and 12
//!   port 0x64 ──▶ commands; 0xfe resets the machine
//! ```

mod keyboard;
mod model;
mod mouse;
mod scancodes;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use ::state::{Payload, StateError, Stateful};
use bus::{Action, IrqLine};

use crate::ports::{PortMap, Ports, bank};
use crate::{checked, lock};

pub use model::{COMMAND, DATA, Model, PORT_92};
pub use state::{KIND, KeyboardState, MouseState, Source, State, VERSION};

/// The keyboard controller as a device.
pub struct I8042 {
    model: Mutex<Model>,
    keyboard_irq: IrqLine,
    mouse_irq: IrqLine,
}

impl I8042 {
    /// A controller on IRQ 1 (keyboard) and IRQ 12 (mouse).
    #[must_use]
    pub fn new(keyboard_irq: IrqLine, mouse_irq: IrqLine) -> Arc<Self> {
        Arc::new(Self {
            model: Mutex::new(Model::new()),
            keyboard_irq,
            mouse_irq,
        })
    }

    /// The port ranges of the device.
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> PortMap {
        vec![
            bank(self, DATA, 1),
            bank(self, COMMAND, 1),
            bank(self, PORT_92, 1),
        ]
    }

    /// A key goes down or up. `key` is its scan code of set 1, with bit 7 set for keys that have
    /// the prefix 0xe0, and 0xc6 for Pause: QMP's key numbers. Tells whether the guest will hear
    /// of it: not when it has switched the keyboard off or does not fetch what it typed before.
    pub fn key(&self, key: u8, down: bool) -> bool {
        self.with(|model| model.key(key, down))
    }

    /// The mouse moves by so many counts to the right, up, and its wheel towards the user, with
    /// the buttons held that `buttons` says: left, right, middle, fourth, fifth from bit 0. Tells
    /// whether the guest will hear of it.
    pub fn pointer(&self, dx: i32, dy: i32, dz: i32, buttons: u8) -> bool {
        self.with(|model| model.pointer(dx, dy, dz, buttons))
    }

    /// Scroll, num and caps lock lights from bit 0.
    #[must_use]
    pub fn leds(&self) -> u8 {
        lock(&self.model).state().keyboard.leds
    }

    fn with<R>(&self, f: impl FnOnce(&mut Model) -> R) -> R {
        let mut model = lock(&self.model);
        let result = f(&mut model);
        self.set_irqs(&model);
        model.load();
        self.set_irqs(&model);
        result
    }

    fn set_irqs(&self, model: &Model) {
        let (keyboard, mouse) = model.irqs();
        self.keyboard_irq.set(keyboard);
        self.mouse_irq.set(mouse);
    }
}

impl Ports for I8042 {
    fn read_port(&self, port: u16) -> u8 {
        self.with(|model| model.read(port))
    }

    fn write_port(&self, port: u16, value: u8) -> Action {
        self.with(|model| model.write(port, value))
    }
}

impl Stateful for I8042 {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, VERSION, lock(&self.model).state())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        let state: State = checked(self, payload.decode(KIND, VERSION), State::check)?;
        self.with(|model| *model = Model::from_state(state));
        Ok(())
    }

    fn reset(&self) {
        self.with(|model| *model = Model::new());
    }
}
