use std::sync::Arc;

use crate::EventFd;

/// A message-signalled interrupt: what the device writes, and where (PCI 3.0 section 6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Address, `0xfee…` on a PC; the upper half carries the extended destination.
    pub address: u64,
    /// Data: vector, delivery mode, trigger.
    pub data: u32,
}

/// Why an interrupt could not be set up or sent.
#[derive(Debug, thiserror::Error)]
pub enum MsiError {
    /// All of the accelerator's interrupt routes are in use.
    #[error("no free interrupt route: all {0} are in use")]
    NoRoutes(u32),
    /// The operating system refused.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Where messages go: the accelerator.
pub trait MsiHost: Send + Sync {
    /// Sends one message now. For rare senders (I/O APIC, HPET); queues use a route.
    ///
    /// # Errors
    /// The accelerator refused the message.
    fn send(&self, message: MsiMessage) -> Result<(), MsiError>;

    /// A route of its own, for a sender that triggers often. It starts masked.
    ///
    /// # Errors
    /// No route is free.
    fn open_route(&self) -> Result<Arc<dyn MsiRoute>, MsiError>;
}

/// One message that can be triggered from any thread, and by the kernel through an eventfd.
pub trait MsiRoute: Send + Sync {
    /// Sets what the route sends; `None` masks it: triggers are then lost, so a caller that
    /// needs pending bits keeps them itself (as MSI-X does).
    ///
    /// # Errors
    /// The accelerator refused the message.
    fn set(&self, message: Option<MsiMessage>) -> Result<(), MsiError>;

    /// Sends the message now.
    fn trigger(&self);

    /// The eventfd that triggers this route when written, if the accelerator has such
    /// (for vhost and VFIO).
    fn eventfd(&self) -> Option<&EventFd>;
}

/// What can be behind an [`Interrupt`]: MSI-X vectors, INTx pins, a test's counter.
pub trait InterruptSource: Send + Sync {
    /// Delivers the interrupt, or makes it pending when it is masked.
    fn trigger(&self);
}

/// An interrupt as a device's worker sees it: something to trigger.
#[derive(Clone)]
pub struct Interrupt(Arc<dyn InterruptSource>);

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupt")
    }
}

impl Interrupt {
    /// An interrupt that is delivered by `source`.
    #[must_use]
    pub fn new(source: Arc<dyn InterruptSource>) -> Self {
        Self(source)
    }

    /// Raises the interrupt once.
    pub fn trigger(&self) {
        self.0.trigger();
    }
}
