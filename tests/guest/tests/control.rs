//! The control socket.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_tests::multiboot::Program;
use guest_tests::scenario::{Outcome, Suite};
use guest_tests::{Host, Qmp, Vm};
use serde_json::{Value, json};

use crate::common::{SOON, tiny_stdio};

pub fn add(suite: &mut Suite) {
    suite.single("control::life", life);
    suite.single("control::errors", errors);
    suite.single("control::paused_start", paused_start);
    suite.single("control::python_qemu_qmp", python);
}

fn running() -> anyhow::Result<Vm> {
    let program = Program::new().print("up\n").echo();
    let mut vm = tiny_stdio("control", &program, "[cpus]\ncount = 2\n")?;
    vm.console.expect("up\n", SOON)?;
    Ok(vm)
}

fn status(qmp: &mut Qmp) -> anyhow::Result<String> {
    let answer = qmp.execute("query-status", json!({}))?;
    let name = answer["status"].as_str().context("no status")?.to_owned();
    ensure!(answer["running"] == (name == "running"), "{answer}");
    Ok(name)
}

fn event_names(qmp: &mut Qmp) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    while let Some(event) = qmp.next_event(Duration::from_millis(500))? {
        ensure!(event["timestamp"]["seconds"].is_u64(), "{event}");
        names.push(event["event"].as_str().unwrap_or_default().to_owned());
    }
    Ok(names)
}

fn life() -> Outcome {
    let mut vm = running()?;
    let (mut qmp, mut second) = (vm.qmp()?, vm.qmp()?);
    ensure!(status(&mut qmp)? == "running");
    qmp.execute("stop", json!({}))?;
    ensure!(status(&mut qmp)? == "paused");
    // Stopped is stopped: what is typed waits.
    vm.console.send("x")?;
    ensure!(
        vm.console.expect("x", Duration::from_millis(500)).is_err(),
        "the guest runs"
    );
    qmp.execute("stop", json!({}))?;
    qmp.execute("cont", json!({}))?;
    vm.console.expect("x", SOON)?;
    ensure!(status(&mut qmp)? == "running");
    qmp.execute("system_reset", json!({}))?;
    vm.console.expect("up\n", SOON)?;
    qmp.execute("system_powerdown", json!({}))?;
    let cpus = qmp.execute("query-cpus-fast", json!({}))?;
    let threads: Vec<u64> = cpus
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|cpu| cpu["thread-id"].as_u64())
        .collect();
    ensure!(threads.len() == 2 && threads[0] != threads[1], "{cpus}");
    for tid in threads {
        let path = format!("/proc/{}/task/{tid}", vm.pid());
        ensure!(
            std::path::Path::new(&path).exists(),
            "there is no thread {tid}"
        );
    }
    qmp.execute("quit", json!({}))?;
    let ended = vm.wait_exit(SOON)?;
    ensure!(ended == 0, "status {ended}: {}", vm.errors());
    let expected = ["STOP", "RESUME", "RESET", "POWERDOWN", "SHUTDOWN"];
    for qmp in [&mut qmp, &mut second] {
        let names = event_names(qmp)?;
        ensure!(names == expected, "{names:?}");
    }
    Ok(expected.join(", "))
}

fn errors() -> Outcome {
    let vm = running()?;
    let mut qmp = vm.qmp()?;
    let mut class = |command: &str, arguments: Value| match qmp.execute(command, arguments) {
        Ok(value) => format!("no error but {value}"),
        Err(error) => error.to_string(),
    };
    let cases = [
        (class("query-nothing", json!({})), "CommandNotFound: "),
        (class("stop", json!({ "now": true })), "GenericError: "),
        (
            class("block_resize", json!({ "device": "x" })),
            "GenericError: ",
        ),
        (
            class("balloon", json!({ "value": 1 << 20 })),
            "DeviceNotActive: ",
        ),
        (class("qmp_capabilities", json!({})), "CommandNotFound: "),
    ];
    for (got, expected) in &cases {
        ensure!(got.starts_with(expected), "{got:?} is not {expected:?}");
    }
    let commands = qmp.execute("query-commands", json!({}))?;
    let count = commands.as_array().map_or(0, Vec::len);
    ensure!(count >= 14, "{commands}");
    let version = qmp.execute("query-version", json!({}))?;
    ensure!(
        version["package"]
            .as_str()
            .is_some_and(|p| p.starts_with("vireo")),
        "{version}"
    );
    Ok(format!("{count} commands"))
}

fn paused_start() -> Outcome {
    let program = Program::new().print("up\n").halt();
    let mut vm = tiny_stdio("paused", &program, "[machine]\npaused = true\n")?;
    let mut qmp = vm.qmp()?;
    let name = status(&mut qmp)?;
    ensure!(name == "prelaunch", "{name}");
    ensure!(
        vm.console.expect("up", Duration::from_millis(300)).is_err(),
        "it runs"
    );
    qmp.execute("cont", json!({}))?;
    vm.console.expect("up\n", SOON)?;
    Ok("prelaunch, then running".into())
}

/// The client that QEMU's own project publishes.
fn python() -> Outcome {
    let host = Host::get()?;
    let folder = host
        .python
        .as_ref()
        .context("VIREO_PYTHON_QMP is not set")?;
    let mut vm = running()?;
    let script = host.file("client.py", include_bytes!("client.py"))?;
    let begin = Instant::now();
    let output = Command::new("python3")
        .arg(script)
        .arg(vm.folder().join("qmp"))
        .arg(vm.pid().to_string())
        .env("PYTHONPATH", folder)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .context("cannot run python3")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let ended = vm.wait_exit(SOON)?;
    ensure!(ended == 0, "status {ended}: {}", vm.errors());
    Ok(format!(
        "{} in {:.1} s",
        text.trim(),
        begin.elapsed().as_secs_f64()
    ))
}
