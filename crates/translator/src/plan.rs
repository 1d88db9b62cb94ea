//! What becomes of each guest instruction.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind};
use processor::classify::{self, Class, Unit};
use processor::{Cpu, Mode};

use crate::copy::is_shift;
use crate::switch::Switching;

/// What becomes of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing is left of it.
    Skip,
    /// The same host instruction, renamed.
    Copy,
    Lea,
    Push,
    Pop,
    Leave,
    Call,
    Return,
    Jump,
    /// Jcc.
    Branch,
    /// JRCXZ, JECXZ and LOOP.
    CountBranch,
    /// DIV, IDIV.
    Divide,
    /// BT, BTS, BTR, BTC of memory with the bit's number in a register.
    BitString,
    /// MOVS and STOS, repeated or not.
    String,
    /// CLI, and STI where another instruction of the block follows.
    Interrupts,
    /// PUSHFQ.
    PushFlags,
    /// SWAPGS.
    SwapGs,
    /// MOV from a segment register to a general register.
    FromSegment,
    /// MOV of a segment register to 16 bits, in memory or of a register.
    StoreSegment,
    /// CLD, STD.
    Direction,
    /// SYSCALL.
    Syscall,
    /// SYSRET to 64-bit code.
    Sysret,
    /// STAC and CLAC, where they change the mode.
    Access(Switching),
    /// RDTSC, RDTSCP.
    ReadTime,
    /// MOV from CR0, CR2, CR3 or CR4.
    ReadControl,
    /// RDFSBASE, RDGSBASE.
    ReadBase,
    /// WRFSBASE, WRGSBASE.
    WriteBase,
    /// The interpreter does it.
    Interpret,
}

impl Plan {
    /// Nothing of the block comes after it.
    pub(crate) fn ends_block(self) -> bool {
        matches!(
            self,
            Plan::Call
                | Plan::Return
                | Plan::Jump
                | Plan::Syscall
                | Plan::Sysret
                | Plan::Access(_)
                | Plan::Interpret
        )
    }
}

/// Decides.
pub(crate) fn plan(cpu: &Cpu, i: &Instruction) -> Plan {
    if i.is_invalid() || classify::check(cpu, i).is_err() {
        return Plan::Interpret;
    }
    if let Some(plan) = system(cpu, i) {
        return plan;
    }
    let class = classify::of(i.code());
    if matches!(class, Class::Helper | Class::Undefined) {
        return Plan::Interpret;
    }
    match classify::unit(i.code()) {
        Unit::Integer | Unit::VexInteger | Unit::Sse | Unit::Avx => {}
        _ => return Plan::Interpret,
    }
    match i.mnemonic() {
        Mnemonic::Nop
        | Mnemonic::Endbr64
        | Mnemonic::Endbr32
        | Mnemonic::Reservednop
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchwt1 => return Plan::Skip,
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr | Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr => {
            return Plan::Interpret;
        }
        _ => {}
    }
    if class == Class::Copy && !i.is_stack_instruction() {
        return copied(i);
    }
    rewritten(i)
}

/// Instructions of kernels that are too frequent for the interpreter.
fn system(cpu: &Cpu, i: &Instruction) -> Option<Plan> {
    let kernel = cpu.cpl() == 0;
    match i.code() {
        Code::Syscall if cpu.cpl() == 3 => Some(Plan::Syscall),
        Code::Sysretq if kernel => Some(Plan::Sysret),
        Code::Stac if kernel && cpu.mode.has(Mode::SMAP) => Some(Plan::Access(Switching::Stac)),
        // AC is clear.
        Code::Clac if kernel && cpu.mode.has(Mode::SMAP) => Some(Plan::Skip),
        Code::Clac if kernel => Some(Plan::Access(Switching::Clac)),
        Code::Rdtsc | Code::Rdtscp if kernel || !cpu.mode.has(Mode::TSD) => Some(Plan::ReadTime),
        Code::Mov_r64_cr if kernel && !i.has_lock_prefix() => Some(Plan::ReadControl),
        Code::Rdfsbase_r64 | Code::Rdgsbase_r64 if cpu.mode.has(Mode::FSGSBASE) => {
            Some(Plan::ReadBase)
        }
        Code::Wrfsbase_r64 | Code::Wrgsbase_r64 if cpu.mode.has(Mode::FSGSBASE) => {
            Some(Plan::WriteBase)
        }
        Code::Mov_rm16_Sreg => Some(Plan::StoreSegment),
        Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg if i.op0_kind() == OpKind::Memory => {
            Some(Plan::StoreSegment)
        }
        Code::Cli | Code::Sti if kernel => Some(Plan::Interrupts),
        Code::Swapgs if kernel => Some(Plan::SwapGs),
        Code::Pushfq => Some(Plan::PushFlags),
        Code::Cld | Code::Std => Some(Plan::Direction),
        Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg if i.op0_kind() == OpKind::Register => {
            Some(Plan::FromSegment)
        }
        Code::Stosb_m8_AL
        | Code::Stosw_m16_AX
        | Code::Stosd_m32_EAX
        | Code::Stosq_m64_RAX
        | Code::Movsb_m8_m8
        | Code::Movsw_m16_m16
        | Code::Movsd_m32_m32
        | Code::Movsq_m64_m64 => Some(Plan::String),
        _ => None,
    }
}

fn copied(i: &Instruction) -> Plan {
    match i.mnemonic() {
        Mnemonic::Lea => Plan::Lea,
        Mnemonic::Div | Mnemonic::Idiv => Plan::Divide,
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
            if i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register =>
        {
            Plan::BitString
        }
        _ if i.flow_control() == FlowControl::Next => Plan::Copy,
        _ => Plan::Interpret,
    }
}

fn rewritten(i: &Instruction) -> Plan {
    // With other sizes than 64 bits they are too rare to matter.
    let near = matches!(i.op0_kind(), OpKind::NearBranch64);
    match i.mnemonic() {
        Mnemonic::Push if i.stack_pointer_increment() == -8 => Plan::Push,
        Mnemonic::Pop if i.stack_pointer_increment() == 8 && i.op0_kind() == OpKind::Register => {
            Plan::Pop
        }
        Mnemonic::Leave if i.code() == Code::Leaveq => Plan::Leave,
        Mnemonic::Call if near => Plan::Call,
        Mnemonic::Call if i.flow_control() == FlowControl::IndirectCall && wide(i) => Plan::Call,
        Mnemonic::Ret if matches!(i.code(), Code::Retnq | Code::Retnq_imm16) => Plan::Return,
        Mnemonic::Jmp if near => Plan::Jump,
        Mnemonic::Jmp if i.flow_control() == FlowControl::IndirectBranch && wide(i) => Plan::Jump,
        _ if i.is_jcc_short_or_near() && near => Plan::Branch,
        Mnemonic::Jrcxz | Mnemonic::Jecxz if near => Plan::CountBranch,
        Mnemonic::Loop if near => Plan::CountBranch,
        // These have implied operands in registers that are the same on the host, or that the
        // copier knows.
        mnemonic if is_shift(mnemonic) => Plan::Copy,
        Mnemonic::Mul
        | Mnemonic::Imul
        | Mnemonic::Mulx
        | Mnemonic::Cbw
        | Mnemonic::Cwde
        | Mnemonic::Cdqe
        | Mnemonic::Cwd
        | Mnemonic::Cdq
        | Mnemonic::Cqo
        | Mnemonic::Cmpxchg
        | Mnemonic::Cmpxchg8b
        | Mnemonic::Cmpxchg16b
        | Mnemonic::Lahf
        | Mnemonic::Sahf
        | Mnemonic::Pcmpestri
        | Mnemonic::Pcmpestrm
        | Mnemonic::Pcmpistri
        | Mnemonic::Pcmpistrm
        | Mnemonic::Vpcmpestri
        | Mnemonic::Vpcmpestrm
        | Mnemonic::Vpcmpistri
        | Mnemonic::Vpcmpistrm
        | Mnemonic::Mov
        | Mnemonic::Xchg
        | Mnemonic::Blendvps
        | Mnemonic::Blendvpd
        | Mnemonic::Pblendvb
        | Mnemonic::Sha256rnds2 => Plan::Copy,
        Mnemonic::Lea
        | Mnemonic::Div
        | Mnemonic::Idiv
        | Mnemonic::Bt
        | Mnemonic::Bts
        | Mnemonic::Btr
        | Mnemonic::Btc => copied(i),
        _ => Plan::Interpret,
    }
}

/// An indirect branch to 64 bits.
fn wide(i: &Instruction) -> bool {
    matches!(i.code(), Code::Call_rm64 | Code::Jmp_rm64)
}

/// Whether code of this mode is translated at all.
pub(crate) fn translatable(mode: Mode) -> bool {
    const NEEDED: u32 = Mode::CODE64 | Mode::LONG | Mode::PROTECTED | Mode::PAGING;
    mode.0 & NEEDED == NEEDED && !mode.has(Mode::STEP) && !mode.has(Mode::VM86)
}
