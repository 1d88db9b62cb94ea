//! Time: how fast the host's time stamp counter is, and the clock that KVM's paravirtual
//! interface shows (Linux's Documentation/virt/kvm/x86/timekeeping.rst).

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use accel::ClockState;
use x86::cpuid::HYPERVISOR_LEAF;

use crate::host;

/// Bits of the fraction of a nanosecond in computations.
const FRACTION: u32 = 56;

/// How long the counter is watched where nobody tells its frequency.
const WATCHED: Duration = Duration::from_millis(10);

/// Frequency of the host's time stamp counter in kHz.
pub(crate) fn tsc_khz() -> u32 {
    static KHZ: OnceLock<u32> = OnceLock::new();
    *KHZ.get_or_init(|| told().unwrap_or_else(measured))
}

/// What CPUID says: leaf 0x15 (SDM vol. 2A), or the hypervisor's leaf 0x40000010.
fn told() -> Option<u32> {
    if host::cpuid(0, 0).eax >= 0x15 {
        let leaf = host::cpuid(0x15, 0);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
            return u32::try_from(hz / 1000).ok();
        }
    }
    let hypervisor = host::cpuid(1, 0).ecx >> 31 != 0;
    if hypervisor && host::cpuid(HYPERVISOR_LEAF, 0).eax >= HYPERVISOR_LEAF + 0x10 {
        return Some(host::cpuid(HYPERVISOR_LEAF + 0x10, 0).eax).filter(|khz| *khz != 0);
    }
    None
}

fn measured() -> u32 {
    // The tightest of a few readings of both clocks at once, at both ends.
    let reading = || {
        (0..8)
            .map(|_| {
                let before = host::tsc();
                let time = Instant::now();
                (host::tsc().wrapping_sub(before), before, time)
            })
            .min_by_key(|(gap, ..)| *gap)
            .map_or((0, Instant::now()), |(gap, before, time)| {
                (before.wrapping_add(gap / 2), time)
            })
    };
    let (ticks, time) = reading();
    thread::sleep(WATCHED);
    let (ticks_after, time_after) = reading();
    let elapsed = (time_after - time).as_nanos().max(1);
    let khz = u128::from(ticks_after.wrapping_sub(ticks)) * 1_000_000 / elapsed;
    u32::try_from(khz).unwrap_or(u32::MAX).max(1)
}

/// Ticks as nanoseconds. (A multiplication, because this is asked at every access to a local
/// APIC; it is off by less than a microsecond in an hour.)
pub(crate) fn ticks_to_ns(ticks: u64) -> u64 {
    static NS: OnceLock<u64> = OnceLock::new();
    // Nanoseconds of a tick, as a fraction of 2^56.
    let scale = *NS.get_or_init(|| {
        let scale = (1_000_000u128 << FRACTION) / u128::from(tsc_khz());
        u64::try_from(scale).unwrap_or(u64::MAX)
    });
    u64::try_from((u128::from(ticks) * u128::from(scale)) >> FRACTION).unwrap_or(u64::MAX)
}

/// How a guest makes nanoseconds of ticks: `(ticks << shift) * multiplier >> 32`, with a right
/// shift where it is negative.
pub(crate) fn scale(khz: u32) -> (u32, i8) {
    // Nanoseconds of a tick are 10^6 / kHz. The multiplier is a fraction of 2^32, and as large
    // as can be.
    let mut shift = 0i8;
    let (mut numerator, mut denominator) = (1_000_000u64, u64::from(khz.max(1)));
    while numerator >= denominator {
        denominator *= 2;
        shift += 1;
    }
    while numerator * 2 < denominator {
        numerator *= 2;
        shift -= 1;
    }
    let multiplier = (u128::from(numerator) << 32) / u128::from(denominator);
    (u32::try_from(multiplier).unwrap_or(u32::MAX), shift)
}

/// Nanoseconds since 1970.
pub(crate) fn realtime_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}

/// The machine's clock: a straight line over the host's time stamp counter.
#[derive(Debug)]
pub(crate) struct Clock {
    base: Mutex<Base>,
}

/// A point of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) ns: u64,
    pub(crate) tsc: u64,
}

impl Clock {
    /// A clock that begins now.
    pub(crate) fn new() -> Self {
        let base = Base {
            ns: 0,
            tsc: host::tsc(),
        };
        Self {
            base: Mutex::new(base),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Base> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn base(&self) -> Base {
        *self.lock()
    }

    /// Nanoseconds now.
    pub(crate) fn now(&self) -> u64 {
        let base = self.base();
        base.ns
            .saturating_add(ticks_to_ns(host::tsc().saturating_sub(base.tsc)))
    }

    pub(crate) fn state(&self) -> ClockState {
        ClockState {
            nanoseconds: self.now(),
            realtime: Some(realtime_ns()),
        }
    }

    pub(crate) fn set(&self, clock: ClockState) {
        *self.lock() = Base {
            ns: clock.nanoseconds,
            tsc: host::tsc(),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_frequency_is_what_the_clock_says() {
        let (begin, ticks) = (Instant::now(), host::tsc());
        thread::sleep(Duration::from_millis(30));
        let (elapsed, ticks) = (begin.elapsed().as_nanos() as f64, host::tsc() - ticks);
        let measured = ticks_to_ns(ticks) as f64;
        assert!(
            (measured / elapsed - 1.0).abs() < 0.01,
            "{measured} {elapsed}"
        );
    }

    #[test]
    fn a_clock_that_is_set_goes_on_from_there() {
        let clock = Clock::new();
        clock.set(ClockState {
            nanoseconds: 5_000_000_000,
            realtime: None,
        });
        let now = clock.now();
        assert!((5_000_000_000..8_000_000_000).contains(&now), "{now}");
    }

    proptest! {
        #[test]
        fn a_guests_arithmetic_gives_nanoseconds(khz in 10_000..20_000_000u32, ticks in 0..1u64 << 40) {
            let (multiplier, shift) = scale(khz);
            prop_assert!(multiplier >= 1 << 31);
            let shifted = if shift >= 0 { ticks << shift } else { ticks >> -shift };
            let ns = (u128::from(shifted) * u128::from(multiplier)) >> 32;
            let exact = u128::from(ticks) * 1_000_000 / u128::from(khz);
            let error = ns.abs_diff(exact);
            prop_assert!(error <= exact / 1_000_000_000 + 1024, "{} {}", ns, exact);
        }
    }
}
