//! Fuzz targets: everything that a guest, a file or a client of the control socket may say.
//!
//! ```text
//!   libFuzzer ── bytes ──▶ [Script] ── numbers ──▶ one function a target ──▶ the model
//!                                                       └─ asserts what must hold whatever comes
//! ```
//!
//! `cargo xtask fuzz TARGET --minutes N` builds a target with coverage instrumentation on the
//! stable compiler and runs it. A crash that it finds becomes a test of the crate concerned,
//! named after what broke, and a file in `fuzz/seeds`, which the tests here run; `fuzz/corpus` and
//! `fuzz/artifacts` are not kept.
//!
//! A target is deterministic: no clock, no randomness of its own. (`virtio_blk` and
//! `virtio_devices` have a thread, as workers are asynchronous.)

mod chipset;
mod kernel;
mod luks;
mod nbd;
mod pci;
mod qcow2;
mod qmp;
mod queue;
mod script;
mod specs;
mod state;
#[cfg(test)]
mod tests;
mod virtio_blk;
mod virtio_devices;
mod virtio_transport;

pub use chipset::chipset;
pub use kernel::kernel;
pub use luks::luks;
pub use nbd::{nbd_client, nbd_server};
pub use pci::pci_config;
pub use qcow2::qcow2;
pub use qmp::qmp_session;
pub use queue::queue;
pub use script::Script;
pub use specs::specs;
pub use state::state_payload;
pub use virtio_blk::virtio_blk;
pub use virtio_devices::virtio_devices;
pub use virtio_transport::virtio_transport;

/// Both payloads say the same.
fn assert_same(first: &::state::Payload, second: &::state::Payload) {
    if first != second {
        // Only now as text, which takes its time.
        assert_eq!(first.to_text(), second.to_text());
    }
}

/// A guest with `size` bytes of zeros. Guest memory lives as long as the process, so that it is
/// used again.
fn guest(size: usize) -> virtio::testing::Guest {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    thread_local! {
        static MEMORY: RefCell<BTreeMap<usize, memory::GuestRam>> = RefCell::default();
    }
    let memory = MEMORY.with_borrow_mut(|known| {
        let fresh = || memory::small(size).expect("guest memory");
        known.entry(size).or_insert_with(fresh).clone()
    });
    let guest = virtio::testing::Guest::with_memory(memory);
    guest.write(0, &vec![0; size]);
    guest
}
