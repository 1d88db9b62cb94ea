//! The leaves that a guest sees, and the processor built from them.
//!
//! Sources: SDM vol. 2A "CPUID"; APM vol. 3 appendix E.3 and E.4.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::host::{COMPONENTS, HostCpu};
use super::spec::{Base, CpuSpec};
use crate::cpuid::{
    Cache, CacheKind, Cpuid, CpuidEntry, Feature, FeatureSet, HYPERVISOR_LEAF, KVM_FEATURES_LEAF,
    KVM_SIGNATURE, Register, Signature, Vendor,
};
use crate::cr::xcr0;
use crate::msr;
use crate::state::{CpuState, XSAVE_HEADER_LEN, XSAVE_LEGACY_LEN};
use crate::topology::Topology;

/// Highest basic leaf that there is something to say about.
pub(super) const MAX_LEAF: u32 = 0x1f;
/// Highest extended leaf that there is something to say about.
pub(super) const MAX_EXTENDED_LEAF: u32 = 0x8000_0022;
/// AMD's leaf of caches.
pub(super) const AMD_CACHES: u32 = 0x8000_001d;

/// Length of the XSAVE area with the legacy region and the header only.
const XSAVE_MIN: u32 = (XSAVE_LEGACY_LEN + XSAVE_HEADER_LEN) as u32;

/// Bits of 0x80000001 EDX that repeat those of leaf 1 EDX on AMD (APM vol. 3 E.4.2).
const AMD_REPEATED: u32 = 0x0183_f3ff;

/// All that is decided about a processor, but for its features.
pub(super) struct Identity {
    pub vendor: Vendor,
    pub signature: Signature,
    pub model_id: String,
    /// Highest basic leaf, unless features need more.
    pub level: u32,
    /// Highest extended leaf, unless features need more.
    pub xlevel: u32,
    /// Leaves beyond this one are cut off.
    pub max_level: Option<u32>,
    /// Extended leaves beyond this one are cut off.
    pub max_xlevel: Option<u32>,
    pub phys_bits: u8,
    pub caches: Vec<Cache>,
    pub pmu: bool,
    /// Modelled on the host: leaves that only describe it are copied.
    pub host_base: bool,
}

/// A processor as a guest will see it, the same for all of its virtual processors but for what
/// their numbers change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuTemplate {
    name: String,
    model: String,
    cpuid: Cpuid,
    topology: Topology,
    msrs: BTreeMap<u32, u64>,
    dropped: Vec<String>,
    pmu: bool,
    phys_bits: u8,
    tsc_khz: Option<u32>,
}

impl CpuTemplate {
    pub(super) fn new(
        spec: &CpuSpec,
        identity: &Identity,
        features: &FeatureSet,
        cpuid: Cpuid,
        topology: Topology,
        dropped: Vec<String>,
    ) -> Self {
        let mut msrs = BTreeMap::new();
        if features.contains(Feature::of("arch-capabilities")) {
            msrs.insert(msr::ARCH_CAPABILITIES, features.msr(msr::ARCH_CAPABILITIES));
        }
        CpuTemplate {
            name: spec.to_string(),
            model: match spec.base() {
                Base::Host => "host".to_owned(),
                Base::Model(m) => m.versioned_name(),
            },
            cpuid,
            topology,
            msrs,
            dropped,
            pmu: identity.pmu,
            phys_bits: identity.phys_bits,
            tsc_khz: spec
                .options()
                .tsc_frequency
                .and_then(|hz| u32::try_from(hz / 1000).ok()),
        }
    }

    /// What CPUID answers on the virtual processor with this number.
    pub fn cpuid_for(&self, vcpu: u32) -> Cpuid {
        let id = self.topology.apic_id(vcpu);
        let place = self.topology.place(vcpu);
        let amd = self.vendor().is_amd_like();
        let mut cpuid = self.cpuid.clone();
        for e in cpuid.iter_mut() {
            match e.leaf {
                1 => e.ebx = e.ebx & 0x00ff_ffff | id << 24,
                0xb | 0x1f => e.edx = id,
                0x8000_001e if amd => {
                    let core = place.die * self.topology.cores() + place.core;
                    let node = id >> self.topology.die_shift();
                    e.eax = id;
                    e.ebx = e.ebx & !0xff | core & 0xff;
                    e.ecx = e.ecx & !0xff | node & 0xff;
                }
                _ => {}
            }
        }
        cpuid
    }

    /// APIC ID of the virtual processor with this number.
    pub fn apic_id(&self, vcpu: u32) -> u32 {
        self.topology.apic_id(vcpu)
    }

    /// State of a virtual processor after power-on. The first one is the bootstrap processor.
    pub fn reset_state(&self, vcpu: u32) -> CpuState {
        let mut state = CpuState::reset_with(self.signature().to_eax(), vcpu == 0);
        state.xsave.resize(self.cpuid.xsave_len() as usize, 0);
        state.tsc_khz = self.tsc_khz;
        state
    }

    /// The wish that it was built from, as text.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model with its version ("Haswell-v1"), or "host".
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Vendor that the guest sees.
    pub fn vendor(&self) -> Vendor {
        self.cpuid.vendor().unwrap_or(Vendor::INTEL)
    }

    /// Family, model and stepping that the guest sees.
    pub fn signature(&self) -> Signature {
        self.cpuid.signature().unwrap_or(Signature {
            family: 6,
            model: 0,
            stepping: 0,
        })
    }

    /// Whether the guest sees this feature.
    pub fn feature(&self, feature: Feature) -> bool {
        self.features().contains(feature)
    }

    /// All features that the guest sees.
    pub fn features(&self) -> FeatureSet {
        let mut set = FeatureSet::from_cpuid(&self.cpuid);
        for (&index, &value) in &self.msrs {
            set.add_msr(index, value);
        }
        set
    }

    /// How the processors are arranged.
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// MSRs that describe the processor, to be set once when a virtual processor is made.
    pub fn msrs(&self) -> &BTreeMap<u32, u64> {
        &self.msrs
    }

    /// Features that the host lacks and that were left out, with `enforce=off`.
    pub fn dropped(&self) -> &[String] {
        &self.dropped
    }

    /// Whether there are performance counters.
    pub fn pmu(&self) -> bool {
        self.pmu
    }

    /// Physical address bits.
    pub fn phys_bits(&self) -> u8 {
        self.phys_bits
    }

    /// Frequency of the time stamp counter in kHz, if one was asked for.
    pub fn tsc_khz(&self) -> Option<u32> {
        self.tsc_khz
    }

    /// The bits of XCR0 that the guest may set.
    pub fn xcr0_mask(&self) -> u64 {
        self.cpuid.xcr0_mask()
    }
}

/// The brand string of leaves 0x80000002 to 0x80000004.
pub(super) fn brand_string(cpuid: &Cpuid) -> String {
    let bytes: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .filter_map(|leaf| cpuid.get(leaf, 0))
        .flat_map(|e| [e.eax, e.ebx, e.ecx, e.edx])
        .flat_map(u32::to_le_bytes)
        .take_while(|&b| b != 0)
        .collect();
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    if text.is_empty() {
        "Host processor".to_owned()
    } else {
        text
    }
}

/// All leaves. Where a processor's own number belongs there is that of the first one.
pub(super) fn render(
    identity: &Identity,
    features: &FeatureSet,
    host: &HostCpu,
    topology: Topology,
) -> Cpuid {
    let renderer = Renderer {
        identity,
        features,
        host,
        topology,
        amd: identity.vendor.is_amd_like(),
    };
    let mut cpuid = Cpuid::new();
    renderer.basic(&mut cpuid);
    renderer.xsave(&mut cpuid);
    renderer.extended(&mut cpuid);
    renderer.hypervisor(&mut cpuid);
    renderer.levels(&cpuid)
}

struct Renderer<'a> {
    identity: &'a Identity,
    features: &'a FeatureSet,
    host: &'a HostCpu,
    topology: Topology,
    /// Vendor of the guest's processor, not the host's.
    amd: bool,
}

impl Renderer<'_> {
    fn has(&self, feature: Feature) -> bool {
        self.features.contains(feature)
    }

    fn bits(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        self.features.register(leaf, subleaf, register)
    }

    /// Copies a leaf from the host, if that says anything: KVM zeroes some that it does not care
    /// about.
    fn copy_told(&self, cpuid: &mut Cpuid, leaf: u32) -> bool {
        let host = self.host.cpuid.get(leaf, 0);
        let told = host.filter(|e| [e.eax, e.ebx, e.ecx, e.edx] != [0; 4]);
        if let Some(&entry) = told {
            cpuid.set(entry);
        }
        told.is_some()
    }

    /// Copies a leaf with all its subleaves from the host.
    fn copy(&self, cpuid: &mut Cpuid, leaf: u32) {
        for entry in self.host.cpuid.iter().filter(|e| e.leaf == leaf) {
            cpuid.set(*entry);
        }
    }

    fn basic(&self, cpuid: &mut Cpuid) {
        // CLFLUSH works on lines of 8 quadwords; the number of processors is exact, as AMD's
        // manual wants it and QEMU has it.
        let logical = self.topology.per_socket().min(0xff);
        cpuid.set(CpuidEntry::leaf(
            1,
            [
                self.identity.signature.to_eax(),
                8 << 8 | logical << 16,
                self.bits(1, 0, Register::Ecx),
                self.bits(1, 0, Register::Edx),
            ],
        ));
        if !self.amd {
            let copied = self.identity.host_base
                && !self.host.vendor().is_amd_like()
                && self.copy_told(cpuid, 2);
            if !copied {
                // "One call is enough", and descriptor 0xff: caches are in leaf 4.
                cpuid.set(CpuidEntry::leaf(2, [0x0000_ff01, 0, 0, 0]));
            }
            self.intel_caches(cpuid);
        }
        if self.has(const { Feature::of("monitor") }) {
            self.copy(cpuid, 5);
        }
        cpuid.set(CpuidEntry::leaf(
            6,
            [self.bits(6, 0, Register::Eax), 0, 0, 0],
        ));
        self.extended_features(cpuid);
        if self.identity.pmu {
            self.copy(cpuid, 0xa);
        }
        self.topology_leaves(cpuid);
        if self.identity.host_base {
            // Frequencies of the time stamp counter and the core.
            self.copy(cpuid, 0x15);
            self.copy(cpuid, 0x16);
        }
        if self.has(const { Feature::of("amx-tile") }) {
            // The one palette there is: 8 tiles of 16 rows of 64 bytes (SDM vol. 2A, leaf 1DH),
            // and a multiplier for 16 by 64 bytes.
            cpuid.set(CpuidEntry::subleaf(0x1d, 0, [1, 0, 0, 0]));
            cpuid.set(CpuidEntry::subleaf(
                0x1d,
                1,
                [0x0400_2000, 0x0008_0040, 16, 0],
            ));
            cpuid.set(CpuidEntry::subleaf(0x1e, 0, [0, 0x0000_4010, 0, 0]));
        }
    }

    /// Leaf 7.
    fn extended_features(&self, cpuid: &mut Cpuid) {
        let subleaf = |n| {
            [
                self.bits(7, n, Register::Eax),
                self.bits(7, n, Register::Ebx),
                self.bits(7, n, Register::Ecx),
                self.bits(7, n, Register::Edx),
            ]
        };
        let last = (1..=2).rev().find(|&n| subleaf(n) != [0; 4]).unwrap_or(0);
        let [_, ebx, ecx, edx] = subleaf(0);
        cpuid.set(CpuidEntry::subleaf(7, 0, [last, ebx, ecx, edx]));
        for n in 1..=last {
            cpuid.set(CpuidEntry::subleaf(7, n, subleaf(n)));
        }
    }

    /// Leaf 4.
    fn intel_caches(&self, cpuid: &mut Cpuid) {
        let t = self.topology;
        let cores = (1 << (t.socket_shift() - t.core_shift())) - 1;
        for (n, cache) in (0..).zip(&self.identity.caches) {
            let shift = if cache.is_die_wide() {
                t.die_shift()
            } else {
                t.core_shift()
            };
            cpuid.set(CpuidEntry::subleaf(
                4,
                n,
                cache.registers((1 << shift) - 1, cores),
            ));
        }
        let end = self.identity.caches.len() as u32;
        cpuid.set(CpuidEntry::subleaf(4, end, [0; 4]));
    }

    /// Leaves 0xB and 0x1F: level numbers 1 (thread), 2 (core), 5 (die).
    fn topology_leaves(&self, cpuid: &mut Cpuid) {
        let t = self.topology;
        let levels = |cpuid: &mut Cpuid, leaf, levels: &[(u32, u32, u32)]| {
            let mut n = 0;
            for &(kind, shift, count) in levels {
                cpuid.set(CpuidEntry::subleaf(
                    leaf,
                    n,
                    [shift, count & 0xffff, n | kind << 8, 0],
                ));
                n += 1;
            }
            cpuid.set(CpuidEntry::subleaf(leaf, n, [0, 0, n, 0]));
        };
        levels(
            cpuid,
            0xb,
            &[
                (1, t.core_shift(), t.threads()),
                (2, t.socket_shift(), t.per_socket()),
            ],
        );
        if t.dies() > 1 && !self.amd {
            levels(
                cpuid,
                0x1f,
                &[
                    (1, t.core_shift(), t.threads()),
                    (2, t.die_shift(), t.cores() * t.threads()),
                    (5, t.socket_shift(), t.per_socket()),
                ],
            );
        }
    }

    /// Leaf 0xD: the components of the guest's features, where the host keeps them.
    fn xsave(&self, cpuid: &mut Cpuid) {
        if !self.has(const { Feature::of("xsave") }) {
            return;
        }
        let mut user = xcr0::X87 | xcr0::SSE;
        let mut supervisor = 0;
        for &(feature, u, s) in COMPONENTS {
            if self.features.contains(feature) {
                user |= u;
                supervisor |= s;
            }
        }
        let mut len = XSAVE_MIN;
        for n in 2..63 {
            if (user | supervisor) >> n & 1 == 0 {
                continue;
            }
            if let Some(&entry) = self.host.cpuid.get(0xd, n) {
                if user >> n & 1 != 0 {
                    len = len.max(entry.ebx.saturating_add(entry.eax));
                }
                cpuid.set(entry);
            }
        }
        // EBX of both subleaves depends on XCR0 and IA32_XSS, and the accelerator keeps it so;
        // this is its value after reset.
        cpuid.set(CpuidEntry::subleaf(
            0xd,
            0,
            [user as u32, XSAVE_MIN, len, (user >> 32) as u32],
        ));
        let compact = if self.has(const { Feature::of("xsavec") })
            || self.has(const { Feature::of("xsaves") })
        {
            XSAVE_MIN
        } else {
            0
        };
        cpuid.set(CpuidEntry::subleaf(
            0xd,
            1,
            [
                self.bits(0xd, 1, Register::Eax),
                compact,
                supervisor as u32,
                (supervisor >> 32) as u32,
            ],
        ));
    }

    fn extended(&self, cpuid: &mut Cpuid) {
        let t = self.topology;
        let edx1 = cpuid.get(1, 0).map_or(0, |e| e.edx);
        let repeated = if self.amd { edx1 & AMD_REPEATED } else { 0 };
        cpuid.set(CpuidEntry::leaf(
            0x8000_0001,
            [
                if self.amd {
                    self.identity.signature.to_eax()
                } else {
                    0
                },
                0,
                self.bits(0x8000_0001, 0, Register::Ecx),
                self.bits(0x8000_0001, 0, Register::Edx) | repeated,
            ],
        ));
        self.brand(cpuid);
        self.amd_legacy_caches(cpuid);
        cpuid.set(CpuidEntry::leaf(
            0x8000_0007,
            [
                0,
                self.bits(0x8000_0007, 0, Register::Ebx),
                0,
                self.bits(0x8000_0007, 0, Register::Edx),
            ],
        ));
        let linear = if self.has(const { Feature::of("la57") }) {
            57
        } else {
            48
        };
        let count = if self.amd && t.per_socket() > 1 {
            (t.per_socket() - 1).min(0xff) | t.socket_shift().min(0xf) << 12
        } else {
            0
        };
        cpuid.set(CpuidEntry::leaf(
            0x8000_0008,
            [
                u32::from(self.identity.phys_bits) | linear << 8,
                self.bits(0x8000_0008, 0, Register::Ebx),
                count,
                0,
            ],
        ));
        if self.has(const { Feature::of("svm") }) {
            // Revision 1; as many address space IDs as the host lends.
            let asids = self.host.cpuid.get(0x8000_000a, 0).map_or(0, |e| e.ebx);
            cpuid.set(CpuidEntry::leaf(
                0x8000_000a,
                [1, asids, 0, self.bits(0x8000_000a, 0, Register::Edx)],
            ));
        }
        if self.amd && self.identity.host_base && self.host.vendor().is_amd_like() {
            // Translation buffers of 1 GiB pages; which vector lengths are fast.
            self.copy(cpuid, 0x8000_0019);
            self.copy(cpuid, 0x8000_001a);
        }
        if self.amd && self.has(const { Feature::of("topoext") }) {
            for (n, cache) in (0..).zip(&self.identity.caches) {
                let sharing = if cache.is_die_wide() {
                    t.cores() * t.threads()
                } else {
                    t.threads()
                };
                cpuid.set(CpuidEntry::subleaf(
                    AMD_CACHES,
                    n,
                    cache.registers(sharing - 1, 0),
                ));
            }
            let end = self.identity.caches.len() as u32;
            cpuid.set(CpuidEntry::subleaf(AMD_CACHES, end, [0; 4]));
            cpuid.set(CpuidEntry::leaf(
                0x8000_001e,
                [
                    0,
                    (t.threads() - 1).min(0xff) << 8,
                    (t.dies() - 1).min(7) << 8,
                    0,
                ],
            ));
        }
        let features = [
            self.bits(0x8000_0021, 0, Register::Eax),
            0,
            self.bits(0x8000_0021, 0, Register::Ecx),
            0,
        ];
        if features != [0; 4] {
            cpuid.set(CpuidEntry::leaf(0x8000_0021, features));
        }
        if self.identity.pmu && self.has(const { Feature::of("perfmon-v2") }) {
            self.copy(cpuid, 0x8000_0022);
        }
    }

    fn brand(&self, cpuid: &mut Cpuid) {
        let mut text = [0; 48];
        for (to, from) in text.iter_mut().zip(self.identity.model_id.bytes()) {
            *to = from;
        }
        for (leaf, part) in (0x8000_0002..).zip(text.chunks_exact(16)) {
            let mut registers = [0; 4];
            for (register, bytes) in registers.iter_mut().zip(part.as_chunks().0) {
                *register = u32::from_le_bytes(*bytes);
            }
            cpuid.set(CpuidEntry::leaf(leaf, registers));
        }
    }

    /// Leaves 0x80000005 and 0x80000006: caches as AMD described them first; Intel's processors
    /// have the second level only.
    fn amd_legacy_caches(&self, cpuid: &mut Cpuid) {
        let copied = self.amd
            && self.identity.host_base
            && self.host.vendor().is_amd_like()
            && self.copy_told(cpuid, 0x8000_0005)
            && self.copy_told(cpuid, 0x8000_0006);
        if copied {
            return;
        }
        let find = |level, kind| {
            self.identity
                .caches
                .iter()
                .find(|c| c.level == level && c.kind == kind)
        };
        let kib = |c: &Cache| (c.size() >> 10).min(u64::from(u32::MAX)) as u32;
        let first = |c: Option<&Cache>| {
            c.map_or(0, |c| {
                kib(c).min(0xff) << 24 | u32::from(c.ways.min(0xff)) << 16 | 1 << 8 | 64
            })
        };
        let l2 = find(2, CacheKind::Unified).map_or(0, |c| {
            kib(c).min(0xffff) << 16 | associativity(c.ways) << 12 | 64
        });
        // One line for each tag; reserved on Intel's.
        let tag = 1 << 8;
        if !self.amd {
            cpuid.set(CpuidEntry::leaf(0x8000_0006, [0, 0, l2, 0]));
            return;
        }
        // 64 entries for any page in the first level of translation buffers, fully associative;
        // 512 entries for 4 KiB pages in the second, 4-way.
        cpuid.set(CpuidEntry::leaf(
            0x8000_0005,
            [
                0xff40_ff40,
                0xff40_ff40,
                first(find(1, CacheKind::Data)),
                first(find(1, CacheKind::Instruction)),
            ],
        ));
        let l3 = find(3, CacheKind::Unified).map_or(0, |c| {
            (kib(c) / 512).min(0x3fff) << 18 | associativity(c.ways) << 12 | tag | 64
        });
        cpuid.set(CpuidEntry::leaf(
            0x8000_0006,
            [0, 0x4200_4200, l2 | tag, l3],
        ));
    }

    fn hypervisor(&self, cpuid: &mut Cpuid) {
        let features = self.bits(KVM_FEATURES_LEAF, 0, Register::Eax);
        let hints = self.bits(KVM_FEATURES_LEAF, 0, Register::Edx);
        if features | hints == 0 {
            return;
        }
        let [ebx, ecx, edx] = KVM_SIGNATURE;
        cpuid.set(CpuidEntry::leaf(
            HYPERVISOR_LEAF,
            [KVM_FEATURES_LEAF, ebx, ecx, edx],
        ));
        cpuid.set(CpuidEntry::leaf(KVM_FEATURES_LEAF, [features, 0, 0, hints]));
    }

    /// Adds the leaves that name the highest ones, and cuts off what is beyond a given limit.
    fn levels(&self, cpuid: &Cpuid) -> Cpuid {
        let highest = |range: std::ops::Range<u32>| {
            cpuid
                .iter()
                .filter(|e| range.contains(&e.leaf))
                // The end of a list says nothing.
                .filter(|e| [e.eax, e.ebx, e.ecx, e.edx] != [0; 4])
                .map(|e| e.leaf)
                .max()
                .unwrap_or(range.start)
        };
        let id = self.identity;
        let level = id
            .max_level
            .unwrap_or_else(|| id.level.max(highest(0..HYPERVISOR_LEAF)));
        let xlevel = id
            .max_xlevel
            .unwrap_or_else(|| id.xlevel.max(highest(0x8000_0000..0xc000_0000)));
        let mut out: Cpuid = cpuid
            .iter()
            .filter(|e| match e.leaf {
                0x8000_0000.. => e.leaf <= xlevel,
                HYPERVISOR_LEAF.. => true,
                _ => e.leaf <= level,
            })
            .copied()
            .collect();
        let [ebx, edx, ecx] = id.vendor.registers();
        out.set(CpuidEntry::leaf(0, [level, ebx, ecx, edx]));
        let [ebx, edx, ecx] = if self.amd { [ebx, edx, ecx] } else { [0; 3] };
        out.set(CpuidEntry::leaf(0x8000_0000, [xlevel, ebx, ecx, edx]));
        out
    }
}

/// Encoding of the ways in leaf 0x80000006 (APM vol. 3 E.4.4).
fn associativity(ways: u16) -> u32 {
    match ways {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 3,
        4 | 5 => 4,
        6 | 7 => 5,
        8..16 => 6,
        16..32 => 8,
        32..48 => 0xa,
        48..64 => 0xb,
        64..96 => 0xc,
        96..128 => 0xd,
        _ => 0xe,
    }
}
