//! Jobs under load.
//!
//! Writers on threads of their own change a disk through an edge while a job works on it. Each has
//! its own 4 KiB pieces, those of different writers lying side by side, so that what a disk should
//! have is known, and yet they meet in every cluster and every granule.

mod copies;
mod errors;
mod verbs;

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use block::graph::{Edge, Vertex, drain};
use block::qcow2::CreateOptions;
use block::storage::memory::Memory;
use block::{DiskSpec, Format, Image, Node, OpenOptions, Raw, WriteFlags, ZeroFlags};
use event::{IoBuf, IoThread, IoThreadConfig};
use tempfile::TempDir;

use super::*;

/// What one writer has to itself.
const PIECE: u64 = 4096;
const SIZE: u64 = 2 << 20;

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// The I/O thread of the jobs, the jobs, and what they told.
#[derive(Clone)]
struct Lab {
    thread: IoThread,
    jobs: Jobs,
    events: Arc<Mutex<Vec<JobEvent>>>,
}

impl Lab {
    fn new() -> Self {
        let config = IoThreadConfig {
            stack_size: 2 << 20,
            ..IoThreadConfig::new("block")
        };
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&events);
        Self {
            thread: IoThread::spawn(config).unwrap(),
            jobs: Jobs::new(Arc::new(move |event| told.lock().unwrap().push(event))),
            events,
        }
    }

    /// Runs a future on the thread of the jobs.
    fn run<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        self.thread.spawn_task(make).join().unwrap()
    }

    /// What was told so far: the names of events, or the statuses.
    fn told(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let told = events.iter().map(|event| match event {
            JobEvent::StatusChange { status, .. } => status.to_string(),
            JobEvent::Error {
                operation, action, ..
            } => format!("{operation} {action}"),
            other => other.name().to_owned(),
        });
        told.collect()
    }

    fn has_told(&self, what: &str) -> bool {
        self.told().iter().any(|told| told == what)
    }
}

/// Waits until something is so.
async fn until(mut so: impl FnMut() -> bool) {
    for _ in 0..4000 {
        if so() {
            return;
        }
        event::sleep(Duration::from_millis(2)).await;
    }
    panic!("it did not happen within 8 s");
}

/// A disk in memory.
fn in_memory(name: &str, size: u64) -> (Memory, Arc<Vertex>) {
    let memory = Memory::new(size as usize, false);
    let raw = Raw::new(name.to_owned(), memory.clone());
    (memory, Vertex::new(name, Arc::new(raw)))
}

/// A new qcow2 image on top of another one.
async fn qcow2(
    directory: &Path,
    name: &str,
    size: u64,
    cluster: u64,
    backing: Option<&Arc<Vertex>>,
) -> (Image, Arc<Vertex>) {
    let spec = DiskSpec {
        format: Some(Format::Qcow2),
        ..DiskSpec::new(directory.join(name))
    };
    let options = CreateOptions {
        cluster_size: cluster,
        backing_file: backing.map(|_| b"below".to_vec()),
        backing_format: backing.map(|_| "raw".to_owned()),
        ..CreateOptions::new(size)
    };
    block::create_image(&spec, &options).await.unwrap();
    let open = OpenOptions {
        backing: false,
        ..OpenOptions::default()
    };
    let image = block::open_image(&spec, &open).await.unwrap();
    if let Image::Qcow2(qcow2) = &image {
        qcow2.backing().lead(backing.map(Arc::clone));
    }
    let vertex = Vertex::new(name, image.node());
    (image, vertex)
}

async fn read_all(node: &dyn Node, size: u64) -> Vec<u8> {
    let buf = IoBuf::from_vec(vec![0xee; size as usize]);
    let (result, buf) = node.read_vectored(buf, 0).await;
    result.unwrap();
    buf.into_vec().unwrap()
}

async fn write(node: &dyn Node, offset: u64, bytes: Vec<u8>) -> std::io::Result<()> {
    let buf = IoBuf::from_vec(bytes);
    node.write_vectored(buf, offset, WriteFlags::default())
        .await
        .0
}

/// Fills some pieces of a disk.
async fn scribble(node: &dyn Node, seed: u64, pieces: u64) {
    let mut random = Random(seed);
    for _ in 0..pieces {
        let at = random.below(node.size() / PIECE) * PIECE;
        let byte = random.below(255) as u8 + 1;
        write(node, at, vec![byte; PIECE as usize]).await.unwrap();
    }
}

/// Compares, and says where it differs.
fn same(what: &str, have: &[u8], want: &[u8]) {
    assert_eq!(have.len(), want.len(), "{what}: sizes");
    if let Some(at) = have.iter().zip(want).position(|(have, want)| have != want) {
        let count = have.iter().zip(want).filter(|(a, b)| a != b).count();
        panic!(
            "{what}: {count} bytes differ, the first at {at:#x}: {:#x}, not {:#x}",
            have[at], want[at]
        );
    }
}

/// Writers at work, and what they wrote.
struct Load {
    stop: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
    model: Arc<Mutex<Vec<u8>>>,
    writers: Vec<event::Remote<()>>,
    _threads: Vec<IoThread>,
}

const WRITERS: u64 = 3;

impl Load {
    /// Begins to change a disk that has these bytes.
    fn begin(edge: &Arc<Edge>, seed: u64, bytes: Vec<u8>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let steps = Arc::new(AtomicU64::new(0));
        let size = bytes.len() as u64;
        let model = Arc::new(Mutex::new(bytes));
        let threads: Vec<IoThread> = (0..WRITERS)
            .map(|_| IoThread::spawn(IoThreadConfig::new("guest")).unwrap())
            .collect();
        let writers = threads.iter().zip(0..).map(|(thread, id)| {
            let (edge, stop, steps) = (Arc::clone(edge), Arc::clone(&stop), Arc::clone(&steps));
            let model = Arc::clone(&model);
            let random = Random(seed * 100 + id);
            thread.spawn_task(move || async move {
                let mut random = random;
                while !stop.load(Ordering::Relaxed) {
                    change(&edge, &model, &mut random, id, size).await;
                    if steps.fetch_add(1, Ordering::Relaxed) % 4 == 0 {
                        event::sleep(Duration::from_micros(300)).await;
                    }
                }
            })
        });
        Self {
            writers: writers.collect(),
            stop,
            steps,
            model,
            _threads: threads,
        }
    }

    /// Waits until they have done some more.
    async fn go_on(&self, steps: u64) {
        let end = self.steps.load(Ordering::Relaxed) + steps;
        until(|| self.steps.load(Ordering::Relaxed) >= end).await;
    }

    /// Ends the load: what the disk should have.
    async fn end(mut self) -> Vec<u8> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            writer.await.unwrap();
        }
        std::mem::take(&mut *self.model.lock().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One change by one writer to one of its pieces.
async fn change(edge: &Edge, model: &Mutex<Vec<u8>>, random: &mut Random, id: u64, size: u64) {
    let pieces = size / PIECE / WRITERS;
    let piece = (random.below(pieces) * WRITERS + id) * PIECE;
    let sectors = PIECE / 512;
    let from = random.below(sectors);
    let to = from + 1 + random.below(sectors - from);
    let (at, len) = (piece + from * 512, (to - from) * 512);
    let mut byte = random.below(255) as u8 + 1;
    let mut range = at as usize..(at + len) as usize;
    match random.below(8) {
        0 => {
            let flags = ZeroFlags {
                may_unmap: random.below(2) == 0,
                fua: false,
            };
            edge.write_zeroes(at, len, flags).await.unwrap();
            byte = 0;
        }
        1 => {
            // What a discard leaves is not known, until it is zeroed.
            edge.discard(piece, PIECE).await.unwrap();
            let flags = ZeroFlags::default();
            edge.write_zeroes(piece, PIECE, flags).await.unwrap();
            byte = 0;
            range = piece as usize..(piece + PIECE) as usize;
        }
        _ => write(edge, at, vec![byte; len as usize]).await.unwrap(),
    }
    model.lock().unwrap()[range].fill(byte);
}

/// The change of the graph of a job with one edge.
fn pivot(edge: &Arc<Edge>, target: &Arc<Vertex>) -> Finish {
    let (edge, target) = (Arc::clone(edge), Arc::clone(target));
    Box::new(move |ending, settler| {
        Box::pin(async move {
            let drained = drain([Arc::clone(&edge)]).await;
            settler.settle().await?;
            if ending == Ending::Pivot {
                edge.lead(Some(target));
            }
            drop(drained);
            Ok(())
        })
    })
}

/// Begins a job while nobody writes through the edge.
async fn begin(
    jobs: &Jobs,
    options: JobOptions,
    driver: Box<dyn Driver>,
    edge: &Arc<Edge>,
) -> Arc<Job> {
    let created = jobs.create(options, driver).unwrap();
    let drained = drain([Arc::clone(edge)]).await;
    created.attach().unwrap();
    drop(drained);
    created.start()
}
