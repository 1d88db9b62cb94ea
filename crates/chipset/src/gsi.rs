use std::sync::Arc;

use bus::IrqSink;

use crate::ioapic::IoApic;
use crate::pic::Pic;

/// The board's interrupt wires, numbered as ACPI's global system interrupts: 0 to 23.
///
/// Wires 0 to 15 reach both controllers, the PIC under the same number and the I/O APIC under
/// it as well, except the timer's wire 0, which is the I/O APIC's pin 2 (the interrupt source
/// override that the MADT must tell). The guest masks the controller that it does not use.
pub struct Gsi {
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
}

impl Gsi {
    /// The I/O APIC pin of the timer, ISA IRQ 0.
    pub const TIMER_PIN: u32 = 2;

    /// Wires to both controllers.
    #[must_use]
    pub fn new(pic: Arc<Pic>, ioapic: Arc<IoApic>) -> Arc<Self> {
        Arc::new(Self { pic, ioapic })
    }
}

impl IrqSink for Gsi {
    fn set_level(&self, pin: u32, level: bool) {
        if pin < 16 {
            self.pic.set_level(pin, level);
        }
        let pin = if pin == 0 { Self::TIMER_PIN } else { pin };
        self.ioapic.set_level(pin, level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pic::ExtIntSink;
    use bus::testing::RecordingHost;
    use bus::{Device, IrqLine};

    struct NoIntr;

    impl ExtIntSink for NoIntr {
        fn set_intr(&self, _asserted: bool) {}
    }

    #[test]
    fn the_timer_reaches_pin_2_and_others_their_own() {
        let host = Arc::new(RecordingHost::default());
        let pic = Pic::new(Arc::new(NoIntr));
        let ioapic = IoApic::new(host.clone(), None);
        for pin in 0u8..24 {
            _ = ioapic.write(0, &[0x10 + 2 * pin]);
            _ = ioapic.write(0x10, &[0x30 + pin, 0, 0, 0]);
        }
        let gsi = Gsi::new(pic.clone(), ioapic);
        for (pin, vector) in [(0, 0x32), (1, 0x31), (15, 0x3f), (23, 0x47)] {
            IrqLine::new(gsi.clone(), pin).pulse();
            assert_eq!(host.take_sent()[0].data, vector);
        }
        assert_eq!(crate::Ports::read_port(&*pic, 0x20), 0x03 | 0x04);
        assert_eq!(crate::Ports::read_port(&*pic, 0xa0), 0x80);
    }
}
