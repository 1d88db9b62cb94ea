//! Formats: where in the storage the guest's bytes are.

mod chain;
pub mod qcow2;
mod raw;

pub use chain::{Image, OpenOptions, create_file, open, open_image};
pub use raw::Raw;
