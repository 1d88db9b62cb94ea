//! The snippets under KVM: `cargo xtask guest-tests conformance` runs them where there is one.

use std::path::Path;

use accel_kvm::Kvm;
use conformance::accelerated::Accelerated;
use conformance::snippet;

#[test]
fn snippets_under_kvm() {
    let kvm = Kvm::open(Path::new("/dev/kvm")).expect("KVM is there");
    let failures = snippet::failures(&mut Accelerated::new(&kvm, "KVM"), 1);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
