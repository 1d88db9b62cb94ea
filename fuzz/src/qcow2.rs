use std::sync::OnceLock;

use block::qcow2::{CreateOptions, Opened, Qcow2, Qcow2Options, Repair, SnapshotRequest, create};
use block::storage::memory::Memory;
use block::{IoBuf, Node, WriteFlags, ZeroFlags};
use event::{IoThread, IoThreadConfig};
use luks::Passphrase;

use crate::Script;

const SIZE: u64 = 128 << 10;

fn thread() -> IoThread {
    static THREAD: OnceLock<IoThread> = OnceLock::new();
    let start = || {
        IoThread::spawn(IoThreadConfig {
            stack_size: 8 << 20,
            ..IoThreadConfig::new("image")
        })
        .expect("a thread")
    };
    THREAD.get_or_init(start).clone()
}

/// An image of which any part may be anything, and a guest that uses it.
pub fn qcow2(data: &[u8]) {
    let data = data.to_vec();
    thread()
        .spawn_task(move || Box::pin(image(data)))
        .join()
        .expect("no panic");
}

async fn image(data: Vec<u8>) {
    let mut script = Script::new(&data);
    let options = script.u8();
    let memory = Memory::new(0, false);
    if options & 1 == 0 {
        // The header as it comes.
        memory.bytes().extend_from_slice(script.rest());
        use_it(memory, Script::new(&data)).await;
        return;
    }
    let create_options = CreateOptions {
        cluster_size: [512, 4096, 16384, 65536][usize::from(options >> 1 & 3)],
        refcount_bits: 1 << (options >> 3 & 3) << 2,
        extended_l2: options & 0x40 != 0 && options >> 1 & 2 != 0,
        lazy_refcounts: options & 0x80 != 0,
        ..CreateOptions::new(SIZE)
    };
    create(&memory, &create_options)
        .await
        .expect("good options");
    if options & 0x20 != 0 {
        // crypt_method: AES, which needs nothing else in the image.
        memory.bytes()[35] = 1;
    }
    if let Ok(disk) = open(memory.clone()).await {
        act(&disk, &mut script).await;
        let _ = disk.close().await;
    }
    // Then damage it.
    let changes = script.u8() % 8;
    {
        let mut bytes = memory.bytes();
        let words = bytes.len() / 8;
        for _ in 0..changes {
            let kind = script.u8();
            // Tables begin at the beginning of clusters.
            let at = match kind & 1 {
                0 => usize::from(script.u8()) % 16,
                _ => {
                    let cluster = create_options.cluster_size as usize / 8;
                    usize::from(script.u8()) * cluster + usize::from(script.u8() & 15)
                }
            } % words;
            let value = script.u64().to_be_bytes();
            match kind >> 1 & 3 {
                0 => bytes[at * 8..at * 8 + 8].copy_from_slice(&value),
                n => bytes[at * 8 + 7 - usize::from(n)] ^= value[0],
            }
        }
    }
    use_it(memory, script).await;
}

async fn open(image: Memory) -> Result<Qcow2<Memory>, block::qcow2::Qcow2Error> {
    let files = Opened {
        image,
        data: None,
        backing: None,
    };
    let options = Qcow2Options {
        l2_cache: 64 << 10,
        refcount_cache: 64 << 10,
        key: Some(Passphrase::new(b"fuzzed".to_vec())),
        ..Qcow2Options::default()
    };
    Qcow2::open("fuzzed".into(), files, options).await
}

async fn use_it(memory: Memory, mut script: Script<'_>) {
    let Ok(disk) = open(memory.clone()).await else {
        return;
    };
    act(&disk, &mut script).await;
    let _ = disk.close().await;
    let _ = disk.check(None).await;
    drop(disk);
    // What was repaired has no errors.
    let Ok(disk) = open(memory).await else {
        return;
    };
    if let Ok(report) = disk.check(Some(Repair::All)).await
        && report.check_errors == 0
        && report.corruptions == 0
        && let Ok(again) = disk.check(None).await
    {
        assert_eq!(
            (again.corruptions, again.leaks),
            (0, 0),
            "{:?}",
            again.messages
        );
    }
}

/// What a guest and its user do.
async fn act(disk: &Qcow2<Memory>, script: &mut Script<'_>) {
    let size = disk.size().min(SIZE);
    for _ in 0..16 {
        if script.is_over() || size < 512 {
            return;
        }
        let kind = script.u8();
        let at = u64::from(script.u16()) * 8 % size;
        let len = (u64::from(script.u16()) + 1).min(size - at);
        let name = format!("s{}", len % 3);
        let buf = || IoBuf::from_vec(vec![kind; len as usize]);
        let flags = ZeroFlags {
            may_unmap: kind & 0x80 != 0,
            fua: kind & 0x40 != 0,
        };
        match kind % 12 {
            0 | 1 => {
                let flags = WriteFlags { fua: flags.fua };
                let _ = disk.write_vectored(buf(), at, flags).await;
            }
            2 => drop(disk.read_vectored(buf(), at).await),
            3 => drop(disk.write_zeroes(at, len, flags).await),
            4 => drop(disk.discard(at, len).await),
            5 => drop(disk.flush().await),
            6 => drop(disk.block_status(at, len).await),
            7 => {
                let cluster = disk.info().cluster_size;
                let at = at / cluster * cluster;
                let len = cluster.min(size.saturating_sub(at));
                let data = vec![kind; len as usize];
                let _ = disk.write_compressed(data, at).await;
            }
            8 => {
                let request = SnapshotRequest {
                    name,
                    ..SnapshotRequest::default()
                };
                let _ = disk.create_snapshot(&request).await;
            }
            9 => drop(disk.apply_snapshot(&name).await),
            10 => drop(disk.delete_snapshot(&name).await),
            _ => drop(disk.resize((at / 512 + 1) * 512).await),
        }
    }
}
