//! Who copies which part of a disk: no part is copied twice at the same time.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::signal::Signal;

/// Locks of ranges. Few are held at a time: a job's copies, and the guest's writes that copy.
///
/// A task that holds a range waits for no other one.
#[derive(Clone, Default)]
pub(super) struct RangeLocks(Arc<Inner>);

#[derive(Default)]
struct Inner {
    held: Mutex<Vec<Range<u64>>>,
    left: Signal,
}

/// A range that is locked, until it is dropped.
#[must_use]
pub(super) struct Locked {
    locks: RangeLocks,
    range: Range<u64>,
}

fn meet(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl RangeLocks {
    fn held(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks a range, unless a part of it is locked.
    pub(super) fn try_lock(&self, range: &Range<u64>) -> Option<Locked> {
        let mut held = self.held();
        if held.iter().any(|other| meet(range, other)) {
            return None;
        }
        held.push(range.clone());
        Some(Locked {
            locks: self.clone(),
            range: range.clone(),
        })
    }

    /// Locks a range, when no part of it is locked any more.
    pub(super) async fn lock(&self, range: Range<u64>) -> Locked {
        self.0.left.wait_for(|| self.try_lock(&range)).await
    }

    /// The first part of a range that is locked, or reaches into it.
    pub(super) fn first_held(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let held = self.held();
        let meeting = held.iter().filter(|other| meet(range, other));
        meeting.min_by_key(|other| other.start).cloned()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        if let Some(at) = held.iter().position(|other| *other == self.range) {
            held.swap_remove(at);
        }
        drop(held);
        self.locks.0.left.wake();
    }
}
