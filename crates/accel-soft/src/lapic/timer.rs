//! The local APIC's timer (SDM vol. 3A 11.5.4). Its input clock has 1 GHz, as KVM's has.

/// The time at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Now {
    /// Nanoseconds of a clock that never stands still.
    pub(crate) ns: u64,
    /// The processor's own time stamp counter.
    pub(crate) tsc: u64,
}

/// When a timer fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deadline {
    /// At this value of [`Now::ns`].
    Ns(u64),
    /// At this value of [`Now::tsc`].
    Tsc(u64),
}

/// Shortest period of a periodic timer: a guest cannot keep its host busy with nothing else.
const SHORTEST_PERIOD_NS: u64 = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    #[default]
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            // The value 3 is reserved; a timer that never fires is the mildest reading of it.
            _ => Self::TscDeadline,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timer {
    mode: Mode,
    /// Nanoseconds of a count.
    divide: u64,
    /// Initial count.
    initial: u32,
    /// When the count reaches zero next.
    due: Option<u64>,
    tsc_deadline: u64,
}

impl Default for Timer {
    fn default() -> Self {
        Self {
            mode: Mode::OneShot,
            divide: 2,
            initial: 0,
            due: None,
            tsc_deadline: 0,
        }
    }
}

/// Divide configuration: bits 0, 1 and 3 (SDM vol. 3A figure 11-10).
fn divide(register: u32) -> u64 {
    let exponent = (register & 3 | register >> 1 & 4) + 1;
    1 << (exponent & 7)
}

impl Timer {
    /// A timer with `current` counts left.
    pub(super) fn restore(
        mode: u32,
        divide_register: u32,
        initial: u32,
        current: u32,
        now: Now,
    ) -> Self {
        let mut timer = Self {
            mode: Mode::from_bits(mode),
            divide: divide(divide_register),
            initial,
            ..Self::default()
        };
        if timer.mode != Mode::TscDeadline && initial != 0 {
            timer.due = match (timer.mode, current) {
                (Mode::OneShot, 0) => None,
                (Mode::Periodic, 0) => Some(now.ns.saturating_add(timer.period())),
                _ => Some(now.ns.saturating_add(u64::from(current) * timer.divide)),
            };
        }
        timer
    }

    fn period(&self) -> u64 {
        let period = u64::from(self.initial) * self.divide;
        match self.mode {
            Mode::Periodic => period.max(SHORTEST_PERIOD_NS),
            _ => period,
        }
    }

    /// A write of the initial count starts the timer, or stops it with zero.
    pub(super) fn start(&mut self, initial: u32, now: Now) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial = initial;
        self.due = (initial != 0).then(|| now.ns.saturating_add(self.period()));
    }

    /// What is left is counted at the new pace.
    pub(super) fn set_divide(&mut self, register: u32, now: Now) {
        let left = u64::from(self.current(now));
        self.divide = divide(register);
        if self.due.is_some() {
            self.due = Some(now.ns.saturating_add(left * self.divide));
        }
    }

    /// Sets the mode; tells whether the timer was disarmed, as a change from or to TSC-deadline
    /// mode does.
    pub(super) fn set_mode(&mut self, bits: u32, now: Now) -> bool {
        let mode = Mode::from_bits(bits);
        let was = std::mem::replace(&mut self.mode, mode);
        if was != mode && (was == Mode::TscDeadline || mode == Mode::TscDeadline) {
            self.due = None;
            self.initial = 0;
            self.tsc_deadline = 0;
            return true;
        }
        if was == Mode::OneShot && mode == Mode::Periodic && self.initial != 0 && self.due.is_none()
        {
            self.due = Some(now.ns.saturating_add(self.period()));
        }
        false
    }

    pub(super) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    pub(super) fn set_tsc_deadline(&mut self, value: u64) {
        if self.mode == Mode::TscDeadline {
            self.tsc_deadline = value;
        }
    }

    /// Current count.
    pub(super) fn current(&self, now: Now) -> u32 {
        let left = self.due.map_or(0, |due| due.saturating_sub(now.ns));
        u32::try_from(left.div_ceil(self.divide))
            .unwrap_or(u32::MAX)
            .min(self.initial)
    }

    pub(super) fn deadline(&self) -> Option<Deadline> {
        match self.mode {
            Mode::TscDeadline => {
                (self.tsc_deadline != 0).then_some(Deadline::Tsc(self.tsc_deadline))
            }
            _ => self.due.map(Deadline::Ns),
        }
    }

    /// Whether the timer fires now. Periods that were missed fire once.
    pub(super) fn expire(&mut self, now: Now) -> bool {
        if self.mode == Mode::TscDeadline {
            let fires = self.tsc_deadline != 0 && self.tsc_deadline <= now.tsc;
            if fires {
                self.tsc_deadline = 0;
            }
            return fires;
        }
        let Some(due) = self.due.filter(|due| *due <= now.ns) else {
            return false;
        };
        self.due = (self.mode == Mode::Periodic).then(|| {
            let period = self.period().max(1);
            let missed = (now.ns - due) / period;
            due.saturating_add((missed + 1).saturating_mul(period))
        });
        true
    }
}
