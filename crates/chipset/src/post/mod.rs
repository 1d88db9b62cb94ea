//! Port 0x80: firmware's progress codes, and the write that old drivers wait by. Nobody looks.

use std::sync::Arc;

use ::state::{Payload, StateError, Stateful, no_state, restore_no_state};
use bus::Action;

use crate::ports::{PortMap, Ports, bank};

/// Kind of the payload.
pub const KIND: &str = "post-port";

/// The port.
pub const PORT: u16 = 0x80;

/// A port that takes everything and gives nothing. It is a device all the same, so that such
/// writes do not count as accesses to nothing.
#[derive(Debug, Default)]
pub struct Post;

impl Post {
    /// The port.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The port ranges of the device.
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> PortMap {
        vec![bank(self, PORT, 1)]
    }
}

impl Ports for Post {
    fn read_port(&self, _port: u16) -> u8 {
        0xff
    }

    fn write_port(&self, _port: u16, _value: u8) -> Action {
        Action::None
    }
}

impl Stateful for Post {
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
    fn codes_vanish() {
        let post = Post::new();
        let bus = bus::Bus::new();
        for (range, device) in post.ports() {
            bus.insert(range, device).unwrap();
        }
        assert_eq!(bus.write(0x80, &[0x55]), Action::None);
        let mut byte = [0];
        bus.read(0x80, &mut byte);
        assert_eq!(byte, [0xff]);
        post.restore(post.save().unwrap()).unwrap();
    }
}
