//! The entropy device (VIRTIO 1.3 section 5.4): it fills what the driver offers with random
//! bytes. It has no configuration space, no features and no state.
//!
//! ```text
//!   requestq ─▶ [worker] ─ allowance? ─▶ getrandom(2) or a file
//! ```

mod spec;
#[cfg(test)]
mod tests;
mod worker;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::state::{Payload, StateError, no_state, restore_no_state};
use event::IoThread;

use crate::queue::QueueState;
use crate::service::Serving;
use crate::{Activation, Identity, QueueResources, StartError, VirtioDevice};
use worker::{Source, Worker};

pub use spec::RngSpec;

const KIND: &str = "virtio-rng";

/// Why the device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RngError {
    /// The source of entropy cannot be opened.
    #[error("cannot open {path} as a source of entropy")]
    Open {
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A limit that lets nothing through.
    #[error("max-bytes and period must both be at least 1")]
    Limit,
}

/// How much entropy the guest may have: `bytes` in every `period`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bytes.
    pub bytes: u64,
    /// Length of a period.
    pub period: Duration,
}

/// The device.
pub struct Rng {
    source: Source,
    limit: Option<Limit>,
    thread: IoThread,
    serving: Option<Serving>,
}

impl Rng {
    /// A device as `spec` describes it, served on `thread`.
    ///
    /// # Errors
    /// The source cannot be opened, or the limit is zero.
    pub fn new(spec: &RngSpec, thread: IoThread) -> Result<Self, RngError> {
        let source = match &spec.filename {
            None => Source::Kernel,
            Some(path) => Source::File(Arc::new(File::open(path).map_err(|source| {
                RngError::Open {
                    path: path.clone(),
                    source,
                }
            })?)),
        };
        let limit = spec.max_bytes.map(|bytes| Limit {
            bytes: bytes.0,
            period: Duration::from_millis(spec.period.into()),
        });
        if limit.is_some_and(|limit| limit.bytes == 0 || limit.period.is_zero()) {
            return Err(RngError::Limit);
        }
        Ok(Self {
            source,
            limit,
            thread,
            serving: None,
        })
    }
}

impl VirtioDevice for Rng {
    fn identity(&self) -> Identity {
        Identity {
            device_type: 4,
            // As QEMU has it: "unclassified, other".
            pci_class: 0x00_ff_00,
        }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![8]
    }

    fn config_read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn config_write(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, _activation: Activation) {}

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), StartError> {
        let worker = Worker::new(self.source.clone(), self.limit);
        self.serving = Some(Serving::start(&self.thread, index, resources, worker)?);
        Ok(())
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        self.serving.take()?.stop()
    }

    fn reset(&mut self) {}

    fn save(&self) -> Result<Payload, StateError> {
        Ok(no_state(KIND))
    }

    fn restore(&mut self, payload: Payload) -> Result<(), StateError> {
        restore_no_state(KIND, payload)
    }
}
