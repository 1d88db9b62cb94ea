//! Files: reading, writing and the like at an offset, without waiting.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use crate::IoBuf;
use crate::executor::Operation;
use crate::ops::KeepFile;
use crate::reactor::Request;

/// How much was transferred, and the buffer back.
pub type IoResult = (io::Result<usize>, IoBuf);

/// How to write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Force unit access: complete when the data is on stable storage (RWF_DSYNC).
    pub fua: bool,
}

fn raw<F: AsFd + Send + Sync + 'static>(file: &Arc<F>) -> (RawFd, KeepFile) {
    let keep: KeepFile = Arc::<F>::clone(file);
    (file.as_fd().as_raw_fd(), keep)
}

/// Beyond the largest file; the kernel also takes -1 for "the current position".
fn is_offset(offset: u64) -> bool {
    i64::try_from(offset).is_ok()
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

fn size(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

async fn transfer(operation: Operation) -> IoResult {
    let (result, buf) = operation.await;
    // The table has kept the buffer from the start.
    let buf = buf.unwrap_or_else(|| IoBuf::from_vec(Vec::new()));
    (size(result), buf)
}

/// Reads into `buf` from byte `offset` on, as preadv(2): it may read less than asked for.
/// Dropping the future cancels the read; the buffer is freed when the kernel is done with it.
///
/// # Errors
/// As preadv(2).
///
/// # Panics
/// Outside of an I/O thread.
pub async fn read_vectored_at<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    buf: IoBuf,
    offset: u64,
) -> IoResult {
    if !is_offset(offset) {
        return (Err(invalid()), buf);
    }
    let (fd, keep) = raw(file);
    let operation = Operation::start(Some(buf), Some(keep), |memory| Request::Read {
        fd,
        memory,
        offset,
    });
    transfer(operation).await
}

/// Writes `buf` from byte `offset` on, as pwritev2(2): it may write less than asked for.
/// Dropping the future cancels the write if the kernel has not begun; the buffer is freed when the
/// kernel is done with it.
///
/// # Errors
/// As pwritev2(2).
///
/// # Panics
/// Outside of an I/O thread.
pub async fn write_vectored_at<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    buf: IoBuf,
    offset: u64,
    flags: WriteFlags,
) -> IoResult {
    if !is_offset(offset) {
        return (Err(invalid()), buf);
    }
    let (fd, keep) = raw(file);
    let flags = if flags.fua { libc::RWF_DSYNC } else { 0 };
    let operation = Operation::start(Some(buf), Some(keep), |memory| Request::Write {
        fd,
        memory,
        offset,
        flags,
    });
    transfer(operation).await
}

/// Reads until `buf` is full, an error, or the end of the file. Returns the bytes read; the buffer
/// comes back advanced over them.
///
/// # Errors
/// As [`read_vectored_at`]; what was read before is in the buffer.
///
/// # Panics
/// Outside of an I/O thread.
pub async fn read_full_at<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    mut buf: IoBuf,
    mut offset: u64,
) -> IoResult {
    let mut total = 0;
    while !buf.is_empty() {
        let (result, back) = read_vectored_at(file, buf, offset).await;
        buf = back;
        match result {
            Ok(0) => break,
            Ok(count) => {
                buf.advance(count);
                total += count;
                offset = offset.saturating_add(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return (Err(error), buf),
        }
    }
    (Ok(total), buf)
}

/// Writes all of `buf`, which comes back advanced over what was written.
///
/// # Errors
/// As [`write_vectored_at`]; `WriteZero` when the kernel writes nothing without saying why.
///
/// # Panics
/// Outside of an I/O thread.
pub async fn write_all_at<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    mut buf: IoBuf,
    mut offset: u64,
    flags: WriteFlags,
) -> IoResult {
    let mut total = 0;
    while !buf.is_empty() {
        let (result, back) = write_vectored_at(file, buf, offset, flags).await;
        buf = back;
        match result {
            Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
            Ok(count) => {
                buf.advance(count);
                total += count;
                offset = offset.saturating_add(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return (Err(error), buf),
        }
    }
    (Ok(total), buf)
}

/// fsync(2), or fdatasync(2) with `datasync`.
///
/// # Errors
/// As fsync(2).
///
/// # Panics
/// Outside of an I/O thread.
pub async fn fsync<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    datasync: bool,
) -> io::Result<()> {
    let (fd, keep) = raw(file);
    let operation = Operation::start(None, Some(keep), |_| Request::Fsync { fd, datasync });
    size(operation.await.0).map(drop)
}

/// fallocate(2): allocates, discards (`FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`) or zeroes
/// `len` bytes from `offset` on.
///
/// # Errors
/// As fallocate(2).
///
/// # Panics
/// Outside of an I/O thread.
pub async fn fallocate<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    mode: i32,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    if !is_offset(offset) || !is_offset(len) {
        return Err(invalid());
    }
    let (fd, keep) = raw(file);
    let operation = Operation::start(None, Some(keep), |_| Request::Fallocate {
        fd,
        mode,
        offset,
        len,
    });
    size(operation.await.0).map(drop)
}
