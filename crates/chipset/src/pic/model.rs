use super::state::{ChipState, InitStep, State};

/// Master command port: ICW1, OCW2, OCW3; reads IRR, ISR or a poll.
pub const MASTER_COMMAND: u16 = 0x20;
/// Master data port: ICW2 to ICW4, OCW1.
pub const MASTER_DATA: u16 = 0x21;
/// Slave command port.
pub const SLAVE_COMMAND: u16 = 0xa0;
/// Slave data port.
pub const SLAVE_DATA: u16 = 0xa1;
/// Edge/level control of IRQ 0 to 7 (ICH9 datasheet 13.4.9).
pub const ELCR_MASTER: u16 = 0x4d0;
/// Edge/level control of IRQ 8 to 15.
pub const ELCR_SLAVE: u16 = 0x4d1;

/// The master's pin on which the slave hangs.
const CASCADE: u8 = 2;

/// IRQ 0 (timer), 1 (keyboard) and 2 (cascade) are always edge-triggered.
const ELCR_MASTER_BITS: u8 = 0xf8;
/// IRQ 8 (RTC) and 13 (coprocessor) are always edge-triggered.
const ELCR_SLAVE_BITS: u8 = 0xde;

mod icw1 {
    pub const IC4: u8 = 0x01;
    pub const SNGL: u8 = 0x02;
    pub const INIT: u8 = 0x10;
}

mod icw4 {
    pub const AEOI: u8 = 0x02;
    pub const SFNM: u8 = 0x10;
}

mod ocw3 {
    pub const RIS: u8 = 0x01;
    pub const RR: u8 = 0x02;
    pub const POLL: u8 = 0x04;
    pub const SELECT: u8 = 0x08;
    pub const SMM: u8 = 0x20;
    pub const ESMM: u8 = 0x40;
}

/// One 8259A programmable interrupt controller (Intel 8259A datasheet, order 231468).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chip(ChipState);

impl Chip {
    /// A pin changes its level.
    pub fn set_level(&mut self, pin: u8, level: bool) {
        let s = &mut self.0;
        let bit = 1 << (pin & 7);
        let rose = level && s.levels & bit == 0;
        if level {
            s.levels |= bit;
        } else {
            s.levels &= !bit;
        }
        if s.elcr & bit != 0 {
            s.irr = s.irr & !bit | s.levels & bit;
        } else if rose {
            s.irr |= bit;
        }
    }

    /// The pin that the INT output asks for; `None` when the output is low.
    #[must_use]
    pub fn requested(&self, sfnm_cascade: Option<u8>) -> Option<u8> {
        let s = &self.0;
        if s.init != InitStep::Ready {
            return None;
        }
        let rank = self.first(s.irr & !s.imr)?;
        let mut in_service = s.isr;
        if s.special_mask {
            in_service &= !s.imr;
        }
        // In special fully nested mode the cascade may interrupt itself: the slave has a more
        // urgent request than the one in service.
        if let Some(cascade) = sfnm_cascade.filter(|_| s.special_fully_nested) {
            in_service &= !(1 << cascade);
        }
        let blocked = match self.first(in_service) {
            // Special mask mode enables all other levels, also less urgent ones.
            Some(_) if s.special_mask => in_service & (1 << self.pin_at(rank)) != 0,
            Some(serviced) => serviced <= rank,
            None => false,
        };
        (!blocked).then(|| self.pin_at(rank))
    }

    /// An interrupt acknowledge cycle (or a poll) for `pin`.
    fn acknowledge(&mut self, pin: u8) {
        let s = &mut self.0;
        let bit = 1 << (pin & 7);
        if s.elcr & bit == 0 {
            s.irr &= !bit;
        }
        if !s.auto_eoi {
            s.isr |= bit;
        } else if s.rotate_on_auto_eoi {
            s.lowest = pin & 7;
        }
    }

    /// Reads port 0 (`data` false) or port 1.
    pub fn read(&mut self, data: bool, sfnm_cascade: Option<u8>) -> u8 {
        if std::mem::take(&mut self.0.poll) {
            return match self.requested(sfnm_cascade) {
                Some(pin) => {
                    self.acknowledge(pin);
                    0x80 | pin
                }
                None => 0,
            };
        }
        match (data, self.0.read_isr) {
            (true, _) => self.0.imr,
            (false, true) => self.0.isr,
            (false, false) => self.0.irr,
        }
    }

    /// Writes port 0 (`data` false) or port 1.
    pub fn write(&mut self, data: bool, value: u8) {
        match (data, self.0.init) {
            (false, _) if value & icw1::INIT != 0 => self.initialize(value),
            (false, _) if value & ocw3::SELECT != 0 => self.ocw3(value),
            (false, _) => self.ocw2(value),
            (true, InitStep::Ready) => self.0.imr = value,
            (true, step) => self.icw(step, value),
        }
    }

    fn initialize(&mut self, value: u8) {
        let s = &self.0;
        // The levels stay known: a pin that is high must fall and rise again to make an edge.
        // LTIM is not decoded, as on every PC since the ELCR.
        self.0 = ChipState {
            irr: s.levels & s.elcr,
            levels: s.levels,
            elcr: s.elcr,
            vector_base: s.vector_base,
            icw3: s.icw3,
            init: InitStep::Icw2,
            wants_icw4: value & icw1::IC4 != 0,
            single: value & icw1::SNGL != 0,
            ..ChipState::new()
        };
    }

    fn icw(&mut self, step: InitStep, value: u8) {
        let s = &mut self.0;
        let last = if s.wants_icw4 {
            InitStep::Icw4
        } else {
            InitStep::Ready
        };
        s.init = match step {
            InitStep::Icw2 => {
                s.vector_base = value & 0xf8;
                if s.single { last } else { InitStep::Icw3 }
            }
            InitStep::Icw3 => {
                s.icw3 = value;
                last
            }
            InitStep::Icw4 | InitStep::Ready => {
                s.auto_eoi = value & icw4::AEOI != 0;
                s.special_fully_nested = value & icw4::SFNM != 0;
                InitStep::Ready
            }
        };
    }

    fn ocw2(&mut self, value: u8) {
        let pin = value & 7;
        match value >> 5 {
            0b000 => self.0.rotate_on_auto_eoi = false,
            0b100 => self.0.rotate_on_auto_eoi = true,
            0b001 => _ = self.end_most_urgent(),
            0b101 => {
                if let Some(ended) = self.end_most_urgent() {
                    self.0.lowest = ended;
                }
            }
            0b011 => self.0.isr &= !(1 << pin),
            0b111 => {
                self.0.isr &= !(1 << pin);
                self.0.lowest = pin;
            }
            0b110 => self.0.lowest = pin,
            _ => (),
        }
    }

    fn ocw3(&mut self, value: u8) {
        let s = &mut self.0;
        s.poll = value & ocw3::POLL != 0;
        if value & ocw3::RR != 0 {
            s.read_isr = value & ocw3::RIS != 0;
        }
        if value & ocw3::ESMM != 0 {
            s.special_mask = value & ocw3::SMM != 0;
        }
    }

    /// Ends the most urgent interrupt in service, except those masked in special mask mode.
    fn end_most_urgent(&mut self) -> Option<u8> {
        let mut in_service = self.0.isr;
        if self.0.special_mask {
            in_service &= !self.0.imr;
        }
        let pin = self.pin_at(self.first(in_service)?);
        self.0.isr &= !(1 << pin);
        Some(pin)
    }

    /// How urgent the most urgent pin among `pins` is; 0 is the most urgent.
    fn first(&self, pins: u8) -> Option<u8> {
        let rotated = pins.rotate_right(u32::from((self.0.lowest + 1) & 7));
        (rotated != 0).then(|| rotated.trailing_zeros() as u8)
    }

    fn pin_at(&self, rank: u8) -> u8 {
        (self.0.lowest + 1 + rank) & 7
    }

    fn set_elcr(&mut self, elcr: u8) {
        let s = &mut self.0;
        s.elcr = elcr;
        s.irr = s.irr & !elcr | s.levels & elcr;
    }
}

/// The two cascaded 8259As of a PC and their edge/level control registers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pair {
    master: Chip,
    slave: Chip,
}

impl Pair {
    /// After power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A pair in the given state, which [`State::check`] has passed.
    #[must_use]
    pub fn from_state(state: State) -> Self {
        Self {
            master: Chip(state.master),
            slave: Chip(state.slave),
        }
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            master: self.master.0.clone(),
            slave: self.slave.0.clone(),
        }
    }

    /// The INTR wire to the processor.
    #[must_use]
    pub fn intr(&self) -> bool {
        self.master.requested(Some(CASCADE)).is_some()
    }

    /// Sets the level of IRQ `irq`, 0 to 15. IRQ 2 is the cascade and has no wire.
    pub fn set_level(&mut self, irq: u32, level: bool) {
        match irq {
            2 => (),
            0..8 => self.master.set_level(irq as u8, level),
            8..16 => {
                self.slave.set_level((irq - 8) as u8, level);
                self.cascade();
            }
            _ => (),
        }
    }

    /// The processor's interrupt acknowledge: the vector. When the request has gone away in the
    /// meantime, the vector of IRQ 7 (or 15), and nothing is in service: a spurious interrupt.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(pin) = self.master.requested(Some(CASCADE)) else {
            return self.master.0.vector_base | 7;
        };
        self.master.acknowledge(pin);
        if pin != CASCADE {
            return self.master.0.vector_base | pin;
        }
        let slave_pin = self.slave.requested(None);
        if let Some(pin) = slave_pin {
            self.slave.acknowledge(pin);
        }
        // The slave's output falls during the acknowledge, so that its next request is an edge.
        self.master.set_level(CASCADE, false);
        self.cascade();
        self.slave.0.vector_base | slave_pin.unwrap_or(7)
    }

    /// Reads a port.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            MASTER_COMMAND | MASTER_DATA => self.master.read(port == MASTER_DATA, Some(CASCADE)),
            SLAVE_COMMAND | SLAVE_DATA => {
                let polled = self.slave.0.poll;
                let value = self.slave.read(port == SLAVE_DATA, None);
                if polled {
                    self.master.set_level(CASCADE, false);
                    self.cascade();
                }
                value
            }
            ELCR_MASTER => self.master.0.elcr,
            ELCR_SLAVE => self.slave.0.elcr,
            _ => 0xff,
        }
    }

    /// Writes a port.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            MASTER_COMMAND | MASTER_DATA => self.master.write(port == MASTER_DATA, value),
            SLAVE_COMMAND | SLAVE_DATA => self.slave.write(port == SLAVE_DATA, value),
            ELCR_MASTER => self.master.set_elcr(value & ELCR_MASTER_BITS),
            ELCR_SLAVE => self.slave.set_elcr(value & ELCR_SLAVE_BITS),
            _ => (),
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        let level = self.slave.requested(None).is_some();
        self.master.set_level(CASCADE, level);
    }
}
