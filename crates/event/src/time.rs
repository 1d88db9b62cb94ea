//! Time: sleeping tasks, and one-shot timers that any thread sets.

mod timer;

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

pub use timer::TimerHandle;

use crate::executor::{Local, local};
use crate::sync::{Either, select2};

/// Sleeping tasks in the order in which they will wake.
#[derive(Default)]
pub(crate) struct Timers {
    sleepers: BTreeMap<(Instant, u64), Waker>,
    next: u64,
}

impl Timers {
    fn insert(&mut self, deadline: Instant, waker: Waker) -> (Instant, u64) {
        let key = (deadline, self.next);
        self.next += 1;
        self.sleepers.insert(key, waker);
        key
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.sleepers.first_key_value().map(|(key, _)| key.0)
    }

    /// Takes out those whose time has come.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some(sleeper) = self.sleepers.first_entry() {
            if sleeper.key().0 > now {
                break;
            }
            wakers.push(sleeper.remove());
        }
        wakers
    }
}

/// Future of [`sleep_until`].
pub(crate) struct Sleep {
    local: Rc<Local>,
    pub(crate) deadline: Instant,
    key: Option<(Instant, u64)>,
}

impl Sleep {
    #[track_caller]
    pub(crate) fn new(deadline: Instant) -> Self {
        Self {
            local: local(),
            deadline,
            key: None,
        }
    }

    fn leave(&mut self) {
        if let Some(key) = self.key.take() {
            let waker = self.local.timers.borrow_mut().sleepers.remove(&key);
            drop(waker);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.deadline {
            self.leave();
            return Poll::Ready(());
        }
        if let Some(key) = self.key
            && let Some(waker) = self.local.timers.borrow().sleepers.get(&key)
            && waker.will_wake(cx.waker())
        {
            return Poll::Pending;
        }
        self.leave();
        let waker = cx.waker().clone();
        let key = self.local.timers.borrow_mut().insert(self.deadline, waker);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Waits until `deadline`.
///
/// # Panics
/// Outside of an I/O thread.
pub async fn sleep_until(deadline: Instant) {
    Sleep::new(deadline).await;
}

/// Waits for `duration`; for ever when that ends after the end of time.
///
/// # Panics
/// Outside of an I/O thread.
pub async fn sleep(duration: Duration) {
    match Instant::now().checked_add(duration) {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The output of `future` if it is ready within `duration`; otherwise it is dropped, that is
/// cancelled.
///
/// # Panics
/// Outside of an I/O thread.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    match select2(future, sleep(duration)).await {
        Either::A(output) => Some(output),
        Either::B(()) => None,
    }
}

/// Lets the other tasks that are ready, and I/O, go first.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
