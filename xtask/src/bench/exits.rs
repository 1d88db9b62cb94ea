//! How often and why the guest's processor leaves the guest: KVM's counters and trace events.
//!
//! Sources: Linux Documentation/virt/kvm (debugfs statistics), Documentation/trace/histogram.rst.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context;

const DEBUGFS: &str = "/sys/kernel/debug";
const TRACING: &str = "/sys/kernel/tracing";

/// The counters of a virtual machine by name.
pub type Counters = BTreeMap<String, u64>;

/// Mounts the file systems that the rest of this file reads; they may be there already.
pub fn mount() {
    for (kind, path) in [("debugfs", DEBUGFS), ("tracefs", TRACING)] {
        if !Path::new(path).join("kvm").exists() && !Path::new(path).join("events").exists() {
            // Without them there are no counters, which the tables show.
            let _ = Command::new("mount")
                .args(["-t", kind, kind, path])
                .status();
        }
    }
}

/// The counters of the virtual machines of the process `pid` that are not zero. Empty where there
/// is no debugfs.
pub fn counters(pid: u32) -> Counters {
    let mut counters = Counters::new();
    for folder in folders(pid) {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let value: u64 = match fs::read_to_string(entry.path()).map(|t| t.trim().parse()) {
                Ok(Ok(value)) => value,
                _ => continue,
            };
            if value > 0 {
                *counters.entry(name).or_default() += value;
            }
        }
    }
    counters
}

/// One counter of the process's virtual machines, which takes less time than all.
pub fn counter(pid: u32, name: &str) -> Option<u64> {
    let folders = folders(pid);
    let values = folders
        .iter()
        .filter_map(|folder| fs::read_to_string(folder.join(name)).ok());
    let sum = values
        .filter_map(|text| text.trim().parse::<u64>().ok())
        .sum();
    (!folders.is_empty()).then_some(sum)
}

/// Each virtual machine has a folder PID-FD.
fn folders(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("{pid}-");
    let entries = fs::read_dir(Path::new(DEBUGFS).join("kvm"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

/// The counters that tell what a request costs.
const COSTS: [&str; 6] = [
    "exits",
    "io_exits",
    "mmio_exits",
    "insn_emulation",
    "irq_injections",
    "halt_exits",
];

/// Reads a process's counters from time to time and tells how fast they grow.
pub struct Sampler {
    pid: u32,
    samples: Vec<(Instant, [u64; COSTS.len()])>,
}

impl Sampler {
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            samples: Vec::new(),
        }
    }

    pub fn sample(&mut self) {
        let now = Instant::now();
        let values = COSTS.map(|name| counter(self.pid, name).unwrap_or(0));
        self.samples.push((now, values));
    }

    /// Growth per second of each counter: the median of the times between two samples, so that
    /// the beginning and the end of a job do not matter. Nothing without counters.
    pub fn rates(&self) -> Vec<(&'static str, f64)> {
        let mut rates = Vec::new();
        // A machine that runs leaves the guest now and then.
        if self.samples.last().is_none_or(|(_, values)| values[0] == 0) {
            return rates;
        }
        for (number, name) in COSTS.into_iter().enumerate() {
            let mut steps: Vec<f64> = self
                .samples
                .windows(2)
                .map(|pair| {
                    let grown = pair[1].1[number].saturating_sub(pair[0].1[number]);
                    let seconds = pair[1].0.duration_since(pair[0].0).as_secs_f64();
                    to_f64(grown) / seconds.max(1e-9)
                })
                .collect();
            steps.sort_by(f64::total_cmp);
            if let Some(median) = steps.get(steps.len() / 2) {
                rates.push((name, *median));
            }
        }
        rates
    }
}

/// What is counted by trace events: title, event, key of the histogram.
const HISTOGRAMS: [(&str, &str, &str); 7] = [
    ("exits by reason", "kvm_exit", "exit_reason"),
    ("ports", "kvm_pio", "port.hex,rw"),
    ("MMIO", "kvm_mmio", "gpa.hex,type"),
    ("MSRs", "kvm_msr", "ecx.hex,write"),
    ("CPUID", "kvm_cpuid", "function.hex"),
    (
        "page faults by error code",
        "kvm_page_fault",
        "error_code.hex",
    ),
    (
        "returns to user space by reason",
        "kvm_userspace_exit",
        "reason",
    ),
];

/// A title, and keys with their counts, most frequent first.
pub type Histogram = (String, Vec<(String, u64)>);

/// Histograms of KVM's trace events over all virtual machines, from now until it is read.
pub struct Trace {
    events: Vec<(&'static str, PathBuf, String)>,
}

impl Trace {
    /// Begins to count; events that this kernel does not have are left out.
    pub fn start() -> anyhow::Result<Self> {
        let mut events = Vec::new();
        for (title, event, keys) in HISTOGRAMS {
            let folder = Path::new(TRACING).join("events/kvm").join(event);
            let trigger = format!("hist:keys={keys}:sort=hitcount.descending:size=4096");
            if fs::write(folder.join("trigger"), &trigger).is_ok() {
                events.push((title, folder, trigger));
            }
        }
        anyhow::ensure!(!events.is_empty(), "no trace events in {TRACING}");
        Ok(Self { events })
    }

    /// Ends the counting.
    pub fn finish(self) -> anyhow::Result<Vec<Histogram>> {
        let mut all = Vec::new();
        for (title, folder, trigger) in &self.events {
            let text =
                fs::read_to_string(folder.join("hist")).context("cannot read a histogram")?;
            all.push(((*title).to_owned(), parse_histogram(&text)));
            fs::write(folder.join("trigger"), format!("!{trigger}"))
                .context("cannot end a histogram")?;
        }
        Ok(all)
    }
}

/// Counters are far below the 2^53 that a double can hold.
#[allow(clippy::cast_precision_loss, reason = "counters are below 2^53")]
pub fn to_f64(value: u64) -> f64 {
    value as f64
}

/// What the numbers of a reason stand for, where they are frequent: `#VMEXIT` codes (AMD APM vol. 2
/// appendix C) and KVM_EXIT_* (Linux include/uapi/linux/kvm.h).
fn reason_name(key: &str) -> Option<&'static str> {
    let (field, number) = key.split_once(": ")?;
    let number: u32 = number.parse().ok()?;
    let names: &[(u32, &str)] = match field {
        "exit_reason" => &[
            (0x00, "read of CR0"),
            (0x04, "read of CR4"),
            (0x10, "write of CR0"),
            (0x14, "write of CR4"),
            (0x60, "interrupt"),
            (0x64, "interrupt window"),
            (0x65, "CR0 changes"),
            (0x72, "CPUID"),
            (0x77, "PAUSE"),
            (0x78, "HLT"),
            (0x7b, "port"),
            (0x7c, "MSR"),
            (0x81, "VMMCALL"),
            (0x8d, "XSETBV"),
            (0x400, "nested page fault"),
        ],
        "reason" => &[
            (0, "unknown"),
            (2, "port"),
            (5, "HLT"),
            (6, "MMIO"),
            (7, "interrupt window"),
            (8, "shutdown"),
            (10, "signal"),
            (12, "TPR access"),
            (26, "I/O APIC EOI"),
        ],
        _ => return None,
    };
    let (_, name) = names.iter().find(|(known, _)| *known == number)?;
    Some(name)
}

/// Lines of the form `{ port: 3f8, rw: 1 } hitcount:  123`.
fn parse_histogram(text: &str) -> Vec<(String, u64)> {
    let mut lines: Vec<(String, u64)> = text
        .lines()
        .filter_map(|line| {
            let (key, count) = line.split_once("hitcount:")?;
            let key = key.trim().trim_start_matches('{').trim_end_matches('}');
            let words: Vec<&str> = key.split_whitespace().collect();
            let mut key = words.join(" ");
            if let Some(name) = reason_name(&key) {
                key = format!("{name} ({key})");
            }
            Some((key, count.trim().parse().ok()?))
        })
        .collect();
    lines.sort_by_key(|(_, count)| Reverse(*count));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_reasons_have_names() {
        let text = "{ exit_reason:       1024 } hitcount:         12\n";
        assert_eq!(
            parse_histogram(text)[0].0,
            "nested page fault (exit_reason: 1024)"
        );
    }

    #[test]
    fn rates_are_those_of_most_of_the_time() {
        let begin = Instant::now();
        let at = |seconds: u64, exits| {
            let mut values = [0; COSTS.len()];
            values[0] = exits;
            (begin + std::time::Duration::from_secs(seconds), values)
        };
        let sampler = Sampler {
            pid: 0,
            samples: vec![
                at(0, 5),
                at(1, 6),
                at(2, 106),
                at(3, 206),
                at(4, 306),
                at(5, 306),
            ],
        };
        assert_eq!(sampler.rates()[0], ("exits", 100.0));
        assert!(Sampler::new(0).rates().is_empty());
    }

    #[test]
    fn histograms_are_read_most_frequent_first() {
        let text = "# event histogram\n#\n\n\
            { port:        3f8, rw:          1 } hitcount:         12\n\
            { port:        cf8, rw:          0 } hitcount:        345\n\nTotals:\n    Hits: 357\n";
        assert_eq!(
            parse_histogram(text),
            [
                ("port: cf8, rw: 0".to_owned(), 345),
                ("port: 3f8, rw: 1".to_owned(), 12)
            ]
        );
    }
}
