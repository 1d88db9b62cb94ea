use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use memory::{Bytes, GuestAddress, GuestAddressSpace, GuestRam};
use x86::cr::{cr0, cr4, efer, rflags};
use x86::{Cpuid, CpuidEntry, Feature, Segment};

use super::*;
use crate::platform::Platform;
use crate::ram::{CodePages, RamMap};
use crate::state::{CpuBox, CpuSetup, Seg, seg};

mod access;
mod flush;
mod segments;
mod walk;

/// A platform with one register that answers at once, at `OWN`; everything else it knows not.
#[derive(Default)]
pub(crate) struct Own {
    pub value: u64,
    pub reads: u32,
}

pub(crate) const OWN: u64 = 0xfee0_0000;

impl Platform for Own {
    fn device_read(&mut self, address: u64, _size: u8) -> Option<u64> {
        (address & !0xfff == OWN).then(|| {
            self.reads += 1;
            self.value
        })
    }

    fn device_write(&mut self, address: u64, _size: u8, value: u64) -> bool {
        let mine = address & !0xfff == OWN;
        if mine {
            self.value = value;
        }
        mine
    }

    fn port_write(&mut self, _port: u16, _size: u8, _value: u32) -> bool {
        false
    }

    fn read_msr(&mut self, _index: u32) -> Result<u64, Exception> {
        Err(Exception::gp(0))
    }

    fn write_msr(&mut self, _index: u32, _value: u64) -> Result<(), Exception> {
        Err(Exception::gp(0))
    }

    fn tsc(&mut self) -> u64 {
        0
    }

    fn task_priority(&mut self) -> u8 {
        0
    }

    fn set_task_priority(&mut self, _class: u8) {}

    fn read_pmc(&mut self, _counter: u32) -> Result<u64, Exception> {
        Err(Exception::gp(0))
    }

    fn hypercall(&mut self, _number: u64, _arguments: [u64; 4]) -> u64 {
        0
    }

    fn serialize(&mut self) {}
}

/// RAM and a processor.
pub(crate) struct Bench {
    pub ram: GuestRam,
    pub map: Arc<RamMap>,
    pub code: Arc<CodePages>,
    pub cpu: CpuBox,
    pub p: Own,
}

pub(crate) const PHYS_BITS: u32 = 40;

pub(crate) fn cpuid() -> Cpuid {
    let mut cpuid: Cpuid = [
        CpuidEntry::leaf(1, [0x306c4, 0, 0, 0]),
        CpuidEntry::leaf(0x8000_0008, [PHYS_BITS | 48 << 8, 0, 0, 0]),
        CpuidEntry::subleaf(0xd, 0, [7, 832, 832, 0]),
    ]
    .into_iter()
    .collect();
    for name in ["pdpe1gb", "pse36", "nx", "smep", "smap"] {
        cpuid.set_feature(Feature::named(name).unwrap(), true);
    }
    cpuid
}

impl Bench {
    pub fn new(size: usize) -> Bench {
        let ram = memory::small(size).unwrap();
        let snapshot = ram.memory();
        let map = RamMap::new(&memory::blocks(&snapshot), Arc::new((*snapshot).clone()));
        let code = CodePages::new();
        let cpu = Self::cpu(&map, &code);
        Bench {
            ram,
            map,
            code,
            cpu,
            p: Own::default(),
        }
    }

    pub fn cpu(map: &Arc<RamMap>, code: &Arc<CodePages>) -> CpuBox {
        CpuBox::new(CpuSetup {
            cpuid: cpuid(),
            attention: Arc::new(AtomicU32::new(0)),
            ram: map.clone(),
            code: code.clone(),
        })
        .unwrap()
    }

    /// 64-bit mode with these page tables, at this privilege level.
    pub fn long(&mut self, cr3: u64, cpl: u8) {
        let cpu = &mut self.cpu;
        cpu.cr0 = cr0::PE | cr0::PG | cr0::ET;
        cpu.cr3 = cr3;
        cpu.cr4 = cr4::PAE;
        cpu.efer = efer::LME | efer::LMA | efer::NXE;
        cpu.segs[seg::CS] = Seg::from(&Segment::code64(8));
        self.set_cpl(cpl);
        self.cpu.flush_tlb();
    }

    /// 32-bit protected mode without paging, flat segments.
    pub fn flat(&mut self) {
        let cpu = &mut self.cpu;
        cpu.cr0 = cr0::PE | cr0::ET;
        cpu.cr4 = 0;
        cpu.efer = 0;
        cpu.segs = [Seg::from(&Segment::data(16)); 6];
        cpu.segs[seg::CS] = Seg::from(&Segment::code32_flat(8));
        cpu.update_mode();
        cpu.flush_tlb();
    }

    pub fn set_cpl(&mut self, cpl: u8) {
        let mut stack = Segment::data(16);
        stack.dpl = cpl;
        self.cpu.segs[seg::SS] = Seg::from(&stack);
        self.cpu.update_mode();
    }

    pub fn peek(&self, physical: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(physical)).unwrap()
    }

    pub fn poke(&self, physical: u64, value: u64) {
        let ram = self.ram.memory();
        ram.write_obj(value, GuestAddress(physical)).unwrap();
    }
}

/// Page-table entries' bits.
pub(crate) mod pte {
    pub const P: u64 = 1;
    pub const W: u64 = 2;
    pub const U: u64 = 4;
    pub const A: u64 = 0x20;
    pub const D: u64 = 0x40;
    pub const PS: u64 = 0x80;
    pub const G: u64 = 0x100;
    pub const NX: u64 = 1 << 63;
    pub const ALL: u64 = P | W | U;
}

/// Four tables at these addresses, for one linear page each.
pub(crate) const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];

/// Where the entries for a linear address are in [`TABLES`].
pub(crate) fn entries(linear: u64) -> [u64; 4] {
    [39, 30, 21, 12].map(|shift| {
        let level = (39 - shift) / 9;
        TABLES[level] + (linear >> shift & 0x1ff) * 8
    })
}

impl Bench {
    /// Maps a page in [`TABLES`], with these bits in the upper and in the last entries.
    pub fn map_page(&self, linear: u64, physical: u64, upper: u64, last: u64) {
        let at = entries(linear);
        for level in 0..3 {
            self.poke(at[level], TABLES[level + 1] | upper);
        }
        self.poke(at[3], physical | last);
    }
}
