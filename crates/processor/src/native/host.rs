//! Code for the host: one instruction and a RET each, in memory that is written through one
//! mapping and executed through another; and the way into it and back.
#![allow(
    unsafe_code,
    reason = "executable memory, and assembly that changes to the guest's FP state and back"
)]

use std::arch::asm;
use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use iced_x86::{
    Encoder, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess, OpKind, Register,
};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::ftruncate;

use crate::classify::Unit;
use crate::state::XsaveArea;

/// Longest memory operand in bytes.
pub(super) const MAX_OPERAND: usize = 32;

/// Room for one instruction, RET and INT3.
const SLOT: usize = 32;
/// Stubs of one thread; all are dropped when there are more.
const SLOTS: usize = 2048;
const CODE_LEN: usize = SLOT * SLOTS;

const RET: u8 = 0xc3;
const INT3: u8 = 0xcc;

/// What an instruction does with its memory operand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub(super) size: usize,
    pub(super) reads: bool,
    pub(super) writes: bool,
}

/// Code for one instruction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stub {
    /// Where in this thread's code.
    slot: usize,
    /// Components of the state that it uses (XCR0's bits).
    components: u32,
    /// Raises #MF when an x87 exception waits.
    pub(super) waits: bool,
    /// The memory operand.
    pub(super) memory: Option<Memory>,
    /// The guest's general register that an operand names; RAX stands for it.
    pub(super) register: Option<usize>,
    /// Eleven bits of the opcode, as FOP has them.
    pub(super) opcode: u16,
}

/// Registers besides the FP state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands {
    /// RAX, or what stands in the explicit operand.
    pub(super) rax: u64,
    pub(super) rcx: u64,
    pub(super) rdx: u64,
    /// Status flags.
    pub(super) flags: u64,
}

/// What the assembly works on.
#[repr(C, align(64))]
struct Frame {
    area: XsaveArea,
    operand: [u8; 64],
    rax: u64,
    rcx: u64,
    rdx: u64,
    flags: u64,
    host_mxcsr: u32,
}

/// This thread's stubs. The mappings are this struct's alone and live as long as it does.
struct Code {
    write: NonNull<u8>,
    execute: NonNull<u8>,
    used: usize,
    stubs: HashMap<Instruction, Stub>,
    info: InstructionInfoFactory,
    frame: Box<Frame>,
    save: Save,
}

/// How the host saves state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Save {
    Fxsave,
    Xsave { avx: bool },
}

thread_local! {
    static CODE: RefCell<Option<Code>> = const { RefCell::new(None) };
}

/// Whether this process may have executable memory.
///
/// # Errors
/// What the kernel says if not.
pub fn available() -> std::io::Result<()> {
    with_code(|_| ()).map_err(std::io::Error::from)
}

fn with_code<T>(f: impl FnOnce(&mut Code) -> T) -> Result<T, Errno> {
    CODE.with_borrow_mut(|code| match code {
        Some(code) => Ok(f(code)),
        None => Ok(f(code.insert(Code::new()?))),
    })
}

/// Makes this thread save state as a host without XSAVE does.
#[cfg(test)]
pub(super) fn use_fxsave() {
    let changed = with_code(|code| code.save = Save::Fxsave);
    assert!(changed.is_ok());
}

/// The stub for an instruction; None if the host cannot encode it.
pub(super) fn stub(i: &Instruction, unit: Unit) -> Option<Stub> {
    let (normal, register) = normalize(i)?;
    match with_code(|code| code.stub(&normal, register, unit)) {
        Ok(stub) => stub,
        Err(error) => {
            log::error!("no memory for host code: {error}");
            None
        }
    }
}

/// The same instruction on `[rdi]` and RAX, and the register that RAX stands for.
fn normalize(i: &Instruction) -> Option<(Instruction, Option<usize>)> {
    let mut normal = *i;
    normal.set_segment_prefix(Register::None);
    normal.set_has_lock_prefix(false);
    normal.set_has_rep_prefix(false);
    normal.set_has_repne_prefix(false);
    normal.set_len(0);
    normal.set_next_ip(0);
    let mut register = None;
    for op in 0..i.op_count() {
        match i.op_kind(op) {
            OpKind::Memory => {
                normal.set_memory_base(Register::RDI);
                normal.set_memory_index(Register::None);
                normal.set_memory_index_scale(1);
                normal.set_memory_displacement64(0);
                normal.set_memory_displ_size(0);
            }
            OpKind::Register => {
                let name = i.op_register(op);
                let same = match name {
                    _ if name.is_gpr32() => Register::EAX,
                    _ if name.is_gpr64() => Register::RAX,
                    _ if name.is_gpr() => return None,
                    _ => continue,
                };
                if register.replace(name.number()).is_some() {
                    return None;
                }
                normal.set_op_register(op, same);
            }
            kind if is_immediate(kind) => {}
            _ => return None,
        }
    }
    Some((normal, register))
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8 | OpKind::Immediate8_2nd | OpKind::Immediate16 | OpKind::Immediate32
    )
}

impl Code {
    fn new() -> Result<Self, Errno> {
        let fd = memory_file()?;
        let len = NonZeroUsize::new(CODE_LEN).ok_or(Errno::EINVAL)?;
        let map = |protection| {
            // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
            unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, &fd, 0) }
        };
        let write = map(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let execute = match map(ProtFlags::PROT_READ | ProtFlags::PROT_EXEC) {
            Ok(execute) => execute,
            Err(error) => {
                // SAFETY: the mapping was made above, and nothing points into it.
                let _ = unsafe { munmap(write, CODE_LEN) };
                return Err(error);
            }
        };
        Ok(Code {
            write: write.cast(),
            execute: execute.cast(),
            used: 0,
            stubs: HashMap::new(),
            info: InstructionInfoFactory::new(),
            frame: Box::new(Frame {
                area: XsaveArea([0; XsaveArea::LEN]),
                operand: [0; 64],
                rax: 0,
                rcx: 0,
                rdx: 0,
                flags: 0,
                host_mxcsr: 0,
            }),
            save: if std::arch::is_x86_feature_detected!("xsave") {
                Save::Xsave {
                    avx: std::arch::is_x86_feature_detected!("avx"),
                }
            } else {
                Save::Fxsave
            },
        })
    }

    fn stub(&mut self, normal: &Instruction, register: Option<usize>, unit: Unit) -> Option<Stub> {
        if let Some(stub) = self.stubs.get(normal) {
            return Some(Stub { register, ..*stub });
        }
        let mut encoder = Encoder::new(64);
        encoder.encode(normal, 0).ok()?;
        let bytes = encoder.take_buffer();
        if bytes.len() >= SLOT {
            return None;
        }
        let memory = self.memory(normal)?;
        let mmx = (0..normal.op_count()).any(|op| normal.op_register(op).is_mm())
            || normal.mnemonic() == Mnemonic::Emms;
        let x87 = unit == Unit::X87 || mmx;
        let components = match unit {
            Unit::X87 => 1,
            Unit::Avx => 6,
            _ if mmx => 3,
            _ => 2,
        };
        if unit == Unit::Avx && self.save != (Save::Xsave { avx: true }) {
            return None;
        }
        if self.used == SLOTS {
            self.stubs.clear();
            self.used = 0;
        }
        let slot = self.used;
        let mut code = [INT3; SLOT];
        code[..bytes.len()].copy_from_slice(&bytes);
        code[bytes.len()] = RET;
        // SAFETY: `slot` is below SLOTS, so these bytes are inside the mapping of CODE_LEN; only
        // this thread has it, and no stub runs now. The other mapping sees the bytes before the
        // call, which is a jump to new code (SDM vol. 3A 8.1.3).
        unsafe {
            self.write
                .as_ptr()
                .add(slot * SLOT)
                .copy_from_nonoverlapping(code.as_ptr(), SLOT);
        }
        self.used += 1;
        let stub = Stub {
            slot,
            components,
            waits: x87,
            memory,
            register,
            opcode: opcode(&bytes),
        };
        self.stubs.insert(*normal, stub);
        Some(stub)
    }

    /// What the instruction does with its memory operand; the outer None if it has one that a
    /// buffer cannot stand for.
    fn memory(&mut self, normal: &Instruction) -> Option<Option<Memory>> {
        let info = self.info.info(normal);
        let [used] = info.used_memory() else {
            return info.used_memory().is_empty().then_some(None);
        };
        let (reads, writes) = match used.access() {
            OpAccess::Read | OpAccess::CondRead => (true, false),
            OpAccess::Write | OpAccess::CondWrite => (false, true),
            OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
            _ => return None,
        };
        let size = match used.memory_size() {
            MemorySize::Unknown => return None,
            size => size.size(),
        };
        let fits = used.base() == Register::RDI
            && used.index() == Register::None
            && (1..=MAX_OPERAND).contains(&size);
        fits.then_some(Some(Memory {
            size,
            reads,
            writes,
        }))
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        for mapping in [self.write, self.execute] {
            // SAFETY: the mappings were made by `new` and are dropped once, here.
            let _ = unsafe { munmap(mapping.cast(), CODE_LEN) };
        }
    }
}

fn memory_file() -> Result<OwnedFd, Errno> {
    // Kernels before 6.3 do not know MFD_EXEC and allow execution by default.
    const EXEC: MFdFlags = MFdFlags::from_bits_retain(0x10);
    let name = c"vireo-native";
    let flags = MFdFlags::MFD_CLOEXEC;
    let fd = match memfd_create(name, flags | EXEC) {
        Err(Errno::EINVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    ftruncate(&fd, CODE_LEN as i64)?;
    Ok(fd)
}

/// The low three bits of an x87 instruction's first byte, and its second byte.
fn opcode(bytes: &[u8]) -> u16 {
    let mut escape = bytes.iter().skip_while(|b| **b & 0xf8 != 0xd8);
    match (escape.next(), escape.next()) {
        (Some(first), Some(second)) => u16::from(first & 7) << 8 | u16::from(*second),
        _ => 0,
    }
}

/// Runs a stub of this thread on this state.
///
/// MXCSR in `area` must have all its exceptions masked, and no x87 exception may wait if the stub
/// is a waiting instruction; otherwise the host would raise them.
pub(super) fn run(stub: &Stub, area: &mut XsaveArea, operand: &mut [u8], operands: &mut Operands) {
    // The stub came from this thread's code, so there is some.
    let _ = with_code(|code| {
        let frame = &mut *code.frame;
        frame.area.0.copy_from_slice(&area.0);
        // No compacted form, and nothing initial: the data counts.
        let (all, use_xsave) = match code.save {
            Save::Fxsave => (3_u64, 0_u32),
            Save::Xsave { avx: false } => (3, 1),
            Save::Xsave { avx: true } => (7, 1),
        };
        let header = XsaveArea::HEADER;
        frame.area.0[header..header + 64].fill(0);
        frame.area.0[header..header + 8].copy_from_slice(&all.to_le_bytes());
        for (to, from) in frame.operand.iter_mut().zip(operand.iter()) {
            *to = *from;
        }
        frame.rax = operands.rax;
        frame.rcx = operands.rcx;
        frame.rdx = operands.rdx;
        frame.flags = operands.flags | 2;
        // SAFETY: the stub's slot is below SLOTS.
        let entry = unsafe { code.execute.as_ptr().add(stub.slot * SLOT) };
        // SAFETY: the frame is aligned to 64 bytes and as long as XSAVE of x87, SSE and AVX
        // needs, its header is valid and MXCSR has only bits that exist (`native` masks them), so
        // that XRSTOR does not fault. The stub is one instruction of the classes that
        // `native::run` lets through, with no memory operand but `[rdi]` of at most MAX_OPERAND
        // bytes, which is inside `frame.operand`; it writes no register but RAX, RCX, RDX, the
        // flags and FP state. All FP state is declared clobbered; MXCSR is restored, x87 left
        // initial, and the upper halves of YMM are cleared, as the ABI demands. The direction
        // flag is never set.
        unsafe { enter(frame, entry, stub.components, use_xsave) };
        area.0.copy_from_slice(&frame.area.0);
        area.0[header..header + 64].fill(0);
        area.0[header..header + 8].copy_from_slice(&all.to_le_bytes());
        for (to, from) in operand.iter_mut().zip(&frame.operand) {
            *to = *from;
        }
        *operands = Operands {
            rax: frame.rax,
            rcx: frame.rcx,
            rdx: frame.rdx,
            flags: frame.flags,
        };
    });
}

/// Loads the guest's state, calls the stub, and saves the state.
///
/// # Safety
/// See the only caller.
unsafe fn enter(frame: &mut Frame, entry: *const u8, components: u32, use_xsave: u32) {
    // SAFETY: as the caller's.
    unsafe {
        asm!(
            "stmxcsr dword ptr [r8 + {host_mxcsr}]",
            "test r11d, r11d",
            "jz 20f",
            "mov eax, r10d",
            "xor edx, edx",
            "xrstor64 [r8]",
            "jmp 21f",
            "20:",
            "fxrstor64 [r8]",
            "21:",
            "lea rdi, [r8 + {operand}]",
            "mov rax, qword ptr [r8 + {rax}]",
            "mov rcx, qword ptr [r8 + {rcx}]",
            "mov rdx, qword ptr [r8 + {rdx}]",
            "push qword ptr [r8 + {flags}]",
            "popfq",
            "call r9",
            "pushfq",
            "pop qword ptr [r8 + {flags}]",
            "mov qword ptr [r8 + {rax}], rax",
            "mov qword ptr [r8 + {rcx}], rcx",
            "mov qword ptr [r8 + {rdx}], rdx",
            "test r11d, r11d",
            "jz 22f",
            "mov eax, r10d",
            "xor edx, edx",
            "xsave64 [r8]",
            "test r10d, 4",
            "jz 23f",
            "vzeroupper",
            "23:",
            "test r10d, 1",
            "jz 24f",
            "fninit",
            "jmp 24f",
            "22:",
            "fxsave64 [r8]",
            "fninit",
            "24:",
            "ldmxcsr dword ptr [r8 + {host_mxcsr}]",
            host_mxcsr = const offset_of!(Frame, host_mxcsr),
            operand = const offset_of!(Frame, operand),
            rax = const offset_of!(Frame, rax),
            rcx = const offset_of!(Frame, rcx),
            rdx = const offset_of!(Frame, rdx),
            flags = const offset_of!(Frame, flags),
            in("r8") frame,
            in("r9") entry,
            in("r10") u64::from(components),
            in("r11") u64::from(use_xsave),
            out("rax") _,
            out("rcx") _,
            out("rdx") _,
            out("rdi") _,
            clobber_abi("sysv64"),
        );
    }
}
