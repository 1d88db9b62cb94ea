//! Storage: bytes on the host.

mod any;
mod direct;
mod encrypted;
mod file;
mod host;
pub mod lock;
mod open;
mod threads;

#[cfg(any(test, feature = "testing"))]
pub mod memory;

use std::future::Future;
use std::io;

use event::{IoBuf, WriteFlags};

use crate::{BlockError, Limits, Transfer, ZeroFlags};

pub use any::{AnyStorage, DynStorage};
pub use encrypted::Encrypted;
pub use file::FileStorage;

/// What a storage in another crate needs too: the memory of requests, and who may write where.
pub mod tools {
    pub use crate::buffer::{Parts, concatenated, gather, scatter, zero};
    pub use crate::stripes::{Guard, Stripes};
}

/// A sequence of bytes on the host, which many threads read and write at once.
///
/// A request's future runs on an I/O thread. Dropping it abandons the request: what it wrote is
/// then undefined, but its memory stays alive until the host is done with it.
///
/// This trait is dispatched statically, so that a format and its storage share one future.
pub trait Storage: Send + Sync + 'static {
    /// Reads into all of `buf`; bytes beyond the end read as zeros.
    fn read(&self, buf: IoBuf, offset: u64) -> impl Future<Output = Transfer>;

    /// Writes all of `buf`.
    fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> impl Future<Output = Transfer>;

    /// Makes every completed write stable.
    fn flush(&self) -> impl Future<Output = io::Result<()>>;

    /// Gives the space of a range back, if that is possible; reads of it are then undefined.
    fn discard(&self, offset: u64, len: u64) -> impl Future<Output = io::Result<()>>;

    /// Makes a range read as zeros.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> impl Future<Output = io::Result<()>>;

    /// Size in bytes, of any alignment.
    fn size(&self) -> u64;

    /// Changes the size.
    fn resize(&self, size: u64) -> impl Future<Output = Result<(), BlockError>>;

    /// What requests should look like.
    fn limits(&self) -> Limits;

    /// Whether the bytes at `offset` are stored (`true`) or a hole that reads as zeros, and how
    /// many of the next `len` bytes, which are not 0, are alike. What is not known is stored.
    fn extent(&self, offset: u64, len: u64) -> impl Future<Output = io::Result<(bool, u64)>>;

    /// Takes space on the host for a range, which reads as zeros where it was never written.
    fn reserve(&self, offset: u64, len: u64) -> impl Future<Output = io::Result<()>>;

    /// Whether what is written beyond the end leaves zeros in front of it.
    fn grows_with_zeros(&self) -> bool;

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;
}
