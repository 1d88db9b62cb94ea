use event::IoBuf;
use memory::{Bytes, GuestAddress, GuestMemoryBackend, KeepAlive, Ram, VolatileSlice};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Segment;
use crate::queue::QueueError;

/// A position in a list of segments, and how many bytes may still be passed.
#[derive(Clone)]
struct Cursor<'a> {
    ram: &'a Ram,
    segments: &'a [Segment],
    /// Bytes of the first segment that are behind the cursor.
    offset: u32,
    remaining: u32,
}

impl<'a> Cursor<'a> {
    /// Takes a piece of at most `limit` bytes within one segment; `None` at the end.
    fn piece(&mut self, limit: usize) -> Option<Result<VolatileSlice<'a>, QueueError>> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let first = self.segments.first()?;
        let left = first.len - self.offset;
        let take = left.min(self.remaining).min(limit);
        if take == 0 {
            return None;
        }
        let address = first.address + u64::from(self.offset);
        self.remaining -= take;
        if take == left {
            self.segments = &self.segments[1..];
            self.offset = 0;
        } else {
            self.offset += take;
        }
        let slice = self.ram.get_slice(GuestAddress(address), take as usize);
        Some(slice.map_err(|_| QueueError::NotRam {
            address,
            len: u64::from(take),
        }))
    }

    fn check(&self, wanted: usize) -> Result<(), QueueError> {
        if wanted > self.remaining as usize {
            return Err(QueueError::TooShort {
                wanted,
                remaining: self.remaining as usize,
            });
        }
        Ok(())
    }

    /// The next `len` bytes as a cursor of their own; this one goes on behind them.
    fn take(&mut self, len: usize) -> Result<Self, QueueError> {
        self.check(len)?;
        let mut head = self.clone();
        head.remaining = len as u32;
        self.skip(len)?;
        Ok(head)
    }

    fn skip(&mut self, len: usize) -> Result<(), QueueError> {
        self.check(len)?;
        let mut left = len as u32;
        self.remaining -= left;
        while let Some(first) = self.segments.first() {
            let here = first.len - self.offset;
            if left < here {
                self.offset += left;
                break;
            }
            left -= here;
            self.segments = &self.segments[1..];
            self.offset = 0;
        }
        Ok(())
    }
}

/// The pieces of guest memory in front of a [`Reader`] or [`Writer`].
pub struct Slices<'a>(Cursor<'a>);

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a>, QueueError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.piece(usize::MAX)
    }
}

macro_rules! common {
    ($name:ident) => {
        impl<'a> $name<'a> {
            /// Bytes in front of the cursor.
            #[must_use]
            pub fn remaining(&self) -> usize {
                self.cursor.remaining as usize
            }

            /// Passes over `len` bytes.
            ///
            /// # Errors
            /// Fewer bytes remain; nothing was passed.
            pub fn skip(&mut self, len: usize) -> Result<(), QueueError> {
                self.cursor.skip(len)
            }

            /// Everything in front of the cursor, as pieces of guest memory. The cursor stays.
            #[must_use]
            pub fn slices(&self) -> Slices<'a> {
                Slices(self.cursor.clone())
            }

            /// Everything in front of the cursor as the memory of an asynchronous operation,
            /// which keeps `keep` until it is complete: the snapshot of the map in which the
            /// chain was popped. The cursor stays.
            ///
            /// # Errors
            /// The memory is not in `keep`.
            pub fn io_buf(&self, keep: &KeepAlive) -> Result<IoBuf, QueueError> {
                let cursor = Cursor {
                    ram: keep,
                    ..self.cursor.clone()
                };
                super::io::buffer(Slices(cursor), keep)
            }

            /// Appends everything in front of the cursor to `iovecs`, for system calls. The
            /// cursor stays.
            ///
            /// The pointers are good while the snapshot of the memory map lives: hold a
            /// [`memory::KeepAlive`] until the kernel is done with them.
            ///
            /// # Errors
            /// The memory was taken away from the guest.
            pub fn iovecs(&self, iovecs: &mut Vec<libc::iovec>) -> Result<(), QueueError> {
                for slice in self.slices() {
                    let slice = slice?;
                    iovecs.push(libc::iovec {
                        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                        iov_len: slice.len(),
                    });
                }
                Ok(())
            }
        }
    };
}

/// Reads the device-readable bytes of a chain from the first to the last.
#[derive(Clone)]
pub struct Reader<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(ram: &'a Ram, segments: &'a [Segment], len: u32) -> Self {
        Self {
            cursor: Cursor {
                ram,
                segments,
                offset: 0,
                remaining: len,
            },
        }
    }

    /// Reads a plain struct; its fields are little-endian as the guest wrote them.
    ///
    /// # Errors
    /// Fewer bytes remain; nothing was read.
    pub fn read_obj<T: FromBytes + IntoBytes>(&mut self) -> Result<T, QueueError> {
        let mut object = T::new_zeroed();
        self.read_exact(object.as_mut_bytes())?;
        Ok(object)
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// Fewer bytes remain; nothing was read.
    pub fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), QueueError> {
        self.cursor.check(buffer.len())?;
        self.read(buffer).map(|_| ())
    }

    /// Reads as much as there is into `buffer` and returns how much that was.
    ///
    /// # Errors
    /// The memory was taken away from the guest.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        while let Some(slice) = self.cursor.piece(buffer.len() - done) {
            done += slice?.copy_to(&mut buffer[done..]);
        }
        Ok(done)
    }

    /// Takes the next `len` bytes as a reader of their own; this one goes on behind them.
    ///
    /// # Errors
    /// Fewer bytes remain.
    pub fn split_at(&mut self, len: usize) -> Result<Reader<'a>, QueueError> {
        let cursor = self.cursor.take(len)?;
        Ok(Reader { cursor })
    }
}

/// Writes the device-writable bytes of a chain from the first to the last.
pub struct Writer<'a> {
    cursor: Cursor<'a>,
    total: u32,
}

impl<'a> Writer<'a> {
    pub(super) fn new(ram: &'a Ram, segments: &'a [Segment], len: u32) -> Self {
        Self {
            cursor: Cursor {
                ram,
                segments,
                offset: 0,
                remaining: len,
            },
            total: len,
        }
    }

    /// Bytes behind the cursor: what [`crate::Queue::add_used`] wants to know.
    #[must_use]
    pub fn written(&self) -> u32 {
        self.total - self.cursor.remaining
    }

    /// Writes a plain struct; its fields must be little-endian.
    ///
    /// # Errors
    /// Fewer bytes remain; nothing was written.
    pub fn write_obj<T: IntoBytes + Immutable>(&mut self, object: &T) -> Result<(), QueueError> {
        self.write_all(object.as_bytes())
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// Fewer bytes remain; nothing was written.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), QueueError> {
        self.cursor.check(bytes.len())?;
        self.write(bytes).map(|_| ())
    }

    /// Writes as much of `bytes` as there is room for and returns how much that was.
    ///
    /// # Errors
    /// The memory was taken away from the guest.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        while let Some(slice) = self.cursor.piece(bytes.len() - done) {
            let slice = slice?;
            // The piece is not longer than what is left of the bytes, so all of it is filled.
            let len = slice.len();
            slice
                .write_slice(&bytes[done..done + len], 0)
                .map_err(QueueError::Memory)?;
            done += len;
        }
        Ok(done)
    }

    /// Takes the next `len` bytes as a writer of their own; this one goes on behind them and
    /// counts them as [`Writer::written`].
    ///
    /// # Errors
    /// Fewer bytes remain.
    pub fn split_at(&mut self, len: usize) -> Result<Writer<'a>, QueueError> {
        let cursor = self.cursor.take(len)?;
        let total = cursor.remaining;
        Ok(Writer { cursor, total })
    }
}

common!(Reader);
common!(Writer);
