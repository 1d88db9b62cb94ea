//! Tasks: on the same thread, and from other threads.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use async_task::Task;

use crate::TaskGone;
use crate::executor::local;
use crate::sync::{OneshotReceiver, oneshot};

/// A task of this thread. Awaiting it gives its output; dropping it cancels it.
///
/// # Panics
/// Awaiting it panics if the task did.
#[must_use = "dropping it cancels the task; `detach` lets it run"]
pub struct LocalTask<T>(Task<T>);

/// Starts a task on this I/O thread. It first runs when the current one waits.
///
/// # Panics
/// Outside of an I/O thread.
#[track_caller]
pub fn spawn_local<F: Future + 'static>(future: F) -> LocalTask<F::Output> {
    LocalTask(local().spawn(future))
}

impl<T> LocalTask<T> {
    /// Lets the task run by itself.
    pub fn detach(self) {
        self.0.detach();
    }

    /// Cancels the task and waits until its future is dropped. The output, if it was faster.
    pub async fn cancel(self) -> Option<T> {
        self.0.cancel().await
    }

    /// Whether awaiting it would not wait.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> Future for LocalTask<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// Runs `call`, which may block, on a helper thread.
///
/// # Errors
/// It panicked, or there is no helper thread to be had.
///
/// # Panics
/// Outside of an I/O thread.
pub async fn unblock<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TaskGone> {
    let (sender, receiver) = oneshot();
    let pool = local().pool.clone();
    if let Err(error) = pool.call(Box::new(move || sender.send(call()))) {
        log::error!("cannot start a helper thread: {error}");
    }
    receiver.await
}

/// How far a task started from another thread has come.
enum Progress {
    /// The thread has not yet seen it.
    Posted,
    Running(Task<()>),
    Detached,
    Cancelled,
}

#[derive(Clone)]
pub(crate) struct Control(Arc<Mutex<Progress>>);

impl Control {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancels, unless detached.
    fn cancel(&self) {
        let mut progress = self.lock();
        if matches!(*progress, Progress::Detached) {
            return;
        }
        let old = std::mem::replace(&mut *progress, Progress::Cancelled);
        drop(progress);
        // Outside of the lock: dropping a task schedules it.
        drop(old);
    }

    /// Detaches, unless cancelled.
    fn detach(&self) {
        let mut progress = self.lock();
        if matches!(*progress, Progress::Cancelled) {
            return;
        }
        if let Progress::Running(task) = std::mem::replace(&mut *progress, Progress::Detached) {
            task.detach();
        }
    }

    /// Whether the thread need not begin.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(*self.lock(), Progress::Cancelled)
    }

    pub(crate) fn started(&self, task: Task<()>) {
        let mut progress = self.lock();
        match *progress {
            Progress::Posted => *progress = Progress::Running(task),
            Progress::Detached => task.detach(),
            Progress::Running(_) | Progress::Cancelled => {
                drop(progress);
                drop(task);
            }
        }
    }
}

/// A task on an I/O thread, held by another. Join it from any thread, or await it on another I/O
/// thread. Dropping it cancels the task.
#[must_use = "dropping it cancels the task; `detach` lets it run"]
pub struct Remote<T> {
    result: OneshotReceiver<T>,
    control: Cancel,
}

/// Cancels when dropped.
struct Cancel(Control);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl<T> Remote<T> {
    pub(crate) fn new(result: OneshotReceiver<T>) -> (Self, Control) {
        let control = Control(Arc::new(Mutex::new(Progress::Posted)));
        let remote = Self {
            result,
            control: Cancel(control.clone()),
        };
        (remote, control)
    }

    /// Blocks the thread until the task has ended. Not on the task's own thread, which would wait
    /// for itself.
    ///
    /// # Errors
    /// The task was cancelled or panicked, or its thread has ended.
    pub fn join(self) -> Result<T, TaskGone> {
        self.result.wait()
    }

    /// Whether joining would not wait.
    pub fn is_finished(&self) -> bool {
        self.result.is_finished()
    }

    /// Lets the task run by itself.
    pub fn detach(self) {
        self.control.0.detach();
    }

    /// Asks that the task's future be dropped at its next wait. Join it to know when that is done.
    pub fn cancel(&self) {
        self.control.0.cancel();
    }
}

impl<T> Future for Remote<T> {
    type Output = Result<T, TaskGone>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result).poll(cx)
    }
}
