//! Where the bytes of a kernel or an initrd come from.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use memory::{Bytes, GuestAddress, GuestMemoryError, Ram};

use super::memory_error;
use crate::BoardError;

/// Bytes of stack of a thread that helps to load.
const LOADER_STACK: usize = 128 << 10;

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

    /// The same file with a position of its own. `None` where that cannot be had: the file may have
    /// come from somebody who was allowed more.
    fn reopen(&self) -> Option<File> {
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd())).ok()
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
        // The most of the time goes into clearing and filling pages, which others can help with.
        let second =
            second_part(offset, len, address).and_then(|start| Some((start, self.reopen()?)));
        let Some((start, file)) = second else {
            return load_part(self.file, offset, len, ram, address, what);
        };
        let (len, rest) = (start, len - start);
        std::thread::scope(|scope| {
            let other = std::thread::Builder::new()
                .name("load".into())
                .stack_size(LOADER_STACK)
                .spawn_scoped(scope, || {
                    load_part(&file, offset + len, rest, ram, address + len, what)
                });
            load_part(self.file, offset, len, ram, address, what)?;
            match other.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(outcome)) => outcome,
                // It could not be started, or ended in some odd way.
                _ => load_part(self.file, offset + len, rest, ram, address + len, what),
            }
        })
    }
}

/// Where the second of two parts of a big file begins, from the first byte: on a huge page of
/// guest memory, so that the two do not wait for each other. `None`: one part is as good.
fn second_part(offset: u64, len: u64, address: u64) -> Option<u64> {
    const HUGE_PAGE: u64 = 2 << 20;
    const BIG: u64 = 8 << 20;
    if len < BIG || std::thread::available_parallelism().is_ok_and(|count| count.get() == 1) {
        return None;
    }
    // What the file says of itself may be anything.
    offset.checked_add(len)?;
    address.checked_add(len)?;
    let middle = (address + len / 2) / HUGE_PAGE * HUGE_PAGE;
    middle.checked_sub(address)
}

/// Reads one part of a file into guest memory.
fn load_part(
    mut file: &File,
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
    file.seek(SeekFrom::Start(offset)).map_err(read_error)?;
    // Lengths are checked against the RAM's size before, so they fit.
    let count = usize::try_from(len).unwrap_or(usize::MAX);
    ram.read_exact_volatile_from(GuestAddress(address), &mut file, count)
        .map_err(|error| match error {
            GuestMemoryError::IOError(source) => read_error(source),
            error => memory_error(what, address, error),
        })
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
