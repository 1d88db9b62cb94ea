//! The state of the processor, laid out for translated code.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use x86::cr::{cr0, cr4, efer, rflags};

use crate::decode::DecodeCache;
use crate::mmu::{FetchTlb, Filled, Paging};
use crate::ram::{CodePages, RamMap};
use crate::stop::{DeviceRequest, Exception};

mod convert;
mod cpu_box;
#[cfg(test)]
mod tests;

pub use cpu_box::{CpuBox, ProcessorError, TlbPlace};

/// A segment register: the parts that every access needs, at fixed offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Seg {
    /// First linear address.
    pub base: u64,
    /// Last offset in bytes.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Bits 8 to 23 of a descriptor's second word, moved to bit 0 (type, S, DPL, P, AVL, L, D/B,
    /// G; the four limit bits are zero), and [`Seg::UNUSABLE`].
    pub attributes: u16,
}

impl Seg {
    /// A null selector was loaded. One of the bits where a descriptor has its limit.
    pub const UNUSABLE: u16 = 1 << 8;
    /// S: code or data.
    pub const S: u16 = 1 << 4;
    /// Present.
    pub const P: u16 = 1 << 7;
    /// Available to the operating system.
    pub const AVL: u16 = 1 << 12;
    /// 64-bit code.
    pub const L: u16 = 1 << 13;
    /// Default size 32 bits, or a 32-bit stack.
    pub const DB: u16 = 1 << 14;
    /// The limit counts pages.
    pub const G: u16 = 1 << 15;

    /// Descriptor type, 4 bits.
    #[must_use]
    pub fn kind(&self) -> u8 {
        (self.attributes & 0xf) as u8
    }

    /// Descriptor privilege level.
    #[must_use]
    pub fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }
}

impl From<&x86::Segment> for Seg {
    fn from(s: &x86::Segment) -> Self {
        let bit = |on: bool, mask: u16| if on { mask } else { 0 };
        Seg {
            base: s.base,
            limit: s.limit,
            selector: s.selector,
            attributes: u16::from(s.type_ & 0xf)
                | bit(s.s, Self::S)
                | u16::from(s.dpl & 3) << 5
                | bit(s.present, Self::P)
                | bit(s.avl, Self::AVL)
                | bit(s.l, Self::L)
                | bit(s.db, Self::DB)
                | bit(s.g, Self::G)
                | bit(s.unusable, Self::UNUSABLE),
        }
    }
}

impl From<&Seg> for x86::Segment {
    fn from(s: &Seg) -> Self {
        let on = |mask: u16| s.attributes & mask != 0;
        x86::Segment {
            base: s.base,
            limit: s.limit,
            selector: s.selector,
            type_: s.kind(),
            present: on(Seg::P),
            dpl: s.dpl(),
            db: on(Seg::DB),
            s: on(Seg::S),
            l: on(Seg::L),
            g: on(Seg::G),
            avl: on(Seg::AVL),
            unusable: on(Seg::UNUSABLE),
        }
    }
}

/// Indices of general registers, as instructions encode them.
#[expect(missing_docs, reason = "the registers of those names")]
pub mod reg {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Indices of segment registers, as instructions encode them.
#[expect(missing_docs, reason = "the registers of those names")]
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// What decides the meaning of an instruction besides its bytes: part of the key of decoded and
/// translated code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Mode(pub u32);

#[expect(missing_docs, reason = "the bits of those names")]
impl Mode {
    /// Code size: 16, 32 or 64 bits.
    pub const CODE32: u32 = 1 << 0;
    pub const CODE64: u32 = 1 << 1;
    /// CPL, two bits.
    pub const CPL_SHIFT: u32 = 2;
    pub const LONG: u32 = 1 << 4;
    pub const PROTECTED: u32 = 1 << 5;
    pub const PAGING: u32 = 1 << 6;
    /// Virtual-8086 mode.
    pub const VM86: u32 = 1 << 7;
    /// x87 or SSE instructions raise #NM or #UD: CR0.TS, CR0.EM, CR0.MP, CR4.OSFXSR,
    /// CR4.OSXSAVE, XCR0.AVX.
    pub const TS: u32 = 1 << 8;
    pub const EM: u32 = 1 << 9;
    pub const MP: u32 = 1 << 10;
    pub const OSFXSR: u32 = 1 << 11;
    pub const OSXSAVE: u32 = 1 << 12;
    pub const AVX: u32 = 1 << 13;
    /// Single steps, or a breakpoint register is enabled.
    pub const STEP: u32 = 1 << 14;
    /// RDTSC, RDPMC, UMIP and FSGSBASE.
    pub const TSD: u32 = 1 << 15;
    pub const UMIP: u32 = 1 << 16;
    pub const FSGSBASE: u32 = 1 << 17;
    /// Supervisor accesses to user pages fault (CR4.SMAP and not RFLAGS.AC).
    pub const SMAP: u32 = 1 << 18;
    /// A stack segment of 32 bits.
    pub const STACK32: u32 = 1 << 19;
    /// Misaligned accesses raise #AC (CR0.AM, RFLAGS.AC, CPL 3).
    pub const ALIGNMENT: u32 = 1 << 20;

    /// Whether this bit is set.
    #[must_use]
    pub fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    /// Current privilege level.
    #[must_use]
    pub fn cpl(self) -> u8 {
        (self.0 >> Self::CPL_SHIFT & 3) as u8
    }
}

/// x87, SSE and AVX state: the standard XSAVE area (SDM vol. 1 13.4).
#[derive(Clone)]
#[repr(C, align(64))]
pub struct XsaveArea(pub [u8; XsaveArea::LEN]);

impl XsaveArea {
    /// Legacy region, header, upper halves of YMM0 to YMM15.
    pub const LEN: usize = 512 + 64 + 256;
    /// Offset of XMM0.
    pub const XMM: usize = 160;
    /// Offset of the header.
    pub const HEADER: usize = 512;
    /// Offset of YMM0's upper half.
    pub const YMM_HIGH: usize = 576;
}

/// MSRs that the core itself owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the registers of those names")]
pub struct Msrs {
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub tsc_adjust: u64,
    pub pat: u64,
    pub spec_ctrl: u64,
    pub misc_enable: u64,
    pub debugctl: u64,
    pub mtrr_def_type: u64,
    pub mtrr_variable: [u64; 16],
    pub mtrr_fixed: [u64; 11],
    pub mcg_status: u64,
    pub feature_control: u64,
}

/// Interrupts that are held off for one instruction.
#[expect(missing_docs, reason = "the instructions of those names")]
pub mod shadow {
    pub const MOV_SS: u8 = 1;
    pub const STI: u8 = 2;
}

/// Events that the platform holds back.
pub mod awaited {
    /// An interrupt, until interrupts are open.
    pub const INTERRUPT: u8 = 1;
    /// An NMI, until the one at hand has ended.
    pub const NMI: u8 = 2;
}

/// The bits of the attention word that the processor sets itself; the platform has the others.
pub mod attention {
    /// An awaited event can be delivered.
    pub const OPEN: u32 = 1 << 31;
}

/// One processor. Fields that translated code reads and writes come first; it finds them by
/// `offset_of!`. Outside of translated code every register is here and exact.
#[repr(C)]
pub struct Cpu {
    /// General registers in the order of their encoding.
    pub gpr: [u64; 16],
    /// Next instruction.
    pub rip: u64,
    /// All of RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segs: [Seg; 6],
    /// Not zero: somebody wants the thread back, or an event waits. Translated code polls it.
    pub attention: Arc<AtomicU32>,
    /// Added to the platform's time stamp counter.
    pub tsc_offset: u64,
    /// What the next instruction's meaning depends on; kept by [`Cpu::update_mode`].
    pub mode: Mode,
    /// Bits of [`shadow`]: set by the last instruction.
    pub interrupt_shadow: u8,
    /// An NMI is being handled.
    pub nmi_masked: bool,
    /// Bits of [`awaited`]: events that wait until the guest lets them in. The instruction that
    /// does sets [`attention::OPEN`].
    pub awaited: u8,

    /// x87, SSE, AVX.
    pub fpu: Box<XsaveArea>,
    /// Task register.
    pub tr: Seg,
    /// Local descriptor table.
    pub ldtr: Seg,
    /// Global descriptor table.
    pub gdtr: x86::DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: x86::DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// PAE page-directory pointers as last loaded.
    pub pdptrs: [u64; 4],
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// MSRs of the core.
    pub msrs: Msrs,
    /// What CPUID shows.
    pub cpuid: x86::Cpuid,
    /// The features among them, for quick look-up.
    pub features: x86::FeatureSet,
    /// Instructions completed, for the performance counters and for statistics.
    pub retired: u64,
    /// An exception whose delivery the state says is under way.
    pub pending: Option<Exception>,
    /// The device accesses of the instruction at hand that have been answered.
    pub(crate) answers: Vec<(DeviceRequest, u64)>,
    /// How many of them the instruction has used so far.
    pub(crate) answers_used: usize,
    /// Data breakpoints (bit n: DR n) that the instruction at hand has hit.
    pub(crate) breakpoints: u8,

    /// The soft TLB, a table for each view. Translated code reads it, [`CpuBox::TLB`] bytes
    /// behind the beginning.
    pub tlb: TlbPlace,
    pub(crate) filled: Filled,
    pub(crate) fetch: FetchTlb,
    pub(crate) decoded: DecodeCache,
    pub(crate) paging: Paging,
    /// RAM.
    pub(crate) ram: Arc<RamMap>,
    /// Which pages hold code.
    pub(crate) code: Arc<CodePages>,
}

/// What a [`Cpu`] is made of.
pub struct CpuSetup {
    /// What CPUID shows, with the processor's own IDs.
    pub cpuid: x86::Cpuid,
    /// The word that asks for attention.
    pub attention: Arc<AtomicU32>,
    /// RAM.
    pub ram: Arc<RamMap>,
    /// Flags of the machine's pages.
    pub code: Arc<CodePages>,
}

impl Cpu {
    /// A bootstrap processor after power-on.
    fn new(setup: CpuSetup, tlb: TlbPlace) -> Self {
        let signature = setup.cpuid.get(1, 0).map_or(0, |leaf| leaf.eax);
        let mut cpu = Cpu {
            gpr: [0; 16],
            rip: 0,
            rflags: rflags::RESERVED_ONE,
            segs: [Seg::default(); 6],
            attention: setup.attention,
            tsc_offset: 0,
            mode: Mode::default(),
            interrupt_shadow: 0,
            nmi_masked: false,
            awaited: 0,
            fpu: Box::new(XsaveArea::reset()),
            tr: Seg::default(),
            ldtr: Seg::default(),
            gdtr: x86::DescriptorTable::default(),
            idtr: x86::DescriptorTable::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 0,
            pdptrs: [0; 4],
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            msrs: Msrs::default(),
            features: x86::FeatureSet::from_cpuid(&setup.cpuid),
            paging: Paging::of(&setup.cpuid),
            cpuid: setup.cpuid,
            retired: 0,
            pending: None,
            answers: Vec::new(),
            answers_used: 0,
            breakpoints: 0,
            tlb,
            filled: Filled::default(),
            fetch: FetchTlb::new(),
            decoded: DecodeCache::default(),
            ram: setup.ram,
            code: setup.code,
        };
        cpu.set_state(&x86::CpuState::reset_with(signature, true));
        cpu
    }

    /// The RAM that the processor sees.
    #[must_use]
    pub fn ram(&self) -> &Arc<RamMap> {
        &self.ram
    }

    /// Which pages hold code.
    #[must_use]
    pub fn code_pages(&self) -> &Arc<CodePages> {
        &self.code
    }

    /// The map of RAM has changed.
    pub fn set_ram(&mut self, ram: Arc<RamMap>) {
        self.ram = ram;
        self.flush_tlb();
    }

    /// A debug register has changed: pages that it watches leave the soft TLB.
    pub fn debug_changed(&mut self) {
        self.update_mode();
        self.flush_tlb();
    }

    /// Current privilege level.
    #[must_use]
    pub fn cpl(&self) -> u8 {
        self.mode.cpl()
    }

    /// Computes [`Cpu::mode`] anew: call it whenever CR0, CR4, EFER, XCR0, RFLAGS (VM, TF, AC),
    /// CS, SS or DR7 has changed.
    pub fn update_mode(&mut self) {
        let cs = self.segs[seg::CS].attributes;
        let ss = &self.segs[seg::SS];
        let protected = self.cr0 & cr0::PE != 0;
        let vm86 = protected && self.rflags & rflags::VM != 0;
        let long = self.efer & efer::LMA != 0;
        let cpl = match (protected, vm86) {
            (false, _) => 0,
            (true, true) => 3,
            (true, false) => ss.dpl(),
        };
        let smap = self.cr4 & cr4::SMAP != 0 && self.rflags & rflags::AC == 0;
        let code64 = long && cs & Seg::L != 0;
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        let mode = u32::from(cpl) << Mode::CPL_SHIFT
            | bit(code64, Mode::CODE64)
            | bit(cs & Seg::DB != 0 && !code64, Mode::CODE32)
            | bit(long, Mode::LONG)
            | bit(protected, Mode::PROTECTED)
            | bit(self.cr0 & cr0::PG != 0, Mode::PAGING)
            | bit(vm86, Mode::VM86)
            | bit(self.cr0 & cr0::TS != 0, Mode::TS)
            | bit(self.cr0 & cr0::EM != 0, Mode::EM)
            | bit(self.cr0 & cr0::MP != 0, Mode::MP)
            | bit(self.cr4 & cr4::OSFXSR != 0, Mode::OSFXSR)
            | bit(self.cr4 & cr4::OSXSAVE != 0, Mode::OSXSAVE)
            | bit(self.xcr0 & x86::cr::xcr0::AVX != 0, Mode::AVX)
            | bit(
                self.rflags & rflags::TF != 0 || self.dr7 & 0xff != 0,
                Mode::STEP,
            )
            | bit(self.cr4 & cr4::TSD != 0, Mode::TSD)
            | bit(self.cr4 & cr4::UMIP != 0, Mode::UMIP)
            | bit(self.cr4 & cr4::FSGSBASE != 0, Mode::FSGSBASE)
            | bit(smap, Mode::SMAP)
            | bit(ss.attributes & Seg::DB != 0, Mode::STACK32)
            | bit(
                cpl == 3 && self.cr0 & cr0::AM != 0 && self.rflags & rflags::AC != 0,
                Mode::ALIGNMENT,
            );
        self.mode = Mode(mode);
    }
}
