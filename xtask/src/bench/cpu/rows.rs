//! What is measured, each a row of the table.

/// A row.
#[derive(Debug)]
pub struct Row {
    /// As benches/cpu/job.sh and `--rows` have it.
    pub name: &'static str,
    pub title: &'static str,
    pub unit: Unit,
    pub kind: Kind,
}

/// How a result is shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    /// Time of a piece: less is better.
    Time(f64, &'static str),
    /// Things per second, so many of them in the unit: more is better.
    Rate(f64, &'static str),
    /// Something that is used: less is better.
    Amount(&'static str),
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Self::Time(_, name) | Self::Rate(_, name) | Self::Amount(name) => name,
        }
    }

    /// What is shown of a cost: seconds of a thing, or an amount.
    pub fn show(self, cost: f64) -> f64 {
        match self {
            Self::Time(scale, _) => cost / scale,
            Self::Rate(scale, _) => 1.0 / cost / scale,
            Self::Amount(_) => cost,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of the study's workloads: a part of benches/cpu, on one processor.
    Workload,
    /// A part of benches/cpu that asks the kernel, or a program of the guest.
    Program,
    /// The same on two processors.
    Two,
    /// Disk and network.
    Device,
    /// The machine as a whole: what the monitor's process shows while the job runs.
    Machine,
    /// The same of a Debian guest that boots to its login prompt.
    Login,
}

impl Kind {
    /// Processors of the guest whose job has the row; none if no job has it.
    pub fn cpus(self) -> Option<u32> {
        match self {
            Self::Workload | Self::Program | Self::Device => Some(1),
            Self::Two => Some(2),
            Self::Machine | Self::Login => None,
        }
    }
}

const MS: Unit = Unit::Time(1e-3, "ms");
const SECONDS: Unit = Unit::Time(1.0, "s");

const fn row(name: &'static str, title: &'static str, unit: Unit, kind: Kind) -> Row {
    Row {
        name,
        title,
        unit,
        kind,
    }
}

use Kind::{Device, Login, Machine, Program, Two, Workload};
use Unit::{Amount, Rate};

/// From exec to the guest's init.
pub const INIT: &str = "init";
/// Resident memory without the guest's.
pub const MEMORY: &str = "memory";
/// From exec to the login prompt.
pub const LOGIN: &str = "login";
/// What an idle guest uses.
pub const IDLE: &str = "idle";

pub static ROWS: [Row; 40] = [
    row("collatz-crc", "integers: Collatz, CRC", MS, Workload),
    row("sha256", "SHA-256 in Rust", MS, Workload),
    row("quicksort", "quicksort", MS, Workload),
    row("chase-32k", "pointer chase, 32 KiB", MS, Workload),
    row("chase-16m", "pointer chase, 16 MiB", MS, Workload),
    row("copy-1", "copy loop, 1 byte", MS, Workload),
    row("copy-8", "copy loop, 8 bytes", MS, Workload),
    row("matmul", "matrix product, double", MS, Workload),
    row("parse", "text parser", MS, Workload),
    row("fib", "calls: Fibonacci", MS, Workload),
    row("bytecode", "byte code interpreter", MS, Workload),
    row(
        "records",
        "records and strings (as Dhrystone)",
        MS,
        Workload,
    ),
    row(
        "embedded",
        "list, matrix, states (as CoreMark)",
        MS,
        Workload,
    ),
    row("nbody", "n bodies, double", MS, Workload),
    row("sse2", "vector loop, SSE2", MS, Workload),
    row("avx2", "vector loop, AVX2", MS, Workload),
    row(
        "openssl-sha256",
        "openssl sha256",
        Rate(1e6, "MB/s"),
        Program,
    ),
    row(
        "openssl-aes-128-gcm",
        "openssl aes-128-gcm",
        Rate(1e6, "MB/s"),
        Program,
    ),
    row(
        "openssl-aes-256-cbc",
        "openssl aes-256-cbc",
        Rate(1e6, "MB/s"),
        Program,
    ),
    row("gcc", "gcc -O2 -c of 1,000 lines", SECONDS, Program),
    row("python", "python3 loop", Rate(1e6, "Mloop/s"), Program),
    row(
        "memcpy",
        "memcpy of 1 MiB",
        Rate((1_u64 << 30) as f64, "GiB/s"),
        Program,
    ),
    row("getppid", "getppid", Rate(1e6, "Mcall/s"), Program),
    row(
        "pipe",
        "pipe, two processes",
        Rate(1e3, "kswitch/s"),
        Program,
    ),
    row(
        "fork-exec",
        "fork and exec",
        Rate(1.0, "process/s"),
        Program,
    ),
    row(
        "faults",
        "page faults of 4 KiB",
        Rate(1e3, "kfault/s"),
        Program,
    ),
    row(
        "two-loops",
        "2 CPUs: integer loops",
        Rate(1e6, "Mloop/s"),
        Two,
    ),
    row(
        "two-atomic",
        "2 CPUs: contended atomic",
        Rate(1e6, "Mop/s"),
        Two,
    ),
    row(
        "two-pipe",
        "2 CPUs: pipe between them",
        Rate(1e3, "kswitch/s"),
        Two,
    ),
    row(
        "two-futex",
        "2 CPUs: futex between them",
        Rate(1e3, "kwake/s"),
        Two,
    ),
    row(
        "disk-read",
        "disk: read 4 KiB, depth 32",
        Rate(1e3, "kIOPS"),
        Device,
    ),
    row(
        "disk-write",
        "disk: write 4 KiB, depth 32",
        Rate(1e3, "kIOPS"),
        Device,
    ),
    row(
        "net-send",
        "network: guest to host",
        Rate(1e6, "Mbit/s"),
        Device,
    ),
    row(
        "net-receive",
        "network: host to guest",
        Rate(1e6, "Mbit/s"),
        Device,
    ),
    row(INIT, "exec to init", SECONDS, Machine),
    row(
        MEMORY,
        "resident beside the guest's",
        Amount("MiB"),
        Machine,
    ),
    row(LOGIN, "exec to the login prompt", SECONDS, Login),
    row(
        "login-cpu",
        "processor time to the prompt",
        Amount("s"),
        Login,
    ),
    row(
        "login-memory",
        "resident there beside the guest's",
        Amount("MiB"),
        Login,
    ),
    row(IDLE, "idle at the prompt", Amount("% of a CPU"), Login),
];

/// The row of a name.
pub fn find(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::project;

    #[test]
    fn costs_become_times_and_rates() {
        assert_eq!(find("fib").unwrap().unit.show(0.25), 250.0);
        assert_eq!(find("getppid").unwrap().unit.show(1e-6), 1.0);
        assert_eq!(find(IDLE).unwrap().unit.show(0.7), 0.7);
    }

    #[test]
    fn every_piece_of_work_is_a_row() {
        let path = project::root().join("benches/cpu/main.rs");
        let source = fs::read_to_string(path).unwrap();
        let table = source.split_once("const ALL").unwrap().1;
        let table = table.split_once("];").unwrap().0;
        let works: BTreeSet<&str> = table.split('"').skip(1).step_by(2).collect();
        assert!(works.len() > 20);
        for work in works {
            assert!(find(work).is_some(), "{work}");
        }
    }
}
