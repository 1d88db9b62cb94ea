//! A storage of any kind, shared by those who use it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use event::{IoBuf, WriteFlags};

use super::{FileStorage, Storage};
use crate::{BlockError, Limits, NodeFuture, Transfer, ZeroFlags};

/// A storage of any kind, shared by those who use it. Files, which most are, cost no more than
/// by themselves.
#[derive(Clone)]
pub enum AnyStorage {
    /// A file or a host block device.
    File(Arc<FileStorage>),
    /// Another kind, which other crates bring.
    Other(Arc<dyn DynStorage>),
}

impl From<FileStorage> for AnyStorage {
    fn from(file: FileStorage) -> Self {
        Self::File(Arc::new(file))
    }
}

impl AnyStorage {
    /// Another kind of storage.
    pub fn other(storage: impl Storage) -> Self {
        Self::Other(Arc::new(storage))
    }

    /// The first bytes, for recognising formats.
    ///
    /// # Errors
    /// The host fails.
    pub async fn first_bytes(&self) -> io::Result<Vec<u8>> {
        let len = Storage::size(self).min(512) as usize;
        let (result, buf) = Storage::read(self, crate::buffer::zeroed(len)?, 0).await;
        result?;
        Ok(buf.bytes().map(<[u8]>::to_vec).unwrap_or_default())
    }
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// [`Storage`] as an object, whose requests cost an allocation each. Every storage is one.
pub trait DynStorage: Send + Sync {
    /// See [`Storage::read`].
    fn read(&self, buf: IoBuf, offset: u64) -> NodeFuture<'_, Transfer>;
    /// See [`Storage::write`].
    fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> NodeFuture<'_, Transfer>;
    /// See [`Storage::flush`].
    fn flush(&self) -> Boxed<'_, io::Result<()>>;
    /// See [`Storage::discard`].
    fn discard(&self, offset: u64, len: u64) -> Boxed<'_, io::Result<()>>;
    /// See [`Storage::write_zeroes`].
    fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Boxed<'_, io::Result<()>>;
    /// See [`Storage::size`].
    fn size(&self) -> u64;
    /// See [`Storage::resize`].
    fn resize(&self, size: u64) -> Boxed<'_, Result<(), BlockError>>;
    /// See [`Storage::limits`].
    fn limits(&self) -> Limits;
    /// See [`Storage::extent`].
    fn extent(&self, offset: u64, len: u64) -> Boxed<'_, io::Result<(bool, u64)>>;
    /// See [`Storage::reserve`].
    fn reserve(&self, offset: u64, len: u64) -> Boxed<'_, io::Result<()>>;
    /// See [`Storage::grows_with_zeros`].
    fn grows_with_zeros(&self) -> bool;
    /// See [`Storage::is_read_only`].
    fn is_read_only(&self) -> bool;
}

impl<S: Storage> DynStorage for S {
    fn read(&self, buf: IoBuf, offset: u64) -> NodeFuture<'_, Transfer> {
        Box::pin(Storage::read(self, buf, offset))
    }
    fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> NodeFuture<'_, Transfer> {
        Box::pin(Storage::write(self, buf, offset, flags))
    }
    fn flush(&self) -> Boxed<'_, io::Result<()>> {
        Box::pin(Storage::flush(self))
    }
    fn discard(&self, offset: u64, len: u64) -> Boxed<'_, io::Result<()>> {
        Box::pin(Storage::discard(self, offset, len))
    }
    fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Boxed<'_, io::Result<()>> {
        Box::pin(Storage::write_zeroes(self, offset, len, flags))
    }
    fn size(&self) -> u64 {
        Storage::size(self)
    }
    fn resize(&self, size: u64) -> Boxed<'_, Result<(), BlockError>> {
        Box::pin(Storage::resize(self, size))
    }
    fn limits(&self) -> Limits {
        Storage::limits(self)
    }
    fn extent(&self, offset: u64, len: u64) -> Boxed<'_, io::Result<(bool, u64)>> {
        Box::pin(Storage::extent(self, offset, len))
    }
    fn reserve(&self, offset: u64, len: u64) -> Boxed<'_, io::Result<()>> {
        Box::pin(Storage::reserve(self, offset, len))
    }
    fn grows_with_zeros(&self) -> bool {
        Storage::grows_with_zeros(self)
    }
    fn is_read_only(&self) -> bool {
        Storage::is_read_only(self)
    }
}

/// The same call to whichever it is.
macro_rules! to_either {
    ($self:ident, $storage:ident => $call:expr, $other:ident => $boxed:expr) => {
        match $self {
            AnyStorage::File($storage) => $call,
            AnyStorage::Other($other) => $boxed,
        }
    };
}

impl Storage for AnyStorage {
    async fn read(&self, buf: IoBuf, offset: u64) -> Transfer {
        to_either!(self, s => Storage::read(&**s, buf, offset).await, s => s.read(buf, offset).await)
    }
    async fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> Transfer {
        to_either!(self,
            s => Storage::write(&**s, buf, offset, flags).await,
            s => s.write(buf, offset, flags).await)
    }
    async fn flush(&self) -> io::Result<()> {
        to_either!(self, s => Storage::flush(&**s).await, s => s.flush().await)
    }
    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        to_either!(self,
            s => Storage::discard(&**s, offset, len).await,
            s => s.discard(offset, len).await)
    }
    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        to_either!(self,
            s => Storage::write_zeroes(&**s, offset, len, flags).await,
            s => s.write_zeroes(offset, len, flags).await)
    }
    fn size(&self) -> u64 {
        to_either!(self, s => Storage::size(&**s), s => s.size())
    }
    async fn resize(&self, size: u64) -> Result<(), BlockError> {
        to_either!(self, s => Storage::resize(&**s, size).await, s => s.resize(size).await)
    }
    fn limits(&self) -> Limits {
        to_either!(self, s => Storage::limits(&**s), s => s.limits())
    }
    async fn extent(&self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        to_either!(self,
            s => Storage::extent(&**s, offset, len).await,
            s => s.extent(offset, len).await)
    }
    async fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        to_either!(self,
            s => Storage::reserve(&**s, offset, len).await,
            s => s.reserve(offset, len).await)
    }
    fn grows_with_zeros(&self) -> bool {
        to_either!(self, s => Storage::grows_with_zeros(&**s), s => s.grows_with_zeros())
    }
    fn is_read_only(&self) -> bool {
        to_either!(self, s => Storage::is_read_only(&**s), s => s.is_read_only())
    }
}
