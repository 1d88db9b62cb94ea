//! Copying the disk of one instant while guests go on writing to it.
//!
//! ```text
//!   guest's write ─▶ before: is the old content still to be copied? copy it ─▶ source
//!                                  │  under the range's lock
//!                                  ▼
//!                 pump: lock range ─▶ read source ─▶ write target ─▶ clear bits
//! ```

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use block::graph::{Change, Observer, Vertex};
use block::qcow2::Qcow2;
use block::storage::Storage;
use block::{BlockStatus, Node, NodeFuture, StatusKind};
use event::{Either, StopSource, StopToken, join_all, select2};

use super::copy::{Copier, Failure, Pool, is_zero, memory, read_failed, write_failed};
use super::handle::Job;
use super::mirror::invalid;
use super::pump::{Pace, Pump, Work};
use super::ranges::RangeLocks;
use super::status::{BitmapMode, JobType, OnCbwError, OnError, Operation, Sync};
use super::{Driver, LocalFuture};
use crate::bitmap::{Bits, DirtyBitmap, Frozen};

/// Bytes that are copied before one of them is overwritten, at least.
const CLUSTER: u64 = 64 << 10;

/// Bytes of the smallest hole that is looked for before the copy begins.
const HOLE: u64 = 8 << 20;

/// A target that stores clusters in compressed form.
pub trait CompressedSink: Send + std::marker::Sync {
    /// Bytes of a cluster.
    fn cluster_size(&self) -> u64;

    /// Writes a cluster, or less at the end of the disk; `offset` is where a cluster begins.
    fn write_compressed(&self, data: Vec<u8>, offset: u64) -> NodeFuture<'_, io::Result<()>>;
}

impl<S: Storage> CompressedSink for Qcow2<S> {
    fn cluster_size(&self) -> u64 {
        self.info().cluster_size
    }

    fn write_compressed(&self, data: Vec<u8>, offset: u64) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(Qcow2::write_compressed(self, data, offset))
    }
}

/// What is copied, and how.
pub struct BackupOptions {
    /// Where from. Guests reach it through edges.
    pub source: Arc<Vertex>,
    /// Where to; at least as large.
    pub target: Arc<Vertex>,
    /// What is copied.
    pub sync: Sync,
    /// The bitmap that says what is copied, or that is to know that all was copied.
    pub bitmap: Option<Arc<DirtyBitmap>>,
    /// What becomes of it. (`incremental` is `bitmap` with `on-success`.)
    pub bitmap_mode: BitmapMode,
    /// Bytes of a cluster of the target.
    pub cluster_size: u64,
    /// Writes compressed clusters; the target's own node.
    pub compress: Option<Arc<dyn CompressedSink>>,
    /// Bytes that are copied at once.
    pub buffer: u64,
    /// Copies at the same time.
    pub parallel: usize,
    /// What to do when the source fails.
    pub on_source_error: OnError,
    /// What to do when the target fails.
    pub on_target_error: OnError,
    /// What fails when old content cannot be copied before it is overwritten.
    pub on_cbw_error: OnCbwError,
}

impl BackupOptions {
    /// A full backup.
    #[must_use]
    pub fn new(source: Arc<Vertex>, target: Arc<Vertex>) -> Self {
        Self {
            source,
            target,
            sync: Sync::Full,
            bitmap: None,
            bitmap_mode: BitmapMode::OnSuccess,
            cluster_size: CLUSTER,
            compress: None,
            buffer: 1 << 20,
            parallel: 16,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
            on_cbw_error: OnCbwError::BreakGuestWrite,
        }
    }
}

/// Copies the disk of one instant.
pub struct Backup {
    shared: Arc<Shared>,
    /// As it is in the vertex.
    observer: Arc<dyn Observer>,
    sync: Sync,
    bitmap: Option<Arc<DirtyBitmap>>,
    bitmap_mode: BitmapMode,
    frozen: RefCell<Option<Frozen>>,
    pace: Pace,
}

struct Shared {
    copier: Copier,
    /// Clusters whose content of that instant is only in the source.
    todo: Bits,
    locks: RangeLocks,
    top_only: bool,
    compress: Option<Arc<dyn CompressedSink>>,
    on_source_error: OnError,
    on_target_error: OnError,
    on_cbw_error: OnCbwError,
    /// Guests' writes do not wait any more.
    over: StopSource,
    token: StopToken,
    /// Something was overwritten that was not copied.
    broken: Mutex<Option<io::Error>>,
    job: OnceLock<Weak<Job>>,
}

impl Backup {
    /// A backup.
    ///
    /// # Errors
    /// The target is smaller than the source or read-only, the bitmap cannot be used, or the
    /// options make no sense.
    pub fn new(options: BackupOptions) -> io::Result<Box<Self>> {
        let (source, target) = (&options.source, &options.target);
        if target.size() < source.size() {
            return Err(invalid("the target is smaller than the source"));
        }
        if Arc::ptr_eq(source, target) {
            return Err(invalid("the target is the source"));
        }
        if target.is_read_only() {
            return Err(invalid("the target is read-only"));
        }
        let by_bitmap = matches!(options.sync, Sync::Incremental | Sync::Bitmap);
        match &options.bitmap {
            Some(_) if options.sync == Sync::None => {
                return Err(invalid("a bitmap is of no use with sync mode none"));
            }
            Some(bitmap) => match options.bitmap_mode {
                BitmapMode::Never => bitmap.check_to_read(),
                BitmapMode::OnSuccess | BitmapMode::Always => bitmap.check(),
            }
            .map_err(io::Error::other)?,
            None if by_bitmap => return Err(invalid("there is no bitmap that says what to copy")),
            None => (),
        }
        let cluster = options.cluster_size.max(CLUSTER);
        let compressed = options.compress.as_ref().map_or(1, |s| s.cluster_size());
        if !cluster.is_power_of_two() || cluster > 64 << 20 || !cluster.is_multiple_of(compressed) {
            return Err(invalid("the target's cluster size makes no sense"));
        }
        let (over, token) = StopSource::new();
        let shared = Arc::new(Shared {
            todo: Bits::new(source.size(), cluster),
            copier: Copier {
                source: Arc::clone(source),
                target: Arc::clone(target),
                unmap: true,
                own_zeros: options.sync != Sync::Full,
                layers: None,
                pool: Pool::default(),
            },
            locks: RangeLocks::default(),
            top_only: options.sync == Sync::Top,
            compress: options.compress,
            on_source_error: options.on_source_error,
            on_target_error: options.on_target_error,
            on_cbw_error: options.on_cbw_error,
            over,
            token,
            broken: Mutex::default(),
            job: OnceLock::new(),
        });
        let observer: Arc<dyn Observer> = Arc::<Shared>::clone(&shared);
        Ok(Box::new(Self {
            shared,
            observer,
            sync: options.sync,
            bitmap: options.bitmap,
            bitmap_mode: match options.sync {
                Sync::Incremental => BitmapMode::OnSuccess,
                _ => options.bitmap_mode,
            },
            frozen: RefCell::default(),
            pace: Pace {
                parallel: options.parallel.max(1),
                chunk: options.buffer.max(cluster),
            },
        }))
    }

    async fn work(&self, job: &Arc<Job>) -> io::Result<()> {
        let shared = &self.shared;
        _ = shared.job.set(Arc::downgrade(job));
        let mut pump = Pump::new(job, shared, self.pace);
        if self.sync == Sync::None {
            // Only what guests overwrite is copied, until the user has enough.
            loop {
                let version = job.version();
                job.pause_point().await?;
                shared.check()?;
                job.changed_since(version).await;
            }
        }
        let skip = async || shared.skip_holes().await;
        pump.retry(Operation::Read, skip).await?;
        pump.finish().await?;
        let flush = async || shared.copier.target.flush().await;
        pump.retry(Operation::Write, flush).await
    }
}

impl Shared {
    fn broken(&self) -> MutexGuard<'_, Option<io::Error>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies what is still to be copied of a range that is locked.
    async fn copy(&self, range: Range<u64>) -> Result<u64, Failure> {
        let (mut at, mut moved) = (range.start, 0);
        while let Some(run) = self.todo.next(at..range.end) {
            let end = match self.top_only {
                true => self.alike(&run).await.map_err(read_failed)?,
                false => (true, run.end),
            };
            let part = run.start..end.1;
            at = part.end;
            if end.0 {
                moved += match &self.compress {
                    Some(sink) => self.compress(&**sink, part.clone()).await?,
                    None => self.copier.copy(part.clone()).await?,
                };
            }
            // Not before it is copied: until then guests' writes wait for it.
            self.todo.clear(part);
        }
        Ok(moved)
    }

    /// Does at once with what need not be copied: long holes, or what the top layer does not have.
    async fn skip_holes(&self) -> io::Result<()> {
        let (source, size) = (&self.copier.source, self.todo.size());
        let cluster = self.todo.granularity();
        let (mut at, mut steps) = (0, 0_u32);
        while at < size {
            steps = steps.wrapping_add(1);
            if steps.is_multiple_of(64) {
                event::yield_now().await;
            }
            let status = source.block_status(at, size - at).await?;
            let end = at.saturating_add(status.len.max(1)).min(size);
            let start = at.next_multiple_of(cluster);
            let hole = start..if end == size {
                end
            } else {
                end - end % cluster
            };
            at = end;
            if hole.is_empty() || hole.end - hole.start < HOLE || !self.is_hole(&status) {
                continue;
            }
            // Until the lock is open and the bits are clear, no guest writes there.
            let _locked = self.locks.lock(hole.clone()).await;
            let mut is_hole = self.top_only || self.copier.is_target_zero(hole.clone()).await?;
            let mut at = hole.start;
            while is_hole && at < hole.end {
                let status = source.block_status(at, hole.end - at).await?;
                is_hole = self.is_hole(&status);
                at = at.saturating_add(status.len.max(1));
            }
            if is_hole {
                self.todo.clear(hole);
            }
        }
        Ok(())
    }

    /// Whether a part of the source is nothing that is copied.
    fn is_hole(&self, status: &BlockStatus) -> bool {
        match (self.top_only, self.copier.own_zeros) {
            (true, _) => status.depth != 0 || status.kind == StatusKind::Unallocated,
            (false, true) => false,
            (false, false) => is_zero(status.kind),
        }
    }

    /// Whether the top layer has something of the first clusters of a range, and up to where that
    /// is so.
    async fn alike(&self, range: &Range<u64>) -> io::Result<(bool, u64)> {
        let cluster = self.todo.granularity();
        let first_end = (range.start - range.start % cluster + cluster).min(range.end);
        let mut at = range.start;
        loop {
            let left = range.end - at;
            let status = self.copier.source.block_status(at, left).await?;
            let end = at.saturating_add(status.len.max(1)).min(range.end);
            let has = status.depth == 0 && status.kind != StatusKind::Unallocated;
            // Whole clusters only, unless it is the end of the range.
            let whole = if end == range.end {
                end
            } else {
                end - end % cluster
            };
            if has {
                return Ok((true, whole.max(first_end)));
            }
            if at == range.start && whole >= first_end {
                return Ok((false, whole));
            }
            if end >= first_end {
                return Ok((false, first_end));
            }
            at = end;
        }
    }

    /// Copies a range into compressed clusters.
    async fn compress(&self, sink: &dyn CompressedSink, range: Range<u64>) -> Result<u64, Failure> {
        let (source, size) = (&self.copier.source, sink.cluster_size());
        let starts = (range.start..range.end).step_by(usize::try_from(size).unwrap_or(usize::MAX));
        let clusters = starts.map(async |at| {
            let len = size.min(range.end - at);
            let status = source.block_status(at, len).await.map_err(read_failed)?;
            if is_zero(status.kind) && status.len >= len {
                self.copier.copy(at..at + len).await?;
                return Ok(0);
            }
            let buf = memory(len).map_err(read_failed)?;
            let (read, buf) = source.read_vectored(buf, at).await;
            read.map_err(read_failed)?;
            let bytes = buf.bytes().unwrap_or_default().to_vec();
            let written = sink.write_compressed(bytes, at).await;
            written.map(|()| len).map_err(write_failed)
        });
        let mut moved = 0;
        for cluster in join_all(clusters).await {
            moved += cluster?;
        }
        Ok(moved)
    }

    /// Copies what a guest is about to overwrite.
    async fn save(&self, range: Range<u64>) -> io::Result<()> {
        let cluster = self.todo.granularity();
        let mut at = range.start - range.start % cluster;
        while let Some(run) = self.todo.next(at..range.end) {
            let start = run.start - run.start % cluster;
            let end = run.end.min(start.saturating_add(cluster.max(1 << 20)));
            let end = end.checked_next_multiple_of(cluster).unwrap_or(end);
            let _locked = self.locks.lock(start..end).await;
            let copied = self.copy(start..end.min(self.todo.size())).await;
            copied.map_err(|failure| failure.error)?;
            at = end;
        }
        Ok(())
    }

    /// Something that was not copied is overwritten.
    fn break_off(&self, error: io::Error) {
        self.broken().get_or_insert(error);
        self.over.stop();
        if let Some(job) = self.job.get().and_then(Weak::upgrade) {
            job.nudge();
        }
    }
}

impl Observer for Shared {
    fn before(&self, change: Change) -> Option<NodeFuture<'_, io::Result<()>>> {
        let range = change.offset..change.offset.saturating_add(change.len);
        if !self.todo.any(range.clone()) || self.token.is_stopped() {
            return None;
        }
        Some(Box::pin(async move {
            match select2(self.save(range), self.token.stopped()).await {
                Either::A(Ok(())) | Either::B(()) => Ok(()),
                Either::A(Err(error)) => match self.on_cbw_error {
                    OnCbwError::BreakGuestWrite => Err(error),
                    OnCbwError::BreakSnapshot => {
                        self.break_off(error);
                        Ok(())
                    }
                },
            }
        }))
    }
}

impl Work for Shared {
    fn bits(&self) -> &Bits {
        &self.todo
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

    fn check(&self) -> io::Result<()> {
        self.broken().take().map_or(Ok(()), Err)
    }
}

impl Driver for Backup {
    fn kind(&self) -> JobType {
        JobType::Backup
    }

    fn attach(&self) -> io::Result<()> {
        let shared = &self.shared;
        if let Some(bitmap) = &self.bitmap {
            let frozen = bitmap.freeze().map_err(io::Error::other)?;
            if matches!(self.sync, Sync::Incremental | Sync::Bitmap) {
                shared.todo.merge(frozen.bits());
            }
            *self.frozen.borrow_mut() = Some(frozen);
        }
        if !matches!(self.sync, Sync::Incremental | Sync::Bitmap) {
            shared.todo.fill(true);
        }
        shared.copier.source.observe(Arc::clone(&self.observer));
        Ok(())
    }

    fn run<'a>(&'a self, job: &'a Arc<Job>) -> LocalFuture<'a, io::Result<()>> {
        Box::pin(self.work(job))
    }

    fn prepare<'a>(&'a self, _job: &'a Arc<Job>) -> LocalFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn commit(&self) {
        if let Some(frozen) = self.frozen.take() {
            match self.bitmap_mode {
                BitmapMode::OnSuccess | BitmapMode::Always => frozen.drop_all_but(None),
                BitmapMode::Never => frozen.give_back(),
            }
        }
    }

    fn abort(&self) {
        if let Some(frozen) = self.frozen.take() {
            match self.bitmap_mode {
                BitmapMode::OnSuccess | BitmapMode::Never => frozen.give_back(),
                BitmapMode::Always => frozen.drop_all_but(Some(&self.shared.todo)),
            }
        }
    }

    fn clean(&self) {
        self.shared.over.stop();
        self.shared.copier.source.ignore(&self.observer);
    }
}
