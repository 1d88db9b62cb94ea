//! virtio-net: a network card (VIRTIO 1.3 section 5.1).
//!
//! ```text
//!   driver ── config space ──▶ [model] ◀── [control] ◀── control queue
//!     │                           │ view: link, filter, pairs (a snapshot, swapped)
//!     │                           ▼
//!     ├── receiveq i  ◀── [rx] ◀──┐
//!     │                           ├── [pair] i: one ::net::Port, on I/O thread i mod n
//!     └── transmitq i ──▶ [tx] ───┘
//! ```
//!
//! Frames go between the host and the guest's buffers without a copy where the back end is a
//! descriptor. A pair of queues and its port live on one I/O thread; the port outlives a reset of
//! the device, and with it the connections of user-mode networking.

mod control;
mod filter;
mod handle;
mod model;
mod pair;
mod rx;
mod shared;
mod spec;
mod state;
#[cfg(test)]
mod tests;
mod tx;
mod worker;

use std::sync::Arc;

use ::net::{Backend, Control, Mac};
use ::state::{Payload, StateError};
use event::IoThread;

use self::control::ControlQueue;
pub use self::handle::{NetHandle, Totals};
use self::model::{Model, Settings};
use self::pair::{Direction, Pair, Running};
use self::shared::Shared;
pub use self::spec::{NetDeviceSpec, NetSpec};
use self::state::{KIND, NetState, VERSION};
use crate::service::Serving;
use crate::{Activation, Identity, QueueResources, QueueState, StartError, VirtioDevice};

/// Network controller, Ethernet (PCI Code and ID Assignment 1.11).
const PCI_CLASS: u32 = 0x02_00_00;
/// Descriptors of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// A virtio network card.
pub struct Net {
    model: Arc<Model>,
    shared: Arc<Shared>,
    backend: Arc<dyn Control>,
    threads: Vec<IoThread>,
    pairs: Vec<Pair>,
    activation: Option<Activation>,
    /// Receive and transmit queues.
    queues: Vec<Option<Running>>,
    control: Option<Serving>,
}

/// Why a network card could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// There is no I/O thread to serve it.
    #[error("a network card needs at least one I/O thread")]
    NoThread,
    /// The back end has no port.
    #[error("a network card needs at least one pair of queues")]
    NoQueue,
}

impl Net {
    /// A card that is connected to `backend`, with as many pairs of queues as that has. Pair `i`
    /// is served by thread `i` modulo their number. Its address is `default_mac` unless `spec`
    /// says otherwise.
    ///
    /// # Errors
    /// There is no thread or no port.
    pub fn new(
        spec: &NetSpec,
        backend: Backend,
        threads: Vec<IoThread>,
        default_mac: Mac,
    ) -> Result<Self, NetError> {
        let device = &spec.device;
        if threads.is_empty() {
            return Err(NetError::NoThread);
        }
        let capabilities = backend.capabilities();
        if capabilities.queue_pairs == 0 {
            return Err(NetError::NoQueue);
        }
        let model = Arc::new(Model {
            mac: device.mac.unwrap_or(default_mac).0,
            mtu: device.mtu,
            speed: device.speed,
            queue_pairs: capabilities.queue_pairs,
            queue_size: device.queue_size,
            offloads: capabilities.offloads,
        });
        let shared = Shared::new(&model);
        let control = Arc::clone(backend.control());
        let ports = backend.into_ports().into_iter().enumerate();
        let pairs: Vec<Pair> = ports
            .map(|(i, port)| Pair::start(&threads[i % threads.len()], port, capabilities))
            .collect();
        Ok(Self {
            queues: (0..2 * pairs.len()).map(|_| None).collect(),
            model,
            shared,
            backend: control,
            threads,
            pairs,
            activation: None,
            control: None,
        })
    }

    /// What control can do with the card, also behind its transport.
    #[must_use]
    pub fn handle(&self) -> NetHandle {
        NetHandle::new(
            Arc::clone(&self.shared),
            self.pairs.iter().map(|p| Arc::clone(&p.stats)).collect(),
        )
    }

    /// The control queue's index: behind all pairs that the driver knows of (VIRTIO 1.3 section
    /// 5.1.2).
    fn control_queue(&self, features: u64) -> u16 {
        if features & model::feature::MQ != 0 {
            2 * self.model.queue_pairs
        } else {
            2
        }
    }

    /// Has the back end do what the driver knows of.
    fn apply(&self, features: u64, settings: &Settings) -> std::io::Result<()> {
        self.backend.set_offloads(settings.offloads(features))?;
        self.backend.set_queue_pairs(settings.queue_pairs)
    }
}

impl VirtioDevice for Net {
    fn identity(&self) -> Identity {
        Identity {
            device_type: 1,
            pci_class: PCI_CLASS,
        }
    }

    fn features(&self) -> u64 {
        self.model.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![self.model.queue_size; self.queues.len()];
        sizes.push(CONTROL_QUEUE_SIZE);
        sizes
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.model
            .config_read(&self.shared.settings(), offset, data);
    }

    /// Nothing is writable: the address is set by the control queue.
    fn config_write(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) {
        let features = activation.features;
        let applied = self.apply(features, &self.shared.settings());
        if let Err(error) = applied {
            activation.trouble.report(worker::DEVICE, &error);
        }
        self.shared
            .activate(features, Some(activation.config_changed.clone()));
        self.activation = Some(activation);
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), StartError> {
        let fail = |why: &str| StartError {
            queue: index,
            why: why.to_owned(),
        };
        let activation = self
            .activation
            .as_ref()
            .ok_or_else(|| fail("the device is not active"))?;
        let features = activation.features;
        if index == self.control_queue(features) {
            if self.control.is_some() {
                return Err(fail("it is running"));
            }
            let service = ControlQueue {
                shared: Arc::clone(&self.shared),
                backend: Arc::clone(&self.backend),
                queue_pairs: self.model.queue_pairs,
                features,
            };
            let thread = &self.threads[0];
            self.control = Some(Serving::start(thread, index, resources, service)?);
            return Ok(());
        }
        let place = usize::from(index);
        let (Some(slot), Some(pair)) = (self.queues.get_mut(place), self.pairs.get(place / 2))
        else {
            return Err(fail("there is no such queue"));
        };
        if slot.is_some() {
            return Err(fail("it is running"));
        }
        let direction = if place.is_multiple_of(2) {
            Direction::Receive
        } else {
            Direction::Transmit
        };
        let running = pair.serve(direction, index, resources, &self.shared, features);
        *slot = Some(running.ok_or_else(|| fail("its I/O thread has ended"))?);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let features = self.activation.as_ref().map_or(0, |a| a.features);
        if index == self.control_queue(features) {
            return self.control.take()?.stop();
        }
        let running = self.queues.get_mut(usize::from(index))?.take()?;
        let state = running.stop(&self.shared);
        if state.is_none() {
            log::error!("virtio-net: the worker of queue {index} is lost");
        }
        state
    }

    fn reset(&mut self) {
        self.activation = None;
        let settings = {
            let mut settings = self.shared.settings();
            let link_up = settings.link_up;
            *settings = Settings::new(&self.model);
            settings.link_up = link_up;
            settings.clone()
        };
        if let Err(error) = self.apply(0, &settings) {
            log::warn!("virtio-net: cannot reset the network on the host: {error}");
        }
        self.shared.activate(0, None);
    }

    fn save(&self) -> Result<Payload, StateError> {
        let state = NetState {
            max_queue_pairs: self.model.queue_pairs,
            settings: self.shared.settings().clone(),
        };
        Payload::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, payload: Payload) -> Result<(), StateError> {
        let state: NetState = payload.decode(KIND, VERSION)?;
        let invalid = |why: String| StateError::Invalid { kind: KIND, why };
        if state.max_queue_pairs != self.model.queue_pairs {
            return Err(invalid(format!(
                "the saved card has {} pairs of queues, this one has {}",
                state.max_queue_pairs, self.model.queue_pairs
            )));
        }
        state.settings.check(&self.model).map_err(invalid)?;
        *self.shared.settings() = state.settings;
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for running in self.queues.iter().flatten() {
            running.ask_to_stop();
        }
    }
}
