use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::bucket::Direction;
use super::schedule::Schedule;
use super::{ThrottleError, ThrottleLimits};

/// Nodes that share limits: the limits hold for all of them together, and they take turns.
///
/// Its members are on any I/O threads. A request that waits sleeps on its own thread, and only the
/// next one of each direction has a timer.
#[derive(Debug)]
pub struct ThrottleGroup {
    name: String,
    /// When its clock was at 0.
    epoch: Instant,
    /// Whether there is any limit: otherwise requests pass without a lock.
    limited: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: ThrottleLimits,
    schedule: Schedule,
    /// Whom to wake when their request is granted.
    waiting: HashMap<u64, Waker>,
    /// The requests that have a timer and what it is set to, by direction.
    timers: [Option<(u64, u64)>; 2],
}

impl State {
    /// Grants what may go, and sees to it that the next requests have a timer that is not too
    /// late; `polled`, whose waker is not in the list, sets its own. Whether `polled` may go, and
    /// whom to wake when the lock is released.
    fn settle(&mut self, now: u64, polled: Option<u64>) -> (bool, Vec<Waker>) {
        let mut granted = Vec::new();
        self.schedule.advance(now, &mut granted);
        let go = granted.iter().any(|id| polled == Some(*id));
        let mut wake: Vec<Waker> = granted
            .iter()
            .filter_map(|id| self.waiting.remove(id))
            .collect();
        for direction in Direction::BOTH {
            let timer = &mut self.timers[direction as usize];
            match self.schedule.next(direction) {
                Some((id, at)) if polled == Some(id) => *timer = Some((id, at)),
                // One that rings too early is set again when it does.
                Some((id, at)) if timer.is_some_and(|(of, rings)| of == id && rings <= at) => {}
                Some((id, _)) => {
                    *timer = None;
                    wake.extend(self.waiting.get(&id).cloned());
                }
                None => *timer = None,
            }
        }
        (go, wake)
    }
}

impl ThrottleGroup {
    /// A group without members.
    ///
    /// # Errors
    /// The limits contradict one another.
    pub fn new(
        name: impl Into<String>,
        limits: &ThrottleLimits,
    ) -> Result<Arc<Self>, ThrottleError> {
        let rates = limits.rates()?;
        Ok(Arc::new(Self {
            name: name.into(),
            epoch: Instant::now(),
            limited: AtomicBool::new(rates.is_limited()),
            state: Mutex::new(State {
                limits: *limits,
                schedule: Schedule::new(&rates, 0),
                waiting: HashMap::new(),
                timers: [None; 2],
            }),
        }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its limits.
    #[must_use]
    pub fn limits(&self) -> ThrottleLimits {
        self.lock().limits
    }

    /// Whether there is any limit.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// Other limits from now on, also for the requests that wait. What was used of the old ones
    /// is forgotten.
    ///
    /// # Errors
    /// The limits contradict one another; the old ones stay.
    pub fn set_limits(&self, limits: &ThrottleLimits) -> Result<(), ThrottleError> {
        let rates = limits.rates()?;
        self.limited.store(rates.is_limited(), Ordering::Relaxed);
        self.change(|state, now| {
            state.limits = *limits;
            state.schedule.set_rates(&rates, now);
            state.timers = [None; 2];
        });
        Ok(())
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Changes something, and lets go what may go then.
    fn change(&self, change: impl FnOnce(&mut State, u64)) {
        let mut state = self.lock();
        let now = self.now();
        change(&mut state, now);
        let (_, wake) = state.settle(now, None);
        drop(state);
        wake.into_iter().for_each(Waker::wake);
    }
}

/// Until the deadline.
type Sleep = Pin<Box<dyn Future<Output = ()>>>;

/// A node's place in its group.
pub(super) struct Membership {
    group: Arc<ThrottleGroup>,
    member: u64,
}

impl Membership {
    pub(super) fn new(group: Arc<ThrottleGroup>) -> Arc<Self> {
        let member = group.lock().schedule.add_member();
        Arc::new(Self { group, member })
    }

    pub(super) fn group(&self) -> &Arc<ThrottleGroup> {
        &self.group
    }

    /// Waits until a request of so many bytes may go. Not to be called outside of an I/O thread.
    pub(super) async fn admit(&self, direction: Direction, bytes: u64) {
        let mut request = Waiting {
            group: &self.group,
            member: self.member,
            direction,
            bytes,
            id: None,
        };
        let mut timer: Option<(u64, Sleep)> = None;
        poll_fn(|cx| {
            loop {
                let at = match request.ask(cx) {
                    Answer::Go => return Poll::Ready(()),
                    Answer::Later => {
                        timer = None;
                        return Poll::Pending;
                    }
                    Answer::At(at) => at,
                };
                if timer.as_ref().is_none_or(|(set, _)| *set != at) {
                    let Some(deadline) = self.group.epoch.checked_add(Duration::from_nanos(at))
                    else {
                        return Poll::Pending;
                    };
                    timer = Some((at, Box::pin(event::sleep_until(deadline))));
                }
                let rung = timer.as_mut().map(|(_, sleep)| sleep.as_mut().poll(cx));
                if !rung.is_some_and(|rung| rung.is_ready()) {
                    return Poll::Pending;
                }
                timer = None;
            }
        })
        .await;
    }

    /// See [`super::Throttle::unthrottled`].
    pub(super) fn unthrottled(self: &Arc<Self>) -> Unthrottled {
        let member = self.member;
        self.group
            .change(|state, _| state.schedule.unthrottle(member, true));
        Unthrottled(Arc::clone(self))
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let member = self.member;
        self.group
            .change(|state, _| state.schedule.remove_member(member));
    }
}

/// While this lives, requests of the node do not wait; see [`super::Throttle::unthrottled`].
#[must_use]
pub struct Unthrottled(Arc<Membership>);

impl Drop for Unthrottled {
    fn drop(&mut self) {
        let member = self.0.member;
        self.0
            .group
            .change(|state, _| state.schedule.unthrottle(member, false));
    }
}

/// A request that was not granted yet, or of which nobody knows that it was. Given up when
/// dropped.
struct Waiting<'a> {
    group: &'a ThrottleGroup,
    member: u64,
    direction: Direction,
    bytes: u64,
    /// Its number once it is in the schedule.
    id: Option<u64>,
}

enum Answer {
    Go,
    /// Somebody will wake it.
    Later,
    /// It is the next, and asks again then.
    At(u64),
}

impl Waiting<'_> {
    fn ask(&mut self, cx: &Context<'_>) -> Answer {
        let mut state = self.group.lock();
        let id = match self.id {
            Some(id) if state.waiting.remove(&id).is_none() => {
                // Granted; from here on there is nothing to give up.
                self.id = None;
                return Answer::Go;
            }
            Some(id) => id,
            None => state.schedule.push(self.member, self.direction, self.bytes),
        };
        let (go, wake) = state.settle(self.group.now(), Some(id));
        let answer = if go {
            self.id = None;
            Answer::Go
        } else {
            self.id = Some(id);
            state.waiting.insert(id, cx.waker().clone());
            match state.timers[self.direction as usize] {
                Some((of, at)) if of == id => Answer::At(at),
                _ => Answer::Later,
            }
        };
        drop(state);
        wake.into_iter().for_each(Waker::wake);
        answer
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        self.group
            .change(|state, _| match state.waiting.remove(&id) {
                Some(_) => state.schedule.cancel(self.member, self.direction, id),
                None => state.schedule.take_back(self.direction, self.bytes),
            });
    }
}
