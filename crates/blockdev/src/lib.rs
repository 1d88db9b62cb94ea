//! The live block graph: nodes with names, jobs that copy between them, and the QMP commands that
//! change them under a running guest.
//!
//! ```text
//!   QMP ──▶ [qapi] ──▶ commands ──┐                       ┌── devices' requests (I/O threads)
//!                                 ▼                       ▼
//!           jobs ───────▶ [graph] nodes ◀── edges ── block::graph
//! ```
//!
//! Everything that changes the graph runs on one I/O thread, one command after the other; requests
//! of devices go on meanwhile on their own threads, and wait at an edge only while it is led
//! elsewhere. `docs/design/block.md` says how.

mod add;
pub mod bitmap;
mod bitmaps;
mod change;
mod commands;
mod copy_on_read;
mod encryption;
mod error;
mod export;
mod graph;
pub mod job;
mod jobs;
mod nbd_client;
mod null;
mod objects;
mod open;
mod options;
mod part;
pub mod qapi;
mod query;
mod serial;
#[cfg(test)]
mod tests;
mod threshold;
mod throttle;
mod transaction;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::graph::Edge;
use block::throttle::{Throttle, ThrottleGroup};
use block::{DiskSpec, Operation, Totals};
use event::{IoThread, IoThreadConfig};
use luks::Passphrase;
use qmp::{AsyncTable, Event};

pub use error::BlockdevError;

use self::graph::{Graph, Root};
use self::job::Jobs;
use self::serial::Serial;

/// Who is told of events: on any thread.
pub type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// What the graph wants to know of a device that uses it.
pub trait Device: Send + Sync {
    /// Where it is in the tree of objects.
    fn qdev(&self) -> String;

    /// Counters of what it did.
    fn totals(&self, operation: Operation) -> Totals;

    /// Its own limits.
    fn throttle(&self) -> &Arc<Throttle>;

    /// ok, failed or nospace.
    fn io_status(&self) -> &'static str;
}

/// The nodes, jobs and exports of a machine.
pub struct Blockdev {
    thread: IoThread,
    graph: Mutex<Graph>,
    devices: Mutex<BTreeMap<String, Arc<dyn Device>>>,
    groups: Mutex<BTreeMap<String, Arc<ThrottleGroup>>>,
    secrets: Mutex<BTreeMap<String, Passphrase>>,
    exports: Mutex<export::Exports>,
    jobs: Jobs,
    /// One command changes the graph at a time.
    serial: Serial,
    events: EventSink,
    this: std::sync::Weak<Blockdev>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Blockdev {
    /// An empty graph. `events` is told of what happens.
    ///
    /// # Errors
    /// Its thread cannot be started.
    pub fn new(events: EventSink) -> Result<Arc<Self>, event::EventError> {
        let config = IoThreadConfig {
            // Repairs of images go deep.
            stack_size: 8 << 20,
            ..IoThreadConfig::new("block")
        };
        let thread = IoThread::spawn(config)?;
        Ok(Arc::new_cyclic(|this: &std::sync::Weak<Self>| {
            let (sink, of) = (Arc::clone(&events), this.clone());
            let emit = Arc::new(move |event: job::JobEvent| {
                if let Some(this) = of.upgrade() {
                    this.job_event(&event);
                }
                sink(Event::now(event.name(), event.data()));
            });
            Self {
                thread,
                graph: Mutex::default(),
                devices: Mutex::default(),
                groups: Mutex::default(),
                secrets: Mutex::default(),
                exports: Mutex::default(),
                jobs: Jobs::new(emit),
                serial: Serial::default(),
                events,
                this: this.clone(),
            }
        }))
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        lock(&self.graph)
    }

    fn this(&self) -> Arc<Self> {
        // Whoever calls a method holds it.
        self.this
            .upgrade()
            .unwrap_or_else(|| unreachable!("called on a live graph"))
    }

    fn emit(&self, name: &'static str, data: serde_json::Value) {
        (self.events)(Event::now(name, data));
    }

    /// Runs something on the graph's thread.
    async fn on_thread<T, F, M>(self: Arc<Self>, make: M) -> Result<T, qmp::QmpError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, qmp::QmpError>> + 'static,
        M: FnOnce(Arc<Self>) -> F + Send + 'static,
    {
        let thread = self.thread.clone();
        let done = thread.spawn_task(move || make(self)).await;
        done.unwrap_or_else(|gone| Err(qmp::QmpError::generic(gone.to_string())))
    }

    fn block_on<T, F, M>(self: &Arc<Self>, make: M) -> Result<T, event::TaskGone>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
        M: FnOnce(Arc<Self>) -> F + Send + 'static,
    {
        let this = Arc::clone(self);
        self.thread.spawn_task(move || make(this)).join()
    }

    /// Opens the disk that `spec` describes, with everything below it, for the device `id`. What
    /// is returned leads to it, whatever becomes of the graph. Blocks; not to be called on an I/O
    /// thread.
    ///
    /// # Errors
    /// See [`BlockdevError`].
    pub fn open_disk(
        self: &Arc<Self>,
        id: &str,
        spec: &DiskSpec,
    ) -> Result<Arc<Edge>, BlockdevError> {
        let (name, spec) = (id.to_owned(), spec.clone());
        let opened = self.block_on(move |this| async move {
            let node = this.open_spec(&spec).await?;
            Ok(this.connect(&name, &node))
        });
        opened.unwrap_or_else(|gone| Err(BlockdevError::Refused(gone.to_string())))
    }

    /// Connects a device to a node by its name.
    ///
    /// # Errors
    /// There is no such node, or the device's name is taken.
    pub fn connect_node(&self, id: &str, node: &str) -> Result<Arc<Edge>, BlockdevError> {
        let node = self.graph().node(node)?;
        Ok(self.connect(id, &node))
    }

    fn connect(&self, id: &str, node: &graph::GraphNode) -> Arc<Edge> {
        let edge = Edge::new(Some(Arc::clone(&node.vertex)));
        let root = Root {
            edge: Arc::clone(&edge),
            what: format!("the disk of device '{id}'"),
        };
        self.graph().add_root(id, root);
        edge
    }

    /// Tells what is known of a device.
    pub fn set_device(&self, id: &str, device: Arc<dyn Device>) {
        lock(&self.devices).insert(id.to_owned(), device);
    }

    /// The commands that change and show the graph.
    #[must_use]
    pub fn commands() -> AsyncTable<Blockdev> {
        commands::table()
    }

    /// Ends jobs and exports, and closes all nodes. Blocks; not to be called on an I/O thread.
    pub fn close(self: &Arc<Self>) {
        let closed = self.block_on(|this| async move { this.close_all().await });
        if let Err(error) = closed {
            log::error!("cannot close the disks: {error}");
        }
    }
}
