use super::*;
use crate::cpuid::{CpuidEntry, KVM_SIGNATURE, Register};
use crate::{CpuError, Cpuid, Topology, msr};

mod kvm;
mod leaves;
mod spec;
mod tables;

/// A host that has every feature there is, with Intel's XSAVE layout.
fn perfect(vendor: Vendor) -> HostCpu {
    let mut cpuid = Cpuid::new();
    let [ebx, edx, ecx] = vendor.registers();
    cpuid.set(CpuidEntry::leaf(0, [0x20, ebx, ecx, edx]));
    cpuid.set(CpuidEntry::leaf(1, [0x000c_06f2, 0, 0, 0]));
    cpuid.set(CpuidEntry::leaf(0xa, [0x0830_0805, 0, 7, 0x8603]));
    cpuid.set(CpuidEntry::leaf(0x15, [2, 200, 25_000_000, 0]));
    cpuid.set(CpuidEntry::leaf(0x8000_0000, [0x8000_0022, ebx, ecx, edx]));
    cpuid.set(CpuidEntry::leaf(0x8000_0002, [0x7473_6f48; 4]));
    cpuid.set(CpuidEntry::leaf(0x8000_0008, [46, 0, 0, 0]));
    cpuid.set(CpuidEntry::leaf(0x8000_000a, [1, 8, 0, 0]));
    let [k, v, m] = KVM_SIGNATURE;
    cpuid.set(CpuidEntry::leaf(0x4000_0000, [0x4000_0001, k, v, m]));
    for f in Feature::all() {
        cpuid.set_feature(f, true);
    }
    let registers = cpuid.get(0xd, 1).unwrap().eax;
    // CET's components, 11 and 12, are supervisor state.
    cpuid.set(CpuidEntry::subleaf(0xd, 1, [registers, 0, 3 << 11, 0]));
    cpuid.set(CpuidEntry::subleaf(0xd, 0, [0x0006_02ff, 576, 11_008, 0]));
    for (n, size, offset, flags) in [
        (2, 256, 576, 0),
        (3, 64, 960, 0),
        (4, 64, 1024, 0),
        (5, 64, 1088, 0),
        (6, 512, 1152, 0),
        (7, 1024, 1664, 0),
        (9, 8, 2688, 0),
        (11, 16, 0, 1),
        (12, 24, 0, 1),
        (17, 64, 2752, 2),
        (18, 8192, 2816, 6),
    ] {
        cpuid.set(CpuidEntry::subleaf(0xd, n, [size, offset, flags, 0]));
    }
    HostCpu {
        cpuid,
        arch_capabilities: u64::MAX,
        tsc_deadline: true,
        msi_ext_dest_id: true,
    }
}

/// The same host without these features.
fn without(mut host: HostCpu, features: &str) -> HostCpu {
    for f in features.split_whitespace().flat_map(Feature::lookup) {
        host.cpuid.set_feature(f, false);
    }
    host
}

fn make(spec: &str, host: &HostCpu) -> Result<CpuTemplate, CpuError> {
    build(&CpuSpec::parse(spec)?, host, Topology::flat(1)?)
}

fn intel(spec: &str) -> CpuTemplate {
    make(spec, &perfect(Vendor::INTEL)).unwrap()
}

fn amd(spec: &str) -> CpuTemplate {
    make(spec, &perfect(Vendor::AMD)).unwrap()
}

fn has(template: &CpuTemplate, name: &str) -> bool {
    template.feature(Feature::named(name).unwrap())
}

#[test]
fn a_named_model_is_what_its_table_says() {
    let t = intel("Haswell");
    assert_eq!(t.model(), "Haswell-v1");
    assert_eq!(t.vendor(), Vendor::INTEL);
    assert_eq!(t.signature().to_eax(), 0x0003_06c4);
    assert_eq!(t.phys_bits(), 46);
    for on in [
        "avx2",
        "hle",
        "rtm",
        "invpcid",
        "tsc-deadline",
        "x2apic",
        "hypervisor",
    ] {
        assert!(has(&t, on), "{on}");
    }
    for off in [
        "avx512f",
        "pdpe1gb",
        "svm",
        "vmx",
        "rdseed",
        "invtsc",
        "arch-capabilities",
    ] {
        assert!(!has(&t, off), "{off}");
    }
    assert!(t.dropped().is_empty());
    assert!(t.msrs().is_empty());
    assert!(!t.pmu());
}

#[test]
fn words_change_the_model() {
    let t = intel("Haswell,-tsx,+pdpe1gb,+invtsc,phys-bits=40,stepping=1,model-id=My CPU");
    assert!(!has(&t, "hle") && !has(&t, "rtm"));
    assert!(has(&t, "pdpe1gb") && has(&t, "invtsc"));
    assert_eq!(t.phys_bits(), 40);
    assert_eq!(t.signature().stepping, 1);
    let brand = t.cpuid_for(0).get(0x8000_0002, 0).unwrap().eax;
    assert_eq!(brand.to_le_bytes(), *b"My C");
}

#[test]
fn missing_features_are_named_with_what_to_do() {
    let host = without(perfect(Vendor::INTEL), "tsx");
    let error = make("Haswell", &host).unwrap_err();
    assert_eq!(
        error.to_string(),
        "this host cannot give CPU Haswell: it lacks features of it (hle, rtm); use \
         Haswell,-hle,-rtm, or another model such as Haswell-noTSX-IBRS, x86-64-v4 or \"host\""
    );
    assert!(make("Haswell,-hle,-rtm", &host).is_ok());
    assert!(make("Haswell-noTSX-IBRS", &host).is_ok());
    let error = make("Nehalem,+avx512f,+hle", &host).unwrap_err();
    // AVX-512 stands on AVX2, AVX and XSAVE, none of which a Nehalem has.
    assert_eq!(
        error,
        CpuError::Conflict {
            feature: "avx512f".to_owned(),
            needs: "avx2".to_owned()
        }
    );
    let error = make("Nehalem,+hle", &host).unwrap_err();
    assert!(
        error.to_string().contains("it lacks a feature of it (hle)"),
        "{error}"
    );
}

#[test]
fn without_enforcement_missing_features_are_left_out() {
    let host = without(perfect(Vendor::INTEL), "tsx avx");
    let t = make("Haswell,enforce=off", &host).unwrap();
    assert_eq!(t.dropped(), ["fma", "avx", "f16c", "hle", "avx2", "rtm"]);
    assert!(!has(&t, "hle"));
    // They fall with AVX.
    assert!(!has(&t, "avx2") && !has(&t, "fma") && !has(&t, "f16c"));
    assert!(has(&t, "xsave"));
}

#[test]
fn what_stands_on_a_feature_falls_with_it() {
    let t = intel("Skylake-Server,-avx");
    for gone in ["avx", "avx2", "fma", "f16c", "avx512f", "avx512vl"] {
        assert!(!has(&t, gone), "{gone}");
    }
    assert!(has(&t, "pku"));
    let t = intel("Skylake-Server,-xsave");
    assert!(!has(&t, "pku") && !has(&t, "xsaveopt"));
    assert!(t.cpuid_for(0).get(0xd, 0).is_none());
    assert_eq!(
        intel("Cooperlake,-arch-capabilities").msrs().len(),
        0,
        "the bits of the MSR fall with the MSR"
    );
}

#[test]
fn the_msr_of_speculation_flaws_is_part_of_the_model() {
    let t = intel("Cooperlake");
    assert_eq!(t.msrs().get(&msr::ARCH_CAPABILITIES), Some(&0x16b));
    assert!(has(&t, "mds-no"));
    let mut host = perfect(Vendor::INTEL);
    host.arch_capabilities = 0xb;
    let error = make("Cooperlake", &host).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("(mds-no, pschange-mc-no, taa-no)"),
        "{error}"
    );
}

#[test]
fn host_is_all_that_the_host_has_and_can_move() {
    let t = intel("host");
    assert_eq!(t.model(), "host");
    assert_eq!(t.signature().to_eax(), 0x000c_06f2);
    for on in [
        "avx512f",
        "amx-tile",
        "vmx",
        "shstk",
        "pdcm",
        "hypervisor",
        "tsc-deadline",
    ] {
        assert!(has(&t, on), "{on}");
    }
    for off in ["invtsc", "monitor", "sgx", "intel-pt", "ht", "kvm-mmu"] {
        assert!(!has(&t, off), "{off}");
    }
    assert!(t.pmu());
    let cpuid = t.cpuid_for(0);
    assert_eq!(cpuid.get(0xa, 0).unwrap().eax, 0x0830_0805);
    assert_eq!(cpuid.get(0x15, 0).unwrap().ecx, 25_000_000);
    assert_eq!(cpuid.get(0x8000_0002, 0).unwrap().eax, 0x7473_6f48);
    assert!(has(&intel("host,migratable=off"), "invtsc"));
    let t = intel("host,pmu=off");
    assert!(!has(&t, "pdcm") && t.cpuid_for(0).get(0xa, 0).is_none());
    assert!(has(&amd("host"), "topoext"));
    let old = without(perfect(Vendor::AMD), "topoext");
    assert!(!has(&make("host", &old).unwrap(), "topoext"));
    assert!(has(&make("EPYC", &old).unwrap(), "topoext"));
}

#[test]
fn a_feature_that_needs_more_than_a_bit_is_not_offered() {
    let error = make("host,+sgx", &perfect(Vendor::INTEL)).unwrap_err();
    assert!(error.to_string().contains("(sgx)"), "{error}");
}

#[test]
fn a_state_component_without_a_place_takes_its_feature_away() {
    let mut host = perfect(Vendor::INTEL);
    // KVM says AVX-512 but the host's kernel keeps no ZMM state.
    host.cpuid.set(CpuidEntry::subleaf(0xd, 7, [0; 4]));
    assert!(!host.features().contains(Feature::of("avx512f")));
    assert!(host.features().contains(Feature::of("avx2")));
    let error = make("x86-64-v4", &host).unwrap_err();
    assert!(error.to_string().contains("avx512f"), "{error}");
    assert!(make("x86-64-v3", &host).is_ok());
}

#[test]
fn the_local_apic_timer_is_the_accelerators_word() {
    let mut host = perfect(Vendor::INTEL);
    host.tsc_deadline = false;
    assert!(!has(&make("host", &host).unwrap(), "tsc-deadline"));
    let error = make("SandyBridge", &host).unwrap_err();
    assert!(error.to_string().contains("(tsc-deadline)"), "{error}");
    // KVM never sets the bit itself.
    let host = without(perfect(Vendor::INTEL), "tsc-deadline");
    assert!(has(&make("SandyBridge", &host).unwrap(), "tsc-deadline"));
}

#[test]
fn x2apic_is_given_where_it_can_be() {
    assert!(has(&intel("Nehalem"), "x2apic"));
    assert!(!has(&intel("Nehalem,-x2apic"), "x2apic"));
    let host = without(perfect(Vendor::INTEL), "x2apic");
    assert!(!has(&make("Nehalem", &host).unwrap(), "x2apic"));
}

#[test]
fn nested_virtualization_is_given_when_asked_for() {
    let t = amd("EPYC");
    assert!(!has(&t, "svm") && !has(&t, "npt"));
    assert!(t.cpuid_for(0).get(0x8000_000a, 0).is_none());
    let t = amd("EPYC,+svm,+npt");
    assert!(has(&t, "svm") && has(&t, "npt"));
    let leaf = *t.cpuid_for(0).get(0x8000_000a, 0).unwrap();
    assert_eq!((leaf.eax, leaf.ebx), (1, 8));
    let error = make("EPYC,+npt", &perfect(Vendor::AMD)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CPU feature npt cannot be on without svm: add +svm or take +npt away"
    );
}

#[test]
fn an_intel_model_on_an_amd_host_is_intels() {
    let t = amd("Haswell");
    assert_eq!(t.vendor(), Vendor::INTEL);
    let cpuid = t.cpuid_for(0);
    assert_eq!(cpuid.vendor(), Some(Vendor::INTEL));
    assert!(cpuid.get(4, 0).is_some());
    assert!(cpuid.get(0x8000_001d, 0).is_none());
    // No repetition of leaf 1 in 0x80000001.
    assert_eq!(cpuid.get(0x8000_0001, 0).unwrap().edx & 1, 0);
}

#[test]
fn abi_levels_take_the_hosts_vendor() {
    let t = amd("x86-64-v3");
    assert_eq!(t.vendor(), Vendor::AMD);
    assert_eq!(t.signature().to_eax(), 0x0006_0fb1);
    let t = intel("x86-64-v3");
    assert_eq!(t.vendor(), Vendor::INTEL);
    assert_eq!(t.signature().to_eax(), 0x0000_0f61);
    for on in ["avx2", "bmi2", "movbe", "abm", "lm", "nx"] {
        assert!(has(&t, on), "{on}");
    }
    assert!(!has(&t, "avx512f"));
    assert!(has(&intel("x86-64-v4"), "avx512vl"));
    assert!(!has(&intel("x86-64-v2"), "avx"));
}

#[test]
fn phys_bits_are_the_hosts_at_most() {
    assert_eq!(intel("Haswell").phys_bits(), 46);
    assert_eq!(intel("Haswell,host-phys-bits=off").phys_bits(), 40);
    assert_eq!(intel("Haswell,host-phys-bits-limit=42").phys_bits(), 42);
    assert_eq!(intel("Haswell,host-phys-bits-limit=50").phys_bits(), 46);
    assert_eq!(
        make("Haswell,phys-bits=47", &perfect(Vendor::INTEL))
            .unwrap_err()
            .to_string(),
        "phys-bits=47: this host has 46"
    );
}

#[test]
fn reset_state_is_that_of_the_model() {
    let t = build(
        &CpuSpec::parse("Skylake-Server,tsc-frequency=2600000000").unwrap(),
        &perfect(Vendor::INTEL),
        Topology::flat(2).unwrap(),
    )
    .unwrap();
    let bsp = t.reset_state(0);
    assert_eq!(bsp.regs.rdx, 0x0005_0654);
    assert_eq!(bsp.xsave.len(), 2696);
    assert_eq!(bsp.tsc_khz, Some(2_600_000));
    assert_eq!(bsp.mp_state, crate::MpState::Runnable);
    assert_eq!(t.reset_state(1).mp_state, crate::MpState::Uninitialized);
}

#[test]
fn a_template_survives_being_saved() {
    let t = amd("EPYC-Milan,+svm");
    let text = serde_json::to_string(&t).unwrap();
    assert_eq!(serde_json::from_str::<CpuTemplate>(&text).unwrap(), t);
}

#[test]
fn distant_processors_need_extended_destinations() {
    let host = perfect(Vendor::INTEL);
    let many = |spec: &str, host: &HostCpu, n| {
        build(
            &CpuSpec::parse(spec).unwrap(),
            host,
            Topology::flat(n).unwrap(),
        )
    };
    assert!(!has(
        &many("host", &host, 255).unwrap(),
        "kvm-msi-ext-dest-id"
    ));
    assert!(has(
        &many("host", &host, 256).unwrap(),
        "kvm-msi-ext-dest-id"
    ));
    for (spec, why) in [
        ("host,-x2apic", "need x2apic, which is off"),
        ("host,kvm=off", "paravirtual features, which are off"),
        (
            "host,-kvm-msi-ext-dest-id",
            "kvm-msi-ext-dest-id, which is off",
        ),
    ] {
        let error = many(spec, &host, 256).unwrap_err().to_string();
        assert!(
            error.contains("last of 256 CPUs has APIC ID 255"),
            "{error}"
        );
        assert!(error.contains(why), "{error}");
    }
    let mut old = host;
    old.msi_ext_dest_id = false;
    assert!(many("host", &old, 256).is_err());
    assert!(many("host", &old, 255).is_ok());
    let huge = many("host", &perfect(Vendor::INTEL), 40_000)
        .unwrap_err()
        .to_string();
    assert!(huge.contains("no ID above 32767"), "{huge}");
}
