//! The snippets on the software processor as an accelerator, with its threads' run loop.

use accel_soft::{Options, Soft};
use conformance::accelerated::Accelerated;
use conformance::snippet;

#[test]
fn snippets_under_the_software_accelerator() {
    let soft = Soft::new(Options {
        exact_flags: true,
        ..Options::default()
    });
    let mut backend = Accelerated::new(&soft, "soft");
    backend.exact_jumps = false;
    let failures = snippet::failures(&mut backend, 2);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
