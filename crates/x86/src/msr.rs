//! Model-specific registers (SDM vol. 4; APM vol. 2 appendix A; Linux's
//! Documentation/virt/kvm/x86/msr.rst for the paravirtual ones).

/// Time stamp counter.
pub const TSC: u32 = 0x10;
/// Local APIC base, enable and mode.
pub const APIC_BASE: u32 = 0x1b;
/// What VMX and SGX may do.
pub const FEATURE_CONTROL: u32 = 0x3a;
/// Offset that the guest added to its time stamp counter.
pub const TSC_ADJUST: u32 = 0x3b;
/// Speculation control: IBRS, STIBP, SSBD.
pub const SPEC_CTRL: u32 = 0x48;
/// Prediction command (write only).
pub const PRED_CMD: u32 = 0x49;
/// Microcode revision.
pub const UCODE_REV: u32 = 0x8b;
/// System management mode base address.
pub const SMBASE: u32 = 0x9e;
/// UMWAIT control.
pub const UMWAIT_CONTROL: u32 = 0xe1;
/// MTRR capabilities (read only).
pub const MTRR_CAP: u32 = 0xfe;
/// Which speculation flaws the processor does not have (read only).
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// Flush command (write only).
pub const FLUSH_CMD: u32 = 0x10b;
/// TSX control.
pub const TSX_CTRL: u32 = 0x122;
/// SYSENTER code segment.
pub const SYSENTER_CS: u32 = 0x174;
/// SYSENTER stack pointer.
pub const SYSENTER_ESP: u32 = 0x175;
/// SYSENTER instruction pointer.
pub const SYSENTER_EIP: u32 = 0x176;
/// Machine-check capabilities (read only).
pub const MCG_CAP: u32 = 0x179;
/// Machine-check status.
pub const MCG_STATUS: u32 = 0x17a;
/// Machine-check control.
pub const MCG_CTL: u32 = 0x17b;
/// First event select of the performance counters.
pub const PERFEVTSEL0: u32 = 0x186;
/// Performance status.
pub const PERF_STATUS: u32 = 0x198;
/// Miscellaneous processor features.
pub const MISC_ENABLE: u32 = 0x1a0;
/// Debug control: last-branch records, branch single-step.
pub const DEBUGCTL: u32 = 0x1d9;
/// First variable-range MTRR base; base and mask alternate for eight ranges.
pub const MTRR_PHYSBASE0: u32 = 0x200;
/// First variable-range MTRR mask.
pub const MTRR_PHYSMASK0: u32 = 0x201;
/// Number of variable-range MTRRs.
pub const MTRR_VARIABLE_COUNT: u32 = 8;
/// Fixed-range MTRR of the first 512 KiB.
pub const MTRR_FIX64K_00000: u32 = 0x250;
/// Fixed-range MTRR at 512 KiB.
pub const MTRR_FIX16K_80000: u32 = 0x258;
/// Fixed-range MTRR at 640 KiB.
pub const MTRR_FIX16K_A0000: u32 = 0x259;
/// Fixed-range MTRRs from 768 KiB: eight of them.
pub const MTRR_FIX4K_C0000: u32 = 0x268;
/// Page attribute table.
pub const PAT: u32 = 0x277;
/// MTRR default type and enable bits.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// First general performance counter.
pub const PMC0: u32 = 0xc1;
/// First fixed-function performance counter.
pub const FIXED_CTR0: u32 = 0x309;
/// Control of the fixed-function performance counters.
pub const FIXED_CTR_CTRL: u32 = 0x38d;
/// Which performance counters have overflowed.
pub const PERF_GLOBAL_STATUS: u32 = 0x38e;
/// Which performance counters count.
pub const PERF_GLOBAL_CTRL: u32 = 0x38f;
/// AMD: first event select; selects and counters alternate for six counters.
pub const AMD_PERF_CTL0: u32 = 0xc001_0200;
/// FRED: stack pointer of ring 0; those of levels 1 to 3 follow.
pub const FRED_RSP0: u32 = 0x1cc;
/// FRED: configuration; what lies between it and the stack pointers belongs to FRED too.
pub const FRED_CONFIG: u32 = 0x1d4;
/// First machine-check bank's control; control, status, address and miscellaneous follow each
/// other.
pub const MC0_CTL: u32 = 0x400;
/// Time of the local APIC timer's next interrupt, in TSC ticks.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// First of the x2APIC registers.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last of the x2APIC registers.
pub const X2APIC_LAST: u32 = 0x8ff;
/// Memory protection keys of supervisor pages.
pub const PKRS: u32 = 0x6e1;
/// User control-flow enforcement.
pub const U_CET: u32 = 0x6a0;
/// Supervisor control-flow enforcement.
pub const S_CET: u32 = 0x6a2;
/// Shadow stack pointer of ring 0; rings 1 to 3 follow.
pub const PL0_SSP: u32 = 0x6a4;
/// Shadow stack pointer of ring 3.
pub const PL3_SSP: u32 = 0x6a7;
/// Table of shadow stacks for interrupt stacks.
pub const INT_SSP_TAB: u32 = 0x6a8;
/// Supervisor state components enabled for XSAVES.
pub const XSS: u32 = 0xda0;
/// Extended feature disable (AMX first use).
pub const XFD: u32 = 0x1c4;
/// Which component raised the last #NM by XFD.
pub const XFD_ERR: u32 = 0x1c5;
/// Extended features: long mode, SYSCALL, NX. Bits in [`crate::cr::efer`].
pub const EFER: u32 = 0xc000_0080;
/// SYSCALL segments, and 32-bit entry point on AMD.
pub const STAR: u32 = 0xc000_0081;
/// SYSCALL entry point, 64-bit.
pub const LSTAR: u32 = 0xc000_0082;
/// SYSCALL entry point, compatibility mode.
pub const CSTAR: u32 = 0xc000_0083;
/// RFLAGS bits that SYSCALL clears.
pub const SFMASK: u32 = 0xc000_0084;
/// Base of FS.
pub const FS_BASE: u32 = 0xc000_0100;
/// Base of GS.
pub const GS_BASE: u32 = 0xc000_0101;
/// What SWAPGS exchanges with the base of GS.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// What RDTSCP and RDPID return besides the time.
pub const TSC_AUX: u32 = 0xc000_0103;
/// AMD: ratio of the time stamp counter.
pub const AMD64_TSC_RATIO: u32 = 0xc000_0104;
/// AMD: system configuration.
pub const SYSCFG: u32 = 0xc001_0010;
/// AMD: hardware configuration.
pub const HWCR: u32 = 0xc001_0015;
/// AMD: patch level of the microcode.
pub const AMD_PATCH_LEVEL: u32 = 0x8b;
/// AMD: speculation control for guests (SSBD).
pub const VIRT_SPEC_CTRL: u32 = 0xc001_011f;
/// AMD: address of the host state area.
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
/// AMD: SVM control.
pub const VM_CR: u32 = 0xc001_0114;
/// AMD: decoder configuration; bit 1 makes LFENCE serialize.
pub const DE_CFG: u32 = 0xc001_1029;

/// KVM: wall clock, old number.
pub const KVM_WALL_CLOCK: u32 = 0x11;
/// KVM: system time, old number.
pub const KVM_SYSTEM_TIME: u32 = 0x12;
/// KVM: wall clock.
pub const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// KVM: system time.
pub const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
/// KVM: asynchronous page fault enable.
pub const KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;
/// KVM: steal time.
pub const KVM_STEAL_TIME: u32 = 0x4b56_4d03;
/// KVM: paravirtual end of interrupt.
pub const KVM_PV_EOI_EN: u32 = 0x4b56_4d04;
/// KVM: host-side polling before a halted processor sleeps.
pub const KVM_POLL_CONTROL: u32 = 0x4b56_4d05;
/// KVM: interrupt vector of asynchronous page faults.
pub const KVM_ASYNC_PF_INT: u32 = 0x4b56_4d06;
/// KVM: acknowledge of an asynchronous page fault.
pub const KVM_ASYNC_PF_ACK: u32 = 0x4b56_4d07;
/// KVM: the guest is ready to be migrated.
pub const KVM_MIGRATION_CONTROL: u32 = 0x4b56_4d08;

/// Bits of [`APIC_BASE`] (SDM vol. 3A 11.4.4).
pub mod apic_base {
    /// This is the bootstrap processor.
    pub const BSP: u64 = 1 << 8;
    /// x2APIC mode.
    pub const EXTD: u64 = 1 << 10;
    /// The local APIC is enabled.
    pub const ENABLE: u64 = 1 << 11;
    /// Address of the register page after reset.
    pub const DEFAULT_ADDRESS: u64 = 0xfee0_0000;
    /// Value after reset, but for [`BSP`].
    pub const RESET: u64 = DEFAULT_ADDRESS | ENABLE;
}

/// Bits of [`MISC_ENABLE`].
pub mod misc_enable {
    /// Fast string operations.
    pub const FAST_STRING: u64 = 1 << 0;
    /// MONITOR and MWAIT are there.
    pub const MWAIT: u64 = 1 << 18;
}

/// The MSRs that a processor's state must carry: those a guest writes and reads back, or whose
/// loss it would notice. What the processor lacks (by its CPUID) an accelerator leaves out.
///
/// In the order in which they must be restored: TSC_ADJUST is set before TSC, because writing it
/// moves TSC; TSC before the deadline, which would otherwise fire in the past; the interrupt
/// vector before asynchronous page faults are enabled. EFER, APIC_BASE and the bases of FS and GS
/// are in [`crate::Sregs`].
pub const SAVED: &[u32] = &[
    FEATURE_CONTROL,
    SPEC_CTRL,
    SMBASE,
    UMWAIT_CONTROL,
    TSX_CTRL,
    SYSENTER_CS,
    SYSENTER_ESP,
    SYSENTER_EIP,
    MISC_ENABLE,
    XFD,
    XFD_ERR,
    MTRR_PHYSBASE0,
    MTRR_PHYSBASE0 + 1,
    MTRR_PHYSBASE0 + 2,
    MTRR_PHYSBASE0 + 3,
    MTRR_PHYSBASE0 + 4,
    MTRR_PHYSBASE0 + 5,
    MTRR_PHYSBASE0 + 6,
    MTRR_PHYSBASE0 + 7,
    MTRR_PHYSBASE0 + 8,
    MTRR_PHYSBASE0 + 9,
    MTRR_PHYSBASE0 + 10,
    MTRR_PHYSBASE0 + 11,
    MTRR_PHYSBASE0 + 12,
    MTRR_PHYSBASE0 + 13,
    MTRR_PHYSBASE0 + 14,
    MTRR_PHYSBASE0 + 15,
    MTRR_FIX64K_00000,
    MTRR_FIX16K_80000,
    MTRR_FIX16K_A0000,
    MTRR_FIX4K_C0000,
    MTRR_FIX4K_C0000 + 1,
    MTRR_FIX4K_C0000 + 2,
    MTRR_FIX4K_C0000 + 3,
    MTRR_FIX4K_C0000 + 4,
    MTRR_FIX4K_C0000 + 5,
    MTRR_FIX4K_C0000 + 6,
    MTRR_FIX4K_C0000 + 7,
    PAT,
    MTRR_DEF_TYPE,
    U_CET,
    S_CET,
    PL0_SSP,
    PL0_SSP + 1,
    PL0_SSP + 2,
    PL3_SSP,
    INT_SSP_TAB,
    PKRS,
    FRED_RSP0,
    FRED_RSP0 + 1,
    FRED_RSP0 + 2,
    FRED_RSP0 + 3,
    FRED_RSP0 + 4,
    FRED_RSP0 + 5,
    FRED_RSP0 + 6,
    FRED_RSP0 + 7,
    FRED_CONFIG,
    XSS,
    STAR,
    LSTAR,
    CSTAR,
    SFMASK,
    KERNEL_GS_BASE,
    TSC_AUX,
    AMD64_TSC_RATIO,
    HWCR,
    VM_HSAVE_PA,
    VIRT_SPEC_CTRL,
    KVM_WALL_CLOCK_NEW,
    KVM_SYSTEM_TIME_NEW,
    KVM_ASYNC_PF_INT,
    KVM_ASYNC_PF_EN,
    KVM_STEAL_TIME,
    KVM_PV_EOI_EN,
    KVM_POLL_CONTROL,
    KVM_MIGRATION_CONTROL,
    MCG_STATUS,
    MCG_CTL,
    TSC_ADJUST,
    TSC,
    TSC_DEADLINE,
];

/// The MSRs of the performance counters that a processor's state must carry, where there are
/// counters, in the order in which they must be restored: what lets them count comes last.
pub const SAVED_PMU: &[u32] = &[
    PMC0,
    PMC0 + 1,
    PMC0 + 2,
    PMC0 + 3,
    PMC0 + 4,
    PMC0 + 5,
    PMC0 + 6,
    PMC0 + 7,
    FIXED_CTR0,
    FIXED_CTR0 + 1,
    FIXED_CTR0 + 2,
    FIXED_CTR0 + 3,
    AMD_PERF_CTL0 + 1,
    AMD_PERF_CTL0 + 3,
    AMD_PERF_CTL0 + 5,
    AMD_PERF_CTL0 + 7,
    AMD_PERF_CTL0 + 9,
    AMD_PERF_CTL0 + 11,
    PERFEVTSEL0,
    PERFEVTSEL0 + 1,
    PERFEVTSEL0 + 2,
    PERFEVTSEL0 + 3,
    PERFEVTSEL0 + 4,
    PERFEVTSEL0 + 5,
    PERFEVTSEL0 + 6,
    PERFEVTSEL0 + 7,
    AMD_PERF_CTL0,
    AMD_PERF_CTL0 + 2,
    AMD_PERF_CTL0 + 4,
    AMD_PERF_CTL0 + 6,
    AMD_PERF_CTL0 + 8,
    AMD_PERF_CTL0 + 10,
    FIXED_CTR_CTRL,
    PERF_GLOBAL_STATUS,
    PERF_GLOBAL_CTRL,
];

/// Control, status, address and miscellaneous register of each of the first `banks` machine-check
/// banks (at most 32), which are part of the state as well.
pub fn machine_check_banks(banks: u32) -> impl Iterator<Item = u32> {
    MC0_CTL..MC0_CTL + 4 * banks.min(32)
}

/// Value after power-on (SDM vol. 3A table 10-1); zero for all that are not named there.
pub fn reset_value(index: u32) -> u64 {
    match index {
        APIC_BASE => apic_base::RESET,
        // WB, WT, UC-, UC, twice.
        PAT => 0x0007_0406_0007_0406,
        MISC_ENABLE => misc_enable::FAST_STRING,
        // Polling is the host's to do until the guest says that it polls itself.
        KVM_POLL_CONTROL => 1,
        // A ratio of one.
        AMD64_TSC_RATIO => 1 << 32,
        _ => 0,
    }
}
