//! Instructions with implied operands and a little system state that kernels use all the time.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use processor::state::seg;

use crate::builder::{Builder, Refused};
use crate::emit::{Alu, Cond, Mem, Reg, host};
use crate::frame::{
    awaited, control, frame, kernel_gs_base, rflags, segment_base, selector, tsc_aux, tsc_offset,
};
use crate::registers::{self, Gpr, Home, home};

/// IF, in the second byte of RFLAGS.
const IF: u8 = 1 << 1;
/// DF, likewise.
const DF: u8 = 1 << 2;

/// A segment register's index.
fn segment(register: Register) -> Result<usize, Refused> {
    match register {
        Register::ES => Ok(seg::ES),
        Register::CS => Ok(seg::CS),
        Register::SS => Ok(seg::SS),
        Register::DS => Ok(seg::DS),
        Register::FS => Ok(seg::FS),
        Register::GS => Ok(seg::GS),
        _ => Err(Refused),
    }
}

/// The segment whose base an instruction reads or writes.
fn base(i: &Instruction) -> Result<usize, Refused> {
    match i.code() {
        Code::Rdfsbase_r64 | Code::Wrfsbase_r64 => Ok(seg::FS),
        Code::Rdgsbase_r64 | Code::Wrgsbase_r64 => Ok(seg::GS),
        _ => Err(Refused),
    }
}

/// The second byte of a word.
fn second_byte(mut mem: Mem) -> Mem {
    mem.displacement += 1;
    mem
}

impl Builder<'_> {
    /// CLI and STI at CPL 0.
    pub(crate) fn interrupts(&mut self, i: &Instruction, last: bool) -> Result<(), Refused> {
        let open = i.mnemonic() == Mnemonic::Sti;
        if open {
            // Nothing may come between STI and the next instruction.
            if last {
                return Err(Refused);
            }
            // An event waits for this.
            self.asm.load_small(host::RCX, awaited(), 1);
            let none = self.asm.jrcxz();
            let from = self.asm.jmp();
            self.interpret_from(from, false);
            let _reaches = self.asm.land(none);
        }
        if self.flags_live() {
            if !self.target.bmi2 {
                return Err(Refused);
            }
            self.asm.load(host::RCX, rflags());
            self.asm.pext(host::RCX, host::RCX, frame!(not_interrupt));
            self.asm.pdep(host::RCX, host::RCX, frame!(not_interrupt));
            if open {
                let set = Mem::at(host::RCX, i32::from(IF) << 8);
                self.asm.lea(host::RCX, set);
            }
            self.asm.store(rflags(), host::RCX);
        } else if open {
            self.asm.or8(second_byte(rflags()), IF);
        } else {
            self.asm.and8(second_byte(rflags()), !IF);
        }
        Ok(())
    }

    /// PUSHFQ.
    pub(crate) fn push_flags(&mut self) -> Result<(), Refused> {
        if !self.target.bmi2 {
            return Err(Refused);
        }
        let mem = self.below_stack()?;
        self.asm.mov(host::R12, host::R14);
        self.asm.lea(host::R14, mem);
        self.asm.pushfq();
        self.asm.pop(host::RCX);
        self.asm.pext(host::RCX, host::RCX, frame!(host_flags));
        self.asm.pdep(host::RCX, host::RCX, frame!(host_flags));
        self.asm.load(host::R15, rflags());
        self.asm.lea(host::RCX, Mem::sum(host::RCX, host::R15, 0));
        self.asm.store(Mem::at(host::R14, 0), host::RCX);
        Ok(())
    }

    /// SWAPGS at CPL 0.
    pub(crate) fn swap_gs(&mut self) {
        self.asm.load(host::RCX, segment_base(seg::GS));
        self.asm.load(host::R14, kernel_gs_base());
        self.asm.store(segment_base(seg::GS), host::R14);
        self.asm.store(kernel_gs_base(), host::RCX);
    }

    /// MOV from a segment register to 32 or 64 bits of a general register.
    pub(crate) fn load_selector(&mut self, i: &Instruction) -> Result<(), Refused> {
        let segment = segment(i.op1_register())?;
        let Some(Gpr::Low {
            number,
            size: 4 | 8,
        }) = registers::gpr(i.op0_register())
        else {
            return Err(Refused);
        };
        self.asm.load_small(host::RCX, selector(segment), 2);
        self.set(number, host::RCX);
        Ok(())
    }

    /// MOV from a segment register to memory, or to 16 bits of a general register.
    pub(crate) fn store_selector(&mut self, i: &Instruction) -> Result<(), Refused> {
        let segment = segment(i.op1_register())?;
        if i.op0_kind() == OpKind::Memory {
            let address = self.address(i)?;
            let mem = self.look_up(address, 2, true)?;
            self.asm.load_small(host::RCX, selector(segment), 2);
            self.asm.store16(mem, host::RCX);
            return Ok(());
        }
        let number = Self::low(i.op0_register(), 2)?;
        self.asm.load_small(host::RCX, selector(segment), 2);
        match home(number) {
            Home::Host(reg) => self.asm.mov16(reg, host::RCX),
            Home::Frame(index) => self.asm.store16(frame!(high, index), host::RCX),
        }
        Ok(())
    }

    /// RDTSC and RDTSCP.
    pub(crate) fn read_time(&mut self, i: &Instruction) -> Result<(), Refused> {
        if !self.target.bmi2 || !self.target.host_tsc {
            return Err(Refused);
        }
        let with_aux = i.code() == Code::Rdtscp;
        self.asm.rdtsc(with_aux);
        self.asm.rorx(host::RDX, host::RDX, 32);
        self.asm.lea(host::RAX, Mem::sum(host::RAX, host::RDX, 0));
        self.asm.load(host::RCX, tsc_offset());
        self.asm.lea(host::RAX, Mem::sum(host::RAX, host::RCX, 0));
        self.asm.rorx(host::RDX, host::RAX, 32);
        // The upper halves become zero.
        self.asm.mov32(host::RDX, host::RDX);
        self.asm.mov32(host::RAX, host::RAX);
        if with_aux {
            self.asm.load32(host::R13, tsc_aux());
        }
        Ok(())
    }

    /// MOV from a control register, at CPL 0.
    pub(crate) fn read_control(&mut self, i: &Instruction) -> Result<(), Refused> {
        let number = Self::low(i.op0_register(), 8)?;
        let control = control(i.op1_register().number()).ok_or(Refused)?;
        self.asm.load(host::RCX, control);
        self.set(number, host::RCX);
        Ok(())
    }

    /// RDFSBASE and RDGSBASE of 64 bits.
    pub(crate) fn read_base(&mut self, i: &Instruction) -> Result<(), Refused> {
        let number = Self::low(i.op0_register(), 8)?;
        self.asm.load(host::RCX, segment_base(base(i)?));
        self.set(number, host::RCX);
        Ok(())
    }

    /// WRFSBASE and WRGSBASE of 64 bits; the interpreter has the addresses that are not canonical.
    pub(crate) fn write_base(&mut self, i: &Instruction) -> Result<(), Refused> {
        if !self.target.bmi2 {
            return Err(Refused);
        }
        let number = Self::low(i.op0_register(), 8)?;
        let segment = base(i)?;
        let value = self.value(number, host::R14);
        self.asm.constant(host::R15, 16);
        self.asm.shlx(host::RCX, value, host::R15);
        self.asm.sarx(host::RCX, host::RCX, host::R15);
        self.asm.not(host::RCX);
        self.asm.lea(host::RCX, Mem::sum(host::RCX, value, 1));
        let canonical = self.asm.jrcxz();
        let from = self.asm.jmp();
        self.interpret_from(from, false);
        if !self.asm.land(canonical) {
            return Err(Refused);
        }
        self.asm.store(segment_base(segment), value);
        Ok(())
    }

    /// CLD and STD.
    pub(crate) fn direction(&mut self, i: &Instruction) {
        let set = i.mnemonic() == Mnemonic::Std;
        self.asm.bytes(&[0xfc | u8::from(set)]);
    }

    /// MOVS and STOS upwards, a page at a time; everything else goes to the interpreter.
    pub(crate) fn string(&mut self, i: &Instruction) -> Result<(), Refused> {
        let (moves, log) = match i.code() {
            Code::Stosb_m8_AL => (false, 0),
            Code::Stosw_m16_AX => (false, 1),
            Code::Stosd_m32_EAX => (false, 2),
            Code::Stosq_m64_RAX => (false, 3),
            Code::Movsb_m8_m8 => (true, 0),
            Code::Movsw_m16_m16 => (true, 1),
            Code::Movsd_m32_m32 => (true, 2),
            Code::Movsq_m64_m64 => (true, 3),
            _ => return Err(Refused),
        };
        let wide = |op| {
            matches!(
                i.op_kind(op),
                iced_x86::OpKind::MemoryESRDI
                    | iced_x86::OpKind::MemorySegRSI
                    | iced_x86::OpKind::Register
            )
        };
        let plain_segment = !matches!(i.segment_prefix(), Register::FS | Register::GS);
        if !wide(0) || !wide(1) || !plain_segment {
            return Err(Refused);
        }
        // The flags are saved over all of it.
        self.live_before |= crate::flags::ARITHMETIC;
        let repeated = i.has_rep_prefix() || i.has_repne_prefix();
        let mut nothing = None;
        if repeated {
            self.asm.mov(host::RCX, host::R13);
            let zero = self.asm.jrcxz();
            let some = self.asm.jmp_short();
            let reaches = self.asm.land(zero);
            nothing = Some(self.asm.jmp());
            if !(reaches & self.asm.land(some)) {
                return Err(Refused);
            }
        }
        let size = 1 << log;
        if moves {
            self.look_up(host::RSI, size, false)?;
            self.asm.store(frame!(spare), host::R15);
        }
        self.look_up(host::RDI, size, true)?;
        self.asm.pushfq();
        self.asm.test8(second_byte(Mem::at(host::RSP, 0)), DF);
        let down = self.asm.jcc(Cond::NE);
        self.interpret_from(down, true);
        if repeated {
            // As many as the pages have room for; R13 is what is left.
            self.room_in_page(host::RCX, host::RDI, log);
            if moves {
                self.room_in_page(host::R14, host::RSI, log);
                self.asm.alu(Alu::Cmp, true, host::R14, host::RCX);
                self.asm.cmov(Cond::B, host::RCX, host::R14);
            }
            self.asm.alu(Alu::Cmp, true, host::R13, host::RCX);
            self.asm.cmov(Cond::B, host::RCX, host::R13);
            self.asm.alu(Alu::Sub, true, host::R13, host::RCX);
        }
        self.asm.popfq();
        if moves {
            self.asm.load(host::R14, frame!(spare));
            self.asm.lea(host::RSI, Mem::sum(host::RSI, host::R14, 0));
        }
        self.asm.lea(host::RDI, Mem::sum(host::RDI, host::R15, 0));
        if repeated {
            self.asm.bytes(&[0xf3]);
        }
        match log {
            1 => self.asm.bytes(&[0x66]),
            3 => self.asm.bytes(&[0x48]),
            _ => {}
        }
        let opcode = if moves { 0xa4 } else { 0xaa };
        self.asm.bytes(&[opcode | u8::from(log != 0)]);
        // Back to linear addresses.
        if moves {
            self.subtract(host::RSI, host::R14);
        }
        self.subtract(host::RDI, host::R15);
        if let Some(nothing) = nothing {
            // More to do: the instruction begins again, unless somebody wants the thread.
            self.asm.mov(host::RCX, host::R13);
            let over = self.asm.jrcxz();
            self.asm.load(host::RCX, frame!(attention));
            self.asm.load32(host::RCX, Mem::at(host::RCX, 0));
            let quiet = self.asm.jrcxz();
            let wanted = self.asm.jmp();
            self.interpret_from(wanted, false);
            let reaches = self.asm.land(quiet);
            let again = self.asm.jmp();
            self.asm.link(again, self.start as i64);
            if !(reaches & self.asm.land(over)) {
                return Err(Refused);
            }
            self.asm.link_here(nothing);
        }
        Ok(())
    }

    /// How many elements fit between this address and its page's end. The flags are lost.
    fn room_in_page(&mut self, to: Reg, address: Reg, log: u8) {
        self.asm.mov32(to, address);
        self.asm.alu_constant(Alu::Or, false, to, !0xfff);
        self.asm.group3(false, 3, to);
        self.asm.shr32(to, log);
    }

    /// Subtracts; flags stay, but the subtrahend does not.
    fn subtract(&mut self, from: Reg, what: Reg) {
        self.asm.not(what);
        self.asm.lea(from, Mem::sum(from, what, 1));
    }
}
