//! The jobs that there are, and the life of one.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event::{Either, select2, sleep};

use super::handle::{Job, cancelled};
use super::report::{BlockJobInfo, EventSink, JobEvent, JobInfo};
use super::status::JobStatus;
use super::{Driver, JobError, JobOptions};

/// A job that is cancelled may bring its requests to an end for this long; then they are given up.
const GRACE: Duration = Duration::from_millis(200);

/// All jobs. Clones are the same.
#[derive(Clone)]
pub struct Jobs(Arc<Registry>);

pub(super) struct Registry {
    jobs: Mutex<Vec<Arc<Job>>>,
    emit: EventSink,
}

impl Registry {
    fn jobs(&self) -> MutexGuard<'_, Vec<Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn remove(&self, id: &str) {
        self.jobs().retain(|job| job.id() != id);
    }
}

/// Whether a job, or a node, may be called that: a letter, then letters, digits, `-`, `.` and `_`.
fn is_wellformed(id: &str) -> bool {
    let mut chars = id.chars();
    chars
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

impl Jobs {
    /// None yet; `emit` is told of their events.
    #[must_use]
    pub fn new(emit: EventSink) -> Self {
        Self(Arc::new(Registry {
            jobs: Mutex::default(),
            emit,
        }))
    }

    /// The job with that name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, id: &str) -> Result<Arc<Job>, JobError> {
        let jobs = self.0.jobs();
        let job = jobs.iter().find(|job| job.id() == id).map(Arc::clone);
        job.ok_or_else(|| JobError::NotFound(id.to_owned()))
    }

    /// All, in the order in which they were made.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Job>> {
        self.0.jobs().clone()
    }

    /// `query-jobs`.
    #[must_use]
    pub fn query(&self) -> Vec<JobInfo> {
        self.list().iter().map(|job| job.info()).collect()
    }

    /// `query-block-jobs`.
    #[must_use]
    pub fn query_block(&self) -> Vec<BlockJobInfo> {
        self.list().iter().map(|job| job.block_info()).collect()
    }

    /// Makes a job, which does not begin yet. If what is returned is dropped, it is gone again.
    ///
    /// # Errors
    /// Its name is taken or none.
    pub fn create(
        &self,
        options: JobOptions,
        driver: Box<dyn Driver>,
    ) -> Result<CreatedJob, JobError> {
        if !is_wellformed(&options.id) {
            return Err(JobError::BadId(options.id));
        }
        let job = {
            let mut jobs = self.0.jobs();
            if jobs.iter().any(|job| job.id() == options.id) {
                return Err(JobError::IdInUse(options.id));
            }
            let job = Job::new(
                options,
                driver.kind(),
                driver.changer(),
                Arc::clone(&self.0.emit),
                Arc::downgrade(&self.0),
            );
            jobs.push(Arc::clone(&job));
            job
        };
        job.set_status(JobStatus::Created);
        Ok(CreatedJob {
            job,
            driver: Some(driver),
        })
    }
}

/// A job that has not begun.
#[must_use = "dropping it undoes it"]
pub struct CreatedJob {
    job: Arc<Job>,
    driver: Option<Box<dyn Driver>>,
}

impl CreatedJob {
    /// The job.
    #[must_use]
    pub fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// Takes hold of the instant at which it begins: call it while all edges are drained by which
    /// users reach the source, and open them afterwards.
    ///
    /// # Errors
    /// A bitmap that it needs is in use. The job can only be dropped then.
    pub fn attach(&self) -> io::Result<()> {
        self.driver
            .as_ref()
            .map_or(Ok(()), |driver| driver.attach())
    }

    /// Begins. On the I/O thread of the jobs.
    pub fn start(mut self) -> Arc<Job> {
        let job = Arc::clone(&self.job);
        if let Some(driver) = self.driver.take() {
            event::spawn_local(live(Arc::clone(&job), driver)).detach();
        }
        job
    }
}

impl Drop for CreatedJob {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.abort();
            driver.clean();
            self.job.transaction.fail();
            self.job.forget();
        }
    }
}

/// All of a job's life.
async fn live(job: Arc<Job>, driver: Box<dyn Driver>) {
    job.set_status(JobStatus::Running);
    let result = work(&job, &*driver).await;
    let was_cancelled = match &result {
        Ok(()) => false,
        Err(error) => {
            let by_others = job.transaction.has_failed();
            job.fail(error);
            job.transaction.fail();
            job.is_cancelled() || by_others
        }
    };
    match result {
        Ok(()) => driver.commit(),
        Err(_) => {
            job.set_status(JobStatus::Aborting);
            driver.abort();
        }
    }
    driver.clean();
    drop(driver);
    let mut event = job.block_event();
    job.emit(match was_cancelled {
        true => {
            event.error = None;
            JobEvent::Cancelled(event)
        }
        false => JobEvent::Completed(event),
    });
    job.set_status(JobStatus::Concluded);
    if job.is_auto_dismiss() {
        job.forget();
    }
}

/// From its begin to the change of the graph.
async fn work(job: &Arc<Job>, driver: &dyn Driver) -> io::Result<()> {
    let end = async {
        select2(job.until_cancelled(), job.transaction.until_failed()).await;
        job.cancel_with_others();
        sleep(GRACE).await;
    };
    match select2(driver.run(job), end).await {
        Either::A(result) => result?,
        Either::B(()) => return Err(cancelled()),
    }
    job.set_status(JobStatus::Waiting);
    let transaction = &job.transaction;
    transaction.worked(job).await.map_err(|_| cancelled())?;
    job.set_status(JobStatus::Pending);
    if !job.is_auto_finalize() {
        job.emit(JobEvent::Pending {
            kind: job.kind(),
            id: job.id().to_owned(),
        });
    }
    transaction.finalized(job).await.map_err(|_| cancelled())?;
    driver.prepare(job).await?;
    transaction.prepared().await.map_err(|_| cancelled())
}
