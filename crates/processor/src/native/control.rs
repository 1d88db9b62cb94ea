//! x87 control: control, status and tag words, environment, the whole state (SDM vol. 1 8.1).

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::{
    X87_EXCEPTIONS, X87_PENDING, at, get16, operand_address, put16, put64, read_operand, wait,
    write_operand,
};
use crate::platform::Platform;
use crate::state::{Cpu, Mode, XsaveArea, reg, seg};
use crate::stop::{Access, Stop};
use x86::cpuid::Feature;

/// FCW as FNINIT leaves it.
const FCW_INIT: u16 = 0x037f;
/// Bits of FCW that can be written, and the one that always is set.
const FCW_WRITABLE: u16 = 0x1f3f;
const FCW_ONE: u16 = 0x0040;

const ZERO_FCS_FDS: Feature = Feature::of("zero-fcs-fds");
const FDP_EXCPTN_ONLY: Feature = Feature::of("fdp-excptn-only");

/// Longest image: FSAVE's of 32 bits.
const MAX_IMAGE: usize = 108;

fn top(area: &XsaveArea) -> usize {
    usize::from(get16(area, at::FSW) >> 11 & 7)
}

/// Sets TOP. The area has registers in the order of the stack, so they move.
fn set_top(area: &mut XsaveArea, new: usize) {
    let old = top(area);
    area.0[at::ST..at::ST + 128].rotate_left((new + 8 - old) % 8 * 16);
    let fsw = get16(area, at::FSW) & !(7 << 11) | (new as u16 & 7) << 11;
    put16(area, at::FSW, fsw);
}

/// Makes ES and B follow flags and masks.
fn summarize(area: &mut XsaveArea) {
    let fsw = get16(area, at::FSW);
    let pending = fsw & !get16(area, at::FCW) & X87_EXCEPTIONS != 0;
    let summary = if pending { X87_PENDING } else { 0 };
    put16(area, at::FSW, fsw & !X87_PENDING | summary);
}

fn set_fcw(area: &mut XsaveArea, value: u16) {
    put16(area, at::FCW, value & FCW_WRITABLE | FCW_ONE);
    summarize(area);
}

fn init(area: &mut XsaveArea) {
    set_top(area, 0);
    put16(area, at::FCW, FCW_INIT);
    put16(area, at::FSW, 0);
    area.0[at::FTW..at::MXCSR].fill(0);
}

/// What the use of an MMX register does to the x87 state: TOP 0, all registers in use.
pub(super) fn enter_mmx(cpu: &mut Cpu) {
    set_top(&mut cpu.fpu, 0);
    cpu.fpu.0[at::FTW] = 0xff;
}

/// One byte of an MMX register, which are the x87 registers by number and not by place in the
/// stack.
pub(super) fn mm_byte(area: &XsaveArea, register: usize, byte: usize) -> u8 {
    let slot = (register + 8 - top(area)) % 8;
    area.0[at::ST + 16 * slot + byte]
}

/// Records instruction and operand for an exception handler.
pub(super) fn set_pointers(
    cpu: &Cpu,
    area: &mut XsaveArea,
    i: &Instruction,
    opcode: u16,
    data: Option<u64>,
    pending: bool,
) {
    let selectors = !cpu.mode.has(Mode::CODE64) && !cpu.features.contains(ZERO_FCS_FDS);
    let pointer = |segment: usize, offset: u64| {
        if cpu.mode.has(Mode::CODE64) {
            offset
        } else if selectors {
            offset & 0xffff_ffff | u64::from(cpu.segs[segment].selector) << 32
        } else {
            offset & 0xffff_ffff
        }
    };
    put16(area, at::FOP, opcode);
    put64(area, at::FIP, pointer(seg::CS, cpu.rip));
    if let Some(offset) = data
        && (pending || !cpu.features.contains(FDP_EXCPTN_ONLY))
    {
        put64(area, at::FDP, pointer(super::segment(i), offset));
    }
}

/// Two bits for each register, by number (SDM vol. 1 8.1.7).
fn full_tags(area: &XsaveArea) -> u16 {
    let top = top(area);
    (0..8).fold(0, |tags, register| {
        let slot = at::ST + 16 * ((register + 8 - top) % 8);
        let mut mantissa = [0; 8];
        mantissa.copy_from_slice(&area.0[slot..slot + 8]);
        let mantissa = u64::from_le_bytes(mantissa);
        let exponent = get16(area, slot + 8) & 0x7fff;
        let tag = if area.0[at::FTW] >> register & 1 == 0 {
            3
        } else if exponent == 0 && mantissa == 0 {
            1
        } else if exponent == 0 || exponent == 0x7fff || mantissa >> 63 == 0 {
            2
        } else {
            0
        };
        tags | tag << (2 * register)
    })
}

fn set_full_tags(area: &mut XsaveArea, tags: u16) {
    area.0[at::FTW] = (0..8).fold(0, |out, register| {
        let used = tags >> (2 * register) & 3 != 3;
        out | u8::from(used) << register
    });
}

/// Whether an environment has real-mode format.
fn real(cpu: &Cpu) -> bool {
    !cpu.mode.has(Mode::PROTECTED) || cpu.mode.has(Mode::VM86)
}

/// The environment in memory: figures 8-9 to 8-12 of SDM vol. 1.
fn store_environment(cpu: &Cpu, wide: bool, out: &mut [u8]) {
    let area = &*cpu.fpu;
    let word = |at| get16(area, at);
    let dword = |at| u32::from(get16(area, at)) | u32::from(get16(area, at + 2)) << 16;
    let (fip, fdp) = (dword(at::FIP), dword(at::FDP));
    let (fcs, fds) = if cpu.mode.has(Mode::CODE64) {
        (0, 0)
    } else {
        (word(at::FIP + 4), word(at::FDP + 4))
    };
    let fop = word(at::FOP) & 0x7ff;
    let [low_ip, low_dp] = [fip as u16, fdp as u16];
    let rest = if real(cpu) {
        let high = |pointer: u32| (pointer >> 16) << 12;
        [
            u32::from(low_ip),
            high(fip) | u32::from(fop),
            u32::from(low_dp),
            high(fdp),
        ]
    } else {
        [
            fip,
            u32::from(fcs) | u32::from(fop) << 16,
            fdp,
            0xffff_0000 | u32::from(fds),
        ]
    };
    let words = [word(at::FCW), word(at::FSW), full_tags(area)].map(u32::from);
    let all = words.iter().map(|w| w | 0xffff_0000).chain(rest);
    let width = if wide { 4 } else { 2 };
    for (place, value) in out.chunks_exact_mut(width).zip(all) {
        place.copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

/// The opposite; pointers that a format has no room for are zero.
fn load_environment(cpu: &mut Cpu, wide: bool, image: &[u8]) {
    let width = if wide { 4 } else { 2 };
    let mut fields = [0_u32; 7];
    for (field, bytes) in fields.iter_mut().zip(image.chunks_exact(width)) {
        *field = bytes
            .iter()
            .rev()
            .fold(0, |value, &b| value << 8 | u32::from(b));
    }
    let [fcw, fsw, tags, ip, cs, dp, ds] = fields;
    let (fip, fdp, fop) = if real(cpu) {
        let pointer = |low: u32, high: u32| u64::from(low & 0xffff | (high >> 12) << 16);
        (pointer(ip, cs), pointer(dp, ds), cs & 0x7ff)
    } else {
        let pointer =
            |offset: u32, selector: u32| u64::from(offset) | u64::from(selector & 0xffff) << 32;
        let long = cpu.mode.has(Mode::CODE64);
        let fop = if wide { cs >> 16 & 0x7ff } else { 0 };
        if long {
            (u64::from(ip), u64::from(dp), fop)
        } else {
            (pointer(ip, cs), pointer(dp, ds), fop)
        }
    };
    let area = &mut *cpu.fpu;
    set_top(area, (fsw >> 11 & 7) as usize);
    put16(area, at::FSW, fsw as u16);
    set_full_tags(area, tags as u16);
    put16(area, at::FOP, fop as u16);
    put64(area, at::FIP, fip);
    put64(area, at::FDP, fdp);
    set_fcw(area, fcw as u16);
}

/// Length of the environment, and whether it has 32-bit fields.
fn format(code: Code) -> (usize, bool) {
    match code {
        Code::Fnstenv_m14byte
        | Code::Fldenv_m14byte
        | Code::Fnsave_m94byte
        | Code::Frstor_m94byte => (14, false),
        _ => (28, true),
    }
}

/// Runs one control instruction.
pub(super) fn execute(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    use Mnemonic as M;
    let mut buffer = [0; MAX_IMAGE];
    match i.mnemonic() {
        M::Fnclex => {
            let fsw = get16(&cpu.fpu, at::FSW) & 0x7f00;
            put16(&mut cpu.fpu, at::FSW, fsw);
        }
        M::Fninit => init(&mut cpu.fpu),
        M::Fldcw => {
            wait(cpu)?;
            let image = &mut buffer[..2];
            let (linear, _) = operand_address(cpu, i, 2, Access::Read)?;
            read_operand(cpu, p, linear, image)?;
            let value = u16::from_le_bytes([image[0], image[1]]);
            set_fcw(&mut cpu.fpu, value);
        }
        M::Fnstcw | M::Fnstsw => {
            let from = if i.mnemonic() == M::Fnstcw {
                at::FCW
            } else {
                at::FSW
            };
            let value = get16(&cpu.fpu, from);
            if i.op0_kind() == OpKind::Register {
                cpu.gpr[reg::RAX] = cpu.gpr[reg::RAX] & !0xffff | u64::from(value);
            } else {
                let (linear, _) = operand_address(cpu, i, 2, Access::Write)?;
                write_operand(cpu, p, linear, &value.to_le_bytes())?;
            }
        }
        M::Fnstenv | M::Fnsave => {
            let (len, wide) = format(i.code());
            let all = i.mnemonic() == M::Fnsave;
            let total = if all { len + 80 } else { len };
            let (linear, _) = operand_address(cpu, i, total as u64, Access::Write)?;
            let image = &mut buffer[..total];
            store_environment(cpu, wide, &mut image[..len]);
            for (slot, out) in image[len..].chunks_exact_mut(10).enumerate() {
                let from = at::ST + 16 * slot;
                out.copy_from_slice(&cpu.fpu.0[from..from + 10]);
            }
            write_operand(cpu, p, linear, image)?;
            if all {
                init(&mut cpu.fpu);
            } else {
                let fcw = get16(&cpu.fpu, at::FCW);
                set_fcw(&mut cpu.fpu, fcw | X87_EXCEPTIONS);
            }
        }
        M::Fldenv | M::Frstor => {
            wait(cpu)?;
            let (len, wide) = format(i.code());
            let all = i.mnemonic() == M::Frstor;
            let total = if all { len + 80 } else { len };
            let (linear, _) = operand_address(cpu, i, total as u64, Access::Read)?;
            let image = &mut buffer[..total];
            read_operand(cpu, p, linear, image)?;
            load_environment(cpu, wide, &image[..len]);
            for (slot, from) in image[len..].chunks_exact(10).enumerate() {
                let to = at::ST + 16 * slot;
                cpu.fpu.0[to..to + 10].copy_from_slice(from);
                cpu.fpu.0[to + 10..to + 16].fill(0);
            }
        }
        // FENI, FDISI and FSETPM mean nothing since the 387.
        _ => {}
    }
    Ok(())
}
