//! The buckets. Time is nanoseconds of a clock that the caller has; levels are counted in
//! billionths, so that what leaks in a nanosecond is a whole number and nothing is ever rounded
//! away.

/// Parts of a request or byte in which levels are counted: nanoseconds of a second.
const PART: u128 = 1_000_000_000;

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Read, Self::Write];

    pub(super) fn other(self) -> Self {
        match self {
            Self::Read => Self::Write,
            Self::Write => Self::Read,
        }
    }
}

/// The rate of one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// Requests or bytes a second; 0 for no limit.
    pub average: u64,
    /// Requests or bytes a second in a burst; 0 when there is no such limit.
    pub max: u64,
    /// Seconds of a burst, at least 1.
    pub length: u64,
}

/// The rates of all buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rates {
    /// Bytes total, read, written; requests total, read, written.
    pub buckets: [Rate; 6],
    /// Bytes that count as one request; 0 when every request does.
    pub iops_size: u64,
}

impl Rates {
    pub(super) fn is_limited(&self) -> bool {
        self.buckets.iter().any(|rate| rate.average != 0)
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    rate: Rate,
    /// Leaks at the average rate.
    level: u128,
    /// Leaks at the burst's rate: bounds that rate while a long burst lasts.
    burst_level: u128,
}

impl Bucket {
    /// Whether the burst's rate is bounded too. One of a single second may be as fast as it is.
    fn has_long_burst(&self) -> bool {
        self.rate.length > 1
    }

    fn leak(&mut self, nanoseconds: u64) {
        let leaked = |rate: u64| u128::from(rate) * u128::from(nanoseconds);
        self.level = self.level.saturating_sub(leaked(self.rate.average));
        self.burst_level = self.burst_level.saturating_sub(leaked(self.rate.max));
    }

    fn pour(&mut self, amount: u128) {
        if self.rate.average == 0 {
            return;
        }
        self.level = self.level.saturating_add(amount);
        if self.has_long_burst() {
            self.burst_level = self.burst_level.saturating_add(amount);
        }
    }

    fn take_back(&mut self, amount: u128) {
        self.level = self.level.saturating_sub(amount);
        self.burst_level = self.burst_level.saturating_sub(amount);
    }

    /// Nanoseconds until it is no more than full.
    fn wait(&self) -> u64 {
        let Rate {
            average,
            max,
            length,
        } = self.rate;
        if average == 0 {
            return 0;
        }
        let until = |level: u128, full: u128, rate: u64| {
            let time = level.saturating_sub(full).div_ceil(u128::from(rate.max(1)));
            u64::try_from(time).unwrap_or(u64::MAX)
        };
        let tenth = |rate: u64| u128::from(rate) * (PART / 10);
        if max == 0 {
            return until(self.level, tenth(average), average);
        }
        let full = u128::from(max) * u128::from(length) * PART;
        let wait = until(self.level, full, average);
        match self.has_long_burst() {
            true => wait.max(until(self.burst_level, tenth(max), max)),
            false => wait,
        }
    }
}

/// The six buckets of a group.
#[derive(Debug)]
pub(super) struct Buckets {
    all: [Bucket; 6],
    iops_size: u64,
    /// When they leaked last.
    leaked: u64,
}

impl Buckets {
    /// Empty buckets.
    pub(super) fn new(rates: &Rates, now: u64) -> Self {
        Self {
            all: rates.buckets.map(|rate| Bucket {
                rate,
                level: 0,
                burst_level: 0,
            }),
            iops_size: rates.iops_size,
            leaked: now,
        }
    }

    /// When they leaked last.
    pub(super) fn now(&self) -> u64 {
        self.leaked
    }

    /// Lets them leak until `now`.
    pub(super) fn leak(&mut self, now: u64) {
        let passed = now.saturating_sub(self.leaked);
        self.leaked = self.leaked.max(now);
        self.all.iter_mut().for_each(|bucket| bucket.leak(passed));
    }

    /// Nanoseconds until a request may go.
    pub(super) fn wait(&self, direction: Direction) -> u64 {
        let [a, b, c, d] = places(direction).map(|place| self.all[place].wait());
        a.max(b).max(c).max(d)
    }

    /// Pours a request of so many bytes into its buckets.
    pub(super) fn account(&mut self, direction: Direction, bytes: u64) {
        self.each(direction, bytes, Bucket::pour);
    }

    /// The request was not made after all.
    pub(super) fn take_back(&mut self, direction: Direction, bytes: u64) {
        self.each(direction, bytes, Bucket::take_back);
    }

    fn each(&mut self, direction: Direction, bytes: u64, change: fn(&mut Bucket, u128)) {
        let data = u128::from(bytes) * PART;
        let requests = match self.iops_size {
            0 => PART,
            size => (data / u128::from(size)).max(PART),
        };
        for place in places(direction) {
            let amount = if place < 3 { data } else { requests };
            change(&mut self.all[place], amount);
        }
    }
}

/// The buckets of a direction's requests.
fn places(direction: Direction) -> [usize; 4] {
    match direction {
        Direction::Read => [0, 1, 3, 4],
        Direction::Write => [0, 2, 3, 5],
    }
}
