//! Doing what the bits of a bitmap say: steps at the same time, within the limit of speed, with
//! pauses, and with policies for errors.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::graph::Vertex;
use block::{BlockStatus, Node};
use event::{LocalTask, Notify, select2, sleep, sleep_until};

use super::LocalFuture;
use super::copy::Failure;
use super::handle::{Job, cancelled};
use super::ranges::{Locked, RangeLocks};
use super::status::{ErrorAction, OnError, Operation};
use crate::bitmap::Bits;

/// After an error that is ignored, a job does nothing for this long.
const BREATH: Duration = Duration::from_millis(100);
/// What is locked by others is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What is to be done.
pub(super) trait Work: 'static {
    /// Where there is something to do.
    fn bits(&self) -> &Bits;

    /// Who is where.
    fn locks(&self) -> &RangeLocks;

    /// Does it for a range, which is locked and whose bits were set, and clears them; what it did
    /// not do is set when it fails. Returns how many bytes were moved.
    fn step(&self, range: Range<u64>) -> LocalFuture<'_, Result<u64, Failure>>;

    /// What to do about errors.
    fn policy(&self, operation: Operation) -> OnError;

    /// Whether the work has become useless.
    ///
    /// # Errors
    /// Why.
    fn check(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether what failed is tried again when errors are ignored.
    fn tries_again(&self) -> bool {
        true
    }
}

/// How much is done at the same time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Steps.
    pub(super) parallel: usize,
    /// Bytes of a step.
    pub(super) chunk: u64,
}

/// A step that came to its end, and how.
type Ended = (Range<u64>, Result<u64, Failure>);

/// Steps on their way.
#[derive(Default)]
struct Flight {
    tasks: RefCell<Vec<LocalTask<()>>>,
    ended: RefCell<Vec<Ended>>,
    count: Cell<usize>,
    bytes: Cell<u64>,
    landed: Notify,
}

/// Does what the bits say. When it is dropped, steps on their way are given up.
pub(super) struct Pump<W> {
    job: Arc<Job>,
    work: Arc<W>,
    pace: Pace,
    flight: Rc<Flight>,
    cursor: u64,
    done: u64,
    /// An error that is ignored.
    ignored: Option<io::Error>,
    rest_until: Option<Instant>,
}

impl<W: Work> Pump<W> {
    pub(super) fn new(job: &Arc<Job>, work: &Arc<W>, pace: Pace) -> Self {
        Self {
            job: Arc::clone(job),
            work: Arc::clone(work),
            pace,
            flight: Rc::default(),
            cursor: 0,
            done: job.info().current_progress,
            ignored: None,
            rest_until: None,
        }
    }

    /// Works until `enough` says so of the bytes that are left, those on their way among them; then
    /// lets the steps on their way come to their ends.
    ///
    /// # Errors
    /// A step failed, and the policy is to report it; or the job was cancelled.
    pub(super) async fn run(&mut self, enough: impl Fn(u64) -> bool) -> io::Result<()> {
        let mut landing = false;
        loop {
            let version = self.job.version();
            // What failed is to be done again.
            landing &= self.reap()?;
            self.work.check()?;
            if self.job.is_cancelled() {
                return Err(cancelled());
            }
            let flying = self.flight.count.get() != 0;
            if self.job.is_pausing() {
                match flying {
                    true => self.wait(version, None).await,
                    false => self.job.pause_point().await?,
                }
                continue;
            }
            let left = self.work.bits().count();
            let left = left.saturating_add(self.flight.bytes.get());
            self.job.set_progress(self.done, left);
            landing = landing || enough(left);
            let until = match (landing, flying) {
                (true, false) => return Ok(()),
                (true, true) => None,
                (false, _) => self.begin_steps(),
            };
            self.wait(version, until).await;
        }
    }

    /// As [`Pump::run`], until nothing is left.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        self.run(|left| left == 0).await?;
        self.ignored.take().map_or(Ok(()), Err)
    }

    /// Waits for the end of a step, for something that is asked of the job, or for a time.
    async fn wait(&self, version: u64, until: Option<Instant>) {
        // Steps run on this thread too, even if there is news at once.
        event::yield_now().await;
        let news = select2(
            self.flight.landed.notified(),
            self.job.changed_since(version),
        );
        match until {
            Some(until) => _ = select2(news, sleep_until(until)).await,
            None => _ = news.await,
        }
    }

    /// Waits a while, or until something is asked of the job.
    pub(super) async fn idle(&self, duration: Duration) {
        let version = self.job.version();
        if self.job.ending().is_none() && !self.job.is_pausing() && !self.job.is_cancelled() {
            select2(self.job.changed_since(version), sleep(duration)).await;
        }
    }

    /// Begins as many steps as may be; when to try again, if not at the end of one.
    fn begin_steps(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if let Some(until) = self.rest_until.filter(|until| *until > now) {
            return Some(until);
        }
        while self.flight.count.get() < self.pace.parallel {
            if let Some(until) = self.job.limited_until() {
                return Some(until);
            }
            match self.next_range() {
                Some((range, locked)) => self.begin_step(range, locked),
                // The rest is locked, or there is none. Steps tell of their ends; guests' writes
                // do not. The search may have taken long, so it is not counted.
                None if self.flight.count.get() == 0 => {
                    return Instant::now().checked_add(LOOK_AGAIN);
                }
                None => return None,
            }
        }
        None
    }

    fn begin_step(&self, range: Range<u64>, locked: Locked) {
        let len = range.end - range.start;
        self.job.begin_step(len);
        let (work, flight) = (Arc::clone(&self.work), Rc::clone(&self.flight));
        flight.count.set(flight.count.get() + 1);
        flight.bytes.set(flight.bytes.get() + len);
        let task = event::spawn_local(async move {
            let result = work.step(range.clone()).await;
            drop(locked);
            flight.count.set(flight.count.get() - 1);
            flight.bytes.set(flight.bytes.get() - len);
            flight.ended.borrow_mut().push((range, result));
            flight.landed.notify();
        });
        self.flight.tasks.borrow_mut().push(task);
    }

    /// Something that is to be done and that nobody does, from the cursor on, and then from the
    /// beginning.
    fn next_range(&mut self) -> Option<(Range<u64>, Locked)> {
        let start = self.cursor;
        self.next_within(start..u64::MAX)
            .or_else(|| self.next_within(0..start))
    }

    fn next_within(&mut self, mut within: Range<u64>) -> Option<(Range<u64>, Locked)> {
        let granularity = self.work.bits().granularity();
        let most = self.pace.chunk.min(self.job.step()).max(granularity);
        let most = most - most % granularity;
        while !within.is_empty() {
            let run = self.work.bits().next(within.clone())?;
            let cut = run.start.saturating_add(most);
            let mut range = run.start..run.end.min(cut - cut % granularity);
            if let Some(held) = self.work.locks().first_held(&range) {
                if held.start <= range.start {
                    within.start = held.end;
                    continue;
                }
                range.end = held.start;
            }
            within.start = range.end;
            if let Some(locked) = self.work.locks().try_lock(&range) {
                self.cursor = range.end;
                return Some((range, locked));
            }
        }
        None
    }

    /// Takes note of the steps that ended: whether all succeeded.
    fn reap(&mut self) -> io::Result<bool> {
        let mut tasks = self.flight.tasks.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        drop(tasks);
        let ended = std::mem::take(&mut *self.flight.ended.borrow_mut());
        let (mut result, mut all) = (Ok(()), true);
        for (range, step) in ended {
            let len = range.end - range.start;
            match step {
                Ok(moved) => {
                    self.done = self.done.saturating_add(len);
                    self.job.give_back(len.saturating_sub(moved));
                }
                Err(failure) => {
                    self.job.give_back(len);
                    all = false;
                    result = result.and(self.failed(&range, failure));
                }
            }
        }
        result.map(|()| all)
    }

    fn failed(&mut self, range: &Range<u64>, failure: Failure) -> io::Result<()> {
        let Failure { operation, error } = failure;
        // One error is enough to rest.
        if self.job.is_pausing() {
            return Ok(());
        }
        let policy = self.work.policy(operation);
        match self.job.failed(policy, operation, &error) {
            ErrorAction::Report => return Err(error),
            ErrorAction::Stop => (),
            ErrorAction::Ignore if self.work.tries_again() => {
                self.rest_until = Instant::now().checked_add(BREATH);
            }
            ErrorAction::Ignore => {
                self.work.bits().clear(range.clone());
                self.ignored.get_or_insert(error);
            }
        }
        Ok(())
    }

    /// Sets the bits of what has a status that `wanted` wants.
    pub(super) async fn scan(
        &self,
        node: &Vertex,
        wanted: impl AsyncFn(&BlockStatus, Range<u64>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let (size, mut at, mut steps) = (node.size(), 0, 0_u32);
        while at < size {
            steps = steps.wrapping_add(1);
            if steps.is_multiple_of(64) {
                // What is in the caches does not wait.
                event::yield_now().await;
            }
            let status = async || node.block_status(at, size - at).await;
            let status = self.retry(Operation::Read, status).await?;
            let end = at.saturating_add(status.len.max(1));
            if wanted(&status, at..end.min(size)).await? {
                self.work.bits().set(at..end);
            }
            at = end;
        }
        Ok(())
    }

    /// Does something that may fail, as the policy for the operation says, until it succeeds.
    /// Nothing may be on its way.
    pub(super) async fn retry<T>(
        &self,
        operation: Operation,
        mut attempt: impl AsyncFnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let policy = self.work.policy(operation);
            match self.job.failed(policy, operation, &error) {
                ErrorAction::Report => return Err(error),
                ErrorAction::Stop => self.job.pause_point().await?,
                ErrorAction::Ignore => sleep(BREATH).await,
            }
        }
    }
}
