//! Where the bytes of a kernel or an initrd come from.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use memory::{Bytes, GuestAddress, GuestMemoryError, Ram};

use super::memory_error;
use crate::BoardError;

/// The bytes of a kernel or an initrd.
pub trait Image {
    /// Number of bytes.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads at `offset`; returns how many bytes, 0 only at the end.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Copies `len` bytes from `offset` to guest memory at `address`; `what` names the file in
    /// errors.
    ///
    /// # Errors
    /// The file is shorter or cannot be read, or there is no such guest memory.
    fn load(
        &self,
        offset: u64,
        len: u64,
        ram: &Ram,
        address: u64,
        what: &'static str,
    ) -> Result<(), BoardError>;
}

/// An open file or block device.
#[derive(Debug)]
pub struct FileImage<'a> {
    file: &'a File,
    len: u64,
}

impl<'a> FileImage<'a> {
    /// The file from its first to its last byte.
    ///
    /// # Errors
    /// Its size cannot be found out: a pipe has none.
    pub fn new(file: &'a File) -> io::Result<Self> {
        let mut cursor = file;
        let len = cursor.seek(SeekFrom::End(0))?;
        Ok(Self { file, len })
    }
}

impl Image for FileImage<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn load(
        &self,
        offset: u64,
        len: u64,
        ram: &Ram,
        address: u64,
        what: &'static str,
    ) -> Result<(), BoardError> {
        let read_error = |source| BoardError::Read {
            what,
            offset,
            source,
        };
        let mut cursor = self.file;
        cursor.seek(SeekFrom::Start(offset)).map_err(read_error)?;
        // Lengths are checked against the RAM's size before, so they fit.
        let count = usize::try_from(len).unwrap_or(usize::MAX);
        ram.read_exact_volatile_from(GuestAddress(address), &mut cursor, count)
            .map_err(|error| match error {
                GuestMemoryError::IOError(source) => read_error(source),
                error => memory_error(what, address, error),
            })
    }
}

impl Image for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.get(start..).unwrap_or_default();
        let count = <[u8]>::len(rest).min(<[u8]>::len(buffer));
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn load(
        &self,
        offset: u64,
        len: u64,
        ram: &Ram,
        address: u64,
        what: &'static str,
    ) -> Result<(), BoardError> {
        let end = offset
            .checked_add(len)
            .and_then(|e| usize::try_from(e).ok());
        let bytes = usize::try_from(offset)
            .ok()
            .zip(end)
            .and_then(|(start, end)| self.get(start..end))
            .ok_or_else(|| BoardError::Read {
                what,
                offset,
                source: io::ErrorKind::UnexpectedEof.into(),
            })?;
        ram.write_slice(bytes, GuestAddress(address))
            .map_err(|source| memory_error(what, address, source))
    }
}

impl Image for Vec<u8> {
    fn len(&self) -> u64 {
        Image::len(self.as_slice())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        Image::read_at(self.as_slice(), offset, buffer)
    }

    fn load(
        &self,
        offset: u64,
        len: u64,
        ram: &Ram,
        address: u64,
        what: &'static str,
    ) -> Result<(), BoardError> {
        self.as_slice().load(offset, len, ram, address, what)
    }
}

/// Up to `max` bytes at `offset`; fewer only at the end of the file.
pub(super) fn read_up_to(
    image: &dyn Image,
    what: &'static str,
    offset: u64,
    max: usize,
) -> Result<Vec<u8>, BoardError> {
    let mut bytes = vec![0; max];
    let mut done = 0;
    while done < max {
        let offset = offset.saturating_add(done as u64);
        match image.read_at(offset, &mut bytes[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(BoardError::Read {
                    what,
                    offset,
                    source,
                });
            }
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}
