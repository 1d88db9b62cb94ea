//! Integer instructions.
//!
//! Everything here follows one order: read, check, write memory, and only then write registers
//! and flags, which cannot fail. So an instruction that stops has changed nothing.
//!
//! Layout: [`ops`] operands, [`alu`] arithmetic as functions of values, [`arithmetic`], [`bits`],
//! [`data`], [`stack`], [`branch`], [`string`] the instructions by family.

use iced_x86::{Code, Instruction, Mnemonic};
use x86::cr::rflags::{CF, OF};

use crate::platform::Platform;
use crate::state::Cpu;
use crate::stop::{Exception, Stop};

mod alu;
mod arithmetic;
mod bits;
mod branch;
mod data;
mod ops;
mod stack;
mod string;

#[cfg(test)]
mod tests;

use ops::Width;
use string::Kind;

/// What becomes of the instruction pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The next instruction follows.
    Next,
    /// The instruction wrote [`Cpu::rip`]: a jump, or another iteration of itself.
    Jumped,
}

/// Executes one instruction, all but the advance of the instruction pointer.
///
/// # Errors
/// Why it did not complete; then nothing has changed.
pub(crate) fn execute(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
    use Mnemonic as M;

    match i.mnemonic() {
        M::Mov => {
            if data::is_system_mov(i.code()) {
                return crate::system::execute(cpu, p, i);
            }
            data::mov(cpu, p, i)?;
        }
        M::Movzx => data::movzx(cpu, p, i)?,
        M::Movsx | M::Movsxd => data::movsx(cpu, p, i)?,
        M::Lea => data::lea(cpu, i),
        M::Push => stack::push(cpu, p, i)?,
        M::Pop => {
            if i.op0_register().is_segment_register() {
                return crate::system::execute(cpu, p, i);
            }
            stack::pop(cpu, p, i)?;
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
        | M::Js => return branch::jcc(cpu, p, i),
        M::Jmp if is_far(i.code()) => return crate::system::execute(cpu, p, i),
        M::Call if is_far(i.code()) => return crate::system::execute(cpu, p, i),
        M::Jmp => return branch::jmp(cpu, p, i),
        M::Call => return branch::call(cpu, p, i),
        M::Ret => return branch::ret(cpu, p, i),
        M::Jcxz | M::Jecxz | M::Jrcxz | M::Loop | M::Loope | M::Loopne => {
            return branch::count(cpu, p, i);
        }

        M::Add => arithmetic::binary(cpu, p, i, alu::add)?,
        M::Or => arithmetic::binary(cpu, p, i, alu::or)?,
        M::Adc => arithmetic::binary(cpu, p, i, alu::adc)?,
        M::Sbb => arithmetic::binary(cpu, p, i, alu::sbb)?,
        M::And => arithmetic::binary(cpu, p, i, alu::and)?,
        M::Sub => arithmetic::binary(cpu, p, i, alu::sub)?,
        M::Xor => arithmetic::binary(cpu, p, i, alu::xor)?,
        M::Cmp => arithmetic::compare(cpu, p, i, alu::sub)?,
        M::Test => arithmetic::compare(cpu, p, i, alu::and)?,
        M::Inc => arithmetic::unary(cpu, p, i, alu::inc)?,
        M::Dec => arithmetic::unary(cpu, p, i, alu::dec)?,
        M::Neg => arithmetic::unary(cpu, p, i, alu::neg)?,
        M::Not => arithmetic::not(cpu, p, i)?,
        M::Shl | M::Sal => arithmetic::binary(cpu, p, i, alu::shl)?,
        M::Shr => arithmetic::binary(cpu, p, i, alu::shr)?,
        M::Sar => arithmetic::binary(cpu, p, i, alu::sar)?,
        M::Rol => arithmetic::binary(cpu, p, i, alu::rol)?,
        M::Ror => arithmetic::binary(cpu, p, i, alu::ror)?,
        M::Rcl => arithmetic::binary(cpu, p, i, alu::rcl)?,
        M::Rcr => arithmetic::binary(cpu, p, i, alu::rcr)?,
        M::Shld => arithmetic::double_shift(cpu, p, i, alu::shld)?,
        M::Shrd => arithmetic::double_shift(cpu, p, i, alu::shrd)?,
        M::Adcx => arithmetic::add_carry(cpu, p, i, CF)?,
        M::Adox => arithmetic::add_carry(cpu, p, i, OF)?,
        M::Mul => arithmetic::multiply(cpu, p, i, alu::mul)?,
        M::Imul => arithmetic::imul(cpu, p, i)?,
        M::Div => arithmetic::divide(cpu, p, i, alu::div)?,
        M::Idiv => arithmetic::divide(cpu, p, i, alu::idiv)?,
        M::Aaa | M::Aas | M::Aad | M::Aam | M::Daa | M::Das => arithmetic::decimal(cpu, i)?,

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
        | M::Cmovs => data::cmov(cpu, p, i)?,
        M::Seta
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
        | M::Sets => data::set(cpu, p, i)?,
        M::Xchg => data::xchg(cpu, p, i)?,
        M::Xadd => data::xadd(cpu, p, i)?,
        M::Cmpxchg => data::cmpxchg(cpu, p, i)?,
        M::Cmpxchg8b => data::cmpxchg8b(cpu, p, i)?,
        M::Cmpxchg16b => data::cmpxchg16b(cpu, p, i)?,
        M::Bswap => data::bswap(cpu, i),
        M::Movbe => data::movbe(cpu, p, i)?,
        M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo => data::widen(cpu, i),
        M::Lahf | M::Sahf | M::Clc | M::Stc | M::Cmc | M::Cld | M::Std => data::flags(cpu, i),
        M::Xlatb => data::xlat(cpu, p, i)?,
        M::Bound => data::bound(cpu, p, i)?,
        M::Arpl => data::arpl(cpu, p, i)?,
        M::Rdrand | M::Rdseed => data::random(cpu, i),
        M::Salc => data::salc(cpu),

        M::Bt | M::Bts | M::Btr | M::Btc => bits::bit_test(cpu, p, i)?,
        M::Bsf | M::Bsr | M::Tzcnt | M::Lzcnt => bits::scan(cpu, p, i)?,
        M::Popcnt => bits::popcnt(cpu, p, i)?,
        M::Crc32 => bits::crc32(cpu, p, i)?,
        M::Andn => bits::andn(cpu, p, i)?,
        M::Blsi | M::Blsr | M::Blsmsk => bits::lowest(cpu, p, i)?,
        M::Bextr => bits::bextr(cpu, p, i)?,
        M::Bzhi => bits::bzhi(cpu, p, i)?,
        M::Mulx => bits::mulx(cpu, p, i)?,
        M::Pdep => bits::deposit_extract(cpu, p, i, alu::deposit)?,
        M::Pext => bits::deposit_extract(cpu, p, i, alu::extract)?,
        M::Rorx => bits::shift_plain(cpu, p, i, alu::ror)?,
        M::Sarx => bits::shift_plain(cpu, p, i, alu::sar)?,
        M::Shlx => bits::shift_plain(cpu, p, i, alu::shl)?,
        M::Shrx => bits::shift_plain(cpu, p, i, alu::shr)?,

        M::Pusha => stack::push_registers(cpu, p, Width::Word)?,
        M::Pushad => stack::push_registers(cpu, p, Width::Dword)?,
        M::Popa => stack::pop_registers(cpu, p, Width::Word)?,
        M::Popad => stack::pop_registers(cpu, p, Width::Dword)?,
        M::Pushf => stack::push_flags(cpu, p, Width::Word)?,
        M::Pushfd => stack::push_flags(cpu, p, Width::Dword)?,
        M::Pushfq => stack::push_flags(cpu, p, Width::Qword)?,
        M::Popf => stack::pop_flags(cpu, p, Width::Word)?,
        M::Popfd => stack::pop_flags(cpu, p, Width::Dword)?,
        M::Popfq => stack::pop_flags(cpu, p, Width::Qword)?,
        M::Enter => stack::enter(cpu, p, i)?,
        M::Leave => stack::leave(cpu, p, ops::width_of_enter(i))?,

        M::Movsb => return string::execute(cpu, p, i, Kind::Movs, Width::Byte),
        M::Movsw => return string::execute(cpu, p, i, Kind::Movs, Width::Word),
        M::Movsd if i.code() == Code::Movsd_m32_m32 => {
            return string::execute(cpu, p, i, Kind::Movs, Width::Dword);
        }
        M::Movsq => return string::execute(cpu, p, i, Kind::Movs, Width::Qword),
        M::Cmpsb => return string::execute(cpu, p, i, Kind::Cmps, Width::Byte),
        M::Cmpsw => return string::execute(cpu, p, i, Kind::Cmps, Width::Word),
        M::Cmpsd if i.code() == Code::Cmpsd_m32_m32 => {
            return string::execute(cpu, p, i, Kind::Cmps, Width::Dword);
        }
        M::Cmpsq => return string::execute(cpu, p, i, Kind::Cmps, Width::Qword),
        M::Scasb => return string::execute(cpu, p, i, Kind::Scas, Width::Byte),
        M::Scasw => return string::execute(cpu, p, i, Kind::Scas, Width::Word),
        M::Scasd => return string::execute(cpu, p, i, Kind::Scas, Width::Dword),
        M::Scasq => return string::execute(cpu, p, i, Kind::Scas, Width::Qword),
        M::Lodsb => return string::execute(cpu, p, i, Kind::Lods, Width::Byte),
        M::Lodsw => return string::execute(cpu, p, i, Kind::Lods, Width::Word),
        M::Lodsd => return string::execute(cpu, p, i, Kind::Lods, Width::Dword),
        M::Lodsq => return string::execute(cpu, p, i, Kind::Lods, Width::Qword),
        M::Stosb => return string::execute(cpu, p, i, Kind::Stos, Width::Byte),
        M::Stosw => return string::execute(cpu, p, i, Kind::Stos, Width::Word),
        M::Stosd => return string::execute(cpu, p, i, Kind::Stos, Width::Dword),
        M::Stosq => return string::execute(cpu, p, i, Kind::Stos, Width::Qword),

        M::Pause => std::hint::spin_loop(),
        M::Mfence | M::Lfence | M::Sfence => {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        }
        // Hints, and what is a hint to processors without shadow stacks.
        M::Nop
        | M::Reservednop
        | M::Endbr32
        | M::Endbr64
        | M::Rdsspd
        | M::Rdsspq
        | M::Cldemote
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchnta
        | M::Prefetchit0
        | M::Prefetchit1 => {}

        M::INVALID => return Err(Exception::ud().into()),

        M::Lds
        | M::Les
        | M::Lfs
        | M::Lgs
        | M::Lss
        | M::Retf
        | M::Iret
        | M::Iretd
        | M::Iretq
        | M::Int
        | M::Int1
        | M::Int3
        | M::Into
        | M::Ud0
        | M::Ud1
        | M::Ud2
        | M::Syscall
        | M::Sysret
        | M::Sysretq
        | M::Sysenter
        | M::Sysexit
        | M::Sysexitq
        | M::Lldt
        | M::Ltr
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Lgdt
        | M::Lidt
        | M::Sgdt
        | M::Sidt
        | M::Sldt
        | M::Str
        | M::Smsw
        | M::Lmsw
        | M::Clts
        | M::Rdmsr
        | M::Wrmsr
        | M::Cpuid
        | M::Rdtsc
        | M::Rdtscp
        | M::Rdpid
        | M::Rdpmc
        | M::Invlpg
        | M::Invpcid
        | M::Invd
        | M::Wbinvd
        | M::Wbnoinvd
        | M::Clflush
        | M::Clflushopt
        | M::Clwb
        | M::Clzero
        | M::Hlt
        | M::Monitor
        | M::Mwait
        | M::Sti
        | M::Cli
        | M::Stac
        | M::Clac
        | M::Swapgs
        | M::Rdfsbase
        | M::Rdgsbase
        | M::Wrfsbase
        | M::Wrgsbase
        | M::Xgetbv
        | M::Xsetbv
        | M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Xsave
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
        | M::In
        | M::Out
        | M::Insb
        | M::Insw
        | M::Insd
        | M::Outsb
        | M::Outsw
        | M::Outsd
        | M::Vmcall
        | M::Vmmcall
        | M::Rsm => return crate::system::execute(cpu, p, i),

        _ => return crate::native::execute(cpu, p, i),
    }
    Ok(Flow::Next)
}

/// Whether this code of JMP or CALL is a far one.
fn is_far(code: Code) -> bool {
    matches!(
        code,
        Code::Jmp_ptr1616
            | Code::Jmp_ptr1632
            | Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_ptr1616
            | Code::Call_ptr1632
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    )
}
