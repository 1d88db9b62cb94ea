//! RDMSR and WRMSR (SDM vol. 4; APM vol. 2 appendix A). What is not here is the platform's.

use std::sync::atomic::Ordering;

use x86::cr::{efer, xcr0};
use x86::{Feature, msr};

use crate::platform::Platform;
use crate::segment::canonical;
use crate::state::{Cpu, attention, reg, seg};
use crate::stop::{Exception, Stop};
use crate::system::privileged;

const GP: Exception = Exception::gp(0);

/// MTRR_CAP: eight variable ranges, fixed ranges, write combining.
const MTRR_CAP: u64 = msr::MTRR_VARIABLE_COUNT as u64 | 1 << 8 | 1 << 10;
/// Last variable-range register.
const MTRR_LAST: u32 = msr::MTRR_PHYSBASE0 + 2 * msr::MTRR_VARIABLE_COUNT - 1;
/// Last of the fixed-range registers of 4 KiB granularity.
const FIX4K_LAST: u32 = msr::MTRR_FIX4K_C0000 + 7;

pub(super) fn rdmsr(cpu: &mut Cpu, p: &mut dyn Platform) -> Result<(), Stop> {
    privileged(cpu)?;
    let value = cpu.read_msr(p, cpu.gpr[reg::RCX] as u32)?;
    cpu.gpr[reg::RAX] = value & 0xffff_ffff;
    cpu.gpr[reg::RDX] = value >> 32;
    Ok(())
}

pub(super) fn wrmsr(cpu: &mut Cpu, p: &mut dyn Platform) -> Result<(), Stop> {
    privileged(cpu)?;
    let index = cpu.gpr[reg::RCX] as u32;
    let value = cpu.gpr[reg::RDX] << 32 | cpu.gpr[reg::RAX] & 0xffff_ffff;
    cpu.write_msr(p, index, value)?;
    Ok(())
}

/// Position in `mtrr_fixed` of a fixed-range MTRR.
fn fixed(index: u32) -> Option<usize> {
    Some(match index {
        msr::MTRR_FIX64K_00000 => 0,
        msr::MTRR_FIX16K_80000 => 1,
        msr::MTRR_FIX16K_A0000 => 2,
        msr::MTRR_FIX4K_C0000..=FIX4K_LAST => (index - msr::MTRR_FIX4K_C0000) as usize + 3,
        _ => return None,
    })
}

/// Whether a byte is a memory type that an MTRR can have; the PAT knows one more.
fn memory_type(byte: u8, pat: bool) -> bool {
    matches!(byte, 0 | 1 | 4 | 5 | 6) || (pat && byte == 7)
}

fn check_canonical(value: u64) -> Result<(), Exception> {
    if canonical(value) { Ok(()) } else { Err(GP) }
}

impl Cpu {
    fn has(&self, feature: Feature) -> Result<(), Exception> {
        if self.features.contains(feature) {
            Ok(())
        } else {
            Err(GP)
        }
    }

    /// Value of an MSR, as RDMSR gives it.
    ///
    /// # Errors
    /// #GP(0): there is no such MSR.
    pub fn read_msr(&mut self, p: &mut dyn Platform, index: u32) -> Result<u64, Exception> {
        let m = &self.msrs;
        Ok(match index {
            msr::FS_BASE => self.segs[seg::FS].base,
            msr::GS_BASE => self.segs[seg::GS].base,
            msr::KERNEL_GS_BASE => m.kernel_gs_base,
            msr::EFER => self.efer,
            msr::STAR => m.star,
            msr::LSTAR => m.lstar,
            msr::CSTAR => m.cstar,
            msr::SFMASK => m.sfmask,
            msr::SYSENTER_CS => m.sysenter_cs,
            msr::SYSENTER_ESP => m.sysenter_esp,
            msr::SYSENTER_EIP => m.sysenter_eip,
            msr::TSC => self.guest_tsc(p),
            msr::TSC_ADJUST => {
                self.has(const { Feature::of("tsc-adjust") })?;
                m.tsc_adjust
            }
            msr::TSC_AUX => {
                self.check_tsc_aux()?;
                m.tsc_aux
            }
            msr::PAT => m.pat,
            msr::SPEC_CTRL => {
                self.check_spec_ctrl()?;
                m.spec_ctrl
            }
            // There are no supervisor components.
            msr::XSS => {
                self.has(const { Feature::of("xsaves") })?;
                0
            }
            msr::MISC_ENABLE => m.misc_enable,
            msr::DEBUGCTL => m.debugctl,
            msr::FEATURE_CONTROL => m.feature_control,
            msr::MTRR_CAP => {
                self.has(const { Feature::of("mtrr") })?;
                MTRR_CAP
            }
            msr::MTRR_DEF_TYPE => m.mtrr_def_type,
            msr::MTRR_PHYSBASE0..=MTRR_LAST => {
                let n = (index - msr::MTRR_PHYSBASE0) as usize;
                m.mtrr_variable.get(n).copied().unwrap_or(0)
            }
            // No banks: nothing is ever wrong with this machine's parts.
            msr::MCG_CAP => {
                self.has(const { Feature::of("mca") })?;
                0
            }
            msr::MCG_STATUS => m.mcg_status,
            _ => match fixed(index) {
                Some(n) => m.mtrr_fixed.get(n).copied().unwrap_or(0),
                None => {
                    p.retired(self.retired);
                    return p.read_msr(index);
                }
            },
        })
    }

    /// Sets an MSR as WRMSR does.
    ///
    /// # Errors
    /// #GP(0): there is no such MSR, or it does not take the value.
    pub fn write_msr(
        &mut self,
        p: &mut dyn Platform,
        index: u32,
        value: u64,
    ) -> Result<(), Exception> {
        match index {
            msr::FS_BASE => {
                check_canonical(value)?;
                self.segs[seg::FS].base = value;
            }
            msr::GS_BASE => {
                check_canonical(value)?;
                self.segs[seg::GS].base = value;
            }
            msr::KERNEL_GS_BASE => {
                check_canonical(value)?;
                self.msrs.kernel_gs_base = value;
            }
            msr::EFER => self.write_efer(value)?,
            msr::STAR => self.msrs.star = value,
            msr::LSTAR => {
                check_canonical(value)?;
                self.msrs.lstar = value;
            }
            msr::CSTAR => {
                check_canonical(value)?;
                self.msrs.cstar = value;
            }
            msr::SFMASK => self.msrs.sfmask = value & 0xffff_ffff,
            msr::SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff_ffff,
            msr::SYSENTER_ESP => {
                check_canonical(value)?;
                self.msrs.sysenter_esp = value;
            }
            msr::SYSENTER_EIP => {
                check_canonical(value)?;
                self.msrs.sysenter_eip = value;
            }
            msr::TSC => {
                let delta = value.wrapping_sub(self.guest_tsc(p));
                self.move_tsc(delta);
                self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(delta);
            }
            msr::TSC_ADJUST => {
                self.has(const { Feature::of("tsc-adjust") })?;
                let delta = value.wrapping_sub(self.msrs.tsc_adjust);
                self.move_tsc(delta);
                self.msrs.tsc_adjust = value;
            }
            msr::TSC_AUX => {
                self.check_tsc_aux()?;
                if value >> 32 != 0 {
                    return Err(GP);
                }
                self.msrs.tsc_aux = value;
            }
            msr::PAT => {
                if !value.to_le_bytes().iter().all(|&b| memory_type(b, true)) {
                    return Err(GP);
                }
                self.msrs.pat = value;
            }
            msr::SPEC_CTRL => {
                self.check_spec_ctrl()?;
                let psfd = self.features.contains(const { Feature::of("amd-psfd") });
                if value & !(0x7 | u64::from(psfd) << 7) != 0 {
                    return Err(GP);
                }
                // Kept, and without effect: see `classify::supported_features`.
                self.msrs.spec_ctrl = value;
            }
            msr::PRED_CMD => {
                // The barrier is the host's; nothing of the guest's is left to flush.
                self.check_pred_cmd()?;
                if value & !1 != 0 {
                    return Err(GP);
                }
            }
            msr::XSS => {
                self.has(const { Feature::of("xsaves") })?;
                if value != 0 {
                    return Err(GP);
                }
            }
            msr::FLUSH_CMD => {
                self.has(const { Feature::of("flush-l1d") })?;
                if value & !1 != 0 {
                    return Err(GP);
                }
            }
            msr::MISC_ENABLE => self.msrs.misc_enable = value,
            msr::DEBUGCTL => {
                // Last-branch records are accepted and not kept, as KVM does without them.
                if value & !3 != 0 {
                    return Err(GP);
                }
                self.msrs.debugctl = value & crate::run::DEBUGCTL_BTF;
            }
            msr::FEATURE_CONTROL => {
                if self.msrs.feature_control & 1 != 0 {
                    return Err(GP);
                }
                self.msrs.feature_control = value;
            }
            msr::MTRR_DEF_TYPE => {
                if value & !0xcff != 0 || !memory_type(value as u8, false) {
                    return Err(GP);
                }
                self.msrs.mtrr_def_type = value;
            }
            msr::MTRR_PHYSBASE0..=MTRR_LAST => self.write_variable_mtrr(index, value)?,
            msr::MCG_STATUS => {
                // Only zero can be written: software may clear what it has handled.
                if value != 0 {
                    return Err(GP);
                }
                self.msrs.mcg_status = 0;
            }
            msr::MTRR_CAP | msr::MCG_CAP => return Err(GP),
            _ => match fixed(index) {
                Some(n) => {
                    let valid = value.to_le_bytes().iter().all(|&b| memory_type(b, false));
                    let slot = self.msrs.mtrr_fixed.get_mut(n).filter(|_| valid);
                    *slot.ok_or(GP)? = value;
                }
                None => {
                    p.retired(self.retired);
                    return p.write_msr(index, value);
                }
            },
        }
        Ok(())
    }

    fn write_variable_mtrr(&mut self, index: u32, value: u64) -> Result<(), Exception> {
        let beyond = self.paging.beyond();
        let is_base = index & 1 == 0;
        let reserved = beyond | if is_base { 0xf00 } else { 0x7ff };
        if value & reserved != 0 || (is_base && !memory_type(value as u8, false)) {
            return Err(GP);
        }
        let n = (index - msr::MTRR_PHYSBASE0) as usize;
        *self.msrs.mtrr_variable.get_mut(n).ok_or(GP)? = value;
        Ok(())
    }

    fn check_tsc_aux(&self) -> Result<(), Exception> {
        self.has(const { Feature::of("rdtscp") })
            .or_else(|_| self.has(const { Feature::of("rdpid") }))
    }

    fn check_spec_ctrl(&self) -> Result<(), Exception> {
        [
            const { Feature::of("spec-ctrl") },
            const { Feature::of("stibp") },
            const { Feature::of("ssbd") },
            const { Feature::of("ibrs") },
            const { Feature::of("amd-stibp") },
            const { Feature::of("amd-ssbd") },
        ]
        .into_iter()
        .any(|f| self.features.contains(f))
        .then_some(())
        .ok_or(GP)
    }

    fn check_pred_cmd(&self) -> Result<(), Exception> {
        self.has(const { Feature::of("spec-ctrl") })
            .or_else(|_| self.has(const { Feature::of("ibpb") }))
    }

    /// Moves the time stamp counter. The platform's timers follow it, so it has to look.
    fn move_tsc(&mut self, delta: u64) {
        self.tsc_offset = self.tsc_offset.wrapping_add(delta);
        self.attention.fetch_or(attention::OPEN, Ordering::SeqCst);
    }

    /// Time stamp counter as the guest reads it.
    pub fn guest_tsc(&self, p: &mut dyn Platform) -> u64 {
        p.tsc().wrapping_add(self.tsc_offset)
    }

    /// XSETBV of XCR0.
    pub(super) fn write_xcr0(&mut self, value: u64) -> Result<(), Exception> {
        let known = self.cpuid.xcr0_mask();
        let avx_alone = value & xcr0::AVX != 0 && value & xcr0::SSE == 0;
        if value & xcr0::X87 == 0 || value & !known != 0 || avx_alone {
            return Err(GP);
        }
        self.xcr0 = value;
        self.update_mode();
        Ok(())
    }

    /// Whether SYSCALL and SYSRET are switched on.
    pub(super) fn syscall_enabled(&self) -> bool {
        self.efer & efer::SCE != 0
    }
}
