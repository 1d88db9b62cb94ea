//! How fast the box's time stamp counter runs.
//!
//! QEMU's TCG gives its guests the host's own counter. The box's kernel measures it against an
//! emulated timer, and where the host is busy it is off by anything up to a factor of twenty: then
//! a second in the box is none. So it is measured here, where clocks are real, and told to the
//! box's kernel (tsc_early_khz, Linux Documentation/admin-guide/kernel-parameters.txt).

#![allow(unsafe_code, reason = "reads the time stamp counter")]

use std::arch::x86_64::_rdtsc;
use std::thread;
use std::time::{Duration, Instant};

/// The counter's frequency in kHz.
pub fn tsc_khz() -> u64 {
    let (first, begin) = read();
    thread::sleep(Duration::from_millis(20));
    let (last, end) = read();
    let ticks = u128::from(last.saturating_sub(first)) * 1_000_000;
    let khz = ticks / end.duration_since(begin).as_nanos().max(1);
    u64::try_from(khz).unwrap_or(u64::MAX)
}

/// The counter and the clock at the same time, or as near to it as ten attempts come.
fn read() -> (u64, Instant) {
    let attempts = (0..10).map(|_| {
        // SAFETY: every x86-64 processor has the instruction.
        let before = unsafe { _rdtsc() };
        let now = Instant::now();
        // SAFETY: as above.
        let after = unsafe { _rdtsc() };
        (after.saturating_sub(before), before, now)
    });
    let (_, ticks, now) = attempts
        .min_by_key(|(took, ..)| *took)
        .unwrap_or((0, 0, Instant::now()));
    (ticks, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (a, b) = (tsc_khz(), tsc_khz());
        assert!(a > 100_000, "{a} kHz");
        assert!(a.abs_diff(b) < a / 1000, "{a} and {b} kHz");
    }
}
