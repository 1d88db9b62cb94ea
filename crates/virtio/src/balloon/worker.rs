use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use event::{StopToken, yield_now};
use memory::{GuestAddressSpace, GuestRam, Ram};

use super::Shared;
use super::discard::discard;
use super::model::{PAGE_SHIFT, PAGE_SIZE};
use super::stats::{ENTRY, NAMES, Stats};
use crate::QueueResources;
use crate::chain::Chain;
use crate::queue::{Queue, QueueError};
use crate::service::Service;

/// Page numbers that are taken at once; other tasks of the thread get their turn in between.
const BATCH: usize = 256;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Stats,
    Report,
}

pub(super) struct Worker {
    role: Role,
    shared: Arc<Shared>,
    /// The driver's buffer for statistics: given back when it is to be filled anew.
    held: Option<Chain>,
    failed: bool,
}

impl Worker {
    pub(super) fn new(role: Role, shared: Arc<Shared>) -> Self {
        Self {
            role,
            shared,
            held: None,
            failed: false,
        }
    }

    fn check(&mut self, result: io::Result<()>) {
        if let Err(e) = result
            && !std::mem::replace(&mut self.failed, true)
        {
            log::warn!("{}: the host does not take memory back: {e}", Self::DEVICE);
        }
    }

    /// Gives back the pages whose numbers are in the chain.
    async fn inflate(
        &mut self,
        memory: &GuestRam,
        chain: &Chain,
        stop: &StopToken,
    ) -> Result<(), QueueError> {
        let mut done = 0;
        loop {
            let ram = memory.memory();
            let mut reader = chain.reader(&ram);
            reader.skip(done)?;
            let mut bytes = [0; 4 * BATCH];
            let len = reader.read(&mut bytes)?;
            done += len;
            let (numbers, _) = bytes.get(..len).unwrap_or_default().as_chunks();
            let mut pages: Vec<u32> = numbers.iter().map(|n| u32::from_le_bytes(*n)).collect();
            pages.sort_unstable();
            for (first, count) in runs(&pages) {
                let address = u64::from(first) << PAGE_SHIFT;
                self.check(discard(&ram, address, count * PAGE_SIZE));
            }
            // A page that stays is no harm: the guest does not use it.
            if len < bytes.len() || stop.is_stopped() {
                return Ok(());
            }
            drop(ram);
            yield_now().await;
        }
    }

    /// Gives back the free memory that the chain consists of.
    fn report(&mut self, ram: &Ram, chain: &Chain) {
        // A guest that finds its poison in free pages must still find it afterwards.
        if !self.shared.may_discard_reported() {
            return;
        }
        for segment in chain.writable() {
            self.check(discard(ram, segment.address, segment.len.into()));
        }
    }
}

/// The statistics in a chain.
fn read_stats(ram: &Ram, chain: &Chain) -> Result<Stats, QueueError> {
    let mut reader = chain.reader(ram);
    let mut stats = Stats::default();
    stats.last_update = Some(SystemTime::now());
    // More entries than there are tags would only repeat themselves.
    for _ in 0..2 * NAMES.len() {
        if reader.remaining() < ENTRY {
            break;
        }
        stats.set(reader.read_obj()?);
    }
    Ok(stats)
}

/// Runs of consecutive numbers in a sorted list: the first number of each, and how many.
fn runs(pages: &[u32]) -> impl Iterator<Item = (u32, u64)> {
    pages
        .chunk_by(|a, b| b - a <= 1)
        .filter_map(|run| match (run.first(), run.last()) {
            (Some(first), Some(last)) => Some((*first, u64::from(last - first) + 1)),
            _ => None,
        })
}

impl Service for Worker {
    const DEVICE: &'static str = "virtio-balloon";

    async fn serve(
        &mut self,
        resources: &mut QueueResources,
        stop: &StopToken,
    ) -> Result<(), QueueError> {
        let memory = resources.memory.clone();
        if self.role == Role::Stats
            && self.shared.stats_due.swap(false, Ordering::AcqRel)
            && let Some(chain) = self.held.take()
        {
            resources.queue.add_used(&memory.memory(), chain, 0)?;
        }
        while !stop.is_stopped() {
            let ram = memory.memory();
            let Some(mut chain) = resources.queue.pop(&ram)? else {
                break;
            };
            match self.role {
                Role::Inflate => self.inflate(&memory, &chain, stop).await?,
                Role::Deflate => {}
                Role::Report => self.report(&ram, &chain),
                Role::Stats => {
                    self.shared.set_stats(read_stats(&ram, &chain)?);
                    match self.held.replace(chain) {
                        Some(before) => chain = before,
                        None => continue,
                    }
                }
            }
            resources.queue.add_used(&ram, chain, 0)?;
        }
        Ok(())
    }

    fn finish(&mut self, queue: &mut Queue) {
        if let Some(chain) = self.held.take() {
            queue.undo_pop(chain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_pages_make_runs() {
        let all: Vec<_> = runs(&[1, 2, 2, 3, 7, u32::MAX - 1, u32::MAX]).collect();
        assert_eq!(all, [(1, 3), (7, 1), (u32::MAX - 1, 2)]);
        assert_eq!(runs(&[]).count(), 0);
    }
}
