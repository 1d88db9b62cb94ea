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
