//! What registers, control queue and workers of a card share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bus::Interrupt;

use super::filter::Filter;
use super::model::{Model, Settings};

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What workers act by: a snapshot of the settings.
pub(super) struct View {
    pub link_up: bool,
    /// Pairs in use.
    pub queue_pairs: u16,
    pub filter: Filter,
}

pub(super) struct Shared {
    settings: Mutex<Settings>,
    /// Negotiated features; 0 while the device is not active.
    features: AtomicU64,
    view: Mutex<Arc<View>>,
    /// Counts views, so that a worker sees with one load that its own is current.
    generation: AtomicU64,
    /// The workers that run.
    wakes: Mutex<Vec<Arc<Wake>>>,
    config_changed: Mutex<Option<Interrupt>>,
}

impl Shared {
    pub fn new(model: &Model) -> Arc<Self> {
        let settings = Settings::new(model);
        Arc::new(Self {
            view: Mutex::new(Arc::new(view(&settings, 0))),
            settings: Mutex::new(settings),
            features: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            wakes: Mutex::default(),
            config_changed: Mutex::default(),
        })
    }

    /// The settings; a change is seen by the workers after [`Shared::publish`].
    pub fn settings(&self) -> MutexGuard<'_, Settings> {
        locked(&self.settings)
    }

    pub fn features(&self) -> u64 {
        self.features.load(Ordering::Acquire)
    }

    /// The device became active, or (without features) ceased to be.
    pub fn activate(&self, features: u64, config_changed: Option<Interrupt>) {
        self.features.store(features, Ordering::Release);
        *locked(&self.config_changed) = config_changed;
        self.publish(&self.settings());
    }

    /// Lets the workers act by `settings`.
    pub fn publish(&self, settings: &Settings) {
        *locked(&self.view) = Arc::new(view(settings, self.features()));
        self.generation.fetch_add(1, Ordering::Release);
        for wake in &*locked(&self.wakes) {
            wake.signal();
        }
    }

    /// Tells the driver that the configuration space changed.
    pub fn interrupt(&self) {
        if let Some(interrupt) = &*locked(&self.config_changed) {
            interrupt.trigger();
        }
    }

    /// The number of the current view; ask for it before the view.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn view(&self) -> Arc<View> {
        Arc::clone(&locked(&self.view))
    }

    /// `wake` is signalled at every change from now on.
    pub fn add(&self, wake: &Arc<Wake>) {
        locked(&self.wakes).push(Arc::clone(wake));
    }

    pub fn remove(&self, wake: &Arc<Wake>) {
        locked(&self.wakes).retain(|other| !Arc::ptr_eq(other, wake));
    }
}

fn view(settings: &Settings, features: u64) -> View {
    View {
        link_up: settings.link_up,
        queue_pairs: settings.queue_pairs,
        filter: settings.filter(features),
    }
}

/// Wakes one worker from any thread.
#[derive(Default)]
pub(super) struct Wake {
    signalled: AtomicBool,
    stopped: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake {
    /// Lets [`Wake::poll`] return once.
    pub fn signal(&self) {
        if !self.signalled.swap(true, Ordering::AcqRel)
            && let Some(task) = &*locked(&self.task)
        {
            task.wake_by_ref();
        }
    }

    /// Asks the worker to end.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.signal();
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Waits for a signal.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        {
            let mut task = locked(&self.task);
            if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                *task = Some(cx.waker().clone());
            }
        }
        // After the waker is in its place: a signal from now on finds it.
        if self.signalled.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}
