use super::channel::Channel;
use super::state::State;
use crate::clock::{ns_of, ticks_of};

/// Counter 0; 1 and 2 follow.
pub const COUNTER_0: u16 = 0x40;
/// Control word.
pub const CONTROL: u16 = 0x43;
/// NMI status and control: the gate and output of counter 2 (ICH9 datasheet 13.7.1).
pub const PORT_61: u16 = 0x61;

/// Frequency of the counters' input in Hz.
pub const FREQUENCY: u64 = 1_193_182;

/// The refresh request toggles about every 15 microseconds.
const REFRESH_NS: u64 = 15_085;

/// The shortest time between two wake-ups for interrupts. A guest that programs a period of a
/// few ticks would otherwise keep a host processor busy with nothing else.
const SHORTEST_NS: u64 = 100_000;

/// What becomes of the wire of IRQ 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// The output has risen since it was looked at last: the wire falls and rises again. Several
    /// rises that were missed make one edge, so that a late host does not make a storm.
    pub edge: bool,
    /// The level that the wire has then.
    pub level: bool,
}

/// The 8254 programmable interval timer of a PC (Intel 8254 datasheet, order 231164) and the
/// parts of port 0x61 that belong to it. `now` is guest time in nanoseconds. After each access
/// the owner calls [`Model::line`] and [`Model::deadline`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Model {
    state: State,
    /// Counter 0 has risen and [`Model::line`] has not told yet.
    risen: bool,
}

impl Model {
    /// After power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::from_state(State::new())
    }

    /// A timer in `state`, which [`State::check`] has passed.
    #[must_use]
    pub fn from_state(state: State) -> Self {
        Self {
            state,
            risen: false,
        }
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Reads a port.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        let tick = self.advance(now);
        if port == PORT_61 {
            let refresh = u8::from(now / REFRESH_NS % 2 == 1);
            let gate = u8::from(self.state.channels[2].gate);
            let output = u8::from(self.channel(2, tick).output(tick));
            return output << 5 | refresh << 4 | self.state.port61 | gate;
        }
        match port.checked_sub(COUNTER_0) {
            Some(n @ 0..=2) => self.channel(usize::from(n), tick).read(tick),
            // The control word cannot be read.
            _ => 0xff,
        }
    }

    /// Writes a port.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        let tick = self.advance(now);
        match port {
            PORT_61 => {
                self.state.port61 = value & 0x0e;
                self.channel(2, tick).set_gate(value & 1 != 0, tick);
            }
            CONTROL => self.control(value, tick),
            _ => {
                if let Some(n @ 0..=2) = port.checked_sub(COUNTER_0) {
                    self.channel(usize::from(n), tick).write(value, tick);
                }
            }
        }
    }

    /// Brings the wire of IRQ 0 up to `now`.
    pub fn line(&mut self, now: u64) -> Line {
        let tick = self.advance(now);
        Line {
            edge: std::mem::take(&mut self.risen),
            level: self.channel(0, tick).output(tick),
        }
    }

    /// The level that [`Model::line`] told last.
    #[must_use]
    pub fn level(&self) -> bool {
        let mut channel = self.state.channels[0].clone();
        Channel(&mut channel).output(self.state.served)
    }

    /// When [`Model::line`] is due next, in guest time; for a periodic output never sooner than
    /// 100 microseconds from now.
    #[must_use]
    pub fn deadline(&mut self, now: u64) -> Option<u64> {
        let tick = ticks_of(now, FREQUENCY);
        let rise = self.channel(0, tick).next_rise(tick)?;
        let at = ns_of(rise, FREQUENCY);
        let periodic = matches!(self.state.channels[0].mode, 2 | 3);
        Some(if periodic {
            at.max(now.saturating_add(SHORTEST_NS))
        } else {
            at
        })
    }

    /// Notes the rises of counter 0 up to `now` before anything changes what it counts.
    fn advance(&mut self, now: u64) -> u64 {
        let tick = ticks_of(now, FREQUENCY);
        let served = self.state.served;
        let channel = Channel(&mut self.state.channels[0]);
        let risen = channel.rises(served, tick) > 0;
        let risen = self.channel(0, tick).rises(served, tick) > 0 || risen;
        self.risen |= risen;
        self.state.served = tick;
        tick
    }

    fn control(&mut self, value: u8, tick: u64) {
        let select = usize::from(value >> 6);
        if select == 3 {
            for n in (0..3).filter(|n| value & 2 << n != 0) {
                let mut channel = self.channel(n, tick);
                if value & 0x20 == 0 {
                    channel.latch_count(tick);
                }
                if value & 0x10 == 0 {
                    channel.latch_status(tick);
                }
            }
        } else if value & 0x30 == 0 {
            self.channel(select, tick).latch_count(tick);
        } else {
            self.channel(select, tick).control(value);
        }
    }

    /// Counter `n`, 0 to 2, with what happened up to `tick` taken into account.
    fn channel(&mut self, n: usize, tick: u64) -> Channel<'_> {
        let mut channel = Channel(&mut self.state.channels[n]);
        channel.settle(tick);
        channel
    }
}
