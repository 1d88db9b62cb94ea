//! Keeping another disk the same: mirror, and the commit of an active layer.
//!
//! ```text
//!   guest's write ─▶ source ─▶ after: set bits ─▶ follow (write-blocking): clear, copy ─▶ done
//!                                     │                          under the range's lock
//!                                     ▼
//!                 pump: lock range ─▶ clear bits ─▶ read source ─▶ write target
//! ```

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use block::graph::{Change, Observer, Vertex};
use block::{Node, NodeFuture, StatusKind};
use event::{StopSource, StopToken, join_all, select2};

use super::copy::{Copier, Failure, Pool, is_zero};
use super::handle::{Changer, Ending, Job};
use super::pump::{Pace, Pump, Work};
use super::ranges::RangeLocks;
use super::status::{CopyMode, JobType, OnError, Operation, Sync};
use super::{Driver, Finish, JobError, LocalFuture, Settle, Settler};
use crate::bitmap::Bits;

/// A mirror that has nothing to do looks again after this long: what the guest writes meanwhile is
/// copied together.
const NAP: Duration = Duration::from_millis(100);

/// When a job should have an end, guests may be faster than it for so long. Then their writes wait
/// for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Patience with guests, from the first time that it is asked for.
#[derive(Default)]
struct Patience(Cell<Option<Instant>>);

impl Patience {
    fn is_over(&self) -> bool {
        let begun = self.0.get().unwrap_or_else(Instant::now);
        self.0.set(Some(begun));
        begun.elapsed() > PATIENCE
    }
}

/// What is mirrored, and how.
pub struct MirrorOptions {
    /// Where from. Guests reach it through edges.
    pub source: Arc<Vertex>,
    /// Where to; at least as large.
    pub target: Arc<Vertex>,
    /// `full`, `top` or `none`.
    pub sync: Sync,
    /// How the guest's writes are followed.
    pub copy_mode: CopyMode,
    /// Bytes that are copied when one of them changes, a power of two; at least the target's
    /// cluster size when what it does not get shows a backing file.
    pub granularity: u64,
    /// Bytes that are copied at once, and that may be left to be copied when the guest is stopped
    /// for the change of the graph.
    pub buffer: u64,
    /// Copies at the same time.
    pub parallel: usize,
    /// Zeros give the target's space back.
    pub unmap: bool,
    /// What to do when the source fails.
    pub on_source_error: OnError,
    /// What to do when the target fails.
    pub on_target_error: OnError,
    /// The change of the graph.
    pub finish: Option<Finish>,
}

impl MirrorOptions {
    /// A full mirror in the background that changes no graph.
    #[must_use]
    pub fn new(source: Arc<Vertex>, target: Arc<Vertex>) -> Self {
        Self {
            source,
            target,
            sync: Sync::Full,
            copy_mode: CopyMode::Background,
            granularity: 64 << 10,
            buffer: 1 << 20,
            parallel: 16,
            unmap: true,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
            finish: None,
        }
    }
}

/// What a [`Mirror`] is at present part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Everything, or what the sync mode says.
    Mirror(Sync),
    /// What is above a layer so many backing files down, while guests go on writing to the top.
    CommitActive(u32),
    /// What is above a layer, when nobody writes to the top.
    Commit(u32),
}

/// Keeps the target the same as the source, until it is told to complete.
pub struct Mirror {
    shared: Arc<Shared>,
    role: Role,
    pace: Pace,
    /// As it is in the vertex.
    observer: Arc<dyn Observer>,
    finish: RefCell<Option<Finish>>,
    ending: Cell<Ending>,
}

/// What the job and the guest's writes share.
struct Shared {
    copier: Copier,
    dirty: Bits,
    locks: RangeLocks,
    write_blocking: AtomicBool,
    /// Guests write faster than the job copies.
    hurried: AtomicBool,
    on_source_error: OnError,
    on_target_error: OnError,
    /// The guest's writes are not followed any more.
    over: StopSource,
    token: StopToken,
}

pub(super) fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

impl Mirror {
    /// A mirror.
    ///
    /// # Errors
    /// The target is smaller than the source or read-only, or the options make no sense.
    pub fn new(options: MirrorOptions) -> io::Result<Box<Self>> {
        let sync = options.sync;
        if !matches!(sync, Sync::Full | Sync::Top | Sync::None) {
            return Err(invalid("a mirror's sync mode is full, top or none"));
        }
        if options.target.size() < options.source.size() {
            return Err(invalid("the target is smaller than the source"));
        }
        Self::with_role(options, Role::Mirror(sync))
    }

    pub(super) fn with_role(options: MirrorOptions, role: Role) -> io::Result<Box<Self>> {
        let granularity = options.granularity;
        if !granularity.is_power_of_two() || !(512..=64 << 20).contains(&granularity) {
            return Err(invalid(
                "granularity must be a power of two from 512 to 64 MiB",
            ));
        }
        if Arc::ptr_eq(&options.source, &options.target) {
            return Err(invalid("the target is the source"));
        }
        if options.target.is_read_only() {
            return Err(invalid("the target is read-only"));
        }
        let (over, token) = StopSource::new();
        let shared = Arc::new(Shared {
            dirty: Bits::new(options.source.size(), granularity),
            copier: Copier {
                source: options.source,
                target: options.target,
                unmap: options.unmap,
                own_zeros: matches!(role, Role::Mirror(Sync::Top | Sync::None)),
                layers: match role {
                    Role::Mirror(_) => None,
                    Role::CommitActive(layers) | Role::Commit(layers) => Some(layers),
                },
                pool: Pool::default(),
            },
            locks: RangeLocks::default(),
            hurried: AtomicBool::new(false),
            write_blocking: AtomicBool::new(options.copy_mode == CopyMode::WriteBlocking),
            on_source_error: options.on_source_error,
            on_target_error: options.on_target_error,
            over,
            token,
        });
        let observer: Arc<dyn Observer> = Arc::<Shared>::clone(&shared);
        Ok(Box::new(Self {
            shared,
            role,
            pace: Pace {
                parallel: options.parallel.max(1),
                chunk: options.buffer.max(granularity),
            },
            observer,
            finish: RefCell::new(options.finish),
            ending: Cell::new(Ending::Pivot),
        }))
    }

    /// Sets the bits of what is to be copied at first.
    async fn begin(&self, pump: &Pump<Shared>) -> io::Result<()> {
        let shared = &self.shared;
        let (source, target) = (&shared.copier.source, &shared.copier.target);
        let size = source.size();
        if shared.copier.layers.is_some() && target.size() < size {
            let grow = async || target.resize(size).await.map_err(io::Error::other);
            pump.retry(Operation::Write, grow).await?;
        }
        let layers = match self.role {
            Role::Mirror(Sync::None) => return Ok(()),
            Role::Mirror(Sync::Top) => 1,
            Role::Mirror(_) => return self.begin_full(pump).await,
            Role::CommitActive(layers) | Role::Commit(layers) => layers,
        };
        let top_only = matches!(self.role, Role::Mirror(_));
        // What no layer has is nothing of the top's; but where a layer is shorter than the one
        // below it, its end hides that one's content.
        let nothing = |kind| top_only && kind == StatusKind::Unallocated;
        pump.scan(source, async |status, _| {
            Ok(status.depth < layers && !nothing(status.kind))
        })
        .await
    }

    /// All, except where both disks have a hole: what a guest writes meanwhile sets its own bits.
    async fn begin_full(&self, pump: &Pump<Shared>) -> io::Result<()> {
        let copier = &self.shared.copier;
        pump.scan(&copier.source, async |status, range: Range<u64>| {
            if !is_zero(status.kind) {
                return Ok(true);
            }
            let is_zero = async || copier.is_target_zero(range.clone()).await;
            Ok(!pump.retry(Operation::Write, is_zero).await?)
        })
        .await
    }

    async fn work(&self, job: &Arc<Job>) -> io::Result<()> {
        let shared = &self.shared;
        let mut pump = Pump::new(job, shared, self.pace);
        self.begin(&pump).await?;
        if let Role::Commit(_) = self.role {
            pump.finish().await?;
            return self.flush(&pump).await;
        }
        if let Role::Mirror(_) = self.role {
            job.set_actively_synced(false);
        }
        let few = self.pace.chunk;
        let first = shared.dirty.count();
        pump.run(|left| left <= few || job.info().current_progress >= first)
            .await?;
        let hurried = matches!(self.role, Role::CommitActive(_));
        let patience = Patience::default();
        pump.run(|left| {
            if hurried && patience.is_over() {
                shared.hurry();
            }
            left == 0 || left <= few && !shared.is_write_blocking()
        })
        .await?;
        self.flush(&pump).await?;
        job.ready();
        loop {
            let patience = Patience::default();
            pump.run(|left| {
                let ending = job.ending().is_some();
                if ending && patience.is_over() {
                    shared.hurry();
                }
                left == 0 || left <= few && ending
            })
            .await?;
            if let Some(ending) = job.ending() {
                self.ending.set(ending);
                return self.flush(&pump).await;
            }
            if shared.is_write_blocking() && shared.dirty.is_empty() {
                job.set_actively_synced(true);
            }
            pump.idle(NAP).await;
        }
    }

    async fn flush(&self, pump: &Pump<Shared>) -> io::Result<()> {
        let target = &self.shared.copier.target;
        pump.retry(Operation::Write, async || target.flush().await)
            .await
    }
}

impl Shared {
    fn is_write_blocking(&self) -> bool {
        self.write_blocking.load(Ordering::Acquire)
    }

    /// From now on guests' writes are copied before they complete, so that the end comes.
    fn hurry(&self) {
        self.hurried.store(true, Ordering::Release);
    }

    fn follows(&self) -> bool {
        self.is_write_blocking() || self.hurried.load(Ordering::Acquire)
    }

    /// Copies a range that is locked. If that fails, or is given up, it is still to be copied.
    async fn copy(&self, range: Range<u64>) -> Result<u64, Failure> {
        struct Undo<'a>(&'a Bits, Range<u64>);
        impl Drop for Undo<'_> {
            fn drop(&mut self) {
                self.0.set(self.1.clone());
            }
        }
        // Before it is read: what is changed meanwhile is set again afterwards.
        self.dirty.clear(range.clone());
        let undo = Undo(&self.dirty, range.clone());
        let end = range.end.min(self.copier.source.size());
        let moved = match range.start < end {
            true => self.copier.copy(range.start..end).await?,
            false => 0,
        };
        std::mem::forget(undo);
        Ok(moved)
    }

    /// Copies what a write of the guest changed.
    async fn follow_change(&self, change: Change) {
        let granularity = self.dirty.granularity();
        let end = change.offset.saturating_add(change.len);
        let mut at = change.offset - change.offset % granularity;
        while at < end {
            let step = granularity.max(1 << 20);
            let to = at
                .saturating_add(step)
                .min(end.checked_next_multiple_of(granularity).unwrap_or(end));
            let range = at..to;
            let _locked = self.locks.lock(range.clone()).await;
            if self.copy(range).await.is_err() {
                // The guest's write is all right. The job copies it again, and does what its
                // policy says if that fails too.
                return;
            }
            at = to;
        }
    }

    /// Copies all that is left, and makes it stable; no guest writes.
    async fn copy_the_rest(&self) -> io::Result<()> {
        let granularity = self.dirty.granularity();
        loop {
            let mut steps = Vec::new();
            let mut at = 0;
            while steps.len() < 16 {
                let Some(run) = self.dirty.next(at..u64::MAX) else {
                    break;
                };
                let most = granularity.max(1 << 20);
                let range = run.start..run.end.min(run.start.saturating_add(most));
                at = range.end;
                steps.push(async move {
                    let _locked = self.locks.lock(range.clone()).await;
                    self.copy(range).await
                });
            }
            if steps.is_empty() {
                break;
            }
            for result in join_all(steps).await {
                result.map_err(|failure| failure.error)?;
            }
        }
        self.copier.target.flush().await?;
        self.over.stop();
        Ok(())
    }
}

impl Observer for Shared {
    fn after(&self, change: Change) {
        if change.len != 0 {
            let end = change.offset.saturating_add(change.len);
            self.dirty.set(change.offset..end);
        }
    }

    fn follow(&self, change: Change) -> Option<NodeFuture<'_, io::Result<()>>> {
        if change.len == 0 || !self.follows() || self.token.is_stopped() {
            return None;
        }
        Some(Box::pin(async move {
            select2(self.follow_change(change), self.token.stopped()).await;
            Ok(())
        }))
    }

    fn resized(&self, size: u64) {
        let before = self.dirty.size();
        self.dirty.resize(size);
        if before < size {
            self.dirty.set(before..size);
        }
    }
}

impl Settle for Shared {
    fn settle(&self) -> LocalFuture<'_, io::Result<()>> {
        Box::pin(self.copy_the_rest())
    }
}

impl Work for Shared {
    fn bits(&self) -> &Bits {
        &self.dirty
    }

    fn locks(&self) -> &RangeLocks {
        &self.locks
    }

    fn step(&self, range: Range<u64>) -> LocalFuture<'_, Result<u64, Failure>> {
        Box::pin(self.copy(range))
    }

    fn policy(&self, operation: Operation) -> OnError {
        match operation {
            Operation::Read => self.on_source_error,
            Operation::Write => self.on_target_error,
        }
    }
}

impl Driver for Mirror {
    fn kind(&self) -> JobType {
        match self.role {
            Role::Mirror(_) => JobType::Mirror,
            Role::CommitActive(_) | Role::Commit(_) => JobType::Commit,
        }
    }

    fn changer(&self) -> Option<Changer> {
        if !matches!(self.role, Role::Mirror(_)) {
            return None;
        }
        let shared = Arc::clone(&self.shared);
        Some(Box::new(move |mode| match mode {
            CopyMode::WriteBlocking => {
                shared.write_blocking.store(true, Ordering::Release);
                Ok(())
            }
            CopyMode::Background if shared.is_write_blocking() => Err(JobError::CopyMode(mode)),
            CopyMode::Background => Ok(()),
        }))
    }

    fn attach(&self) -> io::Result<()> {
        if !matches!(self.role, Role::Commit(_)) {
            let source = &self.shared.copier.source;
            source.observe(Arc::clone(&self.observer));
        }
        Ok(())
    }

    fn run<'a>(&'a self, job: &'a Arc<Job>) -> LocalFuture<'a, io::Result<()>> {
        Box::pin(self.work(job))
    }

    fn prepare<'a>(&'a self, job: &'a Arc<Job>) -> LocalFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let shared = &self.shared;
            // The guest may have written much while the job was pending, and should be stopped
            // for a moment only.
            let mut pump = Pump::new(job, shared, self.pace);
            let (few, patience) = (self.pace.chunk, Patience::default());
            pump.run(|left| {
                if patience.is_over() {
                    shared.hurry();
                }
                left <= few
            })
            .await?;
            let settler = Settler::new(Arc::<Shared>::clone(shared));
            let finish = self.finish.take();
            match finish {
                Some(finish) => finish(self.ending.get(), settler).await,
                None => settler.settle().await,
            }
        })
    }

    fn clean(&self) {
        self.shared.over.stop();
        self.shared.copier.source.ignore(&self.observer);
    }
}
