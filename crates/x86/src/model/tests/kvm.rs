//! On what a real KVM says: kvm-amd of Linux 6.1 on QEMU 7.2's `-cpu max`, where it has no brand
//! string, no AMD topology leaves and few features.

use super::*;

fn host() -> HostCpu {
    let hex = |word: &str| u32::from_str_radix(word, 16).unwrap();
    let cpuid = include_str!("kvm_amd_6.1.txt")
        .lines()
        .map(|line| {
            let words: Vec<u32> = line.split(' ').map(hex).collect();
            let [leaf, subleaf, flags, eax, ebx, ecx, edx] = words[..] else {
                panic!("{line}");
            };
            CpuidEntry {
                leaf,
                subleaf,
                index_significant: flags & 1 != 0,
                eax,
                ebx,
                ecx,
                edx,
            }
        })
        .collect();
    HostCpu {
        cpuid,
        arch_capabilities: 0x4000_0000_0c00_0079,
        tsc_deadline: true,
        msi_ext_dest_id: true,
    }
}

#[test]
fn what_runs_there() {
    let runs: Vec<String> = list_models(&host())
        .into_iter()
        .filter(|l| l.is_runnable() && l.alias_of.is_none())
        .map(|l| l.name)
        .collect();
    // QEMU's TCG has no virtual-8086 mode extensions, which all real processors have.
    assert_eq!(
        runs,
        ["host", "qemu64-v1", "kvm64-v1", "x86-64-v2", "x86-64-v3"]
    );
    for name in ["Nehalem,-vme", "SandyBridge,-vme"] {
        assert!(make(name, &host()).is_ok(), "{name}");
    }
}

#[test]
fn host_there_is_complete() {
    let t = build(
        &CpuSpec::host(),
        &host(),
        Topology::new(1, 1, 2, 1).unwrap(),
    )
    .unwrap();
    for on in [
        "avx2",
        "fma",
        "pku",
        "la57",
        "umip",
        "tsc-deadline",
        "x2apic",
        "hypervisor",
        "kvmclock",
        "kvmclock-stable-bit",
        "kvm-pv-eoi",
        "kvm-steal-time",
        "kvm-asyncpf-int",
        "kvm-pv-ipi",
        "kvm-pv-tlb-flush",
        "svm",
        "cmp-legacy",
        "ht",
    ] {
        assert!(has(&t, on), "{on}");
    }
    assert!(!has(&t, "topoext"));
    assert_eq!(t.vendor(), Vendor::AMD);
    assert_eq!(t.phys_bits(), 40);
    let cpuid = t.cpuid_for(1);
    assert_eq!(cpuid.get(1, 0).unwrap().ebx, 1 << 24 | 2 << 16 | 8 << 8);
    assert_eq!(cpuid.get(0xb, 0).unwrap().edx, 1);
    let xsave = cpuid.get(0xd, 0).unwrap();
    assert_eq!((xsave.eax, xsave.ecx), (0x207, 0xa88));
    assert_eq!(cpuid.get(0x8000_0008, 0).unwrap().ecx, 0x1001);
    assert_eq!(t.xcr0_mask(), 0x207);
    assert_eq!(t.reset_state(0).xsave.len(), 0xa88);
    // Nothing that KVM did not offer, but for what is ours.
    let ours = ["hypervisor", "tsc-deadline", "ht"];
    let offered = FeatureSet::from_cpuid(&host().cpuid);
    for f in t.features().difference(&offered).iter() {
        let in_msr = matches!(f.source(), crate::cpuid::FeatureSource::Msr { .. });
        assert!(in_msr || ours.contains(&f.name()), "{f}");
    }
}

#[test]
fn a_model_that_does_not_run_there_says_why() {
    let error = make("EPYC", &host()).unwrap_err().to_string();
    assert!(error.starts_with("this host cannot give CPU EPYC: it lacks features of it ("));
    for name in [
        "misalignsse",
        "3dnowprefetch",
        "osvw",
        "xsavec",
        "rdseed",
        "sha-ni",
    ] {
        assert!(error.contains(name), "{name} in {error}");
    }
    assert!(error.contains("another model such as"), "{error}");
    assert!(make("EPYC,enforce=off", &host()).is_ok());
}
