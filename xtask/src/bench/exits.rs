//! How often and why the guest's processor leaves the guest: KVM's counters and trace events.
//!
//! Sources: Linux Documentation/virt/kvm (debugfs statistics), Documentation/trace/histogram.rst.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Lines of the form `{ port: 3f8, rw: 1 } hitcount:  123`.
fn parse_histogram(text: &str) -> Vec<(String, u64)> {
    let mut lines: Vec<(String, u64)> = text
        .lines()
        .filter_map(|line| {
            let (key, count) = line.split_once("hitcount:")?;
            let key = key.trim().trim_start_matches('{').trim_end_matches('}');
            let words: Vec<&str> = key.split_whitespace().collect();
            Some((words.join(" "), count.trim().parse().ok()?))
        })
        .collect();
    lines.sort_by_key(|(_, count)| Reverse(*count));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

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
