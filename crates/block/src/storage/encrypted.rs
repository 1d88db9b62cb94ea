//! A storage whose bytes are encrypted, behind a LUKS header.

use std::io;

use event::{IoBuf, WriteFlags};
use luks::Passphrase;

use super::Storage;
use crate::buffer::{self, Parts};
use crate::crypt::{Crypt, CryptError, Encryption, SECTOR};
use crate::stripes::Stripes;
use crate::{BlockError, Limits, Transfer, ZeroFlags};

/// Stripes of read-modify-writes: bytes of each, and how many.
const STRIPE: u64 = 4096;
const STRIPES: usize = 64;
/// Zeros that are encrypted at once.
const PIECE: u64 = 1 << 20;

/// A LUKS1 file: the header, and behind it the encrypted sectors.
///
/// What was never written is not zeros, but noise.
pub struct Encrypted<S> {
    storage: S,
    crypt: Crypt,
    /// Where the encrypted sectors begin.
    payload: u64,
    sectors: Stripes,
}

impl<S: Storage> Encrypted<S> {
    /// Opens a LUKS file. Without the passphrase, only its size and its header can be used.
    ///
    /// # Errors
    /// There is no LUKS1 header, or one that is not supported; the passphrase is wrong; the host
    /// fails.
    pub async fn open(storage: S, passphrase: Option<&Passphrase>) -> Result<Self, CryptError> {
        let crypt = Crypt::luks(&storage, 0, true, passphrase).await?;
        let Encryption::Luks(header) = &crypt.kind else {
            return Err(luks::LuksError::NotLuks.into());
        };
        let payload = header.payload();
        if payload == 0 {
            return Err(CryptError::Detached);
        }
        if payload > storage.size() {
            let why = "the encrypted sectors would begin behind the end of the file";
            return Err(luks::LuksError::Header(why).into());
        }
        Ok(Self {
            storage,
            crypt,
            payload,
            sectors: Stripes::new(STRIPE, STRIPES),
        })
    }

    /// How it is encrypted.
    pub fn encryption(&self) -> &Encryption {
        &self.crypt.kind
    }

    /// What is encrypted.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Writes what is no whole sectors: the rest of them is read, and written again.
    async fn write_within(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> Transfer {
        let end = offset + buf.len() as u64;
        let (start, stop) = (offset - offset % SECTOR, end.next_multiple_of(SECTOR));
        let _sectors = self.sectors.exclusive(start..stop).await;
        let parts = Parts::new(buf);
        let result = async {
            let mut list = Vec::with_capacity(3);
            if start < offset {
                list.push(self.read_old(start, offset - start).await?);
            }
            list.push(parts.part(0, parts.len()));
            if end < stop {
                list.push(self.read_old(end, stop - end).await?);
            }
            let whole = buffer::concatenated(list);
            let at = self.payload + start;
            let done = self.crypt.write(&self.storage, whole, at, start, flags);
            done.await.0
        }
        .await;
        (result, parts.into_whole())
    }

    async fn read_old(&self, offset: u64, len: u64) -> io::Result<IoBuf> {
        let (result, buf) = self.read(buffer::zeroed(len as usize)?, offset).await;
        result?;
        Ok(buf)
    }
}

impl<S: Storage> Storage for Encrypted<S> {
    async fn read(&self, buf: IoBuf, offset: u64) -> Transfer {
        let host = self.payload.saturating_add(offset);
        self.crypt.read(&self.storage, buf, host, offset).await
    }

    async fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> Transfer {
        let len = buf.len() as u64;
        if len == 0 {
            return (Ok(()), buf);
        }
        if !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
            return Box::pin(self.write_within(buf, offset, flags)).await;
        }
        let _sectors = self.sectors.shared(offset..offset + len).await;
        let host = self.payload + offset;
        let done = self.crypt.write(&self.storage, buf, host, offset, flags);
        done.await
    }

    async fn flush(&self) -> io::Result<()> {
        self.storage.flush().await
    }

    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        // It would show where the disk is empty.
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            // Up to a multiple, so that all pieces but two are whole sectors.
            let piece = (PIECE - at % PIECE).min(end - at);
            let zeros = buffer::zeroed(piece as usize)?;
            let flags = WriteFlags { fua: flags.fua };
            self.write(zeros, at, flags).await.0?;
            at += piece;
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        let size = self.storage.size().saturating_sub(self.payload);
        size - size % SECTOR
    }

    async fn resize(&self, size: u64) -> Result<(), BlockError> {
        self.storage.resize(size.saturating_add(self.payload)).await
    }

    fn limits(&self) -> Limits {
        let limits = self.storage.limits();
        Limits {
            request_alignment: limits.request_alignment.max(SECTOR as u32),
            // All data is copied.
            memory_alignment: 1,
            can_discard: false,
            ..limits
        }
    }

    async fn extent(&self, _offset: u64, len: u64) -> io::Result<(bool, u64)> {
        Ok((true, len))
    }

    async fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        let offset = self.payload.saturating_add(offset);
        self.storage.reserve(offset, len).await
    }

    fn grows_with_zeros(&self) -> bool {
        false
    }

    fn is_read_only(&self) -> bool {
        self.storage.is_read_only()
    }
}
