//! pvpanic, ISA port 0x505: the guest tells that it panicked (QEMU's docs/specs/pvpanic.rst).

use std::sync::{Arc, Mutex};

use ::state::{Payload, StateError, Stateful};
use bus::Action;
use serde::{Deserialize, Serialize};

use crate::lock;
use crate::ports::{PortMap, Ports, bank};

/// Kind of the payload.
pub const KIND: &str = "pvpanic";
/// Version of the payload.
pub const VERSION: u32 = 1;

/// The port.
pub const PORT: u16 = 0x505;

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// What the guest told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PanicEvent {
    /// The guest panicked and is at its end.
    Panicked,
    /// The guest panicked and starts its crash kernel.
    CrashLoaded,
}

/// The state: an event that the machine has not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// The last event.
    pub event: Option<PanicEvent>,
}

/// The register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Model(pub State);

impl Model {
    /// Reads the port: the events that the guest may tell.
    #[must_use]
    pub fn read(&self) -> u8 {
        PANICKED | CRASH_LOADED
    }

    /// Writes the port. The graver event counts.
    pub fn write(&mut self, value: u8) -> Action {
        let event = if value & PANICKED != 0 {
            PanicEvent::Panicked
        } else if value & CRASH_LOADED != 0 {
            PanicEvent::CrashLoaded
        } else {
            return Action::None;
        };
        self.0.event = Some(event);
        Action::Panicked
    }
}

/// The device.
#[derive(Debug, Default)]
pub struct PvPanic(Mutex<Model>);

impl PvPanic {
    /// A device that has heard nothing.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The port ranges of the device.
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> PortMap {
        vec![bank(self, PORT, 1)]
    }

    /// Which event an [`Action::Panicked`] was about; each is taken once.
    pub fn take_event(&self) -> Option<PanicEvent> {
        lock(&self.0).0.event.take()
    }
}

impl Ports for PvPanic {
    fn read_port(&self, _port: u16) -> u8 {
        lock(&self.0).read()
    }

    fn write_port(&self, _port: u16, value: u8) -> Action {
        lock(&self.0).write(value)
    }
}

impl Stateful for PvPanic {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, VERSION, &lock(&self.0).0)
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        self.reset();
        lock(&self.0).0 = payload.decode(KIND, VERSION)?;
        Ok(())
    }

    fn reset(&self) {
        *lock(&self.0) = Model::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_once_and_survive_a_save() {
        let device = PvPanic::new();
        assert_eq!(device.read_port(PORT), 3);
        assert_eq!(device.write_port(PORT, 0), Action::None);
        assert_eq!(device.write_port(PORT, 4), Action::None);
        assert_eq!(device.take_event(), None);
        assert_eq!(device.write_port(PORT, 2), Action::Panicked);
        assert_eq!(device.take_event(), Some(PanicEvent::CrashLoaded));
        assert_eq!(device.write_port(PORT, 3), Action::Panicked);
        let saved = device.save().unwrap();
        device.reset();
        assert_eq!(device.take_event(), None);
        device.restore(saved.clone()).unwrap();
        assert_eq!(device.save().unwrap(), saved);
        assert_eq!(device.take_event(), Some(PanicEvent::Panicked));
        assert_eq!(device.take_event(), None);
    }
}
