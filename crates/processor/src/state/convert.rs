//! [`Cpu`] from and to [`x86::CpuState`].

use std::collections::BTreeMap;

use x86::cr::{cr0, cr4, efer, xcr0};
use x86::{CpuState, DebugRegs, ExceptionState, PendingEvents, Regs, Segment, Sregs, msr};

use crate::state::{Cpu, Msrs, Seg, XsaveArea, reg, seg};
use crate::stop::Exception;

impl Msrs {
    /// The MSRs that the core owns, but for EFER and the bases of FS and GS, which are in
    /// [`Cpu`].
    pub const OWNED: &'static [u32] = &[
        msr::SYSENTER_CS,
        msr::SYSENTER_ESP,
        msr::SYSENTER_EIP,
        msr::STAR,
        msr::LSTAR,
        msr::CSTAR,
        msr::SFMASK,
        msr::KERNEL_GS_BASE,
        msr::TSC_AUX,
        msr::TSC_ADJUST,
        msr::PAT,
        msr::SPEC_CTRL,
        msr::MISC_ENABLE,
        msr::DEBUGCTL,
        msr::MTRR_DEF_TYPE,
        msr::MTRR_PHYSBASE0,
        msr::MTRR_PHYSBASE0 + 1,
        msr::MTRR_PHYSBASE0 + 2,
        msr::MTRR_PHYSBASE0 + 3,
        msr::MTRR_PHYSBASE0 + 4,
        msr::MTRR_PHYSBASE0 + 5,
        msr::MTRR_PHYSBASE0 + 6,
        msr::MTRR_PHYSBASE0 + 7,
        msr::MTRR_PHYSBASE0 + 8,
        msr::MTRR_PHYSBASE0 + 9,
        msr::MTRR_PHYSBASE0 + 10,
        msr::MTRR_PHYSBASE0 + 11,
        msr::MTRR_PHYSBASE0 + 12,
        msr::MTRR_PHYSBASE0 + 13,
        msr::MTRR_PHYSBASE0 + 14,
        msr::MTRR_PHYSBASE0 + 15,
        msr::MTRR_FIX64K_00000,
        msr::MTRR_FIX16K_80000,
        msr::MTRR_FIX16K_A0000,
        msr::MTRR_FIX4K_C0000,
        msr::MTRR_FIX4K_C0000 + 1,
        msr::MTRR_FIX4K_C0000 + 2,
        msr::MTRR_FIX4K_C0000 + 3,
        msr::MTRR_FIX4K_C0000 + 4,
        msr::MTRR_FIX4K_C0000 + 5,
        msr::MTRR_FIX4K_C0000 + 6,
        msr::MTRR_FIX4K_C0000 + 7,
        msr::MCG_STATUS,
        msr::FEATURE_CONTROL,
    ];

    /// Where the core keeps this MSR, if it is one of [`Msrs::OWNED`].
    pub fn slot(&mut self, index: u32) -> Option<&mut u64> {
        Some(match index {
            msr::SYSENTER_CS => &mut self.sysenter_cs,
            msr::SYSENTER_ESP => &mut self.sysenter_esp,
            msr::SYSENTER_EIP => &mut self.sysenter_eip,
            msr::STAR => &mut self.star,
            msr::LSTAR => &mut self.lstar,
            msr::CSTAR => &mut self.cstar,
            msr::SFMASK => &mut self.sfmask,
            msr::KERNEL_GS_BASE => &mut self.kernel_gs_base,
            msr::TSC_AUX => &mut self.tsc_aux,
            msr::TSC_ADJUST => &mut self.tsc_adjust,
            msr::PAT => &mut self.pat,
            msr::SPEC_CTRL => &mut self.spec_ctrl,
            msr::MISC_ENABLE => &mut self.misc_enable,
            msr::DEBUGCTL => &mut self.debugctl,
            msr::MTRR_DEF_TYPE => &mut self.mtrr_def_type,
            msr::MCG_STATUS => &mut self.mcg_status,
            msr::FEATURE_CONTROL => &mut self.feature_control,
            msr::MTRR_FIX64K_00000 => &mut self.mtrr_fixed[0],
            msr::MTRR_FIX16K_80000 => &mut self.mtrr_fixed[1],
            msr::MTRR_FIX16K_A0000 => &mut self.mtrr_fixed[2],
            _ => {
                let variable = index.wrapping_sub(msr::MTRR_PHYSBASE0) as usize;
                let fixed = index.wrapping_sub(msr::MTRR_FIX4K_C0000) as usize;
                return match self.mtrr_variable.get_mut(variable) {
                    Some(slot) => Some(slot),
                    None if fixed < 8 => self.mtrr_fixed.get_mut(3 + fixed),
                    None => None,
                };
            }
        })
    }

    /// The value of one of [`Msrs::OWNED`].
    #[must_use]
    pub fn get(&self, index: u32) -> Option<u64> {
        let mut copy = *self;
        copy.slot(index).copied()
    }
}

impl Cpu {
    /// The core's part of the state. Left to the caller, and as after a reset here: the local
    /// APIC with CR8 and APIC_BASE, MSRs other than [`Msrs::OWNED`] (TSC among them), interrupts
    /// and NMIs on their way, whether the processor runs or sleeps.
    #[must_use]
    pub fn state(&self) -> CpuState {
        let gpr = &self.gpr;
        let segment = |n: usize| Segment::from(&self.segs[n]);
        let mut events = PendingEvents::default();
        events.interrupt.shadow = self.interrupt_shadow;
        events.nmi.masked = self.nmi_masked;
        if let Some(exception) = self.pending {
            events.exception = ExceptionState {
                injected: false,
                pending: true,
                nr: exception.vector,
                has_error_code: exception.error_code.is_some(),
                error_code: exception.error_code.unwrap_or(0),
                payload: matches!(exception.vector, Exception::PF | Exception::DB)
                    .then_some(exception.payload),
            };
        }
        let len = (self.cpuid.xsave_len() as usize).min(XsaveArea::LEN);
        let mut state = CpuState::reset();
        for &index in Msrs::OWNED {
            match self.msrs.get(index) {
                Some(value) if value != 0 || msr::reset_value(index) != 0 => {
                    state.msrs.insert(index, value);
                }
                _ => {}
            }
        }
        CpuState {
            regs: Regs {
                rax: gpr[reg::RAX],
                rbx: gpr[reg::RBX],
                rcx: gpr[reg::RCX],
                rdx: gpr[reg::RDX],
                rsi: gpr[reg::RSI],
                rdi: gpr[reg::RDI],
                rsp: gpr[reg::RSP],
                rbp: gpr[reg::RBP],
                r8: gpr[8],
                r9: gpr[9],
                r10: gpr[10],
                r11: gpr[11],
                r12: gpr[12],
                r13: gpr[13],
                r14: gpr[14],
                r15: gpr[15],
                rip: self.rip,
                rflags: self.rflags,
            },
            sregs: Sregs {
                cs: segment(seg::CS),
                ds: segment(seg::DS),
                es: segment(seg::ES),
                fs: segment(seg::FS),
                gs: segment(seg::GS),
                ss: segment(seg::SS),
                tr: Segment::from(&self.tr),
                ldt: Segment::from(&self.ldtr),
                gdt: self.gdtr,
                idt: self.idtr,
                cr0: self.cr0,
                cr2: self.cr2,
                cr3: self.cr3,
                cr4: self.cr4,
                efer: self.efer,
                pdptrs: self.is_pae().then_some(self.pdptrs),
                ..Sregs::reset()
            },
            debug: DebugRegs {
                db: self.dr,
                dr6: self.dr6,
                dr7: self.dr7,
            },
            xsave: self.fpu.0[..len].to_vec(),
            xcrs: BTreeMap::from([(0, self.xcr0)]),
            events,
            ..state
        }
    }

    /// Sets the core's part of a state; the rest is the caller's (see [`Cpu::state`]).
    pub fn set_state(&mut self, state: &CpuState) {
        let (regs, sregs) = (&state.regs, &state.sregs);
        self.gpr = [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        self.rip = regs.rip;
        self.rflags = regs.rflags;
        let segments = [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs];
        self.segs = segments.each_ref().map(Seg::from);
        self.tr = Seg::from(&sregs.tr);
        self.ldtr = Seg::from(&sregs.ldt);
        self.gdtr = sregs.gdt;
        self.idtr = sregs.idt;
        self.cr0 = sregs.cr0;
        self.cr2 = sregs.cr2;
        self.cr3 = sregs.cr3;
        self.cr4 = sregs.cr4;
        self.efer = sregs.efer;
        self.xcr0 = state.xcrs.get(&0).copied().unwrap_or(xcr0::X87);
        self.dr = state.debug.db;
        self.dr6 = state.debug.dr6;
        self.dr7 = state.debug.dr7;
        for &index in Msrs::OWNED {
            if let Some(slot) = self.msrs.slot(index) {
                *slot = state.msr(index);
            }
        }
        self.fpu.set(&state.xsave);
        // Translated code loads MXCSR as it is here.
        let known = self.mxcsr_bits().to_le_bytes();
        for (byte, known) in self.fpu.0[24..28].iter_mut().zip(known) {
            *byte &= known;
        }
        let events = &state.events;
        self.interrupt_shadow = events.interrupt.shadow;
        self.nmi_masked = events.nmi.masked;
        let exception = &events.exception;
        self.pending = (exception.injected || exception.pending).then(|| Exception {
            vector: exception.nr,
            error_code: exception.has_error_code.then_some(exception.error_code),
            payload: match (exception.payload, exception.nr) {
                (Some(payload), _) => payload,
                // Its side effects are done; CR2 has it.
                (None, Exception::PF) => sregs.cr2,
                (None, _) => 0,
            },
        });
        match sregs.pdptrs {
            Some(pdptrs) => self.pdptrs = pdptrs,
            None if self.is_pae() => _ = self.load_pdptrs(),
            None => self.pdptrs = [0; 4],
        }
        self.forget_answers();
        self.update_mode();
        self.flush_tlb();
    }

    /// Whether PAE paging is in force, the one mode with page-directory pointers in registers.
    #[must_use]
    pub fn is_pae(&self) -> bool {
        self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && self.efer & efer::LMA == 0
    }
}

impl XsaveArea {
    /// The state after FNINIT, with MXCSR's reset value.
    #[must_use]
    pub fn reset() -> Self {
        let mut area = XsaveArea([0; Self::LEN]);
        area.set(&CpuState::reset().xsave);
        area
    }

    /// Copies an area of the standard format. Components that its header calls initial become
    /// so: here every byte counts.
    fn set(&mut self, area: &[u8]) {
        let len = area.len().min(Self::LEN);
        self.0 = [0; Self::LEN];
        self.0[..len].copy_from_slice(&area[..len]);
        let mut header = [0; 8];
        header.copy_from_slice(&self.0[Self::HEADER..][..8]);
        let present = u64::from_le_bytes(header);
        if present & xcr0::X87 == 0 {
            self.0[..24].fill(0);
            self.0[..2].copy_from_slice(&0x037f_u16.to_le_bytes());
            self.0[32..Self::XMM].fill(0);
        }
        if present & xcr0::SSE == 0 {
            self.0[Self::XMM..Self::XMM + 256].fill(0);
        }
        if present & xcr0::AVX == 0 {
            self.0[Self::YMM_HIGH..].fill(0);
        }
        let kept = present & (xcr0::X87 | xcr0::SSE | xcr0::AVX);
        self.0[Self::HEADER..Self::YMM_HIGH].fill(0);
        self.0[Self::HEADER..][..8].copy_from_slice(&kept.to_le_bytes());
    }
}
