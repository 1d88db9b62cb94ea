//! A clock that tests turn by hand. (Feature `testing`.)

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use crate::clock::{Clock, Timer, TimerHost, TimerTarget};
use crate::lock;

#[derive(Default)]
struct Inner {
    now: u64,
    unix: i64,
    next_id: u64,
    timers: BTreeMap<u64, (Option<u64>, Weak<dyn TimerTarget>)>,
}

/// A [`TimerHost`] whose time stands still until [`FakeClock::advance`].
#[derive(Clone, Default)]
pub struct FakeClock(Arc<Mutex<Inner>>);

impl FakeClock {
    /// Guest time 0 at `unix_s` seconds after 1970-01-01.
    #[must_use]
    pub fn new(unix_s: i64) -> Self {
        let clock = Self::default();
        lock(&clock.0).unix = unix_s.saturating_mul(1_000_000_000);
        clock
    }

    /// The clock as devices take it.
    #[must_use]
    pub fn host(&self) -> Arc<dyn TimerHost> {
        Arc::new(self.clone())
    }

    /// Lets `ns` nanoseconds pass. Timers that come due are called in their order, each at its
    /// own time; returns how many calls that were.
    pub fn advance(&self, ns: u64) -> u32 {
        let end = lock(&self.0).now.saturating_add(ns);
        let mut calls = 0;
        while let Some(target) = self.next_due(end) {
            calls += 1;
            if let Some(target) = target.upgrade() {
                target.timer_expired();
            }
        }
        lock(&self.0).set(end);
        calls
    }

    /// Lets `ns` nanoseconds pass as a host that is late: the timers that came due are called
    /// only at the end.
    pub fn stall(&self, ns: u64) -> u32 {
        {
            let mut inner = lock(&self.0);
            let end = inner.now.saturating_add(ns);
            inner.set(end);
        }
        self.advance(0)
    }

    /// The earliest deadline armed.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        lock(&self.0).timers.values().filter_map(|t| t.0).min()
    }

    fn next_due(&self, end: u64) -> Option<Weak<dyn TimerTarget>> {
        let mut inner = lock(&self.0);
        let (at, id) = inner
            .timers
            .iter()
            .filter_map(|(id, t)| Some((t.0.filter(|at| *at <= end)?, *id)))
            .min()?;
        let at = at.max(inner.now);
        inner.set(at);
        let timer = inner.timers.get_mut(&id)?;
        timer.0 = None;
        Some(timer.1.clone())
    }
}

impl Inner {
    fn set(&mut self, now: u64) {
        let passed = i64::try_from(now.saturating_sub(self.now)).unwrap_or(i64::MAX);
        self.unix = self.unix.saturating_add(passed);
        self.now = now;
    }
}

impl Clock for FakeClock {
    fn now_ns(&self) -> u64 {
        lock(&self.0).now
    }

    fn unix_ns(&self) -> i64 {
        lock(&self.0).unix
    }
}

struct FakeTimer {
    clock: FakeClock,
    id: u64,
}

impl TimerHost for FakeClock {
    fn new_timer(&self, target: Weak<dyn TimerTarget>) -> Box<dyn Timer> {
        let mut inner = lock(&self.0);
        let id = inner.next_id;
        inner.next_id += 1;
        inner.timers.insert(id, (None, target));
        drop(inner);
        Box::new(FakeTimer {
            clock: self.clone(),
            id,
        })
    }
}

impl Timer for FakeTimer {
    fn arm(&self, deadline_ns: Option<u64>) {
        if let Some(timer) = lock(&self.clock.0).timers.get_mut(&self.id) {
            timer.0 = deadline_ns;
        }
    }
}

impl Drop for FakeTimer {
    fn drop(&mut self) {
        lock(&self.clock.0).timers.remove(&self.id);
    }
}
