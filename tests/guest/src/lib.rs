//! Real guests under `vireo run`, as tests see them: a process, a console to read and type at,
//! a shell behind it, a control socket.
//!
//! ```text
//!   scenario (one boot, several checks)
//!      │
//!      ▼
//!   [Vm] ── vireo run --config vm.toml ── guest
//!    │ console: Console ◀── serial port (stdio, unix socket, pty)
//!    │   └─ [shell]: commands in, output and status out
//!    └ qmp: Qmp ◀── control socket
//! ```
//!
//! | file            | what                                                              |
//! |-----------------|-------------------------------------------------------------------|
//! | `host.rs`       | what is to be had where the tests run: kernels, disks, scratch     |
//! | `console.rs`    | a transcript that tests wait on                                    |
//! | `shell.rs`      | commands in the guest                                              |
//! | `vm.rs`         | `vireo run`, and QEMU for comparisons                              |
//! | `qmp.rs`        | a small QMP client                                                 |
//! | `scenario.rs`   | checks that share a boot, as tests of libtest-mimic                |
//! | `initramfs.rs`  | a small initramfs out of busybox and the guest's modules           |
//! | `multiboot.rs`  | kernels of a few bytes                                             |
//! | `http.rs`       | a web server on the loopback                                       |
//! | `differences.rs`| what may differ between Vireo and QEMU, and why                    |
//!
//! The scenarios are in `tests/`; `cargo xtask guest-tests` runs them in the box, or directly where
//! hardware KVM is usable.

pub mod console;
pub mod differences;
pub mod host;
pub mod http;
pub mod initramfs;
pub mod multiboot;
pub mod qmp;
pub mod scenario;
pub mod shell;
pub mod vm;

pub use console::Console;
pub use host::Host;
pub use qmp::Qmp;
pub use scenario::Scenario;
pub use vm::Vm;
