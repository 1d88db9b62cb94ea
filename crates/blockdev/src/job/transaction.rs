//! Jobs that complete together or not at all (`completion-mode` grouped).

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::handle::Job;
use super::signal::Signal;

/// Jobs that complete together or not at all. A job that is in none has one of its own.
#[derive(Default)]
pub struct Transaction {
    state: Mutex<State>,
    changed: Signal,
}

#[derive(Default)]
struct State {
    members: usize,
    /// Members that have done their work.
    waiting: usize,
    /// Members whose changes of the graph are made.
    prepared: usize,
    failed: bool,
    /// Members that wait for `job-finalize`.
    manual: bool,
    finalized: bool,
}

/// A member failed: none completes.
pub(super) struct Failed;

impl Transaction {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn join(&self, manual: bool) {
        let mut state = self.state();
        state.members += 1;
        state.manual |= manual;
    }

    pub(super) fn wake(&self) {
        self.changed.wake();
    }

    pub(super) fn finalize(&self) {
        self.state().finalized = true;
        self.changed.wake();
    }

    /// A member failed.
    pub(super) fn fail(&self) {
        self.state().failed = true;
        self.changed.wake();
    }

    pub(super) fn has_failed(&self) -> bool {
        self.state().failed
    }

    /// Waits for `done`, or for a failure: one of the others', or `job` being cancelled.
    async fn wait(&self, job: &Job, done: impl Fn(&State) -> bool) -> Result<(), Failed> {
        self.changed
            .wait_for(|| {
                let state = self.state();
                if state.failed || job.is_cancelled() {
                    return Some(Err(Failed));
                }
                done(&state).then_some(Ok(()))
            })
            .await
    }

    /// `job` has done its work: waits until all others have.
    pub(super) async fn worked(&self, job: &Job) -> Result<(), Failed> {
        self.state().waiting += 1;
        self.changed.wake();
        self.wait(job, |state| state.waiting == state.members).await
    }

    /// Waits until all may change the graph.
    pub(super) async fn finalized(&self, job: &Job) -> Result<(), Failed> {
        self.wait(job, |state| state.finalized || !state.manual)
            .await
    }

    /// `job` has changed the graph: waits until all others have.
    pub(super) async fn prepared(&self) -> Result<(), Failed> {
        self.state().prepared += 1;
        self.changed.wake();
        self.changed
            .wait_for(|| {
                let state = self.state();
                if state.prepared == state.members {
                    return Some(Ok(()));
                }
                state.failed.then_some(Err(Failed))
            })
            .await
    }

    /// Waits until a member failed.
    pub(super) async fn until_failed(&self) {
        self.changed
            .wait_for(|| self.has_failed().then_some(()))
            .await;
    }
}
