//! Writes the host instructions that translated code needs besides the guest's own.

/// A host register, as instructions encode it.
pub(crate) type Reg = u8;

/// Names of the host registers that the translator handles itself.
#[allow(missing_docs, reason = "the registers of those names")]
pub(crate) mod host {
    use super::Reg;
    pub(crate) const RAX: Reg = 0;
    pub(crate) const RCX: Reg = 1;
    pub(crate) const RDX: Reg = 2;
    pub(crate) const RBP: Reg = 5;
    pub(crate) const RSP: Reg = 4;
    pub(crate) const RSI: Reg = 6;
    pub(crate) const RDI: Reg = 7;
    pub(crate) const R12: Reg = 12;
    pub(crate) const R13: Reg = 13;
    pub(crate) const R14: Reg = 14;
    pub(crate) const R15: Reg = 15;
}

/// Condition codes, as instructions encode them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cond(pub(crate) u8);

impl Cond {
    pub(crate) const B: Cond = Cond(2);
    pub(crate) const AE: Cond = Cond(3);
    pub(crate) const E: Cond = Cond(4);
    pub(crate) const NE: Cond = Cond(5);
    pub(crate) const BE: Cond = Cond(6);
    pub(crate) const A: Cond = Cond(7);

    /// The opposite condition.
    pub(crate) fn not(self) -> Cond {
        Cond(self.0 ^ 1)
    }
}

/// A memory operand: `base + index * 2^scale + displacement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mem {
    pub(crate) base: Option<Reg>,
    pub(crate) index: Option<(Reg, u8)>,
    pub(crate) displacement: i32,
}

impl Mem {
    /// A register and a displacement.
    pub(crate) fn at(base: Reg, displacement: i32) -> Mem {
        Mem {
            base: Some(base),
            index: None,
            displacement,
        }
    }

    /// A field of the frame or of the processor.
    pub(crate) fn frame(displacement: i32) -> Mem {
        Mem::at(host::RSP, displacement)
    }

    /// The sum of two registers and a displacement.
    pub(crate) fn sum(base: Reg, index: Reg, displacement: i32) -> Mem {
        Mem {
            base: Some(base),
            index: Some((index, 0)),
            displacement,
        }
    }
}

/// Arithmetic of two operands, by the digit that selects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Cmp = 7,
}

/// Position of a relative operand that is to be filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) struct Short(usize);

/// A growing piece of machine code.
#[derive(Debug, Default)]
pub(crate) struct Asm {
    pub(crate) code: Vec<u8>,
}

impl Asm {
    /// Bytes so far.
    pub(crate) fn here(&self) -> usize {
        self.code.len()
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    /// ModRM, SIB and displacement.
    fn memory(&mut self, reg: Reg, mem: Mem) {
        let reg = (reg & 7) << 3;
        let Some(base) = mem.base else {
            // No base: SIB with a 32-bit displacement.
            let (index, scale) = mem.index.unwrap_or((host::RSP, 0));
            self.bytes(&[reg | 4, scale << 6 | (index & 7) << 3 | 5]);
            self.imm32(mem.displacement);
            return;
        };
        let disp8 = i8::try_from(mem.displacement);
        // A base of RBP or R13 always has a displacement.
        let mode = match disp8 {
            Ok(0) if base & 7 != host::RBP => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        if mem.index.is_some() || base & 7 == host::RSP {
            let (index, scale) = mem.index.unwrap_or((host::RSP, 0));
            self.bytes(&[mode | reg | 4, scale << 6 | (index & 7) << 3 | base & 7]);
        } else {
            self.bytes(&[mode | reg | base & 7]);
        }
        match (mode, disp8) {
            (0, _) => {}
            (0x40, Ok(disp8)) => self.bytes(&disp8.to_le_bytes()),
            _ => self.imm32(mem.displacement),
        }
    }

    fn rex(wide: bool, reg: Reg, index: Reg, base: Reg) -> u8 {
        0x40 | u8::from(wide) << 3 | reg >> 3 << 2 | index >> 3 << 1 | base >> 3
    }

    fn op_mem(&mut self, wide: bool, opcode: &[u8], reg: Reg, mem: Mem) {
        let index = mem.index.map_or(0, |(index, _)| index);
        let rex = Self::rex(wide, reg, index, mem.base.unwrap_or(0));
        if rex != 0x40 {
            self.bytes(&[rex]);
        }
        self.bytes(opcode);
        self.memory(reg, mem);
    }

    fn op_reg(&mut self, wide: bool, opcode: &[u8], reg: Reg, rm: Reg) {
        let rex = Self::rex(wide, reg, 0, rm);
        if rex != 0x40 {
            self.bytes(&[rex]);
        }
        self.bytes(opcode);
        self.bytes(&[0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    /// A three-byte VEX prefix and the opcode; `map` 2 is 0F38, 3 is 0F3A; `prefix` 2 is F3,
    /// 3 is F2.
    fn vex(&mut self, [map, prefix, opcode]: [u8; 3], wide: bool, reg: Reg, second: Reg, rm: Mem) {
        let index = rm.index.map_or(0, |(index, _)| index);
        self.vex_prefix(
            [map, prefix, opcode],
            wide,
            reg,
            second,
            (index, rm.base.unwrap_or(0)),
        );
        self.memory(reg, rm);
    }

    fn vex_prefix(
        &mut self,
        [map, prefix, opcode]: [u8; 3],
        wide: bool,
        reg: Reg,
        second: Reg,
        (index, base): (Reg, Reg),
    ) {
        let inverted = |bit: u8, at: u8| (bit >> 3 ^ 1) << at;
        self.bytes(&[
            0xc4,
            inverted(reg, 7) | inverted(index, 6) | inverted(base, 5) | map,
            u8::from(wide) << 7 | (second ^ 0xf) << 3 | prefix,
            opcode,
        ]);
    }

    /// MOV of 64 bits between registers.
    pub(crate) fn mov(&mut self, to: Reg, from: Reg) {
        if to != from {
            self.op_reg(true, &[0x8b], to, from);
        }
    }

    /// MOV of 32 bits between registers.
    pub(crate) fn mov32(&mut self, to: Reg, from: Reg) {
        self.op_reg(false, &[0x8b], to, from);
    }

    pub(crate) fn load(&mut self, to: Reg, mem: Mem) {
        self.op_mem(true, &[0x8b], to, mem);
    }

    pub(crate) fn load32(&mut self, to: Reg, mem: Mem) {
        self.op_mem(false, &[0x8b], to, mem);
    }

    pub(crate) fn store(&mut self, mem: Mem, from: Reg) {
        self.op_mem(true, &[0x89], from, mem);
    }

    pub(crate) fn store32(&mut self, mem: Mem, from: Reg) {
        self.op_mem(false, &[0x89], from, mem);
    }

    pub(crate) fn store16(&mut self, mem: Mem, from: Reg) {
        self.bytes(&[0x66]);
        self.op_mem(false, &[0x89], from, mem);
    }

    /// MOV of 16 bits between registers.
    pub(crate) fn mov16(&mut self, to: Reg, from: Reg) {
        self.bytes(&[0x66]);
        self.op_reg(false, &[0x8b], to, from);
    }

    /// MOV of a byte to memory. The register is one of the first four.
    pub(crate) fn store8(&mut self, mem: Mem, from: Reg) {
        debug_assert!(from < 4);
        self.op_mem(false, &[0x88], from, mem);
    }

    /// MOV of a sign-extended constant to 64 bits of memory.
    pub(crate) fn store_constant(&mut self, mem: Mem, value: i32) {
        self.op_mem(true, &[0xc7], 0, mem);
        self.imm32(value);
    }

    pub(crate) fn lea(&mut self, to: Reg, mem: Mem) {
        match mem {
            Mem {
                base: Some(base),
                index: None,
                displacement: 0,
            } => self.mov(to, base),
            _ => self.op_mem(true, &[0x8d], to, mem),
        }
    }

    /// LEA of a place in this code, by an operand whose position is returned.
    pub(crate) fn lea_code(&mut self, to: Reg) -> usize {
        let rex = Self::rex(true, to, 0, 0);
        self.bytes(&[rex, 0x8d, (to & 7) << 3 | 5, 0, 0, 0, 0]);
        self.here() - 4
    }

    /// LEA that keeps the low 32 bits.
    pub(crate) fn lea32(&mut self, to: Reg, mem: Mem) {
        self.op_mem(false, &[0x8d], to, mem);
    }

    /// A constant in as few bytes as it takes. Flags stay.
    pub(crate) fn constant(&mut self, to: Reg, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            if to >= 8 {
                self.bytes(&[0x41]);
            }
            self.bytes(&[0xb8 | to & 7]);
            self.bytes(&value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.op_reg(true, &[0xc7], 0, to);
            self.imm32(value);
        } else {
            self.bytes(&[Self::rex(true, 0, 0, to), 0xb8 | to & 7]);
            self.bytes(&value.to_le_bytes());
        }
    }

    /// A constant of 64 bits that is to be filled in; the position of its bytes is returned.
    pub(crate) fn constant_later(&mut self, to: Reg) -> usize {
        self.bytes(&[Self::rex(true, 0, 0, to), 0xb8 | to & 7]);
        self.bytes(&[0; 8]);
        self.here() - 8
    }

    /// NOT of 64 bits; flags stay.
    pub(crate) fn not(&mut self, reg: Reg) {
        self.group3(true, 2, reg);
    }

    pub(crate) fn alu(&mut self, alu: Alu, wide: bool, to: Reg, from: Reg) {
        self.op_reg(wide, &[(alu as u8) << 3 | 3], to, from);
    }

    pub(crate) fn alu_mem(&mut self, alu: Alu, wide: bool, to: Reg, from: Mem) {
        self.op_mem(wide, &[(alu as u8) << 3 | 3], to, from);
    }

    pub(crate) fn alu_constant(&mut self, alu: Alu, wide: bool, to: Reg, value: i32) {
        if let Ok(value) = i8::try_from(value) {
            self.op_reg(wide, &[0x83], alu as u8, to);
            self.bytes(&value.to_le_bytes());
        } else {
            self.op_reg(wide, &[0x81], alu as u8, to);
            self.imm32(value);
        }
    }

    /// CMP of 32 bits of memory with a small constant.
    pub(crate) fn compare32(&mut self, mem: Mem, value: i8) {
        self.op_mem(false, &[0x83], Alu::Cmp as u8, mem);
        self.bytes(&value.to_le_bytes());
    }

    /// ADD of a constant to 64 bits of memory.
    pub(crate) fn add_to(&mut self, mem: Mem, value: i32) {
        if let Ok(value) = i8::try_from(value) {
            self.op_mem(true, &[0x83], Alu::Add as u8, mem);
            self.bytes(&value.to_le_bytes());
        } else {
            self.op_mem(true, &[0x81], Alu::Add as u8, mem);
            self.imm32(value);
        }
    }

    /// CMOV of 64 bits between registers.
    pub(crate) fn cmov(&mut self, cond: Cond, to: Reg, from: Reg) {
        self.op_reg(true, &[0x0f, 0x40 | cond.0], to, from);
    }

    /// NOT (2), NEG (3), MUL (4), IMUL (5), DIV (6), IDIV (7).
    pub(crate) fn group3(&mut self, wide: bool, digit: u8, reg: Reg) {
        self.op_reg(wide, &[0xf7], digit, reg);
    }

    /// SHR of 32 bits.
    pub(crate) fn shr32(&mut self, reg: Reg, count: u8) {
        self.op_reg(false, &[0xc1], 5, reg);
        self.bytes(&[count]);
    }

    /// SHR of 64 bits.
    pub(crate) fn shr(&mut self, reg: Reg, count: u8) {
        self.op_reg(true, &[0xc1], 5, reg);
        self.bytes(&[count]);
    }

    /// SAHF.
    pub(crate) fn sahf(&mut self) {
        self.bytes(&[0x9e]);
    }

    /// All arithmetic flags become those of an image in R11. RAX is lost.
    pub(crate) fn flags_from_r11(&mut self) {
        // AH takes the low byte; OF comes of an addition to AL.
        self.mov32(host::RAX, 11);
        self.bytes(&[0xc1, 0xe0, 8]);
        // BT R11D, 11; SETC AL; ADD AL, 127.
        self.bytes(&[0x41, 0x0f, 0xba, 0xe3, 11]);
        self.bytes(&[0x0f, 0x92, 0xc0]);
        self.bytes(&[0x04, 0x7f]);
        self.sahf();
    }

    /// SAR of 64 bits.
    pub(crate) fn sar(&mut self, wide: bool, reg: Reg, count: u8) {
        self.op_reg(wide, &[0xc1], 7, reg);
        self.bytes(&[count]);
    }

    /// MOVSX of a word, a byte or a doubleword in a register, to 64 bits; flags stay.
    pub(crate) fn sign_extend(&mut self, to: Reg, from: Reg, size: usize) {
        match size {
            2 => self.op_reg(true, &[0x0f, 0xbf], to, from),
            4 => self.op_reg(true, &[0x63], to, from),
            _ => self.mov(to, from),
        }
    }

    /// PEXT of 64 bits; flags stay.
    pub(crate) fn pext(&mut self, to: Reg, from: Reg, mask: Mem) {
        self.vex([2, 2, 0xf5], true, to, from, mask);
    }

    /// PDEP of 64 bits; flags stay.
    pub(crate) fn pdep(&mut self, to: Reg, from: Reg, mask: Mem) {
        self.vex([2, 3, 0xf5], true, to, from, mask);
    }

    /// SARX of 64 bits; flags stay.
    pub(crate) fn sarx(&mut self, to: Reg, from: Reg, count: Reg) {
        self.vex_prefix([2, 2, 0xf7], true, to, count, (0, from));
        self.bytes(&[0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// SHLX of 64 bits; flags stay.
    pub(crate) fn shlx(&mut self, to: Reg, from: Reg, count: Reg) {
        self.vex_prefix([2, 1, 0xf7], true, to, count, (0, from));
        self.bytes(&[0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// RDTSC; with the auxiliary value RDTSCP, which takes RCX.
    pub(crate) fn rdtsc(&mut self, with_aux: bool) {
        if with_aux {
            self.bytes(&[0x0f, 0x01, 0xf9]);
        } else {
            self.bytes(&[0x0f, 0x31]);
        }
    }

    /// MOVZX of a byte (1) or a word (2) of memory.
    pub(crate) fn load_small(&mut self, to: Reg, mem: Mem, size: usize) {
        let opcode = if size == 1 { 0xb6 } else { 0xb7 };
        self.op_mem(false, &[0x0f, opcode], to, mem);
    }

    /// TEST of a byte of memory with a constant.
    pub(crate) fn test8(&mut self, mem: Mem, value: u8) {
        self.op_mem(false, &[0xf6], 0, mem);
        self.bytes(&[value]);
    }

    /// AND of a byte of memory with a constant.
    pub(crate) fn and8(&mut self, mem: Mem, value: u8) {
        self.op_mem(false, &[0x80], 4, mem);
        self.bytes(&[value]);
    }

    /// RORX of 64 bits; flags stay.
    pub(crate) fn rorx(&mut self, to: Reg, from: Reg, count: u8) {
        self.vex_prefix([3, 3, 0xf0], true, to, 0, (0, from));
        self.bytes(&[0xc0 | (to & 7) << 3 | from & 7, count]);
    }

    /// MOVZX of a high byte (AH to BH) to ECX.
    pub(crate) fn ecx_from_high_byte(&mut self, of: Reg) {
        debug_assert!(of < 4);
        self.bytes(&[0x0f, 0xb6, 0xc0 | host::RCX << 3 | (of + 4)]);
    }

    /// MOV of CL to a high byte.
    pub(crate) fn high_byte_from_cl(&mut self, of: Reg) {
        debug_assert!(of < 4);
        self.bytes(&[0x88, 0xc0 | host::RCX << 3 | (of + 4)]);
    }

    pub(crate) fn pushfq(&mut self) {
        self.bytes(&[0x9c]);
    }

    pub(crate) fn popfq(&mut self) {
        self.bytes(&[0x9d]);
    }

    /// JRCXZ forward.
    pub(crate) fn jrcxz(&mut self) -> Short {
        self.bytes(&[0xe3, 0]);
        Short(self.here() - 1)
    }

    /// A jump if the register is not zero, as [`Asm::jcc`]; destroys the flags.
    pub(crate) fn jump_if_set(&mut self, reg: Reg) -> usize {
        self.op_reg(true, &[0x85], reg, reg);
        self.jcc(Cond::NE)
    }

    /// The operand at this position leads here.
    pub(crate) fn link_here(&mut self, operand: usize) {
        let here = self.here() as i64;
        self.link(operand, here);
    }

    /// JMP forward, by less than 128 bytes.
    pub(crate) fn jmp_short(&mut self) -> Short {
        self.bytes(&[0xeb, 0]);
        Short(self.here() - 1)
    }

    /// A short jump leads here. Tells whether it reaches.
    #[must_use]
    pub(crate) fn land(&mut self, from: Short) -> bool {
        let distance = i8::try_from(self.here() - from.0 - 1);
        if let (Ok(distance), Some(byte)) = (distance, self.code.get_mut(from.0)) {
            *byte = distance as u8;
            return true;
        }
        false
    }

    /// JMP with a 32-bit operand, whose position is returned.
    pub(crate) fn jmp(&mut self) -> usize {
        self.bytes(&[0xe9, 0, 0, 0, 0]);
        self.here() - 4
    }

    /// A conditional jump with a 32-bit operand, whose position is returned.
    pub(crate) fn jcc(&mut self, cond: Cond) -> usize {
        self.bytes(&[0x0f, 0x80 | cond.0, 0, 0, 0, 0]);
        self.here() - 4
    }

    /// The 32-bit operand at this position leads to another position.
    pub(crate) fn link(&mut self, operand: usize, target: i64) {
        let relative = (target - (operand as i64 + 4)) as i32;
        if let Some(bytes) = self.code.get_mut(operand..operand + 4) {
            bytes.copy_from_slice(&relative.to_le_bytes());
        }
    }

    /// JMP to the address in memory.
    pub(crate) fn jmp_mem(&mut self, mem: Mem) {
        self.op_mem(false, &[0xff], 4, mem);
    }

    /// JMP to the address in a register.
    pub(crate) fn jmp_reg(&mut self, reg: Reg) {
        self.op_reg(false, &[0xff], 4, reg);
    }

    pub(crate) fn push(&mut self, reg: Reg) {
        if reg >= 8 {
            self.bytes(&[0x41]);
        }
        self.bytes(&[0x50 | reg & 7]);
    }

    pub(crate) fn pop(&mut self, reg: Reg) {
        if reg >= 8 {
            self.bytes(&[0x41]);
        }
        self.bytes(&[0x58 | reg & 7]);
    }

    pub(crate) fn pop_mem(&mut self, mem: Mem) {
        self.op_mem(false, &[0x8f], 0, mem);
    }

    pub(crate) fn push_mem(&mut self, mem: Mem) {
        self.op_mem(false, &[0xff], 6, mem);
    }

    /// OR of a byte of memory with a constant.
    pub(crate) fn or8(&mut self, mem: Mem, value: u8) {
        self.op_mem(false, &[0x80], 1, mem);
        self.bytes(&[value]);
    }

    pub(crate) fn stmxcsr(&mut self, mem: Mem) {
        self.op_mem(false, &[0x0f, 0xae], 3, mem);
    }

    pub(crate) fn ldmxcsr(&mut self, mem: Mem) {
        self.op_mem(false, &[0x0f, 0xae], 2, mem);
    }
}
