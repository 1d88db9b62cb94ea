use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bus::Interrupt;

/// Where a worker reports that the driver's rings make no sense (VIRTIO 1.3 section 2.1.2,
/// DEVICE_NEEDS_RESET). The transport shows it in the status register and raises the
/// configuration interrupt; the rest of the machine goes on.
#[derive(Debug, Clone)]
pub struct NeedsReset {
    flag: Arc<AtomicBool>,
    config_changed: Option<Interrupt>,
}

impl NeedsReset {
    /// A report that raises `config_changed` when made.
    #[must_use]
    pub fn new(config_changed: Option<Interrupt>) -> Self {
        Self {
            flag: Arc::new(AtomicBool::new(false)),
            config_changed,
        }
    }

    /// Reports trouble. Only the first report of a device's life is logged: the guest could
    /// cause any number.
    pub fn report(&self, device: &str, why: &dyn std::fmt::Display) {
        if !self.flag.swap(true, Ordering::SeqCst) {
            log::warn!("{device}: {why}; the device needs a reset by its driver");
            if let Some(interrupt) = &self.config_changed {
                interrupt.trigger();
            }
        }
    }

    /// Shows trouble that was reported before the state was saved.
    pub(crate) fn set(&self) {
        self.flag.store(true, Ordering::SeqCst);
    }

    /// Whether trouble was reported.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    /// Forgets the report: the driver reset the device.
    pub fn clear(&self) {
        self.flag.store(false, Ordering::SeqCst);
    }
}
