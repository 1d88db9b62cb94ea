//! The machine's time: what PIT, RTC and ACPI timer count, and the timers that they arm.
//!
//! It stands still while the machine is paused, so that a guest that was stopped for an hour
//! does not see an hour's worth of timer interrupts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chipset::{Clock, Timer, TimerHost, TimerTarget};
use event::{IoThread, TimerHandle};

/// The clock of one machine; its timers fire on an I/O thread.
pub(crate) struct VirtualClock {
    thread: IoThread,
    state: Mutex<State>,
}

struct State {
    /// When time 0 was, moved on by each pause.
    epoch: Instant,
    /// The time at which the clock stands still.
    stopped_at: Option<u64>,
    timers: Vec<Weak<Armed>>,
}

/// One device's timer.
struct Armed {
    handle: TimerHandle,
    deadline: Mutex<Option<u64>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn now(&self) -> u64 {
        self.stopped_at
            .unwrap_or_else(|| u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Sets the host's timer for a deadline of the virtual clock; `None` while it stands still.
    fn arm(&self, timer: &Armed) {
        match *locked(&timer.deadline) {
            Some(deadline) if self.stopped_at.is_none() => {
                timer
                    .handle
                    .arm(self.epoch + Duration::from_nanos(deadline));
            }
            _ => timer.handle.disarm(),
        }
    }
}

impl VirtualClock {
    /// A clock that stands still at 0.
    pub(crate) fn new(thread: IoThread) -> Arc<Self> {
        let state = State {
            epoch: Instant::now(),
            stopped_at: Some(0),
            timers: Vec::new(),
        };
        Arc::new(Self {
            thread,
            state: Mutex::new(state),
        })
    }

    /// Stops the clock.
    pub(crate) fn stop(&self) {
        let mut state = locked(&self.state);
        state.stopped_at = Some(state.now());
        state.timers.retain(|timer| timer.strong_count() != 0);
        for timer in state.timers.iter().filter_map(Weak::upgrade) {
            timer.handle.disarm();
        }
    }

    /// Lets the clock go on where it stopped.
    pub(crate) fn start(&self) {
        let mut state = locked(&self.state);
        if let Some(now) = state.stopped_at.take() {
            let now_at = Instant::now();
            state.epoch = now_at
                .checked_sub(Duration::from_nanos(now))
                .unwrap_or(now_at);
        }
        state.timers.retain(|timer| timer.strong_count() != 0);
        for timer in state.timers.iter().filter_map(Weak::upgrade) {
            state.arm(&timer);
        }
    }
}

/// What a device holds: the clock and its timer.
struct DeviceTimer {
    clock: Weak<VirtualClock>,
    armed: Arc<Armed>,
}

impl Clock for VirtualClock {
    fn now_ns(&self) -> u64 {
        locked(&self.state).now()
    }

    fn unix_ns(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_nanos()).unwrap_or(i64::MAX),
        }
    }
}

/// The clock as devices take it. (A newtype because a timer needs the clock's own `Arc`.)
pub(crate) struct Timers(pub(crate) Arc<VirtualClock>);

impl Clock for Timers {
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }

    fn unix_ns(&self) -> i64 {
        self.0.unix_ns()
    }
}

impl TimerHost for Timers {
    fn new_timer(&self, target: Weak<dyn TimerTarget>) -> Box<dyn Timer> {
        let handle = self.0.thread.timer(move || {
            if let Some(target) = target.upgrade() {
                target.timer_expired();
            }
            None
        });
        let armed = Arc::new(Armed {
            handle,
            deadline: Mutex::new(None),
        });
        locked(&self.0.state).timers.push(Arc::downgrade(&armed));
        Box::new(DeviceTimer {
            clock: Arc::downgrade(&self.0),
            armed,
        })
    }
}

impl Timer for DeviceTimer {
    fn arm(&self, deadline_ns: Option<u64>) {
        *locked(&self.armed.deadline) = deadline_ns;
        if let Some(clock) = self.clock.upgrade() {
            locked(&clock.state).arm(&self.armed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use event::IoThreadConfig;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl TimerTarget for Count {
        fn timer_expired(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_timer_fires_when_the_clock_gets_there_and_not_while_it_stands() {
        let thread = IoThread::spawn(IoThreadConfig::new("clock-test")).unwrap();
        let clock = VirtualClock::new(thread);
        let count = Arc::new(Count::default());
        let target: Arc<dyn TimerTarget> = count.clone();
        let timer = Timers(Arc::clone(&clock)).new_timer(Arc::downgrade(&target));
        timer.arm(Some(1_000_000));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((clock.now_ns(), count.0.load(Ordering::SeqCst)), (0, 0));
        clock.start();
        let begin = Instant::now();
        while count.0.load(Ordering::SeqCst) == 0 && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        clock.stop();
        let stopped = clock.now_ns();
        assert!(stopped >= 1_000_000);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(clock.now_ns(), stopped);
    }
}
