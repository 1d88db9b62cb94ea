use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Something that found its place on a bus taken.
pub(crate) trait Waiter: Send + Sync {
    /// A place was freed: try again.
    fn retry(self: Arc<Self>);
}

/// Those whose place on a bus was taken.
///
/// A guest that hands out addresses anew may lay one function's BAR over another's that has
/// still to move. On a real bus that heals by itself; here whoever leaves a place lets the
/// others try again.
#[derive(Default)]
pub(crate) struct Waiting(Mutex<Vec<Weak<dyn Waiter>>>);

impl Waiting {
    /// Remembers `waiter` until the next [`Waiting::retry`]. It must try once more afterwards,
    /// as the place may have been freed in between.
    pub fn add(&self, waiter: Weak<dyn Waiter>) {
        let mut waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.retain(|w| w.strong_count() > 0 && !w.ptr_eq(&waiter));
        waiters.push(waiter);
    }

    /// Lets all of them try again. The caller holds no lock of a function.
    pub fn retry(&self) {
        let waiters = {
            let mut waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *waiters)
        };
        for waiter in waiters.iter().filter_map(Weak::upgrade) {
            waiter.retry();
        }
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting")
    }
}

/// A [`Waiting`] that many slots share.
pub(crate) type SharedWaiting = Arc<Waiting>;
