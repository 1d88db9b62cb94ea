//! Nodes on I/O threads. What is exact is tested without a clock; here only that requests wait
//! and go on.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use event::{IoBuf, IoThread, IoThreadConfig, WriteFlags};
use spec::Spec;

use crate::storage::memory::Memory;
use crate::throttle::{Throttle, ThrottleGroup, ThrottleLimits};
use crate::{Node, Raw, ZeroFlags};

fn limits(text: &str) -> ThrottleLimits {
    ThrottleLimits::parse(text).unwrap()
}

fn group(text: &str) -> Arc<ThrottleGroup> {
    ThrottleGroup::new("group", &limits(text)).unwrap()
}

fn node(group: &Arc<ThrottleGroup>) -> (Arc<Throttle>, Memory) {
    let memory = Memory::new(64 << 10, false);
    let inner = Arc::new(Raw::new("disk".into(), memory.clone()));
    (
        Arc::new(Throttle::new("throttle", inner, Arc::clone(group))),
        memory,
    )
}

fn on_thread<F: Future<Output = ()> + 'static>(make: impl FnOnce() -> F + Send + 'static) {
    let thread = IoThread::spawn(IoThreadConfig::new("throttle-test")).unwrap();
    thread.spawn_task(make).join().unwrap();
}

async fn read(node: &Throttle) {
    let (result, _) = node.read_vectored(IoBuf::from_vec(vec![0; 512]), 0).await;
    result.unwrap();
}

/// Polls once.
async fn begin<F: Future<Output = ()>>(mut future: std::pin::Pin<&mut F>) -> bool {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await
}

#[test]
fn requests_wait_as_long_as_they_must() {
    on_thread(|| async {
        let (node, memory) = node(&group("iops-total=100"));
        // Eleven at once, and then one each 10 ms.
        let start = Instant::now();
        for i in 0..8u64 {
            read(&node).await;
            let buf = IoBuf::from_vec(vec![7; 512]);
            let written = node
                .write_vectored(buf, i * 512, WriteFlags::default())
                .await;
            written.0.unwrap();
        }
        node.discard(0, 512).await.unwrap();
        node.write_zeroes(0, 512, ZeroFlags::default())
            .await
            .unwrap();
        assert!(start.elapsed() >= Duration::from_millis(70));
        assert_eq!(memory.bytes()[..513], [&[0; 512][..], &[7]].concat());
        assert_eq!(node.group().waiting(), 0);
    });
}

#[test]
fn what_moves_no_data_does_not_wait() {
    on_thread(|| async {
        let (node, memory) = node(&group("bps-total=1"));
        read(&node).await;
        node.flush().await.unwrap();
        node.copy_up(0, 512).await.unwrap();
        node.block_status(0, 512).await.unwrap();
        node.resize(1024).await.unwrap();
        assert_eq!((node.size(), memory.flushes()), (1024, 1));
        assert_eq!(
            (node.name().as_str(), node.inner().name().as_str()),
            ("throttle", "disk")
        );
        node.close().await.unwrap();
    });
}

#[test]
fn a_dropped_request_leaves_nothing_behind() {
    on_thread(|| async {
        let group = group("bps-total=400");
        let ([(a, _), (b, _)], start) = ([node(&group), node(&group)], Instant::now());
        read(&a).await;
        {
            // A wait of a second for the first, for ever for the others.
            let mut first = pin!(read(&a));
            let mut last = pin!(read(&b));
            assert!(!begin(first.as_mut()).await);
            let mut huge = pin!(a.discard(0, 60 << 10));
            assert!(poll_fn(|cx| Poll::Ready(huge.as_mut().poll(cx).is_pending())).await);
            assert!(!begin(last.as_mut()).await);
            assert_eq!(group.waiting(), 3);
        }
        assert_eq!(group.waiting(), 0);
        read(&b).await;
        assert!(start.elapsed() < Duration::from_secs(20));
    });
}

#[test]
fn one_that_waits_behind_a_dropped_one_is_woken() {
    on_thread(|| async {
        let group = group("bps-total=1000");
        let (node, _) = node(&group);
        // Ten seconds and more until the next.
        node.discard(0, 10 << 10).await.unwrap();
        let waits = Arc::clone(&node);
        let other = event::spawn_local(async move { read(&waits).await });
        event::yield_now().await;
        assert_eq!(group.waiting(), 1);
        group.set_limits(&limits("bps-total=1M")).unwrap();
        other.await;
        // The head goes, and the one behind it gets the timer.
        group.set_limits(&limits("bps-read=400")).unwrap();
        read(&node).await;
        let waits = Arc::clone(&node);
        {
            let mut head = pin!(read(&node));
            assert!(!begin(head.as_mut()).await);
            let other = event::spawn_local(async move { read(&waits).await });
            event::yield_now().await;
            assert_eq!(group.waiting(), 2);
            drop(other);
        }
        read(&node).await;
        let contradiction = limits("iops-read-max=5");
        group.set_limits(&contradiction).unwrap_err();
        assert_eq!(group.limits(), limits("bps-read=400"));
    });
}

#[test]
fn an_unthrottled_node_lets_everything_go() {
    on_thread(|| async {
        let group = group("bps-total=1");
        let [(a, _), (b, _)] = [node(&group), node(&group)];
        read(&a).await;
        let waits: Vec<_> = (0..20)
            .map(|_| {
                let a = Arc::clone(&a);
                event::spawn_local(async move { read(&a).await })
            })
            .collect();
        event::yield_now().await;
        let mut other = pin!(read(&b));
        assert!(!begin(other.as_mut()).await);
        assert_eq!(group.waiting(), 21);
        let free = a.unthrottled();
        for task in waits {
            task.await;
        }
        read(&a).await;
        assert_eq!(group.waiting(), 1);
        drop(free);
        let mut again = pin!(read(&a));
        assert!(!begin(again.as_mut()).await);
        group.set_limits(&ThrottleLimits::default()).unwrap();
        other.await;
        again.await;
        assert!(!group.is_limited());
        read(&a).await;
    });
}

#[test]
fn four_threads_share_a_group() {
    let start = Instant::now();
    let group = group("iops-total=2000");
    let done: Arc<[AtomicU64; 4]> = Arc::default();
    let threads: Vec<_> = (0..4)
        .map(|i| {
            let (group, done) = (Arc::clone(&group), Arc::clone(&done));
            let thread = IoThread::spawn(IoThreadConfig::new(format!("throttle-{i}"))).unwrap();
            let end = Instant::now() + Duration::from_millis(500);
            let task = thread.spawn_task(move || async move {
                let (node, _) = node(&group);
                let reader = || async {
                    while Instant::now() < end {
                        read(&node).await;
                        done[i].fetch_add(1, Ordering::Relaxed);
                    }
                };
                // Different depths.
                event::join_all((0..=i * 4).map(|_| reader())).await;
            });
            (thread, task)
        })
        .collect();
    for (_thread, task) in threads {
        task.join().unwrap();
    }
    let done: Vec<u64> = done
        .iter()
        .map(|count| count.load(Ordering::Relaxed))
        .collect();
    let sum: u64 = done.iter().sum();
    // And what fits into the bucket.
    let most = start.elapsed().as_millis() as u64 * 2 + 202;
    assert!(sum <= most, "{done:?}, more than {most}");
    // A busy machine may not run one of the threads for long; the others do not have its share.
    assert!(done.iter().all(|count| *count >= 50), "{done:?}");
    assert_eq!(group.waiting(), 0);
}

#[test]
fn a_node_moves_to_another_group() {
    on_thread(|| async {
        let (old, new) = (group("bps-total=1"), group("bps-total=1"));
        let [(a, _), (b, _)] = [node(&old), node(&old)];
        read(&a).await;
        let (mut one, mut two) = (pin!(read(&a)), pin!(read(&b)));
        assert!(!begin(one.as_mut()).await && !begin(two.as_mut()).await);
        a.set_group(Arc::clone(&new));
        assert!(Arc::ptr_eq(&a.group(), &new));
        one.await;
        // The other one still waits, and the new group begins to count.
        assert!(!begin(two.as_mut()).await);
        read(&a).await;
        let mut next = pin!(read(&a));
        assert!(!begin(next.as_mut()).await);
        assert_eq!((old.waiting(), new.waiting()), (1, 1));
    });
}
