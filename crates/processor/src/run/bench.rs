//! A small machine for tests: four MiB of RAM with page tables, descriptor tables, a task state
//! segment, stacks, and a handler for every vector that halts.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use iced_x86::code_asm::CodeAssembler;
use memory::{Bytes, GuestAddress, GuestAddressSpace, GuestRam};
use x86::cr::{cr0, cr4, efer, rflags};
use x86::{Cpuid, CpuidEntry, Feature, Vendor};

use crate::platform::Platform;
use crate::ram::{CodePages, RamMap};
use crate::segment::{FLAT_CODE32, FLAT_CODE64, FLAT_DATA};
use crate::state::{CpuBox, CpuSetup, Seg, reg, seg};
use crate::stop::{DeviceRequest, Exception, Stop};

/// What the machine around the processor remembers.
#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) tsc: u64,
    pub(crate) priority: u8,
    pub(crate) serialized: u32,
    pub(crate) calls: Vec<(u64, [u64; 4])>,
    /// Writes to port 0x80 and above, which are answered at once.
    pub(crate) doorbells: Vec<(u16, u32)>,
    pub(crate) msr: u64,
}

/// The one MSR that the machine has.
pub(crate) const PLATFORM_MSR: u32 = 0x1234;

impl Platform for Machine {
    fn device_read(&mut self, _: u64, _: u8) -> Option<u64> {
        None
    }
    fn device_write(&mut self, _: u64, _: u8, _: u64) -> bool {
        false
    }
    fn port_write(&mut self, port: u16, _: u8, value: u32) -> bool {
        let mine = (0x80..0x90).contains(&port);
        if mine {
            self.doorbells.push((port, value));
        }
        mine
    }
    fn read_msr(&mut self, index: u32) -> Result<u64, Exception> {
        (index == PLATFORM_MSR)
            .then_some(self.msr)
            .ok_or(Exception::gp(0))
    }
    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Exception> {
        self.read_msr(index)?;
        self.msr = value;
        Ok(())
    }
    fn tsc(&mut self) -> u64 {
        self.tsc
    }
    fn task_priority(&mut self) -> u8 {
        self.priority
    }
    fn set_task_priority(&mut self, class: u8) {
        self.priority = class;
    }
    fn read_pmc(&mut self, counter: u32) -> Result<u64, Exception> {
        (counter == 0)
            .then_some(0x1_2345_6789)
            .ok_or(Exception::gp(0))
    }
    fn hypercall(&mut self, number: u64, arguments: [u64; 4]) -> u64 {
        self.calls.push((number, arguments));
        77
    }
    fn serialize(&mut self) {
        self.serialized += 1;
    }
}

pub(crate) const RAM: usize = 4 << 20;
pub(crate) const PML4: u64 = 0x1000;
pub(crate) const GDT: u64 = 0x4000;
pub(crate) const IDT: u64 = 0x5000;
pub(crate) const TSS: u64 = 0x6000;
/// Page table of linear addresses from 2 MiB: the second half of RAM in pages.
pub(crate) const TABLE: u64 = 0x7000;
pub(crate) const LDT: u64 = 0x8000;
/// Where code starts.
pub(crate) const CODE: u64 = 0x1_0000;
/// The handler of vector n is at `HANDLERS + 16 * n`.
pub(crate) const HANDLERS: u64 = 0x1_2000;
/// Tops of stacks: ring 0 of the TSS, IST1, the one in use.
pub(crate) const STACK0: u64 = 0x2_1000;
pub(crate) const IST1: u64 = 0x2_3000;
pub(crate) const STACK: u64 = 0x2_5000;
/// Free memory.
pub(crate) const DATA: u64 = 0x3_0000;
/// First linear address that is mapped in 4 KiB pages.
pub(crate) const PAGES: u64 = 2 << 20;

/// Selectors of the bench's descriptor table.
pub(crate) mod sel {
    pub(crate) const CODE64: u16 = 0x08;
    pub(crate) const DATA: u16 = 0x10;
    pub(crate) const CODE32: u16 = 0x18;
    pub(crate) const USER_CODE32: u16 = 0x23;
    pub(crate) const USER_DATA: u16 = 0x2b;
    pub(crate) const USER_CODE64: u16 = 0x33;
    /// A task state segment of 64 bits, two slots; of 32 bits in protected mode.
    pub(crate) const TSS: u16 = 0x38;
    /// Not present.
    pub(crate) const ABSENT: u16 = 0x48;
    pub(crate) const CODE16: u16 = 0x50;
    pub(crate) const DATA16: u16 = 0x58;
    pub(crate) const CONFORMING: u16 = 0x60;
    pub(crate) const EXECUTE_ONLY: u16 = 0x68;
    /// Free slots for what a test needs.
    pub(crate) const FREE: u16 = 0x70;
    pub(crate) const LIMIT: u16 = 0x8f;
}

/// A descriptor of this base, limit (bytes or pages, as the attributes say) and attributes.
pub(crate) fn descriptor(base: u64, limit: u64, attributes: u16) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | u64::from(attributes) << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56
}

/// Features that the bench's processor has.
const FEATURES: &[&str] = &[
    "fpu",
    "de",
    "pse",
    "tsc",
    "msr",
    "pae",
    "mce",
    "cx8",
    "apic",
    "sep",
    "mtrr",
    "pge",
    "mca",
    "cmov",
    "pat",
    "clflush",
    "mmx",
    "fxsr",
    "sse",
    "sse2",
    "pni",
    "pcid",
    "xsave",
    "avx",
    "hypervisor",
    "fsgsbase",
    "tsc-adjust",
    "smep",
    "invpcid",
    "smap",
    "clflushopt",
    "clwb",
    "umip",
    "rdpid",
    "spec-ctrl",
    "xsaveopt",
    "xgetbv1",
    "syscall",
    "nx",
    "pdpe1gb",
    "rdtscp",
    "lm",
    "lahf-lm",
    "serialize",
    "xsavec",
    "xsaves",
    "clzero",
];

pub(crate) fn cpuid(vendor: Vendor) -> Cpuid {
    let [ebx, edx, ecx] = vendor.registers();
    let mut cpuid: Cpuid = [
        CpuidEntry::leaf(0, [0xd, ebx, ecx, edx]),
        CpuidEntry::leaf(1, [0x306c4, 0, 0, 0]),
        CpuidEntry::subleaf(0xd, 0, [7, 832, 832, 0]),
        CpuidEntry::subleaf(0xd, 1, [0, 0, 0, 0]),
        CpuidEntry::subleaf(0xd, 2, [256, 576, 0, 0]),
        CpuidEntry::leaf(0x8000_0008, [40 | 48 << 8, 0, 0, 0]),
    ]
    .into_iter()
    .collect();
    for name in FEATURES {
        cpuid.set_feature(Feature::named(name).expect(name), true);
    }
    cpuid
}

pub(crate) struct Bench {
    pub(crate) ram: GuestRam,
    pub(crate) cpu: CpuBox,
    pub(crate) p: Machine,
}

/// What an event pushed in long mode.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) error_code: Option<u64>,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

impl Bench {
    /// Real mode, all segments at zero, the stack below [`STACK`] cut to 16 bits.
    pub(crate) fn real() -> Bench {
        Self::of(Vendor::INTEL)
    }

    pub(crate) fn of(vendor: Vendor) -> Bench {
        let ram = memory::small(RAM).expect("memory");
        let cpu = Self::processor(&ram, vendor);
        let mut b = Bench {
            ram,
            cpu,
            p: Machine::default(),
        };
        for vector in 0..256 {
            b.put(HANDLERS + 16 * vector, &[0xf4]);
        }
        b.tables();
        b.cpu.sipi(0);
        b.cpu.gpr[reg::RSP] = 0xf000;
        b.cpu.rip = CODE & 0xffff;
        b.cpu.segs[seg::CS].base = CODE & !0xffff;
        b.cpu.segs[seg::CS].selector = (CODE >> 4 & 0xf000) as u16;
        b
    }

    fn processor(ram: &GuestRam, vendor: Vendor) -> CpuBox {
        let snapshot = ram.memory();
        let map = RamMap::new(&memory::blocks(&snapshot), Arc::new((*snapshot).clone()));
        CpuBox::new(CpuSetup {
            cpuid: cpuid(vendor),
            attention: Arc::new(AtomicU32::new(0)),
            ram: map,
            code: CodePages::new(),
        })
        .expect("a processor")
    }

    /// Puts a new processor with the old one's state into its place.
    pub(crate) fn replace_cpu(&mut self) {
        let state = self.cpu.state();
        self.cpu = Self::processor(&self.ram, Vendor::INTEL);
        self.cpu.set_state(&state);
    }

    fn tables(&mut self) {
        let pd = 0x3000;
        self.set(PML4, 0x2007);
        self.set(0x2000, pd | 7);
        self.set(pd, 0x87);
        self.set(pd + 8, TABLE | 7);
        for n in 0..512 {
            self.set(TABLE + 8 * n, (PAGES + (n << 12)) | 7);
        }
        let user = 3 << 5;
        let gdt = [
            0,
            descriptor(0, 0xf_ffff, FLAT_CODE64),
            descriptor(0, 0xf_ffff, FLAT_DATA),
            descriptor(0, 0xf_ffff, FLAT_CODE32),
            descriptor(0, 0xf_ffff, FLAT_CODE32 | user),
            descriptor(0, 0xf_ffff, FLAT_DATA | user),
            descriptor(0, 0xf_ffff, FLAT_CODE64 | user),
            descriptor(TSS, 0xfff, 0x89),
            0,
            descriptor(0, 0xf_ffff, FLAT_DATA & !0x80),
            descriptor(0, 0xffff, 0x9b),
            descriptor(0, 0xffff, 0x93),
            descriptor(0, 0xf_ffff, 0xc09f),
            descriptor(0, 0xf_ffff, 0xc099),
        ];
        for (n, entry) in (0..).zip(gdt) {
            self.set(GDT + 8 * n, entry);
        }
    }

    /// Ring 0, 64-bit code at [`CODE`], memory mapped one to one for everybody.
    pub(crate) fn long() -> Bench {
        let mut b = Self::real();
        b.enter_long();
        b
    }

    pub(crate) fn enter_long(&mut self) {
        for vector in 0..=255 {
            self.gate64(
                vector,
                sel::CODE64,
                0x8e00,
                HANDLERS + 16 * u64::from(vector),
            );
        }
        self.set(TSS + 4, STACK0);
        self.set(TSS + 36, IST1);
        self.set32(TSS + 0x64, 0x68 << 16);
        let cpu = &mut self.cpu;
        cpu.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::WP | cr0::NE;
        cpu.cr3 = PML4;
        cpu.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXSAVE;
        cpu.xcr0 = 7;
        cpu.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        cpu.segs = [Seg::flat(sel::DATA, FLAT_DATA, 0); 6];
        cpu.segs[seg::CS] = Seg::flat(sel::CODE64, FLAT_CODE64, 0);
        self.registers();
        self.cpu.flush_tlb();
        self.cpu.update_mode();
    }

    fn registers(&mut self) {
        let cpu = &mut self.cpu;
        cpu.gdtr = x86::DescriptorTable {
            base: GDT,
            limit: sel::LIMIT,
        };
        cpu.idtr = x86::DescriptorTable {
            base: IDT,
            limit: 0xfff,
        };
        cpu.tr = Seg {
            base: TSS,
            limit: 0xfff,
            selector: sel::TSS,
            attributes: 0x8b,
        };
        cpu.gpr[reg::RSP] = STACK;
        cpu.rip = CODE;
        cpu.rflags = rflags::RESERVED_ONE;
    }

    /// Ring 0, 32-bit protected mode without paging.
    pub(crate) fn protected() -> Bench {
        let mut b = Self::real();
        for vector in 0..=255 {
            b.gate32(vector, sel::CODE32, 0x8e, HANDLERS + 16 * u64::from(vector));
        }
        b.set32(TSS + 4, STACK0 as u32);
        b.set32(TSS + 8, sel::DATA.into());
        b.set32(TSS + 0x64, 0x68 << 16);
        let cpu = &mut b.cpu;
        cpu.cr0 = cr0::PE | cr0::ET | cr0::NE;
        cpu.segs = [Seg::flat(sel::DATA, FLAT_DATA, 0); 6];
        cpu.segs[seg::CS] = Seg::flat(sel::CODE32, FLAT_CODE32, 0);
        b.registers();
        b.cpu.update_mode();
        b
    }

    /// Goes to ring 3: flat segments, 64-bit code if `wide`.
    pub(crate) fn user(&mut self, wide: bool) {
        let cpu = &mut self.cpu;
        let (selector, code) = if wide {
            (sel::USER_CODE64, FLAT_CODE64)
        } else {
            (sel::USER_CODE32, FLAT_CODE32)
        };
        cpu.segs = [Seg::flat(sel::USER_DATA, FLAT_DATA, 3); 6];
        cpu.segs[seg::CS] = Seg::flat(selector, code, 3);
        cpu.update_mode();
    }

    pub(crate) fn gate64(&mut self, vector: u8, selector: u16, kind: u64, target: u64) {
        let at = IDT + 16 * u64::from(vector);
        let low = target & 0xffff
            | u64::from(selector) << 16
            | kind << 32
            | (target >> 16 & 0xffff) << 48;
        self.set(at, low);
        self.set(at + 8, target >> 32);
    }

    pub(crate) fn gate32(&mut self, vector: u8, selector: u16, kind: u64, target: u64) {
        let low = target & 0xffff
            | u64::from(selector) << 16
            | kind << 40
            | (target >> 16 & 0xffff) << 48;
        self.set(IDT + 8 * u64::from(vector), low);
    }

    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        self.ram
            .memory()
            .write_slice(bytes, GuestAddress(at))
            .expect("RAM");
    }

    pub(crate) fn set(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn set32(&mut self, at: u64, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn get(&self, at: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(at)).expect("RAM")
    }

    pub(crate) fn get32(&self, at: u64) -> u32 {
        self.ram.memory().read_obj(GuestAddress(at)).expect("RAM")
    }

    pub(crate) fn get16(&self, at: u64) -> u16 {
        self.ram.memory().read_obj(GuestAddress(at)).expect("RAM")
    }

    /// Puts code at RIP.
    pub(crate) fn code(&mut self, bits: u32, write: impl FnOnce(&mut CodeAssembler)) {
        let mut a = CodeAssembler::new(bits).expect("assembler");
        write(&mut a);
        let ip = self.cpu.rip;
        let base = if bits == 64 {
            0
        } else {
            self.cpu.segs[seg::CS].base
        };
        let bytes = a.assemble(ip).expect("code");
        self.put(base + ip, &bytes);
    }

    /// Puts bytes at RIP.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let base = if self.cpu.code64() {
            0
        } else {
            self.cpu.segs[seg::CS].base
        };
        self.put(base + self.cpu.rip, bytes);
    }

    pub(crate) fn step(&mut self) -> Result<(), Stop> {
        self.cpu.step(&mut self.p)
    }

    /// Steps that must succeed.
    pub(crate) fn steps(&mut self, n: usize) {
        for k in 0..n {
            let rip = self.cpu.rip;
            let result = self.step();
            assert_eq!(result, Ok(()), "step {k} at {rip:#x}");
        }
    }

    /// Steps into an exception, which it returns.
    pub(crate) fn fault(&mut self) -> Exception {
        match self.step() {
            Err(Stop::Exception(exception)) => exception,
            other => panic!("no exception but {other:?} at {:#x}", self.cpu.rip),
        }
    }

    /// Runs to a HLT.
    pub(crate) fn run(&mut self) {
        let stop = self.cpu.advance(&mut self.p, 10_000);
        assert_eq!(stop, Stop::Halt, "at {:#x}", self.cpu.rip);
    }

    /// Runs until a handler halts; tells which vector's.
    pub(crate) fn vector(&mut self) -> u64 {
        self.run();
        let at = self.cpu.rip - 1;
        assert_eq!(at & 0xf, 0, "not in a handler: {at:#x}");
        at.wrapping_sub(HANDLERS) / 16
    }

    /// The frame at RSP of long mode's handler.
    pub(crate) fn frame(&self, with_code: bool) -> Frame {
        let sp = self.cpu.gpr[reg::RSP];
        let at = if with_code { sp + 8 } else { sp };
        Frame {
            error_code: with_code.then(|| self.get(sp)),
            rip: self.get(at),
            cs: self.get(at + 8),
            rflags: self.get(at + 16),
            rsp: self.get(at + 24),
            ss: self.get(at + 32),
        }
    }

    /// Answers a device access that the instruction must stop with, and steps on.
    pub(crate) fn answer(&mut self, request: DeviceRequest, value: u64) -> Result<(), Stop> {
        assert_eq!(self.step(), Err(Stop::Device(request)));
        self.cpu.answer(request, value);
        self.step()
    }
}
