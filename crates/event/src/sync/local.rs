//! Notifications among the tasks of one thread.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// Tasks that wait for something.
#[derive(Default)]
pub(crate) struct WaitList(RefCell<Slab<Waker>>);

impl WaitList {
    /// Waits until `ready` says so; it is asked after every wake-up.
    pub(crate) fn wait_until<R: FnMut() -> bool>(&self, ready: R) -> WaitUntil<'_, R> {
        WaitUntil {
            list: self,
            key: None,
            ready,
        }
    }

    pub(crate) fn wake_all(&self) {
        // A waker may run any code, so the list must not be borrowed while it does.
        let only = match &*self.0.borrow() {
            list if list.len() > 1 => None,
            list => match list.iter().next() {
                Some((_, waker)) => Some(waker.clone()),
                None => return,
            },
        };
        if let Some(waker) = only {
            return waker.wake();
        }
        let wakers: Vec<Waker> = self.0.borrow().iter().map(|(_, w)| w.clone()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

pub(crate) struct WaitUntil<'a, R> {
    list: &'a WaitList,
    key: Option<usize>,
    ready: R,
}

impl<R> WaitUntil<'_, R> {
    fn leave(&mut self) {
        if let Some(key) = self.key.take() {
            let waker = self.list.0.borrow_mut().remove(key);
            drop(waker);
        }
    }
}

impl<R: FnMut() -> bool + Unpin> Future for WaitUntil<'_, R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if (self.ready)() {
            self.leave();
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let old = match self.key {
            Some(key) => Some(std::mem::replace(&mut self.list.0.borrow_mut()[key], waker)),
            None => {
                self.key = Some(self.list.0.borrow_mut().insert(waker));
                None
            }
        };
        drop(old);
        Poll::Pending
    }
}

impl<R> Drop for WaitUntil<'_, R> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A notification that is remembered until somebody waits for it. Clones are the same
/// notification; notifying several times before anybody waits counts once.
#[derive(Clone, Default)]
pub struct Notify(Rc<NotifyInner>);

#[derive(Default)]
struct NotifyInner {
    set: Cell<bool>,
    waiters: WaitList,
}

impl Notify {
    /// With no notification pending.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets one waiter go on: the one there is, or the next one.
    pub fn notify(&self) {
        self.0.set.set(true);
        self.0.waiters.wake_all();
    }

    /// Waits for a notification and consumes it.
    pub async fn notified(&self) {
        self.0
            .waiters
            .wait_until(|| self.0.set.replace(false))
            .await;
    }
}

/// At most so many at a time. Clones are the same semaphore.
#[derive(Clone)]
pub struct Semaphore(Rc<SemaphoreInner>);

struct SemaphoreInner {
    free: Cell<usize>,
    waiters: WaitList,
}

/// One of a [`Semaphore`]'s permits; returned when dropped.
#[must_use]
pub struct Permit(Rc<SemaphoreInner>);

impl Semaphore {
    /// With `permits` permits.
    pub fn new(permits: usize) -> Self {
        Self(Rc::new(SemaphoreInner {
            free: Cell::new(permits),
            waiters: WaitList::default(),
        }))
    }

    /// Takes a permit if there is one.
    pub fn try_acquire(&self) -> Option<Permit> {
        let free = self.0.free.get().checked_sub(1)?;
        self.0.free.set(free);
        Some(Permit(Rc::clone(&self.0)))
    }

    /// Waits for a permit.
    pub async fn acquire(&self) -> Permit {
        loop {
            if let Some(permit) = self.try_acquire() {
                return permit;
            }
            self.0.waiters.wait_until(|| self.0.free.get() > 0).await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.free.set(self.0.free.get() + 1);
        self.0.waiters.wake_all();
    }
}

/// Counts requests that were started and not yet finished. Clones are the same counter.
#[derive(Clone, Default)]
pub struct InFlight(Rc<InFlightInner>);

#[derive(Default)]
struct InFlightInner {
    count: Cell<usize>,
    waiters: WaitList,
}

/// One started request; finished when dropped. Move it into the request's task.
#[must_use]
pub struct InFlightGuard(Rc<InFlightInner>);

impl InFlight {
    /// With nothing in flight.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one more request until the guard is dropped.
    pub fn start(&self) -> InFlightGuard {
        self.0.count.set(self.0.count.get() + 1);
        InFlightGuard(Rc::clone(&self.0))
    }

    /// Requests started and not finished.
    pub fn count(&self) -> usize {
        self.0.count.get()
    }

    /// Waits until nothing is in flight.
    pub async fn drained(&self) {
        self.below(1).await;
    }

    /// Waits until fewer than `limit` requests are in flight.
    pub async fn below(&self, limit: usize) {
        self.0
            .waiters
            .wait_until(|| self.0.count.get() < limit)
            .await;
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.waiters.wake_all();
    }
}
