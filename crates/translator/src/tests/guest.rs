//! A guest of a few pages in 64-bit mode, which can be had twice.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use iced_x86::code_asm::CodeAssembler;
use memory::{Bytes, GuestAddress, GuestAddressSpace};
use processor::state::{XsaveArea, reg, seg};
use processor::testing::Nothing;
use processor::{CodePages, CodeWatch, CpuBox, CpuSetup, RamMap, Seg, Stop, classify};
use x86::cr::{cr0, cr4, efer, rflags, xcr0};

use crate::{Engine, Options};

pub(super) const RAM: usize = 8 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const HANDLERS: u64 = 0x7000;
/// Where programs start.
pub(super) const CODE: u64 = 0x10_0000;
/// Where SYSCALL leads to.
pub(super) const SYSTEM_CALL: u64 = 0x12_0000;
/// Top of the stack.
pub(super) const STACK: u64 = 0x20_0000;
/// Four pages of data, each of them mapped by an entry of its own.
pub(super) const DATA: u64 = 0x40_0000;
pub(super) const DATA_LEN: u64 = 0x4000;
/// A page that may be read only.
pub(super) const READ_ONLY: u64 = 0x41_0000;
/// A page that is not there.
pub(super) const ABSENT: u64 = 0x42_0000;
/// The address of [`DATA`] once more.
pub(super) const ALIAS: u64 = 0x43_0000;
/// A device.
pub(super) const DEVICE: u64 = 0x60_0000;

pub(super) struct Guest {
    pub(super) cpu: CpuBox,
    pub(super) ram: Arc<memory::Ram>,
    pub(super) written: Arc<Writes>,
}

/// Notes what is written to code pages.
#[derive(Default)]
pub(super) struct Writes(std::sync::Mutex<Vec<(u64, u64)>>, Arc<AtomicU32>);

impl CodeWatch for Writes {
    fn written(&self, physical: u64, len: u64) {
        self.0.lock().unwrap().push((physical, len));
        self.1.fetch_or(1, std::sync::atomic::Ordering::SeqCst);
    }
    fn marked(&self, _page: u64) {}
}

impl Guest {
    /// A guest with this program at [`CODE`].
    pub(super) fn new(code: &[u8]) -> Guest {
        let ram = memory::small(RAM).unwrap().memory().into_inner();
        let attention = Arc::new(AtomicU32::new(0));
        let written = Arc::new(Writes(Default::default(), Arc::clone(&attention)));
        let pages = CodePages::new();
        assert!(pages.set_watch(written.clone()).is_ok());
        let mut cpu = CpuBox::new(CpuSetup {
            cpuid: classify::supported_features().cpuid,
            attention,
            ram: RamMap::new(&memory::blocks(&ram), Arc::clone(&ram)),
            code: pages,
        })
        .unwrap();
        let write = |at: u64, value: u64| ram.write_obj(value, GuestAddress(at)).unwrap();
        // Everything as it is in physical memory, with 2 MiB pages but for the data.
        write(PML4, PDPT | 7);
        write(PDPT, PD | 7);
        for n in 0..4 {
            write(PD + 8 * n, n << 21 | 0x87);
        }
        write(PD + 8 * 2, PT | 7);
        write(PD + 8 * 3, 0x8000_0000 | 0x87);
        for n in 0..512 {
            write(PT + 8 * n, (DATA + (n << 12)) | 7);
        }
        let pt = |linear: u64| PT + 8 * (linear >> 12 & 511);
        write(pt(READ_ONLY), READ_ONLY | 5);
        write(pt(ABSENT), 0);
        for n in 0..4 {
            write(pt(ALIAS) + 8 * n, (DATA + (n << 12)) | 7);
        }
        // Exception handlers that stop.
        write(GDT + 8, 0x00af_9b00_0000_ffff);
        write(GDT + 16, 0x00cf_9300_0000_ffff);
        for vector in 0..32 {
            let handler = HANDLERS + 16 * vector;
            write(IDT + 16 * vector, handler & 0xffff | 8 << 16 | 0x8e00 << 32);
            write(handler, 0xf4f4_f4f4_f4f4_f4f4);
        }
        ram.write_slice(code, GuestAddress(CODE)).unwrap();
        for n in 0..DATA_LEN / 8 {
            let value = n
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(n as u32 % 64);
            write(DATA + 8 * n, value);
        }

        cpu.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG | cr0::WP | cr0::MP;
        cpu.cr3 = PML4;
        cpu.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        cpu.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
        cpu.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        cpu.msrs.star = 0x0013_0008 << 32;
        cpu.msrs.lstar = SYSTEM_CALL;
        cpu.msrs.sfmask = 0x25_7fd5;
        cpu.rflags = rflags::RESERVED_ONE;
        for s in &mut cpu.segs {
            *s = Seg {
                base: 0,
                limit: u32::MAX,
                selector: 16,
                attributes: Seg::P | Seg::S | Seg::DB | Seg::G | 3,
            };
        }
        cpu.segs[seg::CS] = Seg {
            base: 0,
            limit: u32::MAX,
            selector: 8,
            attributes: Seg::P | Seg::S | Seg::L | Seg::G | 0xb,
        };
        cpu.segs[seg::FS].base = DATA + 0x100;
        cpu.segs[seg::GS].base = DATA + 0x1000;
        cpu.gdtr.base = GDT;
        cpu.gdtr.limit = 23;
        cpu.idtr.base = IDT;
        cpu.idtr.limit = 0x1ff;
        for (n, value) in cpu.gpr.iter_mut().enumerate() {
            *value = (n as u64 + 1)
                .wrapping_mul(0x0123_4567_89ab_cdef)
                .rotate_left(n as u32 * 7);
        }
        cpu.gpr[reg::RSP] = STACK - 0x800;
        cpu.gpr[reg::RBP] = STACK - 0x700;
        for n in 0..16usize {
            let value = f64::from(n as u32).mul_add(1.25, -7.5).to_le_bytes();
            let at = XsaveArea::XMM + 16 * n;
            cpu.fpu.0[at..at + 8].copy_from_slice(&value);
            cpu.fpu.0[at + 8..at + 16].copy_from_slice(&(value.map(|b| b ^ n as u8)));
        }
        cpu.fpu.0[XsaveArea::HEADER] |= 3;
        cpu.rip = CODE;
        cpu.update_mode();
        cpu.flush_tlb();
        Guest { cpu, ram, written }
    }

    /// Maps a page of the data's table.
    pub(super) fn map(&mut self, linear: u64, physical: u64) {
        let at = PT + 8 * (linear >> 12 & 511);
        self.ram.write_obj(physical | 7, GuestAddress(at)).unwrap();
        self.cpu.flush_tlb();
    }

    /// Runs until HLT, or until something else stops it.
    pub(super) fn interpret(&mut self) -> Stop {
        for _ in 0..100 {
            let stop = self.cpu.advance(&mut Nothing, 100_000);
            if stop != Stop::Attention {
                return stop;
            }
            self.drain(None);
        }
        panic!("the program does not end");
    }

    /// As [`Guest::interpret`], by an engine.
    pub(super) fn translate(&mut self, engine: &mut Engine) -> Stop {
        for _ in 0..10_000 {
            let stop = engine.run(&mut self.cpu, &mut Nothing);
            if stop != Stop::Attention {
                return stop;
            }
            self.drain(Some(engine));
        }
        panic!("the program does not end");
    }

    /// What the accelerator does about attention.
    fn drain(&mut self, engine: Option<&mut Engine>) {
        self.cpu
            .attention
            .store(0, std::sync::atomic::Ordering::SeqCst);
        let writes = std::mem::take(&mut *self.written.0.lock().unwrap());
        if let Some(engine) = engine {
            for (physical, len) in writes {
                engine.code_written(physical, len);
            }
        }
    }

    /// Everything that a program can have changed.
    pub(super) fn state(&self) -> State {
        let cpu = &self.cpu;
        let mut memory = vec![0; (DATA_LEN + 0x1000) as usize];
        let (data, stack) = memory.split_at_mut(DATA_LEN as usize);
        self.ram.read_slice(data, GuestAddress(DATA)).unwrap();
        self.ram
            .read_slice(stack, GuestAddress(STACK - 0x1000))
            .unwrap();
        let part = |from: usize| cpu.fpu.0[from..from + 256].to_vec();
        State {
            gpr: cpu.gpr,
            rip: cpu.rip,
            rflags: cpu.rflags,
            cr2: cpu.cr2,
            mxcsr: cpu.fpu.0[24..28].to_vec(),
            xmm: part(XsaveArea::XMM),
            ymm_high: part(XsaveArea::YMM_HIGH),
            retired: cpu.retired,
            memory,
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) gpr: [u64; 16],
    pub(super) rip: u64,
    pub(super) rflags: u64,
    pub(super) cr2: u64,
    pub(super) mxcsr: Vec<u8>,
    pub(super) xmm: Vec<u8>,
    pub(super) ymm_high: Vec<u8>,
    pub(super) retired: u64,
    pub(super) memory: Vec<u8>,
}

impl State {
    /// Takes over the arithmetic flags if an exception was delivered: those that no instruction
    /// would have read are lost then.
    pub(super) fn forget_flags_at_fault(&mut self, expected: &State) {
        if !(HANDLERS..HANDLERS + 0x200).contains(&self.rip) {
            return;
        }
        self.rflags = self.rflags & !0x8d5 | expected.rflags & 0x8d5;
        let vector = (self.rip - HANDLERS) / 16;
        let frame = if matches!(vector, 8 | 10..=14 | 17) {
            24
        } else {
            16
        };
        let at = self.gpr[reg::RSP] + frame;
        let at = match at.checked_sub(STACK - 0x1000) {
            Some(offset) if offset < 0x1000 => Some((offset + DATA_LEN) as usize),
            _ => at.checked_sub(DATA).map(|offset| offset as usize),
        };
        if let Some(at) = at
            && let (Some(to), Some(from)) = (
                self.memory.get_mut(at..at + 8),
                expected.memory.get(at..at + 8),
            )
        {
            to.copy_from_slice(from);
        }
    }

    /// What differs, in words.
    pub(super) fn differences(&self, other: &State) -> Vec<String> {
        let mut found = Vec::new();
        for (n, (a, b)) in self.gpr.iter().zip(&other.gpr).enumerate() {
            if a != b {
                found.push(format!("gpr {n}: {a:#x} {b:#x}"));
            }
        }
        let words = [
            ("rip", self.rip, other.rip),
            ("rflags", self.rflags, other.rflags),
            ("cr2", self.cr2, other.cr2),
            ("retired", self.retired, other.retired),
        ];
        for (name, a, b) in words {
            if a != b {
                found.push(format!("{name}: {a:#x} {b:#x}"));
            }
        }
        let bytes = [
            ("mxcsr", &self.mxcsr, &other.mxcsr),
            ("xmm", &self.xmm, &other.xmm),
            ("ymm high", &self.ymm_high, &other.ymm_high),
            ("memory", &self.memory, &other.memory),
        ];
        for (name, a, b) in bytes {
            if let Some(at) = a.iter().zip(b.iter()).position(|(a, b)| a != b) {
                found.push(format!("{name} at {at:#x}: {:x} {:x}", a[at], b[at]));
            }
        }
        found
    }
}

pub(super) fn assemble(f: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    f(&mut a);
    a.assemble(CODE).unwrap()
}

pub(super) fn options() -> [Options; 4] {
    let all = |exact_flags, bmi2| Options {
        cache_size: 1 << 20,
        exact_flags,
        // The interpreter's, which is another, is what is compared with.
        host_tsc: false,
        bmi2,
    };
    [
        all(false, true),
        all(true, true),
        all(false, false),
        all(true, false),
    ]
}

/// Runs the program by the interpreter and by all kinds of engine, twice by each: cold and with
/// what the first run has translated. Returns the state at the end.
pub(super) fn compare(code: &[u8]) -> State {
    compare_with(code, &options())
}

/// As [`compare`], with these options.
pub(super) fn compare_with(code: &[u8], kinds: &[Options]) -> State {
    let mut reference = Guest::new(code);
    let stop = reference.interpret();
    let expected = reference.state();
    for options in kinds.iter().copied() {
        let mut engine = Engine::new(options).unwrap();
        for round in 0..2 {
            let mut guest = Guest::new(code);
            assert_eq!(guest.translate(&mut engine), stop, "{options:?}");
            let mut state = guest.state();
            if !options.exact_flags {
                state.forget_flags_at_fault(&expected);
            }
            let differences = expected.differences(&state);
            assert!(
                differences.is_empty(),
                "{options:?} round {round}: {differences:#?}\n{}",
                listing(code)
            );
        }
    }
    expected
}

pub(super) fn listing(code: &[u8]) -> String {
    let mut text = String::new();
    for i in iced_x86::Decoder::with_ip(64, code, CODE, 0)
        .iter()
        .take(200)
    {
        text += &format!("{:#x} {i}\n", i.ip());
    }
    text
}
