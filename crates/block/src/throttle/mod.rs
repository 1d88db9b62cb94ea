//! Throttling: how many requests and bytes a second a disk may have.
//!
//! ```text
//!   [Throttle] ─ request ─▶ [ThrottleGroup] ─ its turn, and the buckets have room ─▶ inner node
//!   [Throttle] ─ request ─▶   one schedule: members take turns
//! ```
//!
//! A [`Throttle`] is a node in front of another. Its [`ThrottleGroup`] has six leaky buckets, for
//! requests and bytes, each for reads, for writes, and for both together, with the meaning that
//! they have in QEMU (its docs/throttle.txt): what a request needs is poured into the buckets, they
//! leak at the limit's rate, and while one of them is too full, requests wait. A bucket without a
//! burst limit holds what may pass in a tenth of a second; one with a burst limit holds what may
//! pass at that rate for the burst's length.
//!
//! | file          | what                                                        |
//! |---------------|-------------------------------------------------------------|
//! | `limits.rs`   | [`ThrottleLimits`]: what a user says, and what is refused    |
//! | `legacy.rs`   | [`BlockIoThrottle`]: the same as block_set_io_throttle has it |
//! | `bucket.rs`   | the buckets, without a clock                                |
//! | `schedule.rs` | whose turn it is, without a clock                           |
//! | `group.rs`    | the schedule with a clock, shared by tasks and threads      |
//! | `node.rs`     | the node                                                    |

mod bucket;
mod group;
mod legacy;
mod limits;
mod node;
mod schedule;
#[cfg(test)]
mod tests;

pub use group::{ThrottleGroup, Unthrottled};
pub use legacy::BlockIoThrottle;
pub use limits::{ThrottleError, ThrottleLimits};
pub use node::Throttle;
