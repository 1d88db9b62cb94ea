//! Tasks, threads and what lies between them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::threads;
use crate::{
    EventError, IoThread, IoThreadConfig, PollSource, TaskGone, channel, poll_hook, poll_source,
    sleep, spawn_local, unblock, yield_now,
};

#[test]
fn reactors_are_the_ones_asked_for() {
    let names: Vec<_> = threads("names").iter().map(IoThread::reactor).collect();
    assert_eq!(names[1], "epoll");
    let refused = io_uring::IoUring::new(8).is_err();
    assert_eq!(names[0], if refused { "epoll" } else { "io_uring" });
}

#[test]
fn result_comes_back() {
    for thread in threads("result") {
        let remote = thread.spawn_task(|| async { 6 * 7 });
        assert_eq!(remote.join(), Ok(42));
        let inner = thread.clone();
        let remote = thread.spawn_task(move || async move {
            let current = IoThread::current().unwrap();
            (current.name().to_owned(), current.tid(), inner.tid())
        });
        let (name, tid, same) = remote.join().unwrap();
        assert_eq!(name, "result");
        assert_eq!((tid, same), (thread.tid(), thread.tid()));
        assert!(tid > 0);
    }
    assert!(IoThread::current().is_none());
}

#[test]
fn ten_thousand_tasks() {
    for thread in threads("many") {
        let remote = thread.spawn_task(|| async {
            let sum = Rc::new(Cell::new(0u64));
            let tasks: Vec<_> = (0..10_000u64)
                .map(|n| {
                    let sum = Rc::clone(&sum);
                    spawn_local(async move {
                        yield_now().await;
                        sum.set(sum.get() + n);
                        n
                    })
                })
                .collect();
            let mut total = 0;
            for task in tasks {
                total += task.await;
            }
            (total, sum.get())
        });
        assert_eq!(remote.join(), Ok((49_995_000, 49_995_000)));
        let remotes: Vec<_> = (0..1000usize)
            .map(|n| thread.spawn_task(move || async move { n }))
            .collect();
        for (n, remote) in remotes.into_iter().enumerate() {
            assert_eq!(remote.join(), Ok(n));
        }
    }
}

/// Sets a flag when dropped.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn flag() -> (Flag, Arc<AtomicBool>) {
    let set = Arc::new(AtomicBool::new(false));
    (Flag(Arc::clone(&set)), set)
}

#[test]
fn dropping_and_detaching() {
    for thread in threads("drop") {
        thread
            .spawn_task(|| async {
                let (mark, dropped) = flag();
                let task = spawn_local(async move {
                    let _mark = mark;
                    std::future::pending::<()>().await;
                });
                yield_now().await;
                assert!(!dropped.load(Ordering::SeqCst));
                assert_eq!(task.cancel().await, None);
                assert!(dropped.load(Ordering::SeqCst));

                let done = Rc::new(Cell::new(false));
                let in_task = Rc::clone(&done);
                spawn_local(async move { in_task.set(true) }).detach();
                yield_now().await;
                assert!(done.get());
            })
            .join()
            .unwrap();

        let (mark, dropped) = flag();
        let remote = thread.spawn_task(move || async move {
            let _mark = mark;
            std::future::pending::<()>().await;
        });
        thread.spawn_task(|| async {}).join().unwrap();
        assert!(!remote.is_finished());
        remote.cancel();
        assert_eq!(remote.join(), Err(TaskGone));
        assert!(dropped.load(Ordering::SeqCst));

        let (mark, dropped) = flag();
        drop(thread.spawn_task(move || async move {
            let _mark = mark;
            std::future::pending::<()>().await;
        }));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !dropped.load(Ordering::SeqCst) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(dropped.load(Ordering::SeqCst));

        let (sender, mut receiver) = channel();
        thread
            .spawn_task(move || async move { sender.send(1).unwrap() })
            .detach();
        let got = thread.spawn_task(move || async move { receiver.recv().await });
        assert_eq!(got.join(), Ok(Some(1)));
    }
}

#[test]
fn panic_ends_the_task_only() {
    for thread in threads("panic") {
        let panicked = thread.spawn_task(|| async { panic!("meant") });
        assert_eq!(panicked.join().map(|(): ()| ()), Err(TaskGone));
        let panicked = thread.spawn_task(|| -> std::future::Ready<()> { panic!("meant") });
        assert_eq!(panicked.join(), Err(TaskGone));
        assert_eq!(thread.spawn_task(|| async { 1 }).join(), Ok(1));
    }
}

#[test]
fn shutdown_cancels_what_runs() {
    for thread in threads("shutdown") {
        let (mark, dropped) = flag();
        let (inner_mark, inner_dropped) = flag();
        let remote = thread.spawn_task(move || async move {
            let _mark = mark;
            spawn_local(async move {
                let _mark = inner_mark;
                sleep(Duration::from_secs(1000)).await;
            })
            .detach();
            std::future::pending::<()>().await;
        });
        thread.spawn_task(|| async {}).join().unwrap();
        thread.shutdown();
        assert!(dropped.load(Ordering::SeqCst));
        assert!(inner_dropped.load(Ordering::SeqCst));
        assert_eq!(remote.join(), Err(TaskGone));
        assert_eq!(thread.spawn_task(|| async {}).join(), Err(TaskGone));
        thread.shutdown();
    }
}

#[test]
fn last_handle_ends_the_thread() {
    for thread in threads("last") {
        let tid = thread.tid();
        let remote = thread.spawn_task(std::future::pending::<()>);
        drop(thread);
        assert_eq!(remote.join(), Err(TaskGone));
        let path = format!("/proc/self/task/{tid}");
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::path::Path::new(&path).exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!std::path::Path::new(&path).exists());
    }
}

#[test]
fn shutdown_races_with_wakers() {
    for _ in 0..20 {
        for thread in threads("race") {
            let (sender, mut receiver) = channel::<usize>();
            let remote =
                thread.spawn_task(move || async move { while receiver.recv().await.is_some() {} });
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut sent = 0;
                    while sender.send(sent).is_ok() {
                        sent += 1;
                    }
                });
                std::thread::sleep(Duration::from_micros(300));
                thread.shutdown();
            });
            assert_eq!(remote.join(), Err(TaskGone));
        }
    }
}

#[test]
fn wakers_of_many_threads() {
    const THREADS: usize = 4;
    const EACH: usize = 2000;
    for thread in threads("wakers") {
        let (sender, mut receiver) = channel();
        let total = thread.spawn_task(move || async move {
            let mut next = [0; THREADS];
            while let Some((from, number)) = receiver.recv().await {
                assert_eq!(next[from], number);
                next[from] += 1;
            }
            next
        });
        std::thread::scope(|scope| {
            for from in 0..THREADS {
                let sender = sender.clone();
                scope.spawn(move || {
                    for number in 0..EACH {
                        sender.send((from, number)).unwrap();
                        if number % 64 == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            drop(sender);
        });
        assert_eq!(total.join(), Ok([EACH; THREADS]));
    }
}

#[test]
fn threads_ping_each_other() {
    let threads = threads("ping");
    let (to_b, mut at_b) = channel::<u32>();
    let (to_a, mut at_a) = channel::<u32>();
    let a = threads[0].spawn_task(move || async move {
        let mut last = 0;
        for n in 0..2000 {
            to_b.send(n).unwrap();
            last = at_a.recv().await.unwrap();
            assert_eq!(last, n + 1);
        }
        last
    });
    let b = threads[1].spawn_task(move || async move {
        while let Some(n) = at_b.recv().await {
            to_a.send(n + 1).unwrap();
        }
    });
    // A task may also be awaited on another thread.
    let both = threads[1].spawn_task(move || async move { (a.await, b.await) });
    assert_eq!(both.join(), Ok((Ok(2000), Ok(()))));
}

#[test]
fn thread_is_pinned_and_named() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpu = (0..CpuSet::count())
        .rev()
        .find(|&cpu| allowed.is_set(cpu).unwrap())
        .unwrap();
    for io_uring in [true, false] {
        let thread = IoThread::spawn(IoThreadConfig {
            cpus: Some(vec![cpu]),
            io_uring,
            ..IoThreadConfig::new("pinned-io-thread")
        })
        .unwrap();
        let seen = sched_getaffinity(Pid::from_raw(thread.tid())).unwrap();
        let cpus: Vec<_> = (0..CpuSet::count())
            .filter(|&cpu| seen.is_set(cpu).unwrap())
            .collect();
        assert_eq!(cpus, [cpu]);
        let comm = std::fs::read_to_string(format!("/proc/self/task/{}/comm", thread.tid()));
        assert_eq!(comm.unwrap().trim(), "pinned-io-threa");
        assert_eq!(thread.spawn_task(|| async { 1 }).join(), Ok(1));
    }
    let refused = IoThread::spawn(IoThreadConfig {
        cpus: Some(vec![1_000_000]),
        ..IoThreadConfig::new("nowhere")
    });
    assert!(matches!(refused, Err(EventError::Pin { .. })));
}

#[test]
fn blocking_calls_run_elsewhere() {
    for thread in threads("unblock") {
        let own = thread.tid();
        let remote = thread.spawn_task(|| async {
            let tid = unblock(|| nix::unistd::gettid().as_raw()).await;
            let panicked = unblock(|| -> i32 { panic!("meant") }).await;
            let tasks: Vec<_> = (0..50).map(|n| spawn_local(unblock(move || n))).collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await.unwrap();
            }
            (tid, panicked, sum)
        });
        let (tid, panicked, sum) = remote.join().unwrap();
        assert_ne!(tid, Ok(own));
        assert_eq!(panicked, Err(TaskGone));
        assert_eq!(sum, 1225);
    }
}

fn polling(io_uring: bool) -> IoThread {
    IoThread::spawn(IoThreadConfig {
        poll_max: Duration::from_millis(20),
        io_uring,
        ..IoThreadConfig::new("polling")
    })
    .unwrap()
}

#[test]
fn hook_finds_work_without_a_wake_up() {
    for io_uring in [true, false] {
        let thread = polling(io_uring);
        // Work is announced here and nowhere else; only a poll hook can find it, but a timer ends
        // the test's rounds in which the thread does not poll (yet).
        let work = Arc::new(AtomicUsize::new(0));
        let found = Arc::new(AtomicUsize::new(0));
        let (in_hook, count) = (Arc::clone(&work), Arc::clone(&found));
        let task = thread.spawn_task(move || async move {
            let waker = Rc::new(RefCell::new(None::<std::task::Waker>));
            let in_poll = Rc::clone(&waker);
            let seen = Rc::clone(&waker);
            let _hook = poll_hook(move || {
                let woken = in_hook.swap(0, Ordering::SeqCst) > 0;
                if woken && let Some(waker) = in_poll.borrow_mut().take() {
                    count.fetch_add(1, Ordering::SeqCst);
                    waker.wake();
                }
                woken
            });
            let mut waited = false;
            loop {
                // Each round: wait until the hook has woken us.
                std::future::poll_fn(|cx| {
                    if std::mem::replace(&mut waited, true) && seen.borrow().is_none() {
                        waited = false;
                        return Poll::Ready(());
                    }
                    *seen.borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                })
                .await;
            }
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        while found.load(Ordering::SeqCst) < 10 {
            assert!(Instant::now() < deadline, "the hook does not find the work");
            work.store(1, Ordering::SeqCst);
            // Short waits make the thread poll.
            thread.spawn_task(|| async {}).join().unwrap();
        }
        drop(task);
    }
}

#[derive(Default)]
struct Counts {
    begun: Cell<u32>,
    ended: Cell<u32>,
    unbalanced: Cell<bool>,
}

struct Counter(Rc<Counts>);

impl PollSource for Counter {
    fn begin(&mut self) {
        self.0.begun.set(self.0.begun.get() + 1);
    }

    fn poll(&mut self) -> bool {
        let open = self.0.begun.get() - self.0.ended.get();
        self.0.unbalanced.set(self.0.unbalanced.get() || open != 1);
        false
    }

    fn end(&mut self) -> bool {
        self.0.ended.set(self.0.ended.get() + 1);
        false
    }
}

#[test]
fn sources_are_polled_only_while_it_pays_off() {
    for io_uring in [true, false] {
        let thread = polling(io_uring);
        let (sender, mut receiver) = channel::<()>();
        let remote = thread.spawn_task(move || async move {
            let counts = Rc::new(Counts::default());
            let hook = poll_source(Counter(Rc::clone(&counts)));
            while receiver.recv().await.is_some() {}
            let busy = counts.begun.get();
            // Nothing but long waits: the first ends polling.
            sleep(Duration::from_millis(1)).await;
            unblock(|| std::thread::sleep(Duration::from_millis(60)))
                .await
                .unwrap();
            let before = counts.begun.get();
            unblock(|| std::thread::sleep(Duration::from_millis(60)))
                .await
                .unwrap();
            let idle = counts.begun.get() - before;
            drop(hook);
            (
                busy,
                idle,
                counts.begun.get(),
                counts.ended.get(),
                counts.unbalanced.get(),
            )
        });
        for _ in 0..200 {
            sender.send(()).unwrap();
            std::thread::sleep(Duration::from_micros(20));
        }
        drop(sender);
        let (busy, idle, begun, ended, unbalanced) = remote.join().unwrap();
        assert!(busy > 0, "never polled");
        assert_eq!(idle, 0, "polled while nothing happened");
        assert_eq!(begun, ended);
        assert!(!unbalanced);
    }
}
