//! The snippets under KVM: `cargo xtask guest-tests conformance` runs them where there is one.

use std::path::Path;

use accel_kvm::Kvm;
use conformance::accelerated::Accelerated;
use conformance::snippet;

/// Beginnings of the names of snippets that QEMU's emulation gets wrong, which is what executes
/// KVM's guests in the box.
const EMULATION: &[&str] = &[
    "FLDENV sets the tags",
    "FNCLEX forgets",
    "LDMXCSR of a reserved bit",
    "MASKMOVDQU beyond it",
    "MM registers and conversions",
    "MMX and a pending exception",
    "MMX takes the registers by number",
    "MOV cannot be locked",
    "VMASKMOVPS skips absent elements",
    "a call to an address that is not canonical pushes nothing",
    "a full stack",
    "a jump to an address that is not canonical faults at the jump",
    "a return to an address that is not canonical keeps RSP",
    "an add to an absent page leaves the flags",
    "an address that is not canonical, on the stack",
    "an exchange with an absent page",
    "an unmasked division by zero",
    "an unmasked invalid comparison leaves the flags",
    "an unmasked overflow of the stack changes no register",
    "comparison into flags",
    "constants and the stack",
    "precision by the control word",
    "then the next waiting instruction faults",
    "vfmadd213ss",
];

/// Whether the processor under KVM is one that QEMU emulates (leaf 0x40000000 is its name).
fn emulated() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    let words = [*b"TCGT", *b"CGTC", *b"GTCG"].map(u32::from_le_bytes);
    [leaf.ebx, leaf.ecx, leaf.edx] == words
}

#[test]
fn snippets_under_kvm() {
    let kvm = Kvm::open(Path::new("/dev/kvm")).expect("KVM is there");
    let mut failures = snippet::failures(&mut Accelerated::new(&kvm, "KVM"), 1);
    if emulated() {
        failures.retain(|report| !EMULATION.iter().any(|name| report.starts_with(name)));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
