//! The PCI transport (VIRTIO 1.3 section 4.1), without the legacy interface.
//!
//! ```text
//!   BAR 4 + 0x0000  common configuration ──▶ [common] pure model ─ Effect ─▶ device, queues
//!         + 0x1000  ISR status           ──▶ [signals] MSI-X vectors, or ISR and INTx
//!         + 0x2000  device configuration ──▶ VirtioDevice::config_read, config_write
//!         + 0x3000  notifications        ──▶ [doorbells] eventfds, 4 bytes a queue
//!   BAR 0           the same as ports    ──▶ [doorbells]
//!   BAR 1           MSI-X table and pending bits: one vector for the configuration and one
//!                   for each queue
//! ```
//!
//! A function is either *running* or *quiesced*. [`VirtioPci::quiesce`] stops the workers and
//! keeps where each queue stood, [`VirtioPci::resume`] starts them again; a restored function is
//! quiesced, so that it touches no memory before the rest of the machine is restored.

mod common;
mod doorbells;
mod layout;
mod signals;
mod spec;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::state::{Payload, StateError, Stateful};
use bus::{Action, Space};
use memory::GuestRam;
use pci::{BarHandler, Endpoint, Express, Function, SlotResources};

use crate::features;
use crate::queue::{Queue, QueueState};
use crate::{Activation, NeedsReset, QueueResources, StartError, VirtioDevice};
use common::{Common, Effect};
use doorbells::Doorbells;
use layout::{Access, Window};
use signals::{ISR_CONFIG, ISR_QUEUE, Signal, Signals};

pub use common::{CommonState, QueueRegisters};
pub use spec::{PciSpec, TransportSpec};
pub use state::{KIND, State, VERSION};

/// How a device appears on the PCI bus and what its rings may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportOptions {
    /// Name of the device in logs.
    pub name: String,
    /// Offer the packed ring.
    pub packed: bool,
    /// Offer event indices.
    pub event_idx: bool,
    /// Offer indirect descriptors.
    pub indirect_desc: bool,
    /// MSI-X vectors; by default one for the configuration and one for each queue. 0 leaves
    /// MSI-X out.
    pub vectors: Option<u16>,
    /// Doorbells are I/O ports too, which is the fastest way for many hosts. Behind a root port
    /// they are not: ports are few there, and a driver fails when it gets none.
    pub port_doorbells: bool,
    /// The PCI Express capability: `None` for a conventional function.
    pub express: Option<Express>,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            name: String::from("virtio"),
            packed: false,
            event_idx: true,
            indirect_desc: true,
            vectors: None,
            port_doorbells: true,
            express: None,
        }
    }
}

/// Why a virtio function could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The device has more queues than the notification window has doorbells.
    #[error("{0} queues are more than the {max} a device can have", max = layout::MAX_QUEUES)]
    Queues(usize),
    /// Configuration space cannot be laid out.
    #[error("cannot lay out the PCI function")]
    Pci(#[from] pci::PciError),
    /// The host has no more eventfds.
    #[error("cannot create an eventfd")]
    EventFd(#[source] std::io::Error),
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    name: String,
    memory: GuestRam,
    signals: Arc<Signals>,
    config_signal: Arc<Signal>,
    queue_signals: Vec<Arc<Signal>>,
    doorbells: Doorbells,
    trouble: NeedsReset,
    /// Where the capability for accesses through configuration space is.
    access: u16,
    /// Taken before everything else of the function.
    inner: Mutex<Inner>,
}

struct Inner {
    common: Common,
    device: Box<dyn VirtioDevice>,
    /// Whether the device was told what was agreed.
    activated: bool,
    quiesced: bool,
    queues: Vec<QueuePlace>,
}

/// Who has a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum QueuePlace {
    /// Nobody: it is not enabled, or could not be started.
    Idle,
    /// The device's worker.
    Running,
    /// Its worker gave it back while the function is quiesced.
    Parked(QueueState),
}

impl std::fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("VirtioPci").field(&self.name).finish()
    }
}

impl VirtioPci {
    /// A function around `device`, whose queues are in `memory`.
    ///
    /// # Errors
    /// The device has too many queues or vectors, or the host has no more eventfds.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        options: &TransportOptions,
    ) -> Result<Arc<Self>, TransportError> {
        let sizes = device.queue_sizes();
        let count = sizes.len();
        if count > layout::MAX_QUEUES {
            return Err(TransportError::Queues(count));
        }
        let vectors = options.vectors.unwrap_or(count as u16 + 1);
        let port_doorbells = (options.port_doorbells && options.express.is_none()).then_some(count);
        let (config, access) =
            layout::config_space(device.identity(), vectors, port_doorbells, options.express)?;
        let signals = Signals::new(Endpoint::new(config));
        let config_signal = signals.interrupt(ISR_CONFIG);
        let inner = Inner {
            common: Common::new(offered(device.features(), options), sizes, vectors),
            device,
            activated: false,
            quiesced: false,
            queues: vec![QueuePlace::Idle; count],
        };
        Ok(Arc::new(Self {
            name: options.name.clone(),
            memory,
            queue_signals: (0..count).map(|_| signals.interrupt(ISR_QUEUE)).collect(),
            trouble: NeedsReset::new(Some(config_signal.to_interrupt())),
            config_signal,
            signals,
            doorbells: Doorbells::new(count).map_err(TransportError::EventFd)?,
            access,
            inner: Mutex::new(inner),
        }))
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stops all queues and keeps where they stood: the device touches neither memory nor its
    /// back end until [`VirtioPci::resume`]. Requests in flight are completed first.
    pub fn quiesce(&self) {
        self.park(&mut self.inner());
    }

    /// Lets a quiesced or restored function go on.
    pub fn resume(&self) {
        self.unpark(&mut self.inner());
    }

    fn park(&self, inner: &mut Inner) {
        inner.quiesced = true;
        for index in 0..inner.queues.len() {
            if inner.queues[index] == QueuePlace::Running {
                inner.queues[index] = match inner.device.stop_queue(index as u16) {
                    Some(state) => QueuePlace::Parked(state),
                    None => QueuePlace::Idle,
                };
            }
        }
    }

    fn unpark(&self, inner: &mut Inner) {
        if !std::mem::take(&mut inner.quiesced) {
            return;
        }
        if inner.common.driver_ok() {
            self.activate(inner);
        }
        for index in 0..inner.queues.len() {
            if let QueuePlace::Parked(state) = inner.queues[index] {
                inner.queues[index] = QueuePlace::Idle;
                self.start_queue(inner, index as u16, state);
            }
        }
    }

    fn activate(&self, inner: &mut Inner) {
        if !std::mem::replace(&mut inner.activated, true) {
            inner.device.activate(Activation {
                features: inner.common.features(),
                config_changed: self.config_signal.to_interrupt(),
                trouble: self.trouble.clone(),
            });
        }
        self.doorbells.set_wanted(true);
    }

    /// Starts an enabled queue, or parks it when the function is quiesced.
    fn start_queue(&self, inner: &mut Inner, index: u16, state: QueueState) {
        let Some(place) = inner.queues.get_mut(usize::from(index)) else {
            return;
        };
        if *place != QueuePlace::Idle {
            return;
        }
        if inner.quiesced {
            *place = QueuePlace::Parked(state);
            return;
        }
        let started = self
            .resources(&inner.common, index, state)
            .and_then(|resources| match resources {
                Some(resources) => inner.device.start_queue(index, resources).map(|()| true),
                None => Ok(false),
            });
        match started {
            Ok(running) => {
                if running {
                    *place = QueuePlace::Running;
                    // Kicks from before the worker listened are not lost.
                    self.doorbells.kick(usize::from(index));
                }
            }
            Err(e) => self.trouble.report(&self.name, &e),
        }
    }

    /// What a worker needs for queue `index`, or `None` when the queue is not enabled.
    fn resources(
        &self,
        common: &Common,
        index: u16,
        state: QueueState,
    ) -> Result<Option<QueueResources>, StartError> {
        let fail = |why: String| StartError { queue: index, why };
        let (Some(config), Some(signal)) = (
            common.queue_config(index),
            self.queue_signals.get(usize::from(index)),
        ) else {
            return Ok(None);
        };
        let queue = Queue::restore(config, state).map_err(|e| fail(e.to_string()))?;
        let kick = self.doorbells.event(index);
        Ok(Some(QueueResources {
            queue,
            memory: self.memory.clone(),
            kick: kick.map_err(|e| fail(format!("no doorbell: {e}")))?,
            interrupt: signal.to_interrupt(),
            trouble: self.trouble.clone(),
        }))
    }

    /// Device reset (section 2.4): by the driver, by the bus, or at power-on.
    fn reset_device(&self, inner: &mut Inner) {
        self.doorbells.set_wanted(false);
        for (index, place) in inner.queues.iter_mut().enumerate() {
            if std::mem::replace(place, QueuePlace::Idle) == QueuePlace::Running {
                _ = inner.device.stop_queue(index as u16);
            }
        }
        inner.activated = false;
        inner.device.reset();
        inner.common.reset();
        self.trouble.clear();
        self.signals.take_isr();
        self.config_signal.set_generation(0);
        self.set_vectors(inner);
    }

    fn set_vectors(&self, inner: &Inner) {
        let common = inner.common.state();
        self.config_signal.set_vector(common.config_vector);
        for (signal, queue) in self.queue_signals.iter().zip(&common.queues) {
            signal.set_vector(queue.vector);
        }
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        match inner.common.write(offset, data) {
            Effect::Nothing => {}
            Effect::Reset => self.reset_device(inner),
            Effect::DriverOk => {
                self.activate(inner);
                for index in 0..inner.queues.len() {
                    self.start_queue(inner, index as u16, QueueState::default());
                }
            }
            Effect::StartQueue(index) => self.start_queue(inner, index, QueueState::default()),
            Effect::StopQueue(index) => {
                if let Some(place) = inner.queues.get_mut(usize::from(index))
                    && std::mem::replace(place, QueuePlace::Idle) == QueuePlace::Running
                {
                    _ = inner.device.stop_queue(index);
                }
                self.set_vectors(inner);
            }
            Effect::Vectors => self.set_vectors(inner),
        }
    }

    /// The window in configuration space, when an access at `offset` is to its data.
    fn access(&self, offset: u16) -> Option<Access> {
        if offset != self.access + layout::ACCESS_DATA {
            return None;
        }
        let endpoint = &self.signals.endpoint;
        endpoint.with_config(|config| Access::new(config, self.access))
    }

    fn read_register(&self, bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar != layout::BAR {
            return;
        }
        match layout::window(offset) {
            Some((Window::Common, at)) => {
                let generation = self.config_signal.generation();
                let image = self.inner().common.image(self.trouble.is_set(), generation);
                let rest = image.get(at as usize..).unwrap_or_default();
                for (byte, value) in data.iter_mut().zip(rest) {
                    *byte = *value;
                }
            }
            Some((Window::Isr, 0)) => {
                if let Some(first) = data.first_mut() {
                    *first = self.signals.take_isr();
                }
            }
            Some((Window::Device, at)) => self.inner().device.config_read(at, data),
            Some((Window::Isr | Window::Notify, _)) | None => {}
        }
    }

    fn write_register(&self, bar: usize, offset: u64, data: &[u8]) {
        if bar == layout::PORT_BAR {
            self.doorbells.kick(layout::notify_queue(offset));
        }
        if bar != layout::BAR {
            return;
        }
        match layout::window(offset) {
            Some((Window::Common, at)) => self.write_common(at, data),
            Some((Window::Device, at)) => self.inner().device.config_write(at, data),
            Some((Window::Notify, at)) => self.doorbells.kick(layout::notify_queue(at)),
            Some((Window::Isr, _)) | None => {}
        }
    }

    fn save_parked(&self, inner: &Inner) -> Result<Payload, StateError> {
        let queues = inner.queues.iter().map(|place| match place {
            QueuePlace::Parked(state) => Some(*state),
            QueuePlace::Idle | QueuePlace::Running => None,
        });
        let state = State {
            endpoint: self.signals.endpoint.save(),
            common: inner.common.state().clone(),
            isr: self.signals.peek_isr(),
            generation: self.config_signal.generation(),
            needs_reset: self.trouble.is_set(),
            queues: queues.collect(),
            device: inner.device.save()?,
        };
        Payload::encode(KIND, VERSION, &state)
    }

    fn restore_into(&self, inner: &mut Inner, state: State) -> Result<(), StateError> {
        let invalid = |why: String| StateError::Invalid { kind: KIND, why };
        if state.queues.len() != inner.queues.len() {
            return Err(invalid(format!(
                "it has {} queues, not {}",
                state.queues.len(),
                inner.queues.len()
            )));
        }
        inner.common.restore(state.common).map_err(invalid)?;
        for (index, queue) in state.queues.iter().enumerate() {
            let Some(queue) = queue else { continue };
            let config = inner.common.queue_config(index as u16);
            let config = config.ok_or_else(|| invalid(format!("queue {index} ran disabled")))?;
            Queue::restore(config, *queue).map_err(|e| invalid(format!("queue {index}: {e}")))?;
            inner.queues[index] = QueuePlace::Parked(*queue);
        }
        self.signals.endpoint.restore(KIND, &state.endpoint)?;
        inner.device.restore(state.device)?;
        self.signals.restore_isr(state.isr);
        self.config_signal.set_generation(state.generation);
        self.set_vectors(inner);
        if state.needs_reset {
            self.trouble.set();
        }
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device's features, without bits that are not its own, and what the rings can.
fn offered(device: u64, options: &TransportOptions) -> u64 {
    let mut offered = device & !features::TRANSPORT | features::VERSION_1 | features::RING_RESET;
    for (on, feature) in [
        (options.packed, features::RING_PACKED),
        (options.event_idx, features::RING_EVENT_IDX),
        (options.indirect_desc, features::RING_INDIRECT_DESC),
    ] {
        if on {
            offered |= feature;
        }
    }
    offered
}

impl Function for VirtioPci {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let Some(access) = self.access(offset) else {
            return self.signals.endpoint.config_read(offset, data);
        };
        let mut window = [0; 4];
        let window = &mut window[..access.length];
        let msix = self.signals.endpoint.msix();
        if !msix.is_some_and(|msix| msix.bar_read(access.bar, access.offset, window)) {
            self.read_register(access.bar, access.offset, window);
        }
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(window) {
            *byte = *value;
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Action {
        if let Some(access) = self.access(offset) {
            if let Some(window) = data.get(..access.length) {
                let msix = self.signals.endpoint.msix();
                if !msix.is_some_and(|msix| msix.bar_write(access.bar, access.offset, window)) {
                    self.write_register(access.bar, access.offset, window);
                }
            }
            return Action::None;
        }
        let effects = self.signals.endpoint.config_write(offset, data);
        if effects.function_reset {
            self.reset();
        }
        Action::None
    }

    fn attach(self: Arc<Self>, slot: SlotResources) {
        self.doorbells.set_host(Some(Arc::clone(&slot.doorbells)));
        let handler: Arc<dyn BarHandler> = Arc::clone(&self) as _;
        self.signals.endpoint.attach(slot, &handler);
    }

    fn detach(&self) {
        self.signals.endpoint.detach();
        self.doorbells.set_host(None);
    }

    fn as_bridge(&self) -> Option<&dyn pci::Bridge> {
        None
    }
}

impl BarHandler for VirtioPci {
    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        self.read_register(bar, offset, data);
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) -> Action {
        self.write_register(bar, offset, data);
        Action::None
    }

    fn bar_moved(&self, bar: usize, address: Option<u64>) {
        match bar {
            layout::BAR => {
                let base = address.and_then(|address| address.checked_add(layout::NOTIFY));
                self.doorbells.set_base(Space::Memory, base);
            }
            layout::PORT_BAR => self.doorbells.set_base(Space::Port, address),
            _ => {}
        }
    }
}

impl Stateful for VirtioPci {
    /// Saves transport, queues and device. A running function is stopped for it and goes on
    /// afterwards; a quiesced one stays so.
    fn save(&self) -> Result<Payload, StateError> {
        let mut inner = self.inner();
        let running = !inner.quiesced;
        self.park(&mut inner);
        let saved = self.save_parked(&inner);
        if running {
            self.unpark(&mut inner);
        }
        saved
    }

    /// Takes over a saved state; the function is quiesced until [`VirtioPci::resume`].
    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        self.reset();
        let state: State = payload.decode(KIND, VERSION)?;
        let mut inner = self.inner();
        inner.quiesced = true;
        let restored = self.restore_into(&mut inner, state);
        if restored.is_err() {
            drop(inner);
            self.reset();
        }
        restored
    }

    fn reset(&self) {
        let mut inner = self.inner();
        self.reset_device(&mut inner);
        self.signals.endpoint.reset();
    }
}
