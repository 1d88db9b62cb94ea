//! The decoder's names of CPUID features, and those of this program.

use iced_x86::CpuidFeature;
use x86::cpuid::{Feature, FeatureSet};

/// LAHF and SAHF in 64-bit mode.
pub(super) const LAHF_LM: Feature = Feature::of("lahf-lm");

/// Features of which instructions exist here, and the bit that shows each. `None`: always there,
/// or a hint that does nothing where it is not known.
///
/// TZCNT and LZCNT have none: without the feature the same bytes are BSF and BSR.
const GATES: &[(CpuidFeature, Option<Feature>)] = &[
    (CpuidFeature::INTEL8086, None),
    (CpuidFeature::INTEL186, None),
    (CpuidFeature::INTEL286, None),
    (CpuidFeature::INTEL386, None),
    (CpuidFeature::INTEL486, None),
    (CpuidFeature::X64, None),
    (CpuidFeature::MULTIBYTENOP, None),
    (CpuidFeature::PAUSE, None),
    (CpuidFeature::CPUID, None),
    (CpuidFeature::CET_IBT, None),
    (CpuidFeature::CLDEMOTE, None),
    (CpuidFeature::PREFETCHITI, None),
    (CpuidFeature::PREFETCHW, None),
    (CpuidFeature::PREFETCHWT1, None),
    (CpuidFeature::LZCNT, None),
    (CpuidFeature::RDPMC, None),
    (CpuidFeature::WBNOINVD, None),
    (CpuidFeature::ADX, Some(Feature::of("adx"))),
    (CpuidFeature::AES, Some(Feature::of("aes"))),
    (CpuidFeature::AVX, Some(Feature::of("avx"))),
    (CpuidFeature::AVX2, Some(Feature::of("avx2"))),
    (CpuidFeature::AVX_VNNI, Some(Feature::of("avx-vnni"))),
    (CpuidFeature::AVX_IFMA, Some(Feature::of("avx-ifma"))),
    (CpuidFeature::BMI1, Some(Feature::of("bmi1"))),
    (CpuidFeature::BMI2, Some(Feature::of("bmi2"))),
    (CpuidFeature::CLFLUSHOPT, Some(Feature::of("clflushopt"))),
    (CpuidFeature::CLFSH, Some(Feature::of("clflush"))),
    (CpuidFeature::CLWB, Some(Feature::of("clwb"))),
    (CpuidFeature::CMOV, Some(Feature::of("cmov"))),
    (CpuidFeature::CMPXCHG16B, Some(Feature::of("cx16"))),
    (CpuidFeature::CX8, Some(Feature::of("cx8"))),
    (CpuidFeature::F16C, Some(Feature::of("f16c"))),
    (CpuidFeature::FMA, Some(Feature::of("fma"))),
    (CpuidFeature::FPU, Some(Feature::of("fpu"))),
    (CpuidFeature::FPU287, Some(Feature::of("fpu"))),
    (CpuidFeature::FPU387, Some(Feature::of("fpu"))),
    (CpuidFeature::FSGSBASE, Some(Feature::of("fsgsbase"))),
    (CpuidFeature::FXSR, Some(Feature::of("fxsr"))),
    (CpuidFeature::GFNI, Some(Feature::of("gfni"))),
    (CpuidFeature::INVPCID, Some(Feature::of("invpcid"))),
    (CpuidFeature::MMX, Some(Feature::of("mmx"))),
    (CpuidFeature::MONITOR, Some(Feature::of("monitor"))),
    (CpuidFeature::MOVBE, Some(Feature::of("movbe"))),
    (CpuidFeature::MSR, Some(Feature::of("msr"))),
    (CpuidFeature::PCLMULQDQ, Some(Feature::of("pclmulqdq"))),
    (CpuidFeature::POPCNT, Some(Feature::of("popcnt"))),
    (CpuidFeature::RDPID, Some(Feature::of("rdpid"))),
    (CpuidFeature::RDRAND, Some(Feature::of("rdrand"))),
    (CpuidFeature::RDSEED, Some(Feature::of("rdseed"))),
    (CpuidFeature::RDTSCP, Some(Feature::of("rdtscp"))),
    (CpuidFeature::SEP, Some(Feature::of("sep"))),
    (CpuidFeature::SHA, Some(Feature::of("sha-ni"))),
    (CpuidFeature::SMAP, Some(Feature::of("smap"))),
    (CpuidFeature::SSE, Some(Feature::of("sse"))),
    (CpuidFeature::SSE2, Some(Feature::of("sse2"))),
    (CpuidFeature::SSE3, Some(Feature::of("pni"))),
    (CpuidFeature::SSSE3, Some(Feature::of("ssse3"))),
    (CpuidFeature::SSE4_1, Some(Feature::of("sse4.1"))),
    (CpuidFeature::SSE4_2, Some(Feature::of("sse4.2"))),
    (CpuidFeature::SSE4A, Some(Feature::of("sse4a"))),
    (CpuidFeature::SYSCALL, Some(Feature::of("syscall"))),
    (CpuidFeature::TSC, Some(Feature::of("tsc"))),
    (CpuidFeature::VAES, Some(Feature::of("vaes"))),
    (CpuidFeature::VPCLMULQDQ, Some(Feature::of("vpclmulqdq"))),
    (CpuidFeature::XSAVE, Some(Feature::of("xsave"))),
    (CpuidFeature::XSAVEOPT, Some(Feature::of("xsaveopt"))),
    (CpuidFeature::XSAVEC, Some(Feature::of("xsavec"))),
    (CpuidFeature::XSAVES, Some(Feature::of("xsaves"))),
    (CpuidFeature::CLZERO, Some(Feature::of("clzero"))),
];

/// Indices into [`GATES`] of what one instruction needs.
pub(super) type Gates = [u8; 2];

/// What a code with these features needs; None if one of them does not exist here.
pub(super) fn gates(features: &[CpuidFeature]) -> Option<Gates> {
    let mut out = Gates::default();
    for (slot, &feature) in features.iter().enumerate() {
        let at = GATES.iter().position(|(name, _)| *name == feature)?;
        *out.get_mut(slot)? = u8::try_from(at).ok()?;
    }
    Some(out)
}

/// Whether the guest was shown all of them.
pub(super) fn shown(features: &FeatureSet, gates: Gates) -> bool {
    gates
        .iter()
        .filter_map(|&at| GATES.get(usize::from(at)))
        .all(|(_, bit)| bit.is_none_or(|bit| features.contains(bit)))
}

/// Features whose instructions need XCR0's AVX bit.
pub(super) const NEEDS_AVX: &[Feature] = &[
    Feature::of("avx"),
    Feature::of("avx2"),
    Feature::of("fma"),
    Feature::of("f16c"),
    Feature::of("vaes"),
    Feature::of("vpclmulqdq"),
    Feature::of("avx-vnni"),
    Feature::of("avx-ifma"),
];
