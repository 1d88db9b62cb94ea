//! Range locks in many interleavings.

use std::pin::pin;
use std::task::Context;

use shuttle::future::{block_on, yield_now};
use shuttle::thread;

use super::*;
use crate::sync::explore;

#[test]
fn exclusive_ranges_have_their_stripes_to_themselves() {
    explore(|| {
        let stripes = Arc::new(Stripes::new(4, 3));
        // What is written without a lock would be seen here.
        let cells: Arc<[AtomicU64; 3]> = Arc::default();
        let threads: Vec<_> = (0..4_u64)
            .map(|number| {
                let (stripes, cells) = (Arc::clone(&stripes), Arc::clone(&cells));
                thread::spawn(move || {
                    block_on(async {
                        let range = number * 2..number * 2 + 6;
                        if number % 2 == 0 {
                            let _guard = stripes.exclusive(range.clone()).await;
                            for at in range.clone() {
                                cells[(at / 4 % 3) as usize].store(number, Ordering::SeqCst);
                            }
                            yield_now().await;
                            for at in range {
                                let seen = cells[(at / 4 % 3) as usize].load(Ordering::SeqCst);
                                assert_eq!(seen, number);
                            }
                        } else {
                            let _guard = stripes.shared(range.clone()).await;
                            let look = || range.clone().map(|at| (at / 4 % 3) as usize);
                            let before: Vec<u64> =
                                look().map(|at| cells[at].load(Ordering::SeqCst)).collect();
                            yield_now().await;
                            let after: Vec<u64> =
                                look().map(|at| cells[at].load(Ordering::SeqCst)).collect();
                            assert_eq!(before, after);
                        }
                    });
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let free = |stripe: &Stripe| stripe.state.load(Ordering::SeqCst) == 0;
        assert!(stripes.stripes.iter().all(free));
    });
}

#[test]
fn a_wish_that_is_given_up_keeps_nobody_out() {
    explore(|| {
        let stripes = Arc::new(Stripes::new(4, 2));
        let impatient = {
            let stripes = Arc::clone(&stripes);
            thread::spawn(move || {
                let mut wish = pin!(stripes.exclusive(0..8));
                let mut context = Context::from_waker(Waker::noop());
                // One look, whatever comes of it.
                let _ = std::future::Future::poll(wish.as_mut(), &mut context);
            })
        };
        let others: Vec<_> = (0..2)
            .map(|number| {
                let stripes = Arc::clone(&stripes);
                thread::spawn(move || {
                    block_on(async {
                        match number {
                            0 => drop(stripes.shared(0..8).await),
                            _ => drop(stripes.exclusive(4..8).await),
                        }
                    });
                })
            })
            .collect();
        impatient.join().unwrap();
        for other in others {
            other.join().unwrap();
        }
        let free = |stripe: &Stripe| stripe.state.load(Ordering::SeqCst) == 0;
        assert!(stripes.stripes.iter().all(free));
    });
}
