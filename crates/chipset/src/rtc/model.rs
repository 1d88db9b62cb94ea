use super::calendar::{SECONDS_PER_DAY, date_from_days, day_of_week, days_from_date};
use super::state::{OFFSET_LIMIT_S, State};
use crate::clock::{NS_PER_SEC, ns_of, ticks_of};

/// Number of cells.
pub const CELLS: usize = 128;
/// Index port; bit 7 masks NMIs.
pub const INDEX: u16 = 0x70;
/// Data port.
pub const DATA: u16 = 0x71;

/// Names of cells.
pub mod cell {
    /// Seconds.
    pub const SECONDS: u8 = 0x00;
    /// Alarm: seconds.
    pub const SECONDS_ALARM: u8 = 0x01;
    /// Minutes.
    pub const MINUTES: u8 = 0x02;
    /// Alarm: minutes.
    pub const MINUTES_ALARM: u8 = 0x03;
    /// Hours.
    pub const HOURS: u8 = 0x04;
    /// Alarm: hours.
    pub const HOURS_ALARM: u8 = 0x05;
    /// Day of the week, 1 is Sunday.
    pub const DAY_OF_WEEK: u8 = 0x06;
    /// Day of the month.
    pub const DAY_OF_MONTH: u8 = 0x07;
    /// Month.
    pub const MONTH: u8 = 0x08;
    /// Year of the century.
    pub const YEAR: u8 = 0x09;
    /// Update in progress, divider, periodic rate.
    pub const REG_A: u8 = 0x0a;
    /// Modes and interrupt enables.
    pub const REG_B: u8 = 0x0b;
    /// Interrupt flags.
    pub const REG_C: u8 = 0x0c;
    /// Battery.
    pub const REG_D: u8 = 0x0d;
    /// Shutdown status: how firmware goes on after a reset.
    pub const SHUTDOWN_STATUS: u8 = 0x0f;
    /// Equipment byte.
    pub const EQUIPMENT: u8 = 0x14;
    /// Base memory in KiB, two bytes.
    pub const BASE_MEMORY: u8 = 0x15;
    /// Memory above 1 MiB in KiB, two bytes.
    pub const EXTENDED_MEMORY: u8 = 0x17;
    /// The same as [`EXTENDED_MEMORY`], as measured by firmware.
    pub const EXTENDED_MEMORY_POST: u8 = 0x30;
    /// Century.
    pub const CENTURY: u8 = 0x32;
    /// Memory above 16 MiB and below 4 GiB in 64 KiB, two bytes.
    pub const MEMORY_ABOVE_16M: u8 = 0x34;
    /// Memory above 4 GiB in 64 KiB, three bytes.
    pub const MEMORY_ABOVE_4G: u8 = 0x5b;
    /// Number of processors minus 1.
    pub const CPUS: u8 = 0x5f;
}

use cell::{CENTURY, REG_A, REG_B, REG_C, REG_D};

/// Register B (MC146818A datasheet).
mod b {
    pub const HOURS_24: u8 = 0x02;
    pub const BINARY: u8 = 0x04;
    pub const SQWE: u8 = 0x08;
    pub const UIE: u8 = 0x10;
    pub const AIE: u8 = 0x20;
    pub const PIE: u8 = 0x40;
    pub const SET: u8 = 0x80;
}

/// Register C; each flag has the place of its enable in register B.
mod c {
    pub const UF: u8 = 0x10;
    pub const AF: u8 = 0x20;
    pub const PF: u8 = 0x40;
    pub const IRQF: u8 = 0x80;
    pub const FLAGS: u8 = UF | AF | PF;
}

/// Register A: update in progress.
const UIP: u8 = 0x80;
/// Register A: both upper divider bits hold the divider in reset.
const DIVIDER_RESET: u8 = 0x60;
/// How long before the update UIP is set.
const UIP_NS: i128 = 244_000;

const SECOND: i128 = NS_PER_SEC as i128;
const OSCILLATOR: u64 = 32_768;

/// An alarm is looked for again after a minute at the latest, as the host's time may be stepped.
const LONGEST_WAIT_NS: i128 = 60 * SECOND;

/// What time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Guest time in nanoseconds.
    pub guest_ns: u64,
    /// The host's time of day in nanoseconds since 1970.
    pub unix_ns: i64,
}

/// The MC146818A real-time clock with 128 cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model(State);

impl Model {
    /// A clock that is `offset_s` seconds ahead of the host's time of day, 24 hours, decimal.
    #[must_use]
    pub fn new(offset_s: i64, now: Now) -> Self {
        let mut cells = vec![0; CELLS];
        cells[usize::from(REG_A)] = 0x26;
        cells[usize::from(REG_B)] = b::HOURS_24;
        let mut model = Self(State {
            index: 0,
            nmi_masked: false,
            cells,
            offset_s: 0,
            offset_sub_ns: 0,
            second: 0,
            cycle: ticks_of(now.guest_ns, OSCILLATOR),
        });
        model.set_offset(i128::from(offset_s) * SECOND, now);
        model
    }

    /// A clock in `state`, which [`State::check`] has passed.
    #[must_use]
    pub fn from_state(state: State) -> Self {
        Self(state)
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.0
    }

    /// The reset pin: interrupts off. The time and the memory live on the battery.
    pub fn reset(&mut self) {
        let reg_b = self.get(REG_B) & !(b::PIE | b::AIE | b::UIE | b::SQWE);
        self.set(REG_B, reg_b);
        self.set(REG_C, 0);
        self.0.index = 0;
        self.0.nmi_masked = false;
    }

    /// The interrupt's level.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.get(REG_C) & self.get(REG_B) & c::FLAGS != 0
    }

    /// A cell as stored, for firmware's cells (not the time's).
    #[must_use]
    pub fn get(&self, index: u8) -> u8 {
        self.0.cells.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// Stores a cell without any side effect.
    pub fn set(&mut self, index: u8, value: u8) {
        if let Some(cell) = self.0.cells.get_mut(usize::from(index)) {
            *cell = value;
        }
    }

    /// Reads a port.
    pub fn read(&mut self, port: u16, now: Now) -> u8 {
        self.advance(now);
        if port != DATA {
            // The index port is write-only.
            return 0xff;
        }
        let index = self.0.index;
        match index {
            REG_A => self.get(REG_A) | if self.updating(now) { UIP } else { 0 },
            REG_C => {
                let irq = if self.irq() { c::IRQF } else { 0 };
                let flags = self.get(REG_C) | irq;
                self.set(REG_C, 0);
                flags
            }
            REG_D => 0x80,
            _ if is_time(index) && !self.frozen() => self.time_cell(index, now),
            _ => self.get(index),
        }
    }

    /// Writes a port.
    pub fn write(&mut self, port: u16, value: u8, now: Now) {
        self.advance(now);
        if port != DATA {
            self.0.index = value & 0x7f;
            self.0.nmi_masked = value & 0x80 != 0;
            return;
        }
        let index = self.0.index;
        match index {
            REG_A => self.control(REG_A, value & !UIP, now),
            REG_B => {
                // SET also ends update interrupts.
                let value = if value & b::SET != 0 {
                    value & !b::UIE
                } else {
                    value
                };
                self.control(REG_B, value, now);
            }
            REG_C | REG_D => (),
            _ if is_time(index) && !self.frozen() => {
                let fraction = self.time_ns(now).rem_euclid(SECOND);
                self.store_time(now);
                self.set(index, value);
                self.load_time(fraction, now);
            }
            _ => self.set(index, value),
        }
    }

    /// Puts into register C what has happened up to `now`.
    pub fn advance(&mut self, now: Now) {
        let cycle = ticks_of(now.guest_ns, OSCILLATOR);
        if let Some(period) = self.period()
            && cycle / period != self.0.cycle / period
        {
            self.raise(c::PF);
        }
        self.0.cycle = cycle;
        if self.frozen() {
            return;
        }
        let second = self.second(now);
        if second > self.0.second {
            self.raise(c::UF);
            if self
                .next_alarm(self.0.second)
                .is_some_and(|at| at <= second)
            {
                self.raise(c::AF);
            }
        }
        self.0.second = second;
    }

    /// The guest time at which [`Model::advance`] would raise an enabled interrupt that is not
    /// raised yet.
    #[must_use]
    pub fn deadline(&self, now: Now) -> Option<u64> {
        let waiting = self.get(REG_B) & !self.get(REG_C);
        let periodic = self
            .period()
            .filter(|_| waiting & b::PIE != 0)
            .map(|period| {
                let cycle = ticks_of(now.guest_ns, OSCILLATOR);
                ns_of((cycle / period + 1).saturating_mul(period), OSCILLATOR)
            });
        let time = self.time_ns(now);
        let second = self.second(now);
        let update = (waiting & b::UIE != 0).then(|| second.saturating_add(1));
        let alarm = (waiting & b::AIE != 0)
            .then(|| self.next_alarm(second))
            .flatten();
        let by_time = [update, alarm]
            .into_iter()
            .flatten()
            .min()
            .filter(|_| !self.frozen())
            .map(|second| {
                let wait = i128::from(second) * SECOND - time;
                let wait = wait.clamp(0, LONGEST_WAIT_NS) as u64;
                now.guest_ns.saturating_add(wait)
            });
        [periodic, by_time].into_iter().flatten().min()
    }

    fn raise(&mut self, flag: u8) {
        let flags = self.get(REG_C) | flag;
        self.set(REG_C, flags);
    }

    /// Cycles of the oscillator between two periodic flags.
    fn period(&self) -> Option<u64> {
        let reg_a = self.get(REG_A);
        match reg_a & 0x0f {
            _ if reg_a & DIVIDER_RESET == DIVIDER_RESET => None,
            0 => None,
            // The two lowest rates are made of the chain's other end.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// The guest sets the clock, or holds its divider.
    fn frozen(&self) -> bool {
        self.get(REG_B) & b::SET != 0 || self.get(REG_A) & DIVIDER_RESET == DIVIDER_RESET
    }

    fn updating(&self, now: Now) -> bool {
        !self.frozen() && self.time_ns(now).rem_euclid(SECOND) >= SECOND - UIP_NS
    }

    fn control(&mut self, index: u8, value: u8, now: Now) {
        let was_frozen = self.frozen();
        let divider_was_reset = self.get(REG_A) & DIVIDER_RESET == DIVIDER_RESET;
        let fraction = self.time_ns(now).rem_euclid(SECOND);
        if !was_frozen {
            self.store_time(now);
        }
        self.set(index, value);
        if was_frozen && !self.frozen() {
            // The first update comes half a second after the divider is let go.
            let half = SECOND / 2;
            self.load_time(if divider_was_reset { half } else { fraction }, now);
        }
    }

    /// The clock's time in nanoseconds since 1970.
    fn time_ns(&self, now: Now) -> i128 {
        i128::from(now.unix_ns)
            + i128::from(self.0.offset_s) * SECOND
            + i128::from(self.0.offset_sub_ns)
    }

    /// The clock's time in whole seconds since 1970; in range by the limit on the offset.
    fn second(&self, now: Now) -> i64 {
        self.time_ns(now).div_euclid(SECOND) as i64
    }

    fn set_offset(&mut self, offset_ns: i128, now: Now) {
        let limit = i128::from(OFFSET_LIMIT_S);
        self.0.offset_s = offset_ns.div_euclid(SECOND).clamp(-limit, limit) as i64;
        self.0.offset_sub_ns = offset_ns.rem_euclid(SECOND) as u32;
        self.0.second = self.second(now);
    }

    fn store_time(&mut self, now: Now) {
        for index in (0..=cell::YEAR).chain([CENTURY]).filter(|i| is_time(*i)) {
            let value = self.time_cell(index, now);
            self.set(index, value);
        }
    }

    fn load_time(&mut self, fraction_ns: i128, now: Now) {
        let value = |index| self.decode(self.get(index));
        let year = value(CENTURY) * 100 + value(cell::YEAR);
        let month = value(cell::MONTH).clamp(1, 12);
        let days = days_from_date(year, month, value(cell::DAY_OF_MONTH));
        let second = days * SECONDS_PER_DAY
            + self.decode_hour(self.get(cell::HOURS)) * 3600
            + value(cell::MINUTES) * 60
            + value(cell::SECONDS);
        let time = i128::from(second) * SECOND + fraction_ns;
        self.set_offset(time - i128::from(now.unix_ns), now);
    }

    fn time_cell(&self, index: u8, now: Now) -> u8 {
        let second = self.second(now);
        let days = second.div_euclid(SECONDS_PER_DAY);
        let of_day = second.rem_euclid(SECONDS_PER_DAY);
        let (year, month, day) = date_from_days(days);
        match index {
            cell::SECONDS => self.encode(of_day % 60),
            cell::MINUTES => self.encode(of_day / 60 % 60),
            cell::HOURS => self.encode_hour(of_day / 3600),
            cell::DAY_OF_WEEK => self.encode(day_of_week(days)),
            cell::DAY_OF_MONTH => self.encode(day),
            cell::MONTH => self.encode(month),
            cell::YEAR => self.encode(year.rem_euclid(100)),
            _ => self.encode(year.div_euclid(100).rem_euclid(100)),
        }
    }

    fn binary(&self) -> bool {
        self.get(REG_B) & b::BINARY != 0
    }

    fn encode(&self, value: i64) -> u8 {
        if self.binary() {
            value as u8
        } else {
            (value / 10 * 16 + value % 10) as u8
        }
    }

    fn decode(&self, value: u8) -> i64 {
        if self.binary() {
            i64::from(value)
        } else {
            i64::from(value >> 4) * 10 + i64::from(value & 0xf)
        }
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.get(REG_B) & b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, value: u8) -> i64 {
        if self.get(REG_B) & b::HOURS_24 != 0 {
            return self.decode(value);
        }
        let afternoon = if value & 0x80 != 0 { 12 } else { 0 };
        self.decode(value & 0x7f) % 12 + afternoon
    }

    /// The first second after `second` at which the alarm goes off.
    fn next_alarm(&self, second: i64) -> Option<i64> {
        let first = second.saturating_add(1);
        let of_day = first.rem_euclid(SECONDS_PER_DAY);
        let wanted = |index: u8, decode: &dyn Fn(u8) -> i64| {
            let value = self.get(index);
            // Both upper bits set: any.
            (value < 0xc0).then(|| decode(value))
        };
        let plain = |value| self.decode(value);
        let hours = wanted(cell::HOURS_ALARM, &|value| self.decode_hour(value));
        let minutes = wanted(cell::MINUTES_ALARM, &plain);
        let seconds = wanted(cell::SECONDS_ALARM, &plain);
        let fits = |wanted: Option<i64>, value: i64| wanted.is_none_or(|w| w == value);
        // From this second to the end of tomorrow, an hour, a minute, a second at a time.
        (of_day / 3600..48)
            .filter(|hour| fits(hours, hour % 24))
            .flat_map(|hour| (0..60).map(move |minute| (hour, minute)))
            .filter(|(hour, minute)| {
                fits(minutes, *minute) && hour * 3600 + minute * 60 + 59 >= of_day
            })
            .find_map(|(hour, minute)| {
                let start = hour * 3600 + minute * 60;
                let at = match seconds {
                    Some(s) if s > 59 => return None,
                    Some(s) => start + s,
                    None => start.max(of_day),
                };
                (at >= of_day).then(|| second.saturating_add(1 + at - of_day))
            })
    }
}

fn is_time(index: u8) -> bool {
    matches!(
        index,
        cell::SECONDS | cell::MINUTES | cell::HOURS | cell::DAY_OF_WEEK..=cell::YEAR | CENTURY
    )
}
