//! Guest memory as the memory of an asynchronous operation.
#![allow(
    unsafe_code,
    reason = "an operation's memory is known to the kernel by address, not by borrow"
)]

use std::sync::Arc;

use event::IoBuf;
use memory::KeepAlive;

use super::cursor::Slices;
use crate::queue::QueueError;

/// The pieces, which are of `keep`'s memory, as one buffer.
pub(super) fn buffer(pieces: Slices<'_>, keep: &KeepAlive) -> Result<IoBuf, QueueError> {
    let mut pieces = pieces.peekable();
    let mut iovecs = Vec::new();
    while let Some(piece) = pieces.next() {
        let piece = piece?;
        let base = piece.ptr_guard_mut().as_ptr();
        let len = piece.len();
        if iovecs.is_empty() && pieces.peek().is_none() {
            // SAFETY: the piece is mapped readable and writable while `keep` lives, and guest
            // memory is never borrowed: everybody accesses it volatilely.
            return Ok(unsafe { IoBuf::from_raw(base, len, Arc::clone(keep) as _) });
        }
        iovecs.push(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
    }
    // SAFETY: as above, for every piece.
    Ok(unsafe { IoBuf::from_raw_parts(iovecs, Arc::clone(keep) as _) })
}
