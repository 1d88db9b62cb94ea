//! What the accelerator can give.

use serde::{Deserialize, Serialize};

use crate::cpuid::{Cpuid, Feature, FeatureSet, HYPERVISOR_LEAF, KVM_SIGNATURE, Vendor};
use crate::cr::xcr0;
use crate::msr;

/// What an accelerator supports on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostCpu {
    /// CPUID with every bit set that a guest may have (KVM: KVM_GET_SUPPORTED_CPUID).
    ///
    /// KVM leaves the brand string (0x80000002 to 0x80000004) zero; who wants "host" to have the
    /// processor's own name fills it in from the processor's CPUID.
    pub cpuid: Cpuid,
    /// The bits of [`msr::ARCH_CAPABILITIES`] that a guest may have; zero without that MSR (KVM:
    /// KVM_GET_MSRS on the system descriptor).
    pub arch_capabilities: u64,
    /// The local APIC timer has TSC-deadline mode, which KVM says by KVM_CAP_TSC_DEADLINE_TIMER
    /// and not by CPUID.
    pub tsc_deadline: bool,
    /// MSIs can carry 15 bits of destination ID, which is the I/O APIC's and the MSI router's
    /// doing and not KVM's.
    pub msi_ext_dest_id: bool,
}

/// Features that are ours to offer, whatever the accelerator says: bits that only describe.
const OURS: &[Feature] = &[
    Feature::of("hypervisor"),
    Feature::of("ht"),
    Feature::of("cmp-legacy"),
    Feature::of("topoext"),
];

/// Features that need more than a CPUID bit: leaves or MSRs that nothing here provides.
const NOT_OFFERED: &[Feature] = &[
    Feature::of("sgx"),
    Feature::of("sgxlc"),
    Feature::of("intel-pt"),
    Feature::of("arch-lbr"),
    Feature::of("core-capability"),
];

/// Features that need state components: the bits of XCR0, or those of IA32_XSS.
pub(super) const COMPONENTS: &[(Feature, u64, u64)] = &[
    (Feature::of("avx"), xcr0::AVX, 0),
    (Feature::of("mpx"), xcr0::BNDREGS | xcr0::BNDCSR, 0),
    (
        Feature::of("avx512f"),
        xcr0::OPMASK | xcr0::ZMM_HI256 | xcr0::HI16_ZMM,
        0,
    ),
    (Feature::of("pku"), xcr0::PKRU, 0),
    (Feature::of("amx-tile"), xcr0::XTILECFG | xcr0::XTILEDATA, 0),
    // CET's two components, user and supervisor.
    (Feature::of("shstk"), 0, 3 << 11),
    (Feature::of("ibt"), 0, 3 << 11),
];

impl HostCpu {
    /// Vendor of the host's processor.
    pub fn vendor(&self) -> Vendor {
        self.cpuid.vendor().unwrap_or(Vendor::INTEL)
    }

    /// Whether the accelerator offers KVM's paravirtual interface.
    pub fn is_kvm(&self) -> bool {
        self.cpuid
            .get(HYPERVISOR_LEAF, 0)
            .is_some_and(|e| [e.ebx, e.ecx, e.edx] == KVM_SIGNATURE)
    }

    /// All features that a guest may have.
    pub fn features(&self) -> FeatureSet {
        let mut set = FeatureSet::from_cpuid(&self.cpuid);
        set.add_msr(msr::ARCH_CAPABILITIES, self.arch_capabilities);
        for &f in OURS {
            set.insert(f);
        }
        for (name, there) in [
            (Feature::of("tsc-deadline"), self.tsc_deadline),
            (
                Feature::of("kvm-msi-ext-dest-id"),
                self.is_kvm() && self.msi_ext_dest_id,
            ),
            (Feature::of("kvm-hint-dedicated"), self.is_kvm()),
        ] {
            if there {
                set.insert(name);
            } else {
                set.remove(name);
            }
        }
        for &f in NOT_OFFERED {
            set.remove(f);
        }
        let (xcr0, xss) = self.components();
        for &(f, user, supervisor) in COMPONENTS {
            if user & !xcr0 != 0 || supervisor & !xss != 0 {
                set.remove(f);
            }
        }
        set
    }

    /// State components of XCR0 and of IA32_XSS that exist and whose place is told.
    pub(super) fn components(&self) -> (u64, u64) {
        let told = |mask: u64| {
            (0..63)
                .filter(|&n| mask >> n & 1 != 0)
                .filter(|&n| n < 2 || self.cpuid.get(0xd, n).is_some_and(|e| e.eax != 0))
                .fold(0, |out, n| out | 1 << n)
        };
        let xss = self
            .cpuid
            .get(0xd, 1)
            .map_or(0, |e| u64::from(e.edx) << 32 | u64::from(e.ecx));
        (told(self.cpuid.xcr0_mask()), told(xss))
    }
}
