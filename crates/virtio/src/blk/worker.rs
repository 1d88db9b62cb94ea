//! The worker of one queue: a task on an I/O thread.
//!
//! ```text
//!            ┌──────────────────────── turn ────────────────────────┐
//!   kick ──▶ │ complete what is ready ▶ pop all ▶ start all ▶ publish│ ▶ one interrupt, if wanted
//!            └──────────────────────────────────────────────────────┘
//!   while the thread polls, it looks at the ring itself and the driver need not kick
//! ```
//!
//! A request that failed, and on account of which the guest is stopped, is kept; nothing more is
//! popped then, and the worker waits to be stopped. The next one on the queue begins with what was
//! kept.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;

use block::{Node, Operation, Stats, WriteFlags, ZeroFlags};
use event::{EventSource, PollSource, StopToken, poll_source};
use memory::{GuestAddressSpace, GuestRam, KeepAlive};

use super::errors::{ErrorAction, Errors, Kept};
use super::model::{Extent, Header, Model, Request, Segment, Status};
use super::slots::{Ready, Slots, Ticket, Work};
use crate::{Chain, Queue, QueueError, QueueResources, QueueState, Reader};

/// Name in messages about the guest's mistakes.
const DEVICE: &str = "virtio-blk";

/// What the workers of a device share with its registers.
pub(super) struct Shared {
    /// `writeback` of the configuration space: writes are volatile until flushed.
    pub writeback: AtomicBool,
    /// Size of the disk in sectors.
    pub capacity: AtomicU64,
}

/// Everything that one worker needs.
pub(super) struct Worker {
    pub model: Arc<Model>,
    pub node: Arc<dyn Node>,
    pub shared: Arc<Shared>,
    pub stats: Arc<Stats>,
    pub errors: Arc<Errors>,
    /// What is in flight from before, as the queue knows.
    pub kept: Kept,
    pub features: u64,
    pub resources: QueueResources,
    pub stop: StopToken,
}

/// What a worker leaves.
pub(super) struct Left {
    pub state: QueueState,
    /// Requests that are to be made again. They are in flight.
    pub kept: Kept,
}

impl Worker {
    /// Serves the queue until it is stopped and nothing is in flight but what is kept.
    pub async fn run(self) -> Left {
        let Self {
            model,
            node,
            shared,
            stats,
            errors,
            mut kept,
            features,
            resources,
            stop,
        } = self;
        let QueueResources {
            queue,
            memory,
            kick,
            interrupt,
            trouble,
        } = resources;
        let mut slots = Slots::new(usize::from(queue.size()));
        let queue = Rc::new(RefCell::new(queue));
        let mut polled = Some(poll_source(Polled {
            queue: Rc::clone(&queue),
            memory: memory.clone(),
            ready: Arc::clone(slots.ready()),
        }));
        let doorbell = EventSource::new(&kick);
        if let Err(error) = &doorbell {
            trouble.report(DEVICE, error);
        }
        let server = Server {
            model: &model,
            node: &*node,
            shared: &shared,
            stats: &stats,
            errors: &errors,
            features,
        };
        let mut again = kept.take();
        let mut begun = 0;
        let mut stopped = pin!(stop.stopped());
        let mut stopping = false;
        // A queue that makes no sense is not looked at again; what is in flight is waited for.
        let mut broken = doorbell.is_err();
        loop {
            let keep = memory.memory().into_inner();
            let (turned, notify) = {
                let mut queue = queue.borrow_mut();
                let mut turn = Turn {
                    server: &server,
                    queue: &mut queue,
                    keep: &keep,
                    kept: &mut kept,
                    begun: &mut begun,
                    now: Instant::now(),
                    used: false,
                };
                let again = std::mem::take(&mut again);
                turn.run(&mut slots, again, !stopping && !broken)
            };
            if notify {
                interrupt.trigger();
            }
            // Last, so that a driver that answers the interrupt at once need not kick.
            let asked = turned.and_then(|()| match stopping || broken || !kept.is_empty() {
                true => Ok(false),
                false => queue.borrow_mut().enable_notification(&keep),
            });
            let more = asked.unwrap_or_else(|error| {
                broken = true;
                trouble.report(DEVICE, &error);
                false
            });
            let deaf = stopping || broken || !kept.is_empty();
            if deaf {
                // What it would see is not taken any more, and the thread would never sleep.
                drop(polled.take());
            }
            if stopping && slots.is_empty() {
                let state = queue.borrow().save();
                return Left { state, kept };
            }
            // An idle queue does not hold on to a memory map that may have changed.
            drop(keep);
            if more {
                // The driver is quick: let the thread's other tasks have their turn all the same.
                stopping = stop.is_stopped();
                event::yield_now().await;
                continue;
            }
            let mut ring = pin!(async {
                match &doorbell {
                    Ok(doorbell) => doorbell.wait().await,
                    Err(_) => std::future::pending().await,
                }
            });
            let rung = poll_fn(|cx| {
                if !stopping && stopped.as_mut().poll(cx).is_ready() {
                    stopping = true;
                    return Poll::Ready(Ok(()));
                }
                if slots.poll_ready(cx).is_ready() {
                    return Poll::Ready(Ok(()));
                }
                if deaf {
                    return Poll::Pending;
                }
                ring.as_mut().poll(cx)
            })
            .await;
            if let Err(error) = rung {
                broken = true;
                trouble.report(DEVICE, &error);
            }
        }
    }
}

/// Looks at the ring while the thread would sleep.
struct Polled {
    queue: Rc<RefCell<Queue>>,
    memory: GuestRam,
    ready: Arc<Ready>,
}

impl Polled {
    /// Asks the ring; the worker is woken when there is something, or to report what is wrong.
    fn ask(
        &self,
        question: impl FnOnce(&mut Queue, &memory::Ram) -> Result<bool, QueueError>,
    ) -> bool {
        let work = question(&mut self.queue.borrow_mut(), &self.memory.memory()).unwrap_or(true);
        if work {
            self.ready.signal();
        }
        work
    }
}

impl PollSource for Polled {
    fn begin(&mut self) {
        self.ask(|queue, ram| queue.disable_notification(ram).map(|()| false));
    }

    fn poll(&mut self) -> bool {
        self.ask(Queue::has_available)
    }

    fn end(&mut self) -> bool {
        self.ask(Queue::enable_notification)
    }
}

/// What a request needs to be understood and begun.
struct Server<'n> {
    model: &'n Model,
    node: &'n dyn Node,
    shared: &'n Shared,
    stats: &'n Stats,
    errors: &'n Errors,
    features: u64,
}

impl<'n> Server<'n> {
    fn flags(&self) -> WriteFlags {
        WriteFlags {
            fua: !self.shared.writeback.load(Ordering::Relaxed),
        }
    }

    /// Carries out the extents of a discard or write zeroes request one after the other.
    fn extents(&self, request: Request, extents: Vec<Extent>) -> Work<'n> {
        let node = self.node;
        let fua = self.flags().fua;
        Work::Plain(Box::pin(async move {
            for Extent { offset, len, unmap } in extents {
                if request == Request::Discard {
                    node.discard(offset, len).await?;
                    continue;
                }
                let flags = ZeroFlags {
                    may_unmap: unmap,
                    fua,
                };
                node.write_zeroes(offset, len, flags).await?;
            }
            Ok(())
        }))
    }
}

/// How a request goes on.
enum Begun<'n> {
    /// On its way.
    Work(Work<'n>),
    /// Answered already, with so many bytes of data.
    Answer(Status, usize),
}

/// One look at the queue.
struct Turn<'t, 'n> {
    server: &'t Server<'n>,
    queue: &'t mut Queue,
    keep: &'t KeepAlive,
    kept: &'t mut Kept,
    /// How many requests were begun.
    begun: &'t mut u64,
    now: Instant,
    /// Something was marked used.
    used: bool,
}

impl<'n> Turn<'_, 'n> {
    /// Completes, pops, starts and publishes; what is made `again` first. Whether the driver
    /// wants an interrupt, also for what was used before an error.
    fn run(
        &mut self,
        slots: &mut Slots<'n>,
        again: Vec<Chain>,
        pop: bool,
    ) -> (Result<(), QueueError>, bool) {
        let served = self.serve(slots, again, pop);
        match self.publish() {
            Ok(notify) => (served, notify),
            Err(error) => (Err(error), false),
        }
    }

    fn serve(
        &mut self,
        slots: &mut Slots<'n>,
        again: Vec<Chain>,
        pop: bool,
    ) -> Result<(), QueueError> {
        slots.complete(|ticket, result| self.complete(ticket, &result))?;
        for chain in again {
            self.start(slots, chain)?;
        }
        if !pop {
            return Ok(());
        }
        self.queue.disable_notification(self.keep)?;
        while slots.has_room() && self.kept.is_empty() {
            let Some(chain) = self.queue.pop(self.keep)? else {
                break;
            };
            self.start(slots, chain)?;
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<bool, QueueError> {
        if !self.used {
            return Ok(false);
        }
        self.queue.publish_used(self.keep)?;
        self.queue.needs_notification(self.keep)
    }

    fn start(&mut self, slots: &mut Slots<'n>, chain: Chain) -> Result<(), QueueError> {
        let mut reader = chain.reader(self.keep);
        let header: Header = reader.read_obj()?;
        // Without a byte for the status there is no way to answer.
        let room = data_room(&chain)?;
        let operation = header.operation();
        let (bytes, begun) = self.begin(&chain, &header, reader, room)?;
        match begun {
            Begun::Work(work) => {
                *self.begun += 1;
                let ticket = Ticket {
                    chain,
                    order: *self.begun,
                    operation,
                    bytes,
                    started: self.now,
                };
                match slots.start(ticket, work) {
                    None => Ok(()),
                    Some((ticket, result)) => self.complete(ticket, &result),
                }
            }
            Begun::Answer(status, written) => {
                if status != Status::Ok
                    && let Some(operation) = operation
                {
                    self.server.stats.invalid(operation);
                }
                self.answer(chain, status, written)
            }
        }
    }

    /// Begins the request in `chain`, whose header `reader` has passed, and which has `room`
    /// bytes for data. Returns also how many bytes it moves.
    fn begin(
        &self,
        chain: &Chain,
        header: &Header,
        mut reader: Reader<'_>,
        room: usize,
    ) -> Result<(u64, Begun<'n>), QueueError> {
        let server = self.server;
        let capacity = server.shared.capacity.load(Ordering::Relaxed);
        let request = server.model.request(
            header,
            reader.remaining() as u64,
            room as u64,
            capacity,
            server.features,
        );
        let mut writer = chain.writer(self.keep);
        let begun = match request {
            Err(status) => (0, Begun::Answer(status, 0)),
            Ok(Request::Read { offset }) => {
                let data = writer.split_at(room)?.io_buf(self.keep)?;
                let read = server.node.read_vectored(data, offset);
                (room as u64, Begun::Work(Work::Transfer(read)))
            }
            Ok(Request::Write { offset }) => {
                let bytes = reader.remaining() as u64;
                let data = reader.io_buf(self.keep)?;
                let write = server.node.write_vectored(data, offset, server.flags());
                (bytes, Begun::Work(Work::Transfer(write)))
            }
            Ok(Request::Flush) => (0, Begun::Work(Work::Plain(server.node.flush()))),
            Ok(Request::GetId) => {
                let id = &server.model.serial;
                let len = id.len().min(room);
                writer.write_all(&id[..len])?;
                (0, Begun::Answer(Status::Ok, len))
            }
            Ok(request @ (Request::Discard | Request::WriteZeroes)) => {
                let mut extents = Vec::new();
                while reader.remaining() != 0 {
                    let segment: Segment = reader.read_obj()?;
                    match server.model.extent(request, &segment, capacity) {
                        Ok(extent) => extents.push(extent),
                        Err(status) => return Ok((0, Begun::Answer(status, 0))),
                    }
                }
                let bytes = extents.iter().map(|extent| extent.len).sum();
                (bytes, Begun::Work(server.extents(request, extents)))
            }
        };
        Ok(begun)
    }

    fn complete(&mut self, ticket: Ticket, result: &io::Result<()>) -> Result<(), QueueError> {
        let Ticket {
            chain,
            order,
            operation,
            bytes,
            started,
        } = ticket;
        let Server {
            stats,
            errors,
            node,
            ..
        } = *self.server;
        let action = match result {
            Ok(()) => ErrorAction::Ignore,
            Err(error) => {
                let action = errors.action(operation, error);
                if action == ErrorAction::Stop {
                    // Before anybody hears of it and looks for it.
                    self.kept.keep(order, chain);
                    errors.tell(node, operation, action, error);
                    return Ok(());
                }
                errors.tell(node, operation, action, error);
                action
            }
        };
        let (status, written) = match (action, operation) {
            (ErrorAction::Ignore, Some(Operation::Read)) => (Status::Ok, data_room(&chain)?),
            (ErrorAction::Ignore, _) => (Status::Ok, 0),
            _ => (Status::IoErr, 0),
        };
        if let Some(operation) = operation {
            match result {
                Ok(()) => stats.done(
                    operation,
                    bytes,
                    self.now.saturating_duration_since(started),
                ),
                Err(_) => stats.failed(operation),
            }
        }
        self.answer(chain, status, written)
    }

    /// Writes the status, which is the chain's last byte, and marks the chain used; `written`
    /// bytes of data are in front of it.
    fn answer(&mut self, chain: Chain, status: Status, written: usize) -> Result<(), QueueError> {
        let room = data_room(&chain)?;
        let mut writer = chain.writer(self.keep);
        writer.skip(room)?;
        writer.write_all(&[status as u8])?;
        // The driver is told how many bytes were written without a gap from the first one on
        // (VIRTIO 1.3 section 2.7.8.2).
        let written = if written == room { room + 1 } else { written };
        self.used = true;
        self.queue.push_used(self.keep, chain, written as u32)
    }
}

/// How many bytes of data the driver has room for in front of the status.
fn data_room(chain: &Chain) -> Result<usize, QueueError> {
    (chain.writable_len() as usize)
        .checked_sub(1)
        .ok_or(QueueError::TooShort {
            wanted: 1,
            remaining: 0,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{RING_EVENT_IDX, RING_PACKED};
    use crate::testing::{DriverQueue, Guest};

    #[test]
    fn a_driver_need_not_kick_while_the_thread_polls() {
        for features in [0, RING_EVENT_IDX, RING_PACKED, RING_PACKED | RING_EVENT_IDX] {
            let guest = Guest::new(1 << 20);
            let mut driver = DriverQueue::new(&guest, 16, features);
            let queue = Queue::new(driver.config()).unwrap();
            let queue = Rc::new(RefCell::new(queue));
            let slots = Slots::new(16);
            let mut polled = Polled {
                queue: Rc::clone(&queue),
                memory: guest.memory().clone(),
                ready: Arc::clone(slots.ready()),
            };
            // As a turn of the worker ends: it wants to be kicked.
            assert!(
                !queue
                    .borrow_mut()
                    .enable_notification(&guest.memory().memory())
                    .unwrap()
            );
            for _ in 0..40 {
                polled.begin();
                assert!(!polled.poll());
                driver.send(&[b"request"], &[1]);
                assert!(!driver.needs_kick(), "features {features:#x}");
                assert!(polled.poll());
                assert!(polled.end());
                let ram = guest.memory().memory();
                let chain = queue.borrow_mut().pop(&ram).unwrap().unwrap();
                queue.borrow_mut().add_used(&ram, chain, 0).unwrap();
                driver.collect().unwrap();
                assert!(!polled.end());
                driver.send(&[b"request"], &[1]);
                assert!(driver.needs_kick(), "features {features:#x}");
                let chain = queue.borrow_mut().pop(&ram).unwrap().unwrap();
                queue.borrow_mut().add_used(&ram, chain, 0).unwrap();
                driver.collect().unwrap();
            }
        }
    }
}
