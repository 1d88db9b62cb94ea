//! The MC146818A real-time clock and CMOS memory, ports 0x70 and 0x71.
//!
//! ```text
//!   host's time of day + offset ──▶ time, alarm, update ──┐
//!   guest time ──▶ periodic flag ─────────────────────────┴─▶ register C ──▶ IRQ 8
//!   memory sizes, processors ──▶ cells that firmware reads
//! ```

mod calendar;
mod model;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use ::state::{Payload, StateError, Stateful};
use bus::{Action, IrqLine};

use crate::clock::{Timer, TimerHost, TimerTarget, with_timer};
use crate::ports::{PortMap, Ports, bank};
use crate::{checked, lock};

pub use model::{CELLS, DATA, INDEX, Model, Now, cell};
pub use state::{KIND, State, VERSION};

/// What time the clock shows at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RtcBase {
    /// The host's time of day in UTC.
    #[default]
    Utc,
    /// The host's local time, so many seconds east of UTC.
    LocalTime {
        /// Seconds to add to UTC.
        utc_offset_s: i64,
    },
    /// This time at start, in seconds since 1970-01-01 00:00 UTC; it goes on from there.
    Date {
        /// The time.
        unix_s: i64,
    },
}

/// The machine as firmware finds it in the cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RtcConfig {
    /// What time the clock shows.
    pub base: RtcBase,
    /// Guest memory below 4 GiB in bytes.
    pub ram_below_4g: u64,
    /// Guest memory above 4 GiB in bytes.
    pub ram_above_4g: u64,
    /// Number of processors.
    pub cpus: u32,
}

/// The real-time clock as a device.
pub struct Rtc {
    model: Mutex<Model>,
    irq: IrqLine,
    clock: Arc<dyn TimerHost>,
    timer: Box<dyn Timer>,
}

impl Rtc {
    /// A clock whose interrupt goes to `irq` (IRQ 8).
    #[must_use]
    pub fn new(clock: &Arc<dyn TimerHost>, irq: IrqLine, config: &RtcConfig) -> Arc<Self> {
        let now = now(clock);
        let offset_s = match config.base {
            RtcBase::Utc => 0,
            RtcBase::LocalTime { utc_offset_s } => utc_offset_s,
            RtcBase::Date { unix_s } => unix_s.saturating_sub(now.unix_ns / 1_000_000_000),
        };
        let mut model = Model::new(offset_s, now);
        describe_machine(&mut model, config);
        with_timer(clock, |timer| Self {
            model: Mutex::new(model),
            irq,
            clock: Arc::clone(clock),
            timer,
        })
    }

    /// The port ranges of the device.
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> PortMap {
        vec![bank(self, INDEX, 2)]
    }

    /// Reads a cell of the CMOS memory.
    #[must_use]
    pub fn nvram(&self, index: u8) -> u8 {
        lock(&self.model).get(index)
    }

    /// Writes a cell of the CMOS memory, for what else the board tells firmware. Indices above
    /// 127 do not exist.
    pub fn set_nvram(&self, index: u8, value: u8) {
        lock(&self.model).set(index, value);
    }

    /// Whether the guest masks NMIs at port 0x70.
    #[must_use]
    pub fn nmi_masked(&self) -> bool {
        lock(&self.model).state().nmi_masked
    }

    fn with<R>(&self, f: impl FnOnce(&mut Model, Now) -> R) -> R {
        let mut model = lock(&self.model);
        let now = now(&self.clock);
        let result = f(&mut model, now);
        self.irq.set(model.irq());
        self.timer.arm(model.deadline(now));
        result
    }
}

fn now(clock: &Arc<dyn TimerHost>) -> Now {
    Now {
        guest_ns: clock.now_ns(),
        unix_ns: clock.unix_ns(),
    }
}

fn describe_machine(model: &mut Model, config: &RtcConfig) {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let mut put = |index: u8, bytes: usize, value: u64| {
        // A size too large for its cells is told as the largest.
        let value = value.min((1 << (8 * bytes)) - 1);
        for (i, byte) in value.to_le_bytes().iter().take(bytes).enumerate() {
            model.set(index + i as u8, *byte);
        }
    };
    let low = config.ram_below_4g;
    let extended = low.saturating_sub(MIB) / KIB;
    // A coprocessor and a PS/2 mouse.
    put(cell::EQUIPMENT, 1, 0x06);
    put(cell::BASE_MEMORY, 2, (low / KIB).min(640));
    put(cell::EXTENDED_MEMORY, 2, extended);
    put(cell::EXTENDED_MEMORY_POST, 2, extended);
    put(
        cell::MEMORY_ABOVE_16M,
        2,
        low.saturating_sub(16 * MIB) / (64 * KIB),
    );
    put(cell::MEMORY_ABOVE_4G, 3, config.ram_above_4g / (64 * KIB));
    put(cell::CPUS, 1, u64::from(config.cpus.saturating_sub(1)));
}

impl TimerTarget for Rtc {
    fn timer_expired(&self) {
        self.with(Model::advance);
    }
}

impl Ports for Rtc {
    fn read_port(&self, port: u16) -> u8 {
        self.with(|model, now| model.read(port, now))
    }

    fn write_port(&self, port: u16, value: u8) -> Action {
        self.with(|model, now| model.write(port, value, now));
        Action::None
    }
}

impl Stateful for Rtc {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, VERSION, lock(&self.model).state())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        let state: State = checked(self, payload.decode(KIND, VERSION), State::check)?;
        let mut model = lock(&self.model);
        *model = Model::from_state(state);
        self.irq.set(model.irq());
        // What came due since the save follows at once, from the timer.
        self.timer.arm(Some(self.clock.now_ns()));
        Ok(())
    }

    /// The time and the cells live on a battery: only interrupts are switched off.
    fn reset(&self) {
        self.with(|model, _| model.reset());
    }
}
