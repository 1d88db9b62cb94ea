use proptest::prelude::*;
use x86::cr::xcr0;
use x86::{CpuState, ExceptionState, Segment, msr};

use super::*;
use crate::mmu::tests::Bench;

fn segment() -> impl Strategy<Value = Segment> {
    let numbers = (any::<u64>(), any::<u32>(), any::<u16>(), 0u8..16, 0u8..4);
    (numbers, any::<[bool; 7]>()).prop_map(|((base, limit, selector, type_, dpl), bits)| {
        let [present, db, s, l, g, avl, unusable] = bits;
        Segment {
            base,
            limit,
            selector,
            type_,
            present,
            dpl,
            db,
            s,
            l,
            g,
            avl,
            unusable,
        }
    })
}

fn table() -> impl Strategy<Value = x86::DescriptorTable> {
    (any::<u64>(), any::<u16>()).prop_map(|(base, limit)| x86::DescriptorTable { base, limit })
}

/// What of a state is the core's, at random; the rest as after a reset.
fn states() -> impl Strategy<Value = CpuState> {
    let registers = prop::collection::vec(any::<u64>(), 32);
    let segments = prop::collection::vec(segment(), 8);
    let msrs = prop::collection::vec(1u64.., Msrs::OWNED.len());
    let area = prop::collection::vec(any::<u8>(), XsaveArea::LEN);
    let events = (
        any::<Option<(u8, Option<u32>, u64)>>(),
        0u8..4,
        any::<bool>(),
    );
    (registers, segments, (table(), table()), msrs, area, events).prop_map(
        |(r, s, (gdt, idt), msrs, mut xsave, (exception, shadow, masked))| {
            let mut state = CpuState::reset();
            let regs = &mut state.regs;
            (regs.rax, regs.rbx, regs.rcx, regs.rdx) = (r[0], r[1], r[2], r[3]);
            (regs.rsi, regs.rdi, regs.rsp, regs.rbp) = (r[4], r[5], r[6], r[7]);
            (regs.r8, regs.r9, regs.r10, regs.r11) = (r[8], r[9], r[10], r[11]);
            (regs.r12, regs.r13, regs.r14, regs.r15) = (r[12], r[13], r[14], r[15]);
            (regs.rip, regs.rflags) = (r[16], r[17]);
            let sregs = &mut state.sregs;
            (sregs.cs, sregs.ds, sregs.es, sregs.fs) = (s[0], s[1], s[2], s[3]);
            (sregs.gs, sregs.ss, sregs.tr, sregs.ldt) = (s[4], s[5], s[6], s[7]);
            (sregs.gdt, sregs.idt) = (gdt, idt);
            (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4) = (r[18], r[19], r[20], r[21]);
            sregs.efer = r[22];
            let pae = sregs.cr0 & cr0::PG != 0
                && sregs.cr4 & cr4::PAE != 0
                && sregs.efer & efer::LMA == 0;
            sregs.pdptrs = pae.then_some([r[23], r[24], r[25], r[26]]);
            state.debug.db = [r[27], r[28], r[29], r[30]];
            (state.debug.dr6, state.debug.dr7) = (r[0] ^ r[1], r[2] ^ r[3]);
            state.xcrs.insert(0, r[31]);
            for (&index, value) in Msrs::OWNED.iter().zip(msrs) {
                state.msrs.insert(index, value);
            }
            for foreign in [msr::KVM_POLL_CONTROL, msr::AMD64_TSC_RATIO] {
                state.msrs.insert(foreign, msr::reset_value(foreign));
            }
            xsave[XsaveArea::HEADER..XsaveArea::YMM_HIGH].fill(0);
            xsave[XsaveArea::HEADER] = (xcr0::X87 | xcr0::SSE | xcr0::AVX) as u8;
            // Bits of MXCSR that do not exist.
            xsave[26..28].fill(0);
            state.xsave = xsave;
            state.events.interrupt.shadow = shadow;
            state.events.nmi.masked = masked;
            if let Some((nr, code, payload)) = exception {
                state.events.exception = ExceptionState {
                    injected: false,
                    pending: true,
                    nr,
                    has_error_code: code.is_some(),
                    error_code: code.unwrap_or(0),
                    payload: matches!(nr, Exception::PF | Exception::DB).then_some(payload),
                };
            }
            state
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_core_gives_back_the_state_that_it_was_given(state in states()) {
        let mut b = Bench::new(4096);
        b.cpu.set_state(&state);
        let back = b.cpu.state();
        prop_assert_eq!(&back, &state);
    }

    #[test]
    fn segments_survive_both_ways(segment in segment()) {
        prop_assert_eq!(Segment::from(&Seg::from(&segment)), segment);
    }
}

#[test]
fn a_new_processor_is_the_manuals_after_reset() {
    let b = Bench::new(4096);
    let mut expected = CpuState::reset_with(0x306c4, true);
    expected.xsave.resize(XsaveArea::LEN, 0);
    assert_eq!(b.cpu.state(), expected);
    assert_eq!(b.cpu.mode.bits(), 16);
    assert_eq!(b.cpu.cpl(), 0);
}

#[test]
fn components_that_the_header_calls_initial_are_initial() {
    let mut b = Bench::new(4096);
    let mut state = CpuState::reset();
    state.xsave = vec![0xaa; XsaveArea::LEN];
    state.xsave[XsaveArea::HEADER..XsaveArea::YMM_HIGH].fill(0);
    b.cpu.set_state(&state);
    let area = &b.cpu.fpu.0;
    assert_eq!(area[..4], [0x7f, 0x03, 0, 0]);
    // MXCSR belongs to no component alone; bits that do not exist are not loaded.
    assert_eq!(area[24..28], [0xaa, 0xaa, 0, 0]);
    assert!(area[32..416].iter().all(|&b| b == 0));
    assert!(area[XsaveArea::YMM_HIGH..].iter().all(|&b| b == 0));
    state.xsave[XsaveArea::HEADER] = xcr0::SSE as u8;
    b.cpu.set_state(&state);
    assert_eq!(b.cpu.fpu.0[160..416], [0xaa; 256]);
    assert_eq!(b.cpu.fpu.0[32], 0);
}

#[test]
fn an_exception_whose_delivery_has_begun_goes_on_with_the_same_cr2() {
    let mut b = Bench::new(4096);
    let mut state = CpuState::reset();
    state.sregs.cr2 = 0x1234;
    state.events.exception = ExceptionState {
        injected: true,
        nr: Exception::PF,
        has_error_code: true,
        error_code: 6,
        ..ExceptionState::default()
    };
    b.cpu.set_state(&state);
    assert_eq!(b.cpu.pending, Some(Exception::page_fault(0x1234, 6)));
}

#[test]
fn missing_pdptrs_are_read_from_memory() {
    let mut b = Bench::new(8192);
    b.poke(0x1008, 0x2001);
    let mut state = CpuState::reset();
    state.sregs.cr0 |= cr0::PE | cr0::PG;
    state.sregs.cr3 = 0x1000;
    state.sregs.cr4 = cr4::PAE;
    b.cpu.set_state(&state);
    assert_eq!(b.cpu.pdptrs, [0, 0x2001, 0, 0]);
    assert_eq!(b.cpu.state().sregs.pdptrs, Some(b.cpu.pdptrs));
}

#[test]
fn a_box_has_room_below_for_a_stack() {
    let mut b = Bench::new(4096);
    let at = b.cpu.as_ptr().addr();
    assert_eq!(at % 64, 0);
    assert_eq!(std::mem::offset_of!(Cpu, gpr), 0);
    assert!(size_of::<Cpu>() < 128 << 10);
}
