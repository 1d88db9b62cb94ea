//! A small machine around a case: descriptor tables, a handler for each vector, page tables; and
//! the software processor in it, by its run loop or by the translator.
//!
//! ```text
//!   KERNEL  [ GDT | IDT | handlers: out 0f4h, al | TSS | stack ]      supervisor pages
//!   CODE    [ the case's code | int 20h ]    DATA ...                 user pages
//! ```
//!
//! Every exception, and the end of the case, arrives at a handler, whose OUT ends the run. What
//! has happened stands on the stack.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use memory::{Bytes, GuestAddress, Ram};
use processor::state::CpuSetup;
use processor::testing::Nothing;
use processor::{CodePages, CpuBox, DeviceRequest, RamMap, Stop};
use translator::{Engine, Options};
use x86::cr::{cr0, cr4, efer, xcr0};
use x86::{CpuState, DescriptorTable, Segment};

use crate::{
    BEHIND, Backend, CODE, CODE_LEN, Case, DATA, DATA_LEN, Fault, Outcome, READ_ONLY,
    READ_ONLY_LEN, Registers, SEGMENTS,
};

/// Linear address of the supervisor's pages.
const KERNEL: u64 = 0x1200_0000;
const KERNEL_LEN: usize = 0x8000;
const GDT: u64 = KERNEL;
const IDT: u64 = KERNEL + 0x1000;
const HANDLERS: u64 = KERNEL + 0x2000;
const TSS: u64 = KERNEL + 0x3000;
const STACK_TOP: u64 = KERNEL + 0x8000;

/// Bytes from one handler to the next.
const HANDLER_LEN: u64 = 16;
/// The vector behind a case.
const END: u8 = 0x20;
/// Port of the handlers' OUT.
pub const PORT: u16 = 0xf4;

/// Selectors; those of user mode are Linux's.
mod selector {
    pub const KERNEL_CODE: u16 = 0x08;
    pub const USER_DATA: u16 = 0x2b;
    pub const USER_CODE: u16 = 0x33;
    pub const USER_CODE32: u16 = 0x23;
    pub const TASK: u16 = 0x40;
}

/// Guest-physical addresses.
mod physical {
    pub const TABLES: u64 = 0x1000;
    pub const CODE: u64 = 0x20000;
    pub const DATA: u64 = 0x40000;
    pub const READ_ONLY: u64 = 0x50000;
    pub const KERNEL: u64 = 0x60000;
    pub const LEN: usize = 0x80000;
}

/// The machine's memory.
pub struct Machine {
    /// RAM from address zero.
    pub ram: Arc<Ram>,
}

impl Machine {
    /// With everything but a case.
    ///
    /// # Panics
    /// There is no memory.
    #[must_use]
    pub fn new() -> Self {
        let ram = Ram::from_ranges(&[(GuestAddress(0), physical::LEN)]);
        let machine = Machine {
            ram: Arc::new(ram.unwrap_or_else(|e| panic!("guest memory: {e}"))),
        };
        machine.page_tables();
        machine.descriptors();
        machine
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let stored = self.ram.write_slice(bytes, GuestAddress(address));
        assert!(stored.is_ok(), "outside of RAM");
    }

    fn put64(&self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }

    fn get64(&self, address: u64) -> u64 {
        self.ram.read_obj(GuestAddress(address)).unwrap_or(0)
    }

    /// Where a linear address of the kernel's pages is.
    fn kernel(linear: u64) -> u64 {
        linear - KERNEL + physical::KERNEL
    }

    fn page_tables(&self) {
        const PRESENT: u64 = 1;
        const WRITABLE: u64 = 2;
        const USER: u64 = 4;
        const NO_EXECUTE: u64 = 1 << 63;
        let table = |n: u64| physical::TABLES + n * 0x1000;
        let down = PRESENT | WRITABLE | USER;
        self.put64(table(0), table(1) | down);
        self.put64(table(1), table(2) | down);
        let regions = [
            (3, CODE, CODE_LEN, physical::CODE, PRESENT | USER),
            (4, DATA, DATA_LEN, physical::DATA, down | NO_EXECUTE),
            (
                // It shares two megabytes with the data.
                4,
                READ_ONLY,
                READ_ONLY_LEN,
                physical::READ_ONLY,
                PRESENT | USER | NO_EXECUTE,
            ),
            (5, KERNEL, KERNEL_LEN, physical::KERNEL, PRESENT | WRITABLE),
        ];
        for (number, linear, len, target, bits) in regions {
            self.put64(table(2) + 8 * (linear >> 21 & 0x1ff), table(number) | down);
            for page in 0..len.div_ceil(0x1000) as u64 {
                let index = (linear >> 12 & 0x1ff) + page;
                self.put64(table(number) + 8 * index, (target + page * 0x1000) | bits);
            }
        }
    }

    fn descriptors(&self) {
        let at = |linear| Self::kernel(linear);
        for (selector, descriptor) in [
            (selector::KERNEL_CODE, 0x00af_9b00_0000_ffff_u64),
            (0x10, 0x00cf_9300_0000_ffff),
            (selector::USER_DATA & !3, 0x00cf_f300_0000_ffff),
            (selector::USER_CODE & !3, 0x00af_fb00_0000_ffff),
            (selector::USER_CODE32 & !3, 0x00cf_fb00_0000_ffff),
        ] {
            self.put64(at(GDT) + u64::from(selector), descriptor);
        }
        // A busy TSS of 104 bytes.
        let base = TSS & 0xff_ffff;
        let low = 0x67 | base << 16 | 0x8b << 40 | (TSS >> 24 & 0xff) << 56;
        self.put64(at(GDT) + u64::from(selector::TASK), low);
        self.put64(at(GDT) + u64::from(selector::TASK) + 8, TSS >> 32);
        self.put64(at(TSS) + 4, STACK_TOP);
        self.put(at(TSS) + 102, &0x68_u16.to_le_bytes());
        for vector in 0..=u64::from(END) {
            let handler = HANDLERS + vector * HANDLER_LEN;
            // User mode may use INT3, INTO and the end.
            let dpl = if matches!(vector, 3 | 4 | 0x20) { 3 } else { 0 };
            let kind = 0x8e | dpl << 5;
            let low = handler & 0xffff
                | u64::from(selector::KERNEL_CODE) << 16
                | kind << 40
                | (handler >> 16 & 0xffff) << 48;
            self.put64(at(IDT) + vector * 16, low);
            self.put64(at(IDT) + vector * 16 + 8, handler >> 32);
            // out 0f4h, al; jmp to it
            self.put(at(handler), &[0xe6, PORT as u8, 0xeb, 0xfc]);
        }
    }

    /// Puts a case into memory.
    pub fn load(&self, case: &Case) {
        assert!(case.code.len() + BEHIND <= CODE_LEN, "the code is too long");
        self.put(physical::CODE, &case.code);
        let end = physical::CODE + case.code.len() as u64;
        self.put(end, &[0xf4; BEHIND]);
        self.put(end, &[0xcd, END]);
        let len = case.code.len() + BEHIND;
        memory::written(&self.ram, physical::CODE, len as u64);
        self.put(physical::DATA, &*case.memory);
    }

    /// The processor at the start of a case.
    #[must_use]
    pub fn state(&self, case: &Case, components: u64) -> CpuState {
        let mut state = CpuState::reset();
        let mut registers = case.registers.clone();
        if case.code32 {
            registers.narrow();
        }
        let r = &registers;
        let g = &r.gpr;
        let regs = &mut state.regs;
        for (to, from) in [
            &mut regs.rax,
            &mut regs.rcx,
            &mut regs.rdx,
            &mut regs.rbx,
            &mut regs.rsp,
            &mut regs.rbp,
            &mut regs.rsi,
            &mut regs.rdi,
            &mut regs.r8,
            &mut regs.r9,
            &mut regs.r10,
            &mut regs.r11,
            &mut regs.r12,
            &mut regs.r13,
            &mut regs.r14,
            &mut regs.r15,
        ]
        .into_iter()
        .zip(g)
        {
            *to = *from;
        }
        regs.rip = r.rip;
        regs.rflags = r.rflags & Registers::FLAGS | 2 | 0x200;
        let data = Segment {
            base: 0,
            limit: u32::MAX,
            selector: selector::USER_DATA,
            type_: 3,
            present: true,
            dpl: 3,
            db: true,
            s: true,
            l: false,
            g: true,
            avl: false,
            unusable: false,
        };
        let s = &mut state.sregs;
        for segment in [&mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss] {
            *segment = data;
        }
        s.fs.base = SEGMENTS[0];
        s.gs.base = SEGMENTS[1];
        s.cs = Segment {
            selector: if case.code32 {
                selector::USER_CODE32
            } else {
                selector::USER_CODE
            },
            type_: 0xb,
            db: case.code32,
            l: !case.code32,
            ..data
        };
        s.tr = Segment {
            base: TSS,
            limit: 0x67,
            selector: selector::TASK,
            type_: 0xb,
            dpl: 0,
            db: false,
            s: false,
            g: false,
            ..data
        };
        s.gdt = DescriptorTable {
            base: GDT,
            limit: 0x4f,
        };
        s.idt = DescriptorTable {
            base: IDT,
            limit: 16 * (u16::from(END) + 1) - 1,
        };
        s.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
        s.cr3 = physical::TABLES;
        s.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        s.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        let components = components & (xcr0::X87 | xcr0::SSE | xcr0::AVX);
        state.xcrs.insert(0, components);
        let mut area = r.fpu.to_vec();
        area[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
        area[512..576].fill(0);
        area[512] = components as u8;
        if components & xcr0::AVX == 0 {
            area.truncate(576);
        }
        state.xsave = area;
        state
    }

    /// What has come out, from the processor in a handler.
    ///
    /// # Panics
    /// It is in none.
    #[must_use]
    pub fn outcome(&self, state: &CpuState, case: &Case) -> Outcome {
        let regs = &state.regs;
        let vector = (regs.rip.wrapping_sub(HANDLERS)) / HANDLER_LEN;
        assert!(vector <= u64::from(END), "lost at {:x}", regs.rip);
        let vector = vector as u8;
        let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
        let frame = Self::kernel(regs.rsp);
        let (error, frame) = if has_error {
            (self.get64(frame), frame + 8)
        } else {
            (0, frame)
        };
        let gpr = [
            regs.rax,
            regs.rcx,
            regs.rdx,
            regs.rbx,
            self.get64(frame + 24),
            regs.rbp,
            regs.rsi,
            regs.rdi,
            regs.r8,
            regs.r9,
            regs.r10,
            regs.r11,
            regs.r12,
            regs.r13,
            regs.r14,
            regs.r15,
        ];
        let rip = self.get64(frame);
        let mut fpu = Box::new([0; crate::case::AREA]);
        for (to, from) in fpu.iter_mut().zip(&state.xsave) {
            *to = *from;
        }
        initial_components(&mut fpu);
        let mut registers = Registers {
            gpr,
            rip: if vector == END {
                rip.wrapping_sub(2)
            } else {
                rip
            },
            rflags: self.get64(frame + 16) & Registers::FLAGS,
            fpu,
        };
        registers.normalize();
        if case.code32 {
            registers.narrow();
        }
        let mut memory = Box::new([0; DATA_LEN]);
        let data = GuestAddress(physical::DATA);
        assert!(self.ram.read_slice(&mut *memory, data).is_ok());
        let ended = vector == END && registers.rip == CODE + case.code.len() as u64;
        let fault = (!ended).then_some(Fault {
            vector,
            error: error as u32,
            address: if vector == 14 { state.sregs.cr2 } else { 0 },
        });
        Outcome {
            registers,
            memory,
            fault,
        }
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

/// Components whose bit in the header is clear have their initial values, whatever the area says.
fn initial_components(fpu: &mut [u8; crate::case::AREA]) {
    let reset = Registers::new();
    let present = fpu[512];
    if present & 1 == 0 {
        fpu[..24].copy_from_slice(&reset.fpu[..24]);
        fpu[32..160].fill(0);
    }
    if present & 2 == 0 {
        fpu[160..416].fill(0);
    }
    if present & 4 == 0 {
        fpu[576..].fill(0);
    }
}

/// How the software processor runs.
enum Way {
    Interpreted,
    Translated(Box<Engine>, Options),
}

/// The software processor in the machine.
pub struct Soft {
    machine: Machine,
    cpu: CpuBox,
    way: Way,
    name: &'static str,
}

impl Soft {
    /// By its run loop.
    #[must_use]
    pub fn interpreted() -> Self {
        Self::new(Way::Interpreted, "run loop")
    }

    /// By the translator.
    ///
    /// # Panics
    /// The host forbids executable memory.
    #[must_use]
    pub fn translated(options: Options) -> Self {
        let engine = Engine::new(options).unwrap_or_else(|e| panic!("{e}"));
        Self::new(Way::Translated(Box::new(engine), options), "translator")
    }

    fn new(way: Way, name: &'static str) -> Self {
        let machine = Machine::new();
        let cpu = CpuBox::new(CpuSetup {
            cpuid: processor::classify::supported_features().cpuid,
            attention: Arc::new(AtomicU32::new(0)),
            ram: RamMap::new(&memory::blocks(&machine.ram), Arc::clone(&machine.ram)),
            code: CodePages::new(),
        });
        let cpu = cpu.unwrap_or_else(|e| panic!("{e}"));
        let mut soft = Soft {
            machine,
            cpu,
            way,
            name,
        };
        let components = soft.cpu.cpuid.xcr0_mask();
        let state = soft.machine.state(&Case::new(), components);
        soft.cpu.set_state(&state);
        soft
    }

    /// What the translator has done.
    #[must_use]
    pub fn statistics(&self) -> Option<translator::Statistics> {
        match &self.way {
            Way::Interpreted => None,
            Way::Translated(engine, _) => Some(engine.statistics()),
        }
    }

    /// Puts the processor where a case starts. Not by `set_state`, which would empty the soft
    /// TLB: then nothing would ever hit.
    fn start(&mut self, case: &Case) {
        let state = self.machine.state(case, self.cpu.cpuid.xcr0_mask());
        let cpu = &mut *self.cpu;
        cpu.gpr = case.registers.gpr;
        if case.code32 {
            for (n, value) in cpu.gpr.iter_mut().enumerate() {
                *value = if n < 8 { *value & 0xffff_ffff } else { 0 };
            }
        }
        cpu.rip = state.regs.rip;
        cpu.rflags = state.regs.rflags;
        let s = &state.sregs;
        let segments = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs];
        cpu.segs = segments.each_ref().map(processor::Seg::from);
        cpu.cr2 = 0;
        let len = state.xsave.len();
        cpu.fpu.0[..len].copy_from_slice(&state.xsave);
        cpu.interrupt_shadow = 0;
        cpu.update_mode();
    }
}

impl Backend for Soft {
    fn name(&self) -> &'static str {
        self.name
    }

    fn exact_jumps(&self) -> bool {
        matches!(self.way, Way::Interpreted)
    }

    fn exact_flags(&self) -> bool {
        match &self.way {
            Way::Interpreted => true,
            Way::Translated(_, options) => options.exact_flags,
        }
    }

    fn run(&mut self, case: &Case) -> Outcome {
        self.machine.load(case);
        let len = (case.code.len() + BEHIND) as u64;
        self.cpu.code_pages().written(physical::CODE, len);
        self.start(case);
        loop {
            let stop = match &mut self.way {
                Way::Interpreted => self.cpu.advance(&mut Nothing, 1000),
                Way::Translated(engine, _) => {
                    engine.code_written(physical::CODE, len);
                    engine.run(&mut self.cpu, &mut Nothing)
                }
            };
            match stop {
                Stop::Attention => {}
                Stop::Device(request @ DeviceRequest::PortWrite { port: PORT, .. }) => {
                    let outcome = self.machine.outcome(&self.cpu.state(), case);
                    // Beyond OUT, so that no answer is left over.
                    self.cpu.answer(request, 0);
                    let _ = self.cpu.advance(&mut Nothing, 1);
                    return outcome;
                }
                other => panic!("{other:?} at {:x}", self.cpu.rip),
            }
        }
    }
}
