//! The oracle: one instruction at a time, executed by the host's own processor with all general
//! registers and flags loaded before and stored afterwards.
//!
//! ```text
//!   [code: written, then executable][context][data]      one mapping below 2 GiB
//! ```
//!
//! Code of 32 bits runs in the flat segments that Linux has for it.
#![allow(
    unsafe_code,
    reason = "maps executable memory and runs single instructions in it"
)]

use std::ptr;

use iced_x86::code_asm::{
    self, AsmRegister64, CodeAssembler, ds, eax, es, qword_ptr, rbp, rbx, rsp,
};
use x86::cr::rflags;

/// Bytes of code.
const CODE: usize = 1 << 20;
/// Bytes of a slot: an instruction and a jump behind it.
const SLOT: usize = 32;
/// Room for the way in and out.
const COMMON: usize = 1024;
/// Where in it the way out starts.
const WAY_OUT: usize = COMMON / 2;
const CONTEXT: usize = 4096;
/// Bytes of data: two pages.
pub(super) const DATA: usize = 8192;
/// Unmapped bytes around the data.
const GUARD: usize = 4096;
const TOTAL: usize = CODE + CONTEXT + GUARD + DATA + GUARD;

/// Offsets in the context.
const FLAGS: usize = 128;
const STACK: usize = 136;
const TARGET: usize = 144;

/// Code and data for native execution. The mapping is this struct's alone.
pub(super) struct Host {
    base: usize,
    used: usize,
    bits: u32,
}

/// Linux' code segments for user code (arch/x86/include/asm/segment.h), and its data segment.
const USER32_CS: u16 = 0x23;
const USER_DS: u16 = 0x2b;
const USER_CS: u16 = 0x33;

/// Whether this kernel has a code segment for 32-bit programs.
pub(super) fn runs_32_bit() -> bool {
    let rights: u64;
    // SAFETY: LAR reads a descriptor, and leaves its result alone if there is none.
    unsafe {
        std::arch::asm!(
            "lar {rights:e}, {selector:e}",
            rights = inlateout(reg) 0_u64 => rights,
            selector = in(reg) u32::from(USER32_CS),
            options(nostack, nomem),
        );
    }
    // Present, DPL 3, code; 32 bits, not 64.
    rights & 0x60_f800 == 0x40_f800
}

impl Host {
    /// How many instructions fit.
    pub(super) const SLOTS: usize = (CODE - COMMON) / SLOT;

    /// For instructions of 64 or 32 bits.
    pub(super) fn new(bits: u32) -> Host {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                TOTAL,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        let mut host = Host {
            base: base as usize,
            used: 0,
            bits,
        };
        for guard in [CODE + CONTEXT, CODE + CONTEXT + GUARD + DATA] {
            // SAFETY: pages of our mapping that nothing uses.
            let done =
                unsafe { libc::mprotect(base.wrapping_byte_add(guard), GUARD, libc::PROT_NONE) };
            assert_eq!(done, 0);
        }
        for (at, code) in [(0, host.way_in()), (WAY_OUT, host.way_out())] {
            assert!(code.len() <= WAY_OUT);
            host.put_code(at, &code);
        }
        host
    }

    /// Address of the data.
    pub(super) fn data(&self) -> u64 {
        (self.base + CODE + CONTEXT + GUARD) as u64
    }

    fn context(&self) -> usize {
        self.base + CODE
    }

    fn way_in(&self) -> Vec<u8> {
        let context = self.context() as u64;
        let at = |offset: usize| qword_ptr(context + offset as u64);
        let mut a = CodeAssembler::new(64).expect("an assembler");
        let mut assemble = || -> Result<(), iced_x86::IcedError> {
            for r in KEPT {
                a.push(r)?;
            }
            a.mov(at(STACK), rsp)?;
            if self.bits == 32 {
                a.mov(eax, u32::from(USER_DS))?;
                a.mov(ds, eax)?;
                a.mov(es, eax)?;
            }
            a.push(at(FLAGS))?;
            a.popfq()?;
            for (n, r) in registers()
                .into_iter()
                .enumerate()
                .filter(|(_, r)| *r != rsp)
            {
                a.mov(r, at(8 * n))?;
            }
            a.mov(rsp, at(32))?;
            if self.bits == 32 {
                // JMP to the selector and offset at TARGET.
                let [b0, b1, b2, b3] = (context as u32 + TARGET as u32).to_le_bytes();
                a.db(&[0xff, 0x2c, 0x25, b0, b1, b2, b3])
            } else {
                a.jmp(at(TARGET))
            }
        };
        assemble().expect("encodable");
        a.assemble(self.base as u64).expect("near")
    }

    fn way_out(&self) -> Vec<u8> {
        let at = |offset: usize| qword_ptr((self.context() + offset) as u64);
        let mut a = CodeAssembler::new(64).expect("an assembler");
        let mut assemble = || -> Result<(), iced_x86::IcedError> {
            for (n, r) in registers().into_iter().enumerate() {
                a.mov(at(8 * n), r)?;
            }
            a.mov(rsp, at(STACK))?;
            a.pushfq()?;
            a.pop(at(FLAGS))?;
            a.cld()?;
            if self.bits == 32 {
                a.xor(eax, eax)?;
                a.mov(ds, eax)?;
                a.mov(es, eax)?;
            }
            for r in KEPT.into_iter().rev() {
                a.pop(r)?;
            }
            a.ret()
        };
        assemble().expect("encodable");
        a.assemble((self.base + WAY_OUT) as u64).expect("near")
    }

    fn put_code(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= CODE);
        // SAFETY: inside of the code, which is writable while instructions are added.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), (self.base + offset) as *mut u8, bytes.len());
        }
    }

    /// Address of the next instruction to be added.
    pub(super) fn next(&self) -> u64 {
        (self.base + COMMON + self.used * SLOT) as u64
    }

    /// Adds an instruction at [`Host::next`].
    pub(super) fn add(&mut self, bytes: &[u8]) {
        assert!(self.used < Self::SLOTS);
        let at = self.next();
        let way_out = (self.base + WAY_OUT) as u32;
        let mut code = bytes.to_vec();
        if self.bits == 32 {
            code.push(0xea);
            code.extend(way_out.to_le_bytes());
            code.extend(USER_CS.to_le_bytes());
        } else {
            let behind = at as u32 + bytes.len() as u32 + 5;
            code.push(0xe9);
            code.extend(way_out.wrapping_sub(behind).to_le_bytes());
        }
        self.put_code(at as usize - self.base, &code);
        self.used += 1;
    }

    /// Ends the adding; gives what can run them.
    pub(super) fn seal(self) -> Sealed {
        // SAFETY: the code pages of our mapping, which nobody writes from now on.
        let done = unsafe {
            libc::mprotect(
                self.base as *mut libc::c_void,
                CODE,
                libc::PROT_READ | libc::PROT_EXEC,
            )
        };
        assert_eq!(done, 0);
        Sealed(self)
    }
}

/// A [`Host`] whose code is executable.
pub(super) struct Sealed(Host);

impl Sealed {
    /// Writes the data from this offset on.
    pub(super) fn put(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= DATA);
        // SAFETY: inside of the data, to which no Rust reference exists.
        unsafe {
            let to = (self.0.data() as usize + offset) as *mut u8;
            ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Reads the data from this offset on.
    pub(super) fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset + N <= DATA);
        // SAFETY: inside of the data, to which no Rust reference exists.
        unsafe { ptr::read_unaligned((self.0.data() as usize + offset) as *const [u8; N]) }
    }

    /// Runs the instruction at this address, which was added.
    ///
    /// # Safety
    /// The instruction does not jump, does not fault with these registers, writes no memory but
    /// the data, and leaves TF and AC clear.
    pub(super) unsafe fn run(&mut self, at: u64, gpr: &mut [u64; 16], flags: &mut u64) {
        let context = self.0.context();
        // SAFETY: the context is ours and writable; the code was made by `common`, keeps what the
        // ABI says, and comes back from an instruction as the caller promises.
        unsafe {
            ptr::write(context as *mut [u64; 16], *gpr);
            let low = *flags & (STATUS | rflags::DF);
            ptr::write(
                (context + FLAGS) as *mut u64,
                low | rflags::RESERVED_ONE | rflags::IF,
            );
            let target = at | u64::from(USER32_CS) << 32;
            ptr::write(
                (context + TARGET) as *mut u64,
                if self.0.bits == 32 { target } else { at },
            );
            let enter: extern "sysv64" fn() = std::mem::transmute(self.0.base);
            enter();
            *gpr = ptr::read(context as *const [u64; 16]);
            *flags = ptr::read((context + FLAGS) as *const u64);
        }
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; nothing refers to it any more.
        unsafe { libc::munmap(self.0.base as *mut libc::c_void, TOTAL) };
    }
}

/// The status flags.
pub(super) const STATUS: u64 =
    rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

/// Registers that belong to the caller.
const KEPT: [AsmRegister64; 6] = [
    rbx,
    rbp,
    code_asm::r12,
    code_asm::r13,
    code_asm::r14,
    code_asm::r15,
];

/// All general registers in the order of their encoding.
fn registers() -> [AsmRegister64; 16] {
    use code_asm::*;
    [
        rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
    ]
}
