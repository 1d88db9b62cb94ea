//! Images that were made to do harm, and hosts that fail.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::storage::memory::Memory;

const SIZE: u64 = 256 << 10;

/// A small image in memory with some of everything.
async fn sample(extended_l2: bool) -> Vec<u8> {
    let memory = Memory::new(0, false);
    let options = CreateOptions {
        cluster_size: if extended_l2 { 16384 } else { 4096 },
        extended_l2,
        ..CreateOptions::new(SIZE)
    };
    create(&memory, &options).await.unwrap();
    let disk = in_memory(memory.clone()).await.unwrap();
    write(&disk, 1000, pattern(1, 30_000)).await;
    disk.write_compressed(pattern(2, options.cluster_size as usize), 64 << 10)
        .await
        .unwrap();
    let flags = ZeroFlags {
        may_unmap: true,
        fua: false,
    };
    disk.write_zeroes(100 << 10, 40_000, flags).await.unwrap();
    let request = SnapshotRequest {
        name: "s".into(),
        ..SnapshotRequest::default()
    };
    disk.create_snapshot(&request).await.unwrap();
    write(&disk, 20_000, pattern(3, 20_000)).await;
    disk.close().await.unwrap();
    drop(disk);
    memory.bytes().to_vec()
}

async fn in_memory(memory: Memory) -> Result<Qcow2<Memory>, Qcow2Error> {
    let files = Opened {
        image: memory,
        data: None,
        backing: None,
    };
    let options = Qcow2Options {
        l2_cache: 1 << 20,
        ..Qcow2Options::default()
    };
    Qcow2::open("hostile".into(), files, options).await
}

fn memory_of(bytes: &[u8]) -> Memory {
    let memory = Memory::new(bytes.len(), false);
    memory.bytes().copy_from_slice(bytes);
    memory
}

/// Does everything that can be done; results do not matter, as long as there are results.
async fn use_everything(bytes: Vec<u8>) {
    let Ok(disk) = in_memory(memory_of(&bytes)).await else {
        return;
    };
    let size = Node::size(&disk).min(SIZE);
    for at in (0..size).step_by(30_000) {
        let len = 20_000.min(size - at);
        let buf = IoBuf::from_vec(vec![0; len as usize]);
        let _ = disk.read_vectored(buf, at).await;
        let _ = disk.block_status(at, len).await;
        let buf = IoBuf::from_vec(pattern(9, len as usize));
        let flags = WriteFlags::default();
        let _ = disk.write_vectored(buf, at, flags).await;
        let _ = disk.discard(at, 10_000.min(len)).await;
    }
    let _ = disk.flush().await;
    let request = SnapshotRequest {
        name: "t".into(),
        ..SnapshotRequest::default()
    };
    let _ = disk.create_snapshot(&request).await;
    let _ = disk.apply_snapshot("s").await;
    let _ = disk.delete_snapshot("s").await;
    let _ = disk.check(None).await;
    let _ = disk.check(Some(Repair::All)).await;
    let _ = disk.close().await;
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn damaged_images_harm_nobody(
        extended in any::<bool>(),
        words in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0..5u8), 1..6),
    ) {
        run(move || async move {
            let mut bytes = sample(extended).await;
            for (at, value, kind) in words {
                // Mostly where tables are: words that are not zero.
                let set: Vec<usize> = (0..bytes.len() / 8)
                    .filter(|at| bytes[at * 8..at * 8 + 8] != [0; 8])
                    .filter(|at| at * 8 < 160 || at % 512 < 40)
                    .collect();
                let at = set[at.index(set.len())] * 8;
                let old = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
                let new = match kind {
                    0 => value,
                    1 => old ^ 1 << (value % 64),
                    2 => (old & 0xff00_0000_0000_0000) | ((value % (1 << 20)) & !4095),
                    3 => old.wrapping_add(4096),
                    _ => 0,
                };
                bytes[at..at + 8].copy_from_slice(&new.to_be_bytes());
            }
            use_everything(bytes).await;
        });
    }
}

/// A table entry that leads a guest's write to the header.
#[test]
fn no_guest_writes_the_header() {
    run(|| async {
        let mut bytes = sample(false).await;
        let u64_at = |bytes: &[u8], at: usize| {
            u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
        };
        let l2 = u64_at(&bytes, u64_at(&bytes, 40)) & !(1 << 63);
        bytes[l2..l2 + 8].copy_from_slice(&(1u64 << 63 | 4096).to_be_bytes());
        let memory = memory_of(&bytes);
        let disk = in_memory(memory.clone()).await.unwrap();
        let buf = IoBuf::from_vec(vec![0xee; 4096]);
        let written = disk.write_vectored(buf, 0, WriteFlags::default()).await;
        written.0.unwrap_err();
        assert!(disk.info().corrupt);
        let error = disk.discard(8192, 4096).await.unwrap_err();
        assert!(error.to_string().contains("corrupt"), "{error}");
        assert_eq!(memory.bytes()[4096..8192], bytes[4096..8192]);
        drop(disk);
        let again = in_memory(memory).await.err().unwrap();
        assert!(matches!(again, Qcow2Error::MarkedCorrupt), "{again}");
    });
}

/// A host that fails: what was stable stays, and when the host works again so does the disk.
#[test]
fn a_failing_host_loses_nothing_that_was_flushed() {
    for errno in [libc::EIO, libc::ENOSPC] {
        run(move || async move {
            let memory = memory_of(&sample(false).await);
            let disk = in_memory(memory.clone()).await.unwrap();
            write(&disk, 150_000, pattern(4, 30_000)).await;
            memory.fail_with(errno);
            for at in [0, 150_000, 200_000] {
                let buf = IoBuf::from_vec(vec![5; 9000]);
                let done = disk.write_vectored(buf, at, WriteFlags::default()).await;
                assert_eq!(done.0.unwrap_err().raw_os_error(), Some(errno));
            }
            assert_eq!(disk.flush().await.unwrap_err().raw_os_error(), Some(errno));
            memory.fail_with(0);
            disk.flush().await.unwrap();
            assert!(read(&disk, 150_000, 30_000).await == pattern(4, 30_000));
            write(&disk, 200_000, pattern(6, 9000)).await;
            disk.close().await.unwrap();
            let report = disk.check(None).await.unwrap();
            assert_eq!(
                (report.corruptions, report.leaks),
                (0, 0),
                "{:?}",
                report.messages
            );
        });
    }
}

/// Requests that are given up at any moment leave the image whole, apart from leaks.
#[test]
fn abandoned_requests_leave_the_image_whole() {
    run(|| async {
        for patience in 0..60 {
            let memory = memory_of(&sample(false).await);
            let disk = in_memory(memory.clone()).await.unwrap();
            {
                let buf = IoBuf::from_vec(pattern(8, 30_000));
                let mut writes: Vec<_> = vec![
                    Box::pin(async {
                        drop(
                            disk.write_vectored(buf, 130_000, WriteFlags::default())
                                .await,
                        );
                    }) as std::pin::Pin<Box<dyn Future<Output = ()>>>,
                    Box::pin(async { drop(disk.discard(0, 60_000).await) }),
                    Box::pin(async { drop(disk.flush().await) }),
                ];
                for _ in 0..patience {
                    std::future::poll_fn(|cx| {
                        writes.retain_mut(|write| write.as_mut().poll(cx).is_pending());
                        std::task::Poll::Ready(())
                    })
                    .await;
                    event::yield_now().await;
                }
            }
            // Everybody can go on.
            write(&disk, 131_000, pattern(7, 20_000)).await;
            assert!(read(&disk, 131_000, 20_000).await == pattern(7, 20_000));
            disk.close().await.unwrap();
            let report = disk.check(None).await.unwrap();
            assert_eq!(report.corruptions, 0, "{patience}: {:?}", report.messages);
        }
    });
}

/// The disk of another tool that was killed: the dirty bit, and refcounts that are not true.
#[test]
fn a_dirty_image_is_counted_anew() {
    let directory = directory();
    let path = in_directory(&directory, "disk.qcow2");
    let image = path.clone();
    run(move || async move {
        let options = CreateOptions {
            lazy_refcounts: true,
            ..CreateOptions::new(1 << 20)
        };
        make(&image, &options).await;
        let disk = open(&image).await;
        write(&*disk, 0, pattern(1, 500_000)).await;
        disk.flush().await.unwrap();
        assert!(disk.core.is_marked_dirty.load(Ordering::Relaxed));
        // The process dies here.
        drop(disk);
        let disk = open(&image).await;
        assert!(!disk.info().dirty);
        assert!(read(&*disk, 0, 500_000).await == pattern(1, 500_000));
        write(&*disk, 600_000, pattern(2, 100_000)).await;
        disk.close().await.unwrap();
    });
    let mut model = vec![0; 1 << 20];
    model[..500_000].copy_from_slice(&pattern(1, 500_000));
    model[600_000..700_000].copy_from_slice(&pattern(2, 100_000));
    same_everywhere(&path, &model);
}

/// Tables of the largest size that is accepted, in a file that has none of it.
#[test]
fn large_numbers_in_small_files_are_refused_quickly() {
    let directory = directory();
    let path = in_directory(&directory, "disk.qcow2");
    tool(&[
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        path.to_str().unwrap(),
        "1M",
    ]);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for (at, value) in [
        (36, u32::MAX),
        (56, u32::MAX),
        (60, u32::MAX),
        (100, 1 << 20),
    ] {
        let mut old = [0; 4];
        let reader = std::fs::File::open(&path).unwrap();
        reader.read_exact_at(&mut old, at).unwrap();
        file.write_all_at(&value.to_be_bytes(), at).unwrap();
        assert!(crate::open(&spec(&path)).is_err(), "{at}");
        file.write_all_at(&old, at).unwrap();
    }
    assert!(crate::open(&spec(&path)).is_ok());
}
