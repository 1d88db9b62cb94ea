//! A processor with a little memory, and a machine around it that has nothing else.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use iced_x86::{Decoder, DecoderOptions, Instruction};
use memory::GuestAddressSpace;
use x86::cr::{cr0, cr4, efer, rflags};

use crate::interpret::{self, Flow};
use crate::mmu::As;
use crate::state::{Cpu, CpuBox, CpuSetup, Seg, seg};
use crate::testing::Nothing;
use crate::{CodePages, RamMap, Stop};

/// RAM of every guest in bytes.
const RAM: usize = 4 << 20;
/// Guest-physical address of the page tables, from here to the end.
pub(super) const TABLES: u64 = 0x30_0000;

/// A processor and its memory.
pub(super) struct Guest {
    pub(super) cpu: CpuBox,
    pub(super) bits: u32,
    /// Where the next page table goes.
    free: u64,
}

impl Guest {
    fn new(bits: u32) -> Guest {
        let ram = memory::small(RAM).expect("a MiB").memory().into_inner();
        let map = RamMap::new(&memory::blocks(&ram), ram);
        let mut cpuid = x86::Cpuid::new();
        for name in ["bmi1", "abm", "cx8", "cmov", "fpu", "fxsr", "sse", "sse2"] {
            cpuid.set_feature(x86::Feature::of(name), true);
        }
        let cpu = CpuBox::new(CpuSetup {
            cpuid,
            attention: Arc::new(AtomicU32::new(0)),
            ram: map,
            code: CodePages::new(),
        });
        let mut cpu = cpu.expect("memory for a processor");
        cpu.rflags = rflags::RESERVED_ONE | rflags::IF;
        Guest {
            cpu,
            bits,
            free: TABLES + 0x1000,
        }
    }

    /// Real mode, all segments at zero.
    pub(super) fn real() -> Guest {
        let mut guest = Guest::new(16);
        for s in &mut guest.cpu.segs {
            *s = Seg {
                base: 0,
                limit: 0xffff,
                selector: 0,
                attributes: Seg::P | Seg::S | 3,
            };
        }
        guest.cpu.update_mode();
        guest
    }

    /// Protected mode with flat segments of 32 bits, ring 0, no paging.
    pub(super) fn flat() -> Guest {
        let mut guest = Guest::new(32);
        guest.cpu.cr0 = cr0::PE | cr0::NE;
        for s in &mut guest.cpu.segs {
            *s = Seg {
                base: 0,
                limit: u32::MAX,
                selector: 0x10,
                attributes: Seg::P | Seg::S | Seg::DB | Seg::G | 3,
            };
        }
        guest.cpu.segs[seg::CS].attributes |= 8;
        guest.cpu.update_mode();
        guest
    }

    /// 64-bit mode, ring 0. Linear pages are where these pairs of linear and guest-physical
    /// address say.
    pub(super) fn long(pages: &[(u64, u64)]) -> Guest {
        let mut guest = Guest::flat();
        for &(linear, physical) in pages {
            guest.map(linear, physical, 7);
        }
        let cpu = &mut guest.cpu;
        cpu.cr3 = TABLES;
        cpu.cr4 = cr4::PAE;
        cpu.efer = efer::LME | efer::LMA | efer::NXE;
        cpu.cr0 |= cr0::PG | cr0::WP;
        let cs = &mut cpu.segs[seg::CS].attributes;
        *cs = *cs & !Seg::DB | Seg::L;
        cpu.update_mode();
        cpu.flush_tlb();
        guest.bits = 64;
        guest
    }

    /// As [`Guest::long`], but 32-bit code in compatibility mode.
    pub(super) fn compatible(pages: &[(u64, u64)]) -> Guest {
        let mut guest = Guest::long(pages);
        let cs = &mut guest.cpu.segs[seg::CS].attributes;
        *cs = *cs & !Seg::L | Seg::DB;
        guest.cpu.update_mode();
        guest.bits = 32;
        guest
    }

    /// Maps a page, with these rights. Where there is paging, the tables themselves must be mapped
    /// where they lie.
    pub(super) fn map(&mut self, linear: u64, physical: u64, rights: u64) {
        let mut table = TABLES;
        for level in [39, 30, 21] {
            let entry = table + (linear >> level & 511) * 8;
            let mut value = self.word(entry);
            if value == 0 {
                value = self.free | 7;
                self.set_word(entry, value);
                self.free += 0x1000;
                assert!(self.free as usize <= RAM, "too many page tables");
            }
            table = value & !0xfff;
        }
        self.set_word(table + (linear >> 12 & 511) * 8, physical | rights);
    }

    fn word(&mut self, linear: u64) -> u64 {
        let value = self.cpu.read(&mut Nothing, linear, As::System);
        value.expect("memory of the guest")
    }

    fn set_word(&mut self, linear: u64, value: u64) {
        let done = self.cpu.write(&mut Nothing, linear, value, As::System);
        done.expect("memory of the guest");
    }

    /// Reads memory by its linear address.
    pub(super) fn get<const N: usize>(&mut self, linear: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let done = self
            .cpu
            .read_bytes(&mut Nothing, linear, &mut bytes, As::System);
        done.expect("memory of the guest");
        bytes
    }

    /// Writes memory by its linear address.
    pub(super) fn put(&mut self, linear: u64, bytes: &[u8]) {
        let done = self
            .cpu
            .write_bytes(&mut Nothing, linear, bytes, As::System);
        done.expect("memory of the guest");
    }

    /// Executes an instruction to its end, all iterations of it.
    pub(super) fn execute(&mut self, i: &Instruction) -> Result<(), Stop> {
        let at = self.cpu.rip;
        loop {
            match interpret::execute(&mut self.cpu, &mut Nothing, i)? {
                Flow::Next => {
                    self.cpu.rip = at + i.len() as u64;
                    return Ok(());
                }
                Flow::Jumped if self.cpu.rip == at && i.is_string_instruction() => {}
                Flow::Jumped => return Ok(()),
            }
        }
    }

    /// Decodes and executes the instruction of these bytes.
    pub(super) fn run(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let i = decode(self.bits, self.cpu.rip, bytes);
        assert_eq!(i.len(), bytes.len(), "not one instruction: {i}");
        self.execute(&i)
    }
}

pub(super) fn decode(bits: u32, rip: u64, bytes: &[u8]) -> Instruction {
    Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode()
}

/// All that an integer instruction can change but memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) gpr: [u64; 16],
    pub(super) rip: u64,
    pub(super) rflags: u64,
}

impl Registers {
    pub(super) fn of(cpu: &Cpu) -> Self {
        Registers {
            gpr: cpu.gpr,
            rip: cpu.rip,
            rflags: cpu.rflags,
        }
    }
}
