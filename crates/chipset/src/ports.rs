use std::sync::Arc;

use bus::{Action, Device, Range};

/// A device of byte-wide ports, as on the ISA bus. It gets absolute port numbers.
pub trait Ports: Send + Sync {
    /// Reads the port.
    fn read_port(&self, port: u16) -> u8;

    /// Writes the port and returns what that did to the machine.
    fn write_port(&self, port: u16, value: u8) -> Action;
}

/// Port ranges and the device behind each, ready for [`bus::Bus::insert`].
pub type PortMap = Vec<(Range, Arc<dyn Device>)>;

/// One range of ports of a byte-wide device.
///
/// Wider accesses become byte accesses in ascending order, as the ISA bus does it; bytes past
/// the range's end read as ones.
pub struct PortBank<D: ?Sized> {
    base: u16,
    size: u16,
    device: Arc<D>,
}

/// The range `base .. base + size` of `device`.
pub fn bank<D: Ports + 'static>(device: &Arc<D>, base: u16, size: u16) -> (Range, Arc<dyn Device>) {
    let bank = PortBank {
        base,
        size,
        device: Arc::clone(device),
    };
    (Range::new(u64::from(base), u64::from(size)), Arc::new(bank))
}

impl<D: ?Sized> PortBank<D> {
    fn port(&self, offset: u64, index: usize) -> Option<u16> {
        let offset = offset.checked_add(u64::try_from(index).ok()?)?;
        let offset = u16::try_from(offset).ok().filter(|o| *o < self.size)?;
        self.base.checked_add(offset)
    }
}

impl<D: Ports + ?Sized> Device for PortBank<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self
                .port(offset, i)
                .map_or(0xff, |port| self.device.read_port(port));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut consequence = Action::None;
        for (i, byte) in data.iter().enumerate() {
            if let Some(port) = self.port(offset, i) {
                let action = self.device.write_port(port, *byte);
                if consequence == Action::None {
                    consequence = action;
                }
            }
        }
        consequence
    }
}
