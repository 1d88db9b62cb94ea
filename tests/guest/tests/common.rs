//! What several scenarios need.

use std::path::Path;
use std::time::Duration;

use guest_tests::multiboot::Program;
use guest_tests::{Host, Vm};

/// For what ought to take seconds; a machine that does ten things at once takes its time.
pub const SOON: Duration = Duration::from_secs(60);
/// For a boot to the small initramfs.
pub const BOOT: Duration = Duration::from_secs(180);
/// For a boot of Debian with systemd.
pub const LOGIN: Duration = Duration::from_secs(420);

/// Kernel command line of the small initramfs.
pub const QUIET: &str = "console=ttyS0 quiet loglevel=1 panic=-1";

/// Text as a TOML string.
pub fn quoted(text: impl AsRef<Path>) -> String {
    toml::Value::String(text.as_ref().display().to_string()).to_string()
}

/// `[kernel]` with Debian's kernel and the small initramfs.
pub fn small_kernel(cmdline: &str) -> anyhow::Result<String> {
    let host = Host::get()?;
    Ok(format!(
        "[kernel]\nimage = {}\ninitrd = {}\ncmdline = \"{QUIET} {cmdline}\"\n",
        quoted(&host.vmlinux),
        quoted(host.small_initrd()?)
    ))
}

/// Debian's file system, read only, behind the small initramfs.
pub fn small_debian() -> anyhow::Result<String> {
    Ok(format!(
        "{}[[serial]]\nto = \"stdio\"\n[[disk]]\nfile = {}\nread-only = true\nserial = \"root\"\n",
        small_kernel("root=/dev/vda")?,
        quoted(&Host::get()?.disk)
    ))
}

/// A machine with 64 MiB that runs `program`, and what else `config` says.
pub fn tiny(name: &str, program: &Program, config: &str) -> anyhow::Result<Vm> {
    let kernel = Host::get()?.file(&format!("{name}.elf"), &program.elf())?;
    Vm::start(&format!(
        "[kernel]\nimage = {}\n[memory]\nsize = \"64M\"\n{config}",
        quoted(kernel)
    ))
}

/// As [`tiny`] with its serial port at our end.
pub fn tiny_stdio(name: &str, program: &Program, config: &str) -> anyhow::Result<Vm> {
    tiny(
        name,
        program,
        &format!("[[serial]]\nto = \"stdio\"\n{config}"),
    )
}

/// The number that `text` is.
pub fn number(text: &str) -> anyhow::Result<u64> {
    text.trim()
        .parse()
        .map_err(|_| anyhow::anyhow!("{text:?} is no number"))
}

/// Lines of `dmesg --level=err,warn` that a sound guest may have, with `*` for any text: a
/// processor that others use too was away for long.
const HARMLESS: [&str; 2] = [
    "clocksource: Long readout interval, skipping watchdog check: *",
    "hrtimer: interrupt took * ns",
];

/// What emulated SVM makes of XSETBV: KVM never sees it, so its CPUID says too small a size, and
/// the guest does without XSAVE. QEMU's guests in the box have the same trace.
const XSAVE_TRACE: &str = "XSAVE consistency problem: ";

/// Fails on every line that is not harmless.
pub fn check_dmesg(text: &str) -> anyhow::Result<usize> {
    let messages = messages(text);
    let unknown: Vec<&str> = messages
        .iter()
        .copied()
        .filter(|line| {
            !HARMLESS
                .iter()
                .any(|known| guest_tests::differences::matches(known, line))
        })
        .collect();
    anyhow::ensure!(
        unknown.is_empty(),
        "the guest's kernel complains:\n{}",
        unknown.join("\n")
    );
    Ok(messages.len())
}

/// The guest's complaints. In the box the trace about XSAVE stays in the guest: it is thousands of
/// bytes, and much output to a serial port is what kills guests there (docs/design/box.md).
pub fn complaints(vm: &mut Vm) -> anyhow::Result<String> {
    let mut command = "dmesg --level=emerg,alert,crit,err,warn".to_owned();
    if Host::get()?.boxed {
        command.push_str(
            r" | awk '/cut here/ { cut = $0; if (getline < 1) exit; if (/XSAVE consistency/) skip = 1; else print cut }
skip && /end trace/ { skip = 0; next }
skip || /CPUID\[0d, / { next }
{ print }'",
        );
    }
    vm.run(&command)
}

/// The lines of dmesg without their times, and in the box without the trace about XSAVE.
pub fn messages(text: &str) -> Vec<&str> {
    let boxed = Host::get().is_ok_and(|host| host.boxed);
    let lines: Vec<&str> = text
        .lines()
        .map(strip_time)
        .filter(|line| !line.is_empty())
        .collect();
    let mut kept = Vec::new();
    let mut in_trace = false;
    for (index, line) in lines.iter().enumerate() {
        let next = lines.get(index + 1).copied().unwrap_or_default();
        let about_xsave = boxed && next.starts_with(XSAVE_TRACE);
        in_trace |= about_xsave && line.contains("[ cut here ]");
        if !(in_trace || boxed && line.starts_with("CPUID[0d, ")) {
            kept.push(*line);
        }
        in_trace &= !line.starts_with("---[ end trace");
    }
    kept
}

/// A kernel message without the time before it.
fn strip_time(line: &str) -> &str {
    match line.split_once("] ") {
        Some((time, rest)) if time.starts_with('[') => rest,
        _ => line,
    }
}
