//! The whole of an I/O thread, over both reactors.

mod files;
mod readiness;
mod tasks;
mod timers;

use crate::{IoThread, IoThreadConfig};

/// Threads over each reactor that this host allows; epoll always is.
fn threads(name: &str) -> Vec<IoThread> {
    [true, false]
        .into_iter()
        .map(|io_uring| {
            let config = IoThreadConfig {
                io_uring,
                ..IoThreadConfig::new(name)
            };
            IoThread::spawn(config).unwrap()
        })
        .collect()
}
