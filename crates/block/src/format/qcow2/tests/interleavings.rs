//! The image as a whole in many interleavings: the allocator, the tables and checkpoints under
//! writes, discards and flushes of several threads.

use std::sync::Mutex as StdMutex;

use shuttle::future::{block_on, yield_now};
use shuttle::thread;

use super::*;
use crate::storage::Storage;
use crate::sync::explore;

const CLUSTER: u64 = 512;
const SIZE: u64 = 96 * CLUSTER;

/// Bytes in memory; every request lets others go first, as one to a disk does.
#[derive(Clone, Default)]
struct Bytes(Arc<StdMutex<Vec<u8>>>);

impl Bytes {
    /// Never held where the scheduler may change threads.
    fn with<T>(&self, f: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    fn put(&self, offset: u64, data: &[u8]) {
        let (from, to) = (offset as usize, offset as usize + data.len());
        self.with(|bytes| {
            if bytes.len() < to {
                bytes.resize(to, 0);
            }
            bytes[from..to].copy_from_slice(data);
        });
    }
}

impl Storage for Bytes {
    async fn read(&self, buf: IoBuf, offset: u64) -> Transfer {
        yield_now().await;
        let mut data = vec![0; buf.len()];
        self.with(|bytes| {
            let from = (offset as usize).min(bytes.len());
            let to = (from + data.len()).min(bytes.len());
            data[..to - from].copy_from_slice(&bytes[from..to]);
        });
        buffer::scatter(&buf, &data);
        (Ok(()), buf)
    }

    async fn write(&self, buf: IoBuf, offset: u64, _flags: WriteFlags) -> Transfer {
        yield_now().await;
        let mut data = vec![0; buf.len()];
        buffer::gather(&buf, &mut data);
        self.put(offset, &data);
        (Ok(()), buf)
    }

    async fn flush(&self) -> io::Result<()> {
        yield_now().await;
        Ok(())
    }

    /// What was discarded reads as rubbish, to see who relies on it.
    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        yield_now().await;
        let end = (offset + len).min(self.size());
        if offset < end {
            self.put(offset, &vec![0xdd; (end - offset) as usize]);
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, _flags: ZeroFlags) -> io::Result<()> {
        yield_now().await;
        self.put(offset, &vec![0; len as usize]);
        Ok(())
    }

    async fn extent(&self, _offset: u64, len: u64) -> io::Result<(bool, u64)> {
        Ok((true, len))
    }

    async fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn grows_with_zeros(&self) -> bool {
        true
    }

    fn size(&self) -> u64 {
        self.with(|bytes| bytes.len() as u64)
    }

    async fn resize(&self, size: u64) -> Result<(), BlockError> {
        self.with(|bytes| bytes.resize(size as usize, 0));
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            memory_alignment: 1,
            logical_block_size: 512,
            physical_block_size: 4096,
            discard_granularity: 512,
            can_discard: true,
        }
    }

    fn is_read_only(&self) -> bool {
        false
    }
}

async fn open_bytes(image: &Bytes) -> Qcow2<Bytes> {
    let files = Opened {
        image: image.clone(),
        data: None,
        backing: None,
    };
    let options = Qcow2Options {
        discard: crate::Discard::Unmap,
        ..Qcow2Options::default()
    };
    Qcow2::open("explored".into(), files, options)
        .await
        .unwrap()
}

/// What a thread does to its part of the disk.
#[derive(Clone, Copy)]
enum Step {
    /// From a byte on, so many bytes.
    Write(u64, u64),
    Discard(u64, u64),
    Flush,
}

/// The parts lie in the same L2 tables and refcount blocks, cluster by cluster in turn.
fn part(thread: u64, at: u64) -> u64 {
    (at / CLUSTER * 3 + thread) * CLUSTER + at % CLUSTER
}

async fn carry_out(disk: &Qcow2<Bytes>, thread: u64, steps: &[Step]) -> Vec<(u64, Vec<u8>)> {
    let mut expected = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let fill = (thread * 16 + number as u64 + 1) as u8;
        match *step {
            // A request of a thread does not leave its cluster.
            Step::Write(at, len) => {
                let bytes = vec![fill; len as usize];
                let buf = IoBuf::from_vec(bytes.clone());
                let flags = WriteFlags::default();
                let written = disk.write_vectored(buf, part(thread, at), flags).await;
                written.0.unwrap();
                expected.push((part(thread, at), bytes));
            }
            Step::Discard(at, len) => {
                disk.discard(part(thread, at), len).await.unwrap();
                expected.push((part(thread, at), vec![0; len as usize]));
            }
            Step::Flush => disk.flush().await.unwrap(),
        }
    }
    expected
}

/// How many clusters are counted without a use.
async fn is_sound(disk: &Qcow2<Bytes>, model: &[u8], when: &str) -> u64 {
    let buf = IoBuf::from_vec(vec![0; model.len()]);
    let (result, buf) = disk.read_vectored(buf, 0).await;
    result.unwrap();
    let mut found = vec![0; model.len()];
    buffer::gather(&buf, &mut found);
    let differs = found.iter().zip(model).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{when}");
    let report = disk.check(None).await.unwrap();
    assert_eq!(report.corruptions, 0, "{when}: {report:?}");
    report.leaks
}

fn scenario(steps: [&'static [Step]; 3]) -> impl Fn() + Send + Sync {
    move || {
        let image = Bytes::default();
        let disk = block_on(async {
            let options = CreateOptions {
                cluster_size: CLUSTER,
                ..CreateOptions::new(SIZE)
            };
            create(&image, &options).await.unwrap();
            Arc::new(open_bytes(&image).await)
        });
        let threads: Vec<_> = (0..)
            .zip(steps)
            .map(|(number, steps)| {
                let disk = Arc::clone(&disk);
                thread::spawn(move || block_on(carry_out(&disk, number, steps)))
            })
            .collect();
        let mut model = vec![0; SIZE as usize];
        for thread in threads {
            for (at, bytes) in thread.join().unwrap() {
                model[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
            }
        }
        block_on(async {
            disk.flush().await.unwrap();
            // What was given up may still wait for its count to be lowered.
            is_sound(&disk, &model, "as it is").await;
            disk.close().await.unwrap();
            let leaks = is_sound(&open_bytes(&image).await, &model, "opened again").await;
            assert_eq!(leaks, 0);
        });
    }
}

#[test]
fn writers_of_new_clusters_take_each_its_own() {
    explore(scenario([
        &[Step::Write(0, 512), Step::Write(512, 100)],
        &[Step::Write(0, 512), Step::Write(4096, 512)],
        &[Step::Write(100, 200), Step::Flush],
    ]));
}

#[test]
fn what_is_discarded_is_not_used_again_too_early() {
    explore(scenario([
        &[
            Step::Write(0, 512),
            Step::Discard(0, 512),
            Step::Write(512, 512),
        ],
        &[
            Step::Write(0, 512),
            Step::Discard(0, 512),
            Step::Write(0, 64),
        ],
        &[Step::Flush, Step::Write(0, 512), Step::Flush],
    ]));
}
