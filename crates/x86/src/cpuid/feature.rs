//! Feature bits and their names.
//!
//! The names are QEMU's, which management tools use. One name, one bit: QEMU calls two of KVM's
//! bits "kvmclock"; here the old one is "kvmclock-legacy" and [`Feature::lookup`] gives both.

use std::fmt;
use std::hash::{Hash, Hasher};

use super::{Cpuid, Register};
use crate::msr;

/// Where a group of feature bits is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureSource {
    /// In a register of a CPUID leaf.
    Cpuid {
        /// Leaf.
        leaf: u32,
        /// Subleaf; zero where the leaf has none.
        subleaf: u32,
        /// Register.
        register: Register,
    },
    /// In a read-only MSR.
    Msr {
        /// Its number.
        index: u32,
    },
}

struct Word {
    source: FeatureSource,
    names: &'static [(u8, &'static str)],
}

const fn cpuid(
    leaf: u32,
    subleaf: u32,
    register: Register,
    names: &'static [(u8, &'static str)],
) -> Word {
    Word {
        source: FeatureSource::Cpuid {
            leaf,
            subleaf,
            register,
        },
        names,
    }
}

// Bits that software switches (OSXSAVE, OSPKE) are no features and have no names. Neither have the
// bits of 0x80000001 EDX that repeat leaf 1 EDX on AMD.
#[rustfmt::skip]
const WORDS: &[Word] = &[
    cpuid(1, 0, Register::Edx, &[
        (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"),
        (7, "mce"), (8, "cx8"), (9, "apic"), (11, "sep"), (12, "mtrr"), (13, "pge"), (14, "mca"),
        (15, "cmov"), (16, "pat"), (17, "pse36"), (18, "pn"), (19, "clflush"), (21, "ds"),
        (22, "acpi"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2"), (27, "ss"),
        (28, "ht"), (29, "tm"), (30, "ia64"), (31, "pbe"),
    ]),
    cpuid(1, 0, Register::Ecx, &[
        (0, "pni"), (1, "pclmulqdq"), (2, "dtes64"), (3, "monitor"), (4, "ds-cpl"), (5, "vmx"),
        (6, "smx"), (7, "est"), (8, "tm2"), (9, "ssse3"), (10, "cid"), (12, "fma"), (13, "cx16"),
        (14, "xtpr"), (15, "pdcm"), (17, "pcid"), (18, "dca"), (19, "sse4.1"), (20, "sse4.2"),
        (21, "x2apic"), (22, "movbe"), (23, "popcnt"), (24, "tsc-deadline"), (25, "aes"),
        (26, "xsave"), (28, "avx"), (29, "f16c"), (30, "rdrand"), (31, "hypervisor"),
    ]),
    cpuid(6, 0, Register::Eax, &[(2, "arat")]),
    cpuid(7, 0, Register::Ebx, &[
        (0, "fsgsbase"), (1, "tsc-adjust"), (2, "sgx"), (3, "bmi1"), (4, "hle"), (5, "avx2"),
        (6, "fdp-excptn-only"), (7, "smep"), (8, "bmi2"), (9, "erms"), (10, "invpcid"),
        (11, "rtm"), (13, "zero-fcs-fds"), (14, "mpx"), (16, "avx512f"), (17, "avx512dq"),
        (18, "rdseed"), (19, "adx"), (20, "smap"), (21, "avx512ifma"), (22, "pcommit"),
        (23, "clflushopt"), (24, "clwb"), (25, "intel-pt"), (26, "avx512pf"), (27, "avx512er"),
        (28, "avx512cd"), (29, "sha-ni"), (30, "avx512bw"), (31, "avx512vl"),
    ]),
    cpuid(7, 0, Register::Ecx, &[
        (1, "avx512vbmi"), (2, "umip"), (3, "pku"), (5, "waitpkg"), (6, "avx512vbmi2"),
        (7, "shstk"), (8, "gfni"), (9, "vaes"), (10, "vpclmulqdq"), (11, "avx512vnni"),
        (12, "avx512bitalg"), (14, "avx512-vpopcntdq"), (16, "la57"), (22, "rdpid"),
        (24, "bus-lock-detect"), (25, "cldemote"), (27, "movdiri"), (28, "movdir64b"),
        (30, "sgxlc"), (31, "pks"),
    ]),
    cpuid(7, 0, Register::Edx, &[
        (2, "avx512-4vnniw"), (3, "avx512-4fmaps"), (4, "fsrm"), (8, "avx512-vp2intersect"),
        (10, "md-clear"), (14, "serialize"), (16, "tsx-ldtrk"), (19, "arch-lbr"), (20, "ibt"),
        (22, "amx-bf16"), (23, "avx512-fp16"), (24, "amx-tile"), (25, "amx-int8"),
        (26, "spec-ctrl"), (27, "stibp"), (28, "flush-l1d"), (29, "arch-capabilities"),
        (30, "core-capability"), (31, "ssbd"),
    ]),
    cpuid(7, 1, Register::Eax, &[
        (0, "sha512"), (1, "sm3"), (2, "sm4"), (4, "avx-vnni"), (5, "avx512-bf16"),
        (7, "cmpccxadd"), (10, "fzrm"), (11, "fsrs"), (12, "fsrc"), (17, "fred"), (18, "lkgs"),
        (19, "wrmsrns"), (21, "amx-fp16"), (23, "avx-ifma"), (26, "lam"),
    ]),
    cpuid(7, 1, Register::Edx, &[
        (4, "avx-vnni-int8"), (5, "avx-ne-convert"), (8, "amx-complex"), (10, "avx-vnni-int16"),
        (14, "prefetchiti"),
    ]),
    cpuid(7, 2, Register::Edx, &[
        (0, "intel-psfd"), (1, "ipred-ctrl"), (2, "rrsba-ctrl"), (3, "ddpd-u"), (4, "bhi-ctrl"),
        (5, "mcdt-no"),
    ]),
    cpuid(0xd, 1, Register::Eax, &[
        (0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd"),
    ]),
    cpuid(0x8000_0001, 0, Register::Edx, &[
        (11, "syscall"), (20, "nx"), (22, "mmxext"), (25, "fxsr-opt"), (26, "pdpe1gb"),
        (27, "rdtscp"), (29, "lm"), (30, "3dnowext"), (31, "3dnow"),
    ]),
    cpuid(0x8000_0001, 0, Register::Ecx, &[
        (0, "lahf-lm"), (1, "cmp-legacy"), (2, "svm"), (3, "extapic"), (4, "cr8legacy"),
        (5, "abm"), (6, "sse4a"), (7, "misalignsse"), (8, "3dnowprefetch"), (9, "osvw"),
        (10, "ibs"), (11, "xop"), (12, "skinit"), (13, "wdt"), (15, "lwp"), (16, "fma4"),
        (17, "tce"), (19, "nodeid-msr"), (21, "tbm"), (22, "topoext"), (23, "perfctr-core"),
        (24, "perfctr-nb"),
    ]),
    cpuid(0x8000_0007, 0, Register::Ebx, &[(0, "overflow-recov"), (1, "succor")]),
    cpuid(0x8000_0007, 0, Register::Edx, &[(8, "invtsc")]),
    cpuid(0x8000_0008, 0, Register::Ebx, &[
        (0, "clzero"), (2, "xsaveerptr"), (9, "wbnoinvd"), (12, "ibpb"), (14, "ibrs"),
        (15, "amd-stibp"), (17, "stibp-always-on"), (24, "amd-ssbd"), (25, "virt-ssbd"),
        (26, "amd-no-ssb"), (28, "amd-psfd"),
    ]),
    cpuid(0x8000_000a, 0, Register::Edx, &[
        (0, "npt"), (1, "lbrv"), (2, "svm-lock"), (3, "nrip-save"), (4, "tsc-scale"),
        (5, "vmcb-clean"), (6, "flushbyasid"), (7, "decodeassists"), (10, "pause-filter"),
        (12, "pfthreshold"), (13, "avic"), (15, "v-vmsave-vmload"), (16, "vgif"), (25, "vnmi"),
        (28, "svme-addr-chk"),
    ]),
    cpuid(0x8000_0021, 0, Register::Eax, &[
        (0, "no-nested-data-bp"), (1, "fs-gs-base-ns"), (2, "lfence-always-serializing"),
        (5, "verw-clear"), (6, "null-sel-clr-base"), (8, "auto-ibrs"), (20, "prefetchi"),
        (24, "eraps"), (27, "sbpb"), (28, "ibpb-brtype"), (29, "srso-no"),
        (30, "srso-user-kernel-no"),
    ]),
    cpuid(0x8000_0021, 0, Register::Ecx, &[(1, "tsa-sq-no"), (2, "tsa-l1-no")]),
    cpuid(0x8000_0022, 0, Register::Eax, &[(0, "perfmon-v2")]),
    cpuid(super::KVM_FEATURES_LEAF, 0, Register::Eax, &[
        (0, "kvmclock-legacy"), (1, "kvm-nopiodelay"), (2, "kvm-mmu"), (3, "kvmclock"),
        (4, "kvm-asyncpf"), (5, "kvm-steal-time"), (6, "kvm-pv-eoi"), (7, "kvm-pv-unhalt"),
        (9, "kvm-pv-tlb-flush"), (10, "kvm-asyncpf-vmexit"), (11, "kvm-pv-ipi"),
        (12, "kvm-poll-control"), (13, "kvm-pv-sched-yield"), (14, "kvm-asyncpf-int"),
        (15, "kvm-msi-ext-dest-id"), (16, "kvm-hc-map-gpa-range"), (17, "kvm-migration-control"),
        (24, "kvmclock-stable-bit"),
    ]),
    cpuid(super::KVM_FEATURES_LEAF, 0, Register::Edx, &[(0, "kvm-hint-dedicated")]),
    Word {
        source: FeatureSource::Msr { index: msr::ARCH_CAPABILITIES },
        names: &[
            (0, "rdctl-no"), (1, "ibrs-all"), (2, "rsba"), (3, "skip-l1dfl-vmentry"),
            (4, "ssb-no"), (5, "mds-no"), (6, "pschange-mc-no"), (7, "tsx-ctrl"), (8, "taa-no"),
            (13, "sbdr-ssdp-no"), (14, "fbsdp-no"), (15, "psdp-no"), (17, "fb-clear"),
            (20, "bhi-no"), (24, "pbrsb-no"), (26, "gds-no"), (27, "rfds-no"), (28, "rfds-clear"),
            (62, "its-no"),
        ],
    },
];

/// Other names for one feature.
const ALIASES: &[(&str, &str)] = &[
    ("sse3", "pni"),
    ("sse4-1", "sse4.1"),
    ("sse4-2", "sse4.2"),
    ("pclmuldq", "pclmulqdq"),
    ("xd", "nx"),
    ("i64", "lm"),
    ("ffxsr", "fxsr-opt"),
    ("lzcnt", "abm"),
];

/// Names that stand for several features.
const GROUPS: &[(&str, &[&str])] = &[
    ("tsx", &["hle", "rtm"]),
    ("kvmclock", &["kvmclock-legacy", "kvmclock"]),
];

/// One feature bit.
#[derive(Clone, Copy)]
pub struct Feature {
    word: u8,
    bit: u8,
    name: &'static str,
}

impl Feature {
    /// The feature of this exact name, for constants: an unknown name does not compile there.
    ///
    /// # Panics
    /// For an unknown name, when called at run time; see [`Feature::named`].
    pub const fn of(name: &str) -> Feature {
        let mut word = 0;
        while word < WORDS.len() {
            let names = WORDS[word].names;
            let mut i = 0;
            while i < names.len() {
                if same(names[i].1, name) {
                    return Feature {
                        word: word as u8,
                        bit: names[i].0,
                        name: names[i].1,
                    };
                }
                i += 1;
            }
            word += 1;
        }
        panic!("no feature has this name");
    }

    /// The feature of this name, or of this other name for it; '_' counts as '-'.
    pub fn named(name: &str) -> Option<Feature> {
        let name = name.replace('_', "-");
        let name = ALIASES
            .iter()
            .find(|(alias, _)| *alias == name)
            .map_or(name.as_str(), |(_, name)| name);
        Feature::all().find(|f| f.name() == name)
    }

    /// The features that a name on the command line means: usually one, several for "tsx" and
    /// "kvmclock", none for an unknown name.
    pub fn lookup(name: &str) -> Vec<Feature> {
        let plain = name.replace('_', "-");
        match GROUPS.iter().find(|(group, _)| *group == plain) {
            Some((_, members)) => members.iter().filter_map(|m| Feature::named(m)).collect(),
            None => Feature::named(name).into_iter().collect(),
        }
    }

    /// Every name that [`Feature::lookup`] understands, but for '_'.
    pub fn all_names() -> impl Iterator<Item = &'static str> {
        Feature::all()
            .map(Feature::name)
            .chain(ALIASES.iter().map(|(alias, _)| *alias))
            .chain(GROUPS.iter().map(|(group, _)| *group))
    }

    /// All features, by leaf.
    pub fn all() -> impl Iterator<Item = Feature> {
        WORDS.iter().enumerate().flat_map(|(word, w)| {
            w.names.iter().map(move |&(bit, name)| Feature {
                word: word as u8,
                bit,
                name,
            })
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Where its bit is.
    pub fn source(self) -> FeatureSource {
        WORDS[usize::from(self.word)].source
    }

    /// Number of its bit there.
    pub fn bit(self) -> u8 {
        self.bit
    }

    /// Whether it is offered by the hypervisor, not the processor.
    pub fn is_paravirtual(self) -> bool {
        matches!(
            self.source(),
            FeatureSource::Cpuid {
                leaf: super::KVM_FEATURES_LEAF,
                ..
            }
        )
    }

    fn key(self) -> (u8, u8) {
        (self.word, self.bit)
    }
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

impl PartialEq for Feature {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Feature {}

impl PartialOrd for Feature {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Feature {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Hash for Feature {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct FeatureSet {
    words: [u64; WORDS.len()],
}

impl FeatureSet {
    /// The named features among these CPUID bits. Bits without a name are left out: what is not
    /// known must not be promised to a guest.
    pub fn from_cpuid(cpuid: &Cpuid) -> Self {
        Feature::all().filter(|&f| cpuid.feature(f)).collect()
    }

    /// Adds the features that this value of this MSR has.
    pub fn add_msr(&mut self, index: u32, value: u64) {
        for f in Feature::all() {
            if f.source() == (FeatureSource::Msr { index }) && value >> f.bit & 1 != 0 {
                self.insert(f);
            }
        }
    }

    /// The bits of this MSR.
    pub fn msr(&self, index: u32) -> u64 {
        let source = FeatureSource::Msr { index };
        WORDS
            .iter()
            .position(|w| w.source == source)
            .map_or(0, |word| self.words[word])
    }

    /// The bits of this register of this CPUID leaf.
    pub fn register(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        let source = FeatureSource::Cpuid {
            leaf,
            subleaf,
            register,
        };
        WORDS
            .iter()
            .position(|w| w.source == source)
            .map_or(0, |word| self.words[word] as u32)
    }

    /// Adds one.
    pub fn insert(&mut self, feature: Feature) {
        self.words[usize::from(feature.word)] |= 1 << feature.bit;
    }

    /// Takes one away.
    pub fn remove(&mut self, feature: Feature) {
        self.words[usize::from(feature.word)] &= !(1 << feature.bit);
    }

    /// Whether it is there.
    pub fn contains(&self, feature: Feature) -> bool {
        self.words[usize::from(feature.word)] >> feature.bit & 1 != 0
    }

    /// Those of this set that `other` lacks.
    pub fn difference(&self, other: &FeatureSet) -> FeatureSet {
        let mut out = *self;
        for (word, taken) in out.words.iter_mut().zip(other.words) {
            *word &= !taken;
        }
        out
    }

    /// Those in both.
    pub fn intersection(&self, other: &FeatureSet) -> FeatureSet {
        let mut out = *self;
        for (word, kept) in out.words.iter_mut().zip(other.words) {
            *word &= kept;
        }
        out
    }

    /// Those in either.
    pub fn union(&self, other: &FeatureSet) -> FeatureSet {
        let mut out = *self;
        for (word, more) in out.words.iter_mut().zip(other.words) {
            *word |= more;
        }
        out
    }

    /// Whether none is there.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&w| w == 0)
    }

    /// All of them, by leaf.
    pub fn iter(&self) -> impl Iterator<Item = Feature> + '_ {
        Feature::all().filter(|&f| self.contains(f))
    }
}

impl FromIterator<Feature> for FeatureSet {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        let mut set = FeatureSet::default();
        for f in features {
            set.insert(f);
        }
        set
    }
}

impl fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
