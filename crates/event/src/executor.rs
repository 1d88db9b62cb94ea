//! The executor of one I/O thread: what only that thread touches.
#![allow(
    unsafe_code,
    reason = "starts operations whose memory the kernel uses after the call"
)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_task::{Runnable, Task};
use libc::iovec;

use crate::IoBuf;
use crate::ops::{Active, KeepFile, Ops, Then, Watch};
use crate::poll::Polling;
use crate::reactor::{Completion, OpId, Pool, Reactor, Request, Wait};
use crate::shared::{Message, Shared};
use crate::thread::Handle;
use crate::time::Timers;

thread_local! {
    static LOCAL: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

pub(crate) struct Local {
    pub(crate) shared: Arc<Shared>,
    pub(crate) handle: Weak<Handle>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) polling: Polling,
    pub(crate) pool: Pool,
    queue: RefCell<VecDeque<Runnable>>,
    active: Active,
    ops: RefCell<Ops>,
    reactor: RefCell<Box<dyn Reactor>>,
    /// Reused from turn to turn.
    done: Cell<Vec<Completion>>,
    messages: Cell<Vec<Message>>,
}

/// The executor of this thread, if it is an I/O thread.
pub(crate) fn try_local() -> Option<Rc<Local>> {
    LOCAL
        .try_with(|local| local.borrow().clone())
        .ok()
        .flatten()
}

/// The executor of this thread.
///
/// # Panics
/// This is no I/O thread, which is a mistake of the program.
#[track_caller]
pub(crate) fn local() -> Rc<Local> {
    match try_local() {
        Some(local) => local,
        None => panic!("called outside of an I/O thread"),
    }
}

/// Where a woken task goes.
fn schedule(shared: &Arc<Shared>, runnable: Runnable) {
    let elsewhere = LOCAL.try_with(|local| match &*local.borrow() {
        Some(local) if Arc::ptr_eq(&local.shared, shared) => {
            local.queue.borrow_mut().push_back(runnable);
            None
        }
        _ => Some(runnable),
    });
    let Ok(Some(runnable)) = elsewhere else {
        return;
    };
    if let Err(message) = shared.post(Message::Run(runnable)) {
        // A thread ends when all its tasks have, so this is not reached. The task's future could
        // not be dropped here, as it belongs to the other thread.
        std::mem::forget(message);
    }
}

/// Takes a task out of the table of tasks when its future is dropped.
struct Registration {
    local: Rc<Local>,
    place: usize,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let waker = self.local.active.borrow_mut().try_remove(self.place);
        drop(waker);
    }
}

impl Local {
    pub(crate) fn new(
        shared: Arc<Shared>,
        handle: Weak<Handle>,
        poll_max: Duration,
        pool: Pool,
        reactor: Box<dyn Reactor>,
    ) -> Rc<Self> {
        Rc::new(Self {
            shared,
            handle,
            timers: RefCell::default(),
            polling: Polling::new(poll_max),
            pool,
            queue: RefCell::default(),
            active: RefCell::default(),
            ops: RefCell::default(),
            reactor: RefCell::new(reactor),
            done: Cell::default(),
            messages: Cell::default(),
        })
    }

    pub(crate) fn spawn<F: Future + 'static>(self: &Rc<Self>, future: F) -> Task<F::Output> {
        let registration = Registration {
            local: Rc::clone(self),
            place: self.active.borrow_mut().insert(None),
        };
        let place = registration.place;
        let shared = Arc::clone(&self.shared);
        let (runnable, task) = async_task::spawn_local(
            async move {
                let _registration = registration;
                future.await
            },
            move |runnable| schedule(&shared, runnable),
        );
        self.active.borrow_mut()[place] = Some(runnable.waker());
        self.queue.borrow_mut().push_back(runnable);
        task
    }

    /// Begins an operation. `make` gets the scatter list of `buf`.
    fn start_once(
        &self,
        buf: Option<IoBuf>,
        file: Option<KeepFile>,
        make: impl FnOnce(&[iovec]) -> Request<'_>,
    ) -> OpId {
        let mut ops = self.ops.borrow_mut();
        let id = ops.insert_once(buf, file);
        let request = make(ops.buf(id).map_or(&[], IoBuf::iovecs));
        // SAFETY: the table keeps the buffer, unchanged, and the descriptor until the completion:
        // neither is given back before, `abandon` leaves them, and a table dropped too early
        // forgets them. A poll request may have a descriptor without an owner, but no memory.
        unsafe { self.reactor.borrow_mut().start(id, request) };
        id
    }

    /// Begins to watch, or begins again.
    pub(crate) fn start_watch(&self, watch: &Rc<Watch>) {
        let id = self.ops.borrow_mut().insert_watch(Rc::clone(watch));
        watch.id.set(Some(id));
        let request = Request::Poll {
            fd: watch.fd.as_raw_fd(),
            events: watch.events,
            multi: true,
        };
        // SAFETY: no memory is involved, and the table keeps the descriptor open.
        unsafe { self.reactor.borrow_mut().start(id, request) };
    }

    pub(crate) fn cancel(&self, id: OpId) {
        self.reactor.borrow_mut().cancel(id);
    }

    fn act(&self, then: Then) {
        match then {
            Then::Nothing => (),
            Then::Wake(waker) => waker.wake(),
            Then::Free(unused) => drop(unused),
            Then::Watched(watch, completion) => self.watched(&watch, completion),
        }
    }

    fn watched(&self, watch: &Rc<Watch>, completion: Completion) {
        if !completion.more {
            watch.id.set(None);
        }
        if watch.closed.get() {
            return;
        }
        match u32::try_from(completion.result) {
            Ok(events) => {
                watch.ready.set(watch.ready.get() | events);
                if !completion.more {
                    self.start_watch(watch);
                }
            }
            Err(_) => watch.error.set(Some(-completion.result)),
        }
        let ready = watch.ready.get();
        let failed = watch.error.get().is_some() || ready & (POLL_ERROR | POLL_HANGUP) != 0;
        if failed || ready & POLL_IN != 0 {
            watch.readers.wake_all();
        }
        if failed || ready & POLL_OUT != 0 {
            watch.writers.wake_all();
        }
    }

    /// Hands operations to the kernel, waits as told, and wakes whom completions concern.
    fn turn(&self, wait: Wait) -> usize {
        let mut done = self.done.take();
        let result = self.reactor.borrow_mut().turn(wait, &mut done);
        if let Err(error) = result {
            // There is nothing to be done about it but not to spin.
            log::error!("{}: cannot wait for I/O: {error}", self.shared.name);
            std::thread::sleep(Duration::from_millis(10));
        }
        let count = done.len();
        for completion in done.drain(..) {
            let then = self.ops.borrow_mut().complete(completion);
            self.act(then);
        }
        self.done.set(done);
        count
    }

    fn read_inbox(&self) {
        let mut messages = self.messages.take();
        self.shared.take(&mut messages);
        for message in messages.drain(..) {
            match message {
                Message::Run(runnable) => self.queue.borrow_mut().push_back(runnable),
                Message::Call(call) => {
                    // The panic's own message has been printed; whoever waits sees it is gone.
                    let _ = catch_unwind(AssertUnwindSafe(call));
                }
                Message::Completed(completion) => {
                    let then = self.ops.borrow_mut().complete(completion);
                    self.act(then);
                }
            }
        }
        self.messages.set(messages);
    }

    fn fire_timers(&self) {
        if self.timers.borrow().next().is_none() {
            return;
        }
        let wakers = self.timers.borrow_mut().expired(Instant::now());
        wakers.into_iter().for_each(Waker::wake);
    }

    fn run_batch(&self) {
        // Only those that are ready now, so that I/O has its turn.
        let ready = self.queue.borrow().len();
        for _ in 0..ready {
            let Some(runnable) = self.queue.borrow_mut().pop_front() else {
                break;
            };
            if catch_unwind(AssertUnwindSafe(|| runnable.run())).is_err() {
                log::error!("{}: a task panicked", self.shared.name);
            }
        }
    }

    fn is_busy(&self) -> bool {
        !self.queue.borrow().is_empty() || self.shared.is_pending()
    }

    /// Makes this the executor of the current thread and runs until told to quit.
    pub(crate) fn run(self: Rc<Self>) {
        LOCAL.with(|local| *local.borrow_mut() = Some(Rc::clone(&self)));
        while !self.shared.quits() {
            self.read_inbox();
            self.fire_timers();
            self.run_batch();
            if self.is_busy() {
                self.turn(Wait::No);
            } else {
                self.idle();
            }
        }
        self.shut_down();
        LOCAL.with(|local| *local.borrow_mut() = None);
    }

    /// Polls for a while if that has paid off lately, then sleeps.
    fn idle(&self) {
        let deadline = self.timers.borrow().next();
        if !self.polling.is_enabled() {
            self.sleep(deadline);
            return;
        }
        let start = Instant::now();
        let window = self.polling.window();
        let mut busy = false;
        if !window.is_zero() {
            // What is queued should be under way while we poll.
            if self.reactor.borrow_mut().queued() {
                busy = self.turn(Wait::No) > 0;
            }
            if !busy {
                let end = deadline.map_or(start + window, |d| d.min(start + window));
                busy = self.polling.poll(end, || {
                    self.is_busy() || self.reactor.borrow_mut().visible()
                });
            }
        }
        if busy || self.is_busy() {
            self.turn(Wait::No);
            return;
        }
        let woken = self.sleep(deadline);
        if woken {
            self.polling.learn(start.elapsed());
        }
    }

    /// Sleeps in the kernel. False when the deadline ended it.
    fn sleep(&self, deadline: Option<Instant>) -> bool {
        if !self.shared.prepare_sleep() {
            self.turn(Wait::No);
            return true;
        }
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.turn(Wait::AtMost(timeout));
        self.shared.end_sleep();
        deadline.is_none_or(|deadline| self.is_busy() || Instant::now() < deadline)
    }

    /// Cancels all tasks and waits until the kernel has let go of all memory.
    fn shut_down(&self) {
        self.polling.clear();
        loop {
            let wakers: Vec<_> = self
                .active
                .borrow()
                .iter()
                .filter_map(|(_, waker)| waker.clone())
                .collect();
            wakers.into_iter().for_each(Waker::wake);
            self.read_inbox();
            loop {
                let Some(runnable) = self.queue.borrow_mut().pop_front() else {
                    break;
                };
                // Drops the future. Its destructors may wake and spawn.
                if catch_unwind(AssertUnwindSafe(|| drop(runnable))).is_err() {
                    log::error!("{}: a cancelled task panicked", self.shared.name);
                }
            }
            if self.active.borrow().is_empty() {
                break;
            }
            // A task is just being woken by another thread, which will post it.
            std::thread::yield_now();
        }
        let mut asked = false;
        loop {
            self.read_inbox();
            let unfinished = self.ops.borrow().unfinished();
            if unfinished.is_empty() {
                break;
            }
            if !asked {
                unfinished.into_iter().for_each(|id| self.cancel(id));
                asked = true;
            }
            self.sleep(None);
        }
        self.pool.quit();
        for message in self.shared.close() {
            // A call that came too late: whoever waits for it sees that it is gone.
            drop(message);
        }
    }

    pub(crate) fn reactor_name(&self) -> &'static str {
        self.reactor.borrow().name()
    }
}

const POLL_IN: u32 = libc::POLLIN as u32;
const POLL_OUT: u32 = libc::POLLOUT as u32;
const POLL_ERROR: u32 = libc::POLLERR as u32;
const POLL_HANGUP: u32 = libc::POLLHUP as u32;

/// An operation with one completion. Dropping it asks the kernel to stop, and leaves the memory
/// with the table until it has.
pub(crate) struct Operation {
    local: Rc<Local>,
    id: Option<OpId>,
}

impl Operation {
    /// Begins an operation of this thread's executor.
    #[track_caller]
    pub(crate) fn start(
        buf: Option<IoBuf>,
        file: Option<KeepFile>,
        make: impl FnOnce(&[iovec]) -> Request<'_>,
    ) -> Self {
        let local = local();
        let id = Some(local.start_once(buf, file, make));
        Self { local, id }
    }
}

impl Future for Operation {
    type Output = (i32, Option<IoBuf>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(id) = self.id else {
            return Poll::Pending;
        };
        let (result, old) = self.local.ops.borrow_mut().poll(id, cx);
        drop(old);
        if result.is_ready() {
            self.id = None;
        }
        result
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let (running, then) = self.local.ops.borrow_mut().abandon(id);
            if running {
                self.local.cancel(id);
            }
            match then {
                // The task that waits is the one that drops us.
                Then::Wake(waker) => drop(waker),
                then => self.local.act(then),
            }
        }
    }
}
