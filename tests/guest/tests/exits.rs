//! How a machine ends, and what the process tells of it. These guests are a few bytes long.

use std::time::Duration;

use anyhow::{Context, ensure};
use guest_tests::multiboot::Program;
use guest_tests::scenario::{Outcome, Suite};
use guest_tests::{Host, Vm, vm};
use nix::sys::signal::Signal;

use crate::common::{BOOT, SOON, quoted, small_debian, tiny, tiny_stdio};

pub fn add(suite: &mut Suite) {
    suite.single("exits::debug_exit", debug_exit);
    suite.single("exits::debug_exit_elsewhere", debug_exit_elsewhere);
    suite.single("exits::triple_fault", triple_fault);
    suite.single("exits::triple_fault_resets_if_asked", triple_fault_resets);
    suite.single("exits::panic", panic);
    suite.single(
        "exits::sigterm_without_an_answer",
        sigterm_without_an_answer,
    );
    suite.single("exits::two_machines_on_one_disk", two_machines_on_one_disk);
    suite.single("exits::bad_input", bad_input);
}

const DEBUG_EXIT: &str = "[[device]]\ntype = \"isa-debug-exit\"\n";

fn debug_exit() -> Outcome {
    let mut seen = Vec::new();
    for value in [0, 5, 0x7f] {
        let program = Program::new().out(0x501, value).halt();
        let mut vm = tiny("debug-exit", &program, DEBUG_EXIT)?;
        let status = vm.wait_exit(SOON)?;
        let expected = i32::from(value) << 1 | 1;
        ensure!(
            status == expected,
            "{value} gives status {status}: {}",
            vm.errors()
        );
        seen.push(format!(
            "{value} -> {status} in {:.2} s",
            vm.age().as_secs_f64()
        ));
    }
    Ok(seen.join(", "))
}

fn debug_exit_elsewhere() -> Outcome {
    // The habit of those who write kernels: iobase 0xf4, four ports.
    let program = Program::new().out(0x501, 1).out(0xf4, 0x10).halt();
    let config = format!("{DEBUG_EXIT}iobase = 0xf4\niosize = 4\n");
    let mut vm = tiny("debug-exit-f4", &program, &config)?;
    let status = vm.wait_exit(SOON)?;
    ensure!(status == 0x21, "status {status}: {}", vm.errors());
    Ok(format!("port 0xf4: status {status}"))
}

fn triple_fault() -> Outcome {
    let program = Program::new().print("soon").triple_fault();
    let mut vm = tiny_stdio("triple-fault", &program, "")?;
    let status = vm.wait_exit(SOON)?;
    ensure!(status == 4, "status {status}: {}", vm.errors());
    ensure!(
        vm.errors().contains("triple fault"),
        "it says only {:?}",
        vm.errors()
    );
    ensure!(
        vm.console.transcript() == "soon",
        "{:?}",
        vm.console.transcript()
    );
    Ok(format!("status 4: {}", vm.errors().trim()))
}

fn triple_fault_resets() -> Outcome {
    let program = Program::new().print("again\n").triple_fault();
    let mut vm = tiny_stdio(
        "triple-reset",
        &program,
        "[machine]\non-crash = \"reset\"\n",
    )?;
    for _ in 0..3 {
        vm.console.expect("again\n", SOON)?;
    }
    Ok("three lives".into())
}

fn panic() -> Outcome {
    let mut vm = Vm::start(&small_debian()?)?;
    vm.wait_shell(BOOT)?;
    vm.run("modprobe pvpanic-mmio && ls /sys/bus/platform/drivers/pvpanic-mmio/QEMU0001:00/")?;
    let mut qmp = vm.qmp()?;
    vm.console.send("echo c > /proc/sysrq-trigger\n")?;
    let event = qmp.wait_event("GUEST_PANICKED", SOON)?;
    ensure!(event["data"]["action"] == "poweroff", "{event}");
    let status = vm.wait_exit(SOON)?;
    ensure!(status == 3, "status {status}: {}", vm.errors());
    ensure!(
        vm.errors().contains("panicked"),
        "it says only {:?}",
        vm.errors()
    );
    Ok(format!(
        "status 3: {}",
        vm.errors().trim().replace('\n', "; ")
    ))
}

fn sigterm_without_an_answer() -> Outcome {
    let program = Program::new().print("deaf").halt();
    let config = "[machine]\nshutdown-grace = 1\n";
    let mut vm = tiny_stdio("deaf", &program, config)?;
    vm.console.expect("deaf", SOON)?;
    let begin = std::time::Instant::now();
    vm.signal(Signal::SIGTERM)?;
    let status = vm.wait_exit(SOON)?;
    ensure!(status == 143, "status {status}: {}", vm.errors());
    ensure!(
        begin.elapsed() >= Duration::from_millis(900),
        "no grace was given"
    );
    Ok(format!(
        "status 143 after {:.1} s",
        begin.elapsed().as_secs_f64()
    ))
}

fn two_machines_on_one_disk() -> Outcome {
    let host = Host::get()?;
    let disk = host.empty_disk("shared.img", 1 << 20)?;
    let program = Program::new().print("up").halt();
    let config = |read_only: bool| {
        format!(
            "[[disk]]\nfile = {}\nread-only = {read_only}\n",
            quoted(&disk)
        )
    };
    let mut first = tiny_stdio("one-disk-a", &program, &config(false))?;
    first.console.expect("up", SOON)?;
    let mut second = tiny_stdio("one-disk-b", &program, &config(false))?;
    let status = second.wait_exit(SOON)?;
    ensure!(status == 1, "status {status}: {}", second.errors());
    let message = second.errors();
    ensure!(
        message.contains("shared.img") && message.contains("lock"),
        "it says only {message:?}"
    );
    // QEMU's locks are the same, in both directions.
    let qemu_io = std::process::Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 512"])
        .arg(&disk)
        .output()
        .context("cannot run qemu-io")?;
    let text = String::from_utf8_lossy(&qemu_io.stderr).into_owned();
    ensure!(
        !qemu_io.status.success() && text.contains("lock"),
        "qemu-io: {qemu_io:?}"
    );
    drop(first);
    let mut readers = Vec::new();
    for name in ["one-disk-c", "one-disk-d"] {
        let mut vm = tiny_stdio(name, &program, &config(true))?;
        vm.console.expect("up", SOON)?;
        readers.push(vm);
    }
    Ok(message.trim().to_owned())
}

/// What a user gets for what cannot be done: one line, with what and why, and a status.
fn bad_input() -> Outcome {
    let host = Host::get()?;
    let program = Program::new().halt().elf();
    let kernel = quoted(host.file("bad-input.elf", &program)?);
    let no_kernel = quoted(host.file("no-kernel", b"#!/bin/sh\necho this is no kernel\n")?);
    let good = format!("[kernel]\nimage = {kernel}\n");
    // The description, the status, and what the message has to name.
    let cases: [(String, i32, &[&str]); 9] = [
        (
            format!("{good}[[disk]]\nfile = \"/nowhere/a.img\"\n"),
            1,
            &["/nowhere/a.img", "No such file"],
        ),
        (
            format!("{good}[[disk]]\nfile = \"/dev/null\"\n"),
            1,
            &["/dev/null"],
        ),
        (
            format!("{good}[[disk]]\nfile = {kernel}\nserail = \"x\"\n"),
            2,
            &["serail", "serial"],
        ),
        (
            format!("[kernel]\nimage = {no_kernel}\n"),
            1,
            &["no-kernel"],
        ),
        (format!("{good}[memory]\nsize = \"1M\"\n"), 1, &["64 MiB"]),
        (
            format!("{good}[memory]\nsize = \"1000T\"\n"),
            1,
            &["memory"],
        ),
        (
            format!("{good}[cpu]\nmodel = \"Haswel\"\n"),
            1,
            &["Haswel", "Haswell"],
        ),
        (
            format!("{good}[cpu]\nmodel = \"SapphireRapids\"\n"),
            1,
            &["avx512f"],
        ),
        (
            format!("{good}[[net]]\nbackend = \"tap\"\nifname = \"0123456789abcdef\"\n"),
            2,
            &["ifname"],
        ),
    ];
    let mut wrong = Vec::new();
    for (config, expected, words) in &cases {
        let mut vm = Vm::start(config)?;
        let status = vm.wait_exit(SOON)?;
        // The last words come through a pipe.
        vm.console.expect_end(SOON)?;
        std::thread::sleep(Duration::from_millis(50));
        let message = vm.errors();
        let one_line = message.trim_end().lines().count() == 1;
        let named = words.iter().all(|word| message.contains(word));
        if status != *expected || !one_line || !named {
            wrong.push(format!(
                "{config}status {status} (expected {expected}, {words:?}): {message}"
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let missing = vm::code(
        std::process::Command::new(&host.vireo)
            .args(["run", "--config", "/nowhere/vm.toml"])
            .output()?
            .status,
    );
    ensure!(
        missing == 1,
        "a missing configuration gives status {missing}"
    );
    Ok(format!("{} complaints", cases.len() + 1))
}
