//! Time as devices see it, and how they ask to be called later.

use std::sync::{Arc, Weak};

/// Nanoseconds in a second.
pub const NS_PER_SEC: u64 = 1_000_000_000;

/// Where a device reads the time.
pub trait Clock: Send + Sync {
    /// Guest time in nanoseconds: monotonic, stands still while the machine is stopped, and goes
    /// on from the saved value after a restore (the machine restores its clock before its
    /// devices). Deadlines and saved times are in guest time.
    fn now_ns(&self) -> u64;

    /// The host's time of day in nanoseconds since 1970-01-01 00:00 UTC.
    fn unix_ns(&self) -> i64;
}

/// A clock that also calls back.
pub trait TimerHost: Clock {
    /// A new timer, not armed, that calls `target` when it expires. It is gone when dropped;
    /// when the target is gone, expiring does nothing.
    fn new_timer(&self, target: Weak<dyn TimerTarget>) -> Box<dyn Timer>;
}

/// One timer of a device.
pub trait Timer: Send + Sync {
    /// Asks for one call at or after `deadline_ns` (guest time), in place of what was asked for
    /// before; `None` asks for no call. A deadline in the past means as soon as possible, never
    /// from within this function: devices call it with their lock held. A call that was already
    /// on its way may still arrive; devices tolerate calls that nothing asked for. Devices repeat
    /// themselves: the same deadline again should cost next to nothing.
    fn arm(&self, deadline_ns: Option<u64>);
}

/// A device that is called when its timer expires.
pub trait TimerTarget: Send + Sync {
    /// The deadline has passed. The host calls this from any thread and holds no lock.
    fn timer_expired(&self);
}

/// Ticks of a `hz` oscillator in `ns` nanoseconds, rounded down.
#[must_use]
pub fn ticks_of(ns: u64, hz: u64) -> u64 {
    let ticks = u128::from(ns) * u128::from(hz) / u128::from(NS_PER_SEC);
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// The first nanosecond at which [`ticks_of`] has reached `ticks`.
#[must_use]
pub fn ns_of(ticks: u64, hz: u64) -> u64 {
    let ns = (u128::from(ticks) * u128::from(NS_PER_SEC)).div_ceil(u128::from(hz.max(1)));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Makes the target and its timer together: `build` gets the timer and returns the device.
pub(crate) fn with_timer<T: TimerTarget + 'static>(
    host: &Arc<dyn TimerHost>,
    build: impl FnOnce(Box<dyn Timer>) -> T,
) -> Arc<T> {
    Arc::new_cyclic(|weak: &Weak<T>| {
        let target: Weak<dyn TimerTarget> = weak.clone();
        build(host.new_timer(target))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_has_come_at_the_time_computed_for_it_and_not_before() {
        for hz in [1, 32_768, 1_193_182, 3_579_545] {
            for ticks in [1, 2, 3, 1_000_003, 1 << 30] {
                let ns = ns_of(ticks, hz);
                assert_eq!(ticks_of(ns, hz), ticks, "{hz}");
                assert_eq!(ticks_of(ns - 1, hz), ticks - 1, "{hz}");
            }
        }
        assert_eq!(ns_of(u64::MAX, 1), u64::MAX);
    }
}
