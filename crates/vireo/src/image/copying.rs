//! Work on a whole disk: pieces of it, by several I/O threads, with progress.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::common;
use crate::failure::{Failure, Result};
use crate::progress::Progress;

/// Bytes of a piece.
pub(super) const PIECE: u64 = 2 << 20;
/// Pieces that a thread has in hand at once, unless the work says otherwise: enough to read one
/// while others are written.
pub(super) const AT_ONCE: usize = 4;
/// Most threads.
const THREADS: usize = 16;
/// How often progress is shown on a terminal.
const TICK: Duration = Duration::from_millis(100);

/// What is done to a piece: bytes from an offset on.
pub(super) type Step =
    Arc<dyn Fn(u64, u64) -> Pin<Box<dyn Future<Output = io::Result<()>>>> + Send + Sync>;

struct Work {
    size: u64,
    next: AtomicU64,
    done: AtomicU64,
    stop: Arc<AtomicBool>,
    step: Step,
}

/// How the work ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All of it is done.
    Complete,
    /// The user wanted it to end.
    Interrupted,
}

/// Does `step` to all pieces of a disk of `size` bytes, `at_once` of them on each thread. `show`
/// shows progress as `what`.
pub(super) fn all_pieces(
    size: u64,
    what: &str,
    show: bool,
    at_once: usize,
    step: Step,
) -> Result<End> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::Failed(format!("cannot wait for signals: {error}")))?;
    }
    let work = Arc::new(Work {
        size,
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        stop,
        step,
    });
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let count = processors.clamp(1, THREADS);
    let mut tasks = Vec::new();
    let mut threads = Vec::new();
    let (ends, ended) = mpsc::channel::<()>();
    for number in 0..count {
        let thread = common::thread(&format!("copy{number}"))?;
        for _ in 0..at_once {
            let (work, ends) = (Arc::clone(&work), ends.clone());
            let task = thread.spawn_task(move || async move {
                let result = pieces(work).await;
                drop(ends);
                result
            });
            tasks.push(task);
        }
        threads.push(thread);
    }
    drop(ends);
    let bar = show.then(|| Progress::new(what, size));
    if let Some(bar) = &bar {
        // The last task to end hangs up.
        while ended.recv_timeout(TICK) != Err(RecvTimeoutError::Disconnected) {
            bar.show(work.done.load(Ordering::Relaxed));
        }
    }
    let mut failed = None;
    for task in tasks {
        match task.join() {
            Ok(Ok(())) => (),
            Ok(Err(error)) => failed = Some(error.to_string()),
            Err(gone) => failed = Some(gone.to_string()),
        }
    }
    if let Some(bar) = bar {
        bar.end(work.done.load(Ordering::Relaxed));
    }
    match failed {
        Some(why) => Err(Failure::Failed(format!("cannot {what}: {why}"))),
        None if work.done.load(Ordering::Relaxed) < size => Ok(End::Interrupted),
        None => Ok(End::Complete),
    }
}

async fn pieces(work: Arc<Work>) -> io::Result<()> {
    loop {
        if work.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let at = work.next.fetch_add(PIECE, Ordering::Relaxed);
        if at >= work.size {
            return Ok(());
        }
        let len = PIECE.min(work.size - at);
        if let Err(error) = (work.step)(at, len).await {
            // Others need not go on.
            work.stop.store(true, Ordering::Relaxed);
            return Err(error);
        }
        work.done.fetch_add(len, Ordering::Relaxed);
    }
}

/// Where `bytes`, which are at `offset` of a disk, are not zero, in units of `unit` bytes of the
/// disk.
pub(super) fn data_runs(bytes: &[u8], offset: u64, unit: u64) -> Vec<Range<usize>> {
    let unit = unit.max(1);
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let left = unit - (offset + at as u64) % unit;
        let next = usize::try_from(left).map_or(bytes.len(), |left| bytes.len().min(at + left));
        if !is_zero(bytes.get(at..next).unwrap_or_default()) {
            match runs.last_mut() {
                Some(last) if last.end == at => last.end = next,
                _ => runs.push(at..next),
            }
        }
        at = next;
    }
    runs
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|chunk| chunk == &ZEROS[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_found() {
        let mut bytes = vec![0; 10_000];
        bytes[5000] = 1;
        bytes[5500] = 1;
        let page = 4096..8192;
        assert_eq!(data_runs(&bytes, 0, 4096), std::slice::from_ref(&page));
        bytes[8500] = 1;
        // What is at 1096 is 3000 away from the next page of the disk.
        let rest = 3000..10_000;
        assert_eq!(data_runs(&bytes, 1096, 4096), std::slice::from_ref(&rest));
        assert_eq!(data_runs(&bytes, 0, 1000), [5000..6000, 8000..9000]);
        assert!(is_zero(&bytes[..5000]));
        assert!(data_runs(&[], 7, 512).is_empty());
    }
}
