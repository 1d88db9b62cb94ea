//! Disks: from a guest's request to bytes on the host.
//!
//! ```text
//!   virtio-blk queues (any I/O thread)      jobs, exports
//!            │ IoBuf, offset                     │
//!            ▼                                   ▼
//!   [Node] user I/O: bounds, read-only, size watchers      one for each disk, shared by all
//!            │
//!   [format] where the guest's bytes are                   raw, qcow2 (on top of other nodes)
//!            │
//!   [storage] bytes on the host                            file or host block device
//!            │  io_uring; O_DIRECT by bounce buffers where a request does not suit it
//!            ▼
//!   the host's file, locked so that QEMU understands it
//! ```
//!
//! Three nouns, three folders. A [`Node`] is what users of a disk see; it is an object, and each
//! of its requests costs one allocation, the boxed future. A format and its
//! [`storage`] are known to each other at compile time, so that they share that future.
//!
//! No lock that all requests need is taken on the way of a request. (Under O_DIRECT, one that is
//! not aligned to the host's blocks has its blocks to itself for a read-modify-write; in a
//! [`qcow2`] image, one that changes where its range is has that range to itself.)
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! # use spec::Spec;
//! let spec = block::DiskSpec::parse("debian.img,cache=none")?;
//! let disk = block::open(&spec)?;
//! let (result, buf) = disk.read_vectored(event::IoBuf::from_vec(vec![0; 512]), 0).await;
//! result?;
//! # Ok(()) }
//! ```

pub mod buffer;
mod crypt;
mod error;
mod format;
pub mod graph;
mod node;
mod spec;
mod stats;
pub mod storage;
mod stripes;
mod sync;
#[cfg(test)]
mod tests;
pub mod throttle;

pub use crypt::{CryptError, Encryption, EraseKey, NewEncryption, read_key_file};
pub use error::BlockError;
pub use event::{IoBuf, WriteFlags};
pub use format::{
    Image, Layer, OpenOptions, Raw, create_file, create_image, create_luks, image_size, open,
    open_image, open_layer, open_layer_with_key, open_storage, qcow2,
};
pub use node::{
    BlockStatus, Limits, Node, NodeFuture, SizeWatcher, SizeWatchers, StatusKind, Transfer,
    ZeroFlags,
};
pub use spec::{Aio, BackingFiles, Cache, Discard, DiskSpec, Format, Locking};
pub use stats::{Operation, Stats, Totals};
