//! Cases out of the table of instruction codes.
//!
//! A case is a few instructions in a row. Two registers are set aside: memory operands are
//! relative to them, so that they are inside the data nearly always, and no instruction writes
//! them. What instructions leave undefined is not compared: such an instruction is the last one,
//! or one that sets all flags follows it.

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, CpuidFeature, Encoder, FlowControl, Instruction,
    InstructionBlock, InstructionInfoFactory, Mnemonic, OpCodeOperandKind as Op, OpKind, Register,
    RflagsBits,
};
use processor::classify::{self, Class, Unit};
use x86::cr::rflags;

use crate::{CODE, Case, DATA, DATA_LEN, READ_ONLY, Registers};

/// A small, quick generator of numbers (xorshift64*).
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            numbers.next();
        }
        numbers
    }

    /// The next one.
    #[expect(clippy::should_implement_trait, reason = "an endless sequence")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 32) as usize * n) >> 32
    }

    /// Once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// A number as programs have them: small, near a power of two, a pattern, or anything.
    pub fn value(&mut self) -> u64 {
        let any = self.next();
        match self.below(8) {
            0 => any & 0xff,
            1 => (any & 0xff).wrapping_neg(),
            2 => (1_u64 << (any & 63))
                .wrapping_add(any >> 32 & 3)
                .wrapping_sub(1),
            3 => self.of(&[
                0,
                1,
                u64::MAX,
                0x7f,
                0x80,
                0x7fff,
                0x8000,
                0x7fff_ffff,
                0x8000_0000,
                i64::MAX as u64,
                1 << 63,
            ]),
            4 => any & 0xffff_ffff,
            _ => any,
        }
    }

    /// Eight bytes of a vector register: integers, and floating-point numbers of both sizes with
    /// their corners.
    fn lane(&mut self) -> u64 {
        let half = |n: &mut Self| -> u64 {
            let any = n.next();
            let bits = match n.below(8) {
                0 => 0,
                1 => 0x8000_0000,
                2 => 0x7f80_0000 | any & 0x8000_0000,
                3 => 0x7fc0_0000 | any & 0x8000_ffff,
                4 => 0x7f80_0000 | any & 0x803f_ffff | 1,
                5 => any & 0x807f_ffff,
                6 => u64::from(f32::from(any as i16).to_bits()),
                _ => any,
            };
            bits & 0xffff_ffff
        };
        let any = self.next();
        match self.below(10) {
            0 => 0,
            1 => 0x7ff0_0000_0000_0000 | any & 1 << 63,
            2 => 0x7ff8_0000_0000_0000 | any & 0x8000_0000_0000_ffff,
            3 => 0x7ff0_0000_0000_0000 | any & 0x8007_ffff_ffff_ffff | 1,
            4 => any & 0x800f_ffff_ffff_ffff,
            5 => f64::from(any as i32).to_bits(),
            6 => self.value(),
            7 => half(self) | half(self) << 32,
            _ => any,
        }
    }
}

/// What one code needs.
#[derive(Debug, Clone, Copy)]
struct Template {
    code: Code,
    unit: Unit,
}

/// Makes cases.
pub struct Generator {
    templates: Vec<Template>,
    info: InstructionInfoFactory,
    /// Codes to choose from first, by unit: so that the few integer codes are not lost among
    /// vector codes.
    by_unit: Vec<Vec<usize>>,
    bits: u32,
    /// Not for the host: what would do harm to its process, too.
    guests_only: bool,
}

/// A generated case.
pub struct Generated {
    /// The case.
    pub case: Case,
    /// Its instructions.
    pub instructions: Vec<Instruction>,
    /// Flags that its last instruction leaves undefined.
    pub undefined: u64,
}

/// General registers that may be set aside: those that no instruction names implicitly.
const ASIDE: [u8; 9] = [5, 8, 9, 10, 11, 12, 13, 14, 15];

/// In 32-bit code: XLATB and CMPXCHG8B read EBX and do not write it.
const ASIDE32: [u8; 2] = [3, 5];

const GPR64: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// The registers set aside in one case.
#[derive(Debug, Clone, Copy)]
struct Aside {
    base: u8,
    index: u8,
    /// 32-bit code: eight registers, and addresses of 32 bits.
    narrow: bool,
    /// FS and GS may be used.
    segments: bool,
}

impl Aside {
    /// How many registers of a kind there are.
    fn registers(self) -> usize {
        if self.narrow { 8 } else { 16 }
    }

    /// A register for addresses.
    fn address(self, number: u8) -> Register {
        if self.narrow {
            Register::EAX + u32::from(number)
        } else {
            GPR64[usize::from(number)]
        }
    }

    fn displacement_size(self) -> u32 {
        if self.narrow { 4 } else { 8 }
    }

    /// A displacement, cut to that size.
    fn cut(self, displacement: i64) -> u64 {
        if self.narrow {
            displacement as u64 & 0xffff_ffff
        } else {
            displacement as u64
        }
    }

    fn free(self, number: usize) -> bool {
        number != 4 && number != usize::from(self.base) && number != usize::from(self.index)
    }
}

impl Generator {
    /// All codes that user mode can run with the same result anywhere, and that this host has, in
    /// 32-bit or 64-bit code.
    #[must_use]
    pub fn new(bits: u32) -> Self {
        let features = processor::classify::supported_features().features();
        let templates: Vec<Template> = Code::values()
            .filter(|&code| {
                classify::of(code) != Class::Undefined
                    && if bits == 32 {
                        code.op_code().mode32()
                    } else {
                        code.op_code().mode64()
                    }
                    && classify::has_features(&features, code)
                    && comparable(code)
            })
            .map(|code| Template {
                code,
                unit: classify::unit(code),
            })
            .collect();
        let groups: [&[Unit]; 5] = [
            &[Unit::Integer, Unit::VexInteger],
            &[Unit::X87, Unit::Wait],
            &[Unit::Mmx],
            &[Unit::Sse],
            &[Unit::Avx],
        ];
        let by_unit = groups
            .iter()
            .map(|units| {
                (0..templates.len())
                    .filter(|&n| units.contains(&templates[n].unit))
                    .collect()
            })
            .filter(|group: &Vec<usize>| !group.is_empty())
            .collect();
        Generator {
            templates,
            info: InstructionInfoFactory::new(),
            by_unit,
            bits,
            guests_only: false,
        }
    }

    /// With addresses in FS and GS as well, whose bases on the host are the host's.
    #[must_use]
    pub fn for_guests(self) -> Self {
        Generator {
            guests_only: true,
            ..self
        }
    }

    /// How many codes it chooses from.
    #[must_use]
    pub fn codes(&self) -> usize {
        self.templates.len()
    }

    /// A case of at most `len` instructions.
    pub fn case(&mut self, seed: u64, len: usize) -> Generated {
        let n = &mut Numbers::new(seed);
        let choice: &[u8] = if self.bits == 32 { &ASIDE32 } else { &ASIDE };
        let base = n.of(choice);
        let index = loop {
            let other = n.of(choice);
            if other != base {
                break other;
            }
        };
        let aside = Aside {
            base,
            index,
            narrow: self.bits == 32,
            segments: self.guests_only,
        };
        let mut registers = random_registers(n);
        let middle = DATA + DATA_LEN as u64 / 2;
        registers.gpr[usize::from(base)] = if n.one_in(8) {
            middle.wrapping_add(n.value() & 0x3f)
        } else {
            middle + (n.next() & 0x1c0)
        };
        registers.gpr[usize::from(index)] = if n.one_in(8) {
            n.next() & 0x3f
        } else {
            16 * (n.next() & 3)
        };
        registers.gpr[4] = middle - 0x400 + (n.next() & 0x3f8);
        let mut memory = Box::new([0; DATA_LEN]);
        for lane in memory.chunks_exact_mut(8) {
            lane.copy_from_slice(&n.lane().to_le_bytes());
        }
        // Kinds of instructions that come together.
        let group = n.below(self.by_unit.len());
        let mut instructions = Vec::new();
        let mut undefined = 0;
        // Where instructions begin that belong together, and jumps to one of them.
        let mut starts = Vec::new();
        let mut jumps = Vec::new();
        while instructions.len() < len {
            if n.one_in(10) {
                jumps.push((instructions.len(), starts.len() + 1 + n.below(3)));
                starts.push(instructions.len());
                instructions.push(jump(n, self.bits));
                continue;
            }
            let from = if n.one_in(4) {
                n.below(self.by_unit.len())
            } else {
                group
            };
            let Some(&chosen) = self.by_unit[from].get(n.below(self.by_unit[from].len())) else {
                continue;
            };
            let template = self.templates[chosen];
            // Anything for a control word, and the next instruction faults.
            let control = matches!(
                template.code.mnemonic(),
                Mnemonic::Fldcw | Mnemonic::Fldenv | Mnemonic::Frstor
            );
            if control && !n.one_in(16) {
                continue;
            }
            let Some(mut new) = self.instantiate(n, template, aside) else {
                continue;
            };
            let Some(last) = new.last() else { continue };
            undefined = undefined_flags(last);
            if !self.keeps_aside(&new, aside) {
                undefined = 0;
                continue;
            }
            starts.push(instructions.len());
            instructions.append(&mut new);
            if undefined != 0 {
                if n.one_in(3) {
                    break;
                }
                instructions.push(compare_registers(n, aside));
                undefined = 0;
            }
        }
        for (at, group) in jumps {
            let to = starts.get(group).or(starts.last()).copied().unwrap_or(at);
            if to > at {
                let target = fake_ip(to);
                if self.bits == 32 {
                    instructions[at].set_near_branch32(target as u32);
                } else {
                    instructions[at].set_near_branch64(target);
                }
            } else {
                instructions[at] = Instruction::with(if self.bits == 32 {
                    Code::Nopd
                } else {
                    Code::Nopw
                });
            }
        }
        let code = encode(self.bits, &instructions);
        Generated {
            case: Case {
                code32: self.bits == 32,
                code,
                registers,
                memory,
            },
            instructions,
            undefined,
        }
    }

    /// Whether the registers set aside stay what they are.
    fn keeps_aside(&mut self, new: &[Instruction], aside: Aside) -> bool {
        new.iter().all(|i| {
            let writes = self.info.info(i).used_registers().iter().any(|used| {
                // 32-bit code's registers are numbered as those of 64 bits are.
                let full = used.register().full_register();
                let number = full.number();
                let written = !matches!(
                    used.access(),
                    iced_x86::OpAccess::Read | iced_x86::OpAccess::CondRead
                );
                // The stack pointer is moved by pushes and pops alone.
                let stack = number == 4 && i.is_stack_instruction();
                full.is_gpr() && written && !aside.free(number) && !stack
            });
            !writes
        })
    }

    /// An instruction of this code, with what must come before it.
    fn instantiate(
        &self,
        n: &mut Numbers,
        template: Template,
        aside: Aside,
    ) -> Option<Vec<Instruction>> {
        let code = template.code;
        let mut i = Instruction::new();
        i.set_code(code);
        let mut before = Vec::new();
        let legacy8 = n.one_in(2);
        let aligned = !n.one_in(48);
        for (op, &kind) in code.op_code().op_kinds().iter().enumerate() {
            let op = op as u32;
            operand(n, &mut i, op, kind, aside, legacy8, aligned, &mut before)?;
        }
        prefixes(n, &mut i);
        preparation(n, &i, aside, &mut before);
        before.push(i);
        forget_pointers(&i, &mut before);
        // What cannot be encoded (AH with REX) is not used.
        let mut encoder = Encoder::new(self.bits);
        for i in &before {
            encoder.encode(i, CODE).ok()?;
        }
        Some(before)
    }
}

/// Codes whose results are the same on every processor in user mode, and that do no harm to this
/// process.
fn comparable(code: Code) -> bool {
    use Mnemonic as M;
    let privileged = code.is_privileged() || code.op_code().is_input_output();
    let jumps = code.flow_control() != FlowControl::Next;
    let unit_of_system = matches!(classify::unit(code), Unit::Xsave | Unit::Fxsave);
    let segment = code.op_code().op_kinds().iter().any(|op| {
        matches!(
            op,
            Op::seg_reg | Op::es | Op::cs | Op::ss | Op::ds | Op::fs | Op::gs | Op::mem_offs
        )
    });
    let different = matches!(
        code.mnemonic(),
        // Values that are nobody else's.
        M::Rdtsc
            | M::Rdtscp
            | M::Rdpid
            | M::Rdrand
            | M::Rdseed
            | M::Cpuid
            | M::Rdpmc
            | M::Rdsspd
            | M::Rdsspq
            // System tables and segment bases of this process.
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Lfs
            | M::Lgs
            | M::Lss
            | M::Lds
            | M::Les
            | M::Rdfsbase
            | M::Rdgsbase
            | M::Wrfsbase
            | M::Wrgsbase
            // Flags that differ between processes.
            | M::Pushf
            | M::Pushfd
            | M::Pushfq
            | M::Popf
            | M::Popfd
            | M::Popfq
            // The frame pointer would move.
            | M::Enter
            | M::Leave
            | M::Clflush
            | M::Clflushopt
            | M::Clwb
            // The address in RAX is anywhere, also where the host's kernel has its pages.
            | M::Clzero
            | M::Vmcall
            | M::Vmmcall
            // They may or may not stop.
            | M::Monitor
            | M::Mwait
            | M::Stac
            | M::Clac
    );
    // Bits by a number in a register are anywhere in memory.
    let far_bits = matches!(code.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && code.op_code().op_kinds().last() != Some(&Op::imm8);
    // With a register, these bytes are undefined on AMD's processors and do nothing on Intel's.
    let vendor = matches!(
        code,
        Code::Reservednop_rm16_r16_0F0D
            | Code::Reservednop_rm32_r32_0F0D
            | Code::Reservednop_rm64_r64_0F0D
    );
    // Counts beyond the operand have undefined results.
    let long_shift = matches!(code.mnemonic(), M::Shld | M::Shrd)
        && code.op_code().op_kinds().contains(&Op::r16_reg);
    let unknown = code
        .cpuid_features()
        .iter()
        .any(|f| matches!(f, CpuidFeature::SVM | CpuidFeature::VMX));
    !(privileged
        || jumps
        || unit_of_system
        || segment
        || different
        || far_bits
        || vendor
        || long_shift
        || unknown)
}

fn random_registers(n: &mut Numbers) -> Registers {
    let mut registers = Registers::new();
    for value in &mut registers.gpr {
        *value = n.value();
    }
    registers.rflags = n.next() & 0x8d5 | 2;
    let fpu = &mut registers.fpu;
    let avx = std::arch::is_x86_feature_detected!("avx");
    let upper = if avx { 576 } else { 832 };
    for range in [160..416, upper..832] {
        for lane in fpu[range].chunks_exact_mut(8) {
            lane.copy_from_slice(&n.lane().to_le_bytes());
        }
    }
    let mut mxcsr = 0x1f80_u32;
    if n.one_in(3) {
        mxcsr |= (n.next() as u32) & 0xe07f;
    }
    if n.one_in(12) {
        mxcsr &= !(n.next() as u32 & 0x1f80);
    }
    fpu[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    let mut fcw = 0x037f_u16;
    if n.one_in(3) {
        fcw = fcw & 0xf0ff | (n.next() as u16) & 0x0f00;
    }
    if n.one_in(12) {
        fcw &= !(n.next() as u16 & 0x3f);
    }
    fpu[0..2].copy_from_slice(&fcw.to_le_bytes());
    // No exception may wait already.
    let fsw = (n.next() as u16) & 0x7f40 & !0x80 | (n.next() as u16) & fcw & 0x3f;
    fpu[2..4].copy_from_slice(&fsw.to_le_bytes());
    fpu[4] = n.of(&[0, 0xff, 0x80, 0xc0, 0xe0, n.clone().next() as u8]);
    for st in 0..8 {
        let at = 32 + 16 * st;
        let any = n.next();
        let (mantissa, exponent) = match n.below(8) {
            0 => (0, any & 0x8000),
            1 => (1 << 63, 0x7fff | any & 0x8000),
            2 => (any | 3 << 62, 0x7fff | any & 0x8000),
            3 => (any | 1 << 63, any >> 8 & 0xffff),
            4 => (any, any >> 8 & 0xffff),
            5 => (any >> 1, any & 0x8000),
            _ => (any | 1 << 63, (0x3fff + (any >> 8 & 0x3f)) | any & 0x8000),
        };
        fpu[at..at + 8].copy_from_slice(&mantissa.to_le_bytes());
        fpu[at + 8..at + 10].copy_from_slice(&(exponent as u16).to_le_bytes());
    }
    registers
}

/// Gives an operand a register, an address or a number.
#[expect(
    clippy::too_many_arguments,
    reason = "one call, from the loop over operands"
)]
fn operand(
    n: &mut Numbers,
    i: &mut Instruction,
    op: u32,
    kind: Op,
    aside: Aside,
    legacy8: bool,
    aligned: bool,
    before: &mut Vec<Instruction>,
) -> Option<()> {
    let memory = n.one_in(2);
    let gpr = |n: &mut Numbers| loop {
        let number = n.below(aside.registers());
        if aside.free(number) {
            break number;
        }
    };
    let low = |number: usize, first: Register| first + number as u32;
    let register = |i: &mut Instruction, register: Register| {
        i.set_op_kind(op, OpKind::Register);
        i.set_op_register(op, register);
    };
    match kind {
        Op::mem
        | Op::r8_or_mem
        | Op::r16_or_mem
        | Op::r32_or_mem
        | Op::r64_or_mem
        | Op::xmm_or_mem
        | Op::ymm_or_mem
        | Op::mm_or_mem
            if kind == Op::mem || memory =>
        {
            i.set_op_kind(op, OpKind::Memory);
            address(n, i, aside, aligned);
        }
        Op::mem_vsib32x | Op::mem_vsib32y | Op::mem_vsib64x | Op::mem_vsib64y => {
            vsib(n, i, op, kind, aside, before);
        }
        Op::r8_or_mem | Op::r8_reg | Op::r8_opcode => {
            // AH, CH, DH, BH, or registers that need REX.
            let number = loop {
                let number = gpr(n);
                if number < 4 || !aside.narrow {
                    break number;
                }
            };
            let high = legacy8 && number < 4 && n.one_in(2);
            let name = if high {
                low(number, Register::AH)
            } else if number < 4 {
                low(number, Register::AL)
            } else {
                low(number - 4, Register::SPL)
            };
            register(i, name);
        }
        Op::r16_or_mem | Op::r16_reg | Op::r16_rm | Op::r16_opcode => {
            register(i, low(gpr(n), Register::AX));
        }
        Op::r32_or_mem | Op::r32_reg | Op::r32_rm | Op::r32_opcode | Op::r32_vvvv => {
            register(i, low(gpr(n), Register::EAX));
        }
        Op::r64_or_mem | Op::r64_reg | Op::r64_rm | Op::r64_opcode | Op::r64_vvvv => {
            register(i, low(gpr(n), Register::RAX));
        }
        Op::al => register(i, Register::AL),
        Op::cl => register(i, Register::CL),
        Op::ax => register(i, Register::AX),
        Op::dx => register(i, Register::DX),
        Op::eax => register(i, Register::EAX),
        Op::rax => register(i, Register::RAX),
        Op::st0 => register(i, Register::ST0),
        Op::sti_opcode => register(i, low(n.below(8), Register::ST0)),
        Op::mm_reg | Op::mm_rm | Op::mm_or_mem => register(i, low(n.below(8), Register::MM0)),
        Op::xmm_reg | Op::xmm_rm | Op::xmm_or_mem | Op::xmm_vvvv | Op::xmm_is4 => {
            register(i, low(n.below(aside.registers()), Register::XMM0));
        }
        Op::ymm_reg | Op::ymm_rm | Op::ymm_or_mem | Op::ymm_vvvv | Op::ymm_is4 => {
            register(i, low(n.below(aside.registers()), Register::YMM0));
        }
        Op::imm8 | Op::imm8_const_1 => {
            let second = op > 0 && i.op_kind(op - 1) == OpKind::Immediate8;
            if second {
                i.set_op_kind(op, OpKind::Immediate8_2nd);
                i.set_immediate8_2nd(n.next() as u8);
            } else {
                i.set_op_kind(op, OpKind::Immediate8);
                i.set_immediate8(if kind == Op::imm8_const_1 {
                    1
                } else {
                    n.value() as u8
                });
            }
        }
        Op::imm8sex16 => {
            i.set_op_kind(op, OpKind::Immediate8to16);
            i.set_immediate8to16(i16::from(n.value() as i8));
        }
        Op::imm8sex32 => {
            i.set_op_kind(op, OpKind::Immediate8to32);
            i.set_immediate8to32(i32::from(n.value() as i8));
        }
        Op::imm8sex64 => {
            i.set_op_kind(op, OpKind::Immediate8to64);
            i.set_immediate8to64(i64::from(n.value() as i8));
        }
        Op::imm16 => {
            i.set_op_kind(op, OpKind::Immediate16);
            i.set_immediate16(n.value() as u16);
        }
        Op::imm32 => {
            i.set_op_kind(op, OpKind::Immediate32);
            i.set_immediate32(n.value() as u32);
        }
        Op::imm32sex64 => {
            i.set_op_kind(op, OpKind::Immediate32to64);
            i.set_immediate32to64(i64::from(n.value() as i32));
        }
        Op::imm64 => {
            i.set_op_kind(op, OpKind::Immediate64);
            i.set_immediate64(n.value());
        }
        Op::seg_rSI if aside.narrow => i.set_op_kind(op, OpKind::MemorySegESI),
        Op::es_rDI if aside.narrow => i.set_op_kind(op, OpKind::MemoryESEDI),
        Op::seg_rDI if aside.narrow => i.set_op_kind(op, OpKind::MemorySegEDI),
        Op::seg_rSI => i.set_op_kind(op, OpKind::MemorySegRSI),
        Op::es_rDI => i.set_op_kind(op, OpKind::MemoryESRDI),
        Op::seg_rDI => i.set_op_kind(op, OpKind::MemorySegRDI),
        Op::seg_rBX_al => {
            i.set_op_kind(op, OpKind::Memory);
            i.set_memory_base(aside.address(3));
            i.set_memory_index(Register::AL);
        }
        _ => return None,
    }
    Some(())
}

/// An address in the data, relative to the registers set aside.
fn address(n: &mut Numbers, i: &mut Instruction, aside: Aside, aligned: bool) {
    let size = i.memory_size().size().max(1) as i64;
    let mut displacement = (n.next() & 0x1ff) as i64 - 0x100;
    if aligned {
        displacement &= if size >= 16 { -32 } else { -size.min(8) };
    }
    match n.below(192) {
        // Not there, at the end, not writable.
        0 => displacement += n.of(&[-0x1800, 0x1800]),
        1 => displacement = DATA_LEN as i64 / 2 - size + (n.next() & 3) as i64,
        2 => {
            let relative = !aside.narrow;
            i.set_memory_base(if relative {
                Register::RIP
            } else {
                Register::None
            });
            i.set_memory_displ_size(aside.displacement_size());
            i.set_memory_displacement64(READ_ONLY + (n.next() & 0xff0));
            return;
        }
        3..=12 => {
            // Relative to RIP, or absolute.
            let base = n.of(&[Register::RIP, Register::None]);
            i.set_memory_base(if aside.narrow { Register::None } else { base });
            i.set_memory_displ_size(aside.displacement_size());
            let at = DATA + DATA_LEN as u64 / 2;
            i.set_memory_displacement64(at.wrapping_add(displacement as u64));
            return;
        }
        21..=50 if aside.segments => {
            i.set_segment_prefix(n.of(&[Register::FS, Register::GS]));
            i.set_memory_index(aside.address(aside.index));
            i.set_memory_index_scale(n.of(&[1, 2, 4]));
            i.set_memory_displ_size(aside.displacement_size());
            i.set_memory_displacement64(aside.cut(0x800 + displacement));
            return;
        }
        13..=20 => {
            i.set_memory_base(aside.address(4));
            i.set_memory_displ_size(1);
            i.set_memory_displacement64(aside.cut(displacement.clamp(-128, 127)));
            return;
        }
        _ => {}
    }
    let narrow = n.one_in(16) || aside.narrow;
    let name = |number: u8| {
        if narrow {
            Register::EAX + u32::from(number)
        } else {
            GPR64[usize::from(number)]
        }
    };
    i.set_memory_base(name(aside.base));
    if n.one_in(2) {
        i.set_memory_index(name(aside.index));
        i.set_memory_index_scale(n.of(&[1, 2, 4, 8]));
    }
    i.set_memory_displ_size(if narrow { 4 } else { 8 });
    let displacement = if narrow {
        displacement as u64 & 0xffff_ffff
    } else {
        displacement as u64
    };
    i.set_memory_displacement64(displacement);
}

/// An address with a vector of indices, which instructions before it make small.
fn vsib(
    n: &mut Numbers,
    i: &mut Instruction,
    op: u32,
    kind: Op,
    aside: Aside,
    before: &mut Vec<Instruction>,
) {
    let number = n.below(aside.registers()) as u32;
    let (first, shift, code, keep) = match kind {
        Op::mem_vsib32x => (
            Register::XMM0,
            Code::VEX_Vpsrld_xmm_xmm_imm8,
            Code::VEX_Vpsrld_xmm_xmm_imm8,
            25,
        ),
        Op::mem_vsib32y => (
            Register::YMM0,
            Code::VEX_Vpsrld_ymm_ymm_imm8,
            Code::VEX_Vpsrld_ymm_ymm_imm8,
            25,
        ),
        Op::mem_vsib64x => (
            Register::XMM0,
            Code::VEX_Vpsrlq_xmm_xmm_imm8,
            Code::VEX_Vpsrlq_xmm_xmm_imm8,
            57,
        ),
        _ => (
            Register::YMM0,
            Code::VEX_Vpsrlq_ymm_ymm_imm8,
            Code::VEX_Vpsrlq_ymm_ymm_imm8,
            57,
        ),
    };
    debug_assert_eq!(shift, code);
    let index = first + number;
    let mut small = Instruction::new();
    small.set_code(code);
    small.set_op_kind(0, OpKind::Register);
    small.set_op_register(0, index);
    small.set_op_kind(1, OpKind::Register);
    small.set_op_register(1, index);
    small.set_op_kind(2, OpKind::Immediate8);
    small.set_immediate8(keep);
    before.push(small);
    i.set_op_kind(op, OpKind::Memory);
    i.set_memory_base(aside.address(aside.base));
    i.set_memory_index(index);
    i.set_memory_index_scale(n.of(&[1, 2, 4, 8]));
    i.set_memory_displ_size(aside.displacement_size());
    i.set_memory_displacement64((n.next() & 0xff) as i64 as u64);
}

/// LOCK and REP where they are allowed.
fn prefixes(n: &mut Numbers, i: &mut Instruction) {
    let info = i.code().op_code();
    let memory_first = i.op_count() > 0 && i.op0_kind() == OpKind::Memory;
    if info.can_use_lock_prefix() && memory_first && n.one_in(3) {
        i.set_has_lock_prefix(true);
    }
    if i.is_string_instruction() {
        match n.below(3) {
            0 if info.can_use_rep_prefix() => i.set_has_rep_prefix(true),
            1 if info.can_use_repne_prefix() => i.set_has_repne_prefix(true),
            _ => {}
        }
    }
}

/// `lea register, [base + displacement]`
fn point(n: &mut Numbers, register: Register, aside: Aside) -> Instruction {
    let mut lea = Instruction::new();
    lea.set_code(if aside.narrow {
        Code::Lea_r32_m
    } else {
        Code::Lea_r64_m
    });
    lea.set_op_kind(0, OpKind::Register);
    let number = register.number() as u8;
    lea.set_op_register(0, aside.address(number));
    lea.set_op_kind(1, OpKind::Memory);
    lea.set_memory_base(aside.address(aside.base));
    lea.set_memory_displ_size(aside.displacement_size());
    let displacement = (n.next() & 0x7ff) as i64 - 0x400;
    lea.set_memory_displacement64(aside.cut(displacement));
    lea
}

fn load(register: Register, value: u32) -> Instruction {
    let mut mov = Instruction::new();
    mov.set_code(Code::Mov_r32_imm32);
    mov.set_op_kind(0, OpKind::Register);
    mov.set_op_register(0, register);
    mov.set_op_kind(1, OpKind::Immediate32);
    mov.set_immediate32(value);
    mov
}

/// Implied addresses and counts.
fn preparation(n: &mut Numbers, i: &Instruction, aside: Aside, before: &mut Vec<Instruction>) {
    use Mnemonic as M;
    for op in 0..i.op_count() {
        match i.op_kind(op) {
            OpKind::MemorySegRSI | OpKind::MemorySegESI => {
                before.push(point(n, Register::RSI, aside));
            }
            OpKind::MemoryESRDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESEDI
            | OpKind::MemorySegEDI => {
                before.push(point(n, Register::RDI, aside));
            }
            _ => {}
        }
    }
    match i.mnemonic() {
        M::Ldmxcsr | M::Vldmxcsr => {
            // Values that exist, most of the time. Bit 17 exists on some processors.
            let mut mov = *i;
            mov.set_code(Code::Mov_rm32_imm32);
            mov.set_op_kind(1, OpKind::Immediate32);
            let reserved = if n.one_in(8) { 0xfffc_ffff } else { 0xffff };
            mov.set_immediate32((0x1f80 ^ n.value() as u32) & reserved);
            before.push(mov);
        }
        M::Xlatb => before.push(point(n, Register::RBX, aside)),
        M::Div | M::Idiv if !n.one_in(4) => before.push(load(Register::EDX, 0)),
        _ if i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix()) => {
            let count = n.next() as u32 & 0x1f;
            before.push(load(Register::ECX, count));
        }
        _ => {}
    }
}

/// A jump forward, whose target is still to come.
fn jump(n: &mut Numbers, bits: u32) -> Instruction {
    const WIDE: [Code; 21] = [
        Code::Jo_rel8_64,
        Code::Jno_rel8_64,
        Code::Jb_rel8_64,
        Code::Jae_rel8_64,
        Code::Je_rel8_64,
        Code::Jne_rel8_64,
        Code::Jbe_rel8_64,
        Code::Ja_rel8_64,
        Code::Js_rel8_64,
        Code::Jns_rel8_64,
        Code::Jp_rel8_64,
        Code::Jnp_rel8_64,
        Code::Jl_rel8_64,
        Code::Jge_rel8_64,
        Code::Jle_rel8_64,
        Code::Jg_rel8_64,
        Code::Jmp_rel8_64,
        Code::Jrcxz_rel8_64,
        Code::Loop_rel8_64_RCX,
        Code::Loope_rel8_64_RCX,
        Code::Call_rel32_64,
    ];
    const NARROW: [Code; 21] = [
        Code::Jo_rel8_32,
        Code::Jno_rel8_32,
        Code::Jb_rel8_32,
        Code::Jae_rel8_32,
        Code::Je_rel8_32,
        Code::Jne_rel8_32,
        Code::Jbe_rel8_32,
        Code::Ja_rel8_32,
        Code::Js_rel8_32,
        Code::Jns_rel8_32,
        Code::Jp_rel8_32,
        Code::Jnp_rel8_32,
        Code::Jl_rel8_32,
        Code::Jge_rel8_32,
        Code::Jle_rel8_32,
        Code::Jg_rel8_32,
        Code::Jmp_rel8_32,
        Code::Jecxz_rel8_32,
        Code::Loop_rel8_32_ECX,
        Code::Loopne_rel8_32_ECX,
        Code::Call_rel32_32,
    ];
    let mut i = Instruction::new();
    i.set_code(n.of(if bits == 32 { &NARROW } else { &WIDE }));
    i.set_op_kind(
        0,
        if bits == 32 {
            OpKind::NearBranch32
        } else {
            OpKind::NearBranch64
        },
    );
    i
}

/// Behind FNSTENV and FNSAVE: clears what they stored of the last instruction, which processors
/// keep in different ways.
fn forget_pointers(i: &Instruction, row: &mut Vec<Instruction>) {
    let (code, size, fields) = match i.code() {
        Code::Fnstenv_m14byte | Code::Fnsave_m94byte => (Code::Mov_rm16_imm16, 2, 3..7),
        Code::Fnstenv_m28byte | Code::Fnsave_m108byte => (Code::Mov_rm32_imm32, 4, 3..7),
        _ => return,
    };
    for field in fields {
        let mut mov = *i;
        mov.set_code(code);
        let place = i.memory_displacement64().wrapping_add(field * size);
        let narrow = i.memory_displ_size() == 4;
        mov.set_memory_displacement64(if narrow { place & 0xffff_ffff } else { place });
        if i.memory_displ_size() == 1 {
            mov.set_memory_displ_size(if i.memory_base().size() == 4 { 4 } else { 8 });
        }
        let kind = if size == 2 {
            OpKind::Immediate16
        } else {
            OpKind::Immediate32
        };
        mov.set_op_kind(1, kind);
        mov.set_immediate32(0);
        row.push(mov);
    }
}

/// Sets all status flags: `cmp eax, ecx` of random registers.
fn compare_registers(n: &mut Numbers, aside: Aside) -> Instruction {
    let mut cmp = Instruction::new();
    cmp.set_code(Code::Cmp_r32_rm32);
    for op in 0..2 {
        cmp.set_op_kind(op, OpKind::Register);
        cmp.set_op_register(op, Register::EAX + n.below(aside.registers()) as u32);
    }
    cmp
}

/// Bits of RFLAGS that an instruction leaves undefined.
#[must_use]
pub fn undefined_flags(i: &Instruction) -> u64 {
    use Mnemonic as M;
    let bits = i.rflags_undefined();
    let mut out = [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
    ]
    .iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, flag)| all | flag);
    // By a count that is larger than the operand.
    let shift = matches!(
        i.mnemonic(),
        M::Shl | M::Shr | M::Sal | M::Sar | M::Shld | M::Shrd
    );
    if shift {
        out |= rflags::OF | rflags::AF | rflags::CF;
    }
    if matches!(i.mnemonic(), M::Rol | M::Ror | M::Rcl | M::Rcr) {
        out |= rflags::OF;
    }
    out
}

/// By which jumps know an instruction before it has an address.
fn fake_ip(index: usize) -> u64 {
    CODE / 2 + 16 * index as u64
}

/// The bytes of a row of instructions at [`CODE`].
fn encode(bits: u32, instructions: &[Instruction]) -> Vec<u8> {
    let mut row = instructions.to_vec();
    for (index, i) in row.iter_mut().enumerate() {
        i.set_ip(fake_ip(index));
        i.set_len(0);
    }
    let block = InstructionBlock::new(&row, CODE);
    let encoded = BlockEncoder::encode(bits, block, BlockEncoderOptions::NONE);
    encoded.map(|e| e.code_buffer).unwrap_or_default()
}
