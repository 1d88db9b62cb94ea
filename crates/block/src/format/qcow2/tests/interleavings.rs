//! The image as a whole in many interleavings: the allocator, the tables and checkpoints under
//! writes, discards and flushes of several threads.

use shuttle::future::block_on;
use shuttle::thread;

use super::power::{Recorder, open_recorder};
use super::*;
use crate::sync::explore;

const CLUSTER: u64 = 512;
const SIZE: u64 = 96 * CLUSTER;

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

async fn carry_out(disk: &Qcow2<Recorder>, thread: u64, steps: &[Step]) -> Vec<(u64, Vec<u8>)> {
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
async fn is_sound(disk: &Qcow2<Recorder>, model: &[u8], when: &str) -> u64 {
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
        // It lets others go first at each request, as one to a disk does.
        let image = Recorder::new(Vec::new());
        let disk = block_on(async {
            let options = CreateOptions {
                cluster_size: CLUSTER,
                ..CreateOptions::new(SIZE)
            };
            create(&image, &options).await.unwrap();
            Arc::new(open_recorder(image.clone()).await.unwrap())
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
            let again = open_recorder(image).await.unwrap();
            let leaks = is_sound(&again, &model, "opened again").await;
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
