//! Memory operands: the linear address, the look-up in the soft TLB, and the host's operand.
//!
//! Two forms of the look-up do the same. The shorter one destroys the arithmetic flags; where they
//! are wanted, the other does without any instruction that writes them.

use std::mem::offset_of;

use iced_x86::{Instruction, Register};
use processor::TlbEntry;

use crate::builder::{Builder, Refused};
use crate::emit::{Alu, Asm, Cond, Mem, Reg, host};
use crate::frame::{frame, segment_base, tlb};
use crate::registers::{Home, home, number};

const PAGE: i32 = 4096;

/// Multiplier of an entry's index.
const ENTRY_SHIFT: u8 = size_of::<TlbEntry>().trailing_zeros() as u8;

/// For PDEP: the low bits of a page number become an offset into the TLB.
pub(crate) const TLB_MASK: u64 = ((processor::mmu::TLB_ENTRIES - 1) << ENTRY_SHIFT) as u64;

impl Builder<'_> {
    /// A guest register as part of an address: where it is, or loaded to a scratch register.
    fn address_part(&mut self, guest: u8, scratch: Reg) -> Reg {
        match home(guest) {
            Home::Host(reg) => reg,
            Home::Frame(index) => {
                self.asm.load(scratch, frame!(high, index));
                scratch
            }
        }
    }

    /// Computes the linear address of a memory operand. It is in the register that is returned:
    /// R14, or a register that belongs to the guest. Uses R15; flags stay.
    pub(crate) fn address(&mut self, i: &Instruction) -> Result<Reg, Refused> {
        let segment = match i.segment_prefix() {
            Register::FS => Some(processor::state::seg::FS),
            Register::GS => Some(processor::state::seg::GS),
            _ => None,
        };
        let offset = self.effective_address(i)?;
        let Some(segment) = segment else {
            return Ok(offset);
        };
        self.asm.load(host::R15, segment_base(segment));
        self.asm.lea(host::R14, Mem::sum(offset, host::R15, 0));
        Ok(host::R14)
    }

    /// Computes the effective address of a memory operand, without its segment's base.
    pub(crate) fn effective_address(&mut self, i: &Instruction) -> Result<Reg, Refused> {
        if i.is_ip_rel_memory_operand() {
            if i.memory_base() != Register::RIP {
                return Err(Refused);
            }
            self.linear_constant(host::R14, i.ip_rel_memory_address());
            return Ok(host::R14);
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        let displacement = i.memory_displacement64();
        if base == Register::None && index == Register::None {
            self.asm.constant(host::R14, displacement);
            return Ok(host::R14);
        }
        let narrow = match if base == Register::None { index } else { base }.size() {
            8 => false,
            4 => true,
            _ => return Err(Refused),
        };
        let displacement = if narrow {
            displacement as u32 as i32
        } else {
            i32::try_from(displacement as i64).map_err(|_| Refused)?
        };
        let part = |register: Register| match register {
            Register::None => Ok(None),
            _ => number(register).map(Some).ok_or(Refused),
        };
        let (base, index) = (part(base)?, part(index)?);
        let base = base.map(|guest| self.address_part(guest, host::R14));
        if let (Some(base), None, 0, false) = (base, index, displacement, narrow) {
            return Ok(base);
        }
        let index = index.map(|guest| self.address_part(guest, host::R15));
        let scale = i.memory_index_scale().trailing_zeros() as u8;
        let mem = Mem {
            base,
            index: index.map(|index| (index, scale)),
            displacement,
        };
        if narrow {
            self.asm.lea32(host::R14, mem);
        } else {
            self.asm.lea(host::R14, mem);
        }
        Ok(host::R14)
    }

    /// Looks a linear address up in the soft TLB; if it is not there for this access, leaves
    /// with nothing of the instruction done. Afterwards the sum of the address and R15 is the
    /// host's. Uses RCX; destroys the flags unless they are live.
    pub(crate) fn look_up(
        &mut self,
        address: Reg,
        size: usize,
        write: bool,
    ) -> Result<Mem, Refused> {
        if size == 0 || size > 64 {
            return Err(Refused);
        }
        let view = self.target.view;
        let tag = if write {
            offset_of!(TlbEntry, write)
        } else {
            offset_of!(TlbEntry, read)
        };
        let tag = |rsp_moved: i32| Mem::sum(host::RSP, host::RCX, tlb(view, tag) + rsp_moved);
        let addend = tlb(view, offset_of!(TlbEntry, addend));
        let live = self.flags_live();
        if live && self.target.bmi2 {
            self.asm.rorx(host::R15, address, 12);
            self.asm.pdep(host::R15, host::R15, frame!(tlb_mask));
            let mem = Mem {
                index: Some((host::R15, 0)),
                ..tag(0)
            };
            // address - tag + size - 1, in which only the offset in a page may be left.
            self.asm.load(host::RCX, mem);
            self.asm.not(host::RCX);
            self.asm
                .lea(host::RCX, Mem::sum(host::RCX, address, size as i32));
            self.asm.pext(host::RCX, host::RCX, frame!(page_mask));
            let hit = self.asm.jrcxz();
            let miss = self.asm.jmp();
            let _reaches = self.asm.land(hit);
            self.miss(miss, address, (size, write), false);
            self.asm
                .load(host::R15, Mem::sum(host::RSP, host::R15, addend));
            return Ok(Mem::sum(address, host::R15, 0));
        }
        let moved = if live { 8 } else { 0 };
        if live {
            self.asm.pushfq();
        }
        self.asm.mov32(host::RCX, address);
        self.asm.shr32(host::RCX, 12 - ENTRY_SHIFT);
        self.asm
            .alu_constant(Alu::And, false, host::RCX, TLB_MASK as i32);
        self.asm.mov(host::R15, address);
        self.asm.alu_mem(Alu::Sub, true, host::R15, tag(moved));
        self.asm
            .alu_constant(Alu::Cmp, true, host::R15, PAGE - size as i32);
        let miss = self.asm.jcc(Cond::A);
        self.miss(miss, address, (size, write), live);
        self.asm
            .load(host::R15, Mem::sum(host::RSP, host::RCX, addend + moved));
        if live {
            self.asm.popfq();
        }
        Ok(Mem::sum(address, host::R15, 0))
    }

    /// As [`Builder::look_up`], for an address that is likely in the same page as the last one:
    /// one relative to the stack pointer.
    pub(crate) fn look_up_stack(
        &mut self,
        address: Reg,
        size: usize,
        write: bool,
    ) -> Result<Mem, Refused> {
        if self.flags_live() || size == 0 || size > 64 {
            return self.look_up(address, size, write);
        }
        let back = self.asm.here();
        self.asm.mov(host::R15, address);
        self.asm
            .alu_mem(Alu::Sub, true, host::R15, frame!(stack_tag));
        self.asm
            .alu_constant(Alu::Cmp, true, host::R15, PAGE - size as i32);
        let from = self.asm.jcc(Cond::A);
        self.stack_miss((from, back), address, (size, write));
        self.asm.load(host::R15, frame!(stack_addend));
        Ok(Mem::sum(address, host::R15, 0))
    }
}

/// Code of the thunk that finds the stack's page. In: the address in R14, the exit in R15, and in
/// RCX where to go back. Ends where the exit, in RCX, is to be taken. Destroys the flags.
pub(crate) fn find_stack(a: &mut Asm, view: usize) {
    a.store(frame!(parked), host::RCX);
    a.store(frame!(parked, 1u8), host::R15);
    a.mov32(host::RCX, host::R14);
    a.shr32(host::RCX, 12 - ENTRY_SHIFT);
    a.alu_constant(Alu::And, false, host::RCX, TLB_MASK as i32);
    a.mov(host::R15, host::R14);
    a.alu_constant(Alu::And, true, host::R15, -PAGE);
    let entry = |offset: usize| Mem::sum(host::RSP, host::RCX, tlb(view, offset));
    let tag = entry(offset_of!(TlbEntry, write));
    a.alu_mem(Alu::Cmp, true, host::R15, tag);
    let absent = a.jcc(Cond::NE);
    // The page is right: the access goes on in the next.
    a.alu_mem(Alu::Cmp, true, host::R15, frame!(stack_tag));
    let across = a.jcc(Cond::E);
    a.store(frame!(stack_tag), host::R15);
    a.load(host::R15, entry(offset_of!(TlbEntry, addend)));
    a.store(frame!(stack_addend), host::R15);
    a.jmp_mem(frame!(parked));
    a.link_here(absent);
    a.link_here(across);
    a.load(host::RCX, frame!(parked, 1u8));
}
