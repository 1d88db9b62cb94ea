//! One after the other.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use event::{OneshotSender, oneshot};

/// Lets one task in at a time, in the order in which they came.
#[derive(Default)]
pub(crate) struct Serial(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    taken: bool,
    waiting: VecDeque<OneshotSender<Turn>>,
}

/// It is our turn, until this is dropped.
#[must_use]
pub(crate) struct Turn(Arc<Mutex<Queue>>);

impl Serial {
    /// Waits for our turn.
    pub(crate) async fn turn(&self) -> Turn {
        let receiver = {
            let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if !queue.taken {
                queue.taken = true;
                return Turn(Arc::clone(&self.0));
            }
            let (sender, receiver) = oneshot();
            queue.waiting.push_back(sender);
            receiver
        };
        match receiver.await {
            Ok(turn) => turn,
            // Senders are kept until they send.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let next = queue.waiting.pop_front();
            queue.taken = next.is_some();
            next
        };
        if let Some(next) = next {
            // One that does not wait any more gives it on by dropping it.
            next.send(Turn(Arc::clone(&self.0)));
        }
    }
}
