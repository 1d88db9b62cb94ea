//! isa-debug-exit: a write ends the virtual machine, for kernels under test.
//!
//! There is no register and no state: a written value leaves as
//! [`ShutdownCause::DebugExit`] at once, and reads are zero.

use std::sync::Arc;

use ::state::{Payload, StateError, Stateful, no_state, restore_no_state};
use bus::{Action, Device, Range, ShutdownCause};

use crate::ChipsetError;
use crate::ports::PortMap;

/// Kind of the payload.
pub const KIND: &str = "isa-debug-exit";

/// Default first port.
pub const DEFAULT_IOBASE: u16 = 0x501;
/// Default number of ports.
pub const DEFAULT_IOSIZE: u16 = 2;

/// The debug exit device.
#[derive(Debug)]
pub struct DebugExit {
    range: Range,
}

impl DebugExit {
    /// A device at `iobase` with `iosize` ports: 1, 2 or 4.
    ///
    /// # Errors
    /// No such ports.
    pub fn new(iobase: u16, iosize: u16) -> Result<Arc<Self>, ChipsetError> {
        if !matches!(iosize, 1 | 2 | 4) || iobase.checked_add(iosize - 1).is_none() {
            return Err(ChipsetError::DebugExitPorts {
                base: iobase,
                size: iosize,
            });
        }
        Ok(Arc::new(Self {
            range: Range::new(u64::from(iobase), u64::from(iosize)),
        }))
    }

    /// The port ranges of the device.
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> PortMap {
        let device: Arc<dyn Device> = self.clone();
        vec![(self.range, device)]
    }
}

impl Device for DebugExit {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Action {
        Action::Shutdown(ShutdownCause::DebugExit(bus::read_le(data) as u32))
    }
}

impl Stateful for DebugExit {
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
    fn a_write_ends_the_machine_with_its_value() {
        let device = DebugExit::new(0xf4, 4).unwrap();
        let bus = bus::Bus::new();
        for (range, device) in device.ports() {
            bus.insert(range, device).unwrap();
        }
        for (data, value) in [
            (&[0x10u8][..], 0x10),
            (&[1, 2], 0x201),
            (&[1, 2, 3, 4], 0x0403_0201),
        ] {
            let exit = Action::Shutdown(ShutdownCause::DebugExit(value));
            assert_eq!(bus.write(0xf4, data), exit);
        }
        let mut byte = [0xff];
        bus.read(0xf4, &mut byte);
        assert_eq!(byte, [0]);
        device.restore(device.save().unwrap()).unwrap();
    }

    #[test]
    fn ports_that_do_not_exist_are_refused() {
        assert!(DebugExit::new(DEFAULT_IOBASE, DEFAULT_IOSIZE).is_ok());
        assert!(DebugExit::new(0xffff, 1).is_ok());
        for (base, size) in [(0xffff, 2), (0x501, 0), (0x501, 3)] {
            assert!(DebugExit::new(base, size).is_err());
        }
    }
}
