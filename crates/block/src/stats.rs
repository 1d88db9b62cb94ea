use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a request does, as statistics tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reads.
    Read,
    /// Writes, also of zeroes.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Unmap,
}

/// Counters of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Requests that were completed.
    pub operations: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// Sum of their times from start to completion.
    pub time: Duration,
    /// Requests that the host failed.
    pub failed: u64,
    /// Requests that made no sense.
    pub invalid: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.time += other.time;
        self.failed += other.failed;
        self.invalid += other.invalid;
    }
}

/// Counters of one queue (QMP query-blockstats). One worker writes, anybody reads; a device adds
/// up those of its queues, so that no two workers share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Stats([Counters; 4]);

#[derive(Debug, Default)]
struct Counters {
    operations: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    failed: AtomicU64,
    invalid: AtomicU64,
}

impl Stats {
    /// A request was completed after `time`.
    pub fn done(&self, operation: Operation, bytes: u64, time: Duration) {
        let counters = &self.0[operation as usize];
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        counters.operations.fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        counters
            .nanoseconds
            .fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// The host failed a request.
    pub fn failed(&self, operation: Operation) {
        self.0[operation as usize]
            .failed
            .fetch_add(1, Ordering::Relaxed);
    }

    /// A request made no sense.
    pub fn invalid(&self, operation: Operation) {
        self.0[operation as usize]
            .invalid
            .fetch_add(1, Ordering::Relaxed);
    }

    /// The counters of one operation.
    #[must_use]
    pub fn totals(&self, operation: Operation) -> Totals {
        let counters = &self.0[operation as usize];
        Totals {
            operations: counters.operations.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            time: Duration::from_nanos(counters.nanoseconds.load(Ordering::Relaxed)),
            failed: counters.failed.load(Ordering::Relaxed),
            invalid: counters.invalid.load(Ordering::Relaxed),
        }
    }
}
