//! Guest instructions that become the same host instruction, with registers renamed and the
//! memory operand replaced.

use iced_x86::{Code, Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind, Register};

use crate::builder::{Builder, Refused};
use crate::emit::{Mem, Reg, host};
use crate::frame::frame;
use crate::registers::{self, Gpr, Home, home, sized};

/// What an instruction wants of RCX besides its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    No,
    /// Reads it.
    Read,
    /// Writes the whole of it.
    Write,
}

/// Scratch registers that hold guest registers without a host register, and high bytes.
#[derive(Debug, Default)]
struct Loans {
    /// Guest register, scratch register, whether it is written.
    taken: [Option<(u8, Reg, bool)>; 3],
    free: Vec<Reg>,
}

impl Loans {
    fn take(&mut self, guest: u8) -> Result<(Reg, bool), Refused> {
        if let Some((_, reg, _)) = self.taken.iter().flatten().find(|loan| loan.0 == guest) {
            return Ok((*reg, false));
        }
        let reg = self.free.pop().ok_or(Refused)?;
        let slot = self.taken.iter_mut().find(|slot| slot.is_none());
        *slot.ok_or(Refused)? = Some((guest, reg, false));
        Ok((reg, true))
    }

    fn write(&mut self, guest: u8) {
        for loan in self.taken.iter_mut().flatten() {
            loan.2 |= loan.0 == guest;
        }
    }
}

/// Whether an access may read, and whether it may write.
pub(crate) fn reads_writes(access: OpAccess) -> (bool, bool) {
    match access {
        OpAccess::None | OpAccess::NoMemAccess => (false, false),
        OpAccess::Read | OpAccess::CondRead => (true, false),
        OpAccess::Write => (false, true),
        OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
    }
}

/// The form with a ModRM byte of a MOV with an address of its own.
fn plain(mut i: Instruction) -> Instruction {
    let code = match i.code() {
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        _ => return i,
    };
    i.set_code(code);
    i
}

/// Shifts and rotations, whose count is CL or a constant.
pub(crate) fn is_shift(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Shl
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Sal
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shld
            | Mnemonic::Shrd
    )
}

/// Its use of RCX, if that is one that this module can serve.
fn count(i: &Instruction) -> Result<Count, Refused> {
    match i.mnemonic() {
        mnemonic if is_shift(mnemonic) => {
            let last = i.op_count().saturating_sub(1);
            let by_cl = i.op_kind(last) == OpKind::Register && i.op_register(last) == Register::CL;
            Ok(if by_cl && last != 0 {
                Count::Read
            } else {
                Count::No
            })
        }
        Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => Ok(Count::Read),
        Mnemonic::Pcmpestri | Mnemonic::Pcmpistri | Mnemonic::Vpcmpestri | Mnemonic::Vpcmpistri => {
            Ok(Count::Write)
        }
        _ => Ok(Count::No),
    }
}

/// Whether it uses none of the registers that are elsewhere on the host, but for its operands
/// and for RCX as `count` says.
fn only_operands(i: &Instruction, info: &InstructionInfo, count: Count) -> bool {
    let moved = |register: Register| {
        registers::number(register)
            .filter(|number| matches!(number, 12..|&registers::RCX| &registers::RSP))
    };
    info.used_registers().iter().all(|used| {
        let Some(number) = moved(used.register()) else {
            return true;
        };
        let named = |register| registers::number(register) == Some(number);
        (number == registers::RCX && count != Count::No)
            || named(i.memory_base())
            || named(i.memory_index())
            || (0..i.op_count())
                .any(|op| i.op_kind(op) == OpKind::Register && named(i.op_register(op)))
    })
}

impl Builder<'_> {
    /// Writes the instruction. On refusal the code is as before, and the interpreter has to do
    /// it.
    pub(crate) fn copy(&mut self, i: &Instruction, info: &InstructionInfo) -> Result<(), Refused> {
        let i = plain(*i);
        let count = count(&i)?;
        if !only_operands(&i, info, count) {
            return Err(Refused);
        }
        let mut host_instruction = i;
        host_instruction.set_segment_prefix(Register::None);
        host_instruction.set_has_xacquire_prefix(false);
        host_instruction.set_has_xrelease_prefix(false);
        host_instruction.set_has_rep_prefix(false);
        host_instruction.set_has_repne_prefix(false);

        let mut loans = Loans::default();
        let mut memory = None;
        for op in 0..i.op_count() {
            if i.op_kind(op) == OpKind::Memory {
                let (read, write) = reads_writes(info.op_access(op));
                if !read && !write {
                    return Err(Refused);
                }
                memory = Some((i.memory_size().size(), write));
            }
        }
        let mut operand = None;
        if let Some((size, write)) = memory {
            let address = self.address(&i)?;
            let stack = i.memory_base() == Register::RSP && i.memory_index() == Register::None;
            operand = Some(if stack && i.segment_prefix() == Register::None {
                self.look_up_stack(address, size, write)?
            } else {
                self.look_up(address, size, write)?
            });
            loans.free.extend([host::RCX]);
        } else {
            loans.free.extend([host::R15, host::R14, host::RCX]);
        }
        if count == Count::Read {
            loans.free.retain(|reg| *reg != host::RCX);
        }
        // With more registers than scratch ones left, the address gives one back.
        let high_registers = (0..i.op_count())
            .filter(|op| i.op_kind(*op) == OpKind::Register)
            .filter(|op| {
                let number = registers::number(i.op_register(*op));
                number.is_some_and(|number| matches!(home(number), Home::Frame(_)))
            })
            .count();
        if let Some(mem) = operand
            && high_registers > loans.free.len()
        {
            self.asm.lea(host::R14, mem);
            operand = Some(Mem::at(host::R14, 0));
            loans.free.push(host::R15);
        }
        let high_byte = self.rename(&i, info, &mut host_instruction, &mut loans, operand, count)?;
        if count == Count::Read {
            self.asm.mov(host::RCX, host::R13);
        }
        if memory.is_some_and(|(size, _)| size >= 16) {
            self.may_fault();
        }
        self.encode(&host_instruction)?;
        if count == Count::Write {
            self.asm.mov(host::R13, host::RCX);
        }
        if let Some((guest, true)) = high_byte {
            self.put_high_byte(guest);
        }
        for (guest, reg, written) in loans.taken.iter().flatten() {
            if let (true, Home::Frame(index)) = (*written, home(*guest)) {
                self.asm.store(frame!(high, index), *reg);
            }
        }
        Ok(())
    }

    /// Renames all operands, and loads those that have no host register. Returns the register
    /// whose high byte is in CL instead, and whether it is written.
    fn rename(
        &mut self,
        i: &Instruction,
        info: &InstructionInfo,
        to: &mut Instruction,
        loans: &mut Loans,
        operand: Option<Mem>,
        count: Count,
    ) -> Result<Option<(u8, bool)>, Refused> {
        let high_byte = self.high_byte(i, info, loans, operand.is_some(), count)?;
        for op in 0..i.op_count() {
            match i.op_kind(op) {
                OpKind::Register => {}
                OpKind::Memory => {
                    let Some(mem) = operand else {
                        return Err(Refused);
                    };
                    set_memory(to, mem);
                    continue;
                }
                OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64 => continue,
                _ => return Err(Refused),
            }
            let register = i.op_register(op);
            match registers::gpr(register) {
                None if register.is_xmm() || register.is_ymm() => {}
                None => return Err(Refused),
                Some(Gpr::High { number }) => {
                    if high_byte.is_some_and(|(guest, _)| guest == number) {
                        to.set_op_register(op, Register::CL);
                    }
                }
                // The count of a shift stays CL, which has been loaded.
                Some(_)
                    if count == Count::Read
                        && op != 0
                        && register == Register::CL
                        && is_shift(i.mnemonic())
                        && op + 1 == i.op_count() => {}
                Some(Gpr::Low { number, size }) => {
                    let reg = match home(number) {
                        Home::Host(reg) => reg,
                        Home::Frame(index) => {
                            let (reg, new) = loans.take(number)?;
                            if new {
                                self.asm.load(reg, frame!(high, index));
                            }
                            if reads_writes(info.op_access(op)).1 {
                                loans.write(number);
                            }
                            reg
                        }
                    };
                    to.set_op_register(op, sized(reg, size));
                }
            }
        }
        Ok(high_byte)
    }

    /// AH to BH go with no REX prefix, and CH is elsewhere: where that is in the way, CL takes
    /// their place.
    fn high_byte(
        &mut self,
        i: &Instruction,
        info: &InstructionInfo,
        loans: &mut Loans,
        memory: bool,
        count: Count,
    ) -> Result<Option<(u8, bool)>, Refused> {
        let mut found: Option<(u8, bool)> = None;
        let mut needs_rex = memory;
        for op in 0..i.op_count() {
            if i.op_kind(op) != OpKind::Register {
                continue;
            }
            match registers::gpr(i.op_register(op)) {
                Some(Gpr::High { number }) => {
                    let written = reads_writes(info.op_access(op)).1;
                    found = match found {
                        Some((old, old_written)) if old == number => {
                            Some((old, old_written | written))
                        }
                        // Of two, CH is the one that cannot stay.
                        Some((old, old_written)) if old == registers::RCX => {
                            Some((old, old_written))
                        }
                        _ => Some((number, written)),
                    };
                }
                Some(Gpr::Low { number, .. }) => match home(number) {
                    Home::Host(reg) => needs_rex |= reg >= 8,
                    Home::Frame(_) => return if has_high(i) { Err(Refused) } else { Ok(None) },
                },
                None => {}
            }
        }
        let Some((number, _)) = found else {
            return Ok(None);
        };
        if number != registers::RCX && !needs_rex {
            return Ok(None);
        }
        if count != Count::No || !loans.free.contains(&host::RCX) {
            return Err(Refused);
        }
        loans.free.retain(|reg| *reg != host::RCX);
        if number == registers::RCX {
            self.asm.mov(host::RCX, host::R13);
        }
        self.asm.ecx_from_high_byte(number);
        Ok(found)
    }

    /// CL becomes the high byte of a guest register.
    fn put_high_byte(&mut self, guest: u8) {
        if guest == registers::RCX {
            let mut byte = frame!(spare);
            self.asm.store(byte, host::R13);
            byte.displacement += 1;
            self.asm.store8(byte, host::RCX);
            self.asm.load(host::R13, frame!(spare));
        } else {
            self.asm.high_byte_from_cl(guest);
        }
    }
}

fn has_high(i: &Instruction) -> bool {
    (0..i.op_count()).any(|op| {
        i.op_kind(op) == OpKind::Register
            && matches!(registers::gpr(i.op_register(op)), Some(Gpr::High { .. }))
    })
}

/// Makes this the memory operand.
pub(crate) fn set_memory(to: &mut Instruction, mem: Mem) {
    let register = |reg: Reg| sized(reg, 8);
    to.set_memory_base(mem.base.map_or(Register::None, register));
    to.set_memory_index(
        mem.index
            .map_or(Register::None, |(index, _)| register(index)),
    );
    to.set_memory_index_scale(mem.index.map_or(1, |(_, scale)| 1 << scale));
    to.set_memory_displacement64(i64::from(mem.displacement) as u64);
    to.set_memory_displ_size(u32::from(mem.displacement != 0));
}
