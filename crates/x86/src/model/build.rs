//! From the wish and the host to the processor that the guest gets.

use super::host::HostCpu;
use super::leaves::{self, CpuTemplate, Identity};
use super::spec::{Base, CpuSpec};
use super::{ModelVersion, generic};
use crate::cpuid::{Cache, Feature, FeatureSet, Vendor};
use crate::error::CpuError;
use crate::topology::Topology;

/// Model features that a guest gets only when it is asked for by name: nested virtualization, and
/// instructions that need the host to give up a processor or its temperature.
const OFF_UNLESS_ASKED: &[Feature] = &[
    Feature::of("svm"),
    Feature::of("monitor"),
    Feature::of("acpi"),
];

/// Features of the host that "host" does not take by itself, besides those that cannot move: we
/// set the first ones as the topology demands, and the last ones need our help at run time.
const NOT_TAKEN_BY_HOST: &[Feature] = &[
    Feature::of("ht"),
    Feature::of("cmp-legacy"),
    Feature::of("monitor"),
    Feature::of("acpi"),
];

/// Paravirtual features that a guest gets only when it is asked for by name: an MMU interface that
/// no kernel uses any more, hypercalls that somebody must answer, a promise about scheduling, and
/// a bit that depends on the number of processors.
const PARAVIRTUAL_OFF: &[Feature] = &[
    Feature::of("kvm-mmu"),
    Feature::of("kvm-hc-map-gpa-range"),
    Feature::of("kvm-migration-control"),
    Feature::of("kvm-hint-dedicated"),
    Feature::of("kvm-msi-ext-dest-id"),
];

/// Features that are part of the performance counters.
const OF_PMU: &[Feature] = &[
    Feature::of("pdcm"),
    Feature::of("perfctr-core"),
    Feature::of("perfctr-nb"),
    Feature::of("perfmon-v2"),
];

const X2APIC: Feature = Feature::of("x2apic");
const MSI_EXT_DEST_ID: Feature = Feature::of("kvm-msi-ext-dest-id");

macro_rules! features {
    ($($name:literal)*) => {
        &[$(Feature::of($name)),*]
    };
}

/// What features need: those on the left are gone when the one on the right is.
const NEEDS: &[(&[Feature], Feature)] = &[
    (
        features![
            "avx" "xsaveopt" "xsavec" "xgetbv1" "xsaves" "xfd" "mpx" "pku" "amx-tile" "shstk"
            "ibt"
        ],
        Feature::of("xsave"),
    ),
    (
        features![
            "avx2" "fma" "f16c" "fma4" "xop" "vaes" "vpclmulqdq" "avx-vnni" "avx-ifma"
            "avx-vnni-int8" "avx-vnni-int16" "avx-ne-convert" "sha512" "sm3" "sm4"
        ],
        Feature::of("avx"),
    ),
    (features!["avx512f"], Feature::of("avx2")),
    (
        features![
            "avx512dq" "avx512ifma" "avx512pf" "avx512er" "avx512cd" "avx512bw" "avx512vl"
            "avx512vbmi" "avx512vbmi2" "avx512vnni" "avx512bitalg" "avx512-vpopcntdq"
            "avx512-4vnniw" "avx512-4fmaps" "avx512-vp2intersect" "avx512-bf16" "avx512-fp16"
        ],
        Feature::of("avx512f"),
    ),
    (
        features![
            "amx-bf16" "amx-int8" "amx-fp16" "amx-complex"
        ],
        Feature::of("amx-tile"),
    ),
    (
        features![
            "shstk" "ibt"
        ],
        Feature::of("xsaves"),
    ),
    (
        features![
            "la57" "pcid"
        ],
        Feature::of("lm"),
    ),
    (features!["tsx-ldtrk"], Feature::of("rtm")),
    (
        features![
            "npt" "lbrv" "svm-lock" "nrip-save" "tsc-scale" "vmcb-clean" "flushbyasid"
            "decodeassists" "pause-filter" "pfthreshold" "avic" "v-vmsave-vmload" "vgif" "vnmi"
            "svme-addr-chk"
        ],
        Feature::of("svm"),
    ),
    (
        features![
            "rdctl-no" "ibrs-all" "rsba" "skip-l1dfl-vmentry" "ssb-no" "mds-no" "pschange-mc-no"
            "tsx-ctrl" "taa-no" "sbdr-ssdp-no" "fbsdp-no" "psdp-no" "fb-clear" "bhi-no"
            "pbrsb-no" "gds-no" "rfds-no" "rfds-clear" "its-no"
        ],
        Feature::of("arch-capabilities"),
    ),
    (features!["kvmclock-stable-bit"], Feature::of("kvmclock")),
    (
        features![
            "kvm-asyncpf-int" "kvm-asyncpf-vmexit"
        ],
        Feature::of("kvm-asyncpf"),
    ),
    (
        features![
            "tsc-deadline" "x2apic"
        ],
        Feature::of("apic"),
    ),
];

/// Resolves a wish against what the host can do.
///
/// # Errors
/// - [`CpuError::Missing`] when the host lacks features of the model or features asked for by
///   name, and the wish does not say `enforce=off`.
/// - [`CpuError::Conflict`] when a feature is asked for whose foundation is turned off.
/// - [`CpuError::Unreachable`] when APIC IDs need more bits than interrupts can carry.
/// - [`CpuError::PhysBits`] when more address bits are asked for than the host has.
pub fn build(spec: &CpuSpec, host: &HostCpu, topology: Topology) -> Result<CpuTemplate, CpuError> {
    let options = spec.options();
    let supported = host.features();
    let vendor = options.vendor.unwrap_or_else(|| match spec.base() {
        Base::Host => host.vendor(),
        Base::Model(model) => model.vendor(host.vendor()),
    });
    let pmu = options.pmu.unwrap_or(matches!(spec.base(), Base::Host));

    let asked: FeatureSet = spec
        .features()
        .filter_map(|(f, on)| on.then_some(f))
        .collect();
    let refused: FeatureSet = spec
        .features()
        .filter_map(|(f, on)| (!on).then_some(f))
        .collect();
    let paravirtual = options.kvm && host.is_kvm();

    let mut wanted = match spec.base() {
        Base::Host => host_defaults(host, options.migratable),
        Base::Model(model) => model_defaults(model, &supported),
    };
    if !pmu {
        wanted = remove_all(wanted, OF_PMU);
    }
    if paravirtual {
        wanted = wanted.union(&paravirtual_defaults(&supported));
        if topology.max_apic_id() > MAX_XAPIC_ID && supported.contains(MSI_EXT_DEST_ID) {
            wanted.insert(MSI_EXT_DEST_ID);
        }
    }
    if topology.per_socket() > 1 {
        wanted.insert(Feature::of("ht"));
        if vendor.is_amd_like() {
            wanted.insert(Feature::of("cmp-legacy"));
        }
    }
    wanted = wanted.union(&asked).difference(&refused);
    for (switch, on, part) in [
        (
            "kvm",
            options.kvm,
            asked.iter().find(|f| f.is_paravirtual()),
        ),
        ("pmu", pmu, asked.iter().find(|f| OF_PMU.contains(f))),
    ] {
        if let (false, Some(f)) = (on, part) {
            return Err(CpuError::BadValue {
                property: switch.to_owned(),
                value: "off".to_owned(),
                expected: format!("on, because +{f} is asked for"),
            });
        }
    }
    wanted = satisfy_needs(wanted, &asked)?;

    let missing = wanted.difference(&supported);
    if options.enforce && !missing.is_empty() {
        return Err(CpuError::Missing {
            model: spec.to_string(),
            features: names(&missing),
            alternatives: alternatives(spec.base(), host),
        });
    }
    let whole = wanted;
    wanted = satisfy_needs(wanted.difference(&missing), &FeatureSet::default())?;
    let dropped = names(&whole.difference(&wanted));

    check_reachable(topology, &wanted, paravirtual)?;
    let identity = identity(spec, host, vendor, pmu)?;
    let cpuid = leaves::render(&identity, &wanted, host, topology);
    Ok(CpuTemplate::new(
        spec, &identity, &wanted, cpuid, topology, dropped,
    ))
}

/// The features of this model that the host lacks.
pub(super) fn missing(model: ModelVersion, host: &HostCpu) -> FeatureSet {
    let supported = host.features();
    let wanted = remove_all(model_defaults(model, &supported), OF_PMU);
    satisfy_needs(wanted, &FeatureSet::default())
        .unwrap_or(wanted)
        .difference(&supported)
}

/// Features of a named model, as guests get it.
fn model_defaults(model: ModelVersion, supported: &FeatureSet) -> FeatureSet {
    let mut set = remove_all(model.features(), OFF_UNLESS_ASKED);
    set.insert(Feature::of("hypervisor"));
    // Costs nothing, and spares an exit at each IPI and end of interrupt.
    if supported.contains(X2APIC) {
        set.insert(X2APIC);
    }
    set
}

fn host_defaults(host: &HostCpu, migratable: bool) -> FeatureSet {
    let mut set = without_paravirtual(remove_all(host.features(), NOT_TAKEN_BY_HOST));
    if migratable {
        set.remove(Feature::of("invtsc"));
    }
    // Always ours to give, but a guest of an old processor would not expect it.
    let topoext = Feature::of("topoext");
    if !host.cpuid.feature(topoext) {
        set.remove(topoext);
    }
    set
}

fn paravirtual_defaults(supported: &FeatureSet) -> FeatureSet {
    let all = Feature::all().filter(|f| f.is_paravirtual()).collect();
    remove_all(supported.intersection(&all), PARAVIRTUAL_OFF)
}

fn without_paravirtual(set: FeatureSet) -> FeatureSet {
    set.iter().filter(|f| !f.is_paravirtual()).collect()
}

fn names(set: &FeatureSet) -> Vec<String> {
    set.iter().map(|f| f.name().to_owned()).collect()
}

fn remove_all(mut set: FeatureSet, features: &[Feature]) -> FeatureSet {
    for &f in features {
        set.remove(f);
    }
    set
}

/// Takes away what lacks its foundation, unless it was asked for by name: then it is an error.
fn satisfy_needs(mut set: FeatureSet, asked: &FeatureSet) -> Result<FeatureSet, CpuError> {
    loop {
        let mut changed = false;
        for &(dependents, needs) in NEEDS {
            if set.contains(needs) {
                continue;
            }
            for &f in dependents {
                if !set.contains(f) {
                    continue;
                }
                if asked.contains(f) {
                    return Err(CpuError::Conflict {
                        feature: f.name().to_owned(),
                        needs: needs.name().to_owned(),
                    });
                }
                set.remove(f);
                changed = true;
            }
        }
        if !changed {
            return Ok(set);
        }
    }
}

/// The highest APIC ID without x2APIC mode; 255 means all processors.
const MAX_XAPIC_ID: u32 = 254;
/// The highest APIC ID that an MSI can carry with the extended destination ID.
const MAX_EXTENDED_ID: u32 = 0x7fff;

fn check_reachable(
    topology: Topology,
    wanted: &FeatureSet,
    paravirtual: bool,
) -> Result<(), CpuError> {
    let apic_id = topology.max_apic_id();
    let what = if apic_id <= MAX_XAPIC_ID {
        return Ok(());
    } else if !wanted.contains(X2APIC) {
        "IDs above 254 need x2apic, which is off"
    } else if !paravirtual {
        "device interrupts reach IDs above 254 only with KVM's paravirtual features, which are off"
    } else if !wanted.contains(MSI_EXT_DEST_ID) {
        "device interrupts reach IDs above 254 only with kvm-msi-ext-dest-id, which is off or \
         not supported here"
    } else if apic_id > MAX_EXTENDED_ID {
        "device interrupts reach no ID above 32767"
    } else {
        return Ok(());
    };
    Err(CpuError::Unreachable {
        cpus: topology.count(),
        apic_id,
        what: what.to_owned(),
    })
}

fn identity(
    spec: &CpuSpec,
    host: &HostCpu,
    vendor: Vendor,
    pmu: bool,
) -> Result<Identity, CpuError> {
    let o = spec.options();
    let host_base = matches!(spec.base(), Base::Host);
    let (mut signature, model_id, (level, xlevel)) = match spec.base() {
        Base::Host => (
            host.cpuid
                .signature()
                .unwrap_or_else(|| generic::signature_for(vendor)),
            leaves::brand_string(&host.cpuid),
            (
                host.cpuid.max_leaf().min(leaves::MAX_LEAF),
                host.cpuid
                    .max_extended_leaf()
                    .min(leaves::MAX_EXTENDED_LEAF),
            ),
        ),
        Base::Model(m) => (m.signature(vendor), m.model_id().to_owned(), m.levels()),
    };
    signature.family = o.family.unwrap_or(signature.family);
    signature.model = o.model.unwrap_or(signature.model);
    signature.stepping = o.stepping.unwrap_or(signature.stepping);

    let host_bits = host.cpuid.phys_bits();
    let phys_bits = match o.phys_bits {
        Some(asked) if asked > host_bits => {
            return Err(CpuError::PhysBits {
                asked,
                host: host_bits,
            });
        }
        Some(asked) => asked,
        None => host_bits.min(o.host_phys_bits_limit.unwrap_or(u8::MAX)),
    };

    Ok(Identity {
        vendor,
        signature,
        model_id: o.model_id.clone().unwrap_or(model_id),
        level,
        xlevel,
        max_level: o.level,
        max_xlevel: o.xlevel,
        phys_bits,
        caches: caches(spec, host),
        pmu,
        host_base,
    })
}

fn caches(spec: &CpuSpec, host: &HostCpu) -> Vec<Cache> {
    let (own, host_by_default) = match spec.base() {
        Base::Host => (generic::CACHES, true),
        Base::Model(m) => (m.caches(), false),
    };
    let mut caches = Vec::new();
    if spec.options().host_cache_info.unwrap_or(host_by_default) {
        let leaf = if host.vendor().is_amd_like() {
            leaves::AMD_CACHES
        } else {
            4
        };
        caches = Cache::list(&host.cpuid, leaf);
    }
    if caches.is_empty() {
        caches = own.to_vec();
    }
    if !spec.options().l3_cache {
        caches.retain(|c| c.level < 3);
    }
    caches
}

/// Up to three models that this host can run instead: other versions of the same model, or else
/// the one with the most features of the same vendor, and the highest psABI level.
fn alternatives(base: Base, host: &HostCpu) -> Vec<String> {
    let Base::Model(wish) = base else {
        return Vec::new();
    };
    let runnable: Vec<ModelVersion> = ModelVersion::all()
        .filter(|v| missing(*v, host).is_empty())
        .collect();
    let best = |accept: &dyn Fn(&ModelVersion) -> bool| {
        runnable
            .iter()
            .filter(|v| accept(v))
            .max_by_key(|v| v.features().iter().count())
            .map(ModelVersion::name)
    };
    let same_model = best(&|v| std::ptr::eq(v.model(), wish.model()));
    let same_vendor = best(&|v| v.own_vendor().is_some() && v.own_vendor() == wish.own_vendor());
    let level = best(&|v| v.own_vendor().is_none());
    let mut names: Vec<String> = same_model.or(same_vendor).into_iter().collect();
    names.extend(level);
    names
}
