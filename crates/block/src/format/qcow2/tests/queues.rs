//! Many requests at once, from several I/O threads.

use super::*;

const THREADS: u64 = 8;
pub(super) const SIZE: u64 = 16 << 20;
/// Bytes that belong to one writer: less than a cluster, so that writers meet in clusters.
const SLOT: u64 = 1536;

fn threads() -> Vec<IoThread> {
    // With a stack as a guest's queues have it.
    let config = |i| IoThreadConfig::new(format!("queue{i}"));
    (0..THREADS)
        .map(|i| IoThread::spawn(config(i)).unwrap())
        .collect()
}

/// Numbers of a sequence that is always the same (Marsaglia's xorshift).
struct Sequence(u64);

impl Sequence {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// One queue: several requests in flight to the slots that belong to it, each checked.
async fn queue(disk: Disk, number: u64, rounds: u64) -> Vec<(u64, Vec<u8>)> {
    let mut sequence = Sequence(0x9e37_79b9_7f4a_7c15 ^ number);
    let mut state = std::collections::BTreeMap::new();
    for round in 0..rounds {
        let mut slots = std::collections::BTreeSet::new();
        while slots.len() < 8 {
            slots.insert(sequence.next(SIZE / SLOT / THREADS) * THREADS + number);
        }
        let requests = slots.into_iter().map(|slot| {
            let disk = &disk;
            let (kind, seed) = (sequence.next(10), round as u8 ^ slot as u8);
            let old = state.get(&slot).cloned();
            async move {
                let at = slot * SLOT;
                let old = old.unwrap_or_else(|| vec![0; SLOT as usize]);
                match kind {
                    0..=4 => {
                        let bytes = pattern(seed, SLOT as usize);
                        write(&**disk, at, bytes.clone()).await;
                        (slot, bytes)
                    }
                    5 => {
                        let flags = ZeroFlags {
                            may_unmap: seed & 1 == 0,
                            fua: seed & 2 == 0,
                        };
                        disk.write_zeroes(at, SLOT, flags).await.unwrap();
                        (slot, vec![0; SLOT as usize])
                    }
                    6 if seed & 3 == 0 => {
                        disk.flush().await.unwrap();
                        (slot, old)
                    }
                    _ => {
                        let bytes = read(&**disk, at, SLOT as usize).await;
                        assert!(bytes == old, "slot {slot} in round {round}");
                        (slot, old)
                    }
                }
            }
        });
        let requests: Vec<_> = requests.collect();
        state.extend(event::join_all(requests).await);
    }
    state.into_iter().collect()
}

fn many_queues(options: CreateOptions, spec: impl Fn(DiskSpec) -> DiskSpec) {
    let directory = directory();
    let path = in_directory(&directory, "disk.qcow2");
    let (image, disk_spec) = (path.clone(), spec(super::spec(&path)));
    let disk = run(move || async move {
        make(&image, &options).await;
        try_open_with(disk_spec, OpenOptions::default())
            .await
            .unwrap()
    });
    let model = in_eight_queues(&disk, 60);
    run(move || async move { disk.close().await.unwrap() });
    same_everywhere(&path, &model);
}

/// What a new disk of [`SIZE`] bytes has when all queues have written to it.
pub(super) fn in_eight_queues(disk: &Disk, rounds: u64) -> Vec<u8> {
    let threads = threads();
    let tasks: Vec<_> = threads
        .iter()
        .enumerate()
        .map(|(number, thread)| {
            let disk = Arc::clone(disk);
            thread.spawn_task(move || Box::pin(queue(disk, number as u64, rounds)))
        })
        .collect();
    let mut model = vec![0; SIZE as usize];
    for task in tasks {
        for (slot, bytes) in task.join().unwrap() {
            let at = (slot * SLOT) as usize;
            model[at..at + SLOT as usize].copy_from_slice(&bytes);
        }
    }
    model
}

#[test]
fn eight_queues_share_an_image() {
    many_queues(CreateOptions::new(SIZE), |spec| spec);
}

/// Every table is larger than the caches.
#[test]
fn eight_queues_share_small_clusters_and_small_caches() {
    let options = CreateOptions {
        cluster_size: 4096,
        refcount_bits: 64,
        ..CreateOptions::new(SIZE)
    };
    many_queues(options, |spec| DiskSpec {
        l2_cache_size: ::spec::Size(32 << 10),
        refcount_cache_size: ::spec::Size(16 << 10),
        ..spec
    });
}

/// Tables are smaller than the host's blocks, or data begins in the middle of them.
#[test]
fn eight_queues_share_an_image_past_the_page_cache() {
    for cluster_size in [512, 65536] {
        let options = CreateOptions {
            cluster_size,
            ..CreateOptions::new(SIZE)
        };
        many_queues(options, |spec| DiskSpec {
            cache: crate::Cache::None,
            ..spec
        });
    }
}

#[test]
fn eight_queues_share_subclusters() {
    let options = CreateOptions {
        extended_l2: true,
        lazy_refcounts: true,
        ..CreateOptions::new(SIZE)
    };
    many_queues(options, |spec| spec);
}

/// Discards and writes of whole clusters chase one another; nobody sees another's bytes.
#[test]
fn freed_clusters_go_around() {
    const CLUSTER: u64 = 4096;
    let directory = directory();
    let path = in_directory(&directory, "disk.qcow2");
    let image = path.clone();
    let disk = run(move || async move {
        let options = CreateOptions {
            cluster_size: CLUSTER,
            ..CreateOptions::new(1 << 20)
        };
        make(&image, &options).await;
        open(&image).await
    });
    let threads = threads();
    let tasks: Vec<_> = threads
        .iter()
        .enumerate()
        .map(|(number, thread)| {
            let disk = Arc::clone(&disk);
            let number = number as u64;
            thread.spawn_task(move || async move {
                for round in 0..60u64 {
                    let steps = (0..4u64).map(|i| {
                        let disk = &disk;
                        async move {
                            let at = ((round * 4 + i) % 16 * THREADS + number) * CLUSTER;
                            let mine = vec![number as u8 + 1; CLUSTER as usize];
                            write(&**disk, at, mine.clone()).await;
                            assert!(read(&**disk, at, CLUSTER as usize).await == mine);
                            disk.discard(at, CLUSTER).await.unwrap();
                            let now = read(&**disk, at, CLUSTER as usize).await;
                            assert!(now.iter().all(|byte| *byte == 0));
                        }
                    });
                    event::join_all(steps.collect::<Vec<_>>()).await;
                    if round % 8 == number {
                        disk.flush().await.unwrap();
                    }
                }
            })
        })
        .collect();
    tasks.into_iter().for_each(|task| task.join().unwrap());
    run(move || async move { disk.close().await.unwrap() });
    same_everywhere(&path, &vec![0; 1 << 20]);
    // 2048 clusters were written, and given back on the way.
    let clusters = std::fs::metadata(&path).unwrap().len() / CLUSTER;
    assert!(clusters < 1900, "{clusters}");
}
