//! Between KVM's structures and the neutral processor state.
#![allow(
    unsafe_code,
    reason = "KVM_GET/SET_XSAVE2 and KVM_INTERRUPT have no safe wrapper"
)]

use std::collections::BTreeMap;
use std::io;

use accel::AccelError;
use kvm_bindings as kb;
use kvm_bindings::{CpuId, Msrs, Xsave, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use x86::cpuid::Cpuid;
use x86::msr;
use x86::{
    CpuState, DebugRegs, DescriptorTable, ExceptionState, InterruptState, LapicState, MpState,
    NmiState, PendingEvents, Regs, Segment, SmiState, Sregs,
};

use crate::kvm::host;

ioctl_iow_nr!(KVM_INTERRUPT, kb::KVMIO, 0x86, kb::kvm_interrupt);

/// MSRs that KVM takes in one call (its own limit is 256 as well).
const MSRS_A_CALL: usize = 256;

pub(crate) fn cpuid(cpuid: &Cpuid) -> Result<CpuId, AccelError> {
    let entries: Vec<kvm_cpuid_entry2> = cpuid
        .iter()
        .map(|e| kvm_cpuid_entry2 {
            function: e.leaf,
            index: e.subleaf,
            flags: if e.index_significant {
                kb::KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            },
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|_| {
        AccelError::State(format!(
            "{} CPUID leaves are more than KVM takes",
            entries.len()
        ))
    })
}

pub(crate) fn inject_interrupt(fd: &VcpuFd, vector: u8) -> Result<(), AccelError> {
    let interrupt = kb::kvm_interrupt {
        irq: u32::from(vector),
    };
    // SAFETY: the descriptor is a virtual processor's and the argument is what the call takes.
    match unsafe { ioctl_with_ref(fd, KVM_INTERRUPT(), &interrupt) } {
        0 => Ok(()),
        _ => Err(AccelError::Host {
            what: format!("inject external interrupt {vector:#x}"),
            source: io::Error::last_os_error(),
        }),
    }
}

pub(crate) fn read_state(fd: &VcpuFd, xsave_size: usize) -> Result<CpuState, AccelError> {
    let regs = fd.get_regs().map_err(host("read the general registers"))?;
    let sregs = fd
        .get_sregs()
        .map_err(host("read the segment and control registers"))?;
    let debug = fd
        .get_debug_regs()
        .map_err(host("read the debug registers"))?;
    let xcrs = fd
        .get_xcrs()
        .map_err(host("read the extended control registers"))?;
    let lapic = fd.get_lapic().map_err(host("read the local APIC"))?;
    let events = fd
        .get_vcpu_events()
        .map_err(host("read the pending events"))?;
    let mp_state = fd
        .get_mp_state()
        .map_err(host("read the multiprocessor state"))?;
    let mut xsave = new_xsave(xsave_size)?;
    // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 asks for.
    unsafe { fd.get_xsave2(&mut xsave) }.map_err(host("read the extended state"))?;
    let mut bytes: Vec<u8> = xsave
        .as_fam_struct_ref()
        .xsave
        .region
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    bytes.extend(xsave.as_slice().iter().flat_map(|word| word.to_le_bytes()));
    let mut page = [0u8; LapicState::LEN];
    for (byte, reg) in page.iter_mut().zip(lapic.regs.iter()) {
        *byte = *reg as u8;
    }
    Ok(CpuState {
        regs: from_regs(&regs),
        sregs: from_sregs(&sregs),
        debug: DebugRegs {
            db: debug.db,
            dr6: debug.dr6,
            dr7: debug.dr7,
        },
        xsave: bytes,
        xcrs: xcrs
            .xcrs
            .iter()
            .take(xcrs.nr_xcrs as usize)
            .map(|x| (x.xcr, x.value))
            .collect(),
        msrs: read_msrs(fd)?,
        lapic: Some(LapicState::from_bytes(page)),
        events: from_events(&events),
        mp_state: from_mp_state(mp_state.mp_state)?,
        tsc_khz: fd.get_tsc_khz().ok().filter(|khz| *khz != 0),
    })
}

/// Sets everything, in the order that KVM needs: the APIC base (in sregs) before the local APIC,
/// the local APIC and the TSC before TSC_DEADLINE.
pub(crate) fn write_state(
    fd: &VcpuFd,
    state: &CpuState,
    xsave_size: usize,
) -> Result<(), AccelError> {
    if let Some(khz) = state.tsc_khz
        && fd.get_tsc_khz().is_ok_and(|now| now != khz)
    {
        fd.set_tsc_khz(khz)
            .map_err(host(format!("set the time stamp counter to {khz} kHz")))?;
    }
    let mp_state = kb::kvm_mp_state {
        mp_state: to_mp_state(state.mp_state),
    };
    fd.set_mp_state(mp_state)
        .map_err(host("set the multiprocessor state"))?;
    fd.set_regs(&to_regs(&state.regs))
        .map_err(host("set the general registers"))?;
    fd.set_sregs(&to_sregs(state))
        .map_err(host("set the segment and control registers"))?;
    let mut xcrs = kb::kvm_xcrs::default();
    for (slot, (xcr, value)) in xcrs.xcrs.iter_mut().zip(&state.xcrs) {
        *slot = kb::kvm_xcr {
            xcr: *xcr,
            reserved: 0,
            value: *value,
        };
        xcrs.nr_xcrs += 1;
    }
    if xcrs.nr_xcrs != 0 && fd.set_xcrs(&xcrs).is_err() && state.xcrs.values().any(|v| *v != 1) {
        return Err(AccelError::State(
            "the host does not take the extended control registers".into(),
        ));
    }
    write_xsave(fd, &state.xsave, xsave_size)?;
    if let Some(lapic) = &state.lapic {
        let mut regs = kb::kvm_lapic_state::default();
        for (reg, byte) in regs.regs.iter_mut().zip(lapic.as_bytes()) {
            *reg = *byte as _;
        }
        fd.set_lapic(&regs).map_err(host("set the local APIC"))?;
    }
    write_msrs(fd, &state.msrs)?;
    let debug = kb::kvm_debugregs {
        db: state.debug.db,
        dr6: state.debug.dr6,
        dr7: state.debug.dr7,
        ..Default::default()
    };
    fd.set_debug_regs(&debug)
        .map_err(host("set the debug registers"))?;
    fd.set_vcpu_events(&to_events(&state.events))
        .map_err(host("set the pending events"))
}

fn new_xsave(size: usize) -> Result<Xsave, AccelError> {
    let more = size
        .saturating_sub(size_of::<kb::kvm_xsave>())
        .div_ceil(size_of::<u32>());
    Xsave::new(more)
        .map_err(|_| AccelError::State(format!("an extended state of {size} bytes is too large")))
}

fn write_xsave(fd: &VcpuFd, bytes: &[u8], size: usize) -> Result<(), AccelError> {
    let mut xsave = new_xsave(size)?;
    let mut words = bytes.chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u32::from_le_bytes(word)
    });
    // SAFETY: only the words are written, never the length.
    let fixed = unsafe { &mut xsave.as_mut_fam_struct().xsave.region };
    for slot in fixed.iter_mut() {
        *slot = words.next().unwrap_or(0);
    }
    for slot in xsave.as_mut_slice() {
        *slot = words.next().unwrap_or(0);
    }
    if words.any(|word| word != 0) {
        return Err(AccelError::State(format!(
            "the extended state needs more than this host's {size} bytes"
        )));
    }
    // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 asks for.
    unsafe { fd.set_xsave2(&xsave) }.map_err(host("set the extended state"))
}

/// Reads the MSRs that matter; those that this host's KVM does not have are left out.
fn read_msrs(fd: &VcpuFd) -> Result<BTreeMap<u32, u64>, AccelError> {
    let mut wanted: Vec<u32> = msr::SAVED.to_vec();
    let mut found = BTreeMap::new();
    while !wanted.is_empty() {
        let batch: Vec<kvm_msr_entry> = wanted
            .iter()
            .take(MSRS_A_CALL)
            .map(|index| kvm_msr_entry {
                index: *index,
                ..Default::default()
            })
            .collect();
        let mut msrs =
            Msrs::from_entries(&batch).map_err(|e| AccelError::State(format!("{e:?}")))?;
        let done = fd
            .get_msrs(&mut msrs)
            .map_err(host("read the model-specific registers"))?;
        found.extend(
            msrs.as_slice()
                .iter()
                .take(done)
                .map(|entry| (entry.index, entry.data)),
        );
        // KVM stops at the first one that it does not know: that one is skipped.
        let skipped = usize::from(done < batch.len());
        wanted.drain(..done + skipped);
    }
    Ok(found)
}

fn write_msrs(fd: &VcpuFd, msrs: &BTreeMap<u32, u64>) -> Result<(), AccelError> {
    let mut entries: Vec<kvm_msr_entry> = msr::SAVED
        .iter()
        .filter(|index| !msrs.contains_key(index))
        .map(|index| (*index, msr::reset_value(*index)))
        .chain(msrs.iter().map(|(index, value)| (*index, *value)))
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    entries.sort_by_key(|entry| (entry.index == msr::TSC_DEADLINE, entry.index));
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(MSRS_A_CALL)];
        let list = Msrs::from_entries(batch).map_err(|e| AccelError::State(format!("{e:?}")))?;
        let done = fd
            .set_msrs(&list)
            .map_err(host("set the model-specific registers"))?;
        // KVM stops at the first one that it refuses, which does no harm where a register that
        // is not there was to have its reset value.
        let skipped = match batch.get(done) {
            Some(entry) if entry.data != msr::reset_value(entry.index) => {
                return Err(AccelError::State(format!(
                    "KVM does not take {:#x} in model-specific register {:#x}",
                    entry.data, entry.index
                )));
            }
            Some(_) => 1,
            None => 0,
        };
        rest = &rest[done + skipped..];
    }
    Ok(())
}

macro_rules! general_registers {
    ($from:expr, $to:ident) => {
        $to {
            rax: $from.rax,
            rbx: $from.rbx,
            rcx: $from.rcx,
            rdx: $from.rdx,
            rsi: $from.rsi,
            rdi: $from.rdi,
            rsp: $from.rsp,
            rbp: $from.rbp,
            r8: $from.r8,
            r9: $from.r9,
            r10: $from.r10,
            r11: $from.r11,
            r12: $from.r12,
            r13: $from.r13,
            r14: $from.r14,
            r15: $from.r15,
            rip: $from.rip,
            rflags: $from.rflags,
        }
    };
}

fn from_regs(regs: &kb::kvm_regs) -> Regs {
    general_registers!(regs, Regs)
}

fn to_regs(regs: &Regs) -> kb::kvm_regs {
    use kb::kvm_regs;
    general_registers!(regs, kvm_regs)
}

fn from_segment(s: &kb::kvm_segment) -> Segment {
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.type_,
        present: s.present != 0,
        dpl: s.dpl,
        db: s.db != 0,
        s: s.s != 0,
        l: s.l != 0,
        g: s.g != 0,
        avl: s.avl != 0,
        unusable: s.unusable != 0,
    }
}

fn to_segment(s: &Segment) -> kb::kvm_segment {
    kb::kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.type_,
        present: s.present.into(),
        dpl: s.dpl,
        db: s.db.into(),
        s: s.s.into(),
        l: s.l.into(),
        g: s.g.into(),
        avl: s.avl.into(),
        unusable: s.unusable.into(),
        padding: 0,
    }
}

fn from_sregs(s: &kb::kvm_sregs) -> Sregs {
    let table = |t: &kb::kvm_dtable| DescriptorTable {
        base: t.base,
        limit: t.limit,
    };
    Sregs {
        cs: from_segment(&s.cs),
        ds: from_segment(&s.ds),
        es: from_segment(&s.es),
        fs: from_segment(&s.fs),
        gs: from_segment(&s.gs),
        ss: from_segment(&s.ss),
        tr: from_segment(&s.tr),
        ldt: from_segment(&s.ldt),
        gdt: table(&s.gdt),
        idt: table(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        pdptrs: None,
    }
}

fn to_sregs(state: &CpuState) -> kb::kvm_sregs {
    let s = &state.sregs;
    let table = |t: &DescriptorTable| kb::kvm_dtable {
        base: t.base,
        limit: t.limit,
        padding: [0; 3],
    };
    kb::kvm_sregs {
        cs: to_segment(&s.cs),
        ds: to_segment(&s.ds),
        es: to_segment(&s.es),
        fs: to_segment(&s.fs),
        gs: to_segment(&s.gs),
        ss: to_segment(&s.ss),
        tr: to_segment(&s.tr),
        ldt: to_segment(&s.ldt),
        gdt: table(&s.gdt),
        idt: table(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        // The interrupt being delivered is set with the events.
        interrupt_bitmap: [0; 4],
    }
}

fn from_events(e: &kb::kvm_vcpu_events) -> PendingEvents {
    PendingEvents {
        exception: ExceptionState {
            injected: e.exception.injected != 0,
            pending: e.exception.pending != 0,
            nr: e.exception.nr,
            has_error_code: e.exception.has_error_code != 0,
            error_code: e.exception.error_code,
            payload: (e.exception_has_payload != 0).then_some(e.exception_payload),
        },
        interrupt: InterruptState {
            injected: e.interrupt.injected != 0,
            nr: e.interrupt.nr,
            soft: e.interrupt.soft != 0,
            shadow: e.interrupt.shadow,
        },
        nmi: NmiState {
            injected: e.nmi.injected != 0,
            pending: e.nmi.pending != 0,
            masked: e.nmi.masked != 0,
        },
        sipi_vector: e.sipi_vector,
        smi: SmiState {
            smm: e.smi.smm != 0,
            pending: e.smi.pending != 0,
            smm_inside_nmi: e.smi.smm_inside_nmi != 0,
            latched_init: e.smi.latched_init != 0,
        },
        triple_fault_pending: e.triple_fault.pending != 0,
    }
}

fn to_events(e: &PendingEvents) -> kb::kvm_vcpu_events {
    let mut events = kb::kvm_vcpu_events {
        sipi_vector: e.sipi_vector,
        flags: kb::KVM_VCPUEVENT_VALID_NMI_PENDING
            | kb::KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | kb::KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    events.exception.injected = (e.exception.injected || e.exception.pending).into();
    events.exception.nr = e.exception.nr;
    events.exception.has_error_code = e.exception.has_error_code.into();
    events.exception.error_code = e.exception.error_code;
    events.interrupt.injected = e.interrupt.injected.into();
    events.interrupt.nr = e.interrupt.nr;
    events.interrupt.soft = e.interrupt.soft.into();
    events.interrupt.shadow = e.interrupt.shadow;
    events.nmi.injected = e.nmi.injected.into();
    events.nmi.pending = e.nmi.pending.into();
    events.nmi.masked = e.nmi.masked.into();
    if e.smi != SmiState::default() {
        events.flags |= kb::KVM_VCPUEVENT_VALID_SMM;
        events.smi.smm = e.smi.smm.into();
        events.smi.pending = e.smi.pending.into();
        events.smi.smm_inside_nmi = e.smi.smm_inside_nmi.into();
        events.smi.latched_init = e.smi.latched_init.into();
    }
    events
}

fn from_mp_state(state: u32) -> Result<MpState, AccelError> {
    Ok(match state {
        kb::KVM_MP_STATE_RUNNABLE => MpState::Runnable,
        kb::KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        kb::KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
        kb::KVM_MP_STATE_HALTED => MpState::Halted,
        kb::KVM_MP_STATE_SIPI_RECEIVED => MpState::SipiReceived,
        other => {
            return Err(AccelError::State(format!(
                "KVM reports the unknown multiprocessor state {other}"
            )));
        }
    })
}

fn to_mp_state(state: MpState) -> u32 {
    match state {
        MpState::Runnable => kb::KVM_MP_STATE_RUNNABLE,
        MpState::Uninitialized => kb::KVM_MP_STATE_UNINITIALIZED,
        MpState::InitReceived => kb::KVM_MP_STATE_INIT_RECEIVED,
        MpState::Halted => kb::KVM_MP_STATE_HALTED,
        MpState::SipiReceived => kb::KVM_MP_STATE_SIPI_RECEIVED,
    }
}
