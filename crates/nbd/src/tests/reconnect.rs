//! Servers that stop, die and come back while requests are on their way.

use nix::sys::signal::Signal;

use super::*;

const SLOW: &str = "nbdkit -f -U SOCKET --filter=delay file disk.raw wdelay=300ms rdelay=300ms";

fn folder() -> Folder {
    let folder = Folder::new();
    folder.run("truncate -s 1M disk.raw");
    folder
}

fn with_delay(folder: &Folder, delay: Duration) -> Arc<dyn Node> {
    let options = ClientOptions {
        reconnect_delay: delay,
        ..ClientOptions::new(folder.socket())
    };
    disk(open(options).unwrap())
}

/// Starts 20 writes of 4 KiB and 20 reads; they go on in the background.
fn start(disk: &Arc<dyn Node>) -> Started {
    let (disk, thread) = (Arc::clone(disk), thread());
    let requests = thread.spawn_task(move || async move {
        let requests = (0..40u64).map(|at| {
            let disk = &disk;
            async move {
                match at % 2 {
                    0 => write(&**disk, at << 12, &[at as u8 + 1; 4096]).await,
                    _ => read(&**disk, at << 12, 4096).await.map(|_| ()),
                }
            }
        });
        event::join_all(requests).await
    });
    Started(requests, thread)
}

/// Requests, and the thread that they run on.
struct Started(
    event::Remote<Vec<std::io::Result<()>>>,
    #[allow(dead_code, reason = "held so that it lives")] event::IoThread,
);

impl Started {
    fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    fn join(self) -> Vec<std::io::Result<()>> {
        self.0.join().unwrap()
    }
}

fn assert_written(folder: &Folder) {
    let bytes = std::fs::read(folder.path("disk.raw")).unwrap();
    for at in (0..40).step_by(2) {
        let piece = &bytes[at << 12..][..4096];
        assert!(piece.iter().all(|byte| *byte == at as u8 + 1), "{at}");
    }
}

#[test]
fn a_server_that_stops_for_a_while_is_waited_for() {
    let folder = folder();
    let peer = folder.spawn(SLOW);
    let disk = with_delay(&folder, Duration::ZERO);
    let requests = start(&disk);
    std::thread::sleep(Duration::from_millis(100));
    peer.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!requests.is_finished());
    peer.signal(Signal::SIGCONT);
    requests.join().into_iter().for_each(Result::unwrap);
    assert_written(&folder);
}

#[test]
fn requests_are_sent_again_to_a_server_that_comes_back() {
    let folder = folder();
    let peer = folder.spawn(SLOW);
    let disk = with_delay(&folder, Duration::from_secs(20));
    let requests = start(&disk);
    std::thread::sleep(Duration::from_millis(100));
    peer.signal(Signal::SIGKILL);
    drop(peer);
    // And more while there is none.
    let more = start(&disk);
    std::thread::sleep(Duration::from_millis(1000));
    assert!(!requests.is_finished() && !more.is_finished());
    let _peer = folder.spawn(SLOW);
    for done in [requests, more] {
        done.join().into_iter().for_each(Result::unwrap);
    }
    assert_written(&folder);
}

#[test]
fn requests_fail_when_the_server_stays_away_and_work_when_it_is_back() {
    let folder = folder();
    for delay in [0, 500] {
        let peer = folder.spawn(SLOW);
        let disk = with_delay(&folder, Duration::from_millis(delay));
        let requests = start(&disk);
        std::thread::sleep(Duration::from_millis(100));
        let killed = Instant::now();
        drop(peer);
        let done = requests.join();
        assert!(killed.elapsed() >= Duration::from_millis(delay));
        for result in done {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EIO));
        }
        let _peer = folder.spawn(SLOW);
        wait_for(|| {
            let disk = Arc::clone(&disk);
            block_on(move || async move { write(&*disk, 0, b"x").await }).is_ok()
        });
    }
}

#[test]
fn a_server_of_another_size_is_not_the_same() {
    let folder = folder();
    let peer = folder.spawn("nbdkit -f -U SOCKET memory 1M");
    let disk = with_delay(&folder, Duration::from_millis(300));
    drop(peer);
    let _peer = folder.spawn("nbdkit -f -U SOCKET memory 2M");
    let done = block_on(move || async move { read(&*disk, 0, 512).await });
    assert_eq!(done.unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn the_first_connection_is_waited_for() {
    let folder = folder();
    let options = ClientOptions {
        open_timeout: Duration::from_secs(20),
        ..ClientOptions::new(folder.socket())
    };
    let error = open(ClientOptions::new(folder.socket())).err().unwrap();
    assert!(error.to_string().contains("cannot connect"), "{error}");
    let opened = std::thread::spawn(move || open(options));
    std::thread::sleep(Duration::from_millis(200));
    let _peer = folder.spawn("nbdkit -f -U SOCKET memory 1M");
    assert!(opened.join().unwrap().is_ok());
}

#[test]
fn our_server_may_go_and_come_back() {
    let folder = folder();
    let (_, node) = memory(1 << 20);
    let first = server();
    first.add_export(writable("", Arc::clone(&node))).unwrap();
    first.listen(&folder.socket()).unwrap();
    let disk = with_delay(&folder, Duration::from_secs(20));
    let requests = start(&disk);
    first.stop().wait().unwrap();
    let more = start(&disk);
    std::thread::sleep(Duration::from_millis(200));
    let second = server();
    second.add_export(writable("", node)).unwrap();
    second.listen(&folder.socket()).unwrap();
    for done in [requests, more] {
        done.join().into_iter().for_each(Result::unwrap);
    }
}

/// Writes and reads back in a region of its own, until `over`.
async fn work(disk: &dyn Node, region: u64, over: &std::sync::atomic::AtomicBool) -> u32 {
    const SIZE: usize = 64 << 10;
    let start = region * SIZE as u64;
    let mut model = vec![0; SIZE];
    let mut rounds = 0;
    while !over.load(std::sync::atomic::Ordering::Relaxed) {
        rounds += 1;
        let numbers = pattern(3, rounds * 16 + u32::try_from(region).unwrap() + 1);
        let at = usize::from(numbers[0]) * 200;
        let len = 1 + usize::from(numbers[1]) * 50;
        let bytes = pattern(len, rounds);
        write(disk, start + at as u64, &bytes).await.unwrap();
        model[at..at + len].copy_from_slice(&bytes);
        let from = usize::from(numbers[2]) * 100;
        let there = read(disk, start + from as u64, SIZE - from).await.unwrap();
        assert!(there == model[from..], "region {region}, round {rounds}");
    }
    assert!(read(disk, start, SIZE).await.unwrap() == model);
    rounds
}

#[test]
fn nothing_is_lost_or_misplaced_over_many_restarts() {
    let folder = Folder::new();
    let (_, node) = memory(2 << 20);
    let start = || {
        let server = server();
        server.add_export(writable("", Arc::clone(&node))).unwrap();
        server.listen(&folder.socket()).unwrap();
        server
    };
    let mut server = start();
    let disk = with_delay(&folder, Duration::from_secs(20));
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let thread = thread();
    let workers = {
        let (disk, over) = (Arc::clone(&disk), Arc::clone(&over));
        thread.spawn_task(move || async move {
            let workers = (0..32).map(|region| work(&*disk, region, &over));
            event::join_all(workers).await
        })
    };
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(80));
        server.stop().wait().unwrap();
        server = start();
    }
    std::thread::sleep(Duration::from_millis(80));
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    let rounds = workers.join().unwrap();
    assert!(rounds.iter().all(|rounds| *rounds > 1), "{rounds:?}");
}
