use super::*;

#[test]
fn reset_is_the_manuals_table() {
    let state = CpuState::reset();
    assert_eq!(state.regs.rip, 0xfff0);
    assert_eq!(state.regs.rflags, 2);
    assert_eq!(state.sregs.cr0, 0x6000_0010);
    assert_eq!(state.sregs.cs.selector, 0xf000);
    assert_eq!(state.sregs.cs.base, 0xffff_0000);
    assert_eq!(state.sregs.cs.limit, 0xffff);
    assert_eq!(state.sregs.apic_base, 0xfee0_0900);
    assert_eq!(state.debug.dr6, 0xffff_0ff0);
    assert_eq!(state.debug.dr7, 0x400);
    assert_eq!(state.msr(msr::PAT), 0x0007_0406_0007_0406);
    assert_eq!(state.xsave.len(), 576);
    assert_eq!(state.xsave[24..28], 0x1f80_u32.to_le_bytes());
    assert_eq!(CpuState::default(), state);
}

#[test]
fn application_processors_wait_for_their_start() {
    let state = CpuState::reset_with(0x306c4, false);
    assert_eq!(state.regs.rdx, 0x306c4);
    assert_eq!(state.mp_state, MpState::Uninitialized);
    assert_eq!(state.sregs.apic_base, 0xfee0_0800);
    assert_eq!(
        CpuState::reset_with(0x306c4, true).mp_state,
        MpState::Runnable
    );
}

#[test]
fn init_keeps_what_the_manual_says() {
    let mut state = CpuState::reset_with(1, false);
    state.sregs.cr0 = cr0::PE | cr0::PG | cr0::CD;
    state.sregs.cr3 = 0x1000;
    state.sregs.efer = 0x500;
    state.sregs.apic_base |= msr::apic_base::EXTD;
    state.msrs.insert(msr::LSTAR, 42);
    state.xcrs.insert(0, 7);
    state.xsave[100] = 9;
    state.regs.rax = 5;
    state.debug.dr7 = 0x455;
    state.events.nmi.pending = true;
    state.mp_state = MpState::Halted;
    state.init(0x306c4);
    assert_eq!(state.sregs.cr0, cr0::ET | cr0::CD);
    assert_eq!((state.sregs.cr3, state.sregs.efer), (0, 0));
    assert_eq!(
        state.sregs.apic_base,
        msr::apic_base::RESET | msr::apic_base::EXTD
    );
    assert_eq!(state.msr(msr::LSTAR), 42);
    assert_eq!(state.xcrs[&0], 7);
    assert_eq!(state.xsave[100], 9);
    assert_eq!((state.regs.rax, state.regs.rdx), (0, 0x306c4));
    assert_eq!(state.debug, DebugRegs::default());
    assert!(!state.events.nmi.pending);
    assert_eq!(state.mp_state, MpState::InitReceived);

    state.sipi(0x9a);
    assert_eq!(state.sregs.cs.selector, 0x9a00);
    assert_eq!(state.sregs.cs.base, 0x9a000);
    assert_eq!(state.regs.rip, 0);
    assert_eq!(state.mp_state, MpState::Runnable);
}

#[test]
fn init_of_the_bootstrap_processor_runs_the_firmware_again() {
    let mut state = CpuState::reset();
    state.regs.rip = 0x1234;
    state.init(0);
    assert_eq!(state.mp_state, MpState::Runnable);
    assert_eq!(state.regs.rip, 0xfff0);
    assert_eq!(state.sregs.cs.base, 0xffff_0000);
}

fn busy_state() -> CpuState {
    let mut state = CpuState::reset_with(0x00a0_0f11, false);
    state.regs.r15 = u64::MAX;
    state.sregs.cs = Segment::code64(0x10);
    state.sregs.pdptrs = Some([1, 2, 3, 4]);
    state.msrs.insert(msr::KVM_STEAL_TIME, 0x1001);
    state.msrs.insert(msr::LSTAR, u64::MAX - 5);
    state.lapic = Some(LapicState::reset(3));
    state.events.exception = ExceptionState {
        injected: true,
        pending: false,
        nr: 14,
        has_error_code: true,
        error_code: 6,
        payload: Some(0xdead_beef),
    };
    state.mp_state = MpState::SipiReceived;
    state.tsc_khz = Some(2_600_000);
    state
}

#[test]
fn cbor_brings_the_state_back() {
    let state = busy_state();
    let mut bytes = Vec::new();
    ciborium::into_writer(&state, &mut bytes).unwrap();
    let back: CpuState = ciborium::from_reader(bytes.as_slice()).unwrap();
    assert_eq!(back, state);
    // The two areas are byte strings, not lists of numbers.
    assert!(bytes.len() < 4096, "{} bytes", bytes.len());
}

#[test]
fn json_brings_the_state_back() {
    let state = busy_state();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<CpuState>(&text).unwrap(), state);
}

#[test]
fn an_unknown_field_is_refused() {
    let mut value = serde_json::to_value(busy_state()).unwrap();
    value["regs"]["r16"] = 1.into();
    let error = serde_json::from_value::<CpuState>(value).unwrap_err();
    assert!(error.to_string().contains("r16"), "{error}");
}

#[test]
fn a_local_apic_of_the_wrong_size_is_refused() {
    let mut value = serde_json::to_value(busy_state()).unwrap();
    value["lapic"] = vec![0; 1023].into();
    let error = serde_json::from_value::<CpuState>(value).unwrap_err();
    assert!(error.to_string().contains("1023"), "{error}");
}

#[test]
fn local_apic_after_reset() {
    let mut lapic = LapicState::reset(0x12);
    assert_eq!(lapic.get(LapicState::ID), 0x1200_0000);
    assert_eq!(lapic.get(LapicState::SVR), 0xff);
    assert_eq!(lapic.get(LapicState::LVT_LINT0), LapicState::LVT_MASKED);
    lapic.set(LapicState::TPR, 0x20);
    assert_eq!(lapic.as_bytes()[0x80], 0x20);
    // Beyond the page there is nothing, and nobody is hurt.
    lapic.set(LapicState::LEN - 2, 1);
    assert_eq!(lapic.get(LapicState::LEN - 2), 0);
    assert_eq!(lapic.get(usize::MAX), 0);
}

#[test]
fn descriptors_of_the_boot_protocols() {
    // What Linux's boot protocol expects at __BOOT_CS and __BOOT_DS.
    assert_eq!(
        Segment::code32_flat(0x10).descriptor(),
        0x00cf_9b00_0000_ffff
    );
    assert_eq!(Segment::data(0x18).descriptor(), 0x00cf_9300_0000_ffff);
    assert_eq!(Segment::code64(0x10).descriptor(), 0x00af_9b00_0000_ffff);
    assert_eq!(
        Segment::tss(0x20, 0x1234_5678, 0x67).descriptor(),
        0x1200_8b34_5678_0067
    );
}

#[test]
fn a_null_descriptor_is_unusable() {
    let null = Segment::from_descriptor(0, 0);
    assert_eq!(null, Segment::null());
}

#[test]
fn msrs_in_other_registers_are_found_there() {
    let mut state = CpuState::reset();
    state.sregs.efer = 0x501;
    state.sregs.fs.base = 7;
    state.sregs.gs.base = 8;
    assert_eq!(state.msr(msr::EFER), 0x501);
    assert_eq!(state.msr(msr::FS_BASE), 7);
    assert_eq!(state.msr(msr::GS_BASE), 8);
    assert_eq!(state.msr(msr::APIC_BASE), 0xfee0_0900);
    // Never written: its reset value.
    assert_eq!(state.msr(msr::KVM_POLL_CONTROL), 1);
}

#[test]
fn saved_msrs_are_listed_once_and_in_an_order_that_can_be_restored() {
    let all: Vec<u32> = msr::SAVED
        .iter()
        .chain(msr::SAVED_PMU)
        .copied()
        .chain(msr::machine_check_banks(u32::MAX))
        .collect();
    let mut sorted = all.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), all.len());
    let at = |index| msr::SAVED.iter().position(|&i| i == index).unwrap();
    assert!(at(msr::TSC_ADJUST) < at(msr::TSC));
    assert!(at(msr::TSC) < at(msr::TSC_DEADLINE));
    assert!(at(msr::KVM_ASYNC_PF_INT) < at(msr::KVM_ASYNC_PF_EN));
    for moved in [msr::EFER, msr::APIC_BASE, msr::FS_BASE, msr::GS_BASE] {
        assert!(!msr::SAVED.contains(&moved));
    }
}

proptest::proptest! {
    #[test]
    fn any_descriptor_survives_being_loaded(raw: u64) {
        // A register that holds no segment has no descriptor to go back to.
        let raw = raw | 1 << 47;
        let segment = Segment::from_descriptor(8, raw);
        proptest::prop_assert_eq!(segment.descriptor(), raw);
    }
}
