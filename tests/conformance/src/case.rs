//! What runs, and what comes out.

use crate::{CODE, DATA, DATA_LEN};

/// Bytes of the XSAVE area: legacy region, header, upper halves of YMM.
pub const AREA: usize = 832;

/// Registers of a user-mode program in 64-bit mode.
#[derive(Clone, PartialEq, Eq)]
pub struct Registers {
    /// General registers in the order of their encoding.
    pub gpr: [u64; 16],
    /// Next instruction.
    pub rip: u64,
    /// Status flags and DF.
    pub rflags: u64,
    /// x87, SSE and AVX state in the standard format of XSAVE.
    pub fpu: Box<[u8; AREA]>,
}

impl Registers {
    /// All zero, RSP in the middle of the data, FP state as after reset.
    #[must_use]
    pub fn new() -> Self {
        let mut gpr = [0; 16];
        gpr[4] = DATA + DATA_LEN as u64 / 2;
        let mut fpu = Box::new([0; AREA]);
        fpu[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        fpu[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        Registers {
            gpr,
            rip: CODE,
            rflags: 2,
            fpu,
        }
    }

    /// What CS:RIP, flags and so on have in common everywhere: status flags, DF and the bit that
    /// is always one.
    pub const FLAGS: u64 = 0xcd5 | 2;

    /// Cuts general registers to what 32-bit code knows of them.
    pub fn narrow(&mut self) {
        for (n, value) in self.gpr.iter_mut().enumerate() {
            *value = if n < 8 { *value & 0xffff_ffff } else { 0 };
        }
    }

    /// Takes away what no two processors need agree about: the last x87 instruction, operand and
    /// opcode, the mask of MXCSR, reserved bytes and the header.
    pub fn normalize(&mut self) {
        self.rflags &= Self::FLAGS;
        self.fpu[5] = 0;
        self.fpu[6..24].fill(0);
        self.fpu[28..32].fill(0);
        for st in 0..8 {
            self.fpu[32 + 16 * st + 10..48 + 16 * st].fill(0);
        }
        self.fpu[416..576].fill(0);
    }
}

impl Default for Registers {
    fn default() -> Self {
        Self::new()
    }
}

/// An exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code; zero for those without one.
    pub error: u32,
    /// CR2 of a page fault, zero otherwise.
    pub address: u64,
}

/// Something to run.
#[derive(Clone)]
pub struct Case {
    /// 32-bit code, not 64-bit code.
    pub code32: bool,
    /// Instructions, to be put at [`CODE`]; the run ends behind the last one.
    pub code: Vec<u8>,
    /// Registers before it. RIP is where to start.
    pub registers: Registers,
    /// The data at [`DATA`].
    pub memory: Box<[u8; DATA_LEN]>,
}

impl Case {
    /// No code; registers and memory as everywhere at first.
    #[must_use]
    pub fn new() -> Self {
        Case {
            code32: false,
            code: Vec::new(),
            registers: Registers::new(),
            memory: Box::new([0; DATA_LEN]),
        }
    }

    /// Size of the code's addresses and operands, in bits.
    #[must_use]
    pub fn bits(&self) -> u32 {
        if self.code32 { 32 } else { 64 }
    }
}

impl Default for Case {
    fn default() -> Self {
        Self::new()
    }
}

/// What comes out.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Registers at the end or at the fault.
    pub registers: Registers,
    /// The data.
    pub memory: Box<[u8; DATA_LEN]>,
    /// The exception that ended it.
    pub fault: Option<Fault>,
}

impl Outcome {
    /// What differs, a line each; flags of `ignored` do not count.
    #[must_use]
    pub fn differences(&self, other: &Outcome, ignored: u64) -> Vec<String> {
        let mut out = Vec::new();
        let (a, b) = (&self.registers, &other.registers);
        if self.fault != other.fault {
            out.push(format!("fault {:x?} / {:x?}", self.fault, other.fault));
        }
        for (n, name) in NAMES.iter().enumerate() {
            if a.gpr[n] != b.gpr[n] {
                out.push(format!("{name} {:x} / {:x}", a.gpr[n], b.gpr[n]));
            }
        }
        if a.rip != b.rip {
            out.push(format!("rip {:x} / {:x}", a.rip, b.rip));
        }
        let flags = |r: &Registers| r.rflags & Registers::FLAGS & !ignored;
        if flags(a) != flags(b) {
            out.push(format!("rflags {:x} / {:x}", flags(a), flags(b)));
        }
        let mut parts = vec![
            ("fcw".to_owned(), 0..2),
            ("fsw".to_owned(), 2..4),
            ("ftw".to_owned(), 4..5),
            ("mxcsr".to_owned(), 24..28),
        ];
        parts.extend((0..8).map(|n| (format!("st{n}"), 32 + 16 * n..42 + 16 * n)));
        parts.extend((0..16).map(|n| (format!("xmm{n}"), 160 + 16 * n..176 + 16 * n)));
        parts.extend((0..16).map(|n| (format!("ymmh{n}"), 576 + 16 * n..592 + 16 * n)));
        for (name, range) in parts {
            let (x, y) = (&a.fpu[range.clone()], &b.fpu[range]);
            if x != y {
                out.push(format!("{name} {} / {}", hex(x), hex(y)));
            }
        }
        for (n, (x, y)) in self
            .memory
            .chunks(8)
            .zip(other.memory.chunks(8))
            .enumerate()
        {
            if x != y {
                out.push(format!("mem+{:x} {} / {}", 8 * n, hex(x), hex(y)));
            }
        }
        out
    }
}

/// General registers by name.
pub const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// A little-endian value as a hexadecimal number.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}
