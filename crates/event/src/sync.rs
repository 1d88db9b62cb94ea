//! How tasks and threads tell one another things.
//!
//! | type                | from          | to           |
//! |---------------------|---------------|--------------|
//! | [`Notify`]          | same thread   | task         |
//! | [`Semaphore`]       | same thread   | task         |
//! | [`InFlight`]        | same thread   | task         |
//! | [`StopSource`]      | any thread    | tasks        |
//! | [`channel()`]       | any thread    | task         |
//! | [`oneshot()`]       | any thread    | task, thread |

mod channel;
mod local;
mod oneshot;
mod select;
mod stop;

pub use channel::{Closed, Receiver, Sender, channel};
pub(crate) use local::WaitList;
pub use local::{InFlight, InFlightGuard, Notify, Permit, Semaphore};
pub use oneshot::{OneshotReceiver, OneshotSender, oneshot};
pub use select::{Either, join_all, select2};
pub use stop::{StopSource, StopToken};

#[cfg(test)]
mod tests;
