//! Guest instructions with code of our own: the stack, jumps, LEA, divisions, bit strings.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::builder::{Builder, Refused};
use crate::copy::set_memory;
use crate::emit::{Alu, Cond, Mem, Reg, host};
use crate::frame::frame;
use crate::registers::{self, Gpr, Home, home, sized};

/// Guest RSP.
const STACK: Reg = host::R12;

impl Builder<'_> {
    /// The value of a guest register: where it is, or loaded to a scratch register.
    pub(crate) fn value(&mut self, guest: u8, scratch: Reg) -> Reg {
        match home(guest) {
            Home::Host(reg) => reg,
            Home::Frame(index) => {
                self.asm.load(scratch, frame!(high, index));
                scratch
            }
        }
    }

    /// A guest register becomes this host register's value.
    pub(crate) fn set(&mut self, guest: u8, from: Reg) {
        match home(guest) {
            Home::Host(reg) => self.asm.mov(reg, from),
            Home::Frame(index) => self.asm.store(frame!(high, index), from),
        }
    }

    pub(crate) fn low(register: Register, size: usize) -> Result<u8, Refused> {
        match registers::gpr(register) {
            Some(Gpr::Low { number, size: s }) if s == size => Ok(number),
            _ => Err(Refused),
        }
    }

    /// LEA.
    pub(crate) fn lea(&mut self, i: &Instruction) -> Result<(), Refused> {
        let Some(Gpr::Low { number, size }) = registers::gpr(i.op0_register()) else {
            return Err(Refused);
        };
        let address = self.effective_address(i)?;
        match (home(number), size) {
            (Home::Host(reg), 8) => self.asm.mov(reg, address),
            (Home::Host(reg), 4) => self.asm.mov32(reg, address),
            (Home::Frame(index), 8) => self.asm.store(frame!(high, index), address),
            (Home::Frame(index), 4) => {
                self.asm.mov32(host::R14, address);
                self.asm.store(frame!(high, index), host::R14);
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// Looks up the place below the top of the stack: R14 is the new RSP.
    pub(crate) fn below_stack(&mut self) -> Result<Mem, Refused> {
        self.asm.lea(host::R14, Mem::at(STACK, -8));
        self.look_up_stack(host::R14, 8, true)
    }

    /// A 64-bit operand in memory, to a word of the frame.
    fn fetch_to_spare(&mut self, i: &Instruction, spare: u8) -> Result<(), Refused> {
        let address = self.address(i)?;
        let mem = self.look_up(address, 8, false)?;
        self.asm.load(host::R14, mem);
        self.asm.store(frame!(spare, spare), host::R14);
        Ok(())
    }

    /// Stores a constant of 64 bits.
    fn store_wide(&mut self, mem: Mem, value: u64) {
        match i32::try_from(value as i64) {
            Ok(value) => self.asm.store_constant(mem, value),
            Err(_) => {
                self.asm.constant(host::RCX, value);
                self.asm.store(mem, host::RCX);
            }
        }
    }

    /// PUSH of 64 bits.
    pub(crate) fn push(&mut self, i: &Instruction) -> Result<(), Refused> {
        match i.op0_kind() {
            OpKind::Register => {
                let guest = Self::low(i.op0_register(), 8)?;
                let mem = self.below_stack()?;
                let from = self.value(guest, host::RCX);
                self.asm.store(mem, from);
            }
            OpKind::Memory => {
                self.fetch_to_spare(i, 0)?;
                let mem = self.below_stack()?;
                self.asm.load(host::RCX, frame!(spare));
                self.asm.store(mem, host::RCX);
            }
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => {
                let value = i.immediate(0);
                let mem = self.below_stack()?;
                self.store_wide(mem, value);
            }
            _ => return Err(Refused),
        }
        self.asm.mov(STACK, host::R14);
        Ok(())
    }

    /// POP of 64 bits to a register.
    pub(crate) fn pop(&mut self, i: &Instruction) -> Result<(), Refused> {
        let guest = Self::low(i.op0_register(), 8)?;
        let mem = self.look_up_stack(STACK, 8, false)?;
        match home(guest) {
            Home::Host(STACK) => self.asm.load(STACK, mem),
            Home::Host(reg) => {
                self.asm.load(reg, mem);
                self.asm.lea(STACK, Mem::at(STACK, 8));
            }
            Home::Frame(_) => {
                self.asm.load(host::RCX, mem);
                self.asm.lea(STACK, Mem::at(STACK, 8));
                self.set(guest, host::RCX);
            }
        }
        Ok(())
    }

    /// LEAVE.
    pub(crate) fn leave_frame(&mut self) -> Result<(), Refused> {
        let mem = self.look_up(host::RBP, 8, false)?;
        self.asm.lea(STACK, Mem::at(host::RBP, 8));
        self.asm.load(host::RBP, mem);
        Ok(())
    }

    /// CALL.
    pub(crate) fn call(&mut self, i: &Instruction, count: u16) -> Result<(), Refused> {
        let direct = i.op0_kind() == OpKind::NearBranch64;
        match i.op0_kind() {
            OpKind::NearBranch64 => {}
            OpKind::Memory => self.fetch_to_spare(i, 1)?,
            OpKind::Register => {
                let guest = Self::low(i.op0_register(), 8)?;
                let from = self.value(guest, host::R14);
                self.asm.store(frame!(spare, 1u8), from);
            }
            _ => return Err(Refused),
        }
        let mem = self.below_stack()?;
        self.linear_constant(host::RCX, i.next_ip());
        self.asm.store(mem, host::RCX);
        self.asm.mov(STACK, host::R14);
        if direct {
            self.go(i.near_branch_target(), count);
        } else {
            self.asm.load(host::R14, frame!(spare, 1u8));
            self.go_indirect(count);
        }
        Ok(())
    }

    /// RET.
    pub(crate) fn ret(&mut self, i: &Instruction, count: u16) -> Result<(), Refused> {
        let drop = if i.op_count() == 0 {
            0
        } else {
            i32::from(i.immediate16())
        };
        let mem = self.look_up_stack(STACK, 8, false)?;
        self.asm.load(host::R14, mem);
        self.asm.lea(STACK, Mem::at(STACK, 8 + drop));
        self.go_indirect(count);
        Ok(())
    }

    /// JMP.
    pub(crate) fn jump(&mut self, i: &Instruction, count: u16) -> Result<(), Refused> {
        match i.op0_kind() {
            OpKind::NearBranch64 => {
                self.go(i.near_branch_target(), count);
                return Ok(());
            }
            OpKind::Memory => {
                let address = self.address(i)?;
                let mem = self.look_up(address, 8, false)?;
                self.asm.load(host::R14, mem);
                if i.is_ip_rel_memory_operand() {
                    // A call of a function in a library.
                    self.go_likely(count);
                    return Ok(());
                }
            }
            OpKind::Register => {
                let guest = Self::low(i.op0_register(), 8)?;
                let from = self.value(guest, host::R14);
                self.asm.mov(host::R14, from);
            }
            _ => return Err(Refused),
        }
        self.go_indirect(count);
        Ok(())
    }

    /// Jcc.
    pub(crate) fn conditional(&mut self, i: &Instruction, count: u16) {
        // iced numbers the conditions from one, in the order of their encoding.
        let cond = Cond((i.condition_code() as u8).wrapping_sub(1) & 15);
        self.branch(cond, i.near_branch_target(), count);
    }

    /// JRCXZ, JECXZ, LOOP.
    pub(crate) fn count_branch(&mut self, i: &Instruction, count: u16) -> Result<(), Refused> {
        let target = i.near_branch_target();
        match i.mnemonic() {
            Mnemonic::Jrcxz => self.asm.mov(host::RCX, host::R13),
            Mnemonic::Jecxz => self.asm.mov32(host::RCX, host::R13),
            Mnemonic::Loop if i.code() == iced_x86::Code::Loop_rel8_64_RCX => {
                self.asm.lea(host::R13, Mem::at(host::R13, -1));
                self.asm.mov(host::RCX, host::R13);
            }
            _ => return Err(Refused),
        }
        // Only JRCXZ leaves the flags alone, and it does not reach far.
        let zero = self.asm.jrcxz();
        if i.mnemonic() == Mnemonic::Loop {
            self.go_cold(target, count);
            return self.asm.land(zero).then_some(()).ok_or(Refused);
        }
        let over = self.asm.jmp_short();
        let landed = self.asm.land(zero);
        self.go_cold(target, count);
        (landed & self.asm.land(over)).then_some(()).ok_or(Refused)
    }

    /// DIV and IDIV of 32 and 64 bits; what could overflow goes to the interpreter.
    pub(crate) fn divide(&mut self, i: &Instruction) -> Result<(), Refused> {
        if self.target.exact_flags {
            return Err(Refused);
        }
        let size = match i.op0_kind() {
            OpKind::Register => i.op0_register().size(),
            _ => i.memory_size().size(),
        };
        let wide = match size {
            4 => false,
            8 => true,
            _ => return Err(Refused),
        };
        let divisor = match i.op0_kind() {
            OpKind::Register => {
                let guest = Self::low(i.op0_register(), size)?;
                self.value(guest, host::R14)
            }
            OpKind::Memory => {
                let address = self.address(i)?;
                let mem = self.look_up(address, size, false)?;
                if wide {
                    self.asm.load(host::R14, mem);
                } else {
                    self.asm.load32(host::R14, mem);
                }
                host::R14
            }
            _ => return Err(Refused),
        };
        let signed = i.mnemonic() == Mnemonic::Idiv;
        if signed {
            // The dividend must be the sign-extended low half, and the divisor neither 0 nor -1.
            if wide {
                self.asm.mov(host::RCX, host::RAX);
            } else {
                self.asm.mov32(host::RCX, host::RAX);
            }
            self.asm.sar(wide, host::RCX, if wide { 63 } else { 31 });
            self.asm.alu(Alu::Cmp, wide, host::RCX, host::RDX);
            self.interpret_if(Cond::NE);
            if wide {
                self.asm.lea(host::RCX, Mem::at(divisor, 1));
            } else {
                self.asm.lea32(host::RCX, Mem::at(divisor, 1));
            }
            self.asm.alu_constant(Alu::Cmp, wide, host::RCX, 1);
            self.interpret_if(Cond::BE);
        } else {
            // The quotient fits if the high half is less than the divisor, which zero is not.
            self.asm.alu(Alu::Cmp, wide, host::RDX, divisor);
            self.interpret_if(Cond::AE);
        }
        self.asm.group3(wide, if signed { 7 } else { 6 }, divisor);
        Ok(())
    }

    /// BT and its kin on a bit string: the operand is the word that has the bit.
    pub(crate) fn bit_string(&mut self, i: &Instruction) -> Result<(), Refused> {
        let live = self.flags_live();
        if live && !self.target.bmi2 {
            return Err(Refused);
        }
        let Some(Gpr::Low { number, size }) = registers::gpr(i.op1_register()) else {
            return Err(Refused);
        };
        if size < 4 {
            return Err(Refused);
        }
        let (log, mask) = if size == 8 { (3, 63) } else { (2, 31) };
        let address = self.address(i)?;
        let bit = self.value(number, host::RCX);
        self.asm.sign_extend(host::RCX, bit, size);
        if live {
            self.asm.constant(host::R15, u64::from(log + 3));
            self.asm.sarx(host::RCX, host::RCX, host::R15);
        } else {
            self.asm.sar(true, host::RCX, log + 3);
        }
        let mem = Mem {
            base: Some(address),
            index: Some((host::RCX, log)),
            displacement: 0,
        };
        self.asm.lea(host::R14, mem);
        let mem = self.look_up(host::R14, size, i.mnemonic() != Mnemonic::Bt)?;
        let bit = self.value(number, host::RCX);
        if live {
            self.asm
                .pext(host::RCX, bit, frame!(low_bits, u8::from(size == 8)));
        } else {
            self.asm.mov32(host::RCX, bit);
            self.asm.alu_constant(Alu::And, false, host::RCX, mask);
        }
        let mut host_instruction = *i;
        host_instruction.set_segment_prefix(Register::None);
        host_instruction.set_has_xacquire_prefix(false);
        host_instruction.set_has_xrelease_prefix(false);
        set_memory(&mut host_instruction, mem);
        host_instruction.set_op1_register(sized(host::RCX, size));
        self.encode(&host_instruction)
    }
}
