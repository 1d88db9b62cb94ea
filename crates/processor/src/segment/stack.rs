//! Frames on stacks, for far transfers and events: the current stack, or the one that a TSS names.

use crate::mmu::As;
use crate::platform::Platform;
use crate::segment::{canonical, index};
use crate::state::{Cpu, Mode, Seg, reg, seg};
use crate::stop::{Exception, Stop};

/// A stack that is pushed to or popped from before anything of the processor changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stack {
    /// Stack segment; unused in 64-bit mode.
    pub(crate) ss: Seg,
    /// Stack pointer.
    pub(crate) sp: u64,
    /// Which bits of the pointer count.
    mask: u64,
    /// 64-bit: no segment, but a canonical address.
    long: bool,
    /// Whose access it is.
    as_: As,
    /// What a bad address raises.
    fault: Exception,
}

/// Which bits of the stack pointer count with this stack segment outside of 64-bit mode.
pub(crate) fn mask(ss: &Seg) -> u64 {
    if ss.attributes & Seg::DB != 0 {
        0xffff_ffff
    } else {
        0xffff
    }
}

impl Stack {
    /// The stack in use.
    pub(crate) fn current(cpu: &Cpu) -> Stack {
        let ss = cpu.segs[seg::SS];
        let long = cpu.code64();
        Stack {
            ss,
            sp: cpu.gpr[reg::RSP],
            mask: if long { !0 } else { mask(&ss) },
            long,
            as_: As::Current,
            fault: Exception::with_code(Exception::SS, 0),
        }
    }

    /// The stack in use, for an event.
    pub(crate) fn for_event(cpu: &Cpu, ext: u32) -> Stack {
        Stack {
            as_: if cpu.cpl() == 3 {
                As::Current
            } else {
                As::System
            },
            fault: Exception::with_code(Exception::SS, ext),
            ..Self::current(cpu)
        }
    }

    /// An inner stack outside of 64-bit mode.
    pub(crate) fn inner(ss: Seg, sp: u64, ext: u32) -> Stack {
        Stack {
            ss,
            sp,
            mask: mask(&ss),
            long: false,
            as_: As::System,
            fault: Exception::with_code(Exception::SS, index(ss.selector) | ext),
        }
    }

    /// A stack of 64-bit mode.
    pub(crate) fn long(sp: u64, as_: As, ext: u32) -> Stack {
        Stack {
            ss: Seg::default(),
            sp,
            mask: !0,
            long: true,
            as_,
            fault: Exception::with_code(Exception::SS, ext),
        }
    }

    /// Linear address of `size` bytes at this offset.
    fn linear(&self, offset: u64, size: u64) -> Result<u64, Exception> {
        if self.long {
            let last = offset.wrapping_add(size - 1);
            return if canonical(offset) && canonical(last) {
                Ok(offset)
            } else {
                Err(self.fault)
            };
        }
        let last = offset + (size - 1);
        let expand_down = self.ss.attributes & (Seg::S | 0xc) == Seg::S | 4;
        let limit = u64::from(self.ss.limit);
        let within = if expand_down {
            offset > limit && last <= mask(&self.ss)
        } else {
            last <= limit
        };
        if within {
            Ok(self.ss.base.wrapping_add(offset) & 0xffff_ffff)
        } else {
            Err(self.fault)
        }
    }

    /// Pushes these values, the first first, each in `size` bytes (2, 4 or 8).
    pub(crate) fn push(
        &mut self,
        cpu: &mut Cpu,
        p: &mut dyn Platform,
        values: &[u64],
        size: usize,
    ) -> Result<(), Stop> {
        // The largest frame: an event in virtual-8086 mode, ten values of four bytes; in long mode
        // six of eight.
        let mut frame = [0u8; 64];
        let total = values.len() * size;
        let bottom = self.sp.wrapping_sub(total as u64) & self.mask;
        let top = self.sp & self.mask;
        if self.long && size == 8 && (bottom & 0xfff) + total as u64 <= 0x1000 {
            // One page: if the first write succeeds, all do.
            let linear = self.linear(bottom, total as u64)?;
            for (n, value) in (0..).zip(values.iter().rev()) {
                cpu.write::<u64>(p, linear + 8 * n, *value, self.as_)?;
            }
            self.sp = bottom;
            return Ok(());
        }
        if total <= frame.len() && (bottom < top || top == 0 || self.long) {
            for (slot, value) in frame.chunks_exact_mut(size).zip(values.iter().rev()) {
                slot.copy_from_slice(&value.to_le_bytes()[..size]);
            }
            let linear = self.linear(bottom, total as u64)?;
            cpu.write_bytes(p, linear, &frame[..total], self.as_)?;
            self.sp = bottom;
            return Ok(());
        }
        for value in values {
            let next = self.sp.wrapping_sub(size as u64) & self.mask;
            let linear = self.linear(next, size as u64)?;
            cpu.write_bytes(p, linear, &value.to_le_bytes()[..size], self.as_)?;
            self.sp = next;
        }
        Ok(())
    }

    /// Pops values of `size` bytes, the first first.
    pub(crate) fn pop<const N: usize>(
        &mut self,
        cpu: &mut Cpu,
        p: &mut dyn Platform,
        size: usize,
    ) -> Result<[u64; N], Stop> {
        let mut values = [0u64; N];
        let total = N * size;
        let start = self.sp & self.mask;
        if self.long && size == 8 {
            self.linear(start, total as u64)?;
            for (n, value) in (0..).zip(&mut values) {
                *value = cpu.read::<u64>(p, start.wrapping_add(8 * n), self.as_)?;
            }
            self.sp = start.wrapping_add(total as u64);
            return Ok(values);
        }
        let mut frame = [0u8; 64];
        if total <= frame.len() && (self.long || start + total as u64 - 1 <= self.mask) {
            let linear = self.linear(start, total as u64)?;
            cpu.read_bytes(p, linear, &mut frame[..total], self.as_)?;
            for (slot, value) in frame.chunks_exact(size).zip(&mut values) {
                let mut bytes = [0; 8];
                bytes[..size].copy_from_slice(slot);
                *value = u64::from_le_bytes(bytes);
            }
            self.sp = start.wrapping_add(total as u64) & self.mask;
            return Ok(values);
        }
        for value in &mut values {
            let linear = self.linear(self.sp & self.mask, size as u64)?;
            let mut bytes = [0; 8];
            cpu.read_bytes(p, linear, &mut bytes[..size], self.as_)?;
            *value = u64::from_le_bytes(bytes);
            self.sp = self.sp.wrapping_add(size as u64) & self.mask;
        }
        Ok(values)
    }

    /// Moves the pointer up over `bytes`, as RET n does.
    pub(crate) fn release(&mut self, bytes: u64) {
        self.sp = self.sp.wrapping_add(bytes) & self.mask;
    }

    /// Makes this stack's pointer the processor's.
    pub(crate) fn commit(&self, cpu: &mut Cpu) {
        set_pointer(cpu, self.sp, self.mask);
    }
}

/// Writes the stack pointer through a mask of 16, 32 or 64 bits.
pub(crate) fn set_pointer(cpu: &mut Cpu, value: u64, mask: u64) {
    let sp = &mut cpu.gpr[reg::RSP];
    *sp = if mask == 0xffff {
        *sp & !mask | value & mask
    } else {
        value & mask
    };
}

impl Cpu {
    /// Size of the current stack's pointer as a mask.
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.code64() {
            !0
        } else if self.mode.has(Mode::STACK32) {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// The stack for this privilege level from a 16- or 32-bit TSS: SS and SP.
    pub(crate) fn tss_stack(
        &mut self,
        p: &mut dyn Platform,
        cpl: u8,
        ext: u32,
    ) -> Result<(u16, u64), Stop> {
        let wide = self.tr.kind() & 8 != 0;
        let (offset, size) = if wide {
            (u32::from(cpl) * 8 + 4, 6)
        } else {
            (u32::from(cpl) * 4 + 2, 4)
        };
        if offset + size - 1 > self.tr.limit {
            return Err(Exception::with_code(Exception::TS, index(self.tr.selector) | ext).into());
        }
        let at = self.system_address(self.tr.base.wrapping_add(offset.into()));
        if wide {
            let sp = self.read::<u32>(p, at, As::System)?;
            let ss = self.read::<u16>(p, at.wrapping_add(4), As::System)?;
            Ok((ss, sp.into()))
        } else {
            let sp = self.read::<u16>(p, at, As::System)?;
            let ss = self.read::<u16>(p, at.wrapping_add(2), As::System)?;
            Ok((ss, sp.into()))
        }
    }

    /// A stack pointer from a 64-bit TSS: RSP0 to RSP2 at 0 to 2, IST1 to IST7 at 4 to 10.
    pub(crate) fn tss_pointer(
        &mut self,
        p: &mut dyn Platform,
        slot: u32,
        ext: u32,
    ) -> Result<u64, Stop> {
        let offset = 4 + 8 * slot;
        if offset + 7 > self.tr.limit {
            return Err(Exception::with_code(Exception::TS, index(self.tr.selector) | ext).into());
        }
        let at = self.tr.base.wrapping_add(offset.into());
        let sp = self.read::<u64>(p, at, As::System)?;
        if canonical(sp) {
            Ok(sp)
        } else {
            Err(Exception::with_code(Exception::SS, ext).into())
        }
    }
}
