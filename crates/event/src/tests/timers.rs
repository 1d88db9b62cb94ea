//! Sleeping and timers.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::threads;
use crate::{sleep, sleep_until, spawn_local, timeout, yield_now};

/// The order in which sleepers of these milliseconds wake; `None` if the machine was so slow that
/// the first had to wake before the last went to sleep.
async fn wake_order(lead: Duration, millis: &[u64]) -> Option<Vec<u64>> {
    let start = Instant::now() + lead;
    let order = Rc::new(RefCell::new(Vec::new()));
    let tasks: Vec<_> = millis
        .iter()
        .map(|&millis| {
            let order = Rc::clone(&order);
            spawn_local(async move {
                let deadline = start + Duration::from_millis(millis);
                sleep_until(deadline).await;
                assert!(Instant::now() >= deadline);
                order.borrow_mut().push(millis);
            })
        })
        .collect();
    yield_now().await;
    let in_time = Instant::now() < start;
    for task in tasks {
        task.await;
    }
    in_time.then(|| order.take())
}

#[test]
fn sleepers_wake_in_order() {
    for thread in threads("order") {
        let remote = thread.spawn_task(|| async {
            let mut lead = Duration::from_millis(2);
            loop {
                if let Some(order) = wake_order(lead, &[30, 10, 20, 0, 15, 10]).await {
                    return order;
                }
                lead *= 2;
            }
        });
        assert_eq!(remote.join().unwrap(), [0, 10, 10, 15, 20, 30]);
    }
}

#[test]
fn timeout_cancels() {
    for thread in threads("timeout") {
        let remote = thread.spawn_task(|| async {
            let never = timeout(Duration::from_millis(5), std::future::pending::<()>()).await;
            let soon = timeout(Duration::from_secs(100), async {
                yield_now().await;
                7
            })
            .await;
            let ever = timeout(Duration::MAX, async { 8 }).await;
            (never, soon, ever)
        });
        assert_eq!(remote.join(), Ok((None, Some(7), Some(8))));
    }
}

#[test]
fn dropped_sleep_wakes_nobody() {
    for thread in threads("dropped") {
        let remote = thread.spawn_task(|| async {
            let local = crate::executor::local();
            drop(spawn_local(sleep(Duration::from_secs(1000))));
            let task = spawn_local(sleep(Duration::from_secs(1000)));
            yield_now().await;
            let armed = local.timers.borrow().next().is_some();
            task.cancel().await;
            let left = local.timers.borrow().next().is_some();
            (armed, left)
        });
        assert_eq!(remote.join(), Ok((true, false)));
    }
}

const SOON: Duration = Duration::from_millis(5);
/// Enough for a slow machine to change its mind.
const LATER: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(20);

#[test]
fn timer_fires_once_at_the_last_deadline() {
    for thread in threads("timer") {
        let (sender, receiver) = mpsc::channel();
        let timer = thread.timer(move || {
            sender.send(Instant::now()).unwrap();
            None
        });
        // Later, then earlier: the earlier one counts.
        timer.arm(Instant::now() + LONG * 10);
        let deadline = Instant::now() + SOON;
        timer.arm(deadline);
        assert!(receiver.recv_timeout(LONG).unwrap() >= deadline);
        // Earlier, then later: the later one counts.
        timer.arm(Instant::now() + LATER);
        let deadline = Instant::now() + LATER + SOON;
        timer.arm(deadline);
        assert!(receiver.recv_timeout(LONG).unwrap() >= deadline);
        // Disarmed: none.
        timer.arm(Instant::now() + LATER);
        timer.disarm();
        assert!(receiver.recv_timeout(LATER + SOON).is_err());
        // In the past: now.
        timer.arm(Instant::now() - SOON.min(Duration::from_micros(1)));
        receiver.recv_timeout(LONG).unwrap();
        // Gone with the last handle.
        timer.arm(Instant::now() + LATER);
        drop(timer);
        assert_eq!(
            receiver.recv_timeout(LONG),
            Err(mpsc::RecvTimeoutError::Disconnected)
        );
    }
}

#[test]
fn timer_may_be_periodic() {
    for thread in threads("periodic") {
        let (sender, receiver) = mpsc::channel();
        let start = Instant::now();
        let mut ticks = 0u32;
        let timer = thread.timer(move || {
            ticks += 1;
            sender.send(()).unwrap();
            (ticks < 5).then(|| start + SOON * (ticks + 1))
        });
        timer.arm(start + SOON);
        for _ in 0..5 {
            receiver.recv_timeout(LONG).unwrap();
        }
        assert!(start.elapsed() >= SOON * 5);
        assert!(receiver.recv_timeout(SOON * 3).is_err());
    }
}

#[test]
fn setting_during_the_callback_beats_its_result() {
    for thread in threads("setting") {
        let (sender, receiver) = mpsc::channel();
        let (handle_sender, handle) = mpsc::channel::<crate::TimerHandle>();
        let mut handle_of_own = None;
        let timer = thread.timer(move || {
            let timer = handle_of_own.get_or_insert_with(|| handle.recv().unwrap());
            timer.disarm();
            sender.send(()).unwrap();
            Some(Instant::now())
        });
        handle_sender.send(timer.clone()).unwrap();
        timer.arm(Instant::now());
        receiver.recv_timeout(LONG).unwrap();
        assert!(receiver.recv_timeout(SOON * 2).is_err());
        thread.shutdown();
    }
}
