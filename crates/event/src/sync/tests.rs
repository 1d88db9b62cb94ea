//! Notifications within a thread. They need no I/O: a hand-driven executor does.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::*;

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn waker() -> (Waker, Arc<Count>) {
    let count = Arc::new(Count::default());
    (Waker::from(Arc::clone(&count)), count)
}

fn poll<F: Future>(future: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(waker))
}

#[test]
fn notification_is_remembered_once() {
    let (waker, woken) = waker();
    let notify = Notify::new();
    notify.notify();
    notify.notify();
    assert!(poll(pin!(notify.notified()), &waker).is_ready());
    let mut waiting = pin!(notify.notified());
    assert!(poll(waiting.as_mut(), &waker).is_pending());
    notify.clone().notify();
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert!(poll(waiting.as_mut(), &waker).is_ready());
}

#[test]
fn dropped_waiter_does_not_take_the_notification() {
    let (waker, _) = waker();
    let notify = Notify::new();
    {
        let mut waiting = pin!(notify.notified());
        assert!(poll(waiting.as_mut(), &waker).is_pending());
        notify.notify();
    }
    assert!(poll(pin!(notify.notified()), &waker).is_ready());
}

#[test]
fn semaphore_limits() {
    let (waker, woken) = waker();
    let semaphore = Semaphore::new(2);
    let first = semaphore.try_acquire().unwrap();
    let Poll::Ready(second) = poll(pin!(semaphore.acquire()), &waker) else {
        panic!("there was a permit");
    };
    assert!(semaphore.try_acquire().is_none());
    let mut third = pin!(semaphore.acquire());
    let mut fourth = pin!(semaphore.acquire());
    assert!(poll(third.as_mut(), &waker).is_pending());
    assert!(poll(fourth.as_mut(), &waker).is_pending());
    drop(first);
    assert_eq!(woken.0.load(Ordering::SeqCst), 2);
    let got = poll(fourth.as_mut(), &waker);
    assert!(got.is_ready());
    assert!(poll(third.as_mut(), &waker).is_pending());
    drop(second);
    assert!(poll(third.as_mut(), &waker).is_ready());
}

#[test]
fn in_flight_drains() {
    let (waker, _) = waker();
    let requests = InFlight::new();
    assert!(poll(pin!(requests.drained()), &waker).is_ready());
    let (one, two) = (requests.start(), requests.clone().start());
    assert_eq!(requests.count(), 2);
    let mut below = pin!(requests.below(2));
    let mut drained = pin!(requests.drained());
    assert!(poll(below.as_mut(), &waker).is_pending());
    assert!(poll(drained.as_mut(), &waker).is_pending());
    drop(one);
    assert!(poll(below.as_mut(), &waker).is_ready());
    assert!(poll(drained.as_mut(), &waker).is_pending());
    drop(two);
    assert!(poll(drained.as_mut(), &waker).is_ready());
}

#[test]
fn stopping_is_for_good() {
    let (waker, woken) = waker();
    let (source, token) = StopSource::new();
    let mut waiting = pin!(token.stopped());
    assert!(poll(waiting.as_mut(), &waker).is_pending());
    {
        let mut dropped = pin!(token.stopped());
        assert!(poll(dropped.as_mut(), &waker).is_pending());
    }
    source.stop();
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert!(poll(waiting.as_mut(), &waker).is_ready());
    assert!(source.token().is_stopped());
    assert!(poll(pin!(token.stopped()), &waker).is_ready());
}

#[test]
fn channel_ends() {
    let (waker, woken) = waker();
    let (sender, mut receiver) = channel();
    sender.send(1).unwrap();
    let other = sender.clone();
    drop(sender);
    other.send(2).unwrap();
    assert_eq!(poll(pin!(receiver.recv()), &waker), Poll::Ready(Some(1)));
    assert_eq!(receiver.try_recv(), Some(2));
    assert_eq!(receiver.try_recv(), None);
    {
        let mut waiting = pin!(receiver.recv());
        assert!(poll(waiting.as_mut(), &waker).is_pending());
        drop(other);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(waiting.as_mut(), &waker), Poll::Ready(None));
    }
    let (sender, receiver) = channel();
    drop(receiver);
    assert_eq!(sender.send(5), Err(Closed(5)));
}

#[test]
fn oneshot_ends() {
    let (sender, receiver) = oneshot();
    assert!(!receiver.is_finished());
    let waiting = std::thread::spawn(move || receiver.wait());
    sender.send(4);
    assert_eq!(waiting.join().unwrap(), Ok(4));
    let (sender, receiver) = oneshot::<()>();
    drop(sender);
    assert!(receiver.is_finished());
    assert!(receiver.wait().is_err());
    let (waker, woken) = waker();
    let (sender, mut receiver) = oneshot();
    assert!(poll(Pin::new(&mut receiver), &waker).is_pending());
    sender.send(3);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert_eq!(poll(Pin::new(&mut receiver), &waker), Poll::Ready(Ok(3)));
}

#[test]
fn select_prefers_the_first_and_join_keeps_order() {
    let (waker, _) = waker();
    let both = select2(async { 1 }, async { "b" });
    assert_eq!(poll(pin!(both), &waker), Poll::Ready(Either::A(1)));
    let second = select2(std::future::pending::<()>(), async { "b" });
    assert_eq!(poll(pin!(second), &waker), Poll::Ready(Either::B("b")));
    let gates: Vec<Notify> = (0..3).map(|_| Notify::new()).collect();
    let futures = gates.iter().enumerate().map(|(n, gate)| async move {
        gate.notified().await;
        n
    });
    let mut all = pin!(join_all(futures));
    for gate in gates.iter().rev() {
        assert!(poll(all.as_mut(), &waker).is_pending());
        gate.notify();
    }
    assert_eq!(poll(all.as_mut(), &waker), Poll::Ready(vec![0, 1, 2]));
    assert_eq!(
        poll(pin!(join_all(Vec::<std::future::Ready<()>>::new())), &waker),
        Poll::Ready(Vec::new())
    );
}
