//! Jobs: work on disks that takes its time, while guests go on.
//!
//! ```text
//!   commands (any thread)                        the I/O thread of the graph
//!   ─────────────────────                        ───────────────────────────
//!   Jobs.find(id).pause() ──▶ [Job] state ◀──── [live]: run, wait for others, change the graph
//!   query                       │  changed          │
//!                               ▼                   ▼
//!                             events            [Driver]  mirror, commit, stream, backup
//!                                                   │
//!            guests' writes ──▶ observers ──▶ bits ─┴─▶ [pump]: steps at the same time,
//!            (their I/O threads)  under range locks     errors, pauses, limit of speed
//! ```
//!
//! | file             | what                                                       |
//! |------------------|------------------------------------------------------------|
//! | `status.rs`      | the words of the interface                                 |
//! | `handle.rs`      | [`Job`]: state, verbs, what drivers ask                     |
//! | `registry.rs`    | [`Jobs`], and the life of a job                             |
//! | `transaction.rs` | [`Transaction`]: jobs that complete together                |
//! | `pump.rs`        | doing what the bits of a bitmap say                         |
//! | `copy.rs`        | copying a range                                             |
//! | `mirror.rs`, `commit.rs`, `stream.rs`, `backup.rs` | the drivers         |
//! | `ranges.rs`      | who copies which range                                      |
//!
//! `docs/design/jobs.md` says why it is so, and why a job may be killed at any moment.

mod backup;
mod commit;
mod copy;
mod handle;
mod limit;
mod mirror;
mod pump;
mod ranges;
mod registry;
mod report;
mod signal;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod transaction;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

pub use self::backup::{Backup, BackupOptions, CompressedSink};
pub use self::commit::{CommitOptions, commit};
pub use self::handle::{Changer, Ending, Job};
pub use self::mirror::{Mirror, MirrorOptions};
pub use self::registry::{CreatedJob, Jobs};
pub use self::report::{BlockJobEvent, BlockJobInfo, EventSink, JobEvent, JobInfo};
pub use self::status::{
    BitmapMode, CopyMode, ErrorAction, IoStatus, JobStatus, JobType, JobVerb, OnCbwError, OnError,
    Operation, Sync,
};
pub use self::stream::{Stream, StreamOptions};
pub use self::transaction::Transaction;

/// A future of one I/O thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The change of the graph at the end of a job.
///
/// It drains all edges by which users reach the source (mirror, commit) or the top (stream), and
/// no edges below; calls [`Settler::settle`], which reads the source and what is below it; then,
/// for [`Ending::Pivot`], leads the edges elsewhere; and opens them. When it fails, nothing may
/// have changed: the job fails, and the source has everything.
pub type Finish = Box<dyn FnOnce(Ending, Settler) -> LocalFuture<'static, io::Result<()>>>;

/// What a job has left to do when no guest writes any more.
trait Settle {
    fn settle(&self) -> LocalFuture<'_, io::Result<()>>;
}

/// Lets a job do the rest of its work for the change of the graph.
pub struct Settler(Arc<dyn Settle>);

impl Settler {
    fn new(job: Arc<dyn Settle>) -> Self {
        Self(job)
    }

    /// Copies what is left and makes it stable, while the edges are drained by which users reach
    /// the source. From then on the source is not followed any more.
    ///
    /// # Errors
    /// A disk failed.
    pub async fn settle(&self) -> io::Result<()> {
        self.0.settle().await
    }
}

/// How a job is to be.
pub struct JobOptions {
    /// Its name: a letter, then letters, digits, `-`, `.` and `_`.
    pub id: String,
    /// Limit in bytes a second; 0: none.
    pub speed: u64,
    /// Change the graph without being told.
    pub auto_finalize: bool,
    /// Forget it when it is over.
    pub auto_dismiss: bool,
    /// Jobs with which it completes or fails.
    pub transaction: Option<Arc<Transaction>>,
}

impl JobOptions {
    /// A job by itself, as fast as it can, that needs no attention.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            speed: 0,
            auto_finalize: true,
            auto_dismiss: true,
            transaction: None,
        }
    }
}

/// Why something cannot be asked of a job. The texts are QEMU's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// There is none with that name. (`block-job-*` commands: class `DeviceNotActive`.)
    #[error("Job not found")]
    NotFound(String),
    /// There is one with that name.
    #[error("Job ID '{0}' already in use")]
    IdInUse(String),
    /// A job cannot be called that.
    #[error("Invalid job ID '{0}'")]
    BadId(String),
    /// It does not do that now.
    #[error("Job '{id}' in state '{status}' cannot accept command verb '{verb}'")]
    Verb {
        /// The job.
        id: String,
        /// How far it is.
        status: JobStatus,
        /// What was asked.
        verb: JobVerb,
    },
    /// It rests already.
    #[error("Job is already paused")]
    AlreadyPaused,
    /// It does not rest.
    #[error("Can't resume a job that was not paused")]
    NotPaused,
    /// It is paused, and the caller did not say `force`.
    #[error("The block job for device '{0}' is currently paused")]
    Paused(String),
    /// It ends in another way.
    #[error("The active block job '{0}' cannot be completed")]
    NotCompletable(String),
    /// It has no options that can be changed.
    #[error("Job type does not support change")]
    NoChange,
    /// It does not change in this way.
    #[error("Change to copy mode '{0}' is not implemented")]
    CopyMode(CopyMode),
}

/// What a job does. It lives on the I/O thread of the jobs.
pub trait Driver: 'static {
    /// What `query-jobs` calls it.
    fn kind(&self) -> JobType;

    /// What `block-job-change` calls.
    fn changer(&self) -> Option<Changer> {
        None
    }

    /// Takes hold of the instant at which it begins: the edges to the source are drained.
    ///
    /// # Errors
    /// Something that it needs is in use.
    fn attach(&self) -> io::Result<()>;

    /// Does the work. Dropped a moment after the job was cancelled, if it has not ended by then.
    fn run<'a>(&'a self, job: &'a Arc<Job>) -> LocalFuture<'a, io::Result<()>>;

    /// Changes the graph, when all jobs of the transaction have done their work.
    fn prepare<'a>(&'a self, job: &'a Arc<Job>) -> LocalFuture<'a, io::Result<()>>;

    /// All have changed the graph.
    fn commit(&self) {}

    /// This job or another one of the transaction failed.
    fn abort(&self) {}

    /// It is over, in either way: watches nothing any more.
    fn clean(&self);
}
