//! Whether this KVM runs ordinary guests: a short program in a throw-away machine.
//!
//! The program is 64-bit code with paging on. It reads a CPUID leaf that the test made up, uses
//! x87, SSE, FXSAVE and CMPXCHG16B in ring 0, goes to ring 3 by IRETQ and comes back by SYSCALL.
//! Each of these has been seen to fail on a /dev/kvm that opens and creates machines without
//! complaint.
#![allow(
    unsafe_code,
    reason = "the probe's machine code is an assembled section of this program"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use accel::{AccelError, Exit, Kick, Vcpu, VcpuSetup, X86Vcpu};
use memory::{Bytes, GuestAddress, GuestAddressSpace};
use x86::cpuid::{Cpuid, CpuidEntry};
use x86::{CpuState, DescriptorTable, Segment, msr};

use crate::kvm::Host;

const MEMORY: u64 = 1 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const GDT: u64 = 0x4000;
const DATA: u64 = 0x6000;
const CODE: u64 = 0x8000;
const STACK: u64 = 0xa000;
const DONE_PORT: u16 = 0xf4;
/// A leaf in nobody's use: what the guest reads there is what KVM was told.
const MARK_LEAF: u32 = 0x4fff_ff00;
const MARK: u32 = 0x5649_5245;
const SSE_RESULT: u64 = 0x1234_5678_9abc_def0;
const LIMIT: Duration = Duration::from_secs(2);

std::arch::global_asm!(
    ".pushsection .rodata.vireo_probe, \"a\"",
    ".globl vireo_probe_start, vireo_probe_syscall, vireo_probe_end",
    "vireo_probe_start:",
    // rsi: data page, r14: user code address, r15: user stack; set by the test.
    "mov eax, 0x4fffff00",
    "xor ecx, ecx",
    "cpuid",
    "mov r8d, eax",
    "fninit",
    "fld1",
    "fwait",
    "fstp st(0)",
    "mov rax, 0x123456789abcdef0",
    "movq xmm0, rax",
    "fxsave64 [rsi]",
    "pxor xmm0, xmm0",
    "fxrstor64 [rsi]",
    "movq r9, xmm0",
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 7",
    "xor ecx, ecx",
    "lock cmpxchg16b [rsi + 1024]",
    "mov r10, [rsi + 1024]",
    "push 0x23",
    "push r15",
    "push 2",
    "push 0x1b",
    "lea rax, [rip + 2f]",
    "push rax",
    "iretq",
    "2:",
    "mov r12, cs",
    "syscall",
    "ud2",
    "vireo_probe_syscall:",
    "mov r13, cs",
    "mov al, 1",
    "out 0xf4, al",
    "hlt",
    "vireo_probe_end:",
    ".popsection",
);

unsafe extern "C" {
    static vireo_probe_start: u8;
    static vireo_probe_syscall: u8;
    static vireo_probe_end: u8;
}

/// The program, and the offset of its system call entry.
fn program() -> (&'static [u8], u64) {
    let (start, syscall, end) = (
        &raw const vireo_probe_start,
        &raw const vireo_probe_syscall,
        &raw const vireo_probe_end,
    );
    let length = end as usize - start as usize;
    // SAFETY: the labels enclose one section of constant bytes.
    let code = unsafe { std::slice::from_raw_parts(start, length) };
    (code, (syscall as usize - start as usize) as u64)
}

/// Runs the program.
///
/// # Errors
/// [`AccelError::Unusable`] with the step that failed.
pub(crate) fn run(kvm: &Host) -> Result<(), AccelError> {
    let begin = Instant::now();
    probe(kvm).map_err(|why| AccelError::Unusable {
        accelerator: "kvm",
        why: format!(
            "it opens, but its self-test failed: {why}; this is often so inside a virtual machine \
             without nested virtualization"
        ),
    })?;
    log::debug!("kvm: self-test passed in {:?}", begin.elapsed());
    Ok(())
}

fn probe(kvm: &Host) -> Result<(), String> {
    let text = |e: &dyn std::error::Error| match e.source() {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    };
    let ram = memory::small(MEMORY as usize).map_err(|e| text(&e))?;
    let state = load(&ram).map_err(|e| format!("cannot load the program: {e}"))?;
    let vm = kvm.create(ram).map_err(|e| text(&e))?;
    let mut cpuid: Cpuid = kvm.capabilities.cpu.cpuid.clone();
    cpuid.set(CpuidEntry::leaf(MARK_LEAF, [MARK, 0, 0, 0]));
    let setup = VcpuSetup {
        index: 0,
        apic_id: 0,
        cpuid,
    };
    let mut vcpu = vm.vcpu(&setup).map_err(|e| text(&e))?;
    vcpu.set_state(&state).map_err(|e| text(&e))?;
    let outcome = with_time_limit(vcpu.kicker(), |expired| run_to_the_end(&mut vcpu, expired));
    outcome?;
    let regs = vcpu.state().map_err(|e| text(&e))?.regs;
    // The kernel takes tens of milliseconds to take a machine apart; nobody waits for it.
    std::thread::spawn(move || drop((vcpu, vm)));
    let checks = [
        ("CPUID does not show what was set", regs.r8, u64::from(MARK)),
        (
            "FXSAVE and FXRSTOR lose an SSE register",
            regs.r9,
            SSE_RESULT,
        ),
        ("CMPXCHG16B does not store", regs.r10, 7),
        ("IRETQ does not reach ring 3", regs.r12, 0x1b),
        ("SYSCALL does not come back to ring 0", regs.r13, 0x08),
    ];
    match checks
        .into_iter()
        .find(|(_, found, expected)| found != expected)
    {
        Some((what, found, expected)) => {
            Err(format!("{what} (found {found:#x}, expected {expected:#x})"))
        }
        None => Ok(()),
    }
}

fn run_to_the_end(vcpu: &mut dyn Vcpu, expired: &AtomicBool) -> Result<(), String> {
    loop {
        match vcpu.run() {
            Ok(Exit::PortWrite {
                port: DONE_PORT, ..
            }) => return Ok(()),
            Ok(Exit::Interrupted) if expired.load(Ordering::SeqCst) => {
                return Err(format!("the probe did not end within {LIMIT:?}"));
            }
            Ok(Exit::Interrupted) => {}
            Ok(Exit::TripleFault) => return Err("the probe ended in a triple fault".into()),
            Ok(Exit::Failed { why }) => return Err(why),
            Ok(other) => return Err(format!("the probe left the guest by {other:?}")),
            Err(e) => return Err(e.to_string()),
        }
    }
}

/// Runs `body`; when it takes too long, the processor is kicked and the flag is set.
fn with_time_limit<T>(kicker: Arc<dyn Kick>, body: impl FnOnce(&AtomicBool) -> T) -> T {
    let expired = AtomicBool::new(false);
    let (done, wait) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let expired = &expired;
        scope.spawn(move || {
            if wait.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                expired.store(true, Ordering::SeqCst);
                kicker.kick();
            }
        });
        let value = body(expired);
        drop(done);
        value
    })
}

/// Puts page tables, descriptors and the program into memory; returns where to begin.
fn load(ram: &memory::GuestRam) -> Result<CpuState, memory::GuestMemoryError> {
    let map = ram.memory();
    let (code, syscall) = program();
    map.write_slice(code, GuestAddress(CODE))?;
    // Present, writable, for user mode too; the last level maps 2 MiB at once.
    map.write_obj(PDPT | 0x7, GuestAddress(PML4))?;
    map.write_obj(PD | 0x7, GuestAddress(PDPT))?;
    map.write_obj(0x87u64, GuestAddress(PD))?;
    let gdt: [u64; 5] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
    ];
    for (i, descriptor) in gdt.iter().enumerate() {
        map.write_obj(*descriptor, GuestAddress(GDT + 8 * i as u64))?;
    }
    let mut state = CpuState::reset();
    state.regs.rip = CODE;
    state.regs.rsp = STACK;
    state.regs.rsi = DATA;
    state.regs.r15 = STACK + 0x1000;
    let s = &mut state.sregs;
    s.cs = Segment::code64(0x08);
    for segment in [&mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss] {
        *segment = Segment::data(0x10);
    }
    s.gdt = DescriptorTable {
        base: GDT,
        limit: 39,
    };
    s.idt = DescriptorTable { base: 0, limit: 0 };
    s.cr0 = 0x8000_0033; // PG, NE, ET, MP, PE
    s.cr3 = PML4;
    s.cr4 = 0x620; // OSXMMEXCPT, OSFXSR, PAE
    s.efer = 0x501; // LMA, LME, SCE
    state.msrs.insert(msr::STAR, 0x0008 << 32);
    state.msrs.insert(msr::LSTAR, CODE + syscall);
    state.msrs.insert(msr::SFMASK, 0x200);
    Ok(state)
}
