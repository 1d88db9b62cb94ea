//! I/O threads: starting, pinning and ending them.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use crate::executor::{Local, try_local};
use crate::reactor::{self, Pool};
use crate::shared::{Message, Shared};
use crate::sync::oneshot;
use crate::time::TimerHandle;
use crate::{EventError, Remote};

/// Environment variable that, set to `1`, makes I/O threads do without io_uring.
pub const NO_IO_URING: &str = "VIREO_NO_IO_URING";

/// How an I/O thread is to be.
#[derive(Debug, Clone)]
pub struct IoThreadConfig {
    /// Its name, as the user knows it; the system shows the first 15 bytes.
    pub name: String,
    /// Host processors it may run on; `None`: any.
    pub cpus: Option<Vec<usize>>,
    /// Longest time to look for work in a loop before sleeping; zero: never. How long it really
    /// polls adapts to how soon work comes.
    pub poll_max: Duration,
    /// Bytes of stack, of which the host gives those that are used; tasks live on the heap.
    pub stack_size: usize,
    /// Whether to use io_uring where the host allows it. False when [`NO_IO_URING`] is set.
    pub io_uring: bool,
}

impl IoThreadConfig {
    /// Not pinned, not polling, 8 MiB of stack: a request goes down a chain of images, each of which
    /// takes some of it. What is not used is not there.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            cpus: None,
            poll_max: Duration::ZERO,
            stack_size: 8 << 20,
            io_uring: std::env::var_os(NO_IO_URING).is_none_or(|value| value != "1"),
        }
    }
}

/// A handle to an I/O thread. Clones are the same thread. It ends when the last handle is dropped,
/// or by [`IoThread::shutdown`]; its tasks are then cancelled.
#[derive(Clone)]
pub struct IoThread(Arc<Handle>);

pub(crate) struct Handle {
    shared: Arc<Shared>,
    facts: OnceLock<Facts>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread tells when it is set up.
#[derive(Clone, Copy)]
struct Facts {
    tid: i32,
    reactor: &'static str,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.ask_to_quit();
    }
}

impl IoThread {
    /// Starts a thread.
    ///
    /// # Errors
    /// The system refuses the thread, its processors, or any way to wait for I/O.
    pub fn spawn(config: IoThreadConfig) -> Result<IoThread, EventError> {
        let name = config.name.clone();
        let refused = |source| EventError::Spawn {
            name: name.clone(),
            source,
        };
        let shared = Shared::new(name.clone(), !config.io_uring).map_err(refused)?;
        let handle = Arc::new(Handle {
            shared: Arc::new(shared),
            facts: OnceLock::new(),
            thread: Mutex::new(None),
        });
        let (sender, receiver) = mpsc::sync_channel(1);
        let shared = Arc::clone(&handle.shared);
        let weak = Arc::downgrade(&handle);
        let thread = thread::Builder::new()
            .name(name.clone())
            .stack_size(config.stack_size)
            .spawn(move || {
                let local = match set_up(&config, shared, weak) {
                    Ok(local) => local,
                    Err(error) => {
                        let _ = sender.send(Err(error));
                        return;
                    }
                };
                let _ = sender.send(Ok(Facts {
                    tid: nix::unistd::gettid().as_raw(),
                    reactor: local.reactor_name(),
                }));
                local.run();
            })
            .map_err(refused)?;
        let ended = || Err(refused(io::Error::other("the thread ended")));
        let facts = receiver.recv().unwrap_or_else(|_| ended())?;
        let _ = handle.facts.set(facts);
        *handle.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Self(handle))
    }

    /// The I/O thread that this code runs on. `None` elsewhere, and when no handle is left.
    pub fn current() -> Option<IoThread> {
        try_local()?.handle.upgrade().map(Self)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.shared.name
    }

    /// The kernel's thread id.
    pub fn tid(&self) -> i32 {
        self.0.facts.get().map_or(0, |facts| facts.tid)
    }

    /// What it waits with: `io_uring` or `epoll`.
    pub fn reactor(&self) -> &'static str {
        self.0.facts.get().map_or("", |facts| facts.reactor)
    }

    /// Runs `make` on the thread, and the future it makes, which never leaves it.
    pub fn spawn_task<T, M, F>(&self, make: M) -> Remote<T>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = oneshot();
        let (remote, control) = Remote::new(receiver);
        let call = move || {
            let Some(local) = try_local() else { return };
            if control.is_cancelled() {
                return;
            }
            let future = make();
            let task = local.spawn(async move {
                // The future is gone when the result is seen.
                let result = future.await;
                sender.send(result);
            });
            control.started(task);
        };
        // A thread that has ended drops the call, and with it the sender.
        let _ = self.0.shared.post(Message::Call(Box::new(call)));
        remote
    }

    /// A one-shot timer, not yet armed. `callback` runs on the thread when the deadline comes; what
    /// it returns is the next deadline, unless the timer was set meanwhile.
    pub fn timer(&self, callback: impl FnMut() -> Option<Instant> + Send + 'static) -> TimerHandle {
        let (timer, task) = TimerHandle::new(callback);
        self.spawn_task(task).detach();
        timer
    }

    /// Cancels the tasks and waits until they, and what the kernel does for them, have ended. On
    /// the thread itself it does not wait.
    pub fn shutdown(&self) {
        self.0.shared.ask_to_quit();
        let own = |local: Rc<Local>| Arc::ptr_eq(&local.shared, &self.0.shared);
        if try_local().is_some_and(own) {
            return;
        }
        let mut thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A panic has been reported when it happened.
            let _ = thread.join();
        }
    }
}

fn set_up(
    config: &IoThreadConfig,
    shared: Arc<Shared>,
    handle: Weak<Handle>,
) -> Result<Rc<Local>, EventError> {
    block_signals();
    // Timers shall not be late for the sake of batching (the default is 50 µs). Not vital.
    let _ = nix::sys::prctl::set_timerslack(1);
    if let Some(cpus) = &config.cpus {
        pin(cpus).map_err(|source| EventError::Pin {
            name: config.name.clone(),
            cpus: cpus.clone(),
            source,
        })?;
    }
    let pool = Pool::new(&config.name);
    let reactor = reactor::new(&shared, &pool, config.cpus.as_deref()).map_err(|source| {
        EventError::Reactor {
            name: config.name.clone(),
            source,
        }
    })?;
    Ok(Local::new(shared, handle, config.poll_max, pool, reactor))
}

/// Signals are for the control thread; those that report a fault of this one stay.
fn block_signals() {
    let mut signals = SigSet::all();
    for fault in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
        Signal::SIGABRT,
        Signal::SIGTRAP,
        Signal::SIGSYS,
    ] {
        signals.remove(fault);
    }
    if let Err(error) = signals.thread_block() {
        log::warn!("cannot block signals: {error}");
    }
}

fn pin(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}
