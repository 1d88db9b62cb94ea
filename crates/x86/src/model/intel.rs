//! Intel's processors.

use super::{Model, Version, signature};
use crate::cpuid::{Cache, CacheKind, Vendor};

/// What all of them have in CPUID leaf 1 EDX.
const BASELINE: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 \
                        clflush mmx fxsr sse sse2";

// Sizes of the processors themselves, of typical last-level caches. (QEMU shows the same made-up
// 4 MiB second level for all of them, from which guests choose wrong block sizes.)

/// Nehalem to Skylake of desktops, and servers before Skylake.
const CORE_CACHES: &[Cache] = &[
    Cache::new(1, CacheKind::Data, 32, 8),
    Cache::new(1, CacheKind::Instruction, 32, 8),
    Cache::new(2, CacheKind::Unified, 256, 8),
    Cache::new(3, CacheKind::Unified, 16 * 1024, 16)
        .inclusive()
        .hashed(),
];

const SKYLAKE_SERVER_CACHES: &[Cache] = &[
    Cache::new(1, CacheKind::Data, 32, 8),
    Cache::new(1, CacheKind::Instruction, 32, 8),
    Cache::new(2, CacheKind::Unified, 1024, 16),
    Cache::new(3, CacheKind::Unified, 22 * 1024, 11).hashed(),
];

const ICELAKE_SERVER_CACHES: &[Cache] = &[
    Cache::new(1, CacheKind::Data, 48, 12),
    Cache::new(1, CacheKind::Instruction, 32, 8),
    Cache::new(2, CacheKind::Unified, 1280, 20),
    Cache::new(3, CacheKind::Unified, 36 * 1024, 12).hashed(),
];

const SAPPHIRE_RAPIDS_CACHES: &[Cache] = &[
    Cache::new(1, CacheKind::Data, 48, 12),
    Cache::new(1, CacheKind::Instruction, 32, 8),
    Cache::new(2, CacheKind::Unified, 2048, 16),
    Cache::new(3, CacheKind::Unified, 60 * 1024, 15).hashed(),
];

pub(super) const MODELS: &[Model] = &[
    Model {
        name: "Nehalem",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 26, 3),
        level: 0xb,
        xlevel: 0x8000_0008,
        model_id: "Intel Core i7 9xx (Nehalem Class Core i7)",
        features: &[
            BASELINE,
            "pni ssse3 cx16 sse4.1 sse4.2 popcnt",
            "syscall nx lm",
            "lahf-lm",
        ],
        caches: CORE_CACHES,
        versions: &[Version {
            alias: Some("Nehalem-IBRS"),
            model_id: Some("Intel Core i7 9xx (Nehalem Core i7, IBRS update)"),
            add: "spec-ctrl",
            ..Version::SAME
        }],
    },
    Model {
        name: "Westmere",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 44, 1),
        level: 0xb,
        xlevel: 0x8000_0008,
        model_id: "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 popcnt aes",
            "arat",
            "syscall nx lm",
            "lahf-lm",
        ],
        caches: CORE_CACHES,
        versions: &[Version {
            alias: Some("Westmere-IBRS"),
            model_id: Some("Westmere E56xx/L56xx/X56xx (IBRS update)"),
            add: "spec-ctrl",
            ..Version::SAME
        }],
    },
    Model {
        name: "SandyBridge",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 42, 1),
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "Intel Xeon E312xx (Sandy Bridge)",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 x2apic popcnt tsc-deadline aes xsave avx",
            "arat",
            "xsaveopt",
            "syscall nx rdtscp lm",
            "lahf-lm",
        ],
        caches: CORE_CACHES,
        versions: &[Version {
            alias: Some("SandyBridge-IBRS"),
            model_id: Some("Intel Xeon E312xx (Sandy Bridge, IBRS update)"),
            add: "spec-ctrl",
            ..Version::SAME
        }],
    },
    Model {
        name: "IvyBridge",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 58, 9),
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "Intel Xeon E3-12xx v2 (Ivy Bridge)",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 cx16 sse4.1 sse4.2 x2apic popcnt tsc-deadline aes xsave avx f16c \
             rdrand",
            "arat",
            "fsgsbase smep erms",
            "xsaveopt",
            "syscall nx rdtscp lm",
            "lahf-lm",
        ],
        caches: CORE_CACHES,
        versions: &[Version {
            alias: Some("IvyBridge-IBRS"),
            model_id: Some("Intel Xeon E3-12xx v2 (Ivy Bridge, IBRS)"),
            add: "spec-ctrl",
            ..Version::SAME
        }],
    },
    Model {
        name: "Haswell",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 60, 4),
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "Intel Core Processor (Haswell)",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes \
             xsave avx f16c rdrand",
            "arat",
            "fsgsbase bmi1 hle avx2 smep bmi2 erms invpcid rtm",
            "xsaveopt",
            "syscall nx rdtscp lm",
            "lahf-lm abm",
        ],
        caches: CORE_CACHES,
        versions: &[
            Version {
                alias: Some("Haswell-noTSX"),
                model_id: Some("Intel Core Processor (Haswell, no TSX)"),
                signature: signature(6, 60, 1),
                remove: "hle rtm",
                ..Version::SAME
            },
            Version {
                alias: Some("Haswell-IBRS"),
                model_id: Some("Intel Core Processor (Haswell, IBRS)"),
                signature: signature(6, 60, 4),
                add: "hle rtm spec-ctrl",
                ..Version::SAME
            },
            Version {
                alias: Some("Haswell-noTSX-IBRS"),
                model_id: Some("Intel Core Processor (Haswell, no TSX, IBRS)"),
                signature: signature(6, 60, 1),
                remove: "hle rtm",
                ..Version::SAME
            },
        ],
    },
    Model {
        name: "Broadwell",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 61, 2),
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "Intel Core Processor (Broadwell)",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes \
             xsave avx f16c rdrand",
            "arat",
            "fsgsbase bmi1 hle avx2 smep bmi2 erms invpcid rtm rdseed adx smap",
            "xsaveopt",
            "syscall nx rdtscp lm",
            "lahf-lm abm 3dnowprefetch",
        ],
        caches: CORE_CACHES,
        versions: &[
            Version {
                alias: Some("Broadwell-noTSX"),
                model_id: Some("Intel Core Processor (Broadwell, no TSX)"),
                remove: "hle rtm",
                ..Version::SAME
            },
            Version {
                alias: Some("Broadwell-IBRS"),
                model_id: Some("Intel Core Processor (Broadwell, IBRS)"),
                add: "hle rtm spec-ctrl",
                ..Version::SAME
            },
            Version {
                alias: Some("Broadwell-noTSX-IBRS"),
                model_id: Some("Intel Core Processor (Broadwell, no TSX, IBRS)"),
                remove: "hle rtm",
                ..Version::SAME
            },
        ],
    },
    Model {
        name: "Skylake-Client",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 94, 3),
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "Intel Core Processor (Skylake)",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes \
             xsave avx f16c rdrand",
            "arat",
            "fsgsbase bmi1 hle avx2 smep bmi2 erms invpcid rtm rdseed adx smap",
            "xsaveopt xsavec xgetbv1",
            "syscall nx rdtscp lm",
            "lahf-lm abm 3dnowprefetch",
        ],
        caches: CORE_CACHES,
        versions: &[
            Version {
                alias: Some("Skylake-Client-IBRS"),
                model_id: Some("Intel Core Processor (Skylake, IBRS)"),
                add: "spec-ctrl",
                ..Version::SAME
            },
            Version {
                alias: Some("Skylake-Client-noTSX-IBRS"),
                model_id: Some("Intel Core Processor (Skylake, IBRS, no TSX)"),
                remove: "hle rtm",
                ..Version::SAME
            },
            Version {
                add: "xsaves",
                ..Version::SAME
            },
        ],
    },
    Model {
        name: "Skylake-Server",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 85, 4),
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "Intel Xeon Processor (Skylake)",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes \
             xsave avx f16c rdrand",
            "arat",
            "fsgsbase bmi1 hle avx2 smep bmi2 erms invpcid rtm avx512f avx512dq rdseed adx smap \
             clflushopt clwb avx512cd avx512bw avx512vl",
            "pku",
            "xsaveopt xsavec xgetbv1",
            "syscall nx pdpe1gb rdtscp lm",
            "lahf-lm abm 3dnowprefetch",
        ],
        caches: SKYLAKE_SERVER_CACHES,
        versions: &[
            Version {
                alias: Some("Skylake-Server-IBRS"),
                model_id: Some("Intel Xeon Processor (Skylake, IBRS)"),
                add: "spec-ctrl",
                remove: "clflushopt",
                ..Version::SAME
            },
            Version {
                alias: Some("Skylake-Server-noTSX-IBRS"),
                model_id: Some("Intel Xeon Processor (Skylake, IBRS, no TSX)"),
                remove: "hle rtm",
                ..Version::SAME
            },
            Version { ..Version::SAME },
            Version {
                add: "xsaves",
                ..Version::SAME
            },
        ],
    },
    Model {
        name: "Cascadelake-Server",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 85, 6),
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "Intel Xeon Processor (Cascadelake)",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes \
             xsave avx f16c rdrand",
            "arat",
            "fsgsbase bmi1 hle avx2 smep bmi2 erms invpcid rtm avx512f avx512dq rdseed adx smap \
             clflushopt clwb avx512cd avx512bw avx512vl",
            "pku avx512vnni",
            "spec-ctrl ssbd",
            "xsaveopt xsavec xgetbv1",
            "syscall nx pdpe1gb rdtscp lm",
            "lahf-lm abm 3dnowprefetch",
        ],
        caches: SKYLAKE_SERVER_CACHES,
        versions: &[
            Version {
                add: "arch-capabilities rdctl-no ibrs-all skip-l1dfl-vmentry mds-no",
                ..Version::SAME
            },
            Version {
                alias: Some("Cascadelake-Server-noTSX"),
                remove: "hle rtm",
                ..Version::SAME
            },
            Version { ..Version::SAME },
            Version {
                add: "xsaves",
                ..Version::SAME
            },
        ],
    },
    Model {
        name: "Cooperlake",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 85, 10),
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "Intel Xeon Processor (Cooperlake)",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes \
             xsave avx f16c rdrand",
            "arat",
            "fsgsbase bmi1 hle avx2 smep bmi2 erms invpcid rtm avx512f avx512dq rdseed adx smap \
             clflushopt clwb avx512cd avx512bw avx512vl",
            "pku avx512vnni",
            "spec-ctrl stibp arch-capabilities ssbd",
            "avx512-bf16",
            "xsaveopt xsavec xgetbv1",
            "syscall nx pdpe1gb rdtscp lm",
            "lahf-lm abm 3dnowprefetch",
            "rdctl-no ibrs-all skip-l1dfl-vmentry mds-no pschange-mc-no taa-no",
        ],
        caches: SKYLAKE_SERVER_CACHES,
        versions: &[Version {
            add: "xsaves",
            ..Version::SAME
        }],
    },
    Model {
        name: "Icelake-Server",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 134, 0),
        level: 0xd,
        xlevel: 0x8000_0008,
        model_id: "Intel Xeon Processor (Icelake)",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes \
             xsave avx f16c rdrand",
            "arat",
            "fsgsbase bmi1 hle avx2 smep bmi2 erms invpcid rtm avx512f avx512dq rdseed adx smap \
             clflushopt clwb avx512cd avx512bw avx512vl",
            "avx512vbmi umip pku avx512vbmi2 gfni vaes vpclmulqdq avx512vnni avx512bitalg \
             avx512-vpopcntdq la57",
            "spec-ctrl ssbd",
            "xsaveopt xsavec xgetbv1",
            "syscall nx pdpe1gb rdtscp lm",
            "lahf-lm abm 3dnowprefetch",
            "wbnoinvd",
        ],
        caches: ICELAKE_SERVER_CACHES,
        versions: &[
            Version {
                alias: Some("Icelake-Server-noTSX"),
                remove: "hle rtm",
                ..Version::SAME
            },
            Version {
                add: "arch-capabilities rdctl-no ibrs-all skip-l1dfl-vmentry mds-no \
                      pschange-mc-no taa-no",
                ..Version::SAME
            },
            Version {
                signature: signature(6, 106, 0),
                add: "avx512ifma sha-ni rdpid fsrm",
                ..Version::SAME
            },
            Version {
                add: "xsaves",
                ..Version::SAME
            },
            Version { ..Version::SAME },
        ],
    },
    Model {
        name: "SapphireRapids",
        vendor: Some(Vendor::INTEL),
        signature: signature(6, 143, 4),
        level: 0x20,
        xlevel: 0x8000_0008,
        model_id: "Intel Xeon Processor (SapphireRapids)",
        features: &[
            BASELINE,
            "pni pclmulqdq ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes \
             xsave avx f16c rdrand",
            "arat",
            "fsgsbase bmi1 hle avx2 smep bmi2 erms invpcid rtm avx512f avx512dq rdseed adx smap \
             avx512ifma clflushopt clwb avx512cd sha-ni avx512bw avx512vl",
            "avx512vbmi umip pku avx512vbmi2 gfni vaes vpclmulqdq avx512vnni avx512bitalg \
             avx512-vpopcntdq la57 rdpid bus-lock-detect",
            "fsrm serialize tsx-ldtrk amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl \
             arch-capabilities ssbd",
            "avx-vnni avx512-bf16",
            "xsaveopt xsavec xgetbv1 xsaves xfd",
            "syscall nx pdpe1gb rdtscp lm",
            "lahf-lm abm 3dnowprefetch",
            "wbnoinvd",
            "rdctl-no ibrs-all skip-l1dfl-vmentry mds-no pschange-mc-no taa-no",
        ],
        caches: SAPPHIRE_RAPIDS_CACHES,
        versions: &[],
    },
];
