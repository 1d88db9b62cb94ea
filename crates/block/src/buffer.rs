//! Copying to and from the memory of an [`IoBuf`], which a guest may change at any time.
#![allow(
    unsafe_code,
    reason = "an IoBuf's scatter list names memory by address"
)]

use std::sync::{Arc, Mutex, PoisonError};

use event::IoBuf;
use memory::VolatileSlice;

/// The pieces of `buf` from its current start on, at most `len` bytes of them.
fn pieces(buf: &IoBuf, len: usize) -> impl Iterator<Item = VolatileSlice<'_>> {
    let mut left = len;
    buf.iovecs().iter().map_while(move |piece| {
        let take = piece.iov_len.min(left);
        left -= take;
        // SAFETY: an IoBuf keeps the memory of its scatter list alive and accessible, and
        // nobody may rely on a Rust reference to guard it. The slice does not outlive `buf`.
        (take != 0 || left != 0).then(|| unsafe { VolatileSlice::new(piece.iov_base.cast(), take) })
    })
}

/// Fills the next `len` bytes of `buf` with zeros.
pub fn zero(buf: &IoBuf, len: usize) {
    const ZEROS: [u8; 4096] = [0; 4096];
    for piece in pieces(buf, len) {
        let mut done = 0;
        while let Ok(rest) = piece.offset(done) {
            if rest.is_empty() {
                break;
            }
            let step = rest.len().min(ZEROS.len());
            rest.copy_from(&ZEROS[..step]);
            done += step;
        }
    }
}

/// Whether all bytes of `buf` are zeros now; a guest may change them at once.
#[must_use]
pub fn is_zero(buf: &IoBuf) -> bool {
    let mut some = [0_u8; 4096];
    for piece in pieces(buf, buf.len()) {
        let mut done = 0;
        while let Ok(rest) = piece.offset(done) {
            if rest.is_empty() {
                break;
            }
            let step = rest.copy_to(&mut some);
            if some[..step].iter().any(|byte| *byte != 0) {
                return false;
            }
            done += step;
        }
    }
    true
}

/// Copies the next bytes of `buf` into `to`, as many as fit.
pub fn gather(buf: &IoBuf, to: &mut [u8]) {
    let mut done = 0;
    for piece in pieces(buf, to.len()) {
        done += piece.copy_to(&mut to[done..]);
    }
}

/// Copies `from` over the next bytes of `buf`.
pub fn scatter(buf: &IoBuf, from: &[u8]) {
    let mut done = 0;
    for piece in pieces(buf, from.len()) {
        piece.copy_from(&from[done..]);
        done += piece.len();
    }
}

/// Whether every piece starts at a multiple of `memory` and is a multiple of `length` long
/// (powers of two both).
pub(crate) fn is_aligned(buf: &IoBuf, memory: usize, length: usize) -> bool {
    buf.iovecs().iter().all(|piece| {
        (piece.iov_base as usize) & (memory - 1) == 0 && piece.iov_len & (length - 1) == 0
    })
}

/// `len` zero bytes that suit every host's O_DIRECT.
pub(crate) fn zeroed(len: usize) -> std::io::Result<IoBuf> {
    IoBuf::zeroed_aligned(len, 4096).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
}

/// A copy of `bytes` that suits every host's O_DIRECT.
pub(crate) fn aligned(bytes: &[u8]) -> std::io::Result<IoBuf> {
    let mut buf = zeroed(bytes.len())?;
    if let Some(to) = buf.bytes_mut() {
        to.copy_from_slice(bytes);
    }
    Ok(buf)
}

/// The scatter list of `len` bytes of `buf` from `start` on.
fn window(buf: &IoBuf, mut start: usize, mut len: usize) -> Vec<libc::iovec> {
    let mut list = Vec::new();
    for piece in buf.iovecs() {
        if len == 0 {
            break;
        }
        let skip = start.min(piece.iov_len);
        start -= skip;
        let take = (piece.iov_len - skip).min(len);
        if take != 0 {
            len -= take;
            list.push(libc::iovec {
                iov_base: piece
                    .iov_base
                    .cast::<u8>()
                    .wrapping_add(skip)
                    .cast::<libc::c_void>(),
                iov_len: take,
            });
        }
    }
    list
}

/// A buffer of which parts are in use by several operations at once.
pub struct Parts {
    /// Bytes of the buffer.
    len: usize,
    whole: Arc<Mutex<IoBuf>>,
}

impl Parts {
    /// Of a buffer, from its current start on.
    pub fn new(buf: IoBuf) -> Self {
        Self {
            len: buf.len(),
            whole: Arc::new(Mutex::new(buf)),
        }
    }

    /// Bytes of the buffer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `start` on, or fewer at the end.
    pub fn part(&self, start: usize, len: usize) -> IoBuf {
        let keep = Arc::clone(&self.whole);
        let whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let list = window(&whole, start, len.min(self.len.saturating_sub(start)));
        // SAFETY: the pieces are pieces of `whole`, which `keep` keeps alive, and which nobody
        // changes or reads except by operations on its parts.
        unsafe { IoBuf::from_raw_parts(list, keep) }
    }

    /// The buffer, when all its parts are gone; an empty one while an operation that was given up
    /// still holds a part.
    #[must_use]
    pub fn into_whole(self) -> IoBuf {
        match Arc::try_unwrap(self.whole) {
            Ok(whole) => whole.into_inner().unwrap_or_else(PoisonError::into_inner),
            Err(_) => IoBuf::from_vec(Vec::new()),
        }
    }
}

/// Buffers one after the other, as one.
pub fn concatenated(buffers: Vec<IoBuf>) -> IoBuf {
    let list = buffers.iter().flat_map(IoBuf::iovecs).copied();
    let list: Vec<libc::iovec> = list.filter(|piece| piece.iov_len != 0).collect();
    let keep = Arc::new(Mutex::new(buffers));
    // SAFETY: the pieces are those of `buffers`, which `keep` keeps alive, and which nobody
    // reaches any more in another way.
    unsafe { IoBuf::from_raw_parts(list, keep) }
}

/// `buf`, with something that is dropped when the last operation on it is over.
pub(crate) fn with_guard<G: Send + Sync + 'static>(buf: IoBuf, guard: G) -> IoBuf {
    let list = buf.iovecs().to_vec();
    let keep = Arc::new((Mutex::new(buf), guard));
    // SAFETY: as in `concatenated`.
    unsafe { IoBuf::from_raw_parts(list, keep) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scattered() -> (Arc<Vec<u8>>, IoBuf) {
        let owner = Arc::new(vec![7u8; 64]);
        let base = owner.as_ptr().cast_mut();
        let piece = |at: usize, len: usize| libc::iovec {
            iov_base: base.wrapping_add(at).cast(),
            iov_len: len,
        };
        let list = vec![piece(0, 4), piece(16, 0), piece(32, 8)];
        // SAFETY: the pieces lie in `owner`, which is only read again through its pointer.
        let buf = unsafe { IoBuf::from_raw_parts(list, Arc::clone(&owner) as _) };
        (owner, buf)
    }

    #[test]
    fn scatter_and_gather_cross_pieces() {
        let (_owner, mut buf) = scattered();
        scatter(&buf, &[1, 2, 3, 4, 5, 6]);
        let mut all = [0; 12];
        gather(&buf, &mut all);
        assert_eq!(all, [1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7]);
        buf.advance(3);
        zero(&buf, 2);
        let mut rest = [9; 4];
        gather(&buf, &mut rest);
        assert_eq!(rest, [0, 0, 6, 7]);
    }

    #[test]
    fn zero_covers_more_than_a_page() {
        let mut buf = IoBuf::from_vec(vec![1; 10_000]);
        zero(&buf, 9_999);
        buf.advance(9_998);
        assert_eq!(
            buf.into_vec().unwrap()[9_990..],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
        );
    }

    #[test]
    fn parts_and_sums_reach_the_same_memory() {
        let parts = Parts::new(IoBuf::from_vec((0..100).collect()));
        let (first, second) = (parts.part(10, 20), parts.part(90, 20));
        assert_eq!((first.len(), second.len()), (20, 10));
        scatter(&first, &[7; 3]);
        let sum = concatenated(vec![IoBuf::from_vec(vec![1, 2]), second]);
        let mut bytes = [0; 12];
        gather(&sum, &mut bytes);
        assert_eq!(bytes, [1, 2, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99]);
        assert_eq!(with_guard(first, ()).len(), 20);
        drop(sum);
        let whole = parts.into_whole().into_vec().unwrap();
        assert_eq!(whole[9..14], [9, 7, 7, 7, 13]);
    }
}
