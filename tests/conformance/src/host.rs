//! This process as the processor: the oracle for everything that user mode can do.
//!
//! ```text
//!   CODE   [ the case's code | jmp [exit] ]        DATA [ two pages ]    READ_ONLY [ a page ]
//!   CONTEXT [ registers, XSAVE area, where to come back ]
//!
//!   run ──load all registers──▶ code ──┬──▶ exit: store all registers ──▶ run returns
//!                                      └── signal: registers from its frame ──▶ leave
//! ```
//!
//! The memory is at fixed addresses below 2 GiB, where no program has anything. There is one such
//! host in a process, and one thread at a time uses it.
#![allow(
    unsafe_code,
    reason = "maps memory at fixed addresses, runs arbitrary user-mode code there, handles its signals"
)]

use std::arch::asm;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::case::AREA;
use crate::{
    BEHIND, Backend, CODE, CODE_LEN, Case, DATA, DATA_LEN, Fault, Outcome, READ_ONLY,
    READ_ONLY_LEN, Registers,
};

const CONTEXT: u64 = 0x1200_0000;
const CONTEXT_LEN: usize = 0x1000;
/// In the last bytes of the code: the way out of 32-bit code.
const LANDING: u64 = CODE + CODE_LEN as u64 - 16;

/// Linux's selectors of user code.
const USER_CODE: u16 = 0x33;
const USER_CODE32: u16 = 0x23;

/// What the assembly reads and writes at [`CONTEXT`]. Its offsets are constants in the assembly.
#[repr(C, align(64))]
struct Context {
    /// Offset 0.
    area: [u8; AREA],
    /// Offset 832.
    gpr: [u64; 16],
    /// Offset 960.
    flags: u64,
    /// Offset 968: a far pointer.
    entry: u64,
    /// Offset 976: behind the code.
    exit: u64,
    /// Offset 984: after a signal.
    leave: u64,
    /// Offset 992.
    host_rsp: u64,
    /// Offset 1000.
    host_mxcsr: u32,
    faulted: u32,
    /// Offset 1008.
    components: u64,
    rip: u64,
    vector: u64,
    error: u64,
    address: u64,
}

static ONE: Mutex<()> = Mutex::new(());
/// Code of a case is running; a signal now is the case's.
static RUNNING: AtomicBool = AtomicBool::new(false);

/// The host's own processor.
pub struct Host {
    /// Whether AVX state exists.
    components: u32,
    _one: MutexGuard<'static, ()>,
}

impl Host {
    /// Maps the memory and takes over the signals that instructions raise.
    ///
    /// # Panics
    /// The host lacks XSAVE, or the addresses are taken.
    #[must_use]
    pub fn new() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            std::arch::is_x86_feature_detected!("xsave"),
            "the host has no XSAVE"
        );
        let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
        map(CODE, CODE_LEN, read | write | execute);
        map(DATA, DATA_LEN, read | write);
        map(READ_ONLY, READ_ONLY_LEN, read);
        map(CONTEXT, CONTEXT_LEN, read | write);
        install_handlers();
        Host {
            components: if std::arch::is_x86_feature_detected!("avx") {
                7
            } else {
                3
            },
            _one: one,
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for (address, len) in [
            (CODE, CODE_LEN),
            (DATA, DATA_LEN),
            (READ_ONLY, READ_ONLY_LEN),
            (CONTEXT, CONTEXT_LEN),
        ] {
            // SAFETY: mapped by `new`, and this is the only host.
            unsafe { libc::munmap(address as *mut _, len) };
        }
    }
}

fn map(address: u64, len: usize, protection: i32) {
    // SAFETY: MAP_FIXED_NOREPLACE takes no memory that is in use.
    let got = unsafe {
        libc::mmap(
            address as *mut _,
            len,
            protection,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_FIXED_NOREPLACE
                | libc::MAP_POPULATE,
            -1,
            0,
        )
    };
    assert_eq!(got as u64, address, "{}", std::io::Error::last_os_error());
    // SAFETY: the page just mapped. A read makes sure that it is there, so that a write to a
    // read-only page is a protection violation and not an absent page.
    unsafe { (address as *const u8).read_volatile() };
}

fn install_handlers() {
    const STACK: usize = 256 << 10;
    // SAFETY: a fresh mapping that is never unmapped serves as this thread's signal stack; the
    // handler is async-signal-safe.
    unsafe {
        let stack = libc::mmap(
            ptr::null_mut(),
            STACK,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(stack, libc::MAP_FAILED);
        let alternate = libc::stack_t {
            ss_sp: stack,
            ss_flags: 0,
            ss_size: STACK,
        };
        assert_eq!(libc::sigaltstack(&alternate, ptr::null_mut()), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
        ] {
            assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
        }
    }
}

/// Order of general registers by encoding in a signal frame.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn on_signal(signal: i32, _info: *mut libc::siginfo_t, frame: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext; the context is mapped while a case runs, and nothing
    // else uses it then.
    unsafe {
        let frame = &mut *frame.cast::<libc::ucontext_t>();
        let registers = &mut frame.uc_mcontext;
        if !RUNNING.load(Ordering::Relaxed) {
            // Not a case's: let it kill the process.
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        let context = &mut *(CONTEXT as *mut Context);
        for (to, from) in context.gpr.iter_mut().zip(GREGS) {
            *to = registers.gregs[from as usize] as u64;
        }
        context.rip = registers.gregs[libc::REG_RIP as usize] as u64;
        context.flags = registers.gregs[libc::REG_EFL as usize] as u64;
        context.vector = registers.gregs[libc::REG_TRAPNO as usize] as u64;
        context.error = registers.gregs[libc::REG_ERR as usize] as u64;
        context.address = registers.gregs[libc::REG_CR2 as usize] as u64;
        let area = registers.fpregs.cast::<u8>();
        area.copy_to_nonoverlapping(context.area.as_mut_ptr(), AREA);
        let present = u64::from_le_bytes(context.area[512..520].try_into().unwrap_or_default());
        if present & 4 == 0 {
            context.area[576..].fill(0);
        }
        if present & 2 == 0 {
            context.area[160..416].fill(0);
        }
        context.faulted = 1;
        registers.gregs[libc::REG_RIP as usize] = context.leave as i64;
        // The rest of the way is the host's, in 64-bit code, with its flags.
        let selectors = &mut registers.gregs[libc::REG_CSGSFS as usize];
        *selectors = *selectors & !0xffff | i64::from(USER_CODE);
        registers.gregs[libc::REG_EFL as usize] &= !0x400;
    }
}

impl Backend for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn is_host(&self) -> bool {
        true
    }

    fn run(&mut self, case: &Case) -> Outcome {
        assert!(
            case.code.len() + BEHIND + 16 <= CODE_LEN,
            "the code is too long"
        );
        let end = CODE + case.code.len() as u64;
        // SAFETY: CODE, DATA and CONTEXT are mapped at these lengths and only this host, of which
        // there is one, uses them.
        let context = unsafe {
            let code = CODE as *mut u8;
            code.copy_from_nonoverlapping(case.code.as_ptr(), case.code.len());
            // jmp qword ptr [CONTEXT + 976]
            let exit = (CONTEXT as u32 + 976).to_le_bytes();
            let jump = [0xff, 0x24, 0x25, exit[0], exit[1], exit[2], exit[3]];
            // In 32-bit code: jmp 33h:LANDING, where that stands.
            let landing = (LANDING as u32).to_le_bytes();
            let far = [
                0xea,
                landing[0],
                landing[1],
                landing[2],
                landing[3],
                USER_CODE as u8,
                0,
            ];
            let last = if case.code32 { far } else { jump };
            code.add(case.code.len())
                .copy_from_nonoverlapping(last.as_ptr(), last.len());
            // What jumps beyond the end meets HLT, which is privileged.
            code.add(case.code.len() + last.len())
                .write_bytes(0xf4, BEHIND - last.len());
            (LANDING as *mut u8).copy_from_nonoverlapping(jump.as_ptr(), jump.len());
            (DATA as *mut u8).copy_from_nonoverlapping(case.memory.as_ptr(), DATA_LEN);
            &mut *(CONTEXT as *mut Context)
        };
        context.area = *case.registers.fpu;
        context.area[512..576].fill(0);
        context.area[512] = self.components as u8;
        let mut registers = case.registers.clone();
        if case.code32 {
            registers.narrow();
        }
        context.gpr = registers.gpr;
        context.flags = case.registers.rflags & Registers::FLAGS | 2;
        let selector = if case.code32 { USER_CODE32 } else { USER_CODE };
        context.entry = case.registers.rip | u64::from(selector) << 32;
        context.faulted = 0;
        context.components = self.components.into();
        RUNNING.store(true, Ordering::SeqCst);
        // SAFETY: the code of a case accesses only its own memory, by the generator's and the
        // snippets' care; whatever faults comes back through the handler.
        unsafe { enter() };
        RUNNING.store(false, Ordering::SeqCst);
        let mut registers = Registers {
            gpr: context.gpr,
            rip: if context.faulted != 0 {
                context.rip
            } else {
                end
            },
            rflags: context.flags & Registers::FLAGS,
            fpu: Box::new(context.area),
        };
        registers.normalize();
        if case.code32 {
            registers.narrow();
        }
        let mut memory = Box::new([0; DATA_LEN]);
        // SAFETY: as above.
        unsafe { (DATA as *const u8).copy_to_nonoverlapping(memory.as_mut_ptr(), DATA_LEN) };
        let fault = (context.faulted != 0).then(|| {
            let vector = context.vector as u8;
            let page_fault = vector == 14;
            Fault {
                vector,
                error: if page_fault || vector == 13 {
                    context.error as u32
                } else {
                    0
                },
                address: if page_fault { context.address } else { 0 },
            }
        });
        Outcome {
            registers,
            memory,
            fault,
        }
    }
}

/// Goes to the code of the context, and comes back at its end or after its fault.
///
/// # Safety
/// The context is filled in, and the code does no harm.
unsafe fn enter() {
    const {
        assert!(std::mem::offset_of!(Context, gpr) == 832);
        assert!(std::mem::offset_of!(Context, host_mxcsr) == 1000);
        assert!(std::mem::offset_of!(Context, components) == 1008);
    }
    // SAFETY: RBX and RBP are saved on the stack, RSP in the context; everything else is declared
    // clobbered. x87 is left initial, the upper halves of YMM zero, MXCSR as it was.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "lea rax, [rip + 20f]",
            "mov qword ptr [{context} + 976], rax",
            "lea rax, [rip + 21f]",
            "mov qword ptr [{context} + 984], rax",
            "mov qword ptr [{context} + 992], rsp",
            "stmxcsr dword ptr [{context} + 1000]",
            "mov eax, dword ptr [{context} + 1008]",
            "xor edx, edx",
            "xrstor64 [{context}]",
            // Null selectors have no memory in 32-bit code.
            "mov eax, 0x2b",
            "mov ds, eax",
            "mov es, eax",
            "push qword ptr [{context} + 960]",
            "popfq",
            "mov rax, qword ptr [{context} + 832]",
            "mov rcx, qword ptr [{context} + 840]",
            "mov rdx, qword ptr [{context} + 848]",
            "mov rbx, qword ptr [{context} + 856]",
            "mov rsp, qword ptr [{context} + 864]",
            "mov rbp, qword ptr [{context} + 872]",
            "mov rsi, qword ptr [{context} + 880]",
            "mov rdi, qword ptr [{context} + 888]",
            "mov r8, qword ptr [{context} + 896]",
            "mov r9, qword ptr [{context} + 904]",
            "mov r10, qword ptr [{context} + 912]",
            "mov r11, qword ptr [{context} + 920]",
            "mov r12, qword ptr [{context} + 928]",
            "mov r13, qword ptr [{context} + 936]",
            "mov r14, qword ptr [{context} + 944]",
            "mov r15, qword ptr [{context} + 952]",
            "jmp fword ptr [{context} + 968]",
            "20:",
            "mov qword ptr [{context} + 832], rax",
            "mov qword ptr [{context} + 864], rsp",
            "mov rsp, qword ptr [{context} + 992]",
            "pushfq",
            "pop qword ptr [{context} + 960]",
            "cld",
            "mov qword ptr [{context} + 840], rcx",
            "mov qword ptr [{context} + 848], rdx",
            "mov qword ptr [{context} + 856], rbx",
            "mov qword ptr [{context} + 872], rbp",
            "mov qword ptr [{context} + 880], rsi",
            "mov qword ptr [{context} + 888], rdi",
            "mov qword ptr [{context} + 896], r8",
            "mov qword ptr [{context} + 904], r9",
            "mov qword ptr [{context} + 912], r10",
            "mov qword ptr [{context} + 920], r11",
            "mov qword ptr [{context} + 928], r12",
            "mov qword ptr [{context} + 936], r13",
            "mov qword ptr [{context} + 944], r14",
            "mov qword ptr [{context} + 952], r15",
            "mov eax, dword ptr [{context} + 1008]",
            "xor edx, edx",
            "xsave64 [{context}]",
            "21:",
            "mov rsp, qword ptr [{context} + 992]",
            "fninit",
            "ldmxcsr dword ptr [{context} + 1000]",
            "test dword ptr [{context} + 1008], 4",
            "jz 22f",
            "vzeroupper",
            "22:",
            "pop rbp",
            "pop rbx",
            context = const CONTEXT,
            out("rdi") _,
            out("rax") _,
            out("rcx") _,
            out("rdx") _,
            out("rsi") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            out("r12") _,
            out("r13") _,
            out("r14") _,
            out("r15") _,
            clobber_abi("sysv64"),
        );
    }
}
