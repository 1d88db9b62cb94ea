//! Image locks that QEMU understands.
//!
//! Since 2.10 QEMU says by locks on single bytes of the image what it does to it and what it
//! tolerates from others. We use the same bytes, so that neither program harms the other:
//!
//! ```text
//!   byte 100 + p   held (shared) by whoever uses permission p
//!   byte 200 + p   held (shared) by whoever does not tolerate that others use permission p
//! ```
//!
//! Both kinds are shared locks, so taking them never fails because of another user; afterwards
//! each side asks whether somebody holds the opposite byte. They are open-file-description
//! locks: they belong to the descriptor, and go when its last duplicate is closed, also after a
//! kill -9.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

const PERMISSION_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

/// A set of things that one can do to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions(u8);

impl Permissions {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Reads that rely on nobody's half-done change.
    pub const CONSISTENT_READ: Self = Self(1 << 0);
    /// Writes that change what the guest sees.
    pub const WRITE: Self = Self(1 << 1);
    /// Writes that leave what the guest sees as it is.
    pub const WRITE_UNCHANGED: Self = Self(1 << 2);
    /// Changes of the size.
    pub const RESIZE: Self = Self(1 << 3);

    const ALL: Self = Self(0b1111);

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn not(self) -> Self {
        Self(!self.0 & Self::ALL.0)
    }

    fn bits(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |bit| self.0 & (1 << bit) != 0)
    }
}

/// Why a lock was not had.
#[derive(Debug)]
pub enum LockError {
    /// Another process excludes us; what it does.
    InUse(&'static str),
    /// The file system cannot lock.
    Host(io::Error),
}

/// Locks the image behind `file` for the permissions in `used`, tolerating that others use those
/// in `shared`. The lock lasts until the last duplicate of `file` is closed.
///
/// # Errors
/// Another process excludes this, or the file system cannot lock. Nothing is locked then.
pub fn lock(file: &File, used: Permissions, shared: Permissions) -> Result<(), LockError> {
    let locked = try_lock(file, used, shared);
    if locked.is_err() {
        // The descriptor may outlive this failure, and its locks would shut others out.
        unlock(file);
    }
    locked
}

/// Gives up what [`lock`] locked, also when duplicates of the descriptor live on: in a process
/// that was forked and has not yet called exec, for instance.
pub fn unlock(file: &File) {
    for base in [PERMISSION_BASE, UNSHARED_BASE] {
        for bit in Permissions::ALL.bits() {
            let unlocked = byte(libc::F_UNLCK, base + i64::from(bit));
            // What fails here was never locked.
            _ = fcntl(file, FcntlArg::F_OFD_SETLK(&unlocked));
        }
    }
}

fn try_lock(file: &File, used: Permissions, shared: Permissions) -> Result<(), LockError> {
    let unshared = shared.not();
    for (set, base) in [(used, PERMISSION_BASE), (unshared, UNSHARED_BASE)] {
        for bit in set.bits() {
            let wanted = byte(libc::F_RDLCK, base + i64::from(bit));
            match fcntl(file, FcntlArg::F_OFD_SETLK(&wanted)) {
                Ok(_) => {}
                // Somebody holds the byte exclusively, which neither QEMU nor we ever do.
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    return Err(LockError::InUse("holds it exclusively"));
                }
                Err(errno) => return Err(LockError::Host(errno.into())),
            }
        }
    }
    for bit in used.bits() {
        if held_by_another(file, UNSHARED_BASE + i64::from(bit))? {
            return Err(LockError::InUse(match Permissions(1 << bit) {
                Permissions::WRITE => "does not tolerate writers",
                Permissions::RESIZE => "does not tolerate changes of its size",
                _ => "does not tolerate readers",
            }));
        }
    }
    for bit in unshared.bits() {
        if held_by_another(file, PERMISSION_BASE + i64::from(bit))? {
            return Err(LockError::InUse(match Permissions(1 << bit) {
                Permissions::RESIZE => "may change its size",
                Permissions::CONSISTENT_READ => "reads it",
                _ => "has it open for writing",
            }));
        }
    }
    Ok(())
}

/// Whether an exclusive lock of the byte would fail because of another descriptor.
fn held_by_another(file: &File, offset: i64) -> Result<bool, LockError> {
    let mut probe = byte(libc::F_WRLCK, offset);
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)) {
        Ok(_) => Ok(i32::from(probe.l_type) != libc::F_UNLCK),
        Err(errno) => Err(LockError::Host(errno.into())),
    }
}

fn byte(kind: i32, offset: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: offset,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const WRITER: Permissions = Permissions::CONSISTENT_READ.and(Permissions::WRITE);
    const TOLERANT: Permissions = Permissions::CONSISTENT_READ.and(Permissions::WRITE_UNCHANGED);

    fn opened_twice() -> (tempfile::NamedTempFile, File, File) {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().write_all_at(&[1; 512], 0).unwrap();
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).open(image.path()).unwrap()
        };
        let (one, two) = (open(), open());
        (image, one, two)
    }

    #[test]
    fn two_writers_exclude_each_other_until_one_closes() {
        let (_image, one, two) = opened_twice();
        lock(&one, WRITER, TOLERANT).unwrap();
        assert!(matches!(
            lock(&two, WRITER, TOLERANT),
            Err(LockError::InUse("does not tolerate writers"))
        ));
        let duplicate = one.try_clone().unwrap();
        drop(one);
        assert!(lock(&two, WRITER, TOLERANT).is_err());
        unlock(&duplicate);
        lock(&two, WRITER, TOLERANT).unwrap();
    }

    #[test]
    fn readers_share_and_keep_a_writer_out() {
        let (image, one, two) = opened_twice();
        lock(&one, Permissions::CONSISTENT_READ, TOLERANT).unwrap();
        lock(&two, Permissions::CONSISTENT_READ, TOLERANT).unwrap();
        let three = File::options()
            .read(true)
            .write(true)
            .open(image.path())
            .unwrap();
        assert!(lock(&three, WRITER, TOLERANT).is_err());
    }

    #[test]
    fn a_reader_is_refused_beside_a_writer() {
        let (_image, one, two) = opened_twice();
        lock(&one, WRITER, TOLERANT).unwrap();
        assert!(matches!(
            lock(&two, Permissions::CONSISTENT_READ, TOLERANT),
            Err(LockError::InUse("has it open for writing"))
        ));
    }

    #[test]
    fn a_refused_lock_leaves_nothing_locked() {
        let (image, one, two) = opened_twice();
        lock(&one, WRITER, TOLERANT).unwrap();
        assert!(lock(&two, WRITER, TOLERANT).is_err());
        unlock(&one);
        // `two` is still open, but holds nothing any more.
        let three = File::options()
            .read(true)
            .write(true)
            .open(image.path())
            .unwrap();
        lock(&three, WRITER, TOLERANT).unwrap();
    }
}
