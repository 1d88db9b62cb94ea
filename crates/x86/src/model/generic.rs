//! Models of no particular processor.

use super::{Model, signature};
use crate::cpuid::{Cache, CacheKind, Signature, Vendor};

/// What every 64-bit operating system expects.
const BASELINE: &str = "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 \
                        clflush mmx fxsr sse sse2 syscall nx lm";

// x86-64 psABI, section 3.1.1, table 3.1.
const V2: &str = "cx16 lahf-lm popcnt pni sse4.1 sse4.2 ssse3";
const V3: &str = "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave";
const V4: &str = "avx512f avx512bw avx512cd avx512dq avx512vl";

pub(super) const CACHES: &[Cache] = &[
    Cache::new(1, CacheKind::Data, 32, 8),
    Cache::new(1, CacheKind::Instruction, 32, 8),
    Cache::new(2, CacheKind::Unified, 512, 8),
    Cache::new(3, CacheKind::Unified, 16 * 1024, 16),
];

/// Family, model and stepping of a model that has the host's vendor: old ones, of which software
/// assumes nothing beyond what CPUID's features say, and which QEMU's kvm64 and qemu64 have made
/// well known.
pub(super) fn signature_for(vendor: Vendor) -> Signature {
    if vendor.is_amd_like() {
        Signature {
            family: 15,
            model: 107,
            stepping: 1,
        }
    } else {
        Signature {
            family: 15,
            model: 6,
            stepping: 1,
        }
    }
}

pub(super) const MODELS: &[Model] = &[
    Model {
        name: "qemu64",
        vendor: Some(Vendor::AMD),
        signature: signature(15, 107, 1),
        level: 0xd,
        xlevel: 0x8000_000a,
        model_id: "QEMU Virtual CPU version 2.5+",
        features: &[BASELINE, "pni cx16 lahf-lm svm"],
        caches: CACHES,
        versions: &[],
    },
    Model {
        name: "kvm64",
        vendor: Some(Vendor::INTEL),
        signature: signature(15, 6, 1),
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "Common KVM processor",
        features: &[BASELINE, "pni cx16"],
        caches: CACHES,
        versions: &[],
    },
    Model {
        name: "x86-64-v2",
        vendor: None,
        signature: None,
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "x86-64-v2 processor",
        features: &[BASELINE, V2],
        caches: CACHES,
        versions: &[],
    },
    Model {
        name: "x86-64-v3",
        vendor: None,
        signature: None,
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "x86-64-v3 processor",
        features: &[BASELINE, V2, V3],
        caches: CACHES,
        versions: &[],
    },
    Model {
        name: "x86-64-v4",
        vendor: None,
        signature: None,
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "x86-64-v4 processor",
        features: &[BASELINE, V2, V3, V4],
        caches: CACHES,
        versions: &[],
    },
];
