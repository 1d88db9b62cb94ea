//! The traditional memory balloon (VIRTIO 1.3 section 5.5): the guest gives memory back.
//!
//! ```text
//!   BalloonControl::set_target ─▶ num_pages ─ config interrupt ─▶ driver
//!   inflateq   page numbers   ─▶ [worker] ─▶ [discard] madvise: the host has the pages
//!   deflateq   page numbers   ─▶ the guest uses them again; the host gives pages on demand
//!   statsq     one buffer, given back to be filled anew ─▶ BalloonControl::stats
//!   reporting  free memory    ─▶ [discard]
//! ```

mod control;
mod discard;
mod model;
mod spec;
mod state;
mod stats;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::state::{Payload, StateError};
use bus::EventFd;
use event::{IoThread, TimerHandle};
use memory::GuestRam;

use crate::queue::QueueState;
use crate::service::Serving;
use crate::{Activation, Identity, QueueResources, StartError, VirtioDevice};
use model::{F_DEFLATE_ON_OOM, F_PAGE_POISON, F_PAGE_REPORTING, F_STATS_VQ, Model};
use worker::{Role, Worker};

pub use control::BalloonControl;
pub use spec::BalloonSpec;
pub use state::{KIND, State, VERSION};
pub use stats::{NAMES, Stats};

/// Queues: inflate, deflate, statistics, free page hints (not offered), reporting.
const QUEUES: usize = 5;
const QUEUE_SIZE: u16 = 128;

/// Tells what became of the balloon: bytes of memory that the guest has now.
type Listener = Box<dyn Fn(u64) + Send + Sync>;

/// What device, control and workers share.
struct Shared {
    memory: GuestRam,
    registers: Mutex<Registers>,
    stats: Mutex<Stats>,
    /// The driver is to be asked for statistics.
    stats_due: AtomicBool,
    listener: Mutex<Option<Listener>>,
}

#[derive(Default)]
struct Registers {
    model: Model,
    /// Seconds.
    polling_interval: u32,
    activation: Option<Activation>,
    /// Wakes the worker of the statistics queue.
    stats_kick: Option<EventFd>,
}

impl Shared {
    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set_stats(&self, stats: Stats) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// Whether reported pages may turn to zero (section 5.5.6.7.2).
    fn may_discard_reported(&self) -> bool {
        let registers = self.registers();
        let poisoned = registers
            .activation
            .as_ref()
            .is_some_and(|a| a.features & F_PAGE_POISON != 0);
        !poisoned || registers.model.poison_val == 0
    }

    /// Bytes of memory that the guest has.
    fn actual(&self) -> u64 {
        let inflated = u64::from(self.registers().model.actual) * model::PAGE_SIZE;
        self.total().saturating_sub(inflated)
    }

    fn total(&self) -> u64 {
        use memory::GuestAddressSpace;
        memory::total_size(&self.memory.memory())
    }

    /// Asks the driver for statistics, if its queue runs.
    fn poll_stats(&self) {
        self.stats_due.store(true, Ordering::Release);
        if let Some(kick) = &self.registers().stats_kick {
            // It fails only when the counter is full: the worker knows then.
            _ = kick.write(1);
        }
    }
}

/// The device.
pub struct Balloon {
    features: u64,
    thread: IoThread,
    shared: Arc<Shared>,
    timer: TimerHandle,
    serving: [Option<Serving>; QUEUES],
}

impl Balloon {
    /// A device as `spec` describes it, for a guest with this `memory`, served on `thread`; and
    /// the handle by which it is controlled.
    #[must_use]
    pub fn new(spec: &BalloonSpec, memory: GuestRam, thread: IoThread) -> (Self, BalloonControl) {
        let mut features = F_STATS_VQ | F_PAGE_POISON;
        if spec.deflate_on_oom {
            features |= F_DEFLATE_ON_OOM;
        }
        if spec.free_page_reporting {
            features |= F_PAGE_REPORTING;
        }
        let shared = Arc::new(Shared {
            memory,
            registers: Mutex::default(),
            stats: Mutex::default(),
            stats_due: AtomicBool::new(false),
            listener: Mutex::default(),
        });
        let control = BalloonControl::new(Arc::clone(&shared), &thread);
        control.set_polling_interval(spec.guest_stats_polling_interval);
        let device = Self {
            features,
            thread,
            shared,
            timer: control.timer(),
            serving: Default::default(),
        };
        (device, control)
    }

    /// What queue `index` is for. Drivers do not agree on the numbers of queues behind one that
    /// was not negotiated: the specification leaves its number out, Linux gives it to the next
    /// one. As free page hints are never offered, both can be told apart.
    fn role(&self, index: u16) -> Option<Role> {
        let registers = self.shared.registers();
        let features = registers.activation.as_ref().map_or(0, |a| a.features);
        match index {
            0 => Some(Role::Inflate),
            1 => Some(Role::Deflate),
            2 if features & F_STATS_VQ != 0 => Some(Role::Stats),
            2..=4 if features & F_PAGE_REPORTING != 0 => Some(Role::Report),
            _ => None,
        }
    }
}

impl VirtioDevice for Balloon {
    fn identity(&self) -> Identity {
        Identity {
            device_type: 5,
            // As QEMU has it: "unclassified, other".
            pci_class: 0x00_ff_00,
        }
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.shared.registers().model.read(offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if self.shared.registers().model.write(offset, data) {
            let actual = self.shared.actual();
            let listener = self.shared.listener.lock();
            if let Some(listener) = &*listener.unwrap_or_else(PoisonError::into_inner) {
                listener(actual);
            }
        }
    }

    fn activate(&mut self, activation: Activation) {
        self.shared.registers().activation = Some(activation);
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), StartError> {
        let fail = |why: String| StartError { queue: index, why };
        // A driver may set up a queue whose feature it did not take; it will not use it.
        let (Some(role), Some(place)) =
            (self.role(index), self.serving.get_mut(usize::from(index)))
        else {
            return Ok(());
        };
        if role == Role::Stats {
            let kick = resources.kick.try_clone();
            let kick = kick.map_err(|e| fail(format!("no doorbell: {e}")))?;
            self.shared.registers().stats_kick = Some(kick);
        }
        let worker = Worker::new(role, Arc::clone(&self.shared));
        *place = Some(Serving::start(&self.thread, index, resources, worker)?);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let serving = self.serving.get_mut(usize::from(index))?.take()?;
        if self.role(index) == Some(Role::Stats) {
            self.shared.registers().stats_kick = None;
        }
        serving.stop()
    }

    /// The guest forgets its balloon, the host does not forget what it wants in it.
    fn reset(&mut self) {
        let mut registers = self.shared.registers();
        registers.activation = None;
        registers.model = Model {
            num_pages: registers.model.num_pages,
            ..Model::default()
        };
        drop(registers);
        self.shared.set_stats(Stats::default());
    }

    fn save(&self) -> Result<Payload, StateError> {
        let registers = self.shared.registers();
        let state = State {
            num_pages: registers.model.num_pages,
            actual: registers.model.actual,
            poison_val: registers.model.poison_val,
            polling_interval: registers.polling_interval,
        };
        Payload::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, payload: Payload) -> Result<(), StateError> {
        let state: State = payload.decode(KIND, VERSION)?;
        self.shared.registers().model = Model {
            num_pages: state.num_pages,
            actual: state.actual,
            poison_val: state.poison_val,
        };
        control::set_polling_interval(&self.shared, &self.timer, state.polling_interval);
        Ok(())
    }
}
