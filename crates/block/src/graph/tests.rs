use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event::{IoBuf, IoThread, IoThreadConfig, WriteFlags};

use super::{Change, ChangeKind, DetectZeroes, Edge, Observer, Vertex, drain};
use crate::storage::memory::Memory;
use crate::{Node, NodeFuture, Raw, SizeWatcher};

const SIZE: u64 = 64 << 10;

fn disk(name: &str, byte: u8) -> Arc<Vertex> {
    let memory = Memory::new(SIZE as usize, false);
    memory.bytes().fill(byte);
    Vertex::new(name, Arc::new(Raw::new(name.to_owned(), memory)))
}

fn run<F, T>(make: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let thread = IoThread::spawn(IoThreadConfig::new("test")).unwrap();
    thread.spawn_task(make).join().unwrap()
}

async fn first_byte(node: &dyn Node) -> u8 {
    let (result, buf) = node.read_vectored(IoBuf::from_vec(vec![0; 512]), 0).await;
    result.unwrap();
    buf.bytes().unwrap()[0]
}

async fn write(node: &dyn Node, offset: u64, byte: u8) -> std::io::Result<()> {
    let buf = IoBuf::from_vec(vec![byte; 512]);
    node.write_vectored(buf, offset, WriteFlags::default())
        .await
        .0
}

#[test]
fn an_edge_leads_where_it_is_led() {
    run(|| async {
        let edge = Edge::new(None);
        assert_eq!((edge.size(), edge.is_some()), (0, false));
        let (result, _) = edge.read_vectored(IoBuf::from_vec(vec![0; 512]), 0).await;
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOMEDIUM));
        edge.lead(Some(disk("a", 1)));
        assert_eq!((first_byte(&*edge).await, edge.name()), (1, "a".to_owned()));
        edge.lead(Some(disk("b", 2)));
        assert_eq!((first_byte(&*edge).await, edge.name()), (2, "b".to_owned()));
    });
}

#[test]
fn watchers_hear_of_the_present_target_only() {
    run(|| async {
        let heard = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&heard);
        let watcher: Arc<SizeWatcher> = Arc::new(move |size| told.store(size, Ordering::SeqCst));
        let (a, b) = (disk("a", 0), disk("b", 0));
        let edge = Edge::new(Some(Arc::clone(&a)));
        edge.watch_size(Arc::downgrade(&watcher));
        a.resize(2 * SIZE).await.unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), 2 * SIZE);
        edge.lead(Some(Arc::clone(&b)));
        assert_eq!(heard.load(Ordering::SeqCst), SIZE);
        a.resize(4 * SIZE).await.unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), SIZE);
        b.resize(3 * SIZE).await.unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), 3 * SIZE);
    });
}

/// Many threads write through an edge that is led from one disk to another again and again; each
/// write ends up on exactly one of them, and none is on its way while the edge is drained.
#[test]
fn swapping_under_load_loses_nothing() {
    const WRITERS: u64 = 4;
    const WRITES: u64 = 2000;
    #[derive(Default)]
    struct Count {
        begun: AtomicUsize,
        ended: AtomicUsize,
    }
    impl Observer for Count {
        fn before(&self, _change: Change) -> Option<NodeFuture<'_, std::io::Result<()>>> {
            self.begun.fetch_add(1, Ordering::SeqCst);
            Some(Box::pin(async {
                event::yield_now().await;
                Ok(())
            }))
        }
        fn after(&self, _change: Change) {
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
    }
    let count = Arc::new(Count::default());
    let disks = [disk("a", 0), disk("b", 0)];
    for disk in &disks {
        disk.observe(Arc::<Count>::clone(&count));
    }
    let edge = Edge::new(Some(Arc::clone(&disks[0])));
    let threads: Vec<IoThread> = (0..WRITERS)
        .map(|_| IoThread::spawn(IoThreadConfig::new("writer")).unwrap())
        .collect();
    let writers: Vec<_> = threads
        .iter()
        .enumerate()
        .map(|(at, thread)| {
            let edge = Arc::clone(&edge);
            thread.spawn_task(move || async move {
                for n in 0..WRITES {
                    write(&*edge, at as u64 * 4096, n as u8).await.unwrap();
                }
            })
        })
        .collect();
    let swaps = {
        let (edge, disks, count) = (Arc::clone(&edge), disks.clone(), Arc::clone(&count));
        run(move || async move {
            let mut swaps = 0;
            while count.ended.load(Ordering::SeqCst) < (WRITERS * WRITES) as usize {
                let drained = drain([Arc::clone(&edge)]).await;
                let begun = count.begun.load(Ordering::SeqCst);
                assert_eq!(begun, count.ended.load(Ordering::SeqCst));
                event::yield_now().await;
                assert_eq!(begun, count.begun.load(Ordering::SeqCst));
                swaps += 1;
                edge.lead(Some(Arc::clone(&disks[swaps % 2])));
                drop(drained);
                event::yield_now().await;
            }
            swaps
        })
    };
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(swaps > 1, "{swaps} swaps");
}

#[test]
fn a_closed_edge_holds_requests_back_and_lets_them_go_on() {
    run(|| async {
        let edge = Edge::new(Some(disk("a", 1)));
        let drained = drain([Arc::clone(&edge)]).await;
        let reader = Arc::clone(&edge);
        let reading = event::spawn_local(async move { first_byte(&*reader).await });
        event::sleep(Duration::from_millis(5)).await;
        assert!(!reading.is_finished());
        edge.lead(Some(disk("b", 2)));
        drop(drained);
        assert_eq!(reading.await, 2);
    });
}

#[derive(Default)]
struct Log(Mutex<Vec<(&'static str, Change)>>);

impl Observer for Log {
    fn before(&self, change: Change) -> Option<NodeFuture<'_, std::io::Result<()>>> {
        self.0.lock().unwrap().push(("before", change));
        None
    }
    fn after(&self, change: Change) {
        self.0.lock().unwrap().push(("after", change));
    }
    fn follow(&self, change: Change) -> Option<NodeFuture<'_, std::io::Result<()>>> {
        self.0.lock().unwrap().push(("follow", change));
        None
    }
}

#[test]
fn observers_are_told_of_changes_however_they_end() {
    run(|| async {
        let disk = disk("a", 0);
        let log = Arc::new(Log::default());
        let observer: Arc<dyn Observer> = Arc::<Log>::clone(&log);
        disk.observe(Arc::clone(&observer));
        let edge = Edge::new(Some(Arc::clone(&disk)));
        let change = |kind, offset| Change {
            kind,
            offset,
            len: 512,
        };
        let take = || std::mem::take(&mut *log.0.lock().unwrap());
        write(&*edge, 512, 7).await.unwrap();
        let done = change(ChangeKind::Write, 512);
        assert_eq!(
            take(),
            [("before", done), ("after", done), ("follow", done)]
        );
        // One that fails.
        write(&*edge, SIZE, 7).await.unwrap_err();
        let failed = change(ChangeKind::Write, SIZE);
        assert_eq!(take(), [("before", failed), ("after", failed)]);
        edge.discard(0, 512).await.unwrap();
        assert_eq!(take()[0], ("before", change(ChangeKind::Discard, 0)));
        edge.write_zeroes(0, 512, crate::ZeroFlags::default())
            .await
            .unwrap();
        assert_eq!(take()[0], ("before", change(ChangeKind::Zeroes, 0)));
        disk.ignore(&observer);
        write(&*edge, 512, 7).await.unwrap();
        assert_eq!(take(), []);
    });
}

#[test]
fn a_node_opened_anew_keeps_its_users_and_observers() {
    run(|| async {
        let vertex = disk("a", 1);
        let log = Arc::new(Log::default());
        vertex.observe(Arc::<Log>::clone(&log));
        let edge = Edge::new(Some(Arc::clone(&vertex)));
        let heard = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&heard);
        let watcher: Arc<SizeWatcher> = Arc::new(move |size| told.store(size, Ordering::SeqCst));
        edge.watch_size(Arc::downgrade(&watcher));
        let other = Memory::new(2 * SIZE as usize, false);
        other.bytes().fill(9);
        let drained = drain([Arc::clone(&edge)]).await;
        let old = vertex.replace(Arc::new(Raw::new("a".to_owned(), other)));
        drop(drained);
        assert_eq!((old.size(), edge.size()), (SIZE, 2 * SIZE));
        assert_eq!(heard.load(Ordering::SeqCst), 2 * SIZE);
        assert_eq!(first_byte(&*edge).await, 9);
        old.resize(7 * SIZE).await.unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), 2 * SIZE);
        write(&*edge, 0, 3).await.unwrap();
        assert_eq!(log.0.lock().unwrap().len(), 3);
    });
}

#[test]
fn writes_of_zeros_are_found_if_somebody_wants_that() {
    run(|| async {
        let vertex = disk("a", 1);
        let log = Arc::new(Log::default());
        vertex.observe(Arc::<Log>::clone(&log));
        let edge = Edge::new(Some(Arc::clone(&vertex)));
        let kinds = || {
            let told = std::mem::take(&mut *log.0.lock().unwrap());
            told.iter()
                .map(|(_, change)| change.kind)
                .collect::<Vec<_>>()
        };
        write(&*edge, 0, 0).await.unwrap();
        assert_eq!(kinds(), [ChangeKind::Write; 3]);
        vertex.set_detect_zeroes(DetectZeroes::On);
        write(&*edge, 0, 0).await.unwrap();
        assert_eq!(kinds(), [ChangeKind::Zeroes; 3]);
        assert_eq!(first_byte(&*edge).await, 0);
        let mut bytes = vec![0; 8192];
        bytes[8191] = 1;
        let flags = WriteFlags::default();
        let written = edge.write_vectored(IoBuf::from_vec(bytes), 0, flags).await;
        written.0.unwrap();
        assert_eq!(kinds(), [ChangeKind::Write; 3]);
    });
}
