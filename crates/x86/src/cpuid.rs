//! CPUID: leaves, a sorted collection of them, and the names of the feature bits.
//!
//! Sources: SDM vol. 2A "CPUID", APM vol. 3 appendix E, and Linux's
//! Documentation/virt/kvm/x86/cpuid.rst for the hypervisor leaves.

use serde::{Deserialize, Deserializer, Serialize};

mod cache;
mod feature;
#[cfg(test)]
mod tests;
mod vendor;

pub use cache::{Cache, CacheKind};
pub use feature::{Feature, FeatureSet, FeatureSource};
pub use vendor::{Signature, Vendor};

/// First leaf of the hypervisor's own: signature and highest leaf.
pub const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// KVM's paravirtual features (EAX) and hints (EDX).
pub const KVM_FEATURES_LEAF: u32 = 0x4000_0001;
/// "KVMKVMKVM\0\0\0" in EBX, ECX, EDX of [`HYPERVISOR_LEAF`].
pub const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];

/// A register that CPUID fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each variant is the register of that name")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What CPUID returns for one leaf, or for one of its subleaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the registers explain themselves")]
pub struct CpuidEntry {
    /// Input in EAX.
    pub leaf: u32,
    /// Input in ECX; zero where it does not matter.
    pub subleaf: u32,
    /// Whether ECX selects a subleaf. If not, the entry answers for every ECX.
    pub index_significant: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl CpuidEntry {
    /// A leaf without subleaves.
    pub fn leaf(leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Self {
        CpuidEntry {
            leaf,
            subleaf: 0,
            index_significant: false,
            eax,
            ebx,
            ecx,
            edx,
        }
    }

    /// One subleaf of a leaf that has them.
    pub fn subleaf(leaf: u32, subleaf: u32, registers: [u32; 4]) -> Self {
        CpuidEntry {
            subleaf,
            index_significant: true,
            ..Self::leaf(leaf, registers)
        }
    }

    /// The value in one register.
    pub fn register(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

    /// One register, to be changed.
    pub fn register_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }

    fn key(&self) -> (u32, u32) {
        (self.leaf, self.subleaf)
    }
}

/// All that CPUID answers, sorted by leaf and subleaf, each at most once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Cpuid {
    entries: Vec<CpuidEntry>,
}

impl Cpuid {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The entry that answers for this leaf and subleaf. Like KVM, this knows no "out of range"
    /// rule: what is absent is None, and reads as zeros.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
        let first = self.entries.partition_point(|e| e.leaf < leaf);
        self.entries[first..]
            .iter()
            .take_while(|e| e.leaf == leaf)
            .find(|e| !e.index_significant || e.subleaf == subleaf)
    }

    /// Adds an entry, or replaces the one with the same leaf and subleaf.
    pub fn set(&mut self, entry: CpuidEntry) {
        match self
            .entries
            .binary_search_by_key(&entry.key(), CpuidEntry::key)
        {
            Ok(at) => self.entries[at] = entry,
            Err(at) => self.entries.insert(at, entry),
        }
    }

    /// Takes a leaf with all its subleaves away.
    pub fn remove(&mut self, leaf: u32) {
        self.entries.retain(|e| e.leaf != leaf);
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = &CpuidEntry> {
        self.entries.iter()
    }

    /// All entries in order, to be changed. Leaf and subleaf must stay what they are.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut CpuidEntry> {
        self.entries.iter_mut()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a feature bit is set. Features that live in an MSR never are.
    pub fn feature(&self, feature: Feature) -> bool {
        match feature.source() {
            FeatureSource::Cpuid {
                leaf,
                subleaf,
                register,
            } => self
                .get(leaf, subleaf)
                .is_some_and(|e| e.register(register) >> feature.bit() & 1 != 0),
            FeatureSource::Msr { .. } => false,
        }
    }

    /// Sets or clears a feature bit; its entry is added where there is none. Features that live in
    /// an MSR are left alone.
    pub fn set_feature(&mut self, feature: Feature, on: bool) {
        let FeatureSource::Cpuid {
            leaf,
            subleaf,
            register,
        } = feature.source()
        else {
            return;
        };
        let mut entry = match self.get(leaf, subleaf) {
            Some(entry) => *entry,
            None if on => CpuidEntry {
                leaf,
                subleaf,
                index_significant: has_subleaves(leaf),
                ..CpuidEntry::default()
            },
            None => return,
        };
        let bit = 1 << feature.bit();
        let value = entry.register_mut(register);
        *value = if on { *value | bit } else { *value & !bit };
        self.set(entry);
    }

    /// Vendor, from leaf 0.
    pub fn vendor(&self) -> Option<Vendor> {
        self.get(0, 0)
            .map(|e| Vendor::from_registers([e.ebx, e.edx, e.ecx]))
    }

    /// Family, model and stepping, from leaf 1.
    pub fn signature(&self) -> Option<Signature> {
        self.get(1, 0).map(|e| Signature::from_eax(e.eax))
    }

    /// Highest basic leaf.
    pub fn max_leaf(&self) -> u32 {
        self.get(0, 0).map_or(0, |e| e.eax)
    }

    /// Highest extended leaf (0x80000000 and above).
    pub fn max_extended_leaf(&self) -> u32 {
        self.get(0x8000_0000, 0).map_or(0, |e| e.eax)
    }

    /// Physical address bits (leaf 0x80000008; 36 where it does not say).
    pub fn phys_bits(&self) -> u8 {
        match self.get(0x8000_0008, 0).map(|e| e.eax as u8) {
            Some(bits) if bits != 0 => bits,
            _ => 36,
        }
    }

    /// The state components of XCR0 that exist (leaf 0xD).
    pub fn xcr0_mask(&self) -> u64 {
        self.get(0xd, 0)
            .map_or(0, |e| u64::from(e.edx) << 32 | u64::from(e.eax))
    }

    /// Length of the standard-format XSAVE area for all components of XCR0, bytes; 576 without
    /// XSAVE, for FXSAVE's region and a header.
    pub fn xsave_len(&self) -> u32 {
        self.get(0xd, 0).map_or(0, |e| e.ecx).max(576)
    }
}

impl FromIterator<CpuidEntry> for Cpuid {
    fn from_iter<I: IntoIterator<Item = CpuidEntry>>(entries: I) -> Self {
        let mut cpuid = Cpuid::new();
        for entry in entries {
            cpuid.set(entry);
        }
        cpuid
    }
}

impl<'a> IntoIterator for &'a Cpuid {
    type Item = &'a CpuidEntry;
    type IntoIter = std::slice::Iter<'a, CpuidEntry>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.iter()
    }
}

impl<'de> Deserialize<'de> for Cpuid {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        // Through `set`: searches rely on the order, which a saved file need not have.
        Ok(Vec::<CpuidEntry>::deserialize(input)?.into_iter().collect())
    }
}

/// Whether ECX matters for this leaf.
fn has_subleaves(leaf: u32) -> bool {
    matches!(
        leaf,
        0x4 | 0x7
            | 0xb
            | 0xd
            | 0xf
            | 0x10
            | 0x12
            | 0x14
            | 0x17
            | 0x18
            | 0x1d
            | 0x1e
            | 0x1f
            | 0x20
            | 0x24
            | 0x8000_001d
            | 0x8000_0020
            | 0x8000_0026
    )
}
