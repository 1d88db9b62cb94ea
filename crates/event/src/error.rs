//! What can go wrong when an I/O thread starts.

use std::io;

/// An I/O thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The operating system refused the thread.
    #[error("cannot start the I/O thread {name:?}")]
    Spawn {
        /// The thread's name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The thread cannot run on the processors it was given.
    #[error("cannot pin the I/O thread {name:?} to the processors {cpus:?}")]
    Pin {
        /// The thread's name.
        name: String,
        /// The host processors asked for.
        cpus: Vec<usize>,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Neither io_uring nor epoll could be set up.
    #[error("cannot set up I/O for the I/O thread {name:?}")]
    Reactor {
        /// The thread's name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The task was cancelled, panicked, or its thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the task ended without a result")]
pub struct TaskGone;
