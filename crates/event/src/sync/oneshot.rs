//! One value, from any thread to a task or to a thread that blocks for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::TaskGone;

enum State<T> {
    Waiting(Option<Waker>),
    Sent(T),
    /// The sender is gone, or the value was taken.
    Gone,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, end: State<T>) {
        let old = std::mem::replace(&mut *self.lock(), end);
        self.changed.notify_all();
        if let State::Waiting(Some(waker)) = old {
            waker.wake();
        }
    }
}

/// Sends the value. Dropping it unsent tells the receiver so.
pub struct OneshotSender<T>(Option<Arc<Shared<T>>>);

/// Receives the value: await it on an I/O thread, or [`OneshotReceiver::wait`] elsewhere.
pub struct OneshotReceiver<T>(Arc<Shared<T>>);

/// A way for one value, a reply for instance.
pub fn oneshot<T>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State::Waiting(None)),
        changed: Condvar::new(),
    });
    (
        OneshotSender(Some(Arc::clone(&shared))),
        OneshotReceiver(shared),
    )
}

impl<T> OneshotSender<T> {
    /// Sends `value`; nobody may be waiting for it any more.
    pub fn send(mut self, value: T) {
        if let Some(shared) = self.0.take() {
            shared.finish(State::Sent(value));
        }
    }
}

impl<T> Drop for OneshotSender<T> {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.finish(State::Gone);
        }
    }
}

impl<T> OneshotReceiver<T> {
    /// Blocks the thread until the value is there. Not for tasks: they await it.
    ///
    /// # Errors
    /// The sender is gone.
    pub fn wait(self) -> Result<T, TaskGone> {
        let mut state = self.0.lock();
        loop {
            match std::mem::replace(&mut *state, State::Gone) {
                State::Sent(value) => return Ok(value),
                State::Gone => return Err(TaskGone),
                waiting @ State::Waiting(_) => *state = waiting,
            }
            state = self
                .0
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether [`OneshotReceiver::wait`] would return at once.
    pub fn is_finished(&self) -> bool {
        !matches!(*self.0.lock(), State::Waiting(_))
    }
}

impl<T> Future for OneshotReceiver<T> {
    type Output = Result<T, TaskGone>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Gone) {
            State::Sent(value) => Poll::Ready(Ok(value)),
            State::Gone => Poll::Ready(Err(TaskGone)),
            State::Waiting(old) => {
                *state = State::Waiting(Some(cx.waker().clone()));
                drop(state);
                drop(old);
                Poll::Pending
            }
        }
    }
}
