use super::*;

fn on(spec: &str, vendor: Vendor, counts: [u32; 4]) -> CpuTemplate {
    let [sockets, dies, cores, threads] = counts;
    build(
        &CpuSpec::parse(spec).unwrap(),
        &perfect(vendor),
        Topology::new(sockets, dies, cores, threads).unwrap(),
    )
    .unwrap()
}

fn registers(cpuid: &Cpuid, leaf: u32, subleaf: u32) -> [u32; 4] {
    cpuid
        .get(leaf, subleaf)
        .map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
}

#[test]
fn every_processor_has_its_own_apic_id() {
    let t = on("Haswell", Vendor::INTEL, [2, 1, 3, 2]);
    // Socket 1, core 2, thread 1.
    let cpuid = t.cpuid_for(11);
    assert_eq!(t.apic_id(11), 13);
    assert_eq!(registers(&cpuid, 1, 0)[1], 13 << 24 | 6 << 16 | 8 << 8);
    assert_eq!(registers(&cpuid, 0xb, 0), [1, 2, 0x100, 13]);
    assert_eq!(registers(&cpuid, 0xb, 1), [3, 6, 0x201, 13]);
    assert_eq!(registers(&cpuid, 0xb, 2), [0, 0, 2, 13]);
    assert!(has(&t, "ht"));
    assert!(!has(&on("Haswell", Vendor::INTEL, [4, 1, 1, 1]), "ht"));
}

#[test]
fn caches_are_shared_as_the_topology_says() {
    let t = on("Haswell", Vendor::INTEL, [2, 1, 3, 2]);
    let cpuid = t.cpuid_for(0);
    let sharing = |n| {
        let eax = registers(&cpuid, 4, n)[0];
        (eax & 0xff, (eax >> 14 & 0xfff) + 1, (eax >> 26) + 1)
    };
    // Kind and level, IDs that share it, cores' IDs in a socket: with the holes.
    assert_eq!(sharing(0), (0x21, 2, 4));
    assert_eq!(sharing(1), (0x22, 2, 4));
    assert_eq!(sharing(2), (0x43, 2, 4));
    assert_eq!(sharing(3), (0x63, 8, 4));
    assert_eq!(registers(&cpuid, 4, 4), [0; 4]);
    let t = on("Haswell,l3-cache=off", Vendor::INTEL, [1, 1, 1, 1]);
    assert_eq!(registers(&t.cpuid_for(0), 4, 3), [0; 4]);
}

#[test]
fn dies_have_a_leaf_of_their_own() {
    let t = on("Icelake-Server", Vendor::INTEL, [1, 2, 3, 2]);
    let cpuid = t.cpuid_for(7);
    assert_eq!(cpuid.max_leaf(), 0x1f);
    assert_eq!(registers(&cpuid, 0x1f, 0), [1, 2, 0x100, 9]);
    assert_eq!(registers(&cpuid, 0x1f, 1), [3, 6, 0x201, 9]);
    assert_eq!(registers(&cpuid, 0x1f, 2), [4, 12, 0x502, 9]);
    assert_eq!(registers(&cpuid, 0x1f, 3), [0, 0, 3, 9]);
    // The older leaf knows no dies: its cores are all those of the socket.
    assert_eq!(registers(&cpuid, 0xb, 1), [4, 12, 0x201, 9]);
    let flat = on("Icelake-Server", Vendor::INTEL, [1, 1, 6, 2]);
    assert_eq!(flat.cpuid_for(0).max_leaf(), 0xd);
}

#[test]
fn amds_leaves_of_topology() {
    // As QEMU 7.2 shows for the same machine.
    let t = on("EPYC-Milan", Vendor::AMD, [1, 2, 3, 2]);
    let cpuid = t.cpuid_for(0);
    assert_eq!(
        registers(&cpuid, 0x8000_001d, 0)[..3],
        [0x4121, 0x01c0_003f, 0x3f]
    );
    assert_eq!(
        registers(&cpuid, 0x8000_001d, 1)[..3],
        [0x4122, 0x01c0_003f, 0x3f]
    );
    assert_eq!(
        registers(&cpuid, 0x8000_001d, 3)[..3],
        [0x14163, 0x03c0_003f, 0x7fff]
    );
    assert_eq!(registers(&cpuid, 0x8000_001d, 4), [0; 4]);
    assert_eq!(registers(&cpuid, 0x8000_001e, 0), [0, 0x100, 0x100, 0]);
    assert_eq!(registers(&cpuid, 0x8000_0008, 0)[2], 0x400b);
    assert_eq!(registers(&cpuid, 4, 0), [0; 4]);
    assert_eq!(registers(&cpuid, 2, 0), [0; 4]);
    // Die 1, core 2, thread 1.
    let last = t.cpuid_for(11);
    assert_eq!(registers(&last, 0x8000_001e, 0), [13, 0x105, 0x101, 0]);
    assert!(has(&t, "cmp-legacy") && has(&t, "topoext"));
    // Without the feature, without the leaves.
    let t = on("EPYC-Milan,-topoext", Vendor::AMD, [1, 1, 2, 1]);
    assert_eq!(registers(&t.cpuid_for(0), 0x8000_001e, 0), [0; 4]);
    let one = on("EPYC-Milan", Vendor::AMD, [1, 1, 1, 1]);
    assert!(!has(&one, "cmp-legacy"));
    assert_eq!(registers(&one.cpuid_for(0), 0x8000_0008, 0)[2], 0);
}

#[test]
fn amd_repeats_leaf_1_in_the_extended_one() {
    let cpuid = amd("EPYC").cpuid_for(0);
    let edx = registers(&cpuid, 1, 0)[3];
    assert_eq!(
        registers(&cpuid, 0x8000_0001, 0)[3] & 0x0183_f3ff,
        edx & 0x0183_f3ff
    );
    assert_eq!(registers(&cpuid, 0x8000_0001, 0)[0], 0x0080_0f12);
    assert_eq!(
        registers(&cpuid, 0x8000_0005, 0)[2..],
        [0x2008_0140, 0x4004_0140]
    );
    assert_eq!(
        registers(&cpuid, 0x8000_0006, 0)[2..],
        [0x0200_6140, 0x0040_8140]
    );
}

#[test]
fn the_xsave_area_is_as_long_as_the_features_need() {
    let xsave = |spec: &str| {
        let cpuid = intel(spec).cpuid_for(0);
        let [eax, _, ecx, edx] = registers(&cpuid, 0xd, 0);
        assert_eq!(edx, 0);
        (eax, ecx)
    };
    assert_eq!(xsave("Westmere,+xsave"), (0x3, 576));
    assert_eq!(xsave("Haswell"), (0x7, 832));
    assert_eq!(xsave("Skylake-Server"), (0x2e7, 2696));
    assert_eq!(xsave("Skylake-Server,-pku"), (0xe7, 2688));
    assert_eq!(xsave("Skylake-Server,+mpx"), (0x2ff, 2696));
    assert_eq!(xsave("SapphireRapids"), (0x602e7, 11_008));
    let cpuid = intel("Haswell").cpuid_for(0);
    assert_eq!(registers(&cpuid, 0xd, 2), [256, 576, 0, 0]);
    assert_eq!(cpuid.get(0xd, 5), None);
    // Supervisor state is announced elsewhere and takes no room here.
    let cpuid = intel("host").cpuid_for(0);
    assert_eq!(registers(&cpuid, 0xd, 1)[2], 3 << 11);
    assert_eq!(registers(&cpuid, 0xd, 0)[2], 11_008);
    let cpuid = intel("host,-shstk,-ibt").cpuid_for(0);
    assert_eq!(registers(&cpuid, 0xd, 1)[2], 0);
    assert_eq!(cpuid.get(0xd, 11), None);
}

#[test]
fn leaf_7_ends_where_its_features_do() {
    let last = |spec: &str| registers(&intel(spec).cpuid_for(0), 7, 0)[0];
    assert_eq!(last("Haswell"), 0);
    assert_eq!(last("Cooperlake"), 1);
    assert_eq!(last("SapphireRapids,+mcdt-no"), 2);
    assert_eq!(last("SapphireRapids,-avx-vnni,-avx512-bf16,+mcdt-no"), 2);
}

#[test]
fn amx_has_its_palette() {
    let cpuid = intel("SapphireRapids").cpuid_for(0);
    assert_eq!(registers(&cpuid, 0x1d, 0), [1, 0, 0, 0]);
    assert_eq!(
        registers(&cpuid, 0x1d, 1),
        [0x0400_2000, 0x0008_0040, 16, 0]
    );
    assert_eq!(registers(&cpuid, 0x1e, 0), [0, 0x4010, 0, 0]);
    assert_eq!(cpuid.max_leaf(), 0x20);
    assert!(intel("Haswell").cpuid_for(0).get(0x1d, 0).is_none());
}

#[test]
fn kvms_features_are_all_there_by_default() {
    let t = intel("Haswell");
    let cpuid = t.cpuid_for(0);
    assert_eq!(
        registers(&cpuid, 0x4000_0000, 0),
        [
            0x4000_0001,
            KVM_SIGNATURE[0],
            KVM_SIGNATURE[1],
            KVM_SIGNATURE[2]
        ]
    );
    for name in [
        "kvmclock",
        "kvmclock-legacy",
        "kvmclock-stable-bit",
        "kvm-nopiodelay",
        "kvm-pv-eoi",
        "kvm-steal-time",
        "kvm-asyncpf",
        "kvm-asyncpf-int",
        "kvm-pv-ipi",
        "kvm-pv-tlb-flush",
        "kvm-pv-unhalt",
        "kvm-poll-control",
        "kvm-pv-sched-yield",
    ] {
        assert!(has(&t, name), "{name}");
    }
    let [eax, .., edx] = registers(&cpuid, 0x4000_0001, 0);
    // No realtime hint, no hypercalls that nobody answers, no distant interrupts.
    assert_eq!(edx, 0);
    assert_eq!(eax & (1 << 2 | 1 << 15 | 1 << 16 | 1 << 17), 0);
    assert_eq!(
        registers(
            &intel("Haswell,+kvm-hint-dedicated").cpuid_for(0),
            0x4000_0001,
            0
        )[3],
        1
    );
    let t = intel("Haswell,-kvmclock,-kvm-pv-eoi");
    assert!(!has(&t, "kvmclock") && !has(&t, "kvmclock-legacy"));
    assert!(!has(&t, "kvmclock-stable-bit") && !has(&t, "kvm-pv-eoi"));
}

#[test]
fn kvm_can_be_hidden() {
    let t = intel("host,kvm=off");
    assert!(t.cpuid_for(0).get(0x4000_0000, 0).is_none());
    assert!(has(&t, "hypervisor"));
    assert!(!has(&intel("host,kvm=off,-hypervisor"), "hypervisor"));
    let error = make("host,kvm=off,+kvm-pv-eoi", &perfect(Vendor::INTEL)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CPU property kvm=off: expected on, because +kvm-pv-eoi is asked for"
    );
    // An accelerator without the interface gives none.
    let mut host = perfect(Vendor::INTEL);
    host.cpuid.remove(0x4000_0000);
    host.cpuid.remove(0x4000_0001);
    let t = make("host", &host).unwrap();
    assert!(t.cpuid_for(0).get(0x4000_0000, 0).is_none());
    assert!(make("host,+kvm-pv-eoi", &host).is_err());
    assert!(make("host,+kvm-hint-dedicated", &host).is_err());
}

#[test]
fn a_given_level_cuts_leaves_off() {
    let cpuid = intel("Haswell,level=7,xlevel=0x80000004").cpuid_for(0);
    assert_eq!(cpuid.max_leaf(), 7);
    assert!(cpuid.get(0xb, 0).is_none() && cpuid.get(0xd, 0).is_none());
    assert_eq!(cpuid.max_extended_leaf(), 0x8000_0004);
    assert!(cpuid.get(0x8000_0008, 0).is_none());
    assert!(cpuid.get(0x4000_0001, 0).is_some());
}

#[test]
fn levels_rise_with_the_features() {
    assert_eq!(intel("Nehalem").cpuid_for(0).max_leaf(), 0xb);
    assert_eq!(intel("Nehalem,+xsave").cpuid_for(0).max_leaf(), 0xd);
    assert_eq!(amd("kvm64").cpuid_for(0).max_extended_leaf(), 0x8000_0008);
    assert_eq!(
        amd("Opteron_G4,+auto-ibrs")
            .cpuid_for(0)
            .max_extended_leaf(),
        0x8000_0021
    );
}

#[test]
fn physical_and_linear_address_bits() {
    let bits = |t: CpuTemplate| registers(&t.cpuid_for(0), 0x8000_0008, 0)[0];
    assert_eq!(bits(intel("Haswell")), 48 << 8 | 46);
    assert_eq!(bits(intel("Icelake-Server,phys-bits=45")), 57 << 8 | 45);
    assert_eq!(bits(intel("Icelake-Server,-la57")), 48 << 8 | 46);
}

#[test]
fn performance_counters_come_with_their_leaf() {
    let t = amd("EPYC-Rome");
    assert!(!has(&t, "perfctr-core"));
    let error = make("EPYC-Rome,+perfctr-core", &perfect(Vendor::AMD)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CPU property pmu=off: expected on, because +perfctr-core is asked for"
    );
    let t = amd("EPYC-Rome,pmu=on");
    assert!(has(&t, "perfctr-core") && t.pmu());
    assert_eq!(registers(&t.cpuid_for(0), 0xa, 0)[0], 0x0830_0805);
}

#[test]
fn hosts_caches_on_request() {
    let mut host = perfect(Vendor::AMD);
    for (n, [eax, ebx, ecx, edx]) in [
        // As an EPYC of the fourth generation answers.
        [0x0121, 0x01c0_003f, 0x3f, 0],
        [0x0122, 0x01c0_003f, 0x3f, 0],
        [0x0143, 0x01c0_003f, 0x7ff, 2],
        [0x4163, 0x03c0_003f, 0x7fff, 1],
        [0, 0, 0, 0],
    ]
    .into_iter()
    .enumerate()
    {
        host.cpuid.set(CpuidEntry::subleaf(
            0x8000_001d,
            n as u32,
            [eax, ebx, ecx, edx],
        ));
    }
    let t = build(&CpuSpec::host(), &host, Topology::new(1, 1, 8, 2).unwrap()).unwrap();
    let cpuid = t.cpuid_for(0);
    assert_eq!(
        registers(&cpuid, 0x8000_001d, 2)[1..],
        [0x01c0_003f, 0x7ff, 2]
    );
    assert_eq!(registers(&cpuid, 0x8000_001d, 3)[0], 15 << 14 | 0x163);
    // On a model of the other vendor they are told in that vendor's leaf.
    let t = make("Haswell,host-cache-info=on", &host).unwrap();
    assert_eq!(registers(&t.cpuid_for(0), 4, 2)[2], 0x7ff);
    let t = make("host,host-cache-info=off", &host).unwrap();
    assert_ne!(registers(&t.cpuid_for(0), 0x8000_001d, 2)[2], 0x7ff);
}

#[test]
fn a_host_without_a_name_gives_one() {
    let mut host = perfect(Vendor::INTEL);
    host.cpuid.remove(0x8000_0002);
    let brand = make("host", &host).unwrap().cpuid_for(0);
    assert_ne!(registers(&brand, 0x8000_0002, 0), [0; 4]);
}

#[test]
fn features_land_in_their_registers() {
    let t = intel("SapphireRapids");
    let cpuid = t.cpuid_for(0);
    for f in t.features().iter() {
        if let crate::cpuid::FeatureSource::Cpuid { .. } = f.source() {
            assert!(cpuid.feature(f), "{f}");
        }
    }
    assert_eq!(t.features().register(7, 1, Register::Eax), 1 << 4 | 1 << 5);
}
