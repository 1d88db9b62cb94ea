//! Buffers of requests that are over, for the next ones: new memory costs a page fault for every
//! page of it.
//!
//! Each I/O thread has a pool, as long as there are clients on it. A buffer that is taken holds
//! what it held before, and is overwritten as a whole or given up.

use std::cell::RefCell;
use std::io;

use block::IoBuf;
use nix::errno::Errno;

/// Addresses of buffers are multiples of this, which suits every host's O_DIRECT, and so are their
/// sizes.
const ALIGN: usize = 4096;
/// Bytes that a pool keeps.
const MOST: usize = 16 << 20;

#[derive(Default)]
struct Pool {
    clients: usize,
    free: Vec<IoBuf>,
    bytes: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// A client of this thread, as long as it lives.
pub(crate) struct Member(());

impl Member {
    pub(crate) fn new() -> Self {
        POOL.with_borrow_mut(|pool| pool.clients += 1);
        Self(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        POOL.with_borrow_mut(|pool| {
            pool.clients -= 1;
            if pool.clients == 0 {
                *pool = Pool::default();
            }
        });
    }
}

fn capacity(buf: &IoBuf) -> usize {
    buf.bytes().map_or(0, <[u8]>::len)
}

/// A buffer of `len` bytes, and perhaps more memory behind.
pub(crate) fn take(len: u64) -> io::Result<IoBuf> {
    let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
    let wanted = len
        .checked_next_multiple_of(ALIGN)
        .ok_or(Errno::ENOMEM)?
        .max(ALIGN);
    let used = POOL.with_borrow_mut(|pool| {
        // Not one that is much too large: it may be wanted.
        let suits = |buf: &IoBuf| (wanted..=wanted.saturating_mul(2)).contains(&capacity(buf));
        // The last one is the one that caches know.
        let at = pool.free.iter().rposition(suits)?;
        let buf = pool.free.swap_remove(at);
        pool.bytes -= capacity(&buf);
        Some(buf)
    });
    let mut buf = match used {
        Some(buf) => buf,
        None => IoBuf::zeroed_aligned(wanted, ALIGN).ok_or(Errno::ENOMEM)?,
    };
    match buf.rewind(len) {
        true => Ok(buf),
        false => Err(Errno::ENOMEM.into()),
    }
}

/// Keeps a buffer for another request.
pub(crate) fn give(buf: IoBuf) {
    let size = capacity(&buf);
    POOL.with_borrow_mut(|pool| {
        if pool.clients != 0 && size != 0 && pool.bytes.saturating_add(size) <= MOST {
            pool.bytes += size;
            pool.free.push(buf);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> (usize, usize) {
        POOL.with_borrow(|pool| (pool.free.len(), pool.bytes))
    }

    #[test]
    fn buffers_are_used_again_within_bounds() {
        // Without a client nothing is kept.
        give(take(100).unwrap());
        assert_eq!(kept(), (0, 0));
        let member = Member::new();
        let mut buf = take(9000).unwrap();
        assert_eq!((buf.len(), capacity(&buf)), (9000, 12288));
        let place = buf.iovecs()[0].iov_base;
        buf.advance(8000);
        give(buf);
        assert_eq!(kept(), (1, 12288));
        // Too large for this, and just right for that.
        assert_ne!(take(512).unwrap().iovecs()[0].iov_base, place);
        let again = take(8193).unwrap();
        assert_eq!((again.len(), again.iovecs()[0].iov_base), (8193, place));
        give(again);
        for _ in 0..40 {
            give(IoBuf::zeroed_aligned(1 << 20, ALIGN).unwrap());
        }
        assert!(kept().1 <= MOST && kept().0 > 10);
        // Nobody's memory.
        give(IoBuf::from_vec(Vec::new()));
        drop(member);
        assert_eq!(kept(), (0, 0));
        assert!(take(u64::MAX).is_err());
    }
}
