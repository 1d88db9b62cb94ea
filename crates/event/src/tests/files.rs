//! Reads, writes and the like.
#![allow(unsafe_code, reason = "tests scatter lists, which are made by address")]

use std::any::Any;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, iovec};

use super::threads;
use crate::{
    IoBuf, WriteFlags, fallocate, fsync, join_all, read_full_at, read_vectored_at, sleep,
    spawn_local, timeout, write_all_at, write_vectored_at,
};

const FUA: WriteFlags = WriteFlags { fua: true };
const PLAIN: WriteFlags = WriteFlags { fua: false };

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| seed.wrapping_add(n as u8)).collect()
}

#[test]
fn round_trip() {
    for thread in threads("round") {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let own = Arc::clone(&file);
        thread
            .spawn_task(move || async move {
                fallocate(&own, 0, 0, 1 << 20).await.unwrap();
                let data = IoBuf::from_vec(bytes(3, 10_000));
                let (count, data) = write_vectored_at(&own, data, 4096, FUA).await;
                assert_eq!(count.unwrap(), 10_000);
                fsync(&own, true).await.unwrap();
                fsync(&own, false).await.unwrap();
                let (count, back) =
                    read_vectored_at(&own, IoBuf::from_vec(vec![9; 10_000]), 4096).await;
                assert_eq!(count.unwrap(), 10_000);
                assert_eq!(back.into_vec(), data.into_vec());
                let punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
                fallocate(&own, punch, 4096, 4096).await.unwrap();
            })
            .join()
            .unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        let mut seen = vec![1; 10_000];
        file.read_exact_at(&mut seen, 4096).unwrap();
        assert_eq!(seen[..4096], [0; 4096]);
        assert_eq!(seen[4096..], bytes(3, 10_000)[4096..]);
    }
}

#[test]
fn scatter_lists() {
    for thread in threads("scatter") {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.write_all_at(&bytes(0, 100), 0).unwrap();
        let own = Arc::clone(&file);
        let remote = thread.spawn_task(move || async move {
            let memory: Arc<[AtomicBool; 0]> = Arc::new([]);
            // SAFETY: an empty list describes no memory.
            let none = unsafe { IoBuf::from_raw_parts(Vec::new(), memory) };
            let (count, _) = read_vectored_at(&own, none, 0).await;
            assert_eq!(count.unwrap(), 0);

            let memory = Arc::new(Memory::new(100));
            let keep: Arc<dyn Any + Send + Sync> = memory.clone();
            let list = [(50, 30), (0, 10), (10, 0), (90, 10)];
            // SAFETY: the pieces lie in `memory`, which the buffer keeps.
            let buf = unsafe { IoBuf::from_raw_parts(memory.list(&list), keep) };
            let (count, buf) = read_vectored_at(&own, buf, 20).await;
            assert_eq!(count.unwrap(), 50);
            let (count, _) = write_vectored_at(&own, buf, 200, PLAIN).await;
            assert_eq!(count.unwrap(), 50);
            let copy = memory.copy();
            (copy[50], copy[79], copy[0], copy[9], copy[90], copy[99])
        });
        assert_eq!(remote.join(), Ok((20, 49, 50, 59, 60, 69)));
        let mut seen = [0; 50];
        file.read_exact_at(&mut seen, 200).unwrap();
        assert_eq!(seen[..], bytes(20, 50));
    }
}

/// Memory that is written behind Rust's back.
struct Memory {
    cells: Box<[std::sync::atomic::AtomicU8]>,
    freed: Option<Arc<AtomicBool>>,
}

impl Memory {
    fn new(len: usize) -> Self {
        Self {
            cells: (0..len).map(|_| Default::default()).collect(),
            freed: None,
        }
    }

    fn list(&self, pieces: &[(usize, usize)]) -> Vec<iovec> {
        let piece = |&(at, len): &(usize, usize)| iovec {
            iov_base: self.cells[at..at + len].as_ptr().cast_mut().cast(),
            iov_len: len,
        };
        pieces.iter().map(piece).collect()
    }

    fn copy(&self) -> Vec<u8> {
        let load = |cell: &std::sync::atomic::AtomicU8| cell.load(Ordering::SeqCst);
        self.cells.iter().map(load).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(freed) = &self.freed {
            freed.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
fn short_reads_and_errors() {
    for thread in threads("short") {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.write_all_at(&bytes(0, 100), 0).unwrap();
        let reading = Arc::new(File::open("/dev/null").unwrap());
        thread
            .spawn_task(move || async move {
                let buf = || IoBuf::from_vec(vec![0; 64]);
                let (count, back) = read_full_at(&file, buf(), 80).await;
                assert_eq!((count.unwrap(), back.len()), (20, 44));
                let (count, _) = read_vectored_at(&file, buf(), 100).await;
                assert_eq!(count.unwrap(), 0);
                let errno = |result: std::io::Result<usize>| result.unwrap_err().raw_os_error();
                for offset in [u64::MAX, 1 << 63] {
                    let (count, back) = read_vectored_at(&file, buf(), offset).await;
                    assert_eq!((errno(count), back.len()), (Some(libc::EINVAL), 64));
                    let (count, _) = write_vectored_at(&file, buf(), offset, PLAIN).await;
                    assert_eq!(errno(count), Some(libc::EINVAL));
                    let error = fallocate(&file, 0, offset, 1).await.unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
                }
                let (count, back) = write_all_at(&reading, buf(), 0, PLAIN).await;
                assert_eq!((errno(count), back.len()), (Some(libc::EBADF), 64));
                let (count, back) = write_all_at(&file, buf(), 1000, FUA).await;
                assert_eq!((count.unwrap(), back.len()), (64, 0));
                assert_eq!(file.metadata().unwrap().len(), 1064);
            })
            .join()
            .unwrap();
    }
}

/// More operations at once than the rings have places.
#[test]
fn thousand_at_once() {
    const BLOCK: usize = 512;
    for thread in threads("thousand") {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let own = Arc::clone(&file);
        let remote = thread.spawn_task(move || async move {
            let writes = (0..1000u64).map(|n| {
                let file = Arc::clone(&own);
                async move {
                    let data = IoBuf::from_vec(bytes(n as u8, BLOCK));
                    let at = n * BLOCK as u64;
                    write_vectored_at(&file, data, at, PLAIN).await.0.unwrap()
                }
            });
            let written: usize = join_all(writes).await.into_iter().sum();
            let tasks: Vec<_> = (0..1000u64)
                .map(|n| {
                    let file = Arc::clone(&own);
                    spawn_local(async move {
                        let buf = IoBuf::zeroed_aligned(BLOCK, BLOCK).unwrap();
                        let (count, buf) = read_vectored_at(&file, buf, n * BLOCK as u64).await;
                        assert_eq!(count.unwrap(), BLOCK);
                        assert_eq!(buf.bytes().unwrap(), bytes(n as u8, BLOCK));
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            written
        });
        assert_eq!(remote.join(), Ok(1000 * BLOCK));
    }
}

/// A read of an empty pipe does not end by itself. Its memory must stay while the kernel may write
/// to it, and go when the kernel has let go.
#[test]
fn dropped_read_keeps_its_memory_until_it_ends() {
    let thread = threads("dropped").remove(0);
    if thread.reactor() != "io_uring" {
        // The helper threads use preadv, which pipes refuse.
        return;
    }
    let (reader, mut writer): (PipeReader, PipeWriter) = std::io::pipe().unwrap();
    let reader = Arc::new(reader);
    let freed = Arc::new(AtomicBool::new(false));
    let mut memory = Memory::new(16);
    memory.freed = Some(Arc::clone(&freed));
    let memory = Arc::new(memory);
    let weak = Arc::downgrade(&reader);
    let seen = Arc::clone(&freed);
    thread
        .spawn_task(move || async move {
            let list = memory.list(&[(0, 16)]);
            // SAFETY: the piece lies in `memory`, which the buffer keeps.
            let buf = unsafe { IoBuf::from_raw_parts(list, memory) };
            let read = read_vectored_at(&reader, buf, 0);
            let none = timeout(Duration::from_millis(5), read).await;
            assert!(none.is_none());
            assert!(!seen.load(Ordering::SeqCst), "freed at once");
            let deadline = Instant::now() + Duration::from_secs(10);
            while !seen.load(Ordering::SeqCst) && Instant::now() < deadline {
                sleep(Duration::from_millis(1)).await;
            }
            assert!(seen.load(Ordering::SeqCst), "never freed");
        })
        .join()
        .unwrap();
    // And the pipe: writing finds nobody who reads.
    assert!(weak.upgrade().is_none());
    assert!(writer.write(b"x").is_err());
}

#[test]
fn dropped_writes_and_reads_of_files() {
    for thread in threads("cancel") {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.write_all_at(&vec![7; 1 << 20], 0).unwrap();
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        struct Live(Arc<std::sync::atomic::AtomicUsize>, Memory);
        impl Drop for Live {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let live = Arc::clone(&count);
        let remote = thread.spawn_task(move || async move {
            for round in 0..300u64 {
                live.fetch_add(1, Ordering::SeqCst);
                let memory = Arc::new(Live(Arc::clone(&live), Memory::new(4096)));
                let list = memory.1.list(&[(0, 1024), (2048, 1024)]);
                // SAFETY: the pieces lie in the memory that the buffer keeps.
                let buf = unsafe { IoBuf::from_raw_parts(list, memory) };
                let file = Arc::clone(&file);
                let task = spawn_local(async move {
                    let at = round * 2048;
                    if round % 3 == 0 {
                        write_vectored_at(&file, buf, at, FUA).await.0
                    } else {
                        read_vectored_at(&file, buf, at).await.0
                    }
                });
                for _ in 0..round % 4 {
                    crate::yield_now().await;
                }
                drop(task);
            }
            // The descriptor is still good.
            let (result, _) = read_vectored_at(&file, IoBuf::from_vec(vec![0; 10]), 0).await;
            result.unwrap()
        });
        assert_eq!(remote.join(), Ok(10));
        thread.shutdown();
        assert_eq!(count.load(Ordering::SeqCst), 0, "memory was not freed");
    }
}

#[test]
fn shutdown_waits_for_the_kernel() {
    let thread = threads("busy").remove(0);
    if thread.reactor() != "io_uring" {
        return;
    }
    let (reader, _writer) = std::io::pipe().unwrap();
    let reader = Arc::new(reader);
    let freed = Arc::new(AtomicBool::new(false));
    let mut memory = Memory::new(16);
    memory.freed = Some(Arc::clone(&freed));
    let memory = Arc::new(memory);
    thread
        .spawn_task(move || async move {
            let list = memory.list(&[(0, 16)]);
            // SAFETY: the piece lies in `memory`, which the buffer keeps.
            let buf = unsafe { IoBuf::from_raw_parts(list, memory) };
            read_vectored_at(&reader, buf, 0).await.0.unwrap();
        })
        .detach();
    thread.spawn_task(|| async {}).join().unwrap();
    std::thread::sleep(Duration::from_millis(2));
    thread.shutdown();
    assert!(freed.load(Ordering::SeqCst));
}
