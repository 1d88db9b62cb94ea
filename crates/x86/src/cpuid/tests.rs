use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

#[test]
fn every_feature_has_one_name_and_one_bit() {
    let mut names = HashSet::new();
    let mut bits = HashSet::new();
    for f in Feature::all() {
        assert!(names.insert(f.name()), "{f} is named twice");
        assert!(
            bits.insert(format!("{:?} {}", f.source(), f.bit())),
            "{f} has the bit of another"
        );
        let width = match f.source() {
            FeatureSource::Cpuid { .. } => 32,
            FeatureSource::Msr { .. } => 64,
        };
        assert!(f.bit() < width, "{f}");
        assert!(!f.name().contains('_') && !f.name().contains(','), "{f}");
        assert_eq!(Feature::named(f.name()), Some(f));
    }
}

#[test]
fn every_other_name_finds_something() {
    for name in Feature::all_names() {
        assert!(!Feature::lookup(name).is_empty(), "{name}");
    }
}

#[test]
fn names_are_found_in_all_their_spellings() {
    let at = |name: &str| {
        let f = Feature::named(name).unwrap();
        (f.source(), f.bit())
    };
    let cpuid = |leaf, subleaf, register| FeatureSource::Cpuid {
        leaf,
        subleaf,
        register,
    };
    assert_eq!(at("avx2"), (cpuid(7, 0, Register::Ebx), 5));
    assert_eq!(at("sse4_1"), (cpuid(1, 0, Register::Ecx), 19));
    assert_eq!(at("sse3"), at("pni"));
    assert_eq!(at("xd"), (cpuid(0x8000_0001, 0, Register::Edx), 20));
    assert_eq!(at("kvm_pv_eoi"), (cpuid(0x4000_0001, 0, Register::Eax), 6));
    assert_eq!(at("its-no"), (FeatureSource::Msr { index: 0x10a }, 62));
    assert_eq!(Feature::named("avx3"), None);
    let names = |group| {
        Feature::lookup(group)
            .into_iter()
            .map(Feature::name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names("tsx"), ["hle", "rtm"]);
    assert_eq!(names("kvmclock"), ["kvmclock-legacy", "kvmclock"]);
    assert!(names("nonsense").is_empty());
}

#[test]
fn a_leaf_without_subleaves_answers_for_all() {
    let mut cpuid = Cpuid::new();
    cpuid.set(CpuidEntry::leaf(1, [1, 2, 3, 4]));
    cpuid.set(CpuidEntry::subleaf(7, 0, [5, 6, 7, 8]));
    cpuid.set(CpuidEntry::subleaf(7, 2, [9, 0, 0, 0]));
    assert_eq!(cpuid.get(1, 77).unwrap().eax, 1);
    assert_eq!(cpuid.get(7, 2).unwrap().eax, 9);
    assert_eq!(cpuid.get(7, 1), None);
    assert_eq!(cpuid.get(2, 0), None);
    assert_eq!((cpuid.len(), cpuid.is_empty()), (3, false));
    cpuid.remove(7);
    assert_eq!(cpuid.get(7, 0), None);
}

#[test]
fn features_are_set_and_cleared_one_by_one() {
    let mut cpuid = Cpuid::new();
    let avx2 = Feature::of("avx2");
    assert!(!cpuid.feature(avx2));
    cpuid.set_feature(avx2, false);
    assert!(cpuid.is_empty());
    cpuid.set_feature(avx2, true);
    cpuid.set_feature(Feature::of("bmi1"), true);
    assert_eq!(cpuid.get(7, 0).unwrap().ebx, 1 << 5 | 1 << 3);
    assert!(cpuid.get(7, 0).unwrap().index_significant);
    cpuid.set_feature(avx2, false);
    assert_eq!(cpuid.get(7, 0).unwrap().ebx, 1 << 3);
    // An MSR's bit is not in CPUID.
    cpuid.set_feature(Feature::of("mds-no"), true);
    assert!(!cpuid.feature(Feature::of("mds-no")));
    assert_eq!(cpuid.len(), 1);
}

#[test]
fn sets_of_features() {
    let set: FeatureSet = ["avx", "mds-no", "its-no"]
        .into_iter()
        .filter_map(Feature::named)
        .collect();
    assert_eq!(set.msr(crate::msr::ARCH_CAPABILITIES), 1 << 5 | 1 << 62);
    assert_eq!(set.register(1, 0, Register::Ecx), 1 << 28);
    assert_eq!(set.register(1, 0, Register::Eax), 0);
    let avx: FeatureSet = [Feature::of("avx")].into_iter().collect();
    assert_eq!(set.intersection(&avx), avx);
    assert_eq!(set.difference(&avx).union(&avx), set);
    assert!(avx.difference(&set).is_empty());
    assert_eq!(format!("{avx:?}"), "{avx}");
}

#[test]
fn unnamed_bits_are_not_features() {
    let cpuid: Cpuid = [CpuidEntry::leaf(1, [0, 0, !0, 0])].into_iter().collect();
    let set = FeatureSet::from_cpuid(&cpuid);
    // Bits 11, 16 and 27 (OSXSAVE) have no names.
    assert_eq!(
        set.register(1, 0, Register::Ecx),
        !(1 << 11 | 1 << 16 | 1 << 27)
    );
}

#[test]
fn vendors() {
    let intel = Vendor::INTEL.registers();
    assert_eq!(intel, [0x756e_6547, 0x4965_6e69, 0x6c65_746e]);
    assert_eq!(Vendor::from_registers(intel), Vendor::INTEL);
    assert_eq!("AuthenticAMD".parse(), Ok(Vendor::AMD));
    assert!(Vendor::AMD.is_amd_like() && !Vendor::INTEL.is_amd_like());
    let error = "Intel".parse::<Vendor>().unwrap_err();
    assert!(
        error.to_string().contains("vendor=Intel: expected 12"),
        "{error}"
    );
    assert!("Genuine,ntel".parse::<Vendor>().is_err());
}

#[test]
fn signatures() {
    // Haswell, EPYC-Milan, and an old one.
    for (eax, family, model, stepping) in [
        (0x0003_06c4, 6, 60, 4),
        (0x00a0_0f11, 25, 1, 1),
        (0x0006_0fb1, 15, 107, 1),
        (0x0000_0f61, 15, 6, 1),
    ] {
        let s = Signature::from_eax(eax);
        assert_eq!((s.family, s.model, s.stepping), (family, model, stepping));
        assert_eq!(s.to_eax(), eax);
    }
}

#[test]
fn a_cache_is_read_back_from_its_registers() {
    let cache = Cache::new(3, CacheKind::Unified, 16 * 1024, 16)
        .inclusive()
        .hashed();
    assert_eq!(cache.size(), 16 << 20);
    assert!(cache.is_die_wide());
    let registers = cache.registers(7, 3);
    // Intel's manual: type 3, level 3, self-initializing, 8 IDs share it, 4 cores.
    assert_eq!(registers, [0x0c01_c163, 0x03c0_003f, 0x3fff, 6]);
    let cpuid: Cpuid = [
        CpuidEntry::subleaf(4, 0, registers),
        CpuidEntry::subleaf(4, 1, [0; 4]),
    ]
    .into_iter()
    .collect();
    assert_eq!(Cache::list(&cpuid, 4), [cache]);
}

#[test]
fn a_list_of_caches_without_an_end_is_cut() {
    // A leaf that answers the same for every subleaf.
    let entry = CpuidEntry::leaf(4, [0x121, 0x01c0_003f, 0x3f, 0]);
    assert!(Cache::list(&[entry].into_iter().collect(), 4).is_empty());
    let endless = (0..100).map(|n| CpuidEntry::subleaf(4, n, [0x121, 0x01c0_003f, 0x3f, 0]));
    assert_eq!(Cache::list(&endless.collect(), 4).len(), 8);
}

#[test]
fn a_saved_collection_is_sorted_again() {
    let cpuid: Cpuid = [
        CpuidEntry::leaf(0x8000_0000, [1; 4]),
        CpuidEntry::subleaf(0xd, 1, [2; 4]),
        CpuidEntry::subleaf(0xd, 0, [3; 4]),
    ]
    .into_iter()
    .collect();
    let mut entries: Vec<CpuidEntry> = cpuid.iter().copied().collect();
    assert!(entries.is_sorted_by_key(|e| (e.leaf, e.subleaf)));
    entries.reverse();
    let text = serde_json::to_string(&entries).unwrap();
    assert_eq!(serde_json::from_str::<Cpuid>(&text).unwrap(), cpuid);
}

proptest! {
    #[test]
    fn signatures_survive(family in 0..0x10fu16, model: u8, stepping in 0..16u8) {
        // The base family 15 announces an extended one, so all up to 0x10e can be told apart.
        let s = Signature { family, model, stepping };
        prop_assert_eq!(Signature::from_eax(s.to_eax()), s);
    }

    #[test]
    fn the_last_entry_set_is_the_one_found(
        entries in proptest::collection::vec((0..4u32, 0..4u32, any::<[u32; 4]>()), 0..20),
    ) {
        let mut cpuid = Cpuid::new();
        let mut model = std::collections::BTreeMap::new();
        for (leaf, subleaf, registers) in entries {
            cpuid.set(CpuidEntry::subleaf(leaf, subleaf, registers));
            model.insert((leaf, subleaf), registers);
        }
        prop_assert_eq!(cpuid.len(), model.len());
        for ((leaf, subleaf), [eax, ..]) in model {
            prop_assert_eq!(cpuid.get(leaf, subleaf).map(|e| e.eax), Some(eax));
        }
    }

    #[test]
    fn features_of_any_bits_are_those_bits(ebx: u32, ecx: u32, edx: u32) {
        let cpuid: Cpuid = [CpuidEntry::subleaf(7, 0, [0, ebx, ecx, edx])].into_iter().collect();
        let set = FeatureSet::from_cpuid(&cpuid);
        prop_assert_eq!(set.register(7, 0, Register::Ebx) & !ebx, 0);
        prop_assert_eq!(set.register(7, 0, Register::Edx) & !edx, 0);
        for f in Feature::all() {
            prop_assert_eq!(cpuid.feature(f), set.contains(f));
        }
    }
}
