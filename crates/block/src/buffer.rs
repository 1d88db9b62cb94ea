//! Copying to and from the memory of an [`IoBuf`], which a guest may change at any time.
#![allow(
    unsafe_code,
    reason = "an IoBuf's scatter list names memory by address"
)]

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
pub(crate) fn zero(buf: &IoBuf, len: usize) {
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

/// Copies the next bytes of `buf` into `to`, as many as fit.
pub(crate) fn gather(buf: &IoBuf, to: &mut [u8]) {
    let mut done = 0;
    for piece in pieces(buf, to.len()) {
        done += piece.copy_to(&mut to[done..]);
    }
}

/// Copies `from` over the next bytes of `buf`.
pub(crate) fn scatter(buf: &IoBuf, from: &[u8]) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

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
}
