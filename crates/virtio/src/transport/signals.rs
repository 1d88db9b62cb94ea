//! Interrupts of a virtio function: a vector of MSI-X each, or the ISR register and INTx.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Interrupt, InterruptSource};
use pci::Endpoint;

use super::common::NO_VECTOR;

/// ISR status: a queue has used buffers (VIRTIO 1.3 section 4.1.4.5).
pub(super) const ISR_QUEUE: u8 = 1;
/// ISR status: the device's configuration changed.
pub(super) const ISR_CONFIG: u8 = 2;

/// What interrupts need of the function: shared with every worker.
pub(super) struct Signals {
    pub(super) endpoint: Endpoint,
    /// ISR status. It is locked while the INTx wire follows it, so that a read that clears it
    /// cannot leave the wire high behind it.
    isr: Mutex<u8>,
}

impl Signals {
    pub(super) fn new(endpoint: Endpoint) -> Arc<Self> {
        Arc::new(Self {
            endpoint,
            isr: Mutex::new(0),
        })
    }

    /// An interrupt that sets `bit` when it cannot be a message.
    pub(super) fn interrupt(self: &Arc<Self>, bit: u8) -> Arc<Signal> {
        Arc::new(Signal {
            signals: Arc::clone(self),
            vector: AtomicU16::new(NO_VECTOR),
            bit,
            generation: AtomicU8::new(0),
        })
    }

    /// Reads the ISR status, which clears it and lets the wire fall.
    pub(super) fn take_isr(&self) -> u8 {
        let mut isr = self.isr();
        if *isr != 0 {
            self.endpoint.set_intx(false);
        }
        std::mem::take(&mut *isr)
    }

    /// The ISR status as it is.
    pub(super) fn peek_isr(&self) -> u8 {
        *self.isr()
    }

    /// Sets the ISR status of a saved function, whose wire is the endpoint's to restore.
    pub(super) fn restore_isr(&self, value: u8) {
        *self.isr() = value & (ISR_QUEUE | ISR_CONFIG);
    }

    fn raise(&self, bit: u8) {
        let mut isr = self.isr();
        *isr |= bit;
        self.endpoint.set_intx(true);
    }

    fn isr(&self) -> MutexGuard<'_, u8> {
        self.isr.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the function's interrupts.
pub(super) struct Signal {
    signals: Arc<Signals>,
    vector: AtomicU16,
    bit: u8,
    /// Counts triggers: the configuration generation.
    generation: AtomicU8,
}

impl Signal {
    pub(super) fn set_vector(&self, vector: u16) {
        self.vector.store(vector, Ordering::Release);
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn set_generation(&self, generation: u8) {
        self.generation.store(generation, Ordering::Release);
    }

    pub(super) fn to_interrupt(self: &Arc<Self>) -> Interrupt {
        Interrupt::new(Arc::clone(self) as Arc<dyn InterruptSource>)
    }
}

impl InterruptSource for Signal {
    fn trigger(&self) {
        if self.bit == ISR_CONFIG {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        if let Some(msix) = self.signals.endpoint.msix() {
            let vector = self.vector.load(Ordering::Acquire);
            // With MSI-X on, an interrupt without a vector is not delivered at all.
            if msix.trigger(vector) || msix.enabled() {
                return;
            }
        }
        self.signals.raise(self.bit);
    }
}
