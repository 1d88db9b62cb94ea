//! Asking tasks on any thread to stop.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use slab::Slab;

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    waiters: Mutex<Slab<Waker>>,
}

impl Shared {
    fn waiters(&self) -> MutexGuard<'_, Slab<Waker>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops everybody who holds one of its tokens. Dropping it does not stop them.
#[derive(Clone)]
pub struct StopSource(Arc<Shared>);

/// Tells its holder when to stop.
#[derive(Clone)]
pub struct StopToken(Arc<Shared>);

impl StopSource {
    /// A source and its token.
    #[allow(clippy::new_ret_no_self, reason = "one is of no use without the other")]
    pub fn new() -> (StopSource, StopToken) {
        let shared = Arc::new(Shared::default());
        (StopSource(Arc::clone(&shared)), StopToken(shared))
    }

    /// Another token.
    pub fn token(&self) -> StopToken {
        StopToken(Arc::clone(&self.0))
    }

    /// Asks every holder of a token to stop, now and for good.
    pub fn stop(&self) {
        let waiters = {
            let mut waiters = self.0.waiters();
            self.0.stopped.store(true, Ordering::Release);
            std::mem::take(&mut *waiters)
        };
        waiters.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

impl StopToken {
    /// Whether to stop.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }

    /// Waits until the source says stop.
    pub fn stopped(&self) -> Stopped<'_> {
        Stopped {
            shared: &self.0,
            key: None,
        }
    }
}

/// Future of [`StopToken::stopped`].
pub struct Stopped<'a> {
    shared: &'a Shared,
    key: Option<usize>,
}

impl Future for Stopped<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiters = self.shared.waiters();
        // Under the lock: `stop` takes the list after it has set the flag.
        if self.shared.stopped.load(Ordering::Acquire) {
            drop(waiters);
            self.key = None;
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let old = match self.key {
            Some(key) => Some(std::mem::replace(&mut waiters[key], waker)),
            None => {
                let key = waiters.insert(waker);
                drop(waiters);
                self.key = Some(key);
                None
            }
        };
        drop(old);
        Poll::Pending
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            // Gone when `stop` has taken the list.
            let waker = self.shared.waiters().try_remove(key);
            drop(waker);
        }
    }
}
