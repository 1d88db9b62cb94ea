//! A 16550 with a chardev behind it.

use std::sync::{Arc, OnceLock, Weak};

use bus::IrqLine;
use chardev::{Chardev, Front, Link, Target};
use chipset::uart::{SerialOutput, Uart};
use event::IoThread;

use crate::error::MachineError;

/// The UART's way out.
struct Line(Arc<Link>);

impl SerialOutput for Line {
    fn write(&mut self, bytes: &[u8]) -> usize {
        self.0.send(bytes)
    }

    fn space(&mut self) {
        self.0.resume();
    }
}

/// The UART as the chardev sees it.
struct SerialFront(OnceLock<Weak<Uart>>);

impl SerialFront {
    fn uart(&self) -> Option<Arc<Uart>> {
        self.0.get().and_then(Weak::upgrade)
    }
}

impl Front for SerialFront {
    fn receive(&self, data: &[u8]) -> usize {
        self.uart().map_or(data.len(), |uart| uart.receive(data))
    }

    fn can_send(&self) {
        if let Some(uart) = self.uart() {
            uart.resume_output();
        }
    }

    /// The modem lines of a PC's serial port have no meaning here: a console is always there.
    fn connected(&self, _connected: bool) {}
}

/// Makes the UART at `base` and starts its chardev on `thread`.
pub(crate) fn connect(
    base: u16,
    irq: IrqLine,
    target: &Target,
    thread: &IoThread,
    escape: chardev::Escape,
) -> Result<(Arc<Uart>, Chardev), MachineError> {
    let (mut chardev, link) = Chardev::open(target, Some(escape)).map_err(MachineError::step(
        format!("connect a serial port to {target}"),
    ))?;
    let uart = Uart::new(base, irq, Box::new(Line(link)));
    let front = SerialFront(OnceLock::from(Arc::downgrade(&uart)));
    chardev.start(thread, Arc::new(front));
    if matches!(target, Target::Pty) {
        log::info!("serial port at {base:#x} is at {}", chardev.description());
    }
    Ok((uart, chardev))
}
