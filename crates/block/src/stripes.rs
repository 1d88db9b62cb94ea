//! Who may write where at the same time.
//!
//! A write that is not aligned to the host's blocks becomes read, modify, write of whole blocks
//! under O_DIRECT, and must not run beside any other write to one of its blocks. A format may not
//! change the mapping of a range that is being read or written. Offsets are hashed onto a fixed
//! number of stripes; what may run beside its like shares its stripes, which costs one atomic
//! addition each, and what may not has its stripes to itself.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::task::{Poll, Waker};

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// One request runs exclusively.
const HELD: u64 = 1 << 63;
/// Requests that run exclusively or wait to.
const EXCLUSIVE: u64 = 1 << 32;
/// Requests that share the stripe.
const SHARED: u64 = 1;

/// The locks of one file.
pub struct Stripes {
    /// Neighbouring offsets in one stripe.
    unit: u64,
    stripes: Box<[Stripe]>,
}

#[derive(Default)]
struct Stripe {
    /// HELD flag, number of EXCLUSIVE (bits 62..32), number of SHARED (bits 31..0).
    state: AtomicU64,
    waiting: Mutex<Vec<Waker>>,
}

impl Stripes {
    /// `count` stripes of `unit` neighbouring offsets each; neither is zero.
    #[must_use]
    pub fn new(unit: u64, count: usize) -> Self {
        Self {
            unit: unit.max(1),
            stripes: (0..count.max(1)).map(|_| Stripe::default()).collect(),
        }
    }

    /// The stripes of a range in ascending order, which is the order of locking.
    fn of(&self, range: &Range<u64>) -> impl Iterator<Item = &Stripe> {
        let all = self.stripes.len();
        let first = range.start / self.unit;
        let last = (range.end.saturating_sub(1) / self.unit).max(first);
        let count = (last - first).saturating_add(1).min(all as u64) as usize;
        let start = (first % all as u64) as usize;
        let end = start + count;
        let wrapped = &self.stripes[..end.saturating_sub(all)];
        wrapped.iter().chain(&self.stripes[start..end.min(all)])
    }

    /// Waits until no exclusive request runs in or waits for the range, which is not empty.
    pub async fn shared(&self, range: Range<u64>) -> Guard<'_> {
        let mut guard = self.guard(range, SHARED);
        for stripe in self.of(&guard.range) {
            stripe.share().await;
            guard.locked += 1;
        }
        guard
    }

    /// Waits until no other request runs in the range, which is not empty.
    pub async fn exclusive(&self, range: Range<u64>) -> Guard<'_> {
        let mut guard = self.guard(range, HELD | EXCLUSIVE);
        for stripe in self.of(&guard.range) {
            stripe.hold().await;
            guard.locked += 1;
        }
        guard
    }

    /// Waits until no other request runs anywhere.
    pub(crate) async fn all(&self) -> Guard<'_> {
        self.exclusive(0..u64::MAX).await
    }

    /// As [`Stripes::all`], for a guard that is not bound to a borrow.
    pub(crate) async fn all_owned(self: &Arc<Self>) -> OwnedGuard {
        std::mem::forget(self.all().await);
        OwnedGuard(Arc::clone(self))
    }

    fn guard(&self, range: Range<u64>, owns: u64) -> Guard<'_> {
        Guard {
            stripes: self,
            range,
            locked: 0,
            owns,
        }
    }
}

/// A locked range; unlocked when dropped.
#[must_use]
pub struct Guard<'a> {
    stripes: &'a Stripes,
    range: Range<u64>,
    /// How many of the range's stripes are locked.
    locked: usize,
    /// What to subtract from each one's state.
    owns: u64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        for stripe in self.stripes.of(&self.range).take(self.locked) {
            stripe.leave(self.owns);
        }
    }
}

/// All stripes, locked; unlocked when dropped.
pub(crate) struct OwnedGuard(Arc<Stripes>);

impl Drop for OwnedGuard {
    fn drop(&mut self) {
        for stripe in &self.0.stripes {
            stripe.leave(HELD | EXCLUSIVE);
        }
    }
}

impl Stripe {
    async fn share(&self) {
        self.wait_until(|| {
            self.state
                .fetch_update(Ordering::Acquire, Ordering::Relaxed, |seen| {
                    (seen < EXCLUSIVE).then_some(seen + SHARED)
                })
                .is_ok()
        })
        .await;
    }

    async fn hold(&self) {
        self.state.fetch_add(EXCLUSIVE, Ordering::Relaxed);
        let announced = Announced(self);
        self.wait_until(|| {
            self.state
                .fetch_update(Ordering::Acquire, Ordering::Relaxed, |seen| {
                    (seen & HELD == 0 && seen % EXCLUSIVE == 0).then_some(seen | HELD)
                })
                .is_ok()
        })
        .await;
        std::mem::forget(announced);
    }

    fn leave(&self, owns: u64) {
        let before = self.state.fetch_sub(owns, Ordering::AcqRel);
        if before >= EXCLUSIVE {
            let waiting = std::mem::take(&mut *self.waiting());
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    async fn wait_until(&self, mut locked: impl FnMut() -> bool) {
        poll_fn(|cx| {
            if locked() {
                return Poll::Ready(());
            }
            self.waiting().push(cx.waker().clone());
            // What was waited for may have gone before the waker was in the list.
            if locked() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Withdraws the wish for a stripe when the request is dropped while it waits.
struct Announced<'a>(&'a Stripe);

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.0.leave(EXCLUSIVE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    const STRIPE: u64 = 64 << 10;
    const COUNT: usize = 64;

    /// The future's output if it is ready at once.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut context = Context::from_waker(Waker::noop());
        match pin!(future).poll(&mut context) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn exclusive_waits_for_shared_and_keeps_later_ones_out() {
        let stripes = Stripes::new(STRIPE, COUNT);
        let first = now(stripes.shared(0..512)).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        {
            let mut waiting = pin!(stripes.exclusive(512..1024));
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            assert!(now(stripes.shared(0..512)).is_none());
            // Another stripe is free.
            assert!(now(stripes.shared(STRIPE..STRIPE + 512)).is_some());
            drop(first);
            assert!(waiting.as_mut().poll(&mut context).is_ready());
        }
        assert!(now(stripes.exclusive(0..1)).is_some());
    }

    #[test]
    fn a_dropped_wish_lets_others_on() {
        let stripes = Stripes::new(STRIPE, COUNT);
        let held = now(stripes.shared(0..512)).unwrap();
        assert!(now(stripes.exclusive(0..3 * STRIPE)).is_none());
        assert!(now(stripes.shared(0..3 * STRIPE)).is_some());
        drop(held);
        assert!(now(stripes.exclusive(0..u64::MAX)).is_some());
    }

    #[test]
    fn ranges_wrap_around_the_stripes() {
        let stripes = Stripes::new(STRIPE, COUNT);
        let last = (COUNT as u64 - 1) * STRIPE;
        let guard = now(stripes.exclusive(last..last + 2 * STRIPE)).unwrap();
        assert!(now(stripes.shared(0..1)).is_none());
        assert!(now(stripes.shared(last..last + 1)).is_none());
        assert!(now(stripes.shared(STRIPE..2 * STRIPE)).is_some());
        drop(guard);
        assert!(now(stripes.shared(0..1)).is_some());
    }

    #[test]
    fn exclusive_threads_never_meet() {
        let stripes = Stripes::new(STRIPE, COUNT);
        let inside = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let thread = std::thread::current();
                    let waker = Waker::from(std::sync::Arc::new(Unpark(thread)));
                    let mut context = Context::from_waker(&waker);
                    for _ in 0..500 {
                        let mut locking = pin!(stripes.exclusive(0..2 * STRIPE));
                        let _guard = loop {
                            match locking.as_mut().poll(&mut context) {
                                Poll::Ready(guard) => break guard,
                                Poll::Pending => std::thread::park(),
                            }
                        };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }

    struct Unpark(std::thread::Thread);

    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
}

#[cfg(all(test, shuttle))]
#[path = "stripes_interleavings.rs"]
mod interleavings;
