//! Who is on the way through an edge, and how to wait until nobody is.

use std::future::poll_fn;
use std::sync::{Arc, PoisonError};
use std::task::{Poll, Waker};

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Counters of requests, so that queues on different threads do not share a cache line.
const SHARDS: usize = 8;

#[derive(Default)]
#[repr(align(64))]
struct Shard(AtomicUsize);

/// A gate through which requests pass, unless it is closed.
#[derive(Default)]
pub(super) struct Gate {
    /// How many want it closed.
    closed: AtomicUsize,
    /// Requests on their way.
    passing: [Shard; SHARDS],
    /// Requests that wait before it.
    before: Waiting,
    /// Those who wait until nobody is behind it.
    emptying: Waiting,
}

/// Tasks that wait.
#[derive(Default)]
struct Waiting(Mutex<Vec<Waker>>);

impl Waiting {
    /// Waits until `ask` has an answer; it is asked again after each [`Waiting::wake`].
    async fn wait_for<T>(&self, mut ask: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| {
            if let Some(answer) = ask() {
                return Poll::Ready(answer);
            }
            self.lock().push(cx.waker().clone());
            // It may have changed before the waker was there.
            match ask() {
                Some(answer) => Poll::Ready(answer),
                None => Poll::Pending,
            }
        })
        .await
    }

    fn wake(&self) {
        let all = std::mem::take(&mut *self.lock());
        all.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// This thread's counter.
#[cfg(not(shuttle))]
fn shard() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    SHARD.with(|shard| *shard)
}

/// Any counter will do, as long as the request keeps to it.
#[cfg(shuttle)]
fn shard() -> usize {
    use shuttle::rand::{Rng, thread_rng};
    thread_rng().gen_range(0..SHARDS)
}

impl Gate {
    /// Passes, when the gate is open.
    pub(super) async fn pass(&self) -> Passage<'_> {
        match self.try_pass() {
            Some(passage) => passage,
            None => self.before.wait_for(|| self.try_pass()).await,
        }
    }

    // The counter is raised before `closed` is looked at, and `closed` before the counters are:
    // in the one order that SeqCst makes of these four, one of the two sides sees the other.
    fn try_pass(&self) -> Option<Passage<'_>> {
        let passage = Passage {
            gate: self,
            shard: shard(),
        };
        self.passing[passage.shard].0.fetch_add(1, Ordering::SeqCst);
        // Dropping the passage takes it back.
        (self.closed.load(Ordering::SeqCst) == 0).then_some(passage)
    }

    /// Closes the gate for those who come from now on.
    pub(super) fn begin_to_close(self: &Arc<Self>) -> Closed {
        self.closed.fetch_add(1, Ordering::SeqCst);
        Closed(Arc::clone(self))
    }

    /// Whether nobody is on the way. Meaningful while it is closed.
    fn is_empty(&self) -> bool {
        // A request keeps to its counter, so one that is there all the time is seen.
        let passing = self.passing.iter();
        passing
            .map(|shard| shard.0.load(Ordering::SeqCst))
            .sum::<usize>()
            == 0
    }
}

/// A request behind the gate.
#[must_use]
pub(super) struct Passage<'a> {
    gate: &'a Gate,
    shard: usize,
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.gate.passing[self.shard]
            .0
            .fetch_sub(1, Ordering::SeqCst);
        if self.gate.closed.load(Ordering::SeqCst) != 0 {
            self.gate.emptying.wake();
        }
    }
}

/// Keeps the gate closed.
#[must_use]
pub(super) struct Closed(Arc<Gate>);

impl Closed {
    /// Waits until nobody is behind the gate.
    pub(super) async fn emptied(&self) {
        let gate = &self.0;
        gate.emptying
            .wait_for(|| gate.is_empty().then_some(()))
            .await;
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.closed.fetch_sub(1, Ordering::SeqCst);
        self.0.before.wake();
    }
}

#[cfg(all(test, shuttle))]
#[path = "gate_interleavings.rs"]
mod interleavings;
