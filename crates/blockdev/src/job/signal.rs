//! Waiting for what another thread, or another task, changes.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Tasks, on any threads, that wait for something to change.
#[derive(Default)]
pub(super) struct Signal(Mutex<Vec<Waker>>);

impl Signal {
    /// Waits until `ask` has an answer; it is asked again after each [`Signal::wake`].
    pub(super) async fn wait_for<T>(&self, mut ask: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| {
            if let Some(answer) = ask() {
                return Poll::Ready(answer);
            }
            {
                let mut waiting = self.lock();
                if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    waiting.push(cx.waker().clone());
                }
            }
            // It may have changed before the waker was there.
            ask().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Lets all who wait ask again.
    pub(super) fn wake(&self) {
        let waiting = std::mem::take(&mut *self.lock());
        waiting.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
