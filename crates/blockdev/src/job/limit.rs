//! How fast a job may be.

use std::time::{Duration, Instant};

/// A job that may go on again does so at most for this long before it has to wait.
const SLICE: Duration = Duration::from_millis(100);

/// The limit of a job's speed: every byte takes its time, and the job may be at most a slice
/// behind.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    /// Bytes a second; 0: no limit.
    speed: u64,
    /// When all that was asked for is over, at this speed.
    busy_until: Option<Instant>,
}

impl Limiter {
    /// Bytes a second; 0: no limit.
    pub(super) fn speed(&self) -> u64 {
        self.speed
    }

    /// Changes the speed, from now on.
    pub(super) fn set_speed(&mut self, speed: u64) {
        self.speed = speed;
        self.busy_until = None;
    }

    /// How many bytes a step should have at most.
    pub(super) fn step(&self) -> u64 {
        match self.speed {
            0 => u64::MAX,
            speed => (speed / 10).max(1),
        }
    }

    /// When the next step may begin, if not at once.
    pub(super) fn wait_until(&self, now: Instant) -> Option<Instant> {
        if self.speed == 0 {
            return None;
        }
        self.busy_until.filter(|until| *until > now)
    }

    fn time(&self, bytes: u64) -> Duration {
        match self.speed {
            0 => Duration::ZERO,
            speed => {
                Duration::try_from_secs_f64(bytes as f64 / speed as f64).unwrap_or(Duration::MAX)
            }
        }
    }

    /// A step of `bytes` bytes begins.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) {
        if self.speed == 0 {
            return;
        }
        let begin = now.checked_sub(SLICE).unwrap_or(now);
        let begin = self.busy_until.map_or(begin, |until| until.max(begin));
        // Past the end of time is when the speed is changed.
        self.busy_until = Some(begin.checked_add(self.time(bytes)).unwrap_or(begin));
    }

    /// `bytes` bytes of a step that began were not moved after all.
    pub(super) fn give_back(&mut self, bytes: u64) {
        let time = self.time(bytes);
        if let Some(until) = &mut self.busy_until {
            *until = until.checked_sub(time).unwrap_or(*until);
        }
    }
}
