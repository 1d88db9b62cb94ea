//! Caches as CPUID leaf 4 and AMD's leaf 0x8000001D describe them.

use super::Cpuid;

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// Data.
    Data,
    /// Instructions.
    Instruction,
    /// Both.
    Unified,
}

/// One cache of a processor.
///
/// Which processors share it is not here: that follows from the guest's topology. The first two
/// levels belong to a core, the rest to a die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// Level, from 1.
    pub level: u8,
    /// What it holds.
    pub kind: CacheKind,
    /// Line, bytes.
    pub line: u16,
    /// Lines per tag.
    pub partitions: u16,
    /// Ways of associativity.
    pub ways: u16,
    /// Sets.
    pub sets: u32,
    /// Holds all that the levels below it hold.
    pub inclusive: bool,
    /// Set chosen by a hash, not by address bits.
    pub complex_indexing: bool,
}

impl Cache {
    /// A cache of `kib` KiB with 64-byte lines.
    pub const fn new(level: u8, kind: CacheKind, kib: u32, ways: u16) -> Self {
        Cache {
            level,
            kind,
            line: 64,
            partitions: 1,
            ways,
            sets: kib * 1024 / 64 / ways as u32,
            inclusive: false,
            complex_indexing: false,
        }
    }

    /// The same cache, inclusive.
    pub const fn inclusive(mut self) -> Self {
        self.inclusive = true;
        self
    }

    /// The same cache with a hashed set index.
    pub const fn hashed(mut self) -> Self {
        self.complex_indexing = true;
        self
    }

    /// Size, bytes.
    pub fn size(&self) -> u64 {
        u64::from(self.line)
            * u64::from(self.partitions)
            * u64::from(self.ways)
            * u64::from(self.sets)
    }

    /// Whether one die shares it, rather than one core.
    pub fn is_die_wide(&self) -> bool {
        self.level > 2
    }

    /// The caches that this leaf (4, or 0x8000001D on AMD) lists.
    pub fn list(cpuid: &Cpuid, leaf: u32) -> Vec<Cache> {
        // Eight is more than any processor has; a list without an end must not hold us.
        (0..8)
            .map_while(|subleaf| {
                let e = cpuid.get(leaf, subleaf).filter(|e| e.index_significant)?;
                let kind = match e.eax & 0x1f {
                    1 => CacheKind::Data,
                    2 => CacheKind::Instruction,
                    3 => CacheKind::Unified,
                    _ => return None,
                };
                Some(Cache {
                    level: (e.eax >> 5 & 7) as u8,
                    kind,
                    line: (e.ebx & 0xfff) as u16 + 1,
                    partitions: (e.ebx >> 12 & 0x3ff) as u16 + 1,
                    ways: (e.ebx >> 22) as u16 + 1,
                    sets: e.ecx.saturating_add(1),
                    inclusive: e.edx & 2 != 0,
                    complex_indexing: e.edx & 4 != 0,
                })
            })
            .collect()
    }

    /// The registers of leaf 4 or 0x8000001D. `sharing` and `cores` are the numbers of IDs less
    /// one that the fields EAX\[25:14\] and EAX\[31:26\] take (`cores` is reserved on AMD: zero).
    pub fn registers(&self, sharing: u32, cores: u32) -> [u32; 4] {
        let kind = match self.kind {
            CacheKind::Data => 1,
            CacheKind::Instruction => 2,
            CacheKind::Unified => 3,
        };
        // Bit 8: usable without being initialized by software.
        let eax = kind
            | u32::from(self.level & 7) << 5
            | 1 << 8
            | sharing.min(0xfff) << 14
            | cores.min(0x3f) << 26;
        let ebx = u32::from(self.line.saturating_sub(1)) & 0xfff
            | (u32::from(self.partitions.saturating_sub(1)) & 0x3ff) << 12
            | (u32::from(self.ways.saturating_sub(1)) & 0x3ff) << 22;
        let edx = u32::from(self.inclusive) << 1 | u32::from(self.complex_indexing) << 2;
        [eax, ebx, self.sets.saturating_sub(1), edx]
    }
}
