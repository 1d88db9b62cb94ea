//! The locks and counters on which requests of several I/O threads meet, by one name: those of the
//! standard library, or, in a build with `--cfg shuttle`, those of a scheduler that tries one
//! interleaving after the other (the files `*_interleavings.rs`).
//!
//! ```text
//! cargo xtask interleavings        # crates/block with --cfg shuttle, in a target folder of its own
//! ```

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{
    Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
};
#[cfg(not(shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};

/// Runs `scenario` in many interleavings of its threads: some at random, some with few changes
/// between threads at places chosen with care (PCT), which finds what needs a rare order.
///
/// # Panics
/// In the interleaving that makes the scenario panic, deadlock or go on for ever; the message has
/// what is needed to repeat it.
#[cfg(all(test, shuttle))]
pub(crate) fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    use shuttle::{Config, Runner};

    let scenario = std::sync::Arc::new(scenario);
    let mut config = Config::new();
    // Futures of requests are deep in a build without optimization.
    config.stack_size = 1 << 20;
    let times = |default| {
        let said = std::env::var("VIREO_INTERLEAVINGS").ok();
        said.map_or(default, |text| text.parse().expect("a number"))
    };
    let (random, careful) = (std::sync::Arc::clone(&scenario), scenario);
    let schedules = times(TIMES);
    Runner::new(RandomScheduler::new(schedules), config.clone()).run(move || random());
    Runner::new(PctScheduler::new(3, schedules), config).run(move || careful());
}

/// Interleavings of each kind, unless `VIREO_INTERLEAVINGS` says otherwise.
#[cfg(all(test, shuttle))]
const TIMES: usize = 100;
