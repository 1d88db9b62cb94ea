//! Segment registers with their hidden part, and descriptors.

use serde::{Deserialize, Serialize};

/// A segment register: selector and the hidden part loaded from a descriptor (SDM vol. 3A 3.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// First linear address.
    pub base: u64,
    /// Last offset, in bytes whatever `g` says.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Descriptor type, 4 bits.
    pub type_: u8,
    /// Present.
    pub present: bool,
    /// Descriptor privilege level, 0 to 3.
    pub dpl: u8,
    /// Default operand size of 32 bits, or a 32-bit stack.
    pub db: bool,
    /// Code or data, not a system segment.
    pub s: bool,
    /// 64-bit code.
    pub l: bool,
    /// The descriptor's limit counts pages of 4 KiB.
    pub g: bool,
    /// For the operating system's use.
    pub avl: bool,
    /// Holds no segment (a null selector was loaded).
    pub unusable: bool,
}

impl Segment {
    /// Type of read/write, accessed data.
    pub const TYPE_DATA: u8 = 0x3;
    /// Type of execute/read, accessed code.
    pub const TYPE_CODE: u8 = 0xb;
    /// Type of a local descriptor table.
    pub const TYPE_LDT: u8 = 0x2;
    /// Type of a busy task state segment, 32-bit or 64-bit.
    pub const TYPE_TSS_BUSY: u8 = 0xb;

    /// Flat 64-bit code of privilege level 0.
    pub fn code64(selector: u16) -> Self {
        Segment {
            db: false,
            l: true,
            ..Self::code32_flat(selector)
        }
    }

    /// 32-bit code of privilege level 0 over the whole 4 GiB.
    pub fn code32_flat(selector: u16) -> Self {
        Segment {
            type_: Self::TYPE_CODE,
            ..Self::data(selector)
        }
    }

    /// Read/write data of privilege level 0 over the whole 4 GiB, for 32-bit and 64-bit code.
    pub fn data(selector: u16) -> Self {
        Segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            type_: Self::TYPE_DATA,
            present: true,
            dpl: 0,
            db: true,
            s: true,
            l: false,
            g: true,
            avl: false,
            unusable: false,
        }
    }

    /// A busy task state segment of `limit + 1` bytes at `base`. VM entry demands one even of
    /// guests that never switch tasks; a boot protocol gives limit 0x67 and base 0.
    pub fn tss(selector: u16, base: u64, limit: u32) -> Self {
        Segment {
            base,
            limit,
            selector,
            type_: Self::TYPE_TSS_BUSY,
            present: true,
            ..Self::default()
        }
    }

    /// Real-mode code: base is the selector times 16, limit 64 KiB.
    pub fn real_mode_code(selector: u16) -> Self {
        Segment {
            type_: Self::TYPE_CODE,
            ..Self::real_mode_data(selector)
        }
    }

    /// Real-mode data: base is the selector times 16, limit 64 KiB.
    pub fn real_mode_data(selector: u16) -> Self {
        Segment {
            base: u64::from(selector) << 4,
            limit: 0xffff,
            selector,
            type_: Self::TYPE_DATA,
            present: true,
            s: true,
            ..Self::default()
        }
    }

    /// A register that holds no segment.
    pub fn null() -> Self {
        Segment {
            unusable: true,
            ..Self::default()
        }
    }

    /// What loading `selector` with this 8-byte descriptor gives (SDM vol. 3A figure 3-8).
    pub fn from_descriptor(selector: u16, descriptor: u64) -> Self {
        let bit = |n: u32| descriptor >> n & 1 != 0;
        let g = bit(55);
        let raw_limit = (descriptor & 0xffff) as u32 | ((descriptor >> 32) & 0xf_0000) as u32;
        Segment {
            base: (descriptor >> 16) & 0xff_ffff | (descriptor >> 32) & 0xff00_0000,
            limit: if g {
                raw_limit << 12 | 0xfff
            } else {
                raw_limit
            },
            selector,
            type_: (descriptor >> 40 & 0xf) as u8,
            s: bit(44),
            dpl: (descriptor >> 45 & 3) as u8,
            present: bit(47),
            avl: bit(52),
            l: bit(53),
            db: bit(54),
            g,
            unusable: !bit(47),
        }
    }

    /// The 8-byte descriptor that loads this segment, for a table in guest memory. Bits of the
    /// base above 32 do not fit and are dropped; a 64-bit TSS needs the upper half written behind.
    pub fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.g { self.limit >> 12 } else { self.limit });
        let flag = |set: bool, n: u32| u64::from(set) << n;
        limit & 0xffff
            | (self.base & 0xff_ffff) << 16
            | u64::from(self.type_ & 0xf) << 40
            | flag(self.s, 44)
            | u64::from(self.dpl & 3) << 45
            | flag(self.present, 47)
            | (limit >> 16 & 0xf) << 48
            | flag(self.avl, 52)
            | flag(self.l, 53)
            | flag(self.db, 54)
            | flag(self.g, 55)
            | (self.base >> 24 & 0xff) << 56
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Its length in bytes, less one.
    pub limit: u16,
}
