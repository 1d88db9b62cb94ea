//! I/O threads: one operating-system thread each, with a single-threaded executor over io_uring.
//!
//! ```text
//!   vCPU and control threads                         an I/O thread
//!   ------------------------          -------------------------------------------
//!   spawn_task, wakers,      inbox    |  tasks      queue workers, block requests
//!   Sender, TimerHandle  ---------->  |    |  ^     (spawn_local, sync::*)
//!                            eventfd  |    v  |
//!   guest's doorbell  ------------->  |  executor   run a batch, poll, sleep
//!   (ioeventfd)           standing    |    |  ^
//!                         request     |    v  |
//!                                     |  reactor    io_uring, or epoll and helpers
//!                                     ------|--^---------------------------------
//!                                           v  |
//!                                         the kernel
//! ```
//!
//! - A device's queue is an async task on the I/O thread that it was given: it awaits its doorbell
//!   ([`EventSource`]), spawns its requests ([`spawn_local`], [`InFlight`]), and ends when its
//!   [`StopToken`] says so. Nothing that it owns needs a lock.
//! - A turn of the loop is one system call: hand over what was queued, and wait. With
//!   [`IoThreadConfig::poll_max`] the thread looks at rings and queues for a moment before it
//!   sleeps, as long as that pays off ([`poll_source`]).
//! - Memory that the kernel reads or writes belongs to the operation until the kernel is done
//!   ([`IoBuf`]), even when the future is dropped.
//! - Where io_uring is refused (a container's seccomp filter, an old kernel, `VIREO_NO_IO_URING=1`)
//!   epoll and a few helper threads do the same.
//!
//! | file          | what                                                    |
//! |---------------|---------------------------------------------------------|
//! | `thread.rs`   | [`IoThread`]: start, pin, end                            |
//! | `task.rs`     | [`LocalTask`], [`Remote`], [`unblock`]                   |
//! | `file.rs`     | reads and writes at an offset                           |
//! | `watch.rs`    | [`EventSource`], [`AsyncFd`]                             |
//! | `time.rs`     | [`sleep`], [`TimerHandle`]                               |
//! | `poll.rs`     | adaptive polling                                        |
//! | `sync.rs`     | notifications, channels, stopping                       |
//! | `buf.rs`      | [`IoBuf`]                                                |
//! | `executor.rs` | the loop                                                |
//! | `ops.rs`      | the table of operations in flight                       |
//! | `shared.rs`   | inbox and wake-up                                       |
//! | `reactor.rs`  | the border to the kernel; `uring.rs` and `epoll.rs`     |

mod buf;
mod error;
mod executor;
mod file;
mod ops;
mod poll;
mod reactor;
mod shared;
mod sync;
mod task;
mod thread;
mod time;
mod watch;

pub use buf::IoBuf;
pub use error::{EventError, TaskGone};
pub use file::{
    IoResult, WriteFlags, fallocate, fsync, read_full_at, read_vectored_at, write_all_at,
    write_vectored_at,
};
pub use poll::{PollHook, PollSource, poll_hook, poll_source};
pub use sync::{
    Closed, Either, InFlight, InFlightGuard, Notify, OneshotReceiver, OneshotSender, Permit,
    Receiver, Semaphore, Sender, StopSource, StopToken, channel, join_all, oneshot, select2,
};
pub use task::{LocalTask, Remote, spawn_local, unblock};
pub use thread::{IoThread, IoThreadConfig, NO_IO_URING};
pub use time::{TimerHandle, sleep, sleep_until, timeout, yield_now};
pub use vmm_sys_util::eventfd::EventFd;
pub use watch::{AsyncFd, EventSource, eventfd_wait, readable, writable};

#[cfg(test)]
mod tests;
