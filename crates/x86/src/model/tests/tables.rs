use std::collections::HashSet;

use super::*;

#[test]
fn every_name_in_the_tables_is_known_and_said_once() {
    for model in models() {
        let mut seen = HashSet::new();
        for name in model.features.iter().flat_map(|l| l.split_whitespace()) {
            assert!(Feature::named(name).is_some(), "{}: {name}", model.name);
            assert!(seen.insert(name), "{}: {name} twice", model.name);
        }
        for version in model.versions {
            for name in version.add.split_whitespace() {
                assert!(Feature::named(name).is_some(), "{}: {name}", model.name);
                assert!(seen.insert(name), "{}: {name} added twice", model.name);
            }
            for name in version.remove.split_whitespace() {
                assert!(seen.remove(name), "{}: {name} was not there", model.name);
            }
        }
        assert!(model.model_id.len() <= 48, "{}", model.name);
        assert!(
            model.level >= 0xb,
            "{}: without topology leaves",
            model.name
        );
        assert!(!model.caches.is_empty());
    }
}

#[test]
fn every_model_name_is_unique_and_finds_itself() {
    let mut names = HashSet::new();
    for version in ModelVersion::all() {
        for name in version.names() {
            assert!(names.insert(name.clone()), "{name} twice");
            let found = ModelVersion::find(&name).unwrap();
            assert_eq!(found.versioned_name(), version.versioned_name());
        }
    }
    assert!(!names.contains("host"));
}

#[test]
fn the_promised_models_exist() {
    for name in [
        "Nehalem",
        "SandyBridge",
        "IvyBridge",
        "Haswell",
        "Broadwell",
        "Skylake-Server",
        "Icelake-Server",
        "SapphireRapids",
        "Opteron_G4",
        "Opteron_G5",
        "EPYC",
        "EPYC-Rome",
        "EPYC-Milan",
        "x86-64-v2",
        "x86-64-v3",
        "x86-64-v4",
        "qemu64",
        "kvm64",
        "Haswell-noTSX-IBRS",
        "EPYC-IBPB",
        "Icelake-Server-v4",
    ] {
        assert!(ModelVersion::find(name).is_some(), "{name}");
    }
}

#[test]
fn versions_build_upon_each_other() {
    let features = |name: &str| ModelVersion::find(name).unwrap().features();
    let has = |name: &str, feature| features(name).contains(Feature::named(feature).unwrap());
    assert!(has("Haswell-v1", "hle") && !has("Haswell-v2", "hle"));
    assert!(has("Haswell-v3", "hle") && has("Haswell-v3", "spec-ctrl"));
    assert!(!has("Haswell-v4", "hle") && has("Haswell-v4", "spec-ctrl"));
    let stepping = |name: &str| {
        ModelVersion::find(name)
            .unwrap()
            .signature(Vendor::INTEL)
            .stepping
    };
    assert_eq!(
        ["Haswell-v1", "Haswell-v2", "Haswell-v3", "Haswell-v4"].map(stepping),
        [4, 1, 4, 1]
    );
    let icelake = ModelVersion::find("Icelake-Server-v6").unwrap();
    assert_eq!(icelake.signature(Vendor::INTEL).model, 106);
    // Nothing but what nested virtualization shows.
    assert_eq!(features("Icelake-Server-v6"), features("Icelake-Server-v5"));
}

#[test]
fn levels_contain_each_other() {
    let level = |n| {
        ModelVersion::find(&format!("x86-64-v{n}"))
            .unwrap()
            .features()
    };
    assert!(level(2).difference(&level(3)).is_empty());
    assert!(level(3).difference(&level(4)).is_empty());
    // What the psABI counts: 7, 9 (OSXSAVE is XSAVE here) and 5.
    assert_eq!(level(3).difference(&level(2)).iter().count(), 9);
    assert_eq!(level(4).difference(&level(3)).iter().count(), 5);
    // Processors of their time reach them.
    let of = |name: &str| ModelVersion::find(name).unwrap().features();
    for (n, name) in [
        (2, "Nehalem"),
        (3, "Haswell"),
        (3, "EPYC"),
        (4, "Skylake-Server"),
    ] {
        let lacking = level(n).difference(&of(name));
        assert!(lacking.is_empty(), "{name} lacks {lacking:?}");
    }
}

#[test]
fn every_model_runs_on_a_perfect_host_of_its_vendor() {
    for version in ModelVersion::all() {
        let host = perfect(version.vendor(Vendor::INTEL));
        for name in version.names() {
            let t = make(&name, &host).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(t.model(), version.versioned_name());
            let expected = version.signature(t.vendor());
            assert_eq!(t.signature(), expected);
        }
    }
}

#[test]
fn the_catalogue_says_what_runs() {
    let list = list_models(&perfect(Vendor::INTEL));
    assert_eq!(list[0].name, "host");
    assert!(list.iter().all(ModelListing::is_runnable));
    let names: HashSet<&str> = list.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names.len(), list.len());

    let host = without(perfect(Vendor::INTEL), "tsx");
    let list = list_models(&host);
    let of = |name: &str| list.iter().find(|l| l.name == name).unwrap();
    assert_eq!(of("Haswell").missing, ["hle", "rtm"]);
    assert_eq!(of("Haswell").alias_of.as_deref(), Some("Haswell-v1"));
    assert_eq!(of("Haswell-v2").alias_of, None);
    assert!(of("Haswell-noTSX").is_runnable());
    assert_eq!(
        of("Haswell-noTSX").description,
        "Intel Core Processor (Haswell, no TSX)"
    );
    assert_eq!(of("x86-64-v3").vendor, None);
    // The list and the machine agree.
    for line in &list {
        assert_eq!(
            make(&line.name, &host).is_ok(),
            line.is_runnable(),
            "{}",
            line.name
        );
    }
}

#[test]
fn a_poor_host_still_runs_something() {
    let poor = HostCpu {
        cpuid: {
            let mut c = Cpuid::new();
            let [ebx, edx, ecx] = Vendor::AMD.registers();
            c.set(CpuidEntry::leaf(0, [1, ebx, ecx, edx]));
            c.set(CpuidEntry::leaf(0x8000_0000, [0x8000_0001, 0, 0, 0]));
            for f in ModelVersion::find("qemu64").unwrap().features().iter() {
                c.set_feature(f, true);
            }
            c
        },
        ..HostCpu::default()
    };
    let t = make("qemu64", &poor).unwrap();
    assert_eq!(t.phys_bits(), 36);
    assert!(!has(&t, "kvmclock"));
    assert!(make("host", &poor).is_ok());
    assert!(make("x86-64-v2", &poor).is_err());
}
