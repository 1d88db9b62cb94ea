//! The table itself.

use std::sync::LazyLock;

use iced_x86::{Code, EncodingKind, Mnemonic, OpCodeOperandKind as Op};

use super::feature::{self, Gates};

/// What may be done with an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// May be copied verbatim into code that runs in ring 3 of the host, with its registers
    /// renamed and its memory operand's address replaced.
    ///
    /// Such an instruction reads and writes only the registers that its operands name, XMM0 where
    /// it is an implied operand, the status flags and MXCSR's flags; it has at most one memory
    /// operand, which is explicit and of the size that the decoder tells; it has no privileged
    /// effect, changes no control flow, and does not use the stack.
    ///
    /// What remains for whoever copies it: the guest's features ([`super::check`]), misaligned
    /// operands, and SIMD exceptions that the guest has unmasked.
    Copy,
    /// A plain user-mode instruction that must not be copied as it is: it names registers
    /// implicitly, addresses memory implicitly or beyond its operand, or changes control flow.
    /// A translator may have its own code for it; if not, it is a [`Class::Helper`].
    Rewrite,
    /// Only the interpreter runs it.
    Helper,
    /// There is no such instruction: #UD.
    Undefined,
}

/// The state that an instruction needs, by which control bits forbid it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// General registers, and what only kernels use.
    Integer,
    /// FWAIT.
    Wait,
    /// x87.
    X87,
    /// MMX registers, but no XMM register.
    Mmx,
    /// XMM registers or MXCSR, in legacy encoding.
    Sse,
    /// XMM and YMM registers or MXCSR, in VEX encoding.
    Avx,
    /// General registers in VEX encoding.
    VexInteger,
    /// FXSAVE and FXRSTOR.
    Fxsave,
    /// The XSAVE family with XGETBV and XSETBV.
    Xsave,
}

/// One code.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) class: Class,
    pub(super) unit: Unit,
    pub(super) gates: Gates,
}

static TABLE: LazyLock<Vec<Entry>> = LazyLock::new(|| Code::values().map(describe).collect());

/// The entry of this code.
pub(super) fn entry(code: Code) -> Entry {
    // Codes number the table's entries without gaps.
    TABLE.get(code as usize).copied().unwrap_or(UNDEFINED)
}

const UNDEFINED: Entry = Entry {
    class: Class::Undefined,
    unit: Unit::Integer,
    gates: [0; 2],
};

fn describe(code: Code) -> Entry {
    let info = code.op_code();
    let exists = info.is_instruction()
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && !never(code);
    let gates = match feature::gates(code.cpuid_features()) {
        _ if ungated(code) => Gates::default(),
        Some(gates) => gates,
        None => return UNDEFINED,
    };
    if !exists {
        return UNDEFINED;
    }
    let unit = unit(code);
    Entry {
        class: class(code, unit),
        unit,
        gates,
    }
}

/// Codes that raise #UD by definition, that this processor leaves out, or that the decoder makes
/// only when asked: FWAIT together with the instruction behind it.
fn never(code: Code) -> bool {
    use Mnemonic as M;
    matches!(code.mnemonic(), M::INVALID | M::Ud0 | M::Ud1 | M::Ud2)
        || matches!(
            code.mnemonic(),
            M::Feni
                | M::Fdisi
                | M::Finit
                | M::Fclex
                | M::Fstcw
                | M::Fstenv
                | M::Fsave
                | M::Fstsw
                | M::Fsetpm
        )
}

/// Codes that exist without the feature that the decoder has them under: hypercalls work without
/// nested virtualization, reads of the shadow stack sit in the space of reserved NOPs and are
/// NOPs where there is none (SDM vol. 2B "RDSSPD"), and TZCNT and LZCNT are BSF and BSR.
fn ungated(code: Code) -> bool {
    matches!(
        code,
        Code::Vmcall
            | Code::Vmmcall
            | Code::Rdsspd_r32
            | Code::Rdsspq_r64
            | Code::Tzcnt_r16_rm16
            | Code::Tzcnt_r32_rm32
            | Code::Tzcnt_r64_rm64
    )
}

fn is_xmm(op: Op) -> bool {
    matches!(
        op,
        Op::xmm_reg
            | Op::xmm_rm
            | Op::xmm_or_mem
            | Op::xmm_vvvv
            | Op::xmm_is4
            | Op::ymm_reg
            | Op::ymm_rm
            | Op::ymm_or_mem
            | Op::ymm_vvvv
            | Op::ymm_is4
    )
}

fn is_mm(op: Op) -> bool {
    matches!(op, Op::mm_reg | Op::mm_rm | Op::mm_or_mem)
}

fn is_st(op: Op) -> bool {
    matches!(op, Op::st0 | Op::sti_opcode)
}

fn unit(code: Code) -> Unit {
    use Mnemonic as M;
    let ops = code.op_code().op_kinds();
    let vex = code.encoding() == EncodingKind::VEX;
    match code.mnemonic() {
        M::Wait => return Unit::Wait,
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => return Unit::Fxsave,
        M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsavec
        | M::Xsavec64
        | M::Xsaves
        | M::Xsaves64
        | M::Xrstor
        | M::Xrstor64
        | M::Xrstors
        | M::Xrstors64
        | M::Xgetbv
        | M::Xsetbv => return Unit::Xsave,
        M::Emms => return Unit::Mmx,
        M::Ldmxcsr | M::Stmxcsr => return Unit::Sse,
        M::Vldmxcsr | M::Vstmxcsr | M::Vzeroall | M::Vzeroupper => return Unit::Avx,
        _ => {}
    }
    let x87 = code.cpuid_features().iter().any(|f| {
        use iced_x86::CpuidFeature as F;
        matches!(f, F::FPU | F::FPU287 | F::FPU387)
    });
    if x87 || ops.iter().any(|&op| is_st(op)) {
        Unit::X87
    } else if ops.iter().any(|&op| is_xmm(op)) {
        if vex { Unit::Avx } else { Unit::Sse }
    } else if ops.iter().any(|&op| is_mm(op)) {
        Unit::Mmx
    } else if vex {
        Unit::VexInteger
    } else {
        Unit::Integer
    }
}

fn class(code: Code, unit: Unit) -> Class {
    match unit {
        // Their exceptions come with the next instruction, and their last instruction pointer
        // would be the host's.
        Unit::Wait | Unit::X87 | Unit::Mmx | Unit::Fxsave | Unit::Xsave => Class::Helper,
        Unit::Sse | Unit::Avx => vector(code),
        Unit::Integer | Unit::VexInteger => integer(code),
    }
}

/// Vector instructions are all alike, but for those that follow.
fn vector(code: Code) -> Class {
    use Mnemonic as M;
    // MMX registers: see `class`.
    if code.op_code().op_kinds().iter().any(|&op| is_mm(op)) {
        return Class::Helper;
    }
    match code.mnemonic() {
        // Several memory operands, or one of which only parts are accessed.
        M::Vpgatherdd
        | M::Vpgatherdq
        | M::Vpgatherqd
        | M::Vpgatherqq
        | M::Vgatherdps
        | M::Vgatherdpd
        | M::Vgatherqps
        | M::Vgatherqpd
        | M::Maskmovdqu
        | M::Vmaskmovdqu
        | M::Vmaskmovps
        | M::Vmaskmovpd
        | M::Vpmaskmovd
        | M::Vpmaskmovq => Class::Helper,
        // The masks of SIMD exceptions.
        M::Ldmxcsr | M::Stmxcsr | M::Vldmxcsr | M::Vstmxcsr => Class::Helper,
        // RAX, RDX, and RCX or XMM0.
        M::Pcmpestri
        | M::Pcmpestri64
        | M::Pcmpestrm
        | M::Pcmpestrm64
        | M::Pcmpistri
        | M::Pcmpistrm
        | M::Vpcmpestri
        | M::Vpcmpestri64
        | M::Vpcmpestrm
        | M::Vpcmpestrm64
        | M::Vpcmpistri
        | M::Vpcmpistrm => Class::Rewrite,
        _ => Class::Copy,
    }
}

/// Operands of integer instructions that can be copied: registers that are encoded or fixed to
/// RAX, memory by ModRM, immediates.
fn plain_operand(op: Op) -> bool {
    matches!(
        op,
        Op::r8_or_mem
            | Op::r16_or_mem
            | Op::r32_or_mem
            | Op::r64_or_mem
            | Op::mem
            | Op::r8_reg
            | Op::r16_reg
            | Op::r32_reg
            | Op::r64_reg
            | Op::r8_opcode
            | Op::r16_opcode
            | Op::r32_opcode
            | Op::r64_opcode
            | Op::r16_rm
            | Op::r32_rm
            | Op::r64_rm
            | Op::r32_vvvv
            | Op::r64_vvvv
            | Op::al
            | Op::ax
            | Op::eax
            | Op::rax
            | Op::imm8
            | Op::imm8_const_1
            | Op::imm8sex16
            | Op::imm8sex32
            | Op::imm8sex64
            | Op::imm16
            | Op::imm32
            | Op::imm32sex64
            | Op::imm64
    )
}

fn integer(code: Code) -> Class {
    use Mnemonic as M;
    let info = code.op_code();
    let ops = info.op_kinds();
    // Translated code is 64-bit code.
    if !info.mode64() {
        return Class::Helper;
    }
    let copy_if = |plain: bool| if plain { Class::Copy } else { Class::Rewrite };
    let plain = ops.iter().all(|&op| plain_operand(op));
    match code.mnemonic() {
        // Segment, control and debug registers are the interpreter's; absolute addresses of 64
        // bits leave no room for a base.
        M::Mov => {
            let offset = ops.contains(&Op::mem_offs);
            match (plain, offset) {
                (true, _) => Class::Copy,
                (false, true) => Class::Rewrite,
                (false, false) => Class::Helper,
            }
        }
        M::Push | M::Pop => {
            let segment = ops
                .iter()
                .any(|op| matches!(op, Op::es | Op::cs | Op::ss | Op::ds | Op::fs | Op::gs));
            if segment {
                Class::Helper
            } else {
                Class::Rewrite
            }
        }
        M::Movzx
        | M::Movsx
        | M::Movsxd
        | M::Movbe
        | M::Movnti
        | M::Bswap
        | M::Xchg
        | M::Xadd
        | M::Add
        | M::Adc
        | M::Sub
        | M::Sbb
        | M::And
        | M::Or
        | M::Xor
        | M::Cmp
        | M::Test
        | M::Neg
        | M::Not
        | M::Inc
        | M::Dec
        | M::Bsf
        | M::Bsr
        | M::Tzcnt
        | M::Lzcnt
        | M::Popcnt
        | M::Crc32
        | M::Andn
        | M::Bextr
        | M::Blsi
        | M::Blsmsk
        | M::Blsr
        | M::Bzhi
        | M::Pdep
        | M::Pext
        | M::Rorx
        | M::Sarx
        | M::Shlx
        | M::Shrx
        | M::Adcx
        | M::Adox
        | M::Rdrand
        | M::Rdseed => copy_if(plain),
        // By CL they use RCX.
        M::Rol
        | M::Ror
        | M::Rcl
        | M::Rcr
        | M::Shl
        | M::Shr
        | M::Sal
        | M::Sar
        | M::Shld
        | M::Shrd => copy_if(plain),
        // With one operand it uses RAX and RDX.
        M::Imul => copy_if(plain && ops.len() > 1),
        // A bit number in a register reaches memory beyond the operand.
        M::Bt | M::Bts | M::Btr | M::Btc => copy_if(plain && ops.last() == Some(&Op::imm8)),
        M::Cmova
        | M::Cmovae
        | M::Cmovb
        | M::Cmovbe
        | M::Cmove
        | M::Cmovg
        | M::Cmovge
        | M::Cmovl
        | M::Cmovle
        | M::Cmovne
        | M::Cmovno
        | M::Cmovnp
        | M::Cmovns
        | M::Cmovo
        | M::Cmovp
        | M::Cmovs
        | M::Seta
        | M::Setae
        | M::Setb
        | M::Setbe
        | M::Sete
        | M::Setg
        | M::Setge
        | M::Setl
        | M::Setle
        | M::Setne
        | M::Setno
        | M::Setnp
        | M::Setns
        | M::Seto
        | M::Setp
        | M::Sets => copy_if(plain),
        M::Clc
        | M::Stc
        | M::Cmc
        | M::Pause
        | M::Lfence
        | M::Mfence
        | M::Sfence
        | M::Endbr32
        | M::Endbr64 => Class::Copy,
        // Their operand, if any, is not accessed.
        M::Nop | M::Reservednop => copy_if(ops.is_empty()),
        M::Lea
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2 => Class::Rewrite,
        M::Mul
        | M::Div
        | M::Idiv
        | M::Mulx
        | M::Cmpxchg
        | M::Cmpxchg8b
        | M::Cmpxchg16b
        | M::Cbw
        | M::Cwde
        | M::Cdqe
        | M::Cwd
        | M::Cdq
        | M::Cqo
        | M::Lahf
        | M::Sahf
        | M::Cld
        | M::Std
        | M::Xlatb
        | M::Leave => Class::Rewrite,
        M::Movsb
        | M::Movsw
        | M::Movsd
        | M::Movsq
        | M::Stosb
        | M::Stosw
        | M::Stosd
        | M::Stosq
        | M::Lodsb
        | M::Lodsw
        | M::Lodsd
        | M::Lodsq
        | M::Scasb
        | M::Scasw
        | M::Scasd
        | M::Scasq
        | M::Cmpsb
        | M::Cmpsw
        | M::Cmpsd
        | M::Cmpsq => Class::Rewrite,
        M::Ret => Class::Rewrite,
        M::Call | M::Jmp => {
            let far = matches!(code, Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664)
                || matches!(code, Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664);
            if far { Class::Helper } else { Class::Rewrite }
        }
        M::Ja
        | M::Jae
        | M::Jb
        | M::Jbe
        | M::Je
        | M::Jg
        | M::Jge
        | M::Jl
        | M::Jle
        | M::Jne
        | M::Jno
        | M::Jnp
        | M::Jns
        | M::Jo
        | M::Jp
        | M::Js
        | M::Jcxz
        | M::Jecxz
        | M::Jrcxz
        | M::Loop
        | M::Loope
        | M::Loopne => Class::Rewrite,
        _ => Class::Helper,
    }
}
