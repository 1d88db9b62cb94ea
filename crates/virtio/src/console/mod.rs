//! virtio-console: a console, and named channels between guest and host (VIRTIO 1.3 section
//! 5.3). QEMU calls the device virtio-serial.
//!
//! ```text
//!   driver                                                               host
//!   receiveq(port n)  ◀─ [worker] ◀─ input, 4 KiB ◀── [port] ◀── Front ◀─ chardev
//!   transmitq(port n) ─▶ [worker] ───────────────────▶ [port] ──▶ Link ──▶ chardev
//!   control queues    ◀▶ [worker] ◀▶ [model] ports, what was said and is to be said
//! ```
//!
//! Port 0 is the console (hvc0) or nothing; the others have names. Both directions have flow
//! control: the host waits until the guest has room, and the guest until the host has. While
//! nobody is at the host's end, output goes where the chardev lets it go. The one exception to
//! waiting is the console, whose driver would stop the guest: see `worker.rs`.

mod handle;
mod model;
mod port;
mod spec;
mod state;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::state::{Payload, StateError};
use bus::Interrupt;
use chardev::{Chardev, ChardevError, Escape, Front, Link};
use event::{IoThread, Remote, StopSource};

use crate::queue::QueueState;
use crate::{Activation, Identity, QueueResources, StartError, VirtioDevice};
use model::{Control, EMERG_WR, Model};
use port::{Bell, PortIo};
use worker::{Listen, Receive, Role, Tell, Transmit};

pub use handle::{ConsoleHandle, PortStatus, PortWatcher};
pub use spec::{ConsoleSpec, PortSpec};
pub use state::{KIND, PortState, State, Talk, VERSION};

/// Communication controller, other (PCI Code and ID Assignment 1.11), as QEMU's has it.
const PCI_CLASS: u32 = 0x07_80_00;
/// As many as QEMU has, whose queues also fill the transport's 1024 doorbells.
const MAX_PORTS: usize = 511;
/// Descriptors of a port's queue.
const QUEUE_SIZE: u16 = 128;
/// Descriptors of a control queue.
const CONTROL_QUEUE_SIZE: u16 = 32;

/// Why a console could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// A port's host side cannot be opened.
    #[error("port {port}")]
    Chardev {
        /// The port's name, or `"console"`.
        port: String,
        /// The reason.
        #[source]
        source: ChardevError,
    },
    /// A port's name that the guest cannot use.
    #[error("port {name:?}: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// There are two ports with one name.
    #[error("there is a port {0:?} already")]
    Duplicate(String),
    /// There is no port with this name.
    #[error("there is no port {0:?}")]
    NoPort(String),
    /// All places for ports are taken.
    #[error(
        "{wanted} ports, one of them the console's, are more than max-ports={max}; the most is {MAX_PORTS}"
    )]
    Full {
        /// Ports wanted.
        wanted: usize,
        /// Places that there are.
        max: usize,
    },
    /// Only one half of the console's size was given.
    #[error("cols and rows belong together, and neither may be 0")]
    Size,
}

/// The host's side of a named port.
#[derive(Clone)]
pub struct PortBackend {
    /// What the guest knows the port by.
    pub name: String,
    /// Where its output goes.
    pub link: Arc<Link>,
}

/// What device, workers, chardevs and control share.
struct Shared {
    /// Taken before a port's own lock.
    model: Mutex<Model>,
    /// A place for each port.
    ports: Vec<PortIo>,
    /// There is something to tell the driver.
    messages: Bell,
    config_changed: Mutex<Option<Interrupt>>,
    watcher: Mutex<Option<PortWatcher>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.model)
    }

    /// A message of the driver.
    fn received(&self, message: &Control) {
        let mut model = self.model();
        let opened = model.received(message);
        if let Some((id, _)) = opened
            && let Some(io) = self.ports.get(id as usize)
        {
            io.set_wanted(model.wants_input(id));
        }
        drop(model);
        self.messages.ring();
        if let Some((id, open)) = opened {
            self.guest_opened(id, open);
        }
    }

    /// Tells the watcher of a named port.
    fn guest_opened(&self, id: u32, open: bool) {
        let model = self.model();
        let name = model.ports().find(|(other, _)| *other == id);
        let name = name.and_then(|(_, name)| name.map(str::to_owned));
        drop(model);
        if let (Some(name), Some(watcher)) = (name, &*lock(&self.watcher)) {
            watcher(&name, open);
        }
    }

    fn plug(
        self: &Arc<Self>,
        model: &mut Model,
        id: u32,
        name: Option<String>,
        link: Arc<Link>,
    ) -> Arc<dyn Front> {
        model.plug(id, name);
        let generation = self
            .ports
            .get(id as usize)
            .map_or(0, |port| port.attach(link));
        Arc::new(PortFront {
            shared: Arc::clone(self),
            id,
            generation,
        })
    }

    fn plug_named(self: &Arc<Self>, backend: PortBackend) -> Result<Arc<dyn Front>, ConsoleError> {
        let PortBackend { name, link } = backend;
        if let Err(why) = spec::check_name(&name) {
            return Err(ConsoleError::Name { name, why });
        }
        let mut model = self.model();
        if model.find(&name).is_some() {
            return Err(ConsoleError::Duplicate(name));
        }
        let Some(id) = model.free_place() else {
            return Err(ConsoleError::Full {
                wanted: self.ports.len() + 1,
                max: self.ports.len(),
            });
        };
        let front = self.plug(&mut model, id, Some(name), link);
        drop(model);
        self.messages.ring();
        Ok(front)
    }
}

/// A port as its chardev sees it.
struct PortFront {
    shared: Arc<Shared>,
    id: u32,
    /// Tells it from an earlier port in the same place.
    generation: u64,
}

impl PortFront {
    fn io(&self) -> Option<&PortIo> {
        self.shared.ports.get(self.id as usize)
    }
}

impl Front for PortFront {
    fn receive(&self, data: &[u8]) -> usize {
        self.io()
            .map_or(0, |port| port.receive(self.generation, data))
    }

    fn can_send(&self) {
        if let Some(port) = self.io() {
            port.can_send(self.generation);
        }
    }

    fn connected(&self, connected: bool) {
        let Some(port) = self.io() else { return };
        let mut model = self.shared.model();
        if !port.is_current(self.generation) {
            return;
        }
        model.set_host_open(self.id, connected);
        if !connected {
            port.client_left();
        }
        drop(model);
        self.shared.messages.ring();
    }
}

/// The device.
pub struct Console {
    shared: Arc<Shared>,
    thread: IoThread,
    queues: Vec<Option<Running>>,
}

struct Running {
    stop: StopSource,
    worker: Remote<QueueState>,
}

impl Console {
    /// A device as `spec` describes it, served on `thread`. `console` is the console's host
    /// side, `ports` are the named ports; the targets in `spec` are not looked at.
    ///
    /// The fronts, the console's before those of the ports, are for [`Chardev::start`].
    ///
    /// # Errors
    /// Names that are not possible or there twice, too many ports, half a size.
    pub fn new(
        spec: &ConsoleSpec,
        console: Option<Arc<Link>>,
        ports: Vec<PortBackend>,
        thread: IoThread,
    ) -> Result<(Self, Vec<Arc<dyn Front>>), ConsoleError> {
        let wanted = ports.len() + 1;
        let max = spec.max_ports.map_or(wanted, usize::from);
        if max < wanted || max > MAX_PORTS {
            return Err(ConsoleError::Full { wanted, max });
        }
        let (cols, rows) = match (spec.cols, spec.rows) {
            (None, None) => (0, 0),
            (Some(cols), Some(rows)) if cols != 0 && rows != 0 => (cols, rows),
            _ => return Err(ConsoleError::Size),
        };
        let shared = Arc::new(Shared {
            model: Mutex::new(Model::new(max as u16, cols, rows)),
            ports: (0..max).map(|_| PortIo::default()).collect(),
            messages: Bell::default(),
            config_changed: Mutex::default(),
            watcher: Mutex::default(),
        });
        let mut fronts = Vec::new();
        if let Some(link) = console {
            fronts.push(shared.plug(&mut shared.model(), 0, None, link));
        }
        for backend in ports {
            fronts.push(shared.plug_named(backend)?);
        }
        let queues = (0..2 * (max + 1)).map(|_| None).collect();
        let device = Self {
            shared,
            thread,
            queues,
        };
        Ok((device, fronts))
    }

    /// Opens the targets in `spec`, makes the device, and starts the chardevs on `thread`.
    /// `escape` is called when the user leaves a terminal with Ctrl-].
    ///
    /// The chardevs live as long as the device; they must not be dropped on `thread`.
    ///
    /// # Errors
    /// As [`Console::new`], and what cannot be opened.
    pub fn open(
        spec: &ConsoleSpec,
        thread: IoThread,
        escape: Escape,
    ) -> Result<(Self, Vec<Chardev>), ConsoleError> {
        let mut chardevs = Vec::new();
        let mut open = |port: &str, to| {
            let opened = Chardev::open(to, Some(Arc::clone(&escape)));
            let (chardev, link) = opened.map_err(|source| ConsoleError::Chardev {
                port: port.to_owned(),
                source,
            })?;
            chardevs.push(chardev);
            Ok(link)
        };
        let console = spec.to.as_ref().map(|to| open("console", to)).transpose()?;
        let mut ports = Vec::new();
        for port in &spec.port {
            ports.push(PortBackend {
                name: port.name.clone(),
                link: open(&port.name, &port.to)?,
            });
        }
        let (device, fronts) = Self::new(spec, console, ports, thread.clone())?;
        for (chardev, front) in chardevs.iter_mut().zip(fronts) {
            chardev.start(&thread, front);
        }
        Ok((device, chardevs))
    }

    /// The device for the control side, which reaches it also while the transport owns it.
    #[must_use]
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle(Arc::clone(&self.shared))
    }

    fn start<R: Role>(
        &self,
        queue: u16,
        role: R,
        resources: QueueResources,
    ) -> Result<Running, StartError> {
        let (stop, token) = StopSource::new();
        let worker = self
            .thread
            // In a box: an I/O thread's stack is small for the moves of a large future.
            .spawn_task(move || Box::pin(worker::run(role, resources, token)));
        if worker.is_finished() {
            let why = format!("I/O thread {:?} has ended", self.thread.name());
            return Err(StartError { queue, why });
        }
        Ok(Running { stop, worker })
    }
}

/// What a queue is for (VIRTIO 1.3 section 5.3.2).
enum Purpose {
    Receive(usize),
    Transmit(usize),
    ControlReceive,
    ControlTransmit,
}

impl Purpose {
    fn of(queue: u16) -> Self {
        // Ports other than the first come behind the control queues.
        let pair = usize::from(queue / 2);
        let port = if pair == 0 { 0 } else { pair - 1 };
        match (queue, queue % 2) {
            (2, _) => Self::ControlReceive,
            (3, _) => Self::ControlTransmit,
            (_, 0) => Self::Receive(port),
            (_, _) => Self::Transmit(port),
        }
    }
}

impl VirtioDevice for Console {
    fn identity(&self) -> Identity {
        Identity {
            device_type: 3,
            pci_class: PCI_CLASS,
        }
    }

    fn features(&self) -> u64 {
        self.shared.model().features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let size = |queue| match Purpose::of(queue) {
            Purpose::Receive(_) | Purpose::Transmit(_) => QUEUE_SIZE,
            Purpose::ControlReceive | Purpose::ControlTransmit => CONTROL_QUEUE_SIZE,
        };
        (0..self.queues.len() as u16).map(size).collect()
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.shared.model().config_read(offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        // Only the lowest byte of emerg_wr counts, at any time, even before DRIVER_OK (VIRTIO
        // 1.3 section 5.3.4).
        if let (EMERG_WR, Some(byte), Some(console)) =
            (offset, data.first(), self.shared.ports.first())
        {
            console.keep(&[*byte]);
        }
    }

    fn activate(&mut self, activation: Activation) {
        *lock(&self.shared.config_changed) = Some(activation.config_changed);
        let mut model = self.shared.model();
        model.negotiated(activation.features);
        for (id, port) in (0..).zip(&self.shared.ports) {
            port.set_wanted(model.wants_input(id));
        }
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), StartError> {
        let fail = |why: &str| StartError {
            queue: index,
            why: why.to_owned(),
        };
        match self.queues.get(usize::from(index)) {
            Some(None) => {}
            Some(Some(_)) => return Err(fail("it is running")),
            None => return Err(fail("there is no such queue")),
        }
        let shared = Arc::clone(&self.shared);
        let running = match Purpose::of(index) {
            Purpose::Receive(port) => {
                let running = self.start(index, Receive { shared, port }, resources)?;
                if let Some(port) = self.shared.ports.get(port) {
                    port.set_served(true);
                }
                running
            }
            Purpose::Transmit(port) => {
                if let Some(port) = self.shared.ports.get(port) {
                    port.set_transmits(true);
                }
                self.start(index, Transmit::new(shared, port), resources)?
            }
            Purpose::ControlReceive => self.start(index, Tell { shared }, resources)?,
            Purpose::ControlTransmit => {
                let bell = Bell::default();
                self.start(index, Listen { shared, bell }, resources)?
            }
        };
        if let Some(slot) = self.queues.get_mut(usize::from(index)) {
            *slot = Some(running);
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let Running { stop, worker } = self.queues.get_mut(usize::from(index))?.take()?;
        if let Purpose::Receive(port) = Purpose::of(index)
            && let Some(port) = self.shared.ports.get(port)
        {
            port.set_served(false);
        }
        stop.stop();
        let joined = worker.join();
        if let Purpose::Transmit(port) = Purpose::of(index)
            && let Some(port) = self.shared.ports.get(port)
        {
            port.set_transmits(false);
        }
        match joined {
            Ok(state) => Some(state),
            Err(gone) => {
                log::error!("virtio-console: the worker of queue {index} is lost: {gone}");
                None
            }
        }
    }

    fn reset(&mut self) {
        *lock(&self.shared.config_changed) = None;
        let mut model = self.shared.model();
        let closed = model.reset();
        for port in &self.shared.ports {
            port.reset();
        }
        drop(model);
        for id in closed {
            self.shared.guest_opened(id, false);
        }
    }

    fn save(&self) -> Result<Payload, StateError> {
        let mut state = self.shared.model().save();
        for port in &mut state.ports {
            if let Some(io) = self.shared.ports.get(port.id as usize) {
                (port.input, port.output) = io.save();
            }
        }
        Payload::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, payload: Payload) -> Result<(), StateError> {
        let state: State = payload.decode(KIND, VERSION)?;
        let invalid = |why| StateError::Invalid { kind: KIND, why };
        if let Some(port) = state
            .ports
            .iter()
            .find(|port| port.input.len() > port::INPUT || port.output.len() > port::OUTPUT)
        {
            let why = format!("too many bytes are on their way at port {}", port.id);
            return Err(invalid(why));
        }
        self.shared.model().restore(&state).map_err(invalid)?;
        for port in &state.ports {
            if let Some(io) = self.shared.ports.get(port.id as usize) {
                io.restore(&port.input, &port.output);
            }
            if port.talk.guest_open {
                self.shared.guest_opened(port.id, true);
            }
        }
        Ok(())
    }
}
