use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;

use event::{Either, StopToken, select2, sleep_until, unblock};
use memory::GuestAddressSpace;

use super::Limit;
use crate::QueueResources;
use crate::queue::{Queue, QueueError};
use crate::service::Service;

/// Bytes that one chain gets at most: a driver that asks for gigabytes keeps nobody waiting.
const CHUNK: u64 = 64 << 10;

/// Where random bytes come from.
#[derive(Clone)]
pub(super) enum Source {
    /// getrandom(2).
    Kernel,
    /// A file, which may block.
    File(Arc<File>),
}

impl Source {
    /// At most `buffer.len()` bytes, in the buffer that was given.
    async fn read(&self, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Source::Kernel => {
                getrandom::fill(&mut buffer)?;
                Ok(buffer)
            }
            Source::File(file) => {
                let file = Arc::clone(file);
                let read = move || {
                    let len = file.as_ref().read(&mut buffer)?;
                    buffer.truncate(len);
                    Ok(buffer)
                };
                unblock(read).await.map_err(io::Error::other)?
            }
        }
    }
}

/// What is left of the period's allowance.
struct Allowance {
    limit: Limit,
    left: u64,
    until: Instant,
}

pub(super) struct Worker {
    source: Source,
    allowance: Option<Allowance>,
    buffer: Vec<u8>,
    failed: bool,
}

impl Worker {
    pub(super) fn new(source: Source, limit: Option<Limit>) -> Self {
        let allowance = |limit| Allowance {
            limit,
            left: 0,
            until: Instant::now(),
        };
        Self {
            source,
            allowance: limit.map(allowance),
            buffer: Vec::new(),
            failed: false,
        }
    }

    /// Waits until at least one byte may be given; `None` when the queue stops first.
    async fn allowed(&mut self, stop: &StopToken) -> Option<u64> {
        let Some(allowance) = &mut self.allowance else {
            return Some(CHUNK);
        };
        if allowance.left == 0
            && let Either::A(()) = select2(stop.stopped(), sleep_until(allowance.until)).await
        {
            return None;
        }
        let now = Instant::now();
        if now >= allowance.until {
            allowance.left = allowance.limit.bytes;
            allowance.until = now + allowance.limit.period;
        }
        Some(allowance.left.min(CHUNK))
    }

    async fn random(&mut self, len: usize) -> &[u8] {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(len, 0);
        match self.source.read(buffer).await {
            Ok(bytes) => self.buffer = bytes,
            // The driver gets its buffer back empty and asks again later.
            Err(e) if !self.failed => {
                self.failed = true;
                log::warn!("{}: the source of entropy fails: {e}", Self::DEVICE);
            }
            Err(_) => {}
        }
        &self.buffer
    }
}

impl Service for Worker {
    const DEVICE: &'static str = "virtio-rng";

    async fn serve(
        &mut self,
        resources: &mut QueueResources,
        stop: &StopToken,
    ) -> Result<(), QueueError> {
        let memory = resources.memory.clone();
        while resources.queue.has_available(&memory.memory())? && !stop.is_stopped() {
            let Some(allowed) = self.allowed(stop).await else {
                break;
            };
            let Some(chain) = resources.queue.pop(&memory.memory())? else {
                break;
            };
            let len = allowed.min(chain.writable_len().into());
            let bytes = self.random(len as usize).await;
            let ram = memory.memory();
            let written = chain.writer(&ram).write(bytes)? as u32;
            resources.queue.add_used(&ram, chain, written)?;
            if let Some(allowance) = &mut self.allowance {
                allowance.left = allowance.left.saturating_sub(written.into());
            }
            // A waiting guest does not wait for the whole batch.
            if resources.queue.needs_notification(&ram)? {
                resources.interrupt.trigger();
            }
        }
        Ok(())
    }

    fn finish(&mut self, _queue: &mut Queue) {}
}
