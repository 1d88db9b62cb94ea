//! The KVM accelerator: the only crate that names kvm-ioctls.
//!
//! ```text
//!   [Kvm]      /dev/kvm: capabilities, self-test
//!     └ vm     slots of guest memory, split interrupt chip, MSI routes by irqfd,
//!       │      doorbells by ioeventfd, kvmclock
//!       └ vcpu KVM_RUN, state in and out (convert), kicked by a signal (kick)
//! ```
//!
//! The interrupt chip is split (KVM_CAP_SPLIT_IRQCHIP): local APICs in the kernel, I/O APIC, PIC
//! and PIT outside. Message-signalled interrupts go through irqfds on GSIs above the I/O APIC's
//! pins; a pin's own GSI carries a route only while it is level-triggered, since KVM needs that
//! to know which vectors' ends to report.
//!
//! A /dev/kvm that opens proves nothing: some hosts offer one that runs only guests of its own
//! kind. [`Kvm::open`] therefore runs a short 64-bit program in a throw-away machine first.

mod convert;
mod kick;
mod kvm;
mod routes;
mod selftest;
mod vcpu;
mod vm;

pub use kvm::Kvm;
