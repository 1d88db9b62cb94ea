//! One-shot timers on an I/O thread, set from any thread: the PIT's and the RTC's.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use super::Sleep;

#[derive(Default)]
struct State {
    deadline: Option<Instant>,
    /// Counts settings, so that one during the callback is not overridden by its result.
    setting: u64,
    /// The deadline that the task sleeps for. It may be earlier than the one set since.
    asleep: Option<Instant>,
    waker: Option<Waker>,
    closed: bool,
}

#[derive(Default)]
struct Shared(Mutex<State>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the timer with the last handle.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A one-shot timer of an I/O thread; see [`IoThread::timer`](crate::IoThread::timer). Clones are
/// the same timer; it ends with the last of them.
#[derive(Clone)]
pub struct TimerHandle(Arc<Owner>);

impl TimerHandle {
    /// A timer and the task that runs it.
    pub(crate) fn new<C>(
        callback: C,
    ) -> (
        Self,
        impl FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send,
    )
    where
        C: FnMut() -> Option<Instant> + Send + 'static,
    {
        let shared = Arc::new(Shared::default());
        let task = Arc::clone(&shared);
        let make = move || -> Pin<Box<dyn Future<Output = ()>>> { Box::pin(run(task, callback)) };
        (Self(Arc::new(Owner(shared))), make)
    }

    /// The callback shall run at `deadline`, or at once if that has passed. Replaces the deadline
    /// set before. Costs a system call only if the thread sleeps and would wake too late.
    pub fn arm(&self, deadline: Instant) {
        let mut state = self.0.0.lock();
        state.deadline = Some(deadline);
        state.setting += 1;
        let early = state.asleep.is_some_and(|asleep| asleep <= deadline);
        let waker = if early { None } else { state.waker.take() };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The callback shall not run. It may be running now.
    pub fn disarm(&self) {
        let mut state = self.0.0.lock();
        state.deadline = None;
        state.setting += 1;
        // The task finds out when it wakes: a disarmed timer is often armed again soon.
    }
}

async fn run(shared: Arc<Shared>, mut callback: impl FnMut() -> Option<Instant>) {
    while let Some(setting) = expired(&shared).await {
        let again = callback();
        let mut state = shared.lock();
        if state.setting == setting {
            state.deadline = again;
        }
    }
}

/// Waits until the deadline, whatever it becomes, and takes it. `None` when closed.
async fn expired(shared: &Shared) -> Option<u64> {
    let mut sleep: Option<Sleep> = None;
    poll_fn(|cx| {
        let mut state = shared.lock();
        if state.closed {
            return Poll::Ready(None);
        }
        let Some(deadline) = state.deadline else {
            state.asleep = None;
            state.waker = Some(cx.waker().clone());
            drop(state);
            sleep = None;
            return Poll::Pending;
        };
        if Instant::now() >= deadline {
            state.deadline = None;
            state.asleep = None;
            return Poll::Ready(Some(state.setting));
        }
        state.asleep = Some(deadline);
        state.waker = Some(cx.waker().clone());
        drop(state);
        if sleep
            .as_ref()
            .is_none_or(|sleep| sleep.deadline != deadline)
        {
            sleep = Some(Sleep::new(deadline));
        }
        match sleep.as_mut().map(|sleep| Pin::new(sleep).poll(cx)) {
            // The deadline passed since: look again.
            Some(Poll::Ready(())) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Pending,
        }
    })
    .await
}
