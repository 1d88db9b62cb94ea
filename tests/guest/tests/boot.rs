//! Kernels in all their shapes, little memory, many processors.

use anyhow::ensure;
use guest_tests::multiboot::Program;
use guest_tests::scenario::{Outcome, Suite};
use guest_tests::{Host, Vm};

use crate::common::{BOOT, QUIET, SOON, number, quoted, tiny_stdio};

pub fn add(suite: &mut Suite) {
    suite.single("boot::vmlinux_by_pvh", || linux("vmlinux", "", "", 1));
    suite.single("boot::bzimage_decompressed_by_guest", || {
        linux("vmlinuz", "decompress = \"guest\"", "", 1)
    });
    suite.single("boot::bzimage_decompressed_by_host", || {
        linux("vmlinuz", "decompress = \"host\"", "", 1)
    });
    suite.single("boot::processors_8", || {
        linux("vmlinux", "", "[cpus]\ncount = 8\n", 8)
    });
    suite.single("boot::topology", topology);
    suite.single("boot::numa", numa);
    suite.single("boot::memory_above_4g", memory_above_4g);
    suite.single("boot::cpu_models", cpu_models);
    suite.single("boot::multiboot_in_64m", multiboot);
}

/// `config` comes after the kernel's section.
fn start(image: &str, kernel: &str, config: &str) -> anyhow::Result<Vm> {
    let host = Host::get()?;
    let path = if image == "vmlinux" {
        &host.vmlinux
    } else {
        &host.vmlinuz
    };
    let mut vm = Vm::start(&format!(
        "[kernel]\nimage = {}\ninitrd = {}\ncmdline = \"{QUIET}\"\n{kernel}\n[[serial]]\nto = \"stdio\"\n{config}",
        quoted(path),
        quoted(host.small_initrd()?),
    ))?;
    vm.wait_shell(BOOT)?;
    Ok(vm)
}

fn end(mut vm: Vm) -> anyhow::Result<()> {
    vm.console.send("echo o > /proc/sysrq-trigger\n")?;
    let status = vm.wait_exit(SOON)?;
    ensure!(status == 0, "status {status}: {}", vm.errors());
    Ok(())
}

fn linux(image: &str, kernel: &str, config: &str, cpus: u64) -> Outcome {
    let memory = if config.is_empty() {
        "[memory]\nsize = \"256M\"\n"
    } else {
        ""
    };
    let mut vm = start(image, kernel, &format!("{config}{memory}"))?;
    let shell = vm.age().as_secs_f64();
    let count = number(&vm.run("nproc")?)?;
    ensure!(count == cpus, "{count} processors");
    // Address space randomisation is the decompressor's work.
    let base = vm.run("grep ' _text$' /proc/kallsyms")?;
    let random = !base.starts_with("ffffffff81000000 ");
    ensure!(
        random == kernel.contains("guest"),
        "the kernel is at {base}"
    );
    end(vm)?;
    Ok(format!("{count} processors, shell after {shell:.1} s"))
}

/// Sockets, cores and threads. An AMD processor has threads only where the host says how they are
/// numbered (TOPOEXT), which the box does not; so this is an Intel one.
fn topology() -> Outcome {
    // The processor that the box emulates has no VME.
    let config =
        "[cpu]\nmodel = \"Nehalem,-vme\"\n[cpus]\ncount = 8\nsockets = 2\ncores = 2\nthreads = 2\n";
    let mut vm = start("vmlinux", "", config)?;
    let text = vm.run(
        "cd /sys/devices/system/cpu; for c in 0 1 2 3 4 5 6 7; do \
         echo $(cat cpu$c/topology/physical_package_id cpu$c/topology/core_id cpu$c/topology/thread_siblings_list); done",
    )?;
    let expected = "0 0 0-1\n0 0 0-1\n0 1 2-3\n0 1 2-3\n1 0 4-5\n1 0 4-5\n1 1 6-7\n1 1 6-7";
    ensure!(text == expected, "package, core, siblings:\n{text}");
    end(vm)?;
    Ok("2 sockets, 2 cores, 2 threads".into())
}

fn numa() -> Outcome {
    let config = "[cpus]\ncount = 2\nsockets = 2\n[memory]\nsize = \"512M\"\nnuma-nodes = 2\n";
    let mut vm = start("vmlinux", "", config)?;
    let text = vm.run("cat /sys/devices/system/node/node*/cpulist; grep -h MemTotal /sys/devices/system/node/node*/meminfo")?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(
        lines.len() == 4 && lines[0] == "0" && lines[1] == "1",
        "{text}"
    );
    end(vm)?;
    Ok(lines[2..].join(", "))
}

fn memory_above_4g() -> Outcome {
    let mut vm = start("vmlinux", "", "[memory]\nsize = \"5G\"\n")?;
    let kib = number(&vm.run("awk '/^MemTotal/ {print $2}' /proc/meminfo")?)?;
    ensure!(kib > 4800 << 10, "{kib} KiB");
    let map = vm.run(
        "dmesg | grep -c 'BIOS-e820.*usable'; grep -c '1[0-9a-f]\\{8\\}-.*System RAM' /proc/iomem",
    )?;
    ensure!(
        map.lines().last() == Some("1"),
        "no memory above 4 GiB: {map}"
    );
    end(vm)?;
    Ok(format!("{kib} KiB"))
}

/// Named models are what the guest sees, with features added and taken away.
fn cpu_models() -> Outcome {
    let mut seen = Vec::new();
    for (model, name) in [
        ("x86-64-v2", "x86-64-v2"),
        ("Nehalem,-sse4.2,+pcid", "Nehalem"),
    ] {
        // KVM in the box gives what TCG has, which is not all of every model.
        let config = format!("[cpu]\nmodel = \"{model}\"\n[memory]\nsize = \"256M\"\n");
        let mut vm = match start("vmlinux", "", &config) {
            Ok(vm) => vm,
            Err(error) if format!("{error:#}").contains("lacks") => {
                seen.push(format!("{model}: the host lacks a feature"));
                continue;
            }
            Err(error) => return Err(error),
        };
        let text = vm.run("grep -m2 -E 'model name|flags' /proc/cpuinfo")?;
        ensure!(text.contains(name), "{model}: {text}");
        ensure!(!text.contains(" avx"), "{model}: {text}");
        if model.contains("-sse4.2") {
            ensure!(!text.contains("sse4_2"), "{model}: {text}");
        }
        end(vm)?;
        seen.push(model.to_owned());
    }
    Ok(seen.join("; "))
}

fn multiboot() -> Outcome {
    let program = Program::new().print("hello from 64 MiB\n").halt();
    let mut vm = tiny_stdio("hello", &program, "")?;
    vm.console.expect("hello from 64 MiB\n", SOON)?;
    Ok(format!("first word after {:.2} s", vm.age().as_secs_f64()))
}
