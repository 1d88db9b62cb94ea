//! The software processor's interpreter, in long mode at CPL 3, by its own interface.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use memory::{Bytes, GuestAddress, Ram};
use processor::state::{CpuSetup, Seg, seg};
use processor::testing::Nothing;
use processor::{CodePages, Cpu, CpuBox, Exception, RamMap, Stop};
use x86::cr::{cr0, cr4, efer, xcr0};

use crate::{
    BEHIND, Backend, CODE, CODE_LEN, Case, DATA, DATA_LEN, Fault, Outcome, READ_ONLY,
    READ_ONLY_LEN, Registers, SEGMENTS,
};

/// Guest-physical addresses.
mod physical {
    pub const TABLES: u64 = 0x1000;
    pub const CODE: u64 = 0x20000;
    pub const DATA: u64 = 0x40000;
    pub const READ_ONLY: u64 = 0x50000;
    pub const LEN: usize = 0x80000;
}

/// More iterations of string instructions than any case has.
const MAX_STEPS: u32 = 1_000_000;

/// A [`Cpu`] with memory like the host's.
pub struct Interpreter {
    cpu: CpuBox,
    ram: Arc<Ram>,
}

impl Interpreter {
    /// Shows the features that this processor supports on this host.
    ///
    /// # Panics
    /// There is no memory.
    #[must_use]
    pub fn new() -> Self {
        let ram = Ram::from_ranges(&[(GuestAddress(0), physical::LEN)]);
        let ram = Arc::new(ram.unwrap_or_else(|e| panic!("guest memory: {e}")));
        let cpu = CpuBox::new(CpuSetup {
            cpuid: processor::classify::supported_features().cpuid,
            attention: Arc::new(AtomicU32::new(0)),
            ram: RamMap::new(&memory::blocks(&ram), Arc::clone(&ram)),
            code: CodePages::new(),
        });
        let mut cpu = cpu.unwrap_or_else(|e| panic!("{e}"));
        page_tables(&ram);
        cpu.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
        cpu.cr3 = physical::TABLES;
        cpu.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE;
        cpu.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        cpu.xcr0 = cpu.cpuid.xcr0_mask() & (xcr0::X87 | xcr0::SSE | xcr0::AVX);
        for s in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            cpu.segs[s] = user(0x2b, Seg::DB | 3);
        }
        cpu.segs[seg::CS] = user(0x33, Seg::L | 0xb);
        // A task state segment without a permission bitmap: no port is open.
        cpu.tr = Seg {
            limit: 0x66,
            attributes: Seg::P | 0xb,
            ..Seg::default()
        };
        cpu.update_mode();
        cpu.flush_tlb();
        Interpreter { cpu, ram }
    }

    /// The processor, for backends that run it in another way.
    pub fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    /// Puts a case into memory and registers.
    pub fn load(&mut self, case: &Case) {
        self.put(physical::CODE, &case.code);
        self.put(physical::CODE + case.code.len() as u64, &[0xf4; BEHIND]);
        self.put(physical::DATA, &*case.memory);
        let r = &case.registers;
        self.cpu.gpr = r.gpr;
        self.cpu.rip = r.rip;
        self.cpu.rflags = r.rflags & Registers::FLAGS | 2 | 0x200;
        let mxcsr_mask = 0xffff_u32.to_le_bytes();
        self.cpu.fpu.0.copy_from_slice(&*r.fpu);
        self.cpu.fpu.0[28..32].copy_from_slice(&mxcsr_mask);
        self.cpu.fpu.0[512..576].fill(0);
        self.cpu.fpu.0[512] = self.cpu.xcr0 as u8;
        let kind = if case.code32 { Seg::DB } else { Seg::L };
        self.cpu.segs[seg::CS] = user(if case.code32 { 0x23 } else { 0x33 }, kind | 0xb);
        if case.code32 {
            for (n, value) in self.cpu.gpr.iter_mut().enumerate() {
                *value = if n < 8 { *value & 0xffff_ffff } else { 0 };
            }
        }
        self.cpu.segs[seg::FS].base = SEGMENTS[0];
        self.cpu.segs[seg::GS].base = SEGMENTS[1];
        self.cpu.cr2 = 0;
        self.cpu.update_mode();
    }

    /// What has come out.
    pub fn outcome(&self, fault: Option<Exception>) -> Outcome {
        let mut registers = Registers {
            gpr: self.cpu.gpr,
            rip: self.cpu.rip,
            rflags: self.cpu.rflags & Registers::FLAGS,
            fpu: Box::new(self.cpu.fpu.0),
        };
        registers.normalize();
        let mut memory = Box::new([0; DATA_LEN]);
        let data = GuestAddress(physical::DATA);
        if self.ram.read_slice(&mut *memory, data).is_err() {
            memory.fill(0);
        }
        Outcome {
            registers,
            memory,
            fault: fault.map(|e| Fault {
                vector: e.vector,
                error: e.error_code.unwrap_or(0),
                address: if e.vector == Exception::PF {
                    e.payload
                } else {
                    0
                },
            }),
        }
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let stored = self.ram.write_slice(bytes, GuestAddress(address));
        assert!(stored.is_ok(), "a case is longer than its memory");
    }
}

impl Default for Interpreter {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Interpreter {
    fn name(&self) -> &'static str {
        "interpreter"
    }

    fn run(&mut self, case: &Case) -> Outcome {
        self.load(case);
        let end = CODE + case.code.len() as u64;
        let mut fault = None;
        for _ in 0..MAX_STEPS {
            if self.cpu.rip == end {
                break;
            }
            match self.cpu.step(&mut Nothing) {
                Ok(()) => {}
                Err(Stop::Exception(exception)) => {
                    fault = Some(exception);
                    break;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        let mut outcome = self.outcome(fault);
        if case.code32 {
            outcome.registers.narrow();
        }
        outcome
    }
}

/// A flat segment of ring 3.
fn user(selector: u16, kind: u16) -> Seg {
    Seg {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes: Seg::P | Seg::S | 3 << 5 | Seg::G | kind,
    }
}

/// Four levels: code and read-only data not writable, data not executable.
fn page_tables(ram: &Ram) {
    const PRESENT: u64 = 1;
    const WRITABLE: u64 = 2;
    const USER: u64 = 4;
    const NO_EXECUTE: u64 = 1 << 63;
    let put = |address: u64, value: u64| {
        let stored = ram.write_obj(value, GuestAddress(address));
        assert!(stored.is_ok(), "page tables are in RAM");
    };
    let table = |level: u64| physical::TABLES + level * 0x1000;
    let down = PRESENT | WRITABLE | USER;
    // All addresses are in the first GiB: one PML4E, one PDPTE, a page table for each 2 MiB.
    put(table(0), table(1) | down);
    put(table(1), table(2) | down);
    for (n, (linear, len, target, bits)) in [
        (CODE, CODE_LEN, physical::CODE, PRESENT | USER),
        (DATA, DATA_LEN, physical::DATA, down | NO_EXECUTE),
        (
            READ_ONLY,
            READ_ONLY_LEN,
            physical::READ_ONLY,
            PRESENT | USER | NO_EXECUTE,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        // Regions that share 2 MiB share the table of the first.
        let directory = linear >> 21 & 0x1ff;
        let page_table = if linear == READ_ONLY && READ_ONLY >> 21 == DATA >> 21 {
            table(4)
        } else {
            table(3 + n as u64)
        };
        put(table(2) + 8 * directory, page_table | down);
        for page in 0..len.div_ceil(0x1000) as u64 {
            let index = (linear >> 12 & 0x1ff) + page;
            put(page_table + 8 * index, (target + page * 0x1000) | bits);
        }
    }
}
