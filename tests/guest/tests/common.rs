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

/// Lines of `dmesg --level=err,warn` that a sound guest has, with `*` for any text.
const HARMLESS: [&str; 0] = [];

/// Fails on every line that is not harmless.
pub fn check_dmesg(text: &str, more: &[&str]) -> anyhow::Result<usize> {
    let lines: Vec<&str> = text
        .lines()
        .map(strip_time)
        .filter(|l| !l.is_empty())
        .collect();
    let unknown: Vec<&str> = lines
        .iter()
        .copied()
        .filter(|line| {
            !HARMLESS
                .iter()
                .chain(more)
                .any(|known| guest_tests::differences::matches(known, line))
        })
        .collect();
    anyhow::ensure!(
        unknown.is_empty(),
        "the guest's kernel complains:\n{}",
        unknown.join("\n")
    );
    Ok(lines.len())
}

/// A kernel message without the time before it.
pub fn strip_time(line: &str) -> &str {
    match line.split_once("] ") {
        Some((time, rest)) if time.starts_with('[') => rest,
        _ => line,
    }
}
