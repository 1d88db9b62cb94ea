//! An unbounded queue of messages to a task from any thread.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// So many messages in a row, then the other tasks go first, however fast the senders are.
const ROW: u32 = 64;

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receiving: bool,
    waker: Option<Waker>,
}

struct Shared<T>(Mutex<State<T>>);

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends messages from any thread.
pub struct Sender<T>(Arc<Shared<T>>);

/// Receives the messages, in the order they were sent.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// Messages received without a pause.
    row: u32,
}

/// The receiver is gone; here is the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the receiver is gone")]
pub struct Closed<T>(pub T);

/// A queue of messages to one task.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared(Mutex::new(State {
        queue: VecDeque::new(),
        senders: 1,
        receiving: true,
        waker: None,
    })));
    (Sender(Arc::clone(&shared)), Receiver { shared, row: 0 })
}

impl<T> Sender<T> {
    /// Sends `message`; never waits.
    ///
    /// # Errors
    /// The receiver is gone.
    pub fn send(&self, message: T) -> Result<(), Closed<T>> {
        let mut state = self.0.lock();
        if !state.receiving {
            return Err(Closed(message));
        }
        state.queue.push_back(message);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.senders -= 1;
        let waker = if state.senders == 0 {
            state.waker.take()
        } else {
            None
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// Waits for a message; `None` when all senders are gone and the queue is empty. Dropping the
    /// future loses nothing.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| {
            if self.row == ROW {
                self.row = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut state = self.shared.lock();
            if let Some(message) = state.queue.pop_front() {
                self.row += 1;
                return Poll::Ready(Some(message));
            }
            self.row = 0;
            if state.senders == 0 {
                return Poll::Ready(None);
            }
            let old = state.waker.replace(cx.waker().clone());
            drop(state);
            drop(old);
            Poll::Pending
        })
        .await
    }

    /// A message if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        self.shared.lock().queue.pop_front()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let (queue, waker) = {
            let mut state = self.shared.lock();
            state.receiving = false;
            (std::mem::take(&mut state.queue), state.waker.take())
        };
        drop((queue, waker));
    }
}
