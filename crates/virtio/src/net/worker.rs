//! The worker of one queue: a task on an I/O thread.
//!
//! ```text
//!           ┌───────────── turn ─────────────┐
//!   ring ──▶│ some frames ▶ publish together │──▶ one interrupt, if wanted
//!   port ──▶└────────────────────────────────┘
//!     └── whichever of the two it waits for; the other one is left alone
//! ```

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use ::net::Port;
use event::{EventSource, PollSource, poll_source};
use memory::{GuestAddressSpace, GuestRam, Ram, VolatileSlice};

use super::shared::{Shared, View, Wake};
use crate::{Queue, QueueError, QueueResources, QueueState};

/// Name in messages about the guest's mistakes.
pub(super) const DEVICE: &str = "virtio-net";

/// Frames of one turn at most: then other tasks have theirs, and the driver sees the result.
pub(super) const BATCH: usize = 64;

/// What every worker needs.
pub(super) struct Worker {
    /// Which pair the queue belongs to.
    pub pair: u16,
    pub shared: Arc<Shared>,
    pub wake: Arc<Wake>,
    pub resources: QueueResources,
}

/// What a worker waits for after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: there is more to do.
    Again,
    /// The driver, to make buffers available.
    Driver,
    /// The host, to have a frame.
    Receivable,
    /// The host, to have room for a frame.
    Sendable,
    /// A change of the settings.
    Settings,
}

/// What a turn works with.
pub(super) struct Turn<'t> {
    pub pair: u16,
    pub port: &'t dyn Port,
    pub queue: &'t mut Queue,
    pub ram: &'t Ram,
    pub view: &'t View,
    pub shared: &'t Shared,
    /// Number of the view.
    pub generation: u64,
    /// Something was marked used, but not published.
    pub used: bool,
}

impl Turn<'_> {
    /// Whether there is a newer view.
    pub fn is_stale(&self) -> bool {
        self.shared.generation() != self.generation
    }
}

/// One of the two directions.
pub(super) trait Flow {
    /// Moves some frames.
    fn turn(&mut self, turn: &mut Turn<'_>) -> Result<Next, QueueError>;

    /// The host's end says that it is no more.
    fn lost(&mut self, error: &io::Error);

    /// Gives back the chains that are held from one turn to the next.
    fn finish(&mut self, queue: &mut Queue);
}

/// Serves the queue until it is stopped.
pub(super) async fn run(mut flow: impl Flow, port: Rc<dyn Port>, worker: Worker) -> QueueState {
    let Worker {
        pair,
        shared,
        wake,
        resources,
    } = worker;
    let QueueResources {
        queue,
        memory,
        kick,
        interrupt,
        trouble,
    } = resources;
    let queue = Rc::new(RefCell::new(queue));
    let waits = Rc::new(Cell::new(false));
    let mut polled = Some(poll_source(Polled {
        queue: Rc::clone(&queue),
        memory: memory.clone(),
        wake: Arc::clone(&wake),
        waits: Rc::clone(&waits),
        began: false,
    }));
    let doorbell = EventSource::new(&kick);
    if let Err(error) = &doorbell {
        trouble.report(DEVICE, error);
    }
    // A queue that makes no sense is not looked at again.
    let mut broken = doorbell.is_err();
    let mut generation = shared.generation();
    let mut view = shared.view();
    // Nor is a host that cannot be waited for.
    let mut lost = false;
    while !wake.is_stopped() {
        let current = shared.generation();
        if current != generation {
            generation = current;
            view = shared.view();
        }
        let mut next = Next::Settings;
        if !broken {
            let ram = memory.memory();
            let mut queue = queue.borrow_mut();
            let mut turn = Turn {
                pair,
                port: &*port,
                queue: &mut queue,
                ram: &ram,
                view: &view,
                shared: &shared,
                generation,
                used: false,
            };
            let (turned, notify) = take_turn(&mut flow, &mut turn);
            if notify {
                interrupt.trigger();
            }
            // Last, so that a driver that answers the interrupt at once need not kick.
            let asked = turned.and_then(|next| match next {
                Next::Driver if queue.enable_notification(&ram)? => Ok(Next::Again),
                next => Ok(next),
            });
            next = asked.unwrap_or_else(|error| {
                broken = true;
                trouble.report(DEVICE, &error);
                Next::Settings
            });
        }
        if broken {
            // The thread would never sleep.
            drop(polled.take());
        }
        if next == Next::Again {
            event::yield_now().await;
            continue;
        }
        if lost && matches!(next, Next::Receivable | Next::Sendable) {
            next = Next::Settings;
        }
        waits.set(next == Next::Driver);
        let mut wait = pin!(async {
            match (next, &doorbell) {
                (Next::Driver, Ok(doorbell)) => doorbell.wait().await,
                (Next::Receivable, _) => port.receivable().await,
                (Next::Sendable, _) => port.sendable().await,
                _ => std::future::pending().await,
            }
        });
        let waited = poll_fn(|cx| match wake.poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => wait.as_mut().poll(cx),
        });
        let waited = waited.await;
        waits.set(false);
        match waited {
            Ok(()) => {}
            Err(error) if next == Next::Driver => {
                broken = true;
                trouble.report(DEVICE, &error);
            }
            Err(error) => {
                lost = true;
                flow.lost(&error);
            }
        }
    }
    drop(polled);
    let mut queue = queue.borrow_mut();
    flow.finish(&mut queue);
    queue.save()
}

/// A turn of `flow`, and whether the driver wants an interrupt, also for what was used before an
/// error.
fn take_turn(flow: &mut impl Flow, turn: &mut Turn<'_>) -> (Result<Next, QueueError>, bool) {
    let moved = turn
        .queue
        .disable_notification(turn.ram)
        .and_then(|()| flow.turn(turn));
    if !turn.used {
        return (moved, false);
    }
    let published = turn.queue.publish_used(turn.ram);
    match published.and_then(|()| turn.queue.needs_notification(turn.ram)) {
        Ok(notify) => (moved, notify),
        Err(error) => (Err(error), false),
    }
}

/// Looks at the ring while the thread would sleep, if the worker waits for it.
struct Polled {
    queue: Rc<RefCell<Queue>>,
    memory: GuestRam,
    wake: Arc<Wake>,
    waits: Rc<Cell<bool>>,
    /// Polling began while the worker waited, and notifications are off.
    began: bool,
}

impl Polled {
    /// Asks the ring; the worker is woken when there is something, or to report what is wrong.
    fn ask(&self, question: impl FnOnce(&mut Queue, &Ram) -> Result<bool, QueueError>) -> bool {
        let work = question(&mut self.queue.borrow_mut(), &self.memory.memory()).unwrap_or(true);
        if work {
            self.wake.signal();
        }
        work
    }
}

impl PollSource for Polled {
    fn begin(&mut self) {
        self.began = self.waits.get();
        if self.began {
            self.ask(|queue, ram| queue.disable_notification(ram).map(|()| false));
        }
    }

    fn poll(&mut self) -> bool {
        self.began && self.ask(Queue::has_available)
    }

    fn end(&mut self) -> bool {
        self.began && self.ask(Queue::enable_notification)
    }
}

/// An empty list, in the memory of another one whose slices were of another time.
pub(super) fn recycle<'a>(mut list: Vec<VolatileSlice<'_>>) -> Vec<VolatileSlice<'a>> {
    list.clear();
    // The standard library collects into the same allocation, and there is nothing to map.
    #[expect(
        clippy::unnecessary_filter_map,
        reason = "the elements' lifetime changes"
    )]
    list.into_iter().filter_map(|_| None).collect()
}
