//! Adaptive polling: looking for work for a moment before going to sleep.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::executor::{Local, local};

/// The window that polling starts with.
const FIRST_WINDOW: Duration = Duration::from_micros(4);
/// How often a poll loop looks at its sources between two looks at the clock.
const ROUNDS: u32 = 8;

/// Something to look at while the executor would sleep: a virtio queue, say, whose driver need
/// then not notify.
///
/// The methods run between tasks; they must not add or remove sources.
pub trait PollSource {
    /// Polling begins: suppress notifications.
    fn begin(&mut self);
    /// Whether there is work. The source has then woken its task.
    fn poll(&mut self) -> bool;
    /// Polling ends: enable notifications again. Whether work has come meanwhile; the source has
    /// then woken its task.
    fn end(&mut self) -> bool;
}

struct Hook<F>(F);

impl<F: FnMut() -> bool> PollSource for Hook<F> {
    fn begin(&mut self) {}

    fn poll(&mut self) -> bool {
        (self.0)()
    }

    fn end(&mut self) -> bool {
        (self.0)()
    }
}

/// Keeps a source being polled; dropping it ends that.
#[must_use = "dropping it removes the source"]
pub struct PollHook {
    local: Rc<Local>,
    id: u64,
}

impl Drop for PollHook {
    fn drop(&mut self) {
        self.local.polling.remove(self.id);
    }
}

/// Has `poll` called in a loop while this thread would sleep, as
/// [`IoThreadConfig::poll_max`](crate::IoThreadConfig::poll_max) allows. It returns whether there
/// is work, and has then woken its task.
///
/// # Panics
/// Outside of an I/O thread.
#[track_caller]
pub fn poll_hook(poll: impl FnMut() -> bool + 'static) -> PollHook {
    poll_source(Hook(poll))
}

/// As [`poll_hook`], for a source that wants to know when polling begins and ends.
///
/// # Panics
/// Outside of an I/O thread.
#[track_caller]
pub fn poll_source(source: impl PollSource + 'static) -> PollHook {
    let local = local();
    let id = local.polling.add(Rc::new(RefCell::new(source)));
    PollHook { local, id }
}

type Source = Rc<RefCell<dyn PollSource>>;

/// The sources of a thread, and how long polling them is worth while.
pub(crate) struct Polling {
    max: Duration,
    window: Cell<Duration>,
    sources: RefCell<Vec<(u64, Source)>>,
    next: Cell<u64>,
}

impl Polling {
    pub(crate) fn new(max: Duration) -> Self {
        Self {
            max,
            window: Cell::new(Duration::ZERO),
            sources: RefCell::default(),
            next: Cell::new(0),
        }
    }

    fn add(&self, source: Source) -> u64 {
        let id = self.next.replace(self.next.get() + 1);
        self.sources.borrow_mut().push((id, source));
        id
    }

    fn remove(&self, id: u64) {
        let removed = {
            let mut sources = self.sources.borrow_mut();
            let place = sources.iter().position(|(other, _)| *other == id);
            place.map(|place| sources.remove(place))
        };
        drop(removed);
    }

    pub(crate) fn clear(&self) {
        let sources = std::mem::take(&mut *self.sources.borrow_mut());
        drop(sources);
    }

    pub(crate) fn is_enabled(&self) -> bool {
        !self.max.is_zero()
    }

    /// How long to poll now; zero after a time without work.
    pub(crate) fn window(&self) -> Duration {
        self.window.get()
    }

    /// Whether any source says so. All are asked.
    fn any(&self, mut ask: impl FnMut(&mut dyn PollSource) -> bool) -> bool {
        let mut any = false;
        let mut place = 0;
        loop {
            let source = self.sources.borrow().get(place).map(|s| Rc::clone(&s.1));
            let Some(source) = source else {
                return any;
            };
            any |= ask(&mut *source.borrow_mut());
            place += 1;
        }
    }

    /// Polls until there is work (true) or `end` has come. `other` tells of work from elsewhere.
    pub(crate) fn poll(&self, end: Instant, mut other: impl FnMut() -> bool) -> bool {
        self.any(|source| {
            source.begin();
            false
        });
        let busy = 'polling: loop {
            for _ in 0..ROUNDS {
                if self.any(|source| source.poll()) || other() {
                    break 'polling true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= end {
                break false;
            }
        };
        let late = self.any(|source| source.end());
        busy || late
    }

    /// Learns from a wait that polling, if there was any, did not shorten: had the window been a
    /// little longer, polling would have seen the work; had it to be longer than is allowed, it
    /// would only cost.
    pub(crate) fn learn(&self, waited: Duration) {
        let window = self.window.get();
        self.window.set(if waited > self.max {
            Duration::ZERO
        } else if window.is_zero() {
            FIRST_WINDOW.min(self.max)
        } else {
            (window * 2).min(self.max)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_grows_with_short_waits_and_ends_with_a_long_one() {
        let polling = Polling::new(Duration::from_micros(20));
        assert!(polling.window().is_zero());
        let windows: Vec<u128> = (0..5)
            .map(|_| {
                polling.learn(Duration::from_micros(15));
                polling.window().as_micros()
            })
            .collect();
        assert_eq!(windows, [4, 8, 16, 20, 20]);
        polling.learn(Duration::from_micros(21));
        assert!(polling.window().is_zero());
    }

    #[test]
    fn source_is_told_of_begin_and_end() {
        struct Log(Rc<RefCell<Vec<&'static str>>>, u32);
        impl PollSource for Log {
            fn begin(&mut self) {
                self.0.borrow_mut().push("begin");
            }
            fn poll(&mut self) -> bool {
                self.1 += 1;
                if self.1 == 3 {
                    self.0.borrow_mut().push("work");
                }
                self.1 == 3
            }
            fn end(&mut self) -> bool {
                self.0.borrow_mut().push("end");
                false
            }
        }
        let polling = Polling::new(Duration::from_secs(1));
        let log = Rc::new(RefCell::new(Vec::new()));
        let id = polling.add(Rc::new(RefCell::new(Log(Rc::clone(&log), 0))));
        let end = Instant::now() + Duration::from_secs(10);
        assert!(polling.poll(end, || false));
        assert_eq!(*log.borrow(), ["begin", "work", "end"]);
        polling.remove(id);
        assert!(!polling.poll(Instant::now(), || false));
        assert!(polling.poll(Instant::now(), || true));
        assert_eq!(log.borrow().len(), 3);
    }
}
