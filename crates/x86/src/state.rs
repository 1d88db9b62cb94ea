//! The complete, neutral state of one processor.
//!
//! Both accelerators fill a [`CpuState`] and are set from one, so that a machine can be saved on
//! one and go on under the other. Its parts are plain structs with the processor's own names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

mod lapic;
mod segment;
#[cfg(test)]
mod tests;

pub use lapic::LapicState;
pub use segment::{DescriptorTable, Segment};

use crate::cr::{cr0, rflags, xcr0};
use crate::msr;

/// Everything that a processor knows.
///
/// Contract of the accelerators: an MSR of [`msr::SAVED`] that is missing from `msrs` has its
/// reset value ([`msr::reset_value`]) and is set to it when the state is applied; `lapic: None`
/// leaves the local APIC alone. An MSR in `msrs` that the accelerator does not know is an error
/// unless its value is its reset value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuState {
    /// General registers.
    pub regs: Regs,
    /// Segment, table and control registers.
    pub sregs: Sregs,
    /// Debug registers.
    pub debug: DebugRegs,
    /// The XSAVE area in standard (not compacted) format, as CPUID leaf 0xD lays it out (SDM
    /// vol. 1 13.4); at least 576 bytes.
    #[serde(with = "crate::bytes")]
    pub xsave: Vec<u8>,
    /// Extended control registers by number; XCR0 is the only one there is.
    pub xcrs: BTreeMap<u32, u64>,
    /// Model-specific registers by number, paravirtual ones among them. EFER and APIC_BASE are
    /// not here but in `sregs`.
    pub msrs: BTreeMap<u32, u64>,
    /// Local APIC.
    pub lapic: Option<LapicState>,
    /// Exceptions and interrupts under way.
    pub events: PendingEvents,
    /// Whether the processor runs, sleeps or waits to be started.
    pub mp_state: MpState,
    /// Frequency of the time stamp counter in kHz, where the guest was promised one.
    pub tsc_khz: Option<u32>,
}

impl CpuState {
    /// State after power-on (SDM vol. 3A table 10-1), of a bootstrap processor.
    ///
    /// One deliberate difference: the x87 unit is as FNINIT leaves it, not as a cold start does
    /// (control word 0x40). KVM and QEMU start processors so, and guests were written on those.
    ///
    /// RDX, which holds the processor's signature, is zero; see [`CpuState::reset_with`].
    pub fn reset() -> Self {
        CpuState {
            regs: Regs {
                rip: 0xfff0,
                rflags: rflags::RESERVED_ONE,
                ..Regs::default()
            },
            sregs: Sregs::reset(),
            debug: DebugRegs::default(),
            xsave: Self::reset_xsave(),
            xcrs: BTreeMap::from([(0, xcr0::X87)]),
            msrs: msr::SAVED
                .iter()
                .map(|&index| (index, msr::reset_value(index)))
                .filter(|&(_, value)| value != 0)
                .collect(),
            lapic: None,
            events: PendingEvents::default(),
            mp_state: MpState::Runnable,
            tsc_khz: None,
        }
    }

    /// State after power-on of the processor with this signature (EAX of CPUID leaf 1, handed
    /// over in RDX) and role: all but the bootstrap processor wait for a start-up IPI.
    pub fn reset_with(signature: u32, bootstrap: bool) -> Self {
        let mut state = Self::reset();
        state.regs.rdx = signature.into();
        if !bootstrap {
            state.sregs.apic_base &= !msr::apic_base::BSP;
            state.mp_state = MpState::Uninitialized;
        }
        state
    }

    /// What an INIT does (SDM vol. 3A table 10-1, column INIT): as a reset, but the x87 and SSE
    /// state, the XCRs, the MSRs, CR0's cache bits and the local APIC's base and ID are kept.
    /// Clearing the rest of the local APIC is left to its owner.
    pub fn init(&mut self, signature: u32) {
        let reset = Self::reset_with(signature, true);
        let cache = self.sregs.cr0 & (cr0::CD | cr0::NW);
        self.sregs = Sregs {
            apic_base: self.sregs.apic_base,
            cr0: cr0::ET | cache,
            ..reset.sregs
        };
        self.regs = reset.regs;
        self.debug = reset.debug;
        self.events = reset.events;
        self.mp_state = if self.sregs.apic_base & msr::apic_base::BSP == 0 {
            MpState::InitReceived
        } else {
            MpState::Runnable
        };
    }

    /// What a start-up IPI with this vector does: real mode at `vector << 12`.
    pub fn sipi(&mut self, vector: u8) {
        self.sregs.cs = Segment::real_mode_code(u16::from(vector) << 8);
        self.regs.rip = 0;
        self.mp_state = MpState::Runnable;
    }

    /// XSAVE area of a processor after reset: FCW 0x37f, MXCSR 0x1f80, all components initial.
    fn reset_xsave() -> Vec<u8> {
        let mut area = vec![0; XSAVE_LEGACY_LEN + XSAVE_HEADER_LEN];
        area[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        let xstate_bv = xcr0::X87 | xcr0::SSE;
        area[XSAVE_LEGACY_LEN..][..8].copy_from_slice(&xstate_bv.to_le_bytes());
        area
    }

    /// Value of an MSR: from the map, its reset value otherwise.
    pub fn msr(&self, index: u32) -> u64 {
        match index {
            msr::EFER => self.sregs.efer,
            msr::APIC_BASE => self.sregs.apic_base,
            msr::FS_BASE => self.sregs.fs.base,
            msr::GS_BASE => self.sregs.gs.base,
            _ => self
                .msrs
                .get(&index)
                .copied()
                .unwrap_or_else(|| msr::reset_value(index)),
        }
    }
}

impl Default for CpuState {
    fn default() -> Self {
        Self::reset()
    }
}

/// Length of the legacy region of the XSAVE area (SDM vol. 1 13.4.1), bytes.
pub const XSAVE_LEGACY_LEN: usize = 512;
/// Length of the XSAVE header (SDM vol. 1 13.4.2), bytes.
pub const XSAVE_HEADER_LEN: usize = 64;

/// General registers, instruction pointer and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is the register of that name")]
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// Segment, table and control registers, EFER and APIC_BASE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is the register of that name")]
pub struct Sregs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// Task priority class, bits 7:4 of the local APIC's TPR.
    pub cr8: u64,
    pub efer: u64,
    /// IA32_APIC_BASE; its bits are in [`msr::apic_base`].
    pub apic_base: u64,
    /// The four page-directory pointers as last loaded, under PAE paging. None elsewhere, or
    /// where the accelerator reads them from memory again.
    pub pdptrs: Option<[u64; 4]>,
}

impl Sregs {
    /// Values after power-on (SDM vol. 3A table 10-1), of a bootstrap processor.
    pub fn reset() -> Self {
        let data = Segment::real_mode_data(0);
        let table = DescriptorTable {
            base: 0,
            limit: 0xffff,
        };
        Sregs {
            cs: Segment {
                base: 0xffff_0000,
                ..Segment::real_mode_code(0xf000)
            },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment {
                s: false,
                type_: Segment::TYPE_TSS_BUSY,
                ..data
            },
            ldt: Segment {
                s: false,
                type_: Segment::TYPE_LDT,
                ..data
            },
            gdt: table,
            idt: table,
            cr0: cr0::ET | cr0::NW | cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            apic_base: msr::apic_base::RESET | msr::apic_base::BSP,
            pdptrs: None,
        }
    }
}

impl Default for Sregs {
    fn default() -> Self {
        Self::reset()
    }
}

/// Debug registers. The default is their reset state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebugRegs {
    /// DR0 to DR3: breakpoint addresses.
    pub db: [u64; 4],
    /// DR6: status.
    pub dr6: u64,
    /// DR7: control.
    pub dr7: u64,
}

impl Default for DebugRegs {
    fn default() -> Self {
        DebugRegs {
            db: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
        }
    }
}

/// Exceptions and interrupts that are on their way into the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PendingEvents {
    /// Exception.
    pub exception: ExceptionState,
    /// External or software interrupt.
    pub interrupt: InterruptState,
    /// Non-maskable interrupt.
    pub nmi: NmiState,
    /// System management interrupt and mode.
    pub smi: SmiState,
    /// Vector of a start-up IPI that has been received and not acted upon (see
    /// [`MpState::SipiReceived`]).
    pub sipi_vector: u32,
    /// A triple fault has happened and the machine has not been told.
    pub triple_fault_pending: bool,
}

/// An exception raised or being delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExceptionState {
    /// Its delivery has begun (side effects such as CR2 are done) and goes on at entry.
    pub injected: bool,
    /// It has been raised; its side effects are still to come.
    pub pending: bool,
    /// Vector.
    pub nr: u8,
    /// Whether an error code is pushed.
    pub has_error_code: bool,
    /// The error code.
    pub error_code: u32,
    /// Value for CR2 (#PF) or DR6 (#DB) that a pending exception brings.
    pub payload: Option<u64>,
}

/// An interrupt being delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterruptState {
    /// Acknowledged at the interrupt controller, to be delivered at entry.
    pub injected: bool,
    /// Vector.
    pub nr: u8,
    /// Raised by INT n, not by hardware.
    pub soft: bool,
    /// Interrupts are held off for one instruction: bit 0 after MOV SS, bit 1 after STI.
    pub shadow: u8,
}

/// Non-maskable interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NmiState {
    /// Its delivery has begun.
    pub injected: bool,
    /// One waits.
    pub pending: bool,
    /// One is being handled: further ones wait for IRET.
    pub masked: bool,
}

/// System management mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmiState {
    /// The processor is in system management mode.
    pub smm: bool,
    /// An SMI waits.
    pub pending: bool,
    /// The SMI came while an NMI was being handled.
    pub smm_inside_nmi: bool,
    /// An INIT came while in system management mode and waits for RSM.
    pub latched_init: bool,
}

/// Whether a processor executes (the multiprocessor start-up protocol, SDM vol. 3A 9.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MpState {
    /// Executes instructions.
    #[default]
    Runnable,
    /// An application processor that has not had its INIT.
    Uninitialized,
    /// Waits for a start-up IPI.
    InitReceived,
    /// In HLT, waits for an interrupt.
    Halted,
    /// Got its start-up IPI and is about to run.
    SipiReceived,
}
