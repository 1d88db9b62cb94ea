//! x87, MMX, SSE and AVX instructions, run by the host itself.
//!
//! ```text
//!   Instruction ──normalize──▶ the same with [rdi] and rax ──▶ stub (cached) ─┐ call
//!   guest memory ──read──▶ bounce buffer ─┐                                   ▼
//!   Cpu.fpu ─────copy────▶ Frame ─────────┴──▶ XRSTOR · instruction · XSAVE ──▶ Frame
//!                                                   │
//!        #XM, #MF: nothing is committed ◀── flags ──┴──▶ guest memory, Cpu.fpu, Cpu.gpr, RFLAGS
//! ```
//!
//! - MXCSR's exceptions are masked while the instruction runs. Those that the guest has unmasked
//!   are found in the flags afterwards, and raised instead of the commit. Underflow without loss,
//!   which sets no flag while masked, is found in the result (`underflow.rs`).
//! - x87 exceptions stay as the guest has them: they are raised by the next waiting instruction,
//!   which is checked for them before it runs ([`x87_pending`]); the stub has no such instruction.
//!   The last instruction and data pointers are the guest's, never the host's. The last opcode has
//!   the bits of a register-indirect operand.
//! - What only moves state about is done in Rust: control and environment (`control.rs`), masked
//!   and gathered elements (`masked.rs`).

mod control;
mod host;
mod masked;
#[cfg(test)]
mod tests;
mod underflow;
mod vector;

use std::sync::LazyLock;
use std::sync::atomic::{Ordering, fence};

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::classify::{self, Class, Unit};
use crate::interpret::Flow;
use crate::mmu::As;
use crate::platform::Platform;
use crate::state::{Cpu, Mode, XsaveArea, seg};
use crate::stop::{Access, Exception, Stop};
use host::{MAX_OPERAND, Memory, Operands};
use x86::Feature;
use x86::cpuid::Vendor;
use x86::cr::{cr4, rflags};

pub use host::available;

/// Offsets in the legacy region (SDM vol. 1 table 10-2).
mod at {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const FOP: usize = 6;
    pub const FIP: usize = 8;
    pub const FDP: usize = 16;
    pub const MXCSR: usize = 24;
    pub const MXCSR_MASK: usize = 28;
    pub const ST: usize = 32;
}

/// The exceptions in FSW, and where FCW has their masks.
const X87_EXCEPTIONS: u16 = 0x3f;
/// ES and B of FSW.
const X87_PENDING: u16 = 0x8080;
/// PE: the result is stored although the exception is raised.
const X87_PRECISION: u16 = 0x20;

/// Flags of MXCSR; their masks are 7 bits further up.
const MXCSR_FLAGS: u32 = 0x3f;
const MXCSR_MASK_SHIFT: u32 = 7;
/// IE, DE, ZE: seen before anything is computed.
const MXCSR_BEFORE: u32 = 7;
/// UE.
const MXCSR_UNDERFLOW: u32 = 0x10;
/// Bits of MXCSR that exist on every processor.
const MXCSR_VALID: u32 = 0xffff;
/// MXCSR.MM: operands of 16 bytes need no alignment (APM vol. 1 4.2.2).
const MXCSR_MM: u32 = 1 << 17;

impl Cpu {
    /// Bits of MXCSR that exist.
    pub(crate) fn mxcsr_bits(&self) -> u32 {
        if self.features.contains(const { Feature::of("misalignsse") }) {
            MXCSR_VALID | MXCSR_MM
        } else {
            MXCSR_VALID
        }
    }
}

/// The flags that an instruction of these units can change.
const STATUS: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

/// Whether an x87 exception waits for the next waiting instruction.
#[must_use]
pub fn x87_pending(cpu: &Cpu) -> bool {
    let area = &*cpu.fpu;
    get16(area, at::FSW) & !get16(area, at::FCW) & X87_EXCEPTIONS != 0
}

fn get16(area: &XsaveArea, at: usize) -> u16 {
    u16::from_le_bytes([area.0[at], area.0[at + 1]])
}

fn put16(area: &mut XsaveArea, at: usize, value: u16) {
    area.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn get32(area: &XsaveArea, at: usize) -> u32 {
    u32::from(get16(area, at)) | u32::from(get16(area, at + 2)) << 16
}

fn put32(area: &mut XsaveArea, at: usize, value: u32) {
    area.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(area: &mut XsaveArea, at: usize, value: u64) {
    area.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// #MF if an x87 exception waits. Without CR0.NE it would be an interrupt request through the
/// PIC; it is an exception here all the same.
fn wait(cpu: &Cpu) -> Result<(), Exception> {
    if x87_pending(cpu) {
        return Err(Exception::plain(Exception::MF));
    }
    Ok(())
}

/// Runs one instruction that [`classify::check`] has let through.
pub(crate) fn execute(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<Flow, Stop> {
    use Mnemonic as M;
    match i.mnemonic() {
        M::Nop
        | M::Reservednop
        | M::Pause
        | M::Endbr32
        | M::Endbr64
        | M::Lfence
        | M::Rdsspd
        | M::Rdsspq
        | M::Cldemote
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchit0
        | M::Prefetchit1 => {}
        M::Mfence | M::Sfence => fence(Ordering::SeqCst),
        M::Wait => wait(cpu)?,
        M::Ldmxcsr | M::Vldmxcsr => {
            let (linear, _) = operand_address(cpu, i, 4, Access::Read)?;
            let value: u32 = cpu.read(p, linear, As::Current)?;
            if value & !cpu.mxcsr_bits() != 0 {
                return Err(Exception::gp(0).into());
            }
            put32(&mut cpu.fpu, at::MXCSR, value);
        }
        M::Stmxcsr | M::Vstmxcsr => {
            let (linear, _) = operand_address(cpu, i, 4, Access::Write)?;
            let value = get32(&cpu.fpu, at::MXCSR);
            cpu.write(p, linear, value, As::Current)?;
        }
        M::Vzeroupper => vector::zero(cpu, XsaveArea::YMM_HIGH),
        M::Vzeroall => {
            vector::zero(cpu, XsaveArea::XMM);
            vector::zero(cpu, XsaveArea::YMM_HIGH);
        }
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => masked::bytes(cpu, p, i)?,
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => {
            masked::elements(cpu, p, i)?;
        }
        M::Vpgatherdd
        | M::Vpgatherdq
        | M::Vpgatherqd
        | M::Vpgatherqq
        | M::Vgatherdps
        | M::Vgatherdpd
        | M::Vgatherqps
        | M::Vgatherqpd => masked::gather(cpu, p, i)?,
        M::Fneni
        | M::Fndisi
        | M::Fnsetpm
        | M::Fldcw
        | M::Fnstcw
        | M::Fnstsw
        | M::Fnclex
        | M::Fninit
        | M::Fldenv
        | M::Fnstenv
        | M::Frstor
        | M::Fnsave => {
            control::execute(cpu, p, i)?;
        }
        _ => run(cpu, p, i)?,
    }
    Ok(Flow::Next)
}

/// Linear address of the instruction's memory operand, and its offset in the segment.
fn operand_address(
    cpu: &Cpu,
    i: &Instruction,
    size: u64,
    access: Access,
) -> Result<(u64, u64), Exception> {
    let op = (0..i.op_count())
        .find(|&op| i.op_kind(op) != OpKind::Register && is_memory(i.op_kind(op)))
        .ok_or(Exception::ud())?;
    let offset = element_offset(cpu, i, op, 0)?;
    let linear = cpu.linear(segment(i), offset, size, access)?;
    Ok((linear, offset))
}

fn is_memory(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Memory | OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI
    )
}

/// Index of the segment register that the memory operand is in.
fn segment(i: &Instruction) -> usize {
    match i.memory_segment() {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

/// Offset of the memory operand in its segment, cut to the address size; of one element, for
/// gathers.
fn element_offset(cpu: &Cpu, i: &Instruction, op: u32, element: usize) -> Result<u64, Exception> {
    i.virtual_address(op, element, |register, element, size| {
        if register.is_segment_register() {
            Some(0)
        } else if register.is_xmm() || register.is_ymm() {
            Some(vector::element(&cpu.fpu, register, element, size))
        } else {
            let value = cpu.gpr.get(register.number()).copied()?;
            Some(match register.size() {
                2 => value & 0xffff,
                4 => value & 0xffff_ffff,
                _ => value,
            })
        }
    })
    .ok_or(Exception::ud())
}

/// Operands of at most eight bytes are accessed at once, as the architecture says; longer ones
/// have no such promise.
fn read_operand(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    linear: u64,
    out: &mut [u8],
) -> Result<(), Stop> {
    match out.len() {
        1 => out.copy_from_slice(&cpu.read::<u8>(p, linear, As::Current)?.to_le_bytes()),
        2 => out.copy_from_slice(&cpu.read::<u16>(p, linear, As::Current)?.to_le_bytes()),
        4 => out.copy_from_slice(&cpu.read::<u32>(p, linear, As::Current)?.to_le_bytes()),
        8 => out.copy_from_slice(&cpu.read::<u64>(p, linear, As::Current)?.to_le_bytes()),
        _ => cpu.read_bytes(p, linear, out, As::Current)?,
    }
    Ok(())
}

/// As [`read_operand`].
fn write_operand(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    linear: u64,
    data: &[u8],
) -> Result<(), Stop> {
    match *data {
        [a] => cpu.write(p, linear, a, As::Current),
        [a, b] => cpu.write(p, linear, u16::from_le_bytes([a, b]), As::Current),
        [a, b, c, d] => cpu.write(p, linear, u32::from_le_bytes([a, b, c, d]), As::Current),
        [a, b, c, d, e, f, g, h] => {
            let value = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            cpu.write(p, linear, value, As::Current)
        }
        _ => cpu.write_bytes(p, linear, data, As::Current),
    }
}

/// Whether the processor insists on the natural alignment of this memory operand (SDM vol. 2A
/// tables 2-20 to 2-24): legacy instructions do for 16 bytes, with exceptions; VEX ones do not,
/// with exceptions.
fn needs_alignment(i: &Instruction, unit: Unit, size: usize) -> bool {
    use Mnemonic as M;
    match unit {
        Unit::Sse => {
            size == 16
                && !(is_sha(i.mnemonic()) && *SHA_UNALIGNED)
                && !matches!(
                    i.mnemonic(),
                    M::Movups
                        | M::Movupd
                        | M::Movdqu
                        | M::Lddqu
                        | M::Pcmpestri
                        | M::Pcmpestri64
                        | M::Pcmpestrm
                        | M::Pcmpestrm64
                        | M::Pcmpistri
                        | M::Pcmpistrm
                )
        }
        Unit::Avx => matches!(
            i.mnemonic(),
            M::Vmovaps
                | M::Vmovapd
                | M::Vmovdqa
                | M::Vmovntps
                | M::Vmovntpd
                | M::Vmovntdq
                | M::Vmovntdqa
        ),
        _ => false,
    }
}

/// Moves whose name says that their operand is aligned, whatever MXCSR says.
fn is_aligned_move(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Movaps
            | M::Movapd
            | M::Movdqa
            | M::Movntps
            | M::Movntpd
            | M::Movntdq
            | M::Movntdqa
            | M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqa
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq
            | M::Vmovntdqa
    )
}

fn is_sha(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Sha1rnds4
            | M::Sha1nexte
            | M::Sha1msg1
            | M::Sha1msg2
            | M::Sha256rnds2
            | M::Sha256msg1
            | M::Sha256msg2
    )
}

/// Processors of AMD take any address for SHA's operands, those of Intel do not. Translated code
/// runs on the host, so the host's way it is.
static SHA_UNALIGNED: LazyLock<bool> = LazyLock::new(|| {
    let leaf = std::arch::x86_64::__cpuid(0);
    Vendor::from_registers([leaf.ebx, leaf.edx, leaf.ecx]).is_amd_like()
});

/// Runs an instruction on the host.
fn run(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let unit = classify::unit(i.code());
    let integer = matches!(i.code(), Code::Movnti_m32_r32 | Code::Movnti_m64_r64);
    let vector = matches!(unit, Unit::X87 | Unit::Mmx | Unit::Sse | Unit::Avx);
    if classify::of(i.code()) == Class::Undefined || !(vector || integer) {
        return Err(Exception::ud().into());
    }
    let stub = host::stub(i, unit).ok_or(Exception::ud())?;
    if stub.waits {
        wait(cpu)?;
    }

    let mut buffer = [0_u8; MAX_OPERAND];
    let mut linear = 0;
    let mut offset = 0;
    let mut operand: &mut [u8] = &mut [];
    if let Some(Memory {
        size,
        reads,
        writes,
    }) = stub.memory
    {
        let access = if writes { Access::Write } else { Access::Read };
        (linear, offset) = operand_address(cpu, i, size as u64, access)?;
        let anywhere = get32(&cpu.fpu, at::MXCSR) & MXCSR_MM != 0 && !is_aligned_move(i);
        if needs_alignment(i, unit, size) && !anywhere && linear % size as u64 != 0 {
            return Err(Exception::gp(0).into());
        }
        operand = buffer.get_mut(..size).ok_or(Exception::ud())?;
        if reads {
            read_operand(cpu, p, linear, operand)?;
        }
        if writes {
            cpu.probe(linear, size as u64, access, As::Current)?;
        }
    }

    let before = get32(&cpu.fpu, at::MXCSR) & cpu.mxcsr_bits();
    let explicit = stub.register;
    let mut operands = Operands {
        rax: cpu.gpr[explicit.unwrap_or(0)],
        rcx: cpu.gpr[1],
        rdx: cpu.gpr[2],
        flags: cpu.rflags & STATUS,
    };
    let mut area = (*cpu.fpu).clone();
    put32(
        &mut area,
        at::MXCSR,
        (before | MXCSR_FLAGS << MXCSR_MASK_SHIFT) & !MXCSR_FLAGS,
    );
    host::run(&stub, &mut area, operand, &mut operands);

    let mut raised = get32(&area, at::MXCSR) & MXCSR_FLAGS;
    if before & MXCSR_UNDERFLOW << MXCSR_MASK_SHIFT == 0 && underflow::tiny_result(&area, i) {
        raised |= MXCSR_UNDERFLOW;
    }
    let unmasked = raised & !(before >> MXCSR_MASK_SHIFT);
    if unmasked != 0 {
        // What would be seen after the computation is not when something is unmasked before it.
        let seen = if unmasked & MXCSR_BEFORE != 0 {
            raised & MXCSR_BEFORE
        } else {
            raised
        };
        put32(&mut cpu.fpu, at::MXCSR, before | seen);
        return Err(if cpu.cr4 & cr4::OSXMMEXCPT != 0 {
            Exception::plain(Exception::XM)
        } else {
            Exception::ud()
        }
        .into());
    }
    put32(&mut area, at::MXCSR, before | raised);
    put32(&mut area, at::MXCSR_MASK, cpu.mxcsr_bits());
    area.0[at::FOP..at::MXCSR].copy_from_slice(&cpu.fpu.0[at::FOP..at::MXCSR]);

    let mut store = stub.memory.is_some_and(|m| m.writes);
    if unit == Unit::X87 {
        let pending = get16(&area, at::FSW) & !get16(&area, at::FCW) & X87_EXCEPTIONS;
        // A result that raises an exception is not stored, but for an inexact one.
        store &= pending & !X87_PRECISION == 0;
        let data = stub.memory.is_some().then_some(offset);
        control::set_pointers(cpu, &mut area, i, stub.opcode, data, pending != 0);
    }
    if store {
        write_operand(cpu, p, linear, operand)?;
    }
    commit(cpu, &area, &operands, explicit);
    Ok(())
}

/// Makes the results of an instruction the processor's state.
fn commit(cpu: &mut Cpu, area: &XsaveArea, operands: &Operands, explicit: Option<usize>) {
    let Operands {
        rax,
        rcx,
        rdx,
        flags,
    } = *operands;
    let wide = cpu.mode.has(Mode::CODE64);
    // Outside of 64-bit mode the upper registers are out of reach, and nothing changes them.
    if wide {
        cpu.fpu.0[..XsaveArea::HEADER].copy_from_slice(&area.0[..XsaveArea::HEADER]);
        cpu.fpu.0[XsaveArea::YMM_HIGH..].copy_from_slice(&area.0[XsaveArea::YMM_HIGH..]);
    } else {
        let low = 8 * 16;
        let xmm8 = XsaveArea::XMM + low;
        cpu.fpu.0[..xmm8].copy_from_slice(&area.0[..xmm8]);
        let high = XsaveArea::YMM_HIGH..XsaveArea::YMM_HIGH + low;
        cpu.fpu.0[high.clone()].copy_from_slice(&area.0[high]);
    }
    match explicit {
        Some(register) => cpu.gpr[register] = rax,
        None => {
            cpu.gpr[0] = rax;
            cpu.gpr[1] = rcx;
            cpu.gpr[2] = rdx;
        }
    }
    cpu.rflags = cpu.rflags & !STATUS | flags & STATUS;
}
