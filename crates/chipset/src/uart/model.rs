use super::state::State;

/// Bytes that each FIFO holds.
pub const FIFO_SIZE: usize = 16;
/// Number of ports.
pub const PORTS: u16 = 8;

/// Receive buffer, transmit holding; divisor low with LCR.DLAB.
const DATA: u16 = 0;
/// Interrupt enable; divisor high with LCR.DLAB.
const IER: u16 = 1;
/// Interrupt identification when read, FIFO control when written.
const IIR_FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCR: u16 = 7;

mod ier {
    pub const RECEIVED: u8 = 0x01;
    pub const THRE: u8 = 0x02;
    pub const LINE: u8 = 0x04;
    pub const MODEM: u8 = 0x08;
}

mod iir {
    pub const MODEM: u8 = 0x00;
    pub const NONE: u8 = 0x01;
    pub const THRE: u8 = 0x02;
    pub const RECEIVED: u8 = 0x04;
    pub const LINE: u8 = 0x06;
    pub const TIMEOUT: u8 = 0x0c;
    pub const FIFOS: u8 = 0xc0;
}

mod fcr {
    pub const ENABLE: u8 = 0x01;
    pub const CLEAR_RX: u8 = 0x02;
    pub const CLEAR_TX: u8 = 0x04;
    pub const TRIGGER: u8 = 0xc0;
}

const DLAB: u8 = 0x80;

mod mcr {
    pub const DTR: u8 = 0x01;
    pub const RTS: u8 = 0x02;
    pub const OUT1: u8 = 0x04;
    pub const OUT2: u8 = 0x08;
    pub const LOOP: u8 = 0x10;
    pub const DEFINED: u8 = 0x1f;
}

mod lsr {
    pub const DATA_READY: u8 = 0x01;
    pub const OVERRUN: u8 = 0x02;
    pub const BREAK: u8 = 0x10;
    pub const THRE: u8 = 0x20;
    pub const TEMT: u8 = 0x40;
    pub const ERRORS: u8 = 0x1e;
}

mod msr {
    pub const TRAILING_RING: u8 = 0x04;
    pub const CTS: u8 = 0x10;
    pub const DSR: u8 = 0x20;
    pub const RING: u8 = 0x40;
    pub const DCD: u8 = 0x80;
}

/// The modem inputs of a connected line.
const CONNECTED: u8 = msr::CTS | msr::DSR | msr::DCD;

/// The NS16550A UART (National Semiconductor datasheet, June 1995). Transmitted bytes wait in
/// the model until [`Model::sent`] says that the other side has taken them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model(State);

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// After power-on, with the other side connected.
    #[must_use]
    pub fn new() -> Self {
        Self(State {
            lcr: 0x03,
            mcr: mcr::OUT2,
            msr: CONNECTED,
            // 9600 baud.
            divisor: 12,
            ..State::default()
        })
    }

    /// A UART in `state`, which [`State::check`] has passed.
    #[must_use]
    pub fn from_state(state: State) -> Self {
        Self(state)
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.0
    }

    /// The bytes to transmit.
    #[must_use]
    pub fn unsent(&self) -> &[u8] {
        &self.0.tx
    }

    /// The other side has taken the first `count` unsent bytes.
    pub fn sent(&mut self, count: usize) {
        let count = count.min(self.0.tx.len());
        if count > 0 {
            self.0.tx.drain(..count);
            self.0.thre_pending |= self.0.tx.is_empty();
        }
    }

    /// How many bytes [`Model::receive`] takes now. None in loopback: the line is disconnected.
    #[must_use]
    pub fn space(&self) -> usize {
        if self.0.mcr & mcr::LOOP != 0 {
            return 0;
        }
        self.capacity().saturating_sub(self.0.rx.len())
    }

    /// Bytes arrive; returns how many fit.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.space());
        self.0.rx.extend(bytes.iter().take(count));
        // Time does not pass on the line: what arrived stops arriving at once, so that bytes
        // below the trigger level time out immediately.
        self.0.timeout_pending |= count > 0;
        count
    }

    /// A break arrives, as SysRq uses it.
    pub fn receive_break(&mut self) {
        if self.receive(&[0]) == 1 {
            self.0.lsr_errors |= lsr::BREAK;
        }
    }

    /// The interrupt's level. The PC's UARTs reach their wire through OUT2.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.0.mcr & mcr::OUT2 != 0 && self.0.mcr & mcr::LOOP == 0 && self.cause() != iir::NONE
    }

    /// Reads register `offset`, 0 to 7.
    pub fn read(&mut self, offset: u16) -> u8 {
        let dlab = self.0.lcr & DLAB != 0;
        match offset {
            DATA if dlab => self.0.divisor as u8,
            DATA => self.pop(),
            IER if dlab => (self.0.divisor >> 8) as u8,
            IER => self.0.ier,
            IIR_FCR => {
                let cause = self.cause();
                if cause == iir::THRE {
                    self.0.thre_pending = false;
                }
                cause | if self.fifos() { iir::FIFOS } else { 0 }
            }
            LCR => self.0.lcr,
            MCR => self.0.mcr,
            LSR => self.line_status(),
            MSR => {
                let value = self.modem_inputs() | self.0.msr & 0x0f;
                self.0.msr &= 0xf0;
                value
            }
            SCR => self.0.scr,
            _ => 0xff,
        }
    }

    /// Writes register `offset`, 0 to 7.
    pub fn write(&mut self, offset: u16, value: u8) {
        let dlab = self.0.lcr & DLAB != 0;
        match offset {
            DATA if dlab => self.0.divisor = self.0.divisor & 0xff00 | u16::from(value),
            DATA => self.push(value),
            IER if dlab => self.0.divisor = self.0.divisor & 0xff | u16::from(value) << 8,
            IER => {
                // Enabling the interrupt of an empty transmitter raises it.
                let enabled = value & !self.0.ier & ier::THRE != 0;
                self.0.thre_pending |= enabled && self.0.tx.is_empty();
                self.0.ier = value & 0x0f;
            }
            IIR_FCR => self.fifo_control(value),
            LCR => self.0.lcr = value,
            MCR => {
                let before = self.modem_inputs();
                self.0.mcr = value & mcr::DEFINED;
                self.note_deltas(before);
            }
            SCR => self.0.scr = value,
            _ => (),
        }
    }

    fn fifos(&self) -> bool {
        self.0.fcr & fcr::ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.fifos() { FIFO_SIZE } else { 1 }
    }

    fn trigger(&self) -> usize {
        match (self.fifos(), self.0.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// The most urgent interrupt, as IIR tells it.
    fn cause(&self) -> u8 {
        let s = &self.0;
        let enabled = |bit| s.ier & bit != 0;
        if enabled(ier::LINE) && s.lsr_errors != 0 {
            iir::LINE
        } else if enabled(ier::RECEIVED) && s.rx.len() >= self.trigger() {
            iir::RECEIVED
        } else if enabled(ier::RECEIVED) && s.timeout_pending && !s.rx.is_empty() {
            iir::TIMEOUT
        } else if enabled(ier::THRE) && s.thre_pending {
            iir::THRE
        } else if enabled(ier::MODEM) && s.msr & 0x0f != 0 {
            iir::MODEM
        } else {
            iir::NONE
        }
    }

    fn pop(&mut self) -> u8 {
        if self.0.rx.is_empty() {
            return 0;
        }
        let byte = self.0.rx.remove(0);
        // The rest, if any, is still there and still not growing.
        self.0.timeout_pending = !self.0.rx.is_empty();
        byte
    }

    fn push(&mut self, value: u8) {
        self.0.thre_pending = false;
        if self.0.mcr & mcr::LOOP != 0 {
            if self.0.rx.len() < self.capacity() {
                self.0.rx.push(value);
                self.0.timeout_pending = true;
            } else {
                self.0.lsr_errors |= lsr::OVERRUN;
            }
            self.0.thre_pending = true;
        } else if self.0.tx.len() < self.capacity() {
            self.0.tx.push(value);
        } else if let Some(last) = self.0.tx.last_mut() {
            // The guest did not wait for THRE: the newest byte in the holding register loses.
            *last = value;
        }
    }

    fn fifo_control(&mut self, value: u8) {
        let toggled = (value ^ self.0.fcr) & fcr::ENABLE != 0;
        if toggled || value & fcr::CLEAR_RX != 0 {
            self.0.rx.clear();
            self.0.timeout_pending = false;
        }
        // What the guest has sent is on its way to a slow other side, not waiting in a chip:
        // clearing the transmitter loses nothing.
        if value & fcr::CLEAR_TX != 0 && self.0.tx.is_empty() {
            self.0.thre_pending = true;
        }
        self.0.fcr = if value & fcr::ENABLE != 0 {
            value & (fcr::ENABLE | fcr::TRIGGER)
        } else {
            0
        };
    }

    fn line_status(&mut self) -> u8 {
        let mut value = std::mem::take(&mut self.0.lsr_errors) & lsr::ERRORS;
        if !self.0.rx.is_empty() {
            value |= lsr::DATA_READY;
        }
        if self.0.tx.is_empty() {
            value |= lsr::THRE | lsr::TEMT;
        }
        value
    }

    /// The modem inputs; in loopback they are the modem outputs.
    fn modem_inputs(&self) -> u8 {
        let outputs = self.0.mcr;
        if outputs & mcr::LOOP == 0 {
            return self.0.msr & 0xf0;
        }
        [
            (mcr::RTS, msr::CTS),
            (mcr::DTR, msr::DSR),
            (mcr::OUT1, msr::RING),
            (mcr::OUT2, msr::DCD),
        ]
        .iter()
        .filter(|(output, _)| outputs & output != 0)
        .fold(0, |inputs, (_, input)| inputs | input)
    }

    fn note_deltas(&mut self, before: u8) {
        let now = self.modem_inputs();
        let changed = (before ^ now) >> 4;
        let rang = before & !now & msr::RING != 0;
        let deltas = changed & !msr::TRAILING_RING | if rang { msr::TRAILING_RING } else { 0 };
        self.0.msr |= deltas;
    }
}
