//! Development tasks: `cargo xtask TASK`.
//!
//! ```text
//! check         the rules of the house
//! fuzz          runs a fuzz target                                   fuzz/
//! interleavings the block layer's locks, one order of threads after the other
//! fuzz-cpu      random instructions on the software processor          tests/conformance/
//! setup         installs the Debian packages of packages.txt
//! guest-image   the Debian guest that tests and benchmarks boot      target/guest/
//! guest-tests   every test that needs a working KVM
//! differential  what a guest sees under Vireo and under QEMU
//! demo          a Debian guest at its login prompt
//! kvm-host      runs a command where there is a working /dev/kvm     target/kvm-host/
//! ```

mod bench;
mod cache;
mod check;
mod demo;
mod fuzz;
mod fuzz_cpu;
mod guest_image;
mod guest_tests;
mod interleavings;
mod kvm_host;
mod project;
mod setup;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Development tasks of Vireo",
    max_term_width = 100
)]
enum Task {
    /// Check the rules of the house: format, clippy, layers, sizes, paths, unsafe code, licences.
    Check(check::Args),
    /// Run a fuzz target with the stable compiler; without a target, list them.
    Fuzz(fuzz::Args),
    /// Try interleavings of threads on the locks of the block layer.
    Interleavings(interleavings::Args),
    /// Run random instructions on the software processor and on the host's.
    FuzzCpu(fuzz_cpu::Args),
    /// Install the Debian packages that building and testing need.
    Setup(setup::Args),
    /// Build the Debian guest that tests and benchmarks boot, and print the path of its disk.
    GuestImage(guest_image::Args),
    /// Run every test that needs a working KVM: in the box, or directly.
    GuestTests(guest_tests::Args),
    /// Compare what a guest sees under Vireo and under QEMU.
    Differential(guest_tests::DifferentialArgs),
    /// Boot a Debian guest to its login prompt, building all that it needs.
    Demo(demo::Args),
    /// Measure Vireo beside its rivals, in turn, where /dev/kvm works.
    Bench(bench::Args),
    /// Run a command where /dev/kvm works: in a virtual machine emulated by QEMU, or directly.
    KvmHost(kvm_host::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Task::parse() {
        Task::Check(args) => check::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Interleavings(args) => interleavings::run(&args),
        Task::FuzzCpu(args) => fuzz_cpu::run(&args),
        Task::Setup(args) => setup::run(&args),
        Task::GuestImage(args) => guest_image::run(&args),
        Task::GuestTests(args) => guest_tests::run(&args),
        Task::Differential(args) => guest_tests::run_differential(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::KvmHost(args) => kvm_host::run(&args),
    }
}
