//! Arithmetic of the format: sizes that follow from the header, and table entries.

use super::Qcow2Error;
use super::header::{Header, incompatible};

/// Bits of L1 and L2 entries and of the refcount table.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Bytes in which tables are cached, at most.
const SLICE: u64 = 4096;

/// Sizes that do not change while an image is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub version: u32,
    pub cluster_bits: u32,
    /// Refcounts are `1 << refcount_order` bits wide.
    pub refcount_order: u32,
    /// L2 entries have two words, the second one for subclusters.
    pub extended: bool,
    /// Data is in another file than metadata.
    pub data_file: bool,
}

impl Layout {
    pub(crate) fn of(header: &Header) -> Self {
        Self {
            version: header.version,
            cluster_bits: header.cluster_bits,
            refcount_order: header.refcount_order,
            extended: header.incompatible & incompatible::EXTENDED_L2 != 0,
            data_file: header.incompatible & incompatible::DATA_FILE != 0,
        }
    }

    /// Bytes of a cluster.
    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The part of an offset inside its cluster.
    pub(crate) fn within(&self, offset: u64) -> u64 {
        offset & (self.cluster() - 1)
    }

    /// Subclusters of a cluster.
    pub(crate) fn subclusters(&self) -> u32 {
        if self.extended { 32 } else { 1 }
    }

    /// Bytes of a subcluster: the unit of allocation and zeroes.
    pub(crate) fn subcluster(&self) -> u64 {
        self.cluster() / u64::from(self.subclusters())
    }

    /// Words of an L2 entry.
    pub(crate) fn entry_words(&self) -> u64 {
        if self.extended { 2 } else { 1 }
    }

    /// Entries of an L2 table.
    pub(crate) fn l2_entries(&self) -> u64 {
        self.cluster() / 8 / self.entry_words()
    }

    /// Bytes of a slice.
    pub(crate) fn slice(&self) -> u64 {
        self.cluster().min(SLICE)
    }

    /// Slices of an L2 table or refcount block.
    pub(crate) fn slices(&self) -> u64 {
        self.cluster() / self.slice()
    }

    /// Entries of an L2 slice.
    pub(crate) fn slice_entries(&self) -> u64 {
        self.slice() / 8 / self.entry_words()
    }

    /// Refcounts of a slice.
    pub(crate) fn slice_refcounts(&self) -> u64 {
        (self.slice() * 8) >> self.refcount_order
    }

    /// Refcounts of a block.
    pub(crate) fn block_refcounts(&self) -> u64 {
        (self.cluster() * 8) >> self.refcount_order
    }

    /// The largest refcount.
    pub(crate) fn max_refcount(&self) -> u64 {
        u64::MAX >> (64 - (1u32 << self.refcount_order))
    }

    /// All subclusters from `from` to before `to`, as bits.
    pub(crate) fn mask(&self, from: u64, to: u64) -> u32 {
        let bits = |n: u64| {
            if n >= 32 { u32::MAX } else { (1u32 << n) - 1 }
        };
        bits(to) & !bits(from)
    }

    /// Every subcluster of a cluster.
    pub(crate) fn all(&self) -> u32 {
        self.mask(0, u64::from(self.subclusters()))
    }
}

/// An L1 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct L1Entry {
    /// Offset of the L2 table; 0: there is none.
    pub offset: u64,
    /// Nobody else refers to the table.
    pub copied: bool,
}

impl L1Entry {
    pub(crate) fn decode(word: u64, layout: &Layout) -> Result<Self, Qcow2Error> {
        let offset = word & OFFSET;
        if layout.within(offset) != 0 {
            return Err(Qcow2Error::Corrupt("an L1 entry is not aligned"));
        }
        Ok(Self {
            offset,
            copied: word & COPIED != 0,
        })
    }

    pub(crate) fn encode(self) -> u64 {
        self.offset | if self.copied { COPIED } else { 0 }
    }
}

/// An entry of the refcount table: the offset of a block, 0 where there is none.
pub(crate) fn refcount_block(word: u64, layout: &Layout) -> Result<u64, Qcow2Error> {
    // Bits 0 to 8 are reserved.
    let offset = word & !0x1ff;
    if layout.within(offset) != 0 || offset >> 56 != 0 {
        return Err(Qcow2Error::Corrupt("a refcount table entry is not aligned"));
    }
    Ok(offset)
}

/// An L2 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A cluster like others.
    Standard {
        /// Where its data is or would be.
        host: Option<u64>,
        /// Nobody else refers to the host's cluster.
        copied: bool,
        /// Subclusters whose data is at `host`.
        allocated: u32,
        /// Subclusters that read as zeros.
        zero: u32,
    },
    /// A compressed cluster.
    Compressed {
        /// Where the stream begins, of any alignment.
        offset: u64,
        /// Bytes to the end of the last sector that it touches.
        bytes: u64,
    },
}

impl Entry {
    /// Nothing is stored.
    pub(crate) const NONE: Self = Self::Standard {
        host: None,
        copied: false,
        allocated: 0,
        zero: 0,
    };

    pub(crate) fn decode(word: u64, bitmap: u64, layout: &Layout) -> Result<Self, Qcow2Error> {
        if word & COMPRESSED != 0 {
            return Self::decode_compressed(word, bitmap, layout);
        }
        let copied = word & COPIED != 0;
        let offset = word & OFFSET;
        if layout.within(offset) != 0 {
            return Err(Qcow2Error::Corrupt("an L2 entry is not aligned"));
        }
        // In a data file offset 0 is as good as any, and the flag tells.
        let host = (offset != 0 || layout.data_file && copied).then_some(offset);
        let (allocated, zero) = match layout.extended {
            true => (bitmap as u32, (bitmap >> 32) as u32),
            false if word & ZERO != 0 => (0, 1),
            false => (u32::from(host.is_some()), 0),
        };
        if layout.extended && word & ZERO != 0 {
            return Err(Qcow2Error::Corrupt("an extended L2 entry has the zero bit"));
        }
        if allocated & zero != 0 {
            return Err(Qcow2Error::Corrupt(
                "a subcluster is both allocated and zero",
            ));
        }
        if host.is_none() && allocated != 0 {
            return Err(Qcow2Error::Corrupt("a subcluster is allocated nowhere"));
        }
        if zero != 0 && layout.version < 3 {
            return Err(Qcow2Error::Corrupt("a version 2 image has a zero cluster"));
        }
        Ok(Self::Standard {
            host,
            copied,
            allocated,
            zero,
        })
    }

    fn decode_compressed(word: u64, bitmap: u64, layout: &Layout) -> Result<Self, Qcow2Error> {
        if layout.data_file {
            return Err(Qcow2Error::Corrupt(
                "there is a compressed cluster and an external data file",
            ));
        }
        if layout.extended && bitmap != 0 {
            return Err(Qcow2Error::Corrupt("a compressed cluster has subclusters"));
        }
        let split = 62 - (layout.cluster_bits - 8);
        let offset = word & ((1 << split) - 1) & ((1 << 56) - 1);
        let sectors = (word & !(COMPRESSED | COPIED)) >> split;
        // At most 2^13 sectors: nothing overflows.
        let bytes = (sectors + 1) * 512 - offset % 512;
        Ok(Self::Compressed { offset, bytes })
    }

    /// The two words of the entry; the second one is not stored without subclusters.
    pub(crate) fn encode(self, layout: &Layout) -> (u64, u64) {
        match self {
            Self::Standard {
                host,
                copied,
                allocated,
                zero,
            } => {
                let flag = if copied { COPIED } else { 0 };
                let word = host.unwrap_or(0) | flag;
                match layout.extended {
                    true => (word, u64::from(zero) << 32 | u64::from(allocated)),
                    false => (word | if zero != 0 { ZERO } else { 0 }, 0),
                }
            }
            Self::Compressed { offset, bytes } => {
                let split = 62 - (layout.cluster_bits - 8);
                let sectors = (offset % 512 + bytes).div_ceil(512).saturating_sub(1);
                (COMPRESSED | sectors << split | offset, 0)
            }
        }
    }
}

/// Whether `offset` can be the start of a compressed stream in an image with this layout.
pub(crate) fn compressed_offset_fits(offset: u64, layout: &Layout) -> bool {
    offset >> (62 - (layout.cluster_bits - 8)).min(56) == 0
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
