use std::pin::pin;
use std::task::Context;

use super::*;

fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn load(cache: &Slices, index: u64) -> Arc<Slice> {
    let bytes = (index + 1).to_be_bytes().repeat(2);
    now(cache.get(index, || async { Ok(bytes) }))
        .unwrap()
        .unwrap()
}

#[test]
fn what_nobody_needs_is_dropped() {
    let cache = Slices::new(64);
    let held = load(&cache, 0);
    let dirty = load(&cache, 16);
    dirty.store(1, &[77]);
    cache.touch(&dirty);
    drop(dirty);
    for index in 2..1000 {
        assert_eq!(load(&cache, index * 16).word(0), index * 16 + 1);
    }
    assert!(cache.cached(0).is_some());
    assert_eq!(cache.cached(16).unwrap().word(1), 77);
    let kept = (2..1000).filter(|i| cache.cached(i * 16).is_some()).count();
    assert!(kept <= 4, "{kept}");
    assert_eq!(held.word(0), 1);
}

#[test]
fn one_loads_and_others_wait() {
    let cache = Slices::new(64);
    let mut context = Context::from_waker(Waker::noop());
    {
        let slow = || async {
            std::future::pending::<()>().await;
            Ok(Vec::new())
        };
        let mut first = pin!(cache.get(5, slow));
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(now(cache.get(5, || async { Ok(vec![0; 8]) })).is_none());
    }
    // The first one was given up: the next one loads.
    assert_eq!(load(&cache, 5).word(0), 6);
    let failed = now(cache.get(6, || async { Err(io::ErrorKind::Other.into()) }));
    assert!(failed.unwrap().is_err());
    assert_eq!(load(&cache, 6).word(0), 7);
}

#[test]
fn dirty_slices_are_taken_once() {
    let cache = Slices::new(64);
    let slice = load(&cache, 3);
    cache.touch(&slice);
    cache.touch(&slice);
    assert_eq!(cache.dirty(), 1);
    let taken = cache.take_dirty();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].bytes, 4u64.to_be_bytes().repeat(2));
    assert!(cache.take_dirty().is_empty());
    cache.touch(&slice);
    assert_eq!(cache.take_dirty().len(), 1);
    cache.touch(&slice);
    cache.forget(0..10);
    assert_eq!(cache.dirty(), 0);
    assert!(cache.cached(3).is_none());
}
