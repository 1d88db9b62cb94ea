use serde::{Deserialize, Serialize};
use state::StateError;

/// Kind of the payload.
pub const KIND: &str = "i8254";
/// Version of the payload.
pub const VERSION: u32 = 1;

/// How a counter's 16 bits are accessed (control word bits 4 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Access {
    /// Least significant byte only.
    Low,
    /// Most significant byte only.
    High,
    /// Least significant byte first, then the most significant one.
    #[default]
    Both,
}

/// One counter. Times are in ticks of the 1.193182 MHz input since guest time 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelState {
    /// Mode 0 to 5.
    pub mode: u8,
    /// Counts in four decimal digits.
    pub bcd: bool,
    /// Access of the count.
    pub access: Access,
    /// The gate input.
    pub gate: bool,
    /// Count to load, 1 to 0x10000; `None` after a control word until a count is written.
    pub reload: Option<u32>,
    /// In modes 2 and 3, the count that takes the place of `reload` when its period ends; in
    /// modes 1 and 5, with the next trigger.
    pub next_reload: Option<u32>,
    /// Tick at which counting (re)started; `None` while nothing is loaded or triggered.
    pub start: Option<u64>,
    /// While the gate holds the counter: ticks that it had counted.
    pub held: Option<u64>,
    /// First byte of a count written low byte first.
    pub write_low: Option<u8>,
    /// The next read gives the most significant byte.
    pub read_high: bool,
    /// Latched count, and how many of its bytes are still to be read.
    pub latch: Option<(u16, u8)>,
    /// Latched status.
    pub status: Option<u8>,
}

/// The whole 8254 and port 0x61.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Counters 0 (interrupt), 1 (refresh, unused) and 2 (speaker).
    pub channels: [ChannelState; 3],
    /// Port 0x61 bits 1 to 3 as written.
    pub port61: u8,
    /// Up to which tick the rises of counter 0's output have been turned into interrupts.
    pub served: u64,
}

impl State {
    /// After power-on: no counter is programmed.
    #[must_use]
    pub fn new() -> Self {
        let channel = |gate| ChannelState {
            mode: 0,
            bcd: false,
            access: Access::Both,
            gate,
            reload: None,
            next_reload: None,
            start: None,
            held: None,
            write_low: None,
            read_high: false,
            latch: None,
            status: None,
        };
        Self {
            channels: [channel(true), channel(true), channel(false)],
            port61: 0,
            served: 0,
        }
    }

    /// Checks what no counter could hold.
    ///
    /// # Errors
    /// [`StateError::Invalid`] names the value.
    pub fn check(&self) -> Result<(), StateError> {
        let invalid = |why| Err(StateError::Invalid { kind: KIND, why });
        for (i, c) in self.channels.iter().enumerate() {
            if c.mode > 5 {
                return invalid(format!("channel {i} mode {}", c.mode));
            }
            for count in [c.reload, c.next_reload].into_iter().flatten() {
                if !(1..=0x1_0000).contains(&count) {
                    return invalid(format!("channel {i} count {count:#x}"));
                }
            }
            if c.latch.is_some_and(|l| !(1..=2).contains(&l.1)) {
                return invalid(format!("channel {i} latch {:?}", c.latch));
            }
        }
        if self.port61 & !0x0e != 0 {
            return invalid(format!("port 0x61 {:#x}", self.port61));
        }
        Ok(())
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}
