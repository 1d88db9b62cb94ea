//! What a guest of this processor can be shown.

use std::arch::x86_64::__cpuid_count;

use x86::HostCpu;
use x86::cpuid::{Cpuid, CpuidEntry, Feature, FeatureSource, Vendor};
use x86::cr::xcr0;
use x86::msr;

use crate::state::XsaveArea;

macro_rules! features {
    ($($name:literal)*) => {
        &[$(Feature::of($name)),*]
    };
}

/// Features that are this program's work alone.
const OWN: &[Feature] = features![
    "fpu" "vme" "de" "pse" "tsc" "msr" "pae" "mce" "cx8" "apic" "sep" "mtrr" "pge" "mca" "pat" "pse36"
    "clflush" "pcid" "x2apic" "hypervisor" "arat" "fsgsbase" "tsc-adjust" "smep" "smap" "erms"
    "invpcid" "umip" "rdpid" "fsrm" "syscall" "nx" "pdpe1gb" "rdtscp" "lm" "lahf-lm"
    "3dnowprefetch" "wbnoinvd"
];

/// Features of XSAVE areas, which are copied by this program, where the host has XSAVE.
const OF_AREAS: &[Feature] = features!["xsavec" "xsaves"];

/// The same for AMD's processors.
const OWN_AMD: &[Feature] = features![
    "fxsr-opt" "cr8legacy" "osvw" "clzero" "xsaveerptr" "ibpb" "ibrs" "amd-stibp" "stibp-always-on" "amd-ssbd" "amd-psfd"
];

/// Intel's registers against speculation, which do nothing here: see [`NOT_AFFECTED`].
const OWN_INTEL: &[Feature] = features!["spec-ctrl" "stibp" "ssbd" "flush-l1d"];

/// Features of instructions that the host executes, or that translated code copies.
const OF_HOST: &[Feature] = features![
    "cmov" "mmx" "fxsr" "sse" "sse2" "pni" "pclmulqdq" "ssse3" "fma" "cx16" "sse4.1" "sse4.2"
    "movbe" "popcnt" "aes" "avx" "f16c" "rdrand" "bmi1" "avx2" "bmi2" "rdseed" "adx"
    "clflushopt" "clwb" "sha-ni" "gfni" "vaes" "vpclmulqdq" "avx-vnni" "avx-ifma" "mmxext" "abm"
    "sse4a" "xsave" "xsaveopt" "xgetbv1" "zero-fcs-fds"
    "misalignsse"
];

/// What an attacker inside the guest could get from speculation, a kernel's page-table isolation
/// or buffer clearing would not keep from him here: guest memory is reached through one host
/// address space. Kernels are told to spare themselves the cost; isolation is the host process.
const NOT_AFFECTED: &[Feature] = features![
    "rdctl-no" "ibrs-all" "skip-l1dfl-vmentry" "ssb-no" "mds-no" "pschange-mc-no" "taa-no" "sbdr-ssdp-no"
    "fbsdp-no" "psdp-no" "gds-no" "rfds-no" "bhi-no" "pbrsb-no" "its-no"
];

/// The same as AMD's processors say it, in CPUID. With AutoIBRS, which is a bit of EFER that here
/// does nothing, a kernel does not turn its indirect branches into returns.
const NOT_AFFECTED_AMD: &[Feature] = features![
    "auto-ibrs" "srso-no" "srso-user-kernel-no" "tsa-sq-no" "tsa-l1-no" "amd-no-ssb"
];

/// Leaves that describe the host and are the same here: cache and TLB descriptors, brand string.
const DESCRIPTIVE: &[u32] = &[
    2,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
];

/// Descriptive leaves with subleaves, and the type field that ends their list.
const CACHE_LEAVES: &[u32] = &[4, 0x8000_001d];

/// More subleaves than any processor has.
const MAX_SUBLEAVES: u32 = 16;

/// What this processor can show to a guest on this host: the features that it implements, as far
/// as the host has the instructions that it leaves to the host. KVM's paravirtual leaves are not
/// among them.
#[must_use]
pub fn supported_features() -> HostCpu {
    host_cpu(&|leaf, subleaf| {
        let r = __cpuid_count(leaf, subleaf);
        [r.eax, r.ebx, r.ecx, r.edx]
    })
}

/// The same on a host that answers CPUID so.
pub(super) fn host_cpu(host: &dyn Fn(u32, u32) -> [u32; 4]) -> HostCpu {
    let max_leaf = host(0, 0)[0];
    let max_extended = host(0x8000_0000, 0)[0];
    let read = |leaf: u32, subleaf: u32| {
        let max = if leaf < 0x8000_0000 {
            max_leaf
        } else {
            max_extended
        };
        if leaf <= max {
            host(leaf, subleaf)
        } else {
            [0; 4]
        }
    };
    let of_host: Cpuid = [(1, 0), (7, 0), (7, 1), (0xd, 1), (0x8000_0001, 0)]
        .into_iter()
        .map(|(leaf, subleaf)| CpuidEntry::subleaf(leaf, subleaf, read(leaf, subleaf)))
        .collect();
    // The kernel must have enabled what instructions need.
    let components = if of_host.feature(Feature::of("xsave")) {
        read(0xd, 0)[0]
    } else {
        0
    };
    let avx = u64::from(components) & xcr0::AVX != 0 && of_host.feature(Feature::of("avx"));

    let [_, b, c, d] = host(0, 0);
    let mut cpuid = Cpuid::new();
    cpuid.set(CpuidEntry::leaf(0, [0xd, b, c, d]));
    let [signature, ..] = host(1, 0);
    cpuid.set(CpuidEntry::leaf(1, [signature, 8 << 8, 0, 0]));
    cpuid.set(CpuidEntry::subleaf(7, 0, [0; 4]));
    for &leaf in DESCRIPTIVE {
        cpuid.set(CpuidEntry::leaf(leaf, read(leaf, 0)));
    }
    for &leaf in CACHE_LEAVES {
        for subleaf in 0..MAX_SUBLEAVES {
            let registers = read(leaf, subleaf);
            if registers[0] & 0x1f == 0 {
                break;
            }
            cpuid.set(CpuidEntry::subleaf(leaf, subleaf, registers));
        }
    }
    let amd = Vendor::from_registers([b, d, c]).is_amd_like();
    let top = match cpuid.get(0x8000_001d, 0) {
        _ if amd => 0x8000_0021,
        Some(_) => 0x8000_001d,
        None => 0x8000_0008,
    };
    cpuid.set(CpuidEntry::leaf(0x8000_0000, [top, b, c, d]));
    cpuid.set(CpuidEntry::leaf(0x8000_0001, [signature, 0, 0, 0]));
    let physical_bits = (read(0x8000_0008, 0)[0] & 0xff).clamp(36, 52);
    cpuid.set(CpuidEntry::leaf(
        0x8000_0008,
        [48 << 8 | physical_bits, 0, 0, 0],
    ));
    xsave_leaf(&mut cpuid, components, avx);

    let needs_avx = |f: Feature| super::feature::NEEDS_AVX.contains(&f);
    for &f in OWN {
        cpuid.set_feature(f, true);
    }
    for &f in OF_HOST {
        let there = of_host.feature(f) && (avx || !needs_avx(f));
        cpuid.set_feature(f, there);
    }
    for &f in OF_AREAS.iter().filter(|_| components != 0) {
        cpuid.set_feature(f, true);
    }
    for &f in if amd { OWN_AMD } else { OWN_INTEL } {
        cpuid.set_feature(f, true);
    }
    let mut host = HostCpu {
        cpuid,
        arch_capabilities: 0,
        tsc_deadline: true,
        msi_ext_dest_id: false,
    };
    if amd {
        host.cpuid.set(CpuidEntry::leaf(0x8000_0021, [0; 4]));
        for &f in NOT_AFFECTED_AMD {
            host.cpuid.set_feature(f, true);
        }
    } else {
        host.cpuid
            .set_feature(Feature::of("arch-capabilities"), true);
        host.arch_capabilities = NOT_AFFECTED
            .iter()
            .filter(|f| {
                f.source()
                    == FeatureSource::Msr {
                        index: msr::ARCH_CAPABILITIES,
                    }
            })
            .fold(0, |bits, f| bits | 1 << f.bit());
    }
    host
}

/// Leaf 0xD for what can be in XCR0 (SDM vol. 1 13.2).
fn xsave_leaf(cpuid: &mut Cpuid, components: u32, avx: bool) {
    if components == 0 {
        return;
    }
    let mut mask = xcr0::X87 | xcr0::SSE;
    let mut len = XsaveArea::YMM_HIGH;
    if avx {
        mask |= xcr0::AVX;
        len = XsaveArea::LEN;
        let size = (XsaveArea::LEN - XsaveArea::YMM_HIGH) as u32;
        cpuid.set(CpuidEntry::subleaf(
            0xd,
            2,
            [size, XsaveArea::YMM_HIGH as u32, 0, 0],
        ));
    }
    let len = len as u32;
    cpuid.set(CpuidEntry::subleaf(0xd, 0, [mask as u32, len, len, 0]));
    cpuid.set(CpuidEntry::subleaf(0xd, 1, [0; 4]));
}
