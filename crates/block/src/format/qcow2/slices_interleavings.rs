//! The cache of table slices in many interleavings.

use shuttle::future::{block_on, yield_now};
use shuttle::thread;

use super::*;
use crate::sync::explore;

/// What is on the disk: a word for each slice, written back by checkpoints.
type Disk = Arc<Mutex<HashMap<u64, u64>>>;

async fn slice(cache: &Slices, disk: &Disk, index: u64) -> Arc<Slice> {
    let load = || async {
        // As a read takes its time.
        yield_now().await;
        let word = lock(disk).get(&index).copied().unwrap_or(0);
        Ok(word.to_be_bytes().to_vec())
    };
    cache.get(index, load).await.unwrap()
}

/// Adds one to the word of a slice, whose range the caller has to itself.
async fn change(cache: &Slices, disk: &Disk, index: u64) {
    let slice = slice(cache, disk, index).await;
    slice.store(0, &[slice.word(0) + 1]);
    cache.touch(&slice);
}

fn write_back(cache: &Slices, disk: &Disk) {
    for copy in cache.take_dirty() {
        let word = copy.bytes[..8].try_into().unwrap();
        lock(disk).insert(copy.slice.index(), u64::from_be_bytes(word));
    }
}

#[test]
fn no_change_is_lost_between_changes_checkpoints_and_drops() {
    explore(|| {
        // Indices of one shard, which has room for two.
        let index = |number: u64| number * SHARDS as u64;
        let cache = Arc::new(Slices::new(1));
        let disk = Disk::default();
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (cache, disk) = (Arc::clone(&cache), Arc::clone(&disk));
                thread::spawn(move || {
                    block_on(async {
                        for round in 0..3 {
                            change(&cache, &disk, index(writer * 2 + round % 2)).await;
                        }
                    });
                })
            })
            .collect();
        let checkpoints = {
            let (cache, disk) = (Arc::clone(&cache), Arc::clone(&disk));
            thread::spawn(move || {
                for _ in 0..2 {
                    write_back(&cache, &disk);
                    thread::yield_now();
                }
            })
        };
        for thread in writers {
            thread.join().unwrap();
        }
        checkpoints.join().unwrap();
        write_back(&cache, &disk);
        for (number, expected) in [(0, 2), (1, 1), (2, 2), (3, 1)] {
            let found = lock(&disk).get(&index(number)).copied();
            assert_eq!(found, Some(expected), "slice {number}");
        }
        assert_eq!(cache.dirty(), 0);
    });
}

#[test]
fn a_slice_is_loaded_once_and_also_after_a_load_that_failed() {
    explore(|| {
        let cache = Arc::new(Slices::new(64));
        let loads = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (cache, loads) = (Arc::clone(&cache), Arc::clone(&loads));
                thread::spawn(move || {
                    block_on(async {
                        let load = || async {
                            let before = loads.fetch_add(1, Ordering::SeqCst);
                            yield_now().await;
                            match before {
                                0 => Err(io::ErrorKind::Other.into()),
                                _ => Ok(vec![0; 8]),
                            }
                        };
                        cache.get(7, load).await.ok()
                    })
                })
            })
            .collect();
        let found: Vec<Option<Arc<Slice>>> =
            threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(loads.load(Ordering::SeqCst), 2);
        assert_eq!(found.iter().filter(|slice| slice.is_none()).count(), 1);
        let mut slices = found.iter().flatten();
        let first = slices.next().unwrap();
        assert!(slices.all(|slice| Arc::ptr_eq(first, slice)));
    });
}
