//! The code between Rust and the blocks.

use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};
use processor::state::XsaveArea;

use crate::TranslatorError;
use crate::cache::Cache;
use crate::emit::{Alu, Asm, Cond, Mem, Reg, Short, host};
use crate::frame::{frame, gpr};

/// Offsets of the thunks in the cache.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Thunks {
    /// `extern "sysv64" fn(frame, code) -> exit`: runs code until it exits.
    pub(crate) enter: usize,
    /// The same, with the vector registers loaded first.
    pub(crate) enter_with_vectors: usize,
    /// Returns to Rust; the exit's number is in ECX.
    pub(crate) exit: usize,
    /// Loads the vector registers and goes on at R14; leaves by the exit in R15 if the guest has
    /// unmasked SIMD exceptions.
    pub(crate) vectors: usize,
    /// Goes on at R14 by the jump cache; leaves by the exit in ECX if that does not know it, or
    /// if there were too many of these jumps.
    /// For the supervisor's, and for programs'.
    pub(crate) elsewhere: [usize; 2],
    /// Finds the stack's page in each view of the TLB ([`crate::memory::find_stack`]).
    pub(crate) stack: [usize; 3],
}

const SAVED: [Reg; 6] = [3, 5, 12, 13, 14, 15];

/// Guest registers whose host register is their own.
const SAME: [Reg; 10] = [0, 2, 3, 5, 6, 7, 8, 9, 10, 11];

/// SSE state's bit in XCR0.
pub(crate) const SSE: u32 = 1 << 1;
/// AVX state's.
pub(crate) const AVX: u32 = 1 << 2;

/// Exception masks of MXCSR, which are at this offset in an XSAVE area.
const MXCSR_MASKS: i32 = 0x1f80;
const MXCSR: i32 = 24;

/// Writes the thunks at the cache's beginning. `components`: the vector state to save, by the
/// bits of XCR0.
pub(crate) fn write(
    cache: &mut Cache,
    components: u32,
    bmi2: bool,
) -> Result<Thunks, TranslatorError> {
    let mut thunks = Thunks {
        exit: cache.next(),
        ..Thunks::default()
    };
    let mut a = Asm::default();
    exit(&mut a, components)?;
    place(cache, &a)?;

    thunks.vectors = cache.next();
    let mut a = Asm::default();
    vectors(&mut a, components)?;
    let leave = a.jmp();
    a.link(leave, thunks.exit as i64 - thunks.vectors as i64);
    place(cache, &a)?;

    for who in 0..thunks.elsewhere.len() {
        let here = cache.next();
        thunks.elsewhere[who] = here;
        let mut a = Asm::default();
        elsewhere(&mut a, who as u8, bmi2);
        let leave = a.jmp();
        a.link(leave, thunks.exit as i64 - here as i64);
        place(cache, &a)?;
    }

    for view in 0..thunks.stack.len() {
        let here = cache.next();
        thunks.stack[view] = here;
        let mut a = Asm::default();
        crate::memory::find_stack(&mut a, view);
        let leave = a.jmp();
        a.link(leave, thunks.exit as i64 - here as i64);
        place(cache, &a)?;
    }

    thunks.enter = cache.next();
    let mut a = Asm::default();
    enter(&mut a);
    a.load(host::R14, frame!(scratch));
    a.jmp_reg(host::R15);
    place(cache, &a)?;

    thunks.enter_with_vectors = cache.next();
    let mut a = Asm::default();
    enter(&mut a);
    a.mov(host::R14, host::R15);
    a.constant(host::R15, u64::from(crate::exits::NONE));
    let go = a.jmp();
    a.link(go, thunks.vectors as i64 - thunks.enter_with_vectors as i64);
    place(cache, &a)?;
    cache.keep();
    Ok(thunks)
}

fn place(cache: &mut Cache, a: &Asm) -> Result<(), TranslatorError> {
    if cache.append(&a.code) {
        Ok(())
    } else {
        Err(TranslatorError::Full)
    }
}

/// The XSAVE area's places of one register, relative to RCX.
fn places(n: u32) -> (MemoryOperand, MemoryOperand) {
    let at = |offset: usize| {
        MemoryOperand::with_base_displ(Register::RCX, offset as i64 + 16 * i64::from(n))
    };
    (at(XsaveArea::XMM), at(XsaveArea::YMM_HIGH))
}

fn encode(a: &mut Asm, i: Result<Instruction, IcedError>) -> Result<(), TranslatorError> {
    let mut encoder = Encoder::new(64);
    i.and_then(|i| encoder.encode(&i, 0))
        .map_err(|_| TranslatorError::Full)?;
    a.bytes(&encoder.take_buffer());
    Ok(())
}

fn save_register(a: &mut Asm, n: u32, components: u32) -> Result<(), TranslatorError> {
    let (low, high) = places(n);
    if components & AVX == 0 {
        let code = Code::Movaps_xmmm128_xmm;
        return encode(a, Instruction::with2(code, low, Register::XMM0 + n));
    }
    let code = Code::VEX_Vmovaps_xmmm128_xmm;
    encode(a, Instruction::with2(code, low, Register::XMM0 + n))?;
    let code = Code::VEX_Vextractf128_xmmm128_ymm_imm8;
    encode(a, Instruction::with3(code, high, Register::YMM0 + n, 1))
}

fn load_register(a: &mut Asm, n: u32, components: u32) -> Result<(), TranslatorError> {
    let (low, high) = places(n);
    if components & AVX == 0 {
        let code = Code::Movaps_xmm_xmmm128;
        return encode(a, Instruction::with2(code, Register::XMM0 + n, low));
    }
    let code = Code::VEX_Vmovaps_xmm_xmmm128;
    encode(a, Instruction::with2(code, Register::XMM0 + n, low))?;
    let code = Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8;
    let ymm = Register::YMM0 + n;
    encode(a, Instruction::with4(code, ymm, ymm, high, 1))
}

fn enter(a: &mut Asm) {
    const RSI: Reg = 6;
    const RDI: Reg = 7;
    for reg in SAVED {
        a.push(reg);
    }
    let mut saved = frame!(host_rsp);
    saved.base = Some(RDI);
    a.store(saved, host::RSP);
    a.mov(host::R15, RSI);
    a.mov(host::RSP, RDI);
    a.push_mem(frame!(flags));
    a.popfq();
    a.load(host::R12, gpr(4));
    a.load(host::R13, gpr(1));
    for reg in SAME {
        a.load(reg, gpr(reg));
    }
}

fn exit(a: &mut Asm, components: u32) -> Result<(), TranslatorError> {
    for reg in SAME {
        a.store(gpr(reg), reg);
    }
    a.store(gpr(4), host::R12);
    a.store(gpr(1), host::R13);
    a.store(frame!(scratch), host::R14);
    a.store(frame!(scratch, 1u8), host::R15);
    a.pushfq();
    a.pop_mem(frame!(flags));
    // CLD
    a.bytes(&[0xfc]);
    // The number, in RBX.
    a.mov32(3, host::RCX);
    a.load(host::RCX, frame!(vectors_away));
    let away = a.jump_if_set(host::RCX);
    a.load(host::RCX, frame!(fpu));
    for n in 0..16 {
        save_register(a, n, components)?;
    }
    a.stmxcsr(Mem::at(host::RCX, MXCSR));
    a.or8(
        Mem::at(host::RCX, XsaveArea::HEADER as i32),
        components as u8,
    );
    a.store_constant(frame!(vectors_away), 1);
    a.ldmxcsr(frame!(mxcsr));
    if components & AVX != 0 {
        // VZEROUPPER
        a.bytes(&[0xc5, 0xf8, 0x77]);
    }
    a.link_here(away);
    a.mov32(host::RAX, 3);
    a.load(host::RSP, frame!(host_rsp));
    for reg in SAVED.iter().rev() {
        a.pop(*reg);
    }
    // RET
    a.bytes(&[0xc3]);
    Ok(())
}

/// Flags stay. Ends where the exit, in ECX, is to be taken.
fn elsewhere(a: &mut Asm, who: u8, bmi2: bool) {
    a.store(frame!(parked), host::RCX);
    a.load(host::RCX, frame!(patience, who));
    a.lea(host::RCX, Mem::at(host::RCX, -1));
    a.store(frame!(patience, who), host::RCX);
    let over = a.jrcxz();
    let hit = find_jump(a, bmi2);
    let absent = a.jmp_short();
    let _reaches = a.land(hit);
    a.jmp_mem(Mem::at(host::R15, 8));
    let _reaches = a.land(over);
    let _reaches = a.land(absent);
    a.load(host::RCX, frame!(parked));
}

/// Looks the address in R14 up in the jump cache. The jump that is returned is taken if it is
/// there, in the entry at R15. RCX is lost; flags stay.
pub(crate) fn find_jump(a: &mut Asm, bmi2: bool) -> Short {
    // The index of `jumps`, times the size of an entry.
    if bmi2 {
        a.rorx(host::R15, host::R14, 12);
        a.lea(host::R15, Mem::sum(host::R15, host::R14, 0));
        a.pdep(host::R15, host::R15, frame!(jump_mask));
    } else {
        a.pushfq();
        a.mov32(host::R15, host::R14);
        a.shr32(host::R15, 12);
        a.alu(Alu::Add, true, host::R15, host::R14);
        for _ in 0..4 {
            a.alu(Alu::Add, true, host::R15, host::R15);
        }
        let mask = crate::jumps::JUMP_MASK as i32;
        a.alu_constant(Alu::And, true, host::R15, mask);
        a.popfq();
    }
    a.load(host::RCX, frame!(jumps));
    a.lea(host::R15, Mem::sum(host::R15, host::RCX, 0));
    a.load(host::RCX, Mem::at(host::R15, 0));
    a.lea(host::RCX, Mem::sum(host::RCX, host::R14, 1));
    a.jrcxz()
}

fn vectors(a: &mut Asm, components: u32) -> Result<(), TranslatorError> {
    a.pushfq();
    a.pop_mem(frame!(flags));
    a.store(frame!(spare), host::RAX);
    a.load(host::RCX, frame!(fpu));
    a.load32(host::RAX, Mem::at(host::RCX, MXCSR));
    a.alu_constant(Alu::And, false, host::RAX, MXCSR_MASKS);
    a.alu_constant(Alu::Cmp, false, host::RAX, MXCSR_MASKS);
    let unmasked = a.jcc(Cond::NE);
    for n in 0..16 {
        load_register(a, n, components)?;
    }
    a.ldmxcsr(Mem::at(host::RCX, MXCSR));
    a.store_constant(frame!(vectors_away), 0);
    let restore = |a: &mut Asm| {
        a.push_mem(frame!(flags));
        a.popfq();
        a.load(host::RAX, frame!(spare));
    };
    restore(a);
    a.jmp_reg(host::R14);
    a.link_here(unmasked);
    restore(a);
    a.mov32(host::RCX, host::R15);
    // The caller adds the jump to the exit.
    Ok(())
}
