//! The requests of one queue that are in flight: as many slots as the queue has descriptors, each
//! with a waker of its own, so that a completion costs one bit and not a search.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use block::{NodeFuture, Operation, Transfer};

use crate::Chain;

/// A request on its way.
pub(super) enum Work<'n> {
    /// A read or write.
    Transfer(NodeFuture<'n, Transfer>),
    /// Anything without data of the guest.
    Plain(NodeFuture<'n, io::Result<()>>),
}

impl Work<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Work::Transfer(future) => Pin::new(future).poll(cx).map(|(result, _)| result),
            Work::Plain(future) => Pin::new(future).poll(cx),
        }
    }
}

/// What has to be known when a request completes.
pub(super) struct Ticket {
    pub chain: Chain,
    /// Its number in the order in which requests are begun.
    pub order: u64,
    /// `None`: not counted.
    pub operation: Option<Operation>,
    /// Bytes that are moved.
    pub bytes: u64,
    pub started: Instant,
}

/// The slots of one queue.
pub(super) struct Slots<'n> {
    entries: Vec<Option<(Ticket, Work<'n>)>>,
    free: Vec<usize>,
    wakers: Vec<Waker>,
    ready: Arc<Ready>,
}

/// Which slots want to be polled.
pub(super) struct Ready {
    bits: Vec<AtomicU64>,
    /// The task was woken and has not looked since.
    signalled: AtomicBool,
    task: Mutex<Option<Waker>>,
}

struct SlotWaker {
    slot: usize,
    ready: Arc<Ready>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.bits[self.slot / 64].fetch_or(1 << (self.slot % 64), Ordering::Release);
        self.ready.signal();
    }
}

impl Ready {
    /// Lets [`Slots::poll_ready`] return.
    pub fn signal(&self) {
        if !self.signalled.swap(true, Ordering::AcqRel) {
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(task) = &*task {
                task.wake_by_ref();
            }
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        {
            let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                *task = Some(cx.waker().clone());
            }
        }
        if self.signalled.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl<'n> Slots<'n> {
    /// `count` free slots.
    pub fn new(count: usize) -> Self {
        let ready = Arc::new(Ready {
            bits: (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            signalled: AtomicBool::new(false),
            task: Mutex::new(None),
        });
        let waker = |slot| {
            let ready = Arc::clone(&ready);
            Waker::from(Arc::new(SlotWaker { slot, ready }))
        };
        Self {
            entries: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            wakers: (0..count).map(waker).collect(),
            ready,
        }
    }

    pub fn ready(&self) -> &Arc<Ready> {
        &self.ready
    }

    pub fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Starts a request; a result when it is complete at once. There must be room.
    pub fn start(
        &mut self,
        ticket: Ticket,
        mut work: Work<'n>,
    ) -> Option<(Ticket, io::Result<()>)> {
        let Some(slot) = self.free.pop() else {
            return Some((ticket, Err(io::ErrorKind::ResourceBusy.into())));
        };
        let mut cx = Context::from_waker(&self.wakers[slot]);
        match work.poll(&mut cx) {
            Poll::Ready(result) => {
                self.free.push(slot);
                Some((ticket, result))
            }
            Poll::Pending => {
                self.entries[slot] = Some((ticket, work));
                None
            }
        }
    }

    /// Waits until a slot wants to be polled or somebody signals.
    pub fn poll_ready(&self, cx: &Context<'_>) -> Poll<()> {
        self.ready.poll(cx)
    }

    /// Polls the slots that want it and hands the complete requests to `done`.
    pub fn complete<E>(
        &mut self,
        mut done: impl FnMut(Ticket, io::Result<()>) -> Result<(), E>,
    ) -> Result<(), E> {
        for word in 0..self.ready.bits.len() {
            let mut bits = self.ready.bits[word].swap(0, Ordering::Acquire);
            while bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let Some((_, work)) = &mut self.entries[slot] else {
                    continue;
                };
                let mut cx = Context::from_waker(&self.wakers[slot]);
                if let Poll::Ready(result) = work.poll(&mut cx)
                    && let Some((ticket, _)) = self.entries[slot].take()
                {
                    self.free.push(slot);
                    if let Err(error) = done(ticket, result) {
                        // What was not looked at is looked at next time.
                        self.ready.bits[word].fetch_or(bits, Ordering::Release);
                        self.ready.signal();
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}
