//! The gate in many interleavings.

use shuttle::future::{block_on, yield_now};
use shuttle::thread;

use super::*;
use crate::sync::explore;

#[test]
fn nobody_is_behind_a_gate_that_was_drained() {
    explore(|| {
        let gate = Arc::<Gate>::default();
        let inside = Arc::new(AtomicUsize::new(0));
        let requests: Vec<_> = (0..3)
            .map(|_| {
                let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                thread::spawn(move || {
                    block_on(async {
                        for _ in 0..2 {
                            let _passage = gate.pass().await;
                            inside.fetch_add(1, Ordering::SeqCst);
                            yield_now().await;
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                    });
                })
            })
            .collect();
        let closers: Vec<_> = (0..2)
            .map(|_| {
                let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                thread::spawn(move || {
                    block_on(async {
                        let closed = gate.begin_to_close();
                        closed.emptied().await;
                        assert_eq!(inside.load(Ordering::SeqCst), 0);
                        yield_now().await;
                        assert_eq!(inside.load(Ordering::SeqCst), 0);
                        drop(closed);
                    });
                })
            })
            .collect();
        // Whoever waits is woken: else this deadlocks, which is reported.
        for thread in requests.into_iter().chain(closers) {
            thread.join().unwrap();
        }
        assert!(gate.is_empty());
    });
}
