//! Random instructions of all codes that are translated, against the interpreter.

use iced_x86::code_asm::*;
use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess,
    OpCodeOperandKind as Op, OpKind, Register,
};
use processor::classify::{self, Class};

use super::guest::{CODE, DATA, DATA_LEN, compare_with, options};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 20) % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What is needed besides the instruction.
struct Unit {
    instruction: Instruction,
    /// Registers that must have a value before.
    set: Vec<(Register, u64)>,
}

fn gpr(r: &mut Random, size: usize) -> Register {
    let n = r.below(16) as u32;
    match size {
        1 => r.pick(&[Register::AL + n % 8, Register::SPL + n % 12]),
        2 => Register::AX + n,
        4 => Register::EAX + n,
        _ => Register::RAX + n,
    }
}

/// An instruction of this code with random operands, if this test knows how.
fn random(r: &mut Random, code: Code) -> Option<Unit> {
    let info = code.op_code();
    let mut i = Instruction::default();
    i.set_code(code);
    let mut set = Vec::new();
    for op in 0..info.op_count() {
        let xmm = Register::XMM0 + r.below(16) as u32;
        let ymm = Register::YMM0 + r.below(16) as u32;
        let memory_or = |r: &mut Random, register: Register| {
            if r.one_in(2) { None } else { Some(register) }
        };
        let register = match info.op_kind(op) {
            Op::r8_reg | Op::r8_opcode => Some(gpr(r, 1)),
            Op::r16_reg | Op::r16_opcode | Op::r16_rm => Some(gpr(r, 2)),
            Op::r32_reg | Op::r32_opcode | Op::r32_rm | Op::r32_vvvv => Some(gpr(r, 4)),
            Op::r64_reg | Op::r64_opcode | Op::r64_rm | Op::r64_vvvv => Some(gpr(r, 8)),
            Op::r8_or_mem => {
                let register = gpr(r, 1);
                memory_or(r, register)
            }
            Op::r16_or_mem => {
                let register = gpr(r, 2);
                memory_or(r, register)
            }
            Op::r32_or_mem => {
                let register = gpr(r, 4);
                memory_or(r, register)
            }
            Op::r64_or_mem => {
                let register = gpr(r, 8);
                memory_or(r, register)
            }
            Op::xmm_reg | Op::xmm_rm | Op::xmm_vvvv | Op::xmm_is4 | Op::xmm_is5 => Some(xmm),
            Op::ymm_reg | Op::ymm_rm | Op::ymm_vvvv | Op::ymm_is4 | Op::ymm_is5 => Some(ymm),
            Op::xmm_or_mem => memory_or(r, xmm),
            Op::ymm_or_mem => memory_or(r, ymm),
            Op::mem => None,
            Op::al => Some(Register::AL),
            Op::cl => Some(Register::CL),
            Op::ax => Some(Register::AX),
            Op::eax => Some(Register::EAX),
            Op::rax => Some(Register::RAX),
            Op::imm8 | Op::imm8_const_1 => {
                i.set_op_kind(op, OpKind::Immediate8);
                i.set_immediate8(if info.op_kind(op) == Op::imm8 {
                    r.next() as u8
                } else {
                    1
                });
                continue;
            }
            Op::imm8sex16 => {
                i.set_op_kind(op, OpKind::Immediate8to16);
                i.set_immediate8to16(i16::from(r.next() as i8));
                continue;
            }
            Op::imm8sex32 => {
                i.set_op_kind(op, OpKind::Immediate8to32);
                i.set_immediate8to32(i32::from(r.next() as i8));
                continue;
            }
            Op::imm8sex64 => {
                i.set_op_kind(op, OpKind::Immediate8to64);
                i.set_immediate8to64(i64::from(r.next() as i8));
                continue;
            }
            Op::imm16 => {
                i.set_op_kind(op, OpKind::Immediate16);
                i.set_immediate16(r.next() as u16);
                continue;
            }
            Op::imm32 => {
                i.set_op_kind(op, OpKind::Immediate32);
                i.set_immediate32(r.next() as u32);
                continue;
            }
            Op::imm32sex64 => {
                i.set_op_kind(op, OpKind::Immediate32to64);
                i.set_immediate32to64(i64::from(r.next() as i32));
                continue;
            }
            Op::imm64 => {
                i.set_op_kind(op, OpKind::Immediate64);
                i.set_immediate64(r.next());
                continue;
            }
            _ => return None,
        };
        match register {
            Some(register) => {
                i.set_op_kind(op, OpKind::Register);
                i.set_op_register(op, register);
            }
            None => {
                i.set_op_kind(op, OpKind::Memory);
                address(r, &mut i, &mut set);
            }
        }
    }
    // Registers of the operands that the address overwrites are fine; bit strings are not.
    let wild = matches!(
        i.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    );
    if wild && i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register {
        return None;
    }
    Some(Unit {
        instruction: i,
        set,
    })
}

/// A memory operand in the data.
fn address(r: &mut Random, i: &mut Instruction, set: &mut Vec<(Register, u64)>) {
    let mut at = DATA + 0x80 + r.below(DATA_LEN - 0x200);
    if r.one_in(2) {
        at &= !31;
    }
    if r.one_in(8) {
        // Around the end of a page.
        at = DATA + 0x1000 * (1 + r.below(3)) - r.below(34);
    }
    match r.below(8) {
        0 => {
            i.set_memory_base(Register::FS);
            i.set_segment_prefix(Register::FS);
            i.set_memory_base(Register::None);
            i.set_memory_displacement64(at.wrapping_sub(DATA + 0x100));
            i.set_memory_displ_size(8);
            return;
        }
        1 => {
            i.set_memory_base(Register::RIP);
            i.set_memory_displacement64(at);
            i.set_memory_displ_size(8);
            return;
        }
        _ => {}
    }
    let narrow = r.one_in(6);
    let first = if narrow { Register::EAX } else { Register::RAX };
    let base = r.below(16) as u32;
    i.set_memory_base(first + base);
    let mut rest = at;
    if r.one_in(2) {
        let index = r.below(16) as u32;
        if index != 4 && index != base {
            let scale = 1 << r.below(4);
            let value = r.below(64);
            i.set_memory_index(first + index);
            i.set_memory_index_scale(scale);
            set.push((Register::RAX + index, value));
            rest -= value * u64::from(scale);
        }
    }
    let displacement = match r.below(3) {
        0 => 0,
        1 => r.below(200) as i64 - 100,
        _ => r.below(1 << 20) as i64 - (1 << 19),
    };
    i.set_memory_displacement64(displacement as u64);
    i.set_memory_displ_size(if displacement == 0 { 0 } else { 8 });
    if narrow && displacement != 0 {
        i.set_memory_displacement64(u64::from(displacement as u32));
        i.set_memory_displ_size(4);
    }
    set.push((Register::RAX + base, rest.wrapping_sub(displacement as u64)));
}

/// What differs between processors, or what this test cannot repeat.
fn unfit(code: Code) -> bool {
    let narrow = matches!(code.op_code().op0_kind(), Op::r16_or_mem);
    if narrow && matches!(code.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) {
        // Undefined for counts above 16.
        return true;
    }
    matches!(
        code.mnemonic(),
        Mnemonic::Rdrand
            | Mnemonic::Rdseed
            | Mnemonic::Rdpid
            | Mnemonic::Rdtsc
            | Mnemonic::Rdtscp
            // Approximations.
            | Mnemonic::Rcpps
            | Mnemonic::Rcpss
            | Mnemonic::Rsqrtps
            | Mnemonic::Rsqrtss
            // Where to is what other tests are about.
            | Mnemonic::Jmp
            | Mnemonic::Call
            | Mnemonic::Ret
            // Undefined results.
            | Mnemonic::Bsf
            | Mnemonic::Bsr
    )
}

/// Codes that this module makes instructions of.
fn codes() -> Vec<Code> {
    Code::values()
        .filter(|code| {
            matches!(classify::of(*code), Class::Copy | Class::Rewrite)
                && code.op_code().mode64()
                && !unfit(*code)
        })
        .collect()
}

/// Whether the random destination is the stack pointer, on which an exception's frame goes.
fn touches_stack(i: &Instruction, infos: &mut InstructionInfoFactory) -> bool {
    infos.info(i).used_registers().iter().any(|used| {
        used.register().full_register() == Register::RSP
            && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
    })
}

/// A program of random instructions.
fn program(seed: u64, codes: &[Code], length: usize) -> Vec<u8> {
    let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut infos = InstructionInfoFactory::new();
    let mut encoder = Encoder::new(64);
    let mut code = Vec::new();
    let mut put = |code: &mut Vec<u8>, i: &Instruction| {
        let at = CODE + code.len() as u64;
        let encoded = encoder.encode(i, at).is_ok();
        let bytes = encoder.take_buffer();
        if encoded {
            code.extend_from_slice(&bytes);
        }
        encoded
    };
    let mut made = 0;
    for _ in 0..20 * length {
        if made == length {
            break;
        }
        let kind = r.pick(codes);
        let Some(unit) = random(&mut r, kind) else {
            continue;
        };
        let i = unit.instruction;
        if i.memory_size() == MemorySize::Unknown && i.op_kinds().any(|k| k == OpKind::Memory) {
            continue;
        }
        if touches_stack(&i, &mut infos) {
            continue;
        }
        let len = code.len();
        for (register, value) in &unit.set {
            let mov = Instruction::with2(Code::Mov_r64_imm64, *register, *value).unwrap();
            put(&mut code, &mov);
        }
        if !put(&mut code, &i) {
            code.truncate(len);
            continue;
        }
        if unit
            .set
            .iter()
            .any(|(register, _)| *register == Register::RSP)
        {
            let mov = Instruction::with2(
                Code::Mov_r64_imm64,
                Register::RSP,
                super::guest::STACK - 0x800,
            );
            put(&mut code, &mov.unwrap());
        }
        if i.rflags_undefined() != 0 {
            // Makes all flags known again.
            let mut a = CodeAssembler::new(64).unwrap();
            a.cmp(rbp, r9).unwrap();
            code.extend(a.assemble(0).unwrap());
        }
        made += 1;
    }
    code.extend([0xf4; 4]);
    code
}

#[test]
fn random_programs() {
    let codes = codes();
    assert!(codes.len() > 1000, "{}", codes.len());
    for seed in 1..100 {
        let code = program(seed, &codes, 12);
        compare_with(&code, &[options()[seed as usize % 4]]);
    }
}

#[test]
fn every_code_among_a_few() {
    for (n, codes) in codes().chunks(8).enumerate() {
        let code = program(n as u64 + 7, codes, 20);
        compare_with(&code, &[options()[n % 4]]);
    }
}
