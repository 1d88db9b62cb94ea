use std::sync::Arc;

use crate::EventFd;

/// Which space a doorbell's address is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Guest-physical memory.
    Memory,
    /// I/O ports.
    Port,
}

/// A write that only wakes a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DoorbellAddress {
    /// Memory or port.
    pub space: Space,
    /// Address of the register.
    pub address: u64,
    /// Width of the write in bytes: 1, 2, 4 or 8; 0 matches any width (memory only, and the
    /// fastest kind under KVM, as the kernel then need not decode the instruction).
    pub length: u8,
    /// The value that must be written, or any.
    pub value: Option<u64>,
}

/// Why a doorbell could not be hung.
#[derive(Debug, thiserror::Error)]
pub enum DoorbellError {
    /// The same address is in use.
    #[error("doorbell {0:x?} is in use")]
    InUse(DoorbellAddress),
    /// The operating system refused.
    #[error("cannot register the doorbell {address:x?}")]
    Host {
        /// The doorbell.
        address: DoorbellAddress,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Who watches for the writes: KVM by ioeventfd, the software processor in its store path.
///
/// A device must also handle the write when it arrives at its [`crate::Device::write`], since an
/// accelerator may not see every one (an emulated string write, say).
pub trait DoorbellHost: Send + Sync {
    /// From now on a matching write adds 1 to `event` and goes no further.
    ///
    /// # Errors
    /// The doorbell is in use, or the accelerator refused.
    fn attach(&self, address: DoorbellAddress, event: &EventFd) -> Result<(), DoorbellError>;

    /// Ends an [`DoorbellHost::attach`] with the same arguments.
    ///
    /// # Errors
    /// The accelerator refused.
    fn detach(&self, address: DoorbellAddress, event: &EventFd) -> Result<(), DoorbellError>;
}

/// A doorbell that is hung until dropped.
pub struct Doorbell {
    host: Arc<dyn DoorbellHost>,
    address: DoorbellAddress,
    event: EventFd,
}

impl Doorbell {
    /// Hangs the doorbell.
    ///
    /// # Errors
    /// As [`DoorbellHost::attach`].
    pub fn hang(
        host: Arc<dyn DoorbellHost>,
        address: DoorbellAddress,
        event: EventFd,
    ) -> Result<Self, DoorbellError> {
        host.attach(address, &event)?;
        Ok(Self {
            host,
            address,
            event,
        })
    }

    /// The eventfd that is signalled.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        if let Err(e) = self.host.detach(self.address, &self.event) {
            log::warn!("{e}");
        }
    }
}
