//! Eventfds and streams.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use libc::EFD_NONBLOCK;

use super::threads;
use crate::{
    AsyncFd, Either, EventFd, EventSource, IoBuf, StopSource, eventfd_wait, readable, select2,
    sleep, spawn_local, timeout, writable,
};

#[test]
fn eventfd_gives_its_counter() {
    for thread in threads("counter") {
        for flags in [0, EFD_NONBLOCK] {
            let event = EventFd::new(flags).unwrap();
            let own = event.try_clone().unwrap();
            let remote =
                thread.spawn_task(move || async move { eventfd_wait(&own).await.unwrap() });
            std::thread::sleep(Duration::from_millis(1));
            event.write(5).unwrap();
            assert_eq!(remote.join(), Ok(5));
            event.write(2).unwrap();
            event.write(1).unwrap();
            let own = event.try_clone().unwrap();
            let remote =
                thread.spawn_task(move || async move { eventfd_wait(&own).await.unwrap() });
            assert_eq!(remote.join(), Ok(3));
        }
    }
}

/// A doorbell must never be lost: each writer publishes work and then rings, and the worker must
/// see all work in the end.
#[test]
fn doorbells_under_stress() {
    const RINGERS: usize = 3;
    const RINGS: u64 = 3000;
    for thread in threads("stress") {
        let work = Arc::new(AtomicU64::new(0));
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        let own = bell.try_clone().unwrap();
        let to_do = Arc::clone(&work);
        let remote = thread.spawn_task(move || async move {
            let source = EventSource::new(&own).unwrap();
            let mut done = 0;
            let mut wakes = 0u64;
            while done < RINGERS as u64 * RINGS {
                source.wait().await.unwrap();
                wakes += 1;
                done += to_do.swap(0, Ordering::SeqCst);
            }
            wakes
        });
        std::thread::scope(|scope| {
            for ringer in 0..RINGERS {
                let (bell, work) = (bell.try_clone().unwrap(), &work);
                scope.spawn(move || {
                    for ring in 0..RINGS {
                        work.fetch_add(1, Ordering::SeqCst);
                        bell.write(1).unwrap();
                        if ring % (50 + ringer as u64) == 0 {
                            std::thread::sleep(Duration::from_micros(100));
                        }
                    }
                });
            }
        });
        let wakes = remote.join().unwrap();
        assert!(wakes <= RINGERS as u64 * RINGS + 1, "{wakes} wakes");
    }
}

#[test]
fn each_ring_after_an_answer_wakes() {
    for thread in threads("answer") {
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        let answer = EventFd::new(0).unwrap();
        let (own, out) = (bell.try_clone().unwrap(), answer.try_clone().unwrap());
        let task = thread.spawn_task(move || async move {
            let source = EventSource::new(&own).unwrap();
            loop {
                source.wait().await.unwrap();
                out.write(1).unwrap();
            }
        });
        for _ in 0..1000 {
            bell.write(1).unwrap();
            assert_eq!(answer.read().unwrap(), 1);
        }
        task.cancel();
        assert!(task.join().is_err());
    }
}

#[test]
fn ring_before_watching_counts_once() {
    for thread in threads("before") {
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        bell.write(1).unwrap();
        let remote = thread.spawn_task(move || async move {
            let source = EventSource::new(&bell).unwrap();
            source.wait().await.unwrap();
            let again = timeout(Duration::from_millis(10), source.wait()).await;
            again.is_none()
        });
        assert_eq!(remote.join(), Ok(true));
    }
}

#[test]
fn stop_ends_a_worker() {
    for thread in threads("stop") {
        let (source, token) = StopSource::new();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let token = token.clone();
                thread.spawn_task(move || async move {
                    let bell = EventSource::new(&EventFd::new(0).unwrap()).unwrap();
                    match select2(token.stopped(), bell.wait()).await {
                        Either::A(()) => token.is_stopped(),
                        Either::B(_) => false,
                    }
                })
            })
            .collect();
        assert!(!token.is_stopped());
        std::thread::sleep(Duration::from_millis(1));
        source.stop();
        for worker in workers {
            assert_eq!(worker.join(), Ok(true));
        }
    }
}

#[test]
fn one_shot_waits() {
    for thread in threads("waits") {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (waiting, waits) = std::sync::mpsc::channel();
        let remote = thread.spawn_task(move || async move {
            writable(&ours).await.unwrap();
            let early = timeout(Duration::from_millis(5), readable(&ours)).await;
            waiting.send(()).unwrap();
            // Two at once on the same descriptor.
            let ours = std::rc::Rc::new(ours);
            let other = std::rc::Rc::clone(&ours);
            let second = spawn_local(async move { readable(&*other).await });
            readable(&*ours).await.unwrap();
            second.await.unwrap();
            early.is_none()
        });
        waits.recv().unwrap();
        theirs.write_all(b"x").unwrap();
        assert_eq!(remote.join(), Ok(true));
    }
}

#[test]
fn regular_files_are_always_ready() {
    for thread in threads("regular") {
        let remote = thread.spawn_task(|| async {
            let file = tempfile::tempfile().unwrap();
            readable(&file).await.is_ok() && writable(&file).await.is_ok()
        });
        assert_eq!(remote.join(), Ok(true));
    }
}

#[test]
fn stream_carries_everything() {
    const LEN: usize = 1 << 20;
    for thread in threads("stream") {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let remote = thread.spawn_task(move || async move {
            let stream = std::rc::Rc::new(AsyncFd::new(ours).unwrap());
            let output = std::rc::Rc::clone(&stream);
            let writer = spawn_local(async move {
                let mut buf = IoBuf::from_vec((0..LEN).map(|n| n as u8).collect());
                while !buf.is_empty() {
                    let count = output.write_vectored(&buf).await.unwrap();
                    buf.advance(count);
                }
            });
            let mut sum = 0u64;
            let mut total = 0;
            let mut buf = vec![0; 5000];
            while total < LEN {
                let count = stream.read(&mut buf).await.unwrap();
                assert_ne!(count, 0);
                total += count;
                sum += buf[..count].iter().map(|&b| u64::from(b)).sum::<u64>();
            }
            writer.await;
            sum
        });
        // Echo.
        let mut buf = vec![0; 4096];
        let mut total = 0;
        while total < LEN {
            let count = theirs.read(&mut buf).unwrap();
            theirs.write_all(&buf[..count]).unwrap();
            total += count;
        }
        let sum: u64 = (0..LEN).map(|n| u64::from(n as u8)).sum();
        assert_eq!(remote.join(), Ok(sum));
    }
}

#[test]
fn end_of_a_stream_is_seen() {
    for thread in threads("end") {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (waiting, waits) = std::sync::mpsc::channel();
        let remote = thread.spawn_task(move || async move {
            let stream = AsyncFd::new(ours).unwrap();
            assert!(stream.as_fd().try_clone_to_owned().is_ok());
            let mut buf = IoBuf::from_vec(vec![0; 10]);
            let none = stream.try_read_vectored(&mut buf).unwrap_err();
            assert_eq!(none.kind(), std::io::ErrorKind::WouldBlock);
            waiting.send(()).unwrap();
            stream.readable().await.unwrap();
            let end = stream.read_vectored(&mut buf).await.unwrap();
            let refused = stream.write(b"x").await.unwrap_err();
            (end, refused.kind())
        });
        waits.recv().unwrap();
        drop(theirs);
        assert_eq!(remote.join(), Ok((0, std::io::ErrorKind::BrokenPipe)));
    }
}

/// A descriptor's number is used again at once; the watch of the old one must not see the new.
#[test]
fn watches_end_with_their_owner() {
    for thread in threads("owner") {
        let remote = thread.spawn_task(|| async {
            for round in 0..200u64 {
                let event = EventFd::new(EFD_NONBLOCK).unwrap();
                let source = EventSource::new(&event).unwrap();
                if round % 2 == 0 {
                    event.write(1).unwrap();
                    source.wait().await.unwrap();
                }
                drop(source);
                drop(timeout(Duration::from_micros(1), eventfd_wait(&event)));
                if round % 16 == 0 {
                    sleep(Duration::from_micros(10)).await;
                }
            }
            let event = EventFd::new(EFD_NONBLOCK).unwrap();
            let source = EventSource::new(&event).unwrap();
            timeout(Duration::from_millis(5), source.wait())
                .await
                .is_none()
        });
        assert_eq!(remote.join(), Ok(true));
    }
}
