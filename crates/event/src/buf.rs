//! Memory that an operation reads or writes, and what keeps it alive.
#![allow(
    unsafe_code,
    reason = "an operation's memory is known to the kernel by address, not by borrow"
)]

use std::alloc::{self, Layout};
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use libc::iovec;

/// The memory of one operation: a scatter list plus whatever keeps it alive until the kernel is
/// done, even when the operation's future is dropped before.
///
/// An operation takes the buffer and gives it back with its result.
pub struct IoBuf {
    list: List,
    keep: Keep,
}

/// One element is by far the most common, and needs no allocation.
enum List {
    One(iovec),
    Many { vecs: Vec<iovec>, first: usize },
}

enum Keep {
    Vec(Vec<u8>),
    Aligned(Aligned),
    Shared {
        /// Held, never read.
        _owner: Arc<dyn Any + Send + Sync>,
    },
}

// SAFETY: the pointers in `list` point into memory that `keep` keeps alive at a fixed address: a
// vector's or an aligned allocation's heap memory, which moves between threads with its owner, or
// memory that `from_raw_parts`' caller promised may be used from any thread.
unsafe impl Send for IoBuf {}

impl IoBuf {
    /// The bytes of `vec`, from 0 to its length.
    pub fn from_vec(mut vec: Vec<u8>) -> Self {
        Self {
            list: List::One(iovec {
                iov_base: vec.as_mut_ptr().cast(),
                iov_len: vec.len(),
            }),
            keep: Keep::Vec(vec),
        }
    }

    /// `len` zero bytes whose address is a multiple of `align` (a power of two), as O_DIRECT
    /// wants them. `None` when there is no such memory.
    pub fn zeroed_aligned(len: usize, align: usize) -> Option<Self> {
        let memory = Aligned::zeroed(len, align)?;
        Some(Self {
            list: List::One(iovec {
                iov_base: memory.base.as_ptr().cast(),
                iov_len: len,
            }),
            keep: Keep::Aligned(memory),
        })
    }

    /// Memory of another owner, guest memory for instance.
    ///
    /// # Safety
    /// Until `keep` is dropped, every element of `iovecs` must point to memory that may be read
    /// (for an operation that writes to a file) or written (for one that reads) from any thread,
    /// and no Rust reference may be relied upon to guard it: the kernel accesses it at any time
    /// before the operation completes.
    pub unsafe fn from_raw_parts(iovecs: Vec<iovec>, keep: Arc<dyn Any + Send + Sync>) -> Self {
        let list = match iovecs[..] {
            [one] => List::One(one),
            _ => List::Many {
                vecs: iovecs,
                first: 0,
            },
        };
        Self {
            list,
            keep: Keep::Shared { _owner: keep },
        }
    }

    /// As [`IoBuf::from_raw_parts`] for a single piece, without an allocation.
    ///
    /// # Safety
    /// As [`IoBuf::from_raw_parts`].
    pub unsafe fn from_raw(base: *mut u8, len: usize, keep: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            list: List::One(iovec {
                iov_base: base.cast(),
                iov_len: len,
            }),
            keep: Keep::Shared { _owner: keep },
        }
    }

    /// Bytes left to transfer.
    pub fn len(&self) -> usize {
        self.iovecs()
            .iter()
            .fold(0, |sum, piece| sum.saturating_add(piece.iov_len))
    }

    /// Whether nothing is left to transfer.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scatter list of what is left to transfer.
    pub fn iovecs(&self) -> &[iovec] {
        match &self.list {
            List::One(one) => slice::from_ref(one),
            List::Many { vecs, first } => &vecs[*first..],
        }
    }

    /// Leaves out the first `bytes` bytes, after a short transfer. More than are left leaves none.
    pub fn advance(&mut self, mut bytes: usize) {
        fn skip(piece: &mut iovec, bytes: usize) {
            piece.iov_base = piece
                .iov_base
                .cast::<u8>()
                .wrapping_add(bytes)
                .cast::<libc::c_void>();
            piece.iov_len -= bytes;
        }
        match &mut self.list {
            List::One(one) => skip(one, bytes.min(one.iov_len)),
            List::Many { vecs, first } => {
                while let Some(piece) = vecs.get_mut(*first) {
                    if bytes < piece.iov_len {
                        skip(piece, bytes);
                        break;
                    }
                    bytes -= piece.iov_len;
                    *first += 1;
                }
            }
        }
    }

    /// Makes a buffer that owns its bytes stand for the first `len` of them, whatever was advanced
    /// over, so that it can be used again. `false`: it has fewer, or they are another owner's.
    pub fn rewind(&mut self, len: usize) -> bool {
        let Some(bytes) = self.bytes_mut().and_then(|bytes| bytes.get_mut(..len)) else {
            return false;
        };
        self.list = List::One(iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: len,
        });
        true
    }

    /// The vector given to [`IoBuf::from_vec`], whole, or `None` when the buffer is not of that
    /// kind.
    pub fn into_vec(self) -> Option<Vec<u8>> {
        match self.keep {
            Keep::Vec(vec) => Some(vec),
            Keep::Aligned(_) | Keep::Shared { .. } => None,
        }
    }

    /// The bytes of a buffer that owns them, whole, whatever was advanced over; `None` for memory
    /// of another owner.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.keep {
            Keep::Vec(vec) => Some(vec),
            Keep::Aligned(memory) => Some(memory.as_slice()),
            Keep::Shared { .. } => None,
        }
    }

    /// As [`IoBuf::bytes`], to be changed.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.keep {
            Keep::Vec(vec) => Some(vec),
            Keep::Aligned(memory) => Some(memory.as_mut_slice()),
            Keep::Shared { .. } => None,
        }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBuf")
            .field("len", &self.len())
            .field("pieces", &self.iovecs().len())
            .finish_non_exhaustive()
    }
}

/// Zeroed heap memory of a given alignment.
struct Aligned {
    base: NonNull<u8>,
    len: usize,
    layout: Layout,
}

impl Aligned {
    fn zeroed(len: usize, align: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len.max(1), align).ok()?;
        // SAFETY: the layout's size is at least 1.
        let base = NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?;
        Some(Self { base, len, layout })
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: `base` points to at least `len` initialised bytes that `self` owns.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `zeroed` and freed only here.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(buf: &IoBuf) -> Vec<usize> {
        buf.iovecs().iter().map(|piece| piece.iov_len).collect()
    }

    #[test]
    fn vec_comes_back() {
        let mut buf = IoBuf::from_vec(vec![1, 2, 3]);
        assert_eq!(buf.len(), 3);
        buf.advance(2);
        assert_eq!(buf.len(), 1);
        assert_eq!(buf.bytes(), Some(&[1, 2, 3][..]));
        assert_eq!(buf.into_vec(), Some(vec![1, 2, 3]));
    }

    #[test]
    fn what_is_owned_can_be_used_again() {
        let mut buf = IoBuf::zeroed_aligned(4096, 512).unwrap();
        let start = buf.iovecs()[0].iov_base;
        buf.advance(5000);
        assert!(buf.is_empty() && !buf.rewind(4097));
        assert!(buf.rewind(100));
        assert_eq!((buf.len(), buf.iovecs()[0].iov_base), (100, start));
        assert_eq!(buf.bytes().map(<[u8]>::len), Some(4096));
        let mut vec = IoBuf::from_vec(vec![7; 10]);
        vec.advance(3);
        assert!(vec.rewind(10) && vec.len() == 10);
    }

    #[test]
    fn advance_crosses_pieces() {
        let owner = Arc::new([0u8; 64]);
        let base = owner.as_ptr().cast_mut();
        let piece = |at: usize, len: usize| iovec {
            iov_base: base.wrapping_add(at).cast(),
            iov_len: len,
        };
        let pieces = vec![piece(0, 8), piece(8, 0), piece(8, 16), piece(32, 4)];
        // SAFETY: the pieces lie in `owner`, and nobody accesses them.
        let mut buf = unsafe { IoBuf::from_raw_parts(pieces, owner) };
        assert_eq!(buf.len(), 28);
        buf.advance(3);
        assert_eq!(lengths(&buf), [5, 0, 16, 4]);
        buf.advance(5);
        assert_eq!(lengths(&buf), [16, 4]);
        buf.advance(17);
        assert_eq!(lengths(&buf), [3]);
        assert_eq!(buf.iovecs()[0].iov_base, base.wrapping_add(33).cast());
        buf.advance(100);
        assert!(buf.is_empty());
        assert!(buf.bytes().is_none());
    }

    #[test]
    fn aligned_is_aligned() {
        let mut buf = IoBuf::zeroed_aligned(512, 4096).unwrap();
        assert_eq!(buf.iovecs()[0].iov_base as usize % 4096, 0);
        buf.bytes_mut().unwrap().fill(7);
        assert_eq!(buf.bytes().unwrap(), [7; 512]);
        assert!(IoBuf::zeroed_aligned(1, 3).is_none());
    }
}
