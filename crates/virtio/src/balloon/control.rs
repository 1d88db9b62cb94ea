use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use event::{IoThread, TimerHandle};

use super::model::PAGE_SIZE;
use super::{Shared, Stats};

/// What the host does with a balloon: QMP's `balloon`, `query-balloon` and `guest-stats`.
/// Clones control the same balloon.
#[derive(Clone)]
pub struct BalloonControl {
    shared: Arc<Shared>,
    timer: TimerHandle,
}

impl BalloonControl {
    pub(super) fn new(shared: Arc<Shared>, thread: &IoThread) -> Self {
        let polled: Weak<Shared> = Arc::downgrade(&shared);
        let timer = thread.timer(move || {
            let shared = polled.upgrade()?;
            let interval = shared.registers().polling_interval;
            shared.poll_stats();
            (interval != 0).then(|| Instant::now() + Duration::from_secs(interval.into()))
        });
        Self { shared, timer }
    }

    pub(super) fn timer(&self) -> TimerHandle {
        self.timer.clone()
    }

    /// Asks the guest to keep `bytes` of its memory and to put the rest into the balloon. More
    /// than it has means that the balloon is to be empty.
    pub fn set_target(&self, bytes: u64) {
        let inflated = self.shared.total().saturating_sub(bytes) / PAGE_SIZE;
        let mut registers = self.shared.registers();
        registers.model.num_pages = u32::try_from(inflated).unwrap_or(u32::MAX);
        let activation = registers.activation.clone();
        drop(registers);
        if let Some(activation) = activation {
            activation.config_changed.trigger();
        }
    }

    /// Bytes of memory that the guest has, without what is in the balloon.
    #[must_use]
    pub fn actual(&self) -> u64 {
        self.shared.actual()
    }

    /// Calls `listener` with [`BalloonControl::actual`] whenever the guest has changed it, on
    /// the processor's thread that wrote the register: it must not wait, nor use the device's
    /// PCI function.
    pub fn on_change(&self, listener: impl Fn(u64) + Send + Sync + 'static) {
        let mut current = self
            .shared
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Some(Box::new(listener));
    }

    /// The statistics that the guest told last.
    #[must_use]
    pub fn stats(&self) -> Stats {
        *self
            .shared
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the guest for statistics now and then every `seconds`; 0 ends that.
    pub fn set_polling_interval(&self, seconds: u32) {
        set_polling_interval(&self.shared, &self.timer, seconds);
    }

    /// Seconds between two requests for statistics; 0 when there are none.
    #[must_use]
    pub fn polling_interval(&self) -> u32 {
        self.shared.registers().polling_interval
    }
}

pub(super) fn set_polling_interval(shared: &Shared, timer: &TimerHandle, seconds: u32) {
    shared.registers().polling_interval = seconds;
    if seconds == 0 {
        timer.disarm();
    } else {
        timer.arm(Instant::now());
    }
}
