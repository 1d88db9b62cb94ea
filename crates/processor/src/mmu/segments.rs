//! Segmentation: from an offset in a segment to a linear address.

use crate::decode::is_canonical;
use crate::state::{Cpu, Mode, Seg, seg};
use crate::stop::{Access, Exception};

/// Bits of a code or data segment's type (SDM vol. 3A 3.4.5.1).
mod kind {
    /// Code, not data.
    pub const CODE: u8 = 8;
    /// Data: expands down.
    pub const DOWN: u8 = 4;
    /// Data: writable. Code: readable.
    pub const WRITABLE: u8 = 2;
}

impl Cpu {
    /// Linear address of `size` bytes at an offset in a segment, which the caller has cut to the
    /// address size.
    ///
    /// # Errors
    /// #GP(0), or #SS(0) for the stack segment: not canonical, beyond the limit, or a segment
    /// that does not permit the access.
    #[inline]
    pub fn linear(
        &self,
        segment: usize,
        offset: u64,
        size: u64,
        access: Access,
    ) -> Result<u64, Exception> {
        if !self.mode.has(Mode::CODE64) {
            return self.linear_limited(segment, offset, size, access);
        }
        let linear = if segment >= seg::FS {
            offset.wrapping_add(self.segs[segment].base)
        } else {
            offset
        };
        let last = linear.wrapping_add(size.saturating_sub(1));
        if is_canonical(linear) && is_canonical(last) {
            Ok(linear)
        } else {
            Err(segment_fault(segment))
        }
    }

    fn linear_limited(
        &self,
        segment: usize,
        offset: u64,
        size: u64,
        access: Access,
    ) -> Result<u64, Exception> {
        let s = &self.segs[segment];
        let checked = self.mode.has(Mode::PROTECTED) && !self.mode.has(Mode::VM86);
        let kind = s.kind();
        let permitted = !checked
            || s.attributes & Seg::UNUSABLE == 0
                && match access {
                    Access::Read => kind & (kind::CODE | kind::WRITABLE) != kind::CODE,
                    Access::Write => kind & (kind::CODE | kind::WRITABLE) == kind::WRITABLE,
                    Access::Execute => kind & kind::CODE != 0,
                };
        let last = offset.saturating_add(size.saturating_sub(1));
        let limit = u64::from(s.limit);
        let inside = if kind & (kind::CODE | kind::DOWN) == kind::DOWN {
            let top = if s.attributes & Seg::DB != 0 {
                0xffff_ffff
            } else {
                0xffff
            };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        if permitted && inside {
            Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
        } else {
            Err(segment_fault(segment))
        }
    }
}

fn segment_fault(segment: usize) -> Exception {
    let vector = if segment == seg::SS {
        Exception::SS
    } else {
        Exception::GP
    };
    Exception::with_code(vector, 0)
}
