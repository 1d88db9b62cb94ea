//! Which guest-physical addresses are RAM, and what the rest is for.
//!
//! ```text
//!  0        640K  1M            low RAM end   2.75G    3G          4G-20M   4G          RAM end
//!  |  RAM   |VGA..|     RAM     |             | ECAM   | 32-bit    | APICs, |   RAM     | memory   | 64-bit
//!  |        |BIOS |        ACPI |             |        | BARs      | flash  |           | hot-plug | BARs
//! ```
//!
//! The split is that of QEMU's q35: a guest with 2.75 GiB or more has 2 GiB below the hole (an
//! address at which 1 GiB pages begin on both sides), a smaller one has everything below it.

use bus::Range;

use crate::BoardError;
use crate::address::mem;

#[cfg(test)]
mod tests;

/// The least RAM of a machine, bytes.
pub const MIN_RAM: u64 = 64 << 20;
/// RAM comes in multiples of this, bytes: what one second-level huge page maps.
pub const RAM_ALIGN: u64 = 2 << 20;

const GIB: u64 = 1 << 30;
/// Larger windows help nobody and cost table space in guests.
const PCI64_MAX: u64 = 512 * GIB;

/// What a machine's map is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryMapConfig {
    /// RAM present at the start, bytes; a multiple of [`RAM_ALIGN`].
    pub ram: u64,
    /// Address space kept for memory hot-plug, bytes; a multiple of [`RAM_ALIGN`].
    pub hotplug: u64,
    /// Physical address bits of the guest's processor (CPUID leaf 0x80000008).
    pub phys_bits: u8,
}

/// The machine's map of guest-physical addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMap {
    /// End of the RAM that begins at 0.
    pub low_ram_end: u64,
    /// RAM from 4 GiB, when there is any.
    pub high_ram: Option<Range>,
    /// Address space for memory hot-plug, when asked for; 1 GiB aligned.
    pub hotplug: Option<Range>,
    /// PCI Express configuration space.
    pub ecam: Range,
    /// Window for 32-bit BARs.
    pub pci32: Range,
    /// Window for 64-bit BARs, when the processor can address any.
    pub pci64: Option<Range>,
}

impl MemoryMap {
    /// Lays out a machine.
    ///
    /// # Errors
    /// The RAM is too small, not a multiple of [`RAM_ALIGN`], or beyond the processor's reach.
    pub fn new(config: &MemoryMapConfig) -> Result<Self, BoardError> {
        let MemoryMapConfig {
            ram,
            hotplug,
            phys_bits,
        } = *config;
        if ram < MIN_RAM {
            return Err(BoardError::RamTooSmall { size: ram });
        }
        for (what, size) in [("memory", ram), ("memory for hot-plug", hotplug)] {
            if size % RAM_ALIGN != 0 {
                return Err(BoardError::RamUnaligned {
                    what,
                    size,
                    align: RAM_ALIGN,
                });
            }
        }
        if !(32..=52).contains(&phys_bits) {
            return Err(BoardError::PhysBits { phys_bits });
        }
        let limit = 1_u64 << phys_bits;

        let low_ram_end = if ram >= mem::LOW_RAM_SPLIT {
            mem::LOW_RAM_MAX
        } else {
            ram
        };
        let high_size = ram - low_ram_end;
        // Saturating: what overflows is beyond any processor's reach and refused below.
        let ram_end = mem::FOUR_GIB.saturating_add(high_size);
        let hotplug_base = align_up(ram_end, GIB);
        let hotplug_end = hotplug_base.saturating_add(hotplug);
        let used_end = if hotplug != 0 { hotplug_end } else { ram_end };
        if used_end > limit && (high_size != 0 || hotplug != 0) {
            return Err(BoardError::RamBeyondAddressBits {
                end: used_end,
                phys_bits,
            });
        }

        Ok(Self {
            low_ram_end,
            high_ram: (high_size != 0).then(|| Range::new(mem::FOUR_GIB, high_size)),
            hotplug: (hotplug != 0).then(|| Range::new(hotplug_base, hotplug)),
            ecam: Range::new(mem::ECAM, mem::ECAM_SIZE),
            pci32: Range::new(mem::PCI32, mem::PCI32_END - mem::PCI32),
            pci64: pci64_window(align_up(used_end, GIB), limit),
        })
    }

    /// The pieces of RAM in ascending order as (address, size), what [`memory::allocate`] takes.
    #[must_use]
    pub fn ram_ranges(&self) -> Vec<(u64, u64)> {
        let high = self.high_ram.map(|high| (high.base, high.size));
        [(0, self.low_ram_end)].into_iter().chain(high).collect()
    }

    /// RAM in bytes.
    #[must_use]
    pub fn ram_size(&self) -> u64 {
        self.low_ram_end + self.high_ram.map_or(0, |high| high.size)
    }

    /// Splits RAM among NUMA nodes in order: the pieces of each node, which has `sizes[i]` bytes.
    /// Where the sizes say more than there is, the last nodes get less; what they leave over
    /// belongs to nobody.
    #[must_use]
    pub fn split(&self, sizes: &[u64]) -> Vec<Vec<Range>> {
        let mut free: Vec<Range> = self
            .ram_ranges()
            .into_iter()
            .map(|(base, size)| Range::new(base, size))
            .rev()
            .collect();
        let take = |&wanted: &u64| {
            let mut wanted = wanted;
            let mut pieces = Vec::new();
            while wanted != 0 {
                let Some(piece) = free.pop() else { break };
                let size = piece.size.min(wanted);
                pieces.push(Range::new(piece.base, size));
                wanted -= size;
                if size < piece.size {
                    free.push(Range::new(piece.base + size, piece.size - size));
                }
            }
            pieces
        };
        sizes.iter().map(take).collect()
    }

    /// The map that firmware would report (INT 15h AX=E820h, ACPI 6.5 section 15.1).
    ///
    /// `acpi_base` is where the ACPI tables begin; they go up to the end of low RAM. It is
    /// `low_ram_end` when there are none.
    #[must_use]
    pub fn e820(&self, acpi_base: u64) -> Vec<E820Entry> {
        let mut entries = Vec::with_capacity(8);
        let mut add = |kind, base: u64, end: u64| {
            if let Some(size) = end.checked_sub(base).filter(|size| *size != 0) {
                entries.push(E820Entry { base, size, kind });
            }
        };
        add(E820Kind::Ram, 0, mem::EBDA);
        add(E820Kind::Reserved, mem::EBDA, mem::VGA);
        add(E820Kind::Reserved, mem::RSDP_AREA, mem::HIGH);
        add(E820Kind::Ram, mem::HIGH, acpi_base);
        add(E820Kind::Acpi, acpi_base, self.low_ram_end);
        // Linux trusts the MCFG table only when the area is reserved here too.
        add(
            E820Kind::Reserved,
            self.ecam.base,
            self.ecam.base + self.ecam.size,
        );
        add(
            E820Kind::Reserved,
            mem::KVM_IDENTITY_MAP,
            mem::KVM_PAGES_END,
        );
        if let Some(high) = self.high_ram {
            add(E820Kind::Ram, high.base, high.base + high.size);
        }
        entries
    }
}

/// From `base` (1 GiB aligned) as far as `limit` and the largest useful size allow, without
/// touching AMD's HyperTransport area.
fn pci64_window(base: u64, limit: u64) -> Option<Range> {
    let base = if (mem::HYPER_TRANSPORT..1 << 40).contains(&base) {
        1 << 40
    } else {
        base
    };
    let limit = if base < mem::HYPER_TRANSPORT {
        limit.min(mem::HYPER_TRANSPORT)
    } else {
        limit
    };
    let size = limit.checked_sub(base)?.min(PCI64_MAX);
    (size != 0).then(|| Range::new(base, size))
}

fn align_up(value: u64, align: u64) -> u64 {
    value.checked_next_multiple_of(align).unwrap_or(u64::MAX)
}

/// What an address range is, by the numbers of INT 15h AX=E820h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Usable.
    Ram = 1,
    /// Not usable.
    Reserved = 2,
    /// ACPI tables.
    Acpi = 3,
}

/// One range of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: E820Kind,
}

impl E820Entry {
    /// First address behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }
}
