//! FXSAVE, XSAVE and their ways back (SDM vol. 1 10.5, 13.4 to 13.12), in the standard and in the
//! compacted format. There are no supervisor components, so that XSAVES is XSAVEC for kernels.

use iced_x86::{Instruction, Mnemonic};
use x86::Feature;
use x86::cr::{efer, xcr0};

use crate::mmu::As;
use crate::platform::Platform;
use crate::state::{Cpu, Mode, XsaveArea, reg};
use crate::stop::{Access, Exception, Stop};
use crate::system::operand::address;
use crate::system::{offered, privileged};

/// XCOMP_BV: the area is in the compacted format.
const COMPACTED: u64 = 1 << 63;

/// Components that this processor has.
const ALL: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
/// End of XMM7 and of XMM15.
const XMM8: usize = XsaveArea::XMM + 128;
const XMM_END: usize = XsaveArea::XMM + 256;
/// Upper halves of YMM8 to YMM15.
const YMM8: usize = XsaveArea::YMM_HIGH + 128;

const GP: Stop = Stop::Exception(Exception::gp(0));

/// Components that are not in their initial state.
pub(super) fn in_use(cpu: &Cpu) -> u64 {
    let bytes = &cpu.fpu.0;
    let zero = |range: &[u8]| range.iter().fold(0, |all, byte| all | byte) == 0;
    let mut used = 0;
    let fresh = bytes[..2] == 0x37fu16.to_le_bytes()
        && zero(&bytes[2..24])
        && zero(&bytes[32..XsaveArea::XMM]);
    if !fresh {
        used |= xcr0::X87;
    }
    if !zero(&bytes[XsaveArea::XMM..XMM_END]) || mxcsr(bytes) != 0x1f80 {
        used |= xcr0::SSE;
    }
    if !zero(&bytes[XsaveArea::YMM_HIGH..]) {
        used |= xcr0::AVX;
    }
    used
}

fn mxcsr(area: &[u8]) -> u32 {
    area.get(24..28)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

pub(super) fn execute(cpu: &mut Cpu, p: &mut dyn Platform, i: &Instruction) -> Result<(), Stop> {
    let fx = matches!(
        i.mnemonic(),
        Mnemonic::Fxsave | Mnemonic::Fxsave64 | Mnemonic::Fxrstor | Mnemonic::Fxrstor64
    );
    let nm = if fx {
        offered(cpu, const { Feature::of("fxsr") })?;
        cpu.mode.has(Mode::TS) || cpu.mode.has(Mode::EM)
    } else {
        if !cpu.mode.has(Mode::OSXSAVE) {
            return Err(Exception::ud().into());
        }
        if matches!(i.mnemonic(), Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64) {
            offered(cpu, const { Feature::of("xsaveopt") })?;
        }
        if is_compacting(i.mnemonic()) {
            offered(cpu, const { Feature::of("xsavec") })?;
        }
        if is_supervisors(i.mnemonic()) {
            offered(cpu, const { Feature::of("xsaves") })?;
        }
        cpu.mode.has(Mode::TS)
    };
    if nm {
        return Err(Exception::plain(Exception::NM).into());
    }
    if is_supervisors(i.mnemonic()) {
        privileged(cpu)?;
    }
    let wide = matches!(
        i.mnemonic(),
        Mnemonic::Fxsave64
            | Mnemonic::Fxrstor64
            | Mnemonic::Xsave64
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaves64
            | Mnemonic::Xrstor64
            | Mnemonic::Xrstors64
    );
    let mask = cpu.gpr[reg::RDX] << 32 | cpu.gpr[reg::RAX] & 0xffff_ffff;
    let components = cpu.xcr0 & mask & ALL;
    match i.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => {
            let at = aligned(cpu, i, 512, 16, Access::Write)?;
            let xmm_end = fxsave_end(cpu);
            save(cpu, p, at, xcr0::X87 | xcr0::SSE, wide, xmm_end)
        }
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
            let at = aligned(cpu, i, 512, 16, Access::Read)?;
            fxrstor(cpu, p, at, wide)
        }
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => {
            let at = aligned(cpu, i, area_len(components), 64, Access::Read)?;
            xrstor(cpu, p, at, components, wide, false)
        }
        Mnemonic::Xrstors | Mnemonic::Xrstors64 => {
            let at = aligned(cpu, i, area_len(components), 64, Access::Read)?;
            xrstor(cpu, p, at, components, wide, true)
        }
        Mnemonic::Xsavec | Mnemonic::Xsavec64 | Mnemonic::Xsaves | Mnemonic::Xsaves64 => {
            let at = aligned(cpu, i, area_len(components), 64, Access::Write)?;
            xsavec(cpu, p, at, components, wide)
        }
        _ => {
            let at = aligned(cpu, i, area_len(components), 64, Access::Write)?;
            xsave(cpu, p, at, components, wide)
        }
    }
}

fn is_compacting(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Xsavec | Mnemonic::Xsavec64)
}

fn is_supervisors(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Xsaves | Mnemonic::Xsaves64 | Mnemonic::Xrstors | Mnemonic::Xrstors64
    )
}

/// Where the XMM registers end that code of this size has.
fn xmm_end(cpu: &Cpu) -> usize {
    if cpu.code64() { XMM_END } else { XMM8 }
}

/// The same for FXSAVE and FXRSTOR: the kernel may have switched XMM registers off in them (EFER,
/// bit FFXSR; APM vol. 2 11.4.4).
fn fxsave_end(cpu: &Cpu) -> usize {
    if cpu.efer & efer::FFXSR != 0 && cpu.code64() && cpu.cpl() == 0 {
        XsaveArea::XMM
    } else {
        xmm_end(cpu)
    }
}

fn area_len(components: u64) -> u64 {
    if components & xcr0::AVX != 0 {
        XsaveArea::LEN as u64
    } else {
        576
    }
}

fn aligned(
    cpu: &mut Cpu,
    i: &Instruction,
    len: u64,
    alignment: u64,
    access: Access,
) -> Result<u64, Stop> {
    let at = address(cpu, i, 0, len, access)?;
    if at & (alignment - 1) != 0 {
        return Err(GP);
    }
    Ok(at)
}

/// Which parts of an area are written.
#[derive(Debug, Clone, Copy)]
struct Runs {
    x87: bool,
    mxcsr: bool,
    sse: bool,
    avx: bool,
}

impl Runs {
    /// All that belongs to these components.
    fn of(components: u64) -> Self {
        let (sse, avx) = (components & xcr0::SSE != 0, components & xcr0::AVX != 0);
        Runs {
            x87: components & xcr0::X87 != 0,
            mxcsr: sse || avx,
            sse,
            avx,
        }
    }
}

/// Writes these components' parts of the legacy region and the upper halves of YMM; leaves all
/// other bytes alone.
fn save(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    at: u64,
    components: u64,
    wide: bool,
    xmm_end: usize,
) -> Result<(), Stop> {
    save_runs(cpu, p, at, Runs::of(components), wide, xmm_end)
}

fn save_runs(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    at: u64,
    Runs {
        x87,
        mxcsr,
        sse,
        avx,
    }: Runs,
    wide: bool,
    xmm_end: usize,
) -> Result<(), Stop> {
    let mut image = cpu.fpu.0;
    image[28..32].copy_from_slice(&cpu.mxcsr_bits().to_le_bytes());
    if !wide {
        cut_pointers(&mut image, cpu.code64());
    }
    let ymm_end = if cpu.code64() { XsaveArea::LEN } else { YMM8 };
    let mut runs: [(bool, usize, usize); 5] = [
        (x87, 0, 24),
        (mxcsr, 24, 32),
        (x87, 32, XsaveArea::XMM),
        (sse, XsaveArea::XMM, xmm_end),
        (avx, XsaveArea::YMM_HIGH, ymm_end),
    ];
    if x87 && sse {
        runs = [
            (true, 0, xmm_end),
            (avx, XsaveArea::YMM_HIGH, ymm_end),
            (false, 0, 0),
            (false, 0, 0),
            (false, 0, 0),
        ];
    }
    let last = runs.iter().filter(|r| r.0).map(|r| r.2).max();
    if let Some(last) = last {
        cpu.probe(at, last as u64, Access::Write, As::Current)?;
    }
    for (_, from, to) in runs.into_iter().filter(|r| r.0) {
        cpu.write_bytes(
            p,
            at.wrapping_add(from as u64),
            &image[from..to],
            As::Current,
        )?;
    }
    Ok(())
}

fn xsave(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    at: u64,
    components: u64,
    wide: bool,
) -> Result<(), Stop> {
    let used = in_use(cpu);
    let header = at.wrapping_add(XsaveArea::HEADER as u64);
    cpu.probe(at, area_len(components), Access::Write, As::Current)?;
    let old = cpu.read::<u64>(p, header, As::Current)?;
    let xmm_end = xmm_end(cpu);
    save(cpu, p, at, components, wide, xmm_end)?;
    let new = old & !components | used & components;
    cpu.write::<u64>(p, header, new, As::Current)
}

/// XSAVEC and XSAVES: what is in its initial state is not written. The only component behind the
/// header lies where the standard format has it.
fn xsavec(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    at: u64,
    components: u64,
    wide: bool,
) -> Result<(), Stop> {
    let used = in_use(cpu) & components;
    let header = at.wrapping_add(XsaveArea::HEADER as u64);
    cpu.probe(at, area_len(components), Access::Write, As::Current)?;
    let xmm_end = xmm_end(cpu);
    let runs = Runs {
        mxcsr: used & xcr0::SSE != 0,
        ..Runs::of(used)
    };
    save_runs(cpu, p, at, runs, wide, xmm_end)?;
    let mut words = [0; 16];
    words[..8].copy_from_slice(&used.to_le_bytes());
    words[8..].copy_from_slice(&(COMPACTED | components).to_le_bytes());
    cpu.write_bytes(p, header, &words, As::Current)
}

/// Instruction and data pointer in their 32-bit format: an offset, and a selector that is kept
/// outside of 64-bit mode only.
fn cut_pointers(area: &mut [u8], code64: bool) {
    let kept = if code64 { 4 } else { 6 };
    for pointer in area[8..24].chunks_exact_mut(8) {
        pointer[kept..].fill(0);
    }
}

/// Puts x87 state into the processor.
fn load_x87(cpu: &mut Cpu, image: &[u8], wide: bool) {
    let code64 = cpu.code64();
    let bytes = &mut cpu.fpu.0;
    bytes[..24].copy_from_slice(&image[..24]);
    // The byte behind the tag word is reserved.
    bytes[5] = 0;
    if !wide {
        cut_pointers(bytes, code64);
    }
    bytes[32..XsaveArea::XMM].copy_from_slice(&image[32..XsaveArea::XMM]);
    // Ten bytes a register; the rest is reserved.
    for register in bytes[32..XsaveArea::XMM].chunks_exact_mut(16) {
        register[10..].fill(0);
    }
}

fn load_mxcsr(cpu: &mut Cpu, image: &[u8]) {
    cpu.fpu.0[24..28].copy_from_slice(&image[24..28]);
}

fn fxrstor(cpu: &mut Cpu, p: &mut dyn Platform, at: u64, wide: bool) -> Result<(), Stop> {
    let mut image = [0u8; 512];
    cpu.read_bytes(p, at, &mut image, As::Current)?;
    if mxcsr(&image) & !cpu.mxcsr_bits() != 0 {
        return Err(GP);
    }
    load_x87(cpu, &image, wide);
    load_mxcsr(cpu, &image);
    let end = fxsave_end(cpu);
    cpu.fpu.0[XsaveArea::XMM..end].copy_from_slice(&image[XsaveArea::XMM..end]);
    cpu.fpu.0[XsaveArea::HEADER] |= (xcr0::X87 | xcr0::SSE) as u8;
    Ok(())
}

fn xrstor(
    cpu: &mut Cpu,
    p: &mut dyn Platform,
    at: u64,
    components: u64,
    wide: bool,
    must_be_compacted: bool,
) -> Result<(), Stop> {
    let mut image = [0u8; XsaveArea::LEN];
    let header = XsaveArea::HEADER;
    cpu.read_bytes(
        p,
        at.wrapping_add(header as u64),
        &mut image[header..header + 64],
        As::Current,
    )?;
    let word = |n: usize| {
        image
            .get(header + 8 * n..header + 8 * n + 8)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    let (valid, format) = (word(0), word(1));
    let compacted = format & COMPACTED != 0;
    let good = if compacted {
        // Without XSAVEC there is no such format.
        (must_be_compacted || cpu.features.contains(const { Feature::of("xsavec") }))
            && format & !COMPACTED & !cpu.xcr0 == 0
            && valid & !format == 0
            && valid & COMPACTED == 0
            && (2..8).all(|n| word(n) == 0)
    } else {
        !must_be_compacted && valid & !cpu.xcr0 == 0 && format == 0 && word(2) == 0
    };
    if !good {
        return Err(GP);
    }
    cpu.read_bytes(p, at, &mut image[..header], As::Current)?;
    if components & valid & xcr0::AVX != 0 {
        let from = XsaveArea::YMM_HIGH;
        cpu.read_bytes(
            p,
            at.wrapping_add(from as u64),
            &mut image[from..],
            As::Current,
        )?;
    }
    // The compacted format has MXCSR as a part of SSE state, and an initial value of it.
    let mxcsr_of = if compacted {
        xcr0::SSE
    } else {
        xcr0::SSE | xcr0::AVX
    };
    let loads_mxcsr = components & mxcsr_of != 0;
    if compacted && valid & xcr0::SSE == 0 {
        image[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    }
    if loads_mxcsr && mxcsr(&image) & !cpu.mxcsr_bits() != 0 {
        return Err(GP);
    }
    let (xmm_end, ymm_end) = if cpu.code64() {
        (XMM_END, XsaveArea::LEN)
    } else {
        (XMM8, YMM8)
    };
    if components & xcr0::X87 != 0 {
        if valid & xcr0::X87 == 0 {
            image[..24].fill(0);
            image[..2].copy_from_slice(&0x37fu16.to_le_bytes());
            image[32..XsaveArea::XMM].fill(0);
        }
        load_x87(cpu, &image, wide);
    }
    if loads_mxcsr {
        load_mxcsr(cpu, &image);
    }
    let mut load = |component: u64, from: usize, to: usize| {
        if components & component == 0 {
            return;
        }
        let part = &mut cpu.fpu.0[from..to];
        if valid & component == 0 {
            part.fill(0);
        } else {
            part.copy_from_slice(&image[from..to]);
        }
    };
    load(xcr0::SSE, XsaveArea::XMM, xmm_end);
    load(xcr0::AVX, XsaveArea::YMM_HIGH, ymm_end);
    cpu.fpu.0[header] |= components as u8;
    Ok(())
}
