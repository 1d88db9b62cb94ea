//! I/O threads: one operating-system thread each, with a single-threaded executor over io_uring.
#![allow(
    clippy::unused_async,
    unused_variables,
    clippy::missing_errors_doc,
    missing_docs
)]

mod buf;
mod error;
mod stub;
mod sync;

pub use buf::IoBuf;
pub use error::{EventError, TaskGone};
pub use stub::*;
pub use sync::*;
