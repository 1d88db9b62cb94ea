//! A job: its state, what can be asked of it, and what its driver asks of it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use nix::errno::Errno;

use super::limit::Limiter;
use super::registry::Registry;
use super::report::{BlockJobEvent, BlockJobInfo, EventSink, JobEvent, JobInfo};
use super::signal::Signal;
use super::status::{
    CopyMode, ErrorAction, IoStatus, JobStatus, JobType, JobVerb, OnError, Operation, is_no_space,
};
use super::transaction::Transaction;
use super::{JobError, JobOptions};

/// Changes how a job works.
pub type Changer = Box<dyn Fn(CopyMode) -> Result<(), JobError> + Send>;

/// How a job that is ready ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its users go over to the target.
    Pivot,
    /// They stay where they are, and the target is a copy of this instant.
    Stay,
}

/// A job.
pub struct Job {
    id: String,
    kind: JobType,
    auto_finalize: bool,
    auto_dismiss: bool,
    emit: EventSink,
    pub(super) transaction: Arc<Transaction>,
    registry: Weak<Registry>,
    state: Mutex<State>,
    changed: Signal,
}

struct State {
    status: JobStatus,
    /// Raised whenever something was asked of the job.
    version: u64,
    paused: bool,
    /// It is to end with nothing done.
    cancelled: bool,
    /// It is to end, being ready.
    ending: Option<Ending>,
    io_status: IoStatus,
    limiter: Limiter,
    current: u64,
    total: u64,
    error: Option<String>,
    changer: Option<Changer>,
    actively_synced: Option<bool>,
}

/// What a request fails with that a cancelled job gave up.
pub(super) fn cancelled() -> io::Error {
    Errno::ECANCELED.into()
}

/// The text of an error, as QEMU's `strerror` has it.
pub(super) fn text(error: &io::Error) -> String {
    let text = error.to_string();
    let suffix = error.raw_os_error().map(|n| format!(" (os error {n})"));
    match suffix.and_then(|suffix| text.strip_suffix(&suffix)) {
        Some(text) => text.to_owned(),
        None => text,
    }
}

impl Job {
    pub(super) fn new(
        options: JobOptions,
        kind: JobType,
        changer: Option<Changer>,
        emit: EventSink,
        registry: Weak<Registry>,
    ) -> Arc<Self> {
        let mut limiter = Limiter::default();
        limiter.set_speed(options.speed);
        let transaction = options.transaction.unwrap_or_default();
        transaction.join(!options.auto_finalize);
        Arc::new(Self {
            id: options.id,
            kind,
            auto_finalize: options.auto_finalize,
            auto_dismiss: options.auto_dismiss,
            emit,
            transaction,
            registry,
            state: Mutex::new(State {
                status: JobStatus::Undefined,
                version: 0,
                paused: false,
                cancelled: false,
                ending: None,
                io_status: IoStatus::Ok,
                limiter,
                current: 0,
                total: 0,
                error: None,
                changer,
                actively_synced: None,
            }),
            changed: Signal::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it does.
    #[must_use]
    pub fn kind(&self) -> JobType {
        self.kind
    }

    /// How far it is.
    #[must_use]
    pub fn status(&self) -> JobStatus {
        self.state().status
    }

    /// What `query-jobs` tells of it.
    #[must_use]
    pub fn info(&self) -> JobInfo {
        let state = self.state();
        JobInfo {
            id: self.id.clone(),
            kind: self.kind,
            status: state.status,
            current_progress: state.current,
            total_progress: state.total,
            error: state.error.clone(),
        }
    }

    /// What `query-block-jobs` tells of it.
    #[must_use]
    pub fn block_info(&self) -> BlockJobInfo {
        let state = self.state();
        use JobStatus as S;
        BlockJobInfo {
            kind: self.kind,
            device: self.id.clone(),
            len: state.total,
            offset: state.current,
            busy: matches!(state.status, S::Running | S::Ready),
            paused: state.paused,
            speed: state.limiter.speed(),
            io_status: state.io_status,
            ready: matches!(state.status, S::Ready | S::Standby),
            status: state.status,
            auto_finalize: self.auto_finalize,
            auto_dismiss: self.auto_dismiss,
            error: state.error.clone(),
            actively_synced: state.actively_synced,
        }
    }

    /// Waits until it is over: `Ok`, or why it failed. On an I/O thread.
    ///
    /// # Errors
    /// It failed or was cancelled: the text that `query-jobs` has.
    pub async fn concluded(&self) -> Result<(), String> {
        self.changed
            .wait_for(|| {
                let state = self.state();
                match state.status {
                    JobStatus::Concluded | JobStatus::Null => {
                        Some(state.error.clone().map_or(Ok(()), Err))
                    }
                    _ => None,
                }
            })
            .await
    }

    // What can be asked of it.

    fn check(&self, state: &State, verb: JobVerb) -> Result<(), JobError> {
        match state.status.accepts(verb) {
            true => Ok(()),
            false => Err(JobError::Verb {
                id: self.id.clone(),
                status: state.status,
                verb,
            }),
        }
    }

    /// Changes the state, and lets the job know.
    fn ask(
        &self,
        verb: JobVerb,
        change: impl FnOnce(&mut State) -> Result<(), JobError>,
    ) -> Result<(), JobError> {
        let mut state = self.state();
        self.check(&state, verb)?;
        change(&mut state)?;
        state.version += 1;
        drop(state);
        self.changed.wake();
        Ok(())
    }

    /// `job-cancel` (`force`) and `block-job-cancel`: a job that is ready completes without
    /// changing the graph, unless by force; any other ends with nothing done.
    ///
    /// # Errors
    /// It is too late.
    pub fn cancel(&self, force: bool) -> Result<(), JobError> {
        self.ask(JobVerb::Cancel, |state| {
            let ready = matches!(state.status, JobStatus::Ready | JobStatus::Standby);
            match ready && !force {
                true => state.ending = Some(Ending::Stay),
                false => state.cancelled = true,
            }
            state.paused = false;
            state.io_status = IoStatus::Ok;
            Ok(())
        })?;
        self.transaction.wake();
        Ok(())
    }

    /// The check of `block-job-cancel`: a job that was paused is cancelled by force only.
    ///
    /// # Errors
    /// It is paused, or as for [`Job::cancel`].
    pub fn block_cancel(&self, force: bool) -> Result<(), JobError> {
        if self.state().paused && !force {
            return Err(JobError::Paused(self.id.clone()));
        }
        self.cancel(force)
    }

    /// `job-pause`.
    ///
    /// # Errors
    /// It is paused, or too late for that.
    pub fn pause(&self) -> Result<(), JobError> {
        self.ask(JobVerb::Pause, |state| match state.paused {
            true => Err(JobError::AlreadyPaused),
            false => {
                state.paused = true;
                Ok(())
            }
        })
    }

    /// `job-resume`.
    ///
    /// # Errors
    /// It is not paused.
    pub fn resume(&self) -> Result<(), JobError> {
        self.ask(JobVerb::Resume, |state| match state.paused {
            false => Err(JobError::NotPaused),
            true => {
                state.paused = false;
                state.io_status = IoStatus::Ok;
                Ok(())
            }
        })
    }

    /// `block-job-set-speed`: bytes a second; 0: no limit.
    ///
    /// # Errors
    /// It is too late.
    pub fn set_speed(&self, speed: u64) -> Result<(), JobError> {
        self.ask(JobVerb::SetSpeed, |state| {
            state.limiter.set_speed(speed);
            Ok(())
        })
    }

    /// `job-complete`.
    ///
    /// # Errors
    /// It is not ready.
    pub fn complete(&self) -> Result<(), JobError> {
        self.ask(JobVerb::Complete, |state| match state.ending {
            // It is already completing without a pivot.
            Some(Ending::Stay) => Err(JobError::NotCompletable(self.id.clone())),
            _ => {
                state.ending = Some(Ending::Pivot);
                Ok(())
            }
        })
    }

    /// `job-finalize`: of all jobs of its transaction.
    ///
    /// # Errors
    /// It is not pending.
    pub fn finalize(&self) -> Result<(), JobError> {
        self.ask(JobVerb::Finalize, |_| Ok(()))?;
        self.transaction.finalize();
        Ok(())
    }

    /// `job-dismiss`.
    ///
    /// # Errors
    /// It is not over.
    pub fn dismiss(&self) -> Result<(), JobError> {
        self.ask(JobVerb::Dismiss, |_| Ok(()))?;
        self.forget();
        Ok(())
    }

    /// `block-job-change`: how a mirror follows the guest's writes.
    ///
    /// # Errors
    /// It is no mirror, or cannot change in that way.
    pub fn change(&self, mode: CopyMode) -> Result<(), JobError> {
        self.ask(JobVerb::Change, |state| match &state.changer {
            None => Err(JobError::NoChange),
            Some(changer) => changer(mode),
        })
    }

    pub(super) fn forget(&self) {
        self.set_status(JobStatus::Null);
        if let Some(registry) = self.registry.upgrade() {
            registry.remove(&self.id);
        }
    }

    // What its driver, and the mechanism, ask of it.

    pub(super) fn emit(&self, event: JobEvent) {
        (self.emit)(event);
    }

    pub(super) fn set_status(&self, status: JobStatus) {
        {
            let mut state = self.state();
            if state.status == status {
                return;
            }
            state.status = status;
        }
        self.changed.wake();
        self.emit(JobEvent::StatusChange {
            id: self.id.clone(),
            status,
        });
    }

    pub(super) fn block_event(&self) -> BlockJobEvent {
        let state = self.state();
        BlockJobEvent {
            kind: self.kind,
            device: self.id.clone(),
            len: state.total,
            offset: state.current,
            speed: state.limiter.speed(),
            error: state.error.clone(),
        }
    }

    pub(super) fn is_auto_finalize(&self) -> bool {
        self.auto_finalize
    }

    pub(super) fn is_auto_dismiss(&self) -> bool {
        self.auto_dismiss
    }

    /// Remembers why it fails.
    pub(super) fn fail(&self, error: &io::Error) {
        self.state().error.get_or_insert_with(|| text(error));
    }

    /// Cancels it because another job of its transaction failed.
    pub(super) fn cancel_with_others(&self) {
        let mut state = self.state();
        state.cancelled = true;
        state.paused = false;
        state.version += 1;
        drop(state);
        self.changed.wake();
    }

    /// Makes its driver look at what has changed.
    pub(super) fn nudge(&self) {
        let mut state = self.state();
        state.version += 1;
        drop(state);
        self.changed.wake();
    }

    /// Whether it is to end with nothing done.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.state().cancelled
    }

    /// Waits until it is to end with nothing done.
    pub async fn until_cancelled(&self) {
        self.changed
            .wait_for(|| self.is_cancelled().then_some(()))
            .await;
    }

    /// How it is to end, being ready, once it was told to.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.state().ending
    }

    /// Whether it should rest: the driver brings its requests to an end, and calls
    /// [`Job::pause_point`].
    #[must_use]
    pub fn is_pausing(&self) -> bool {
        self.state().paused
    }

    /// Rests while it is paused.
    ///
    /// # Errors
    /// It is to end with nothing done (`ECANCELED`).
    pub async fn pause_point(&self) -> io::Result<()> {
        let (pausing, before) = {
            let state = self.state();
            (state.paused && !state.cancelled, state.status)
        };
        if pausing {
            self.set_status(match before {
                JobStatus::Ready => JobStatus::Standby,
                _ => JobStatus::Paused,
            });
            self.changed
                .wait_for(|| (!self.is_pausing() || self.is_cancelled()).then_some(()))
                .await;
            self.set_status(before);
        }
        match self.is_cancelled() {
            true => Err(cancelled()),
            false => Ok(()),
        }
    }

    /// Changes with every request to the job; see [`Job::changed_since`].
    #[must_use]
    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// Waits until something was asked of the job after `version` was.
    pub async fn changed_since(&self, version: u64) {
        self.changed
            .wait_for(|| (self.version() != version).then_some(()))
            .await;
    }

    /// From now on it could complete: status `ready`, and the event.
    pub fn ready(&self) {
        self.set_status(JobStatus::Ready);
        self.emit(JobEvent::Ready(self.block_event()));
    }

    /// Tells what is done, and how much is left, in bytes or any other unit.
    pub fn set_progress(&self, current: u64, left: u64) {
        let mut state = self.state();
        state.current = current;
        state.total = current.saturating_add(left);
    }

    pub(super) fn set_actively_synced(&self, synced: bool) {
        self.state().actively_synced = Some(synced);
    }

    /// Something failed: tells the outside, and what to do. When it is to rest, the driver comes
    /// to a [`Job::pause_point`], and tries again afterwards.
    pub fn failed(&self, policy: OnError, operation: Operation, error: &io::Error) -> ErrorAction {
        let action = policy.action(error);
        if action == ErrorAction::Stop {
            let mut state = self.state();
            // A job that is being cancelled does not rest any more.
            state.paused = !state.cancelled;
            state.io_status = match is_no_space(error) {
                true => IoStatus::Nospace,
                false => IoStatus::Failed,
            };
        }
        self.emit(JobEvent::Error {
            device: self.id.clone(),
            operation,
            action,
        });
        action
    }

    /// How many bytes a step should have at most, for the limit of speed.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.state().limiter.step()
    }

    /// When the next step may begin, if not at once.
    #[must_use]
    pub fn limited_until(&self) -> Option<Instant> {
        self.state().limiter.wait_until(Instant::now())
    }

    /// A step of so many bytes begins.
    pub fn begin_step(&self, bytes: u64) {
        self.state().limiter.take(bytes, Instant::now());
    }

    /// So many bytes of a step were not moved after all.
    pub fn give_back(&self, bytes: u64) {
        self.state().limiter.give_back(bytes);
    }
}
