use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::EventFd;
use bus::testing::CountingInterrupt;

use super::{DriverQueue, Guest};
use crate::queue::{Queue, QueueState};
use crate::{Activation, NeedsReset, QueueResources, VirtioDevice};

/// How long a test waits for a device before it fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// A device without a transport: activated and its queues started directly.
pub struct DeviceHarness<D: VirtioDevice> {
    /// The device.
    pub device: D,
    /// The guest.
    pub guest: Guest,
    /// Negotiated features: what the device offers, and what the constructor was given.
    pub features: u64,
    /// Where the device reports trouble.
    pub trouble: NeedsReset,
    /// Counts configuration interrupts.
    pub config_interrupts: Arc<CountingInterrupt>,
}

/// A started queue, seen from the driver.
pub struct HarnessQueue {
    /// The rings.
    pub driver: DriverQueue,
    /// The doorbell.
    pub kick: EventFd,
    /// Counts the queue's interrupts.
    pub interrupts: Arc<CountingInterrupt>,
    index: u16,
}

impl<D: VirtioDevice> DeviceHarness<D> {
    /// Activates `device` with the features that it offers itself, `ring_features` (of
    /// [`crate::features`]), and VERSION_1.
    #[must_use]
    pub fn new(device: D, guest: &Guest, ring_features: u64) -> Self {
        let features = device.features() | ring_features | crate::features::VERSION_1;
        Self::with_features(device, guest, features)
    }

    /// Activates `device` with exactly these features.
    #[must_use]
    pub fn with_features(mut device: D, guest: &Guest, features: u64) -> Self {
        let (config_interrupts, config_changed) = CountingInterrupt::pair();
        let trouble = NeedsReset::new(Some(config_changed.clone()));
        device.activate(Activation {
            features,
            config_changed,
            trouble: trouble.clone(),
        });
        Self {
            device,
            guest: guest.clone(),
            features,
            trouble,
            config_interrupts,
        }
    }

    /// Starts queue `index` with its largest size in fresh memory.
    ///
    /// # Panics
    /// The device refuses.
    pub fn start(&mut self, index: u16) -> HarnessQueue {
        let size = self.device.queue_sizes()[usize::from(index)];
        let driver = DriverQueue::new(&self.guest, size, self.features);
        self.start_with(index, driver, QueueState::default())
    }

    /// Starts queue `index` on rings that are in use, where another device stopped.
    ///
    /// # Panics
    /// The device refuses.
    pub fn start_with(
        &mut self,
        index: u16,
        driver: DriverQueue,
        state: QueueState,
    ) -> HarnessQueue {
        let (interrupts, interrupt) = CountingInterrupt::pair();
        let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).expect("an eventfd");
        let resources = QueueResources {
            queue: Queue::restore(driver.config(), state).expect("a queue"),
            memory: self.guest.memory().clone(),
            kick: kick.try_clone().expect("an eventfd"),
            interrupt,
            trouble: self.trouble.clone(),
        };
        self.device
            .start_queue(index, resources)
            .expect("the queue starts");
        HarnessQueue {
            driver,
            kick,
            interrupts,
            index,
        }
    }

    /// Stops a queue; its rings can be started again with [`DeviceHarness::start_with`].
    ///
    /// # Panics
    /// The queue was not started.
    pub fn stop(&mut self, queue: HarnessQueue) -> (DriverQueue, QueueState) {
        let state = self
            .device
            .stop_queue(queue.index)
            .expect("a started queue");
        (queue.driver, state)
    }
}

impl HarnessQueue {
    /// Kicks the device, if it wants to be.
    pub fn kick(&mut self) {
        if self.driver.needs_kick() {
            self.kick.write(1).expect("an eventfd");
        }
    }

    /// Waits for the next used chain.
    ///
    /// # Panics
    /// None comes within 10 seconds.
    pub fn wait(&mut self) -> (u16, u32) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.driver.collect() {
                return used;
            }
            assert!(Instant::now() < end, "the device used no chain");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Sends readable bytes with room for an answer, waits, and returns what was written.
    ///
    /// # Panics
    /// The device does not answer.
    pub fn request(&mut self, readable: &[&[u8]], writable: &[u32]) -> Vec<u8> {
        let (id, buffers) = self.driver.send(readable, writable);
        self.kick();
        let (used, written) = self.wait();
        assert_eq!(used, id);
        let mut bytes = Vec::new();
        for buffer in buffers {
            bytes.extend(
                self.driver
                    .guest()
                    .read(buffer.address, buffer.len as usize),
            );
        }
        bytes.truncate(written as usize);
        bytes
    }
}
