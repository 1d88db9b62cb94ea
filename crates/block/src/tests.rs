use std::fs::File;
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use event::{IoThread, IoThreadConfig};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::storage::memory::Memory;

/// Runs a future on an I/O thread, as a device would.
fn run<T, F, M>(make: M) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
    M: FnOnce() -> F + Send + 'static,
{
    static THREAD: LazyLock<IoThread> =
        LazyLock::new(|| IoThread::spawn(IoThreadConfig::new("test")).unwrap());
    THREAD.spawn_task(make).join().unwrap()
}

/// A directory on a real file system: O_DIRECT does not work everywhere.
fn directory() -> TempDir {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp");
    std::fs::create_dir_all(&target).unwrap();
    tempfile::tempdir_in(target).unwrap()
}

fn image(directory: &TempDir, size: u64) -> PathBuf {
    let path = directory.path().join("disk.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn disk(path: &Path, cache: Cache, aio: Aio) -> Arc<dyn Node> {
    open(&DiskSpec {
        cache,
        aio,
        ..DiskSpec::new(path)
    })
    .unwrap()
}

fn message(spec: &DiskSpec) -> String {
    let error = open(spec).err().expect("it must not open");
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}

#[derive(Debug, Clone)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>, bool),
    Zero(u64, u64, bool),
    Flush,
}

fn steps(size: u64) -> impl Strategy<Value = Vec<Step>> {
    let place = move |max: u64| {
        (0..size, 1..max, 0..3u8).prop_map(move |(at, len, aligned)| match aligned {
            // Half of the requests are whole sectors, as a guest's are.
            0 => (at, len.min(size - at)),
            _ => (at & !511, (len & !511).max(512).min(size - (at & !511))),
        })
    };
    let step = prop_oneof![
        4 => place(20_000).prop_map(|(at, len)| Step::Read(at, len as usize)),
        6 => (place(20_000), any::<u8>(), any::<bool>()).prop_map(|((at, len), seed, fua)| {
            let bytes = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
            Step::Write(at, bytes, fua)
        }),
        2 => (place(60_000), any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero(at, len, unmap)),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..30)
}

async fn follow(disk: Arc<dyn Node>, steps: Vec<Step>, mut model: Vec<u8>) -> Vec<u8> {
    for step in steps {
        match step {
            Step::Read(at, len) => {
                let (result, buf) = disk.read_vectored(IoBuf::from_vec(vec![9; len]), at).await;
                result.unwrap();
                let at = at as usize;
                assert!(buf.into_vec().unwrap() == model[at..at + len]);
            }
            Step::Write(at, bytes, fua) => {
                model[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                let buf = IoBuf::from_vec(bytes);
                let (result, _) = disk.write_vectored(buf, at, WriteFlags { fua }).await;
                result.unwrap();
            }
            Step::Zero(at, len, may_unmap) => {
                model[at as usize..(at + len) as usize].fill(0);
                let flags = ZeroFlags {
                    may_unmap,
                    fua: false,
                };
                disk.write_zeroes(at, len, flags).await.unwrap();
            }
            Step::Flush => disk.flush().await.unwrap(),
        }
    }
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn disk_behaves_like_an_array_of_bytes(
        steps in steps(100_352),
        cache in prop_oneof![Just(Cache::Writeback), Just(Cache::None), Just(Cache::Unsafe)],
        aio in prop_oneof![Just(Aio::IoUring), Just(Aio::Threads)],
    ) {
        let directory = directory();
        let path = image(&directory, 100_352);
        let disk = disk(&path, cache, aio);
        let model = run(move || follow(disk, steps, vec![0; 100_352]));
        prop_assert!(std::fs::read(&path).unwrap() == model);
    }
}

/// Under O_DIRECT each of these writes is a read-modify-write of a block that others share.
#[test]
fn neighbouring_small_writes_at_once_lose_nothing() {
    let directory = directory();
    let path = image(&directory, 64 << 10);
    let disk = disk(&path, Cache::None, Aio::IoUring);
    run(move || async move {
        let write = |i: u64| {
            let disk = Arc::clone(&disk);
            async move {
                let buf = IoBuf::from_vec(vec![i as u8 + 1; 100]);
                let flags = WriteFlags::default();
                disk.write_vectored(buf, i * 100, flags).await.0.unwrap();
            }
        };
        event::join_all((0..200).map(write)).await;
    });
    let bytes = std::fs::read(&path).unwrap();
    for (i, piece) in bytes[..20_000].chunks(100).enumerate() {
        assert_eq!(piece, [i as u8 + 1; 100], "write {i}");
    }
}

#[test]
fn a_large_misaligned_transfer_goes_in_pieces() {
    let directory = directory();
    let path = image(&directory, 1 << 20);
    let disk = disk(&path, Cache::None, Aio::IoUring);
    let bytes: Vec<u8> = (0..400_000u32).map(|i| (i / 7) as u8).collect();
    let written = bytes.clone();
    let read = run(move || async move {
        let buf = IoBuf::from_vec(written);
        let flags = WriteFlags { fua: true };
        disk.write_vectored(buf, 100, flags).await.0.unwrap();
        let (result, buf) = disk
            .read_vectored(IoBuf::from_vec(vec![9; 400_001]), 99)
            .await;
        result.unwrap();
        buf.into_vec().unwrap()
    });
    assert_eq!(read[0], 0);
    assert!(read[1..] == bytes);
    let all = std::fs::read(&path).unwrap();
    assert!(all[100..400_100] == bytes && all[400_100..].iter().all(|b| *b == 0));
}

#[test]
fn many_threads_share_one_disk() {
    let directory = directory();
    let path = image(&directory, 1 << 20);
    let disk = disk(&path, Cache::None, Aio::IoUring);
    let threads: Vec<IoThread> = (0..3)
        .map(|i| IoThread::spawn(IoThreadConfig::new(format!("io{i}"))).unwrap())
        .collect();
    let tasks: Vec<_> = (0..3u64)
        .map(|t| {
            let disk = Arc::clone(&disk);
            threads[t as usize].spawn_task(move || async move {
                for i in 0..100u64 {
                    // Sectors of 3 threads interleave; odd sizes meet in the same blocks.
                    let at = (i * 3 + t) * 300;
                    let buf = IoBuf::from_vec(vec![t as u8 + 1; 300]);
                    let flags = WriteFlags::default();
                    disk.write_vectored(buf, at, flags).await.0.unwrap();
                }
            })
        })
        .collect();
    tasks.into_iter().for_each(|task| task.join().unwrap());
    let bytes = std::fs::read(&path).unwrap();
    for (i, piece) in bytes[..90_000].chunks(300).enumerate() {
        assert_eq!(piece, [(i % 3) as u8 + 1; 300], "write {i}");
    }
}

#[test]
fn a_size_between_two_sectors_is_rounded_up() {
    for cache in [Cache::Writeback, Cache::None] {
        let directory = directory();
        let path = image(&directory, 1000);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(&[5; 1000], 0)
            .unwrap();
        let disk = disk(&path, cache, Aio::IoUring);
        assert_eq!(disk.size(), 1024);
        let (tail, after) = run(move || async move {
            let (result, tail) = disk.read_vectored(IoBuf::from_vec(vec![9; 512]), 512).await;
            result.unwrap();
            let buf = IoBuf::from_vec(vec![6; 512]);
            let flags = WriteFlags::default();
            disk.write_vectored(buf, 512, flags).await.0.unwrap();
            let beyond = disk
                .read_vectored(IoBuf::from_vec(vec![0; 512]), 1024)
                .await;
            (tail.into_vec().unwrap(), beyond.0)
        });
        assert_eq!(tail[..488], [5; 488]);
        assert_eq!(tail[488..], [0; 24]);
        assert_eq!(after.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 1024);
        assert_eq!(bytes[512..], [6; 512]);
    }
}

#[test]
fn discard_gives_space_back_unless_ignored() {
    use std::os::unix::fs::MetadataExt;
    for (discard, frees) in [(Discard::Unmap, true), (Discard::Ignore, false)] {
        let directory = directory();
        let path = directory.path().join("disk.img");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        let disk = open(&DiskSpec {
            discard,
            ..DiskSpec::new(&path)
        })
        .unwrap();
        assert_eq!(disk.limits().can_discard, frees);
        run(move || async move { disk.discard(0, 1 << 20).await.unwrap() });
        let left = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert_eq!(left < 64 << 10, frees, "{left} bytes left");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    }
}

#[test]
fn read_only_disks_are_not_written() {
    let directory = directory();
    let path = image(&directory, 4096);
    let disk = open(&DiskSpec {
        read_only: true,
        ..DiskSpec::new(&path)
    })
    .unwrap();
    assert!(disk.is_read_only());
    let errors = run(move || async move {
        let buf = IoBuf::from_vec(vec![1; 512]);
        let write = disk.write_vectored(buf, 0, WriteFlags::default()).await.0;
        let zero = disk.write_zeroes(0, 512, ZeroFlags::default()).await;
        let discard = disk.discard(0, 512).await;
        let resize = disk.resize(512).await;
        disk.flush().await.unwrap();
        assert!(resize.unwrap_err().to_string().contains("read-only"));
        [write, zero, discard]
    });
    for error in errors {
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
    assert!(std::fs::read(&path).unwrap().iter().all(|b| *b == 0));
}

#[test]
fn resizing_tells_the_watchers() {
    let directory = directory();
    let path = image(&directory, 4096);
    let disk = disk(&path, Cache::Writeback, Aio::IoUring);
    let seen = Arc::new(AtomicU64::new(0));
    let watcher: Arc<SizeWatcher> = {
        let seen = Arc::clone(&seen);
        Arc::new(move |size| seen.store(size, Ordering::SeqCst))
    };
    disk.watch_size(Arc::downgrade(&watcher));
    let same = Arc::clone(&disk);
    run(move || async move { same.resize(10_000).await.unwrap() });
    assert_eq!(seen.load(Ordering::SeqCst), 10_240);
    assert_eq!(disk.size(), 10_240);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 10_000);
    drop(watcher);
    run(move || async move { disk.resize(4096).await.unwrap() });
    assert_eq!(seen.load(Ordering::SeqCst), 10_240);
}

#[test]
fn the_hosts_errors_arrive_with_their_numbers() {
    let memory = Memory::new(4096, false);
    let disk: Arc<dyn Node> = Arc::new(Raw::new("m".into(), memory.clone()));
    memory.fail_with(libc::ENOSPC);
    let error = run(move || async move {
        let buf = IoBuf::from_vec(vec![1; 512]);
        let flags = WriteFlags::default();
        disk.write_vectored(buf, 0, flags).await.0.unwrap_err()
    });
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn what_cannot_be_opened_says_why_and_what_to_do() {
    let directory = directory();
    let missing = directory.path().join("missing.img");
    let text = message(&DiskSpec::new(&missing));
    assert!(
        text.contains("missing.img") && text.contains("truncate"),
        "{text}"
    );
    assert!(text.contains("No such file"), "{text}");

    let text = message(&DiskSpec::new(directory.path()));
    assert!(text.contains("is a directory, not a disk image"), "{text}");

    let text = message(&DiskSpec::new("/dev/null"));
    assert!(text.contains("a character device"), "{text}");

    let path = image(&directory, 0);
    let text = message(&DiskSpec::new(&path));
    assert!(text.contains("is empty"), "{text}");

    std::fs::write(&path, b"QFI\xfb and so on").unwrap();
    let text = message(&DiskSpec::new(&path));
    assert!(
        text.contains("qcow2") && text.contains("format=raw"),
        "{text}"
    );
    let spec = DiskSpec {
        format: Some(Format::Raw),
        ..DiskSpec::new(&path)
    };
    assert_eq!(open(&spec).unwrap().size(), 512);
}

#[test]
fn two_writers_are_refused_and_readers_share() {
    let directory = directory();
    let path = image(&directory, 4096);
    let reader = DiskSpec {
        read_only: true,
        ..DiskSpec::new(&path)
    };
    let writer = open(&DiskSpec::new(&path)).unwrap();
    let text = message(&DiskSpec::new(&path));
    assert!(
        text.contains("disk.img is in use") && text.contains("stop that one"),
        "{text}"
    );
    assert!(message(&reader).contains("open for writing"));
    let other = DiskSpec {
        locking: Locking::Off,
        ..DiskSpec::new(&path)
    };
    open(&other).unwrap();
    drop(writer);
    let one = open(&reader).unwrap();
    let two = open(&reader).unwrap();
    assert!(message(&DiskSpec::new(&path)).contains("does not tolerate writers"));
    drop((one, two));
    open(&DiskSpec::new(&path)).unwrap();
}

fn qemu_io(path: &Path, arguments: &[&str]) -> Option<std::process::Output> {
    Command::new("qemu-io")
        .args(arguments)
        .args(["-f", "raw", "-c", "read 0 512"])
        .arg(path)
        .output()
        .ok()
}

#[test]
fn qemu_and_we_keep_each_other_out() {
    let directory = directory();
    let path = image(&directory, 1 << 20);
    let ours = open(&DiskSpec::new(&path)).unwrap();
    let Some(refused) = qemu_io(&path, &[]) else {
        eprintln!("no qemu-io on this machine: its side of the lock is not tested");
        return;
    };
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("lock"), "{text}");
    drop(ours);
    assert!(qemu_io(&path, &[]).unwrap().status.success());

    // Readers of both kinds share.
    let reader = DiskSpec {
        read_only: true,
        ..DiskSpec::new(&path)
    };
    let ours = open(&reader).unwrap();
    assert!(qemu_io(&path, &["-r"]).unwrap().status.success());
    assert!(!qemu_io(&path, &[]).unwrap().status.success());
    drop(ours);

    // And the other way round: QEMU holds the image until its input ends.
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = qemu.stdin.take().unwrap();
    let mut output = BufReader::new(qemu.stdout.take().unwrap());
    input.write_all(b"read 0 512\n").unwrap();
    let mut answer = String::new();
    while !answer.contains("read 512/512") {
        assert_ne!(output.read_line(&mut answer).unwrap(), 0, "{answer}");
    }
    let text = message(&DiskSpec::new(&path));
    assert!(text.contains("disk.img is in use"), "{text}");
    assert!(message(&reader).contains("is in use"));
    drop(input);
    assert!(qemu.wait().unwrap().success());
    open(&DiskSpec::new(&path)).unwrap();
}

#[test]
fn a_request_costs_one_allocation_of_moderate_size() {
    let memory = Memory::new(4096, false);
    let disk = Raw::new("m".into(), memory);
    let request = disk.read_vectored(IoBuf::from_vec(vec![0; 512]), 0);
    assert!(size_of_val(&*request) < 512, "{}", size_of_val(&*request));

    let directory = directory();
    let file = disk_of_file(&directory);
    let request = file.write_vectored(IoBuf::from_vec(vec![0; 512]), 0, WriteFlags::default());
    assert!(size_of_val(&*request) < 1024, "{}", size_of_val(&*request));
}

fn disk_of_file(directory: &TempDir) -> Arc<dyn Node> {
    disk(&image(directory, 4096), Cache::None, Aio::IoUring)
}

/// A loop device over a file, where this user may make one.
struct Loop(PathBuf);

impl Loop {
    fn over(path: &Path, sector: &str) -> Option<Self> {
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", sector])
            .arg(path)
            .output()
            .ok()?;
        let name = String::from_utf8(made.stdout).ok()?;
        made.status
            .success()
            .then(|| Self(name.trim().to_owned().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn host_block_devices_show_their_blocks_and_take_any_request() {
    let directory = directory();
    let path = image(&directory, 1 << 20);
    let Some(device) = Loop::over(&path, "4096") else {
        eprintln!("this user cannot make loop devices: host block devices are not tested");
        return;
    };
    for cache in [Cache::None, Cache::Writeback] {
        let disk = disk(&device.0, cache, Aio::IoUring);
        assert_eq!(disk.size(), 1 << 20);
        assert_eq!(disk.limits().logical_block_size, 4096);
        let other = message(&DiskSpec::new(&device.0));
        assert!(other.contains("is in use"), "{other}");
        let shrunk = Arc::clone(&disk);
        run(move || async move {
            shrunk.discard(100, 100_000).await.unwrap();
            let grown = shrunk.resize(2 << 20).await.unwrap_err().to_string();
            assert!(grown.contains("grow the device first"), "{grown}");
        });
        let mut model = vec![3; 1 << 20];
        let buf = IoBuf::from_vec(model.clone());
        let whole = Arc::clone(&disk);
        run(move || async move {
            let flags = WriteFlags { fua: true };
            whole.write_vectored(buf, 0, flags).await.0.unwrap();
        });
        let steps = vec![
            Step::Write(4000, vec![1; 200], false),
            Step::Zero(8192, 8192, true),
            Step::Zero(20_480, 4096, false),
            Step::Zero(30_000, 100, true),
            Step::Write(40_960, vec![2; 4096], true),
            Step::Flush,
            Step::Read(0, 65_536),
            Step::Read(4001, 77),
        ];
        let same = Arc::clone(&disk);
        model = run(move || follow(same, steps, model));
        let (read, buf) = run(move || async move {
            disk.read_vectored(IoBuf::from_vec(vec![0; 1 << 20]), 0)
                .await
        });
        read.unwrap();
        assert!(buf.into_vec().unwrap() == model);
    }
}
