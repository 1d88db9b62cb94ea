//! The debug console: a port whose bytes go to a sink. Port 0xe9 by custom, 0x402 for SeaBIOS
//! and OVMF. It reads as 0xe9, by which firmware knows that it is there.

use std::sync::{Arc, Mutex};

use ::state::{Payload, StateError, Stateful, no_state, restore_no_state};
use bus::Action;

use crate::lock;
use crate::ports::{PortMap, Ports, bank};

/// Kind of the payload.
pub const KIND: &str = "isa-debugcon";

/// The port of Bochs and of kernels under test.
pub const PORT_E9: u16 = 0xe9;
/// The port of firmware.
pub const PORT_FIRMWARE: u16 = 0x402;

/// What the port reads as.
const PRESENT: u8 = 0xe9;

/// Takes the bytes. Called with the console locked: it must not block for long.
pub type DebugSink = Box<dyn FnMut(&[u8]) + Send>;

/// A debug console.
pub struct DebugCon {
    port: u16,
    sink: Mutex<DebugSink>,
}

impl DebugCon {
    /// A console at `port`.
    #[must_use]
    pub fn new(port: u16, sink: DebugSink) -> Arc<Self> {
        Arc::new(Self {
            port,
            sink: Mutex::new(sink),
        })
    }

    /// The port ranges of the device.
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> PortMap {
        vec![bank(self, self.port, 1)]
    }
}

impl Ports for DebugCon {
    fn read_port(&self, _port: u16) -> u8 {
        PRESENT
    }

    fn write_port(&self, _port: u16, value: u8) -> Action {
        (lock(&self.sink))(&[value]);
        Action::None
    }
}

impl Stateful for DebugCon {
    fn save(&self) -> Result<Payload, StateError> {
        Ok(no_state(KIND))
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        restore_no_state(KIND, payload)
    }

    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_reach_the_sink() {
        let text = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&text);
        let console = DebugCon::new(
            PORT_FIRMWARE,
            Box::new(move |bytes| lock(&sink).extend_from_slice(bytes)),
        );
        let bus = bus::Bus::new();
        for (range, device) in console.ports() {
            bus.insert(range, device).unwrap();
        }
        for byte in b"SeaBIOS" {
            assert_eq!(bus.write(0x402, &[*byte]), Action::None);
        }
        assert_eq!(*lock(&text), b"SeaBIOS");
        let mut data = [0; 2];
        bus.read(0x402, &mut data);
        assert_eq!(data, [0xe9, 0xff]);
        console.restore(console.save().unwrap()).unwrap();
    }
}
