//! What the host tells about a file: size, alignment, block sizes.
#![allow(unsafe_code, reason = "statx and the block devices' ioctls")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

mod ioctl {
    // linux/fs.h. The kernel's macros name `size_t` as the argument of BLKGETSIZE64, though it
    // writes a `u64`.
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), libc::c_int);
    nix::ioctl_read_bad!(blkpbszget, nix::request_code_none!(0x12, 123), libc::c_uint);
    nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
}

/// Size of a block device in bytes.
pub(super) fn device_size(file: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the ioctl writes one u64 to the pointer.
    unsafe { ioctl::blkgetsize64(file.as_raw_fd(), &raw mut size) }?;
    Ok(size)
}

/// Logical block size of a block device in bytes.
pub(super) fn logical_block_size(file: &File) -> io::Result<u32> {
    let mut size = 0;
    // SAFETY: the ioctl writes one int to the pointer.
    unsafe { ioctl::blksszget(file.as_raw_fd(), &raw mut size) }?;
    u32::try_from(size).map_err(io::Error::other)
}

/// Physical block size of a block device in bytes.
pub(super) fn physical_block_size(file: &File) -> io::Result<u32> {
    let mut size = 0;
    // SAFETY: the ioctl writes one unsigned int to the pointer.
    unsafe { ioctl::blkpbszget(file.as_raw_fd(), &raw mut size) }?;
    Ok(size)
}

/// Discards a range of a block device; blocks until the device is done.
pub(super) fn device_discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the ioctl reads two u64 from the pointer.
    unsafe { ioctl::blkdiscard(file.as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// Whether the bytes of a regular file at `offset` are stored, and how many of the next `len` bytes
/// are alike. File systems that do not know say that all is stored.
pub(super) fn extent(file: &File, offset: u64, len: u64) -> io::Result<(bool, u64)> {
    use nix::unistd::{Whence, lseek};
    let find = |whence| {
        let from = i64::try_from(offset).map_err(|_| nix::errno::Errno::EINVAL)?;
        lseek(file, from, whence).map(|at| u64::try_from(at).unwrap_or(offset))
    };
    let data = match find(Whence::SeekData) {
        Ok(data) => data,
        // There is no data any more.
        Err(nix::errno::Errno::ENXIO) => return Ok((false, len)),
        Err(nix::errno::Errno::EINVAL) => return Ok((true, len)),
        Err(error) => return Err(error.into()),
    };
    if data > offset {
        return Ok((false, len.min(data - offset)));
    }
    match find(Whence::SeekHole) {
        Ok(hole) if hole > offset => Ok((true, len.min(hole - offset))),
        _ => Ok((true, len)),
    }
}

/// Alignment that O_DIRECT asks for, in bytes, powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of addresses in memory.
    pub memory: u32,
    /// Of offsets and lengths.
    pub request: u32,
}

/// What O_DIRECT asks for on `file`; `None` when the file system does not support it.
///
/// Linux tells since 6.1, for some file systems. Otherwise it is found by reading.
pub(super) fn direct_alignment(file: &File) -> Option<Alignment> {
    told_alignment(file).unwrap_or_else(|| tried_alignment(file))
}

/// `None`: the kernel does not tell. `Some(None)`: it tells that there is no O_DIRECT.
fn told_alignment(file: &File) -> Option<Option<Alignment>> {
    let mut told = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty path with AT_EMPTY_PATH asks about the descriptor; the kernel fills the
    // struct, of which every bit pattern is valid.
    let told = unsafe {
        let result = libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            told.as_mut_ptr(),
        );
        if result != 0 {
            return None;
        }
        told.assume_init()
    };
    if told.stx_mask & libc::STATX_DIOALIGN == 0 {
        return None;
    }
    let alignment = Alignment {
        memory: told.stx_dio_mem_align,
        request: told.stx_dio_offset_align,
    };
    let valid = alignment.memory.is_power_of_two() && alignment.request.is_power_of_two();
    Some(valid.then_some(alignment))
}

fn tried_alignment(file: &File) -> Option<Alignment> {
    let mut buffer = event::IoBuf::zeroed_aligned(4096, 4096)?;
    [512u32, 1024, 2048, 4096].into_iter().find_map(|size| {
        let bytes = buffer.bytes_mut()?.get_mut(..size as usize)?;
        // Offset `size`, since offset 0 suits every alignment. Beyond the end it reads nothing,
        // but the alignment is checked first.
        std::os::unix::fs::FileExt::read_at(file, bytes, u64::from(size)).ok()?;
        // Memory is held to the largest block size that anybody has: never wrong.
        Some(Alignment {
            memory: 4096,
            request: size,
        })
    })
}
