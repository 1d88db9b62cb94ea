//! Peers for tests of devices: counters behind interrupts, a route and a doorbell host that
//! remember what was asked of them. (Feature `testing`.)

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::{
    DoorbellAddress, DoorbellError, DoorbellHost, EventFd, Interrupt, InterruptSource, IrqSink,
    MsiError, MsiHost, MsiMessage, MsiRoute,
};

/// Counts how often an interrupt was raised.
#[derive(Debug, Default)]
pub struct CountingInterrupt(AtomicU32);

impl CountingInterrupt {
    /// A counter and the interrupt that feeds it.
    #[must_use]
    pub fn pair() -> (Arc<Self>, Interrupt) {
        let counter = Arc::new(Self::default());
        (Arc::clone(&counter), Interrupt::new(counter))
    }

    /// How often the interrupt was raised.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl InterruptSource for CountingInterrupt {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Remembers the level of each pin and counts rising edges.
#[derive(Debug, Default)]
pub struct RecordingSink(Mutex<BTreeMap<u32, (bool, u32)>>);

impl RecordingSink {
    /// The level of `pin`.
    #[must_use]
    pub fn level(&self, pin: u32) -> bool {
        self.lock().get(&pin).is_some_and(|p| p.0)
    }

    /// How often `pin` rose.
    #[must_use]
    pub fn edges(&self, pin: u32) -> u32 {
        self.lock().get(&pin).map_or(0, |p| p.1)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, (bool, u32)>> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl IrqSink for RecordingSink {
    fn set_level(&self, pin: u32, level: bool) {
        let mut pins = self.lock();
        let entry = pins.entry(pin).or_default();
        if level && !entry.0 {
            entry.1 += 1;
        }
        entry.0 = level;
    }
}

/// Keeps the messages that were sent and the doorbells that hang.
#[derive(Debug, Default)]
pub struct RecordingHost {
    sent: Arc<Mutex<Vec<MsiMessage>>>,
    doorbells: Mutex<BTreeMap<DoorbellAddress, EventFd>>,
}

impl RecordingHost {
    /// Takes the messages sent so far.
    #[must_use]
    pub fn take_sent(&self) -> Vec<MsiMessage> {
        std::mem::take(
            &mut *self
                .sent
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    /// Acts as the processor writing to a doorbell; tells whether one hangs there.
    pub fn ring(&self, address: &DoorbellAddress) -> bool {
        let doorbells = self
            .doorbells
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        doorbells
            .get(address)
            .is_some_and(|event| event.write(1).is_ok())
    }

    /// The doorbells that hang now.
    #[must_use]
    pub fn doorbells(&self) -> Vec<DoorbellAddress> {
        self.doorbells
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .keys()
            .copied()
            .collect()
    }
}

struct RecordingRoute {
    sent: Arc<Mutex<Vec<MsiMessage>>>,
    message: Mutex<Option<MsiMessage>>,
}

impl MsiRoute for RecordingRoute {
    fn set(&self, message: Option<MsiMessage>) -> Result<(), MsiError> {
        *self
            .message
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = message;
        Ok(())
    }

    fn trigger(&self) {
        if let Some(message) = *self
            .message
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            self.sent
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(message);
        }
    }

    fn eventfd(&self) -> Option<&EventFd> {
        None
    }
}

impl MsiHost for RecordingHost {
    fn send(&self, message: MsiMessage) -> Result<(), MsiError> {
        self.sent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(message);
        Ok(())
    }

    fn open_route(&self) -> Result<Arc<dyn MsiRoute>, MsiError> {
        Ok(Arc::new(RecordingRoute {
            sent: Arc::clone(&self.sent),
            message: Mutex::new(None),
        }))
    }
}

impl DoorbellHost for RecordingHost {
    fn attach(&self, address: DoorbellAddress, event: &EventFd) -> Result<(), DoorbellError> {
        let host = |source| DoorbellError::Host { address, source };
        let event = event.try_clone().map_err(host)?;
        let mut doorbells = self
            .doorbells
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if doorbells.contains_key(&address) {
            return Err(DoorbellError::InUse(address));
        }
        doorbells.insert(address, event);
        Ok(())
    }

    fn detach(&self, address: DoorbellAddress, _event: &EventFd) -> Result<(), DoorbellError> {
        self.doorbells
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .remove(&address);
        Ok(())
    }
}
