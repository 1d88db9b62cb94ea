//! Requests as blocking system calls, for `aio=threads`.
#![allow(
    unsafe_code,
    reason = "preadv and pwritev take memory by address, as an IoBuf names it"
)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event::{IoBuf, IoResult, WriteFlags, unblock};

use super::file::Image;

/// The kernel takes no longer list at once (UIO_MAXIOV).
const MAX_PIECES: usize = 1024;

pub(super) async fn read(image: &Arc<Image>, buf: IoBuf, offset: u64) -> IoResult {
    call(image, buf, offset, |fd, pieces, count, offset| {
        // SAFETY: see `call`.
        unsafe { libc::preadv(fd, pieces, count, offset) }
    })
    .await
}

pub(super) async fn write(
    image: &Arc<Image>,
    buf: IoBuf,
    offset: u64,
    flags: WriteFlags,
) -> IoResult {
    let flags = if flags.fua { libc::RWF_DSYNC } else { 0 };
    call(image, buf, offset, move |fd, pieces, count, offset| {
        // SAFETY: see `call`.
        unsafe { libc::pwritev2(fd, pieces, count, offset, flags) }
    })
    .await
}

/// Runs `operation` on a helper thread. The buffer goes there and comes back, so that its memory
/// is alive while the operation runs, and `pieces` and `count` describe its scatter list.
async fn call(
    image: &Arc<Image>,
    buf: IoBuf,
    offset: u64,
    operation: impl FnOnce(i32, *const libc::iovec, i32, i64) -> isize + Send + 'static,
) -> IoResult {
    let image = Arc::clone(image);
    let done = unblock(move || {
        let pieces = buf.iovecs();
        let count = pieces.len().min(MAX_PIECES) as i32;
        let result = i64::try_from(offset)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
            .and_then(|offset| {
                usize::try_from(operation(
                    image.file.as_raw_fd(),
                    pieces.as_ptr(),
                    count,
                    offset,
                ))
                .map_err(|_| io::Error::last_os_error())
            });
        (result, buf)
    })
    .await;
    done.unwrap_or_else(|gone| (Err(io::Error::other(gone)), IoBuf::from_vec(Vec::new())))
}
