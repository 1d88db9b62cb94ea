//! AMD's processors.

use super::{Model, Version, signature};
use crate::cpuid::{Cache, CacheKind, Vendor};

/// What all of them have in CPUID leaf 1 EDX.
const BASELINE: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 \
                        clflush mmx fxsr sse sse2";

/// Bulldozer and Piledriver.
const OPTERON_CACHES: &[Cache] = &[
    Cache::new(1, CacheKind::Data, 16, 4),
    Cache::new(1, CacheKind::Instruction, 64, 2),
    Cache::new(2, CacheKind::Unified, 2048, 16),
    Cache::new(3, CacheKind::Unified, 8 * 1024, 64),
];

/// Zen.
const EPYC_CACHES: &[Cache] = &[
    Cache::new(1, CacheKind::Data, 32, 8),
    Cache::new(1, CacheKind::Instruction, 64, 4),
    Cache::new(2, CacheKind::Unified, 512, 8).inclusive(),
    Cache::new(3, CacheKind::Unified, 8 * 1024, 16).hashed(),
];

/// Zen 2.
const ROME_CACHES: &[Cache] = &[
    Cache::new(1, CacheKind::Data, 32, 8),
    Cache::new(1, CacheKind::Instruction, 32, 8),
    Cache::new(2, CacheKind::Unified, 512, 8).inclusive(),
    Cache::new(3, CacheKind::Unified, 16 * 1024, 16).hashed(),
];

/// Zen 3.
const MILAN_CACHES: &[Cache] = &[
    Cache::new(1, CacheKind::Data, 32, 8),
    Cache::new(1, CacheKind::Instruction, 32, 8),
    Cache::new(2, CacheKind::Unified, 512, 8).inclusive(),
    Cache::new(3, CacheKind::Unified, 32 * 1024, 16).hashed(),
];

/// Zen 4.
const GENOA_CACHES: &[Cache] = &[
    Cache::new(1, CacheKind::Data, 32, 8),
    Cache::new(1, CacheKind::Instruction, 32, 8),
    Cache::new(2, CacheKind::Unified, 1024, 8).inclusive(),
    Cache::new(3, CacheKind::Unified, 32 * 1024, 16).hashed(),
];

pub(super) const MODELS: &[Model] = &[
    Model {
        name: "Opteron_G4",
        vendor: Some(Vendor::AMD),
        signature: signature(21, 1, 2),
        level: 0xd,
        xlevel: 0x8000_001a,
        model_id: "AMD Opteron 62xx class CPU",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 popcnt aes xsave avx",
            "syscall nx pdpe1gb rdtscp lm",
            "lahf-lm svm abm sse4a misalignsse 3dnowprefetch xop fma4",
            "npt nrip-save",
        ],
        caches: OPTERON_CACHES,
        versions: &[],
    },
    Model {
        name: "Opteron_G5",
        vendor: Some(Vendor::AMD),
        signature: signature(21, 2, 0),
        level: 0xd,
        xlevel: 0x8000_001a,
        model_id: "AMD Opteron 63xx class CPU",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 fma cx16 sse4.1 sse4.2 popcnt aes xsave avx f16c",
            "syscall nx pdpe1gb rdtscp lm",
            "lahf-lm svm abm sse4a misalignsse 3dnowprefetch xop fma4 tbm",
            "npt nrip-save",
        ],
        caches: OPTERON_CACHES,
        versions: &[],
    },
    Model {
        name: "EPYC",
        vendor: Some(Vendor::AMD),
        signature: signature(23, 1, 2),
        level: 0xd,
        xlevel: 0x8000_001e,
        model_id: "AMD EPYC Processor",
        features: &[
            BASELINE,
            "pni pclmulqdq monitor ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt aes xsave avx f16c \
             rdrand",
            "arat",
            "fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap clflushopt sha-ni",
            "xsaveopt xsavec xgetbv1",
            "syscall nx mmxext fxsr-opt pdpe1gb rdtscp lm",
            "lahf-lm svm cr8legacy abm sse4a misalignsse 3dnowprefetch osvw topoext",
            "npt nrip-save",
        ],
        caches: EPYC_CACHES,
        versions: &[
            Version {
                alias: Some("EPYC-IBPB"),
                model_id: Some("AMD EPYC Processor (with IBPB)"),
                add: "ibpb",
                ..Version::SAME
            },
            Version {
                model_id: Some("AMD EPYC Processor"),
                add: "xsaves perfctr-core clzero xsaveerptr",
                ..Version::SAME
            },
        ],
    },
    Model {
        name: "EPYC-Rome",
        vendor: Some(Vendor::AMD),
        signature: signature(23, 49, 0),
        level: 0xd,
        xlevel: 0x8000_001e,
        model_id: "AMD EPYC-Rome Processor",
        features: &[
            BASELINE,
            "pni pclmulqdq monitor ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt aes xsave avx f16c \
             rdrand",
            "arat",
            "fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap clflushopt clwb sha-ni",
            "umip rdpid",
            "xsaveopt xsavec xgetbv1 xsaves",
            "syscall nx mmxext fxsr-opt pdpe1gb rdtscp lm",
            "lahf-lm svm cr8legacy abm sse4a misalignsse 3dnowprefetch osvw topoext perfctr-core",
            "clzero xsaveerptr wbnoinvd ibpb amd-stibp",
            "npt nrip-save",
        ],
        caches: ROME_CACHES,
        versions: &[Version {
            add: "ibrs amd-ssbd",
            ..Version::SAME
        }],
    },
    Model {
        name: "EPYC-Milan",
        vendor: Some(Vendor::AMD),
        signature: signature(25, 1, 1),
        level: 0xd,
        xlevel: 0x8000_001e,
        model_id: "AMD EPYC-Milan Processor",
        features: &[
            BASELINE,
            "pni pclmulqdq monitor ssse3 fma cx16 pcid sse4.1 sse4.2 movbe popcnt aes xsave avx \
             f16c rdrand",
            "arat",
            "fsgsbase bmi1 avx2 smep bmi2 erms invpcid rdseed adx smap clflushopt clwb sha-ni",
            "umip pku rdpid",
            "fsrm",
            "xsaveopt xsavec xgetbv1 xsaves",
            "syscall nx mmxext fxsr-opt pdpe1gb rdtscp lm",
            "lahf-lm svm cr8legacy abm sse4a misalignsse 3dnowprefetch osvw topoext perfctr-core",
            "clzero xsaveerptr wbnoinvd ibpb ibrs amd-stibp amd-ssbd",
            "npt nrip-save svme-addr-chk",
        ],
        caches: MILAN_CACHES,
        versions: &[Version {
            model_id: Some("AMD EPYC-Milan-v2 Processor"),
            add: "vaes vpclmulqdq stibp-always-on amd-psfd no-nested-data-bp \
                  lfence-always-serializing null-sel-clr-base",
            ..Version::SAME
        }],
    },
    Model {
        name: "EPYC-Genoa",
        vendor: Some(Vendor::AMD),
        signature: signature(25, 17, 0),
        level: 0xd,
        xlevel: 0x8000_0022,
        model_id: "AMD EPYC-Genoa Processor",
        features: &[
            BASELINE,
            "pni pclmulqdq monitor ssse3 fma cx16 pcid sse4.1 sse4.2 movbe popcnt aes xsave avx \
             f16c rdrand",
            "arat",
            "fsgsbase bmi1 avx2 smep bmi2 erms invpcid avx512f avx512dq rdseed adx smap \
             avx512ifma clflushopt clwb avx512cd sha-ni avx512bw avx512vl",
            "avx512vbmi umip pku avx512vbmi2 gfni vaes vpclmulqdq avx512vnni avx512bitalg \
             avx512-vpopcntdq la57 rdpid",
            "fsrm",
            "avx512-bf16",
            "xsaveopt xsavec xgetbv1 xsaves",
            "syscall nx mmxext fxsr-opt pdpe1gb rdtscp lm",
            "lahf-lm svm cr8legacy abm sse4a misalignsse 3dnowprefetch osvw topoext perfctr-core",
            "clzero xsaveerptr wbnoinvd ibpb ibrs amd-stibp stibp-always-on amd-ssbd amd-psfd",
            "npt nrip-save vnmi svme-addr-chk",
            "no-nested-data-bp lfence-always-serializing null-sel-clr-base auto-ibrs",
        ],
        caches: GENOA_CACHES,
        versions: &[],
    },
];
