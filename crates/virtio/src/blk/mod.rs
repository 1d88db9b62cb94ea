//! virtio-blk: a disk (VIRTIO 1.3 section 5.2).
//!
//! ```text
//!   driver ── config space ──▶ [model]                      [block::Node]
//!     │                           │ what a request means         ▲
//!     └── queue i ─▶ [worker i] ──┴─ read, write, flush, ... ────┘
//!                     on I/O thread i mod n, requests in [slots]
//! ```
//!
//! The node behind the workers is a [`Throttle`]. Requests that the host fails are answered, or
//! kept and made again ([`ErrorAction`]).

mod errors;
mod model;
mod slots;
mod spec;
mod state;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ::state::{Payload, StateError};
use block::throttle::{Throttle, ThrottleError, ThrottleGroup, Unthrottled};
use block::{BlockError, Node, Operation, SizeWatcher, Stats, Totals};
use bus::Interrupt;
use event::{IoThread, Remote, StopSource};

pub use self::errors::{ErrorAction, IoError, IoStatus};
use self::errors::{Errors, Kept};
use self::model::{ID_LEN, Model, SECTOR, feature};
pub use self::spec::{BlkDeviceSpec, BlkSpec, ReadErrorPolicy, WriteErrorPolicy};
use self::state::{BlkState, KIND, VERSION};
use self::worker::{Left, Shared, Worker};
use crate::{Activation, Chain, Identity, QueueResources, QueueState, StartError, VirtioDevice};

/// Mass storage, other (PCI Code and ID Assignment 1.11), as QEMU's has it.
const PCI_CLASS: u32 = 0x01_00_00;

/// A virtio disk.
pub struct Blk {
    model: Arc<Model>,
    /// In front of the disk's node.
    node: Arc<Throttle>,
    below: Arc<OnceLock<Below>>,
    errors: Arc<Errors>,
    /// `writeback` after a reset.
    write_cache: bool,
    threads: Vec<IoThread>,
    shared: Arc<Shared>,
    /// Where to tell of a new size, while a driver listens.
    config_changed: Arc<Mutex<Option<Interrupt>>>,
    /// Keeps the node telling us.
    _watcher: Arc<SizeWatcher>,
    activation: Option<Activation>,
    queues: Vec<Option<Running>>,
    /// What the queues that are stopped have kept.
    kept: Vec<Kept>,
    stats: Vec<Arc<Stats>>,
}

/// Lets everything go that other limits below the device hold back.
type Below = Box<dyn Fn() -> Vec<Unthrottled> + Send + Sync>;

struct Running {
    stop: StopSource,
    worker: Remote<Left>,
}

/// Why a disk could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlkError {
    /// There is no I/O thread to serve it.
    #[error("a disk needs at least one I/O thread")]
    NoThread,
    /// It would have no queue.
    #[error("a disk needs at least one queue")]
    NoQueue,
    /// The limits contradict one another.
    #[error("its limits")]
    Throttle(#[from] ThrottleError),
    /// The block sizes contradict each other or the disk.
    #[error("logical-block-size={logical}: {why}")]
    BlockSize {
        /// Bytes of a logical block.
        logical: u64,
        /// What it contradicts.
        why: String,
    },
}

impl Blk {
    /// A disk that shows `node` to the guest. Queue `i` is served by thread `i` modulo their
    /// number. `num_queues` counts unless `spec` says otherwise.
    ///
    /// # Errors
    /// There is no thread or queue, the limits contradict one another, or the block sizes are not
    /// possible with this disk.
    pub fn new(
        spec: &BlkSpec,
        node: Arc<dyn Node>,
        threads: Vec<IoThread>,
        num_queues: u16,
    ) -> Result<Self, BlkError> {
        let device = &spec.device;
        let num_queues = device.num_queues.unwrap_or(num_queues);
        if threads.is_empty() {
            return Err(BlkError::NoThread);
        }
        if num_queues == 0 {
            return Err(BlkError::NoQueue);
        }
        let limits = node.limits();
        let (logical, physical) = block_sizes(device, &limits, node.size())?;
        let mut serial = [0; ID_LEN];
        for (to, from) in serial
            .iter_mut()
            .zip(device.serial.iter().flat_map(|s| s.bytes()))
        {
            *to = from;
        }
        let write_cache = device
            .write_cache
            .unwrap_or_else(|| spec.disk.cache.is_writeback());
        let shared = Arc::new(Shared {
            writeback: AtomicBool::new(write_cache),
            capacity: AtomicU64::new(node.size() / SECTOR),
        });
        let config_changed = Arc::new(Mutex::new(None));
        let watcher = watcher(&shared, &config_changed);
        node.watch_size(Arc::downgrade(&watcher));
        let group = ThrottleGroup::new(node.name(), &spec.throttle)?;
        let node = Arc::new(Throttle::new(node.name(), node, group));
        let errors = Errors::new(device);
        Ok(Self {
            model: Arc::new(Model {
                read_only: node.is_read_only(),
                can_discard: limits.can_discard,
                logical_block_size: logical,
                physical_block_size: physical,
                discard_granularity: limits.discard_granularity,
                num_queues,
                queue_size: device.queue_size,
                serial,
            }),
            node,
            below: Arc::default(),
            write_cache,
            threads,
            shared,
            config_changed,
            _watcher: watcher,
            activation: None,
            queues: (0..num_queues).map(|_| None).collect(),
            kept: (0..num_queues).map(|_| Kept::new(&errors)).collect(),
            errors,
            stats: (0..num_queues).map(|_| Arc::default()).collect(),
        })
    }

    /// The disk for the control side, which reaches it also while the transport owns the device.
    #[must_use]
    pub fn handle(&self) -> BlkHandle {
        BlkHandle {
            node: Arc::clone(&self.node),
            below: Arc::clone(&self.below),
            errors: Arc::clone(&self.errors),
            thread: self.threads[0].clone(),
            stats: self.stats.clone(),
        }
    }
}

/// A disk as the control side sees it. Clones are the same disk.
#[derive(Clone)]
pub struct BlkHandle {
    node: Arc<Throttle>,
    below: Arc<OnceLock<Below>>,
    errors: Arc<Errors>,
    thread: IoThread,
    stats: Vec<Arc<Stats>>,
}

impl BlkHandle {
    /// The disk behind the device.
    #[must_use]
    pub fn node(&self) -> &Arc<dyn Node> {
        self.node.inner()
    }

    /// What stands between the device and the disk: by its group, the limits can be changed.
    #[must_use]
    pub fn throttle(&self) -> &Arc<Throttle> {
        &self.node
    }

    /// `unthrottled` is called when a queue begins to stop, and lets everything go that limits
    /// below the device hold back (filters in the block graph), until what it returns is dropped:
    /// the queue waits for it. Only the first one counts.
    pub fn limits_below(&self, unthrottled: impl Fn() -> Vec<Unthrottled> + Send + Sync + 'static) {
        _ = self.below.set(Box::new(unthrottled));
    }

    /// Calls `listener` with the requests that the host failed, on the I/O threads. Only the
    /// first listener counts, and before there is one, no policy is to stop.
    ///
    /// Each [`ErrorAction::Stop`] is told. Stop the device then (`VirtioPci::quiesce`): when
    /// its queues start again, so do the requests that are [`BlkHandle::kept`]. Other errors are
    /// told once a second at most.
    pub fn on_error(&self, listener: Arc<dyn Fn(IoError) + Send + Sync>) {
        self.errors.listen(listener);
    }

    /// How many requests failed and wait to be made again.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.errors.kept()
    }

    /// How the disk is.
    #[must_use]
    pub fn io_status(&self) -> IoStatus {
        self.errors.status()
    }

    /// Gives the disk a new size in bytes and tells the guest. Blocks until it is done; not to
    /// be called on an I/O thread.
    ///
    /// # Errors
    /// The image cannot have that size.
    pub fn resize(&self, size: u64) -> Result<(), BlockError> {
        let node = Arc::clone(&self.node);
        let gone = |why: event::TaskGone| BlockError::Resize {
            path: self.node.name().into(),
            size,
            why: why.to_string(),
        };
        self.thread
            .spawn_task(move || async move { node.resize(size).await })
            .join()
            .unwrap_or_else(|why| Err(gone(why)))
    }

    /// Closes the image: no queue works any more. Blocks until it is done; not to be called on an
    /// I/O thread of the disk.
    ///
    /// # Errors
    /// The host could not write everything.
    pub fn close(&self) -> std::io::Result<()> {
        let node = Arc::clone(&self.node);
        self.thread
            .spawn_task(move || async move { node.close().await })
            .join()
            .unwrap_or_else(|gone| Err(std::io::Error::other(gone)))
    }

    /// What the guest did so far, over all queues.
    #[must_use]
    pub fn totals(&self, operation: Operation) -> Totals {
        let mut totals = Totals::default();
        for stats in &self.stats {
            totals += stats.totals(operation);
        }
        totals
    }
}

fn watcher(shared: &Arc<Shared>, interrupt: &Arc<Mutex<Option<Interrupt>>>) -> Arc<SizeWatcher> {
    let (shared, interrupt) = (Arc::clone(shared), Arc::clone(interrupt));
    Arc::new(move |size| {
        shared.capacity.store(size / SECTOR, Ordering::Relaxed);
        let interrupt = interrupt.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interrupt) = &*interrupt {
            interrupt.trigger();
        }
    })
}

/// Logical and physical block size in bytes.
fn block_sizes(
    spec: &BlkDeviceSpec,
    limits: &block::Limits,
    size: u64,
) -> Result<(u32, u32), BlkError> {
    let logical = spec
        .logical_block_size
        .map_or(u64::from(limits.logical_block_size), |size| size.0);
    let bad = |why: String| BlkError::BlockSize { logical, why };
    let physical = match spec.physical_block_size {
        Some(size) if size.0 < logical => {
            return Err(bad(format!("larger than physical-block-size={size}")));
        }
        Some(size) => size.0,
        None => u64::from(limits.physical_block_size).max(logical),
    };
    if logical < u64::from(limits.logical_block_size) {
        let least = limits.logical_block_size;
        return Err(bad(format!(
            "the host's device has blocks of {least} bytes"
        )));
    }
    if !size.is_multiple_of(logical) {
        return Err(bad(format!(
            "the disk's size of {size} bytes is no multiple of it"
        )));
    }
    match (u32::try_from(logical), u32::try_from(physical)) {
        (Ok(logical), Ok(physical)) => Ok((logical, physical)),
        _ => Err(bad("too large".into())),
    }
}

impl VirtioDevice for Blk {
    fn identity(&self) -> Identity {
        Identity {
            device_type: 2,
            pci_class: PCI_CLASS,
        }
    }

    fn features(&self) -> u64 {
        self.model.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.model.queue_size; self.queues.len()]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let capacity = self.shared.capacity.load(Ordering::Relaxed);
        let writeback = self.shared.writeback.load(Ordering::Relaxed);
        self.model.config_read(capacity, writeback, offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let Some(writeback) = self.model.config_write(offset, data) {
            self.shared.writeback.store(writeback, Ordering::Relaxed);
        }
    }

    fn activate(&mut self, activation: Activation) {
        // A driver that cannot flush is given a disk that needs no flush (VIRTIO 1.3 sections
        // 5.2.5.2 and 5.2.6.2).
        if activation.features & feature::FLUSH == 0 {
            self.shared.writeback.store(false, Ordering::Relaxed);
        }
        *self
            .config_changed
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(activation.config_changed.clone());
        self.activation = Some(activation);
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), StartError> {
        let fail = |why: &str| StartError {
            queue: index,
            why: why.to_owned(),
        };
        let place = usize::from(index);
        let activation = self
            .activation
            .as_ref()
            .ok_or_else(|| fail("the device is not active"))?;
        let (slot, stats) = match (self.queues.get_mut(place), self.stats.get(place)) {
            (Some(Some(_)), _) => return Err(fail("it is running")),
            (Some(slot @ None), Some(stats)) => (slot, stats),
            _ => return Err(fail("there is no such queue")),
        };
        let (stop, token) = StopSource::new();
        // A queue that begins anew has nothing in flight: what was kept of it belonged to a
        // driver that gave it up.
        let mut kept = std::mem::replace(&mut self.kept[place], Kept::new(&self.errors));
        match usize::from(resources.queue.save().in_flight) {
            0 => drop(kept.take()),
            count if count == kept.in_flight() => {}
            _ => return Err(fail("what it has in flight is not what was kept")),
        }
        let worker = Worker {
            model: Arc::clone(&self.model),
            node: Arc::clone(&self.node) as Arc<dyn Node>,
            errors: Arc::clone(&self.errors),
            kept,
            shared: Arc::clone(&self.shared),
            stats: Arc::clone(stats),
            features: activation.features,
            resources,
            stop: token,
        };
        let thread = &self.threads[place % self.threads.len()];
        let worker = thread.spawn_task(move || worker.run());
        if worker.is_finished() {
            return Err(fail(&format!("I/O thread {:?} has ended", thread.name())));
        }
        *slot = Some(Running { stop, worker });
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let Running { stop, worker } = self.queues.get_mut(usize::from(index))?.take()?;
        stop.stop();
        // What waits for its turn would be waited for.
        let _unthrottled = self.node.unthrottled();
        let _below = self.below.get().map(|unthrottled| unthrottled());
        match worker.join() {
            Ok(Left { state, kept }) => {
                self.kept[usize::from(index)] = kept;
                Some(state)
            }
            Err(gone) => {
                log::error!("virtio-blk: the worker of queue {index} is lost: {gone}");
                None
            }
        }
    }

    fn reset(&mut self) {
        self.activation = None;
        for kept in &mut self.kept {
            drop(kept.take());
        }
        *self
            .config_changed
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
        self.shared
            .writeback
            .store(self.write_cache, Ordering::Relaxed);
    }

    fn save(&self) -> Result<Payload, StateError> {
        let state = BlkState {
            writeback: self.shared.writeback.load(Ordering::Relaxed),
            capacity: self.shared.capacity.load(Ordering::Relaxed),
            logical_block_size: self.model.logical_block_size,
            num_queues: self.model.num_queues,
            kept: self
                .kept
                .iter()
                .map(|kept| kept.chains().map(Chain::save).collect())
                .collect(),
        };
        Payload::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, payload: Payload) -> Result<(), StateError> {
        let state: BlkState = payload.decode(KIND, VERSION)?;
        let here = self.shared.capacity.load(Ordering::Relaxed);
        for (what, saved, here) in [
            ("sectors", state.capacity, here),
            (
                "bytes in a block",
                state.logical_block_size.into(),
                self.model.logical_block_size.into(),
            ),
            (
                "queues",
                state.num_queues.into(),
                self.model.num_queues.into(),
            ),
        ] {
            if saved != here {
                return Err(StateError::Invalid {
                    kind: KIND,
                    why: format!("the saved disk has {saved} {what}, this one has {here}"),
                });
            }
        }
        let mut kept: Vec<Kept> = self
            .queues
            .iter()
            .map(|_| Kept::new(&self.errors))
            .collect();
        for (kept, saved) in kept.iter_mut().zip(&state.kept) {
            for (order, saved) in saved.iter().enumerate() {
                let chain = Chain::restore(saved).ok_or_else(|| StateError::Invalid {
                    kind: KIND,
                    why: format!("the request {} cannot have been kept", saved.id),
                })?;
                kept.keep(order as u64, chain);
            }
        }
        self.kept = kept;
        self.shared
            .writeback
            .store(state.writeback, Ordering::Relaxed);
        Ok(())
    }
}
