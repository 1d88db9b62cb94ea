//! System instructions: those that read or change what the processor is, not what it computes.
//!
//! - [`control`]: control and debug registers, and the modes that follow from them.
//! - [`msr`]: model-specific registers.
//! - [`syscall`]: SYSCALL, SYSENTER, their ways back, SWAPGS, bases of FS and GS.
//! - [`info`]: CPUID, time stamp and performance counters, XCR0.
//! - [`flags`]: STI, CLI, STAC, CLAC.
//! - [`port`]: IN, OUT, INS, OUTS.
//! - [`xsave`]: FXSAVE, XSAVE and their kin.
//! - [`cache`]: TLB and cache maintenance.
//! - [`operand`]: operands of the above.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use x86::Feature;
use x86::cr::cr0;

use crate::event::Source;
use crate::interpret::Flow;
use crate::platform::Platform;
use crate::segment::far::Target;
use crate::segment::query::Query;
use crate::segment::stack::Stack;
use crate::state::{Cpu, Mode, seg};
use crate::stop::{Access, Exception, Stop};

mod cache;
mod control;
mod flags;
mod info;
mod msr;
pub(crate) mod operand;
mod port;
mod syscall;
#[cfg(test)]
mod tests;
mod xsave;

use operand::{address, far_pointer, read16, register, set_register, write_selector};

/// #GP(0) unless CPL is 0.
fn privileged(cpu: &Cpu) -> Result<(), Exception> {
    if cpu.cpl() == 0 {
        Ok(())
    } else {
        Err(Exception::gp(0))
    }
}

/// #UD in real and virtual-8086 mode, where there are no selectors.
fn protected(cpu: &Cpu) -> Result<(), Exception> {
    if cpu.real_segments() {
        Err(Exception::ud())
    } else {
        Ok(())
    }
}

/// #UD unless the guest was told of this feature.
fn offered(cpu: &Cpu, feature: Feature) -> Result<(), Exception> {
    if cpu.features.contains(feature) {
        Ok(())
    } else {
        Err(Exception::ud())
    }
}

/// #GP(0) if user-mode instruction prevention forbids SGDT and its kin.
fn unprevented(cpu: &Cpu) -> Result<(), Exception> {
    if cpu.mode.has(Mode::UMIP) && cpu.cpl() != 0 {
        Err(Exception::gp(0))
    } else {
        Ok(())
    }
}

/// Executes a system instruction.
///
/// # Errors
/// Its exceptions; [`Stop::Halt`] for HLT; [`Stop::Device`] for ports and device memory.
#[expect(clippy::too_many_lines, reason = "a table of instructions")]
pub(crate) fn execute(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
    if i.has_lock_prefix() && i.mnemonic() != Mnemonic::Mov {
        return Err(Exception::ud().into());
    }
    match i.mnemonic() {
        Mnemonic::Mov => return mov(cpu, p, i),
        Mnemonic::Pop => pop_segment(cpu, p, i)?,
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
            load_pointer(cpu, p, i)?;
        }
        Mnemonic::Call | Mnemonic::Jmp => return far(cpu, p, i),
        Mnemonic::Retf => {
            let size = match i.code() {
                Code::Retfw | Code::Retfw_imm16 => 2,
                Code::Retfd | Code::Retfd_imm16 => 4,
                _ => 8,
            };
            let release = if i.op_count() > 0 {
                u64::from(i.immediate16())
            } else {
                0
            };
            cpu.far_return(p, size, release)?;
            return Ok(Flow::Jumped);
        }
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => {
            let size = match i.code() {
                Code::Iretw => 2,
                Code::Iretd => 4,
                _ => 8,
            };
            cpu.iret(p, size)?;
            return Ok(Flow::Jumped);
        }
        Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Into => {
            return interrupt(cpu, p, i);
        }
        Mnemonic::Cli => flags::cli(cpu)?,
        Mnemonic::Sti => flags::sti(cpu)?,
        Mnemonic::Clac | Mnemonic::Stac => flags::access(cpu, i.mnemonic() == Mnemonic::Stac)?,
        Mnemonic::Clts => {
            privileged(cpu)?;
            cpu.cr0 &= !cr0::TS;
            cpu.update_mode();
        }
        Mnemonic::Hlt => {
            privileged(cpu)?;
            return Err(Stop::Halt);
        }
        Mnemonic::In => port::input(cpu, p, i)?,
        Mnemonic::Out => port::output(cpu, p, i)?,
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => return port::input_string(cpu, p, i),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            return port::output_string(cpu, p, i);
        }
        Mnemonic::Lgdt | Mnemonic::Lidt => {
            privileged(cpu)?;
            let linear = address(cpu, i, 0, if cpu.code64() { 10 } else { 6 }, Access::Read)?;
            let mask = match i.code() {
                Code::Lgdt_m1664 | Code::Lidt_m1664 => !0,
                Code::Lgdt_m1632 | Code::Lidt_m1632 => 0xffff_ffff,
                _ => 0xff_ffff,
            };
            let table = cpu.table_operand(p, linear, mask)?;
            if i.mnemonic() == Mnemonic::Lgdt {
                cpu.gdtr = table;
            } else {
                cpu.idtr = table;
            }
            p.serialize();
        }
        Mnemonic::Sgdt | Mnemonic::Sidt => {
            unprevented(cpu)?;
            let long = cpu.code64();
            let linear = address(cpu, i, 0, if long { 10 } else { 6 }, Access::Write)?;
            let table = if i.mnemonic() == Mnemonic::Sgdt {
                cpu.gdtr
            } else {
                cpu.idtr
            };
            cpu.store_table(p, linear, table, long)?;
        }
        Mnemonic::Lldt | Mnemonic::Ltr => {
            protected(cpu)?;
            privileged(cpu)?;
            let selector = read16(cpu, p, i, 0)?;
            if i.mnemonic() == Mnemonic::Lldt {
                cpu.load_ldt(p, selector)?;
            } else {
                cpu.load_task(p, selector)?;
            }
            p.serialize();
        }
        Mnemonic::Sldt | Mnemonic::Str => {
            protected(cpu)?;
            unprevented(cpu)?;
            let selector = if i.mnemonic() == Mnemonic::Sldt {
                cpu.ldtr.selector
            } else {
                cpu.tr.selector
            };
            write_selector(cpu, p, i, selector.into())?;
        }
        Mnemonic::Smsw => {
            unprevented(cpu)?;
            let value = cpu.cr0;
            write_selector(cpu, p, i, value)?;
        }
        Mnemonic::Lmsw => {
            privileged(cpu)?;
            let value = u64::from(read16(cpu, p, i, 0)?);
            // PE can be set, but not cleared.
            let bits = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
            let pe = cpu.cr0 & cr0::PE;
            cpu.write_cr0(cpu.cr0 & !bits | value & bits | pe)?;
        }
        Mnemonic::Lar | Mnemonic::Lsl => {
            protected(cpu)?;
            let selector = read16(cpu, p, i, 1)?;
            let lar = i.mnemonic() == Mnemonic::Lar;
            let query = if lar { Query::Lar } else { Query::Lsl };
            if let Some(d) = cpu.query(p, selector, query)? {
                let value = if lar {
                    d.0 >> 32 & 0x00ff_ff00
                } else {
                    d.limit().into()
                };
                set_register(cpu, i.op0_register(), value);
            }
        }
        Mnemonic::Verr | Mnemonic::Verw => {
            protected(cpu)?;
            let selector = read16(cpu, p, i, 0)?;
            let query = if i.mnemonic() == Mnemonic::Verr {
                Query::Verr
            } else {
                Query::Verw
            };
            cpu.query(p, selector, query)?;
        }
        Mnemonic::Rdmsr => msr::rdmsr(cpu, p)?,
        Mnemonic::Wrmsr => msr::wrmsr(cpu, p)?,
        Mnemonic::Rdtsc | Mnemonic::Rdtscp => {
            info::rdtsc(cpu, p, i.mnemonic() == Mnemonic::Rdtscp)?;
        }
        Mnemonic::Rdpid => info::rdpid(cpu, i)?,
        Mnemonic::Rdpmc => info::rdpmc(cpu, p)?,
        Mnemonic::Cpuid => info::cpuid(cpu, p),
        Mnemonic::Xgetbv => info::xgetbv(cpu)?,
        Mnemonic::Xsetbv => info::xsetbv(cpu, p)?,
        Mnemonic::Swapgs => syscall::swapgs(cpu)?,
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase => {
            syscall::read_base(cpu, i, i.mnemonic() == Mnemonic::Rdgsbase)?;
        }
        Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => {
            syscall::write_base(cpu, i, i.mnemonic() == Mnemonic::Wrgsbase)?;
        }
        Mnemonic::Syscall => {
            syscall::syscall(cpu, i)?;
            return Ok(Flow::Jumped);
        }
        Mnemonic::Sysret | Mnemonic::Sysretq => {
            syscall::sysret(cpu, i.code() == Code::Sysretq)?;
            return Ok(Flow::Jumped);
        }
        Mnemonic::Sysenter => {
            syscall::sysenter(cpu)?;
            return Ok(Flow::Jumped);
        }
        Mnemonic::Sysexit | Mnemonic::Sysexitq => {
            syscall::sysexit(cpu, i.code() == Code::Sysexitq)?;
            return Ok(Flow::Jumped);
        }
        Mnemonic::Invlpg => cache::invlpg(cpu, p, i)?,
        Mnemonic::Invpcid => cache::invpcid(cpu, p, i)?,
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => {
            privileged(cpu)?;
            p.serialize();
        }
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => cache::line(cpu, p, i)?,
        Mnemonic::Serialize => {
            offered(cpu, const { Feature::of("serialize") })?;
            p.serialize();
        }
        Mnemonic::Clzero => cache::zero_line(cpu, p, i)?,
        Mnemonic::Monitor => cache::monitor(cpu, p, i)?,
        Mnemonic::Mwait => return cache::mwait(cpu),
        Mnemonic::Fxsave
        | Mnemonic::Fxsave64
        | Mnemonic::Fxrstor
        | Mnemonic::Fxrstor64
        | Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsaveopt64
        | Mnemonic::Xsavec
        | Mnemonic::Xsavec64
        | Mnemonic::Xsaves
        | Mnemonic::Xsaves64
        | Mnemonic::Xrstor
        | Mnemonic::Xrstor64
        | Mnemonic::Xrstors
        | Mnemonic::Xrstors64 => xsave::execute(cpu, p, i)?,
        Mnemonic::Vmcall | Mnemonic::Vmmcall => hypercall(cpu, p)?,
        _ => return Err(Exception::ud().into()),
    }
    Ok(Flow::Next)
}

/// MOV to and from segment, control and debug registers.
fn mov(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
    match i.code() {
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
            no_lock(i)?;
            let which = i.op0_register().number();
            if which == seg::CS {
                return Err(Exception::ud().into());
            }
            let selector = read16(cpu, p, i, 1)?;
            cpu.load_segment(p, which, selector)?;
            if which == seg::SS {
                cpu.shadow_after_ss();
            }
        }
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => {
            no_lock(i)?;
            let which = i.op1_register().number();
            let selector = cpu.segs.get(which).map_or(0, |s| s.selector);
            write_selector(cpu, p, i, selector.into())?;
        }
        Code::Mov_r32_cr | Code::Mov_r64_cr => {
            let n = control_number(cpu, i, i.op1_register().number())?;
            privileged(cpu)?;
            let value = cpu.read_cr(p, n)?;
            set_register(cpu, i.op0_register(), value);
        }
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => {
            let n = control_number(cpu, i, i.op0_register().number())?;
            privileged(cpu)?;
            let value = register(cpu, i.op1_register());
            cpu.write_cr(p, n, value)?;
        }
        Code::Mov_r32_dr | Code::Mov_r64_dr => {
            no_lock(i)?;
            let value = cpu.read_dr(i.op1_register().number())?;
            set_register(cpu, i.op0_register(), value);
        }
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => {
            no_lock(i)?;
            let value = register(cpu, i.op1_register());
            cpu.write_dr(i.op0_register().number(), value)?;
            p.serialize();
        }
        _ => return Err(Exception::ud().into()),
    }
    Ok(Flow::Next)
}

fn no_lock(i: &Instruction) -> Result<(), Exception> {
    if i.has_lock_prefix() {
        Err(Exception::ud())
    } else {
        Ok(())
    }
}

/// Number of a control register. AMD's let 32-bit code reach CR8 by LOCK MOV CR0, if CPUID says
/// so; whether the decoder has already made CR8 of it, LOCK is fine then and only then.
fn control_number(cpu: &Cpu, i: &Instruction, n: usize) -> Result<usize, Exception> {
    if !i.has_lock_prefix() {
        return Ok(n);
    }
    offered(cpu, const { Feature::of("cr8legacy") })?;
    match n {
        0 | 8 => Ok(8),
        _ => Err(Exception::ud()),
    }
}

fn pop_segment(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let register = i.op0_register();
    let which = register.number();
    if !register.is_segment_register() || which == seg::CS {
        return Err(Exception::ud().into());
    }
    let mut stack = Stack::current(cpu);
    let [value] = stack.pop::<1>(cpu, p, stack_size(i))?;
    let loaded = cpu.segment_for(p, which, value as u16)?;
    // The pointer moves by the width of the old stack segment.
    stack.commit(cpu);
    cpu.set_segment(which, loaded);
    if which == seg::SS {
        cpu.shadow_after_ss();
    }
    Ok(())
}

/// Bytes that a PUSH or POP moves.
fn stack_size(i: &Instruction) -> usize {
    i.stack_pointer_increment().unsigned_abs() as usize
}

/// LDS and its kin.
fn load_pointer(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let which = match i.mnemonic() {
        Mnemonic::Lds => seg::DS,
        Mnemonic::Les => seg::ES,
        Mnemonic::Lfs => seg::FS,
        Mnemonic::Lgs => seg::GS,
        _ => seg::SS,
    };
    let target = far_pointer(cpu, p, i, 1, i.op0_register().size())?;
    let loaded = cpu.segment_for(p, which, target.selector)?;
    cpu.set_segment(which, loaded);
    set_register(cpu, i.op0_register(), target.offset);
    Ok(())
}

/// Far CALL and JMP.
fn far(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
    let target = match i.op0_kind() {
        OpKind::FarBranch16 => Target {
            selector: i.far_branch_selector(),
            offset: i.far_branch16().into(),
            size: 2,
        },
        OpKind::FarBranch32 => Target {
            selector: i.far_branch_selector(),
            offset: i.far_branch32().into(),
            size: 4,
        },
        OpKind::Memory => {
            let size = match i.code() {
                Code::Call_m1616 | Code::Jmp_m1616 => 2,
                Code::Call_m1632 | Code::Jmp_m1632 => 4,
                Code::Call_m1664 | Code::Jmp_m1664 => 8,
                _ => return Err(Exception::ud().into()),
            };
            far_pointer(cpu, p, i, 0, size)?
        }
        _ => return Err(Exception::ud().into()),
    };
    if i.mnemonic() == Mnemonic::Call {
        let next = cpu.next_rip(i);
        cpu.far_call(p, target, next)?;
    } else {
        cpu.far_jump(p, target)?;
    }
    Ok(Flow::Jumped)
}

fn interrupt(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
    let next = cpu.next_rip(i);
    let (vector, source) = match i.mnemonic() {
        Mnemonic::Int1 => (Exception::DB, Source::Exception),
        Mnemonic::Int3 => (Exception::BP, Source::Software),
        Mnemonic::Into => {
            if cpu.rflags & x86::cr::rflags::OF == 0 {
                return Ok(Flow::Next);
            }
            (Exception::OF, Source::Software)
        }
        _ => {
            let vector = i.immediate8();
            if cpu.mode.has(Mode::VM86) && cpu.virtual_8086_interrupt(p, vector, next)? {
                return Ok(Flow::Jumped);
            }
            (vector, Source::Software)
        }
    };
    cpu.software_interrupt(p, vector, source, next)?;
    Ok(Flow::Jumped)
}

/// VMCALL and VMMCALL: KVM's hypercalls. KVM takes both on either vendor's processors, by
/// patching one into the other.
fn hypercall(cpu: &mut Cpu, p: &mut dyn Platform) -> Result<(), Stop> {
    use crate::state::reg;
    offered(cpu, const { Feature::of("hypervisor") })?;
    // KVM_EPERM for callers outside of ring 0.
    const EPERM: u64 = (-1i64) as u64;
    let mask = if cpu.code64() { !0 } else { 0xffff_ffff };
    let argument = |r: usize| cpu.gpr[r] & mask;
    let arguments = [reg::RBX, reg::RCX, reg::RDX, reg::RSI].map(argument);
    let number = argument(reg::RAX);
    let result = if cpu.cpl() == 0 {
        p.hypercall(number, arguments)
    } else {
        EPERM
    };
    cpu.gpr[reg::RAX] = result & mask;
    Ok(())
}
