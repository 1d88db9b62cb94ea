//! The console at a terminal, at a pty of its own, at a socket.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_tests::multiboot::Program;
use guest_tests::scenario::{Outcome, Suite};
use guest_tests::{Console, Host};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::common::{SOON, quoted, tiny};

pub fn add(suite: &mut Suite) {
    suite.single("terminal::ctrl_right_bracket_leaves", || {
        leave(Leave::Escape)
    });
    suite.single("terminal::restored_after_sigterm", || leave(Leave::Signal));
    suite.single("terminal::pty", pty);
    suite.single("terminal::unix_socket", unix_socket);
    suite.single("terminal::file", file);
}

fn echo() -> Program {
    Program::new().print("ready\n").echo()
}

#[derive(Clone, Copy, PartialEq)]
enum Leave {
    Escape,
    Signal,
}

/// A machine at a terminal: raw while it runs, as it was when it has ended.
fn leave(how: Leave) -> Outcome {
    let host = Host::get()?;
    let kernel = host.file("terminal.elf", &echo().elf())?;
    let ends = nix::pty::openpty(None, None)?;
    let terminal = || -> anyhow::Result<Stdio> { Ok(ends.slave.try_clone()?.into()) };
    let before = tcgetattr(&ends.slave)?;
    let mut child = Command::new(&host.vireo)
        .args(["run", "--accel", &host.accel])
        .args(["--memory", "64M", "--serial", "stdio", "--kernel"])
        .arg(&kernel)
        .args(["--machine", "shutdown-grace=1"])
        .stdin(terminal()?)
        .stdout(terminal()?)
        .stderr(terminal()?)
        .spawn()?;
    let result = (|| {
        let mut console = Console::new(
            File::from(ends.master.try_clone()?),
            File::from(ends.master.try_clone()?),
        );
        console.expect("ready", SOON)?;
        // A terminal that is not raw would interrupt us at ^C and echo what is typed.
        let raw = tcgetattr(&ends.slave)?;
        let flags = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
        ensure!(
            !raw.local_flags.intersects(flags),
            "the terminal is not raw"
        );
        console.send("x\x03y\x04z")?;
        console
            .expect("x\x03y\x04z", SOON)
            .context("the guest does not get every key")?;
        match how {
            Leave::Escape => console.send("\x1d")?,
            Leave::Signal => kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?,
        }
        let deadline = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break guest_tests::vm::code(status);
            }
            ensure!(
                Instant::now() < deadline,
                "the process does not end:\n{}",
                console.tail()
            );
            thread::sleep(Duration::from_millis(10));
        };
        let expected = if how == Leave::Escape { 0 } else { 143 };
        ensure!(status == expected, "status {status}:\n{}", console.tail());
        let after = tcgetattr(&ends.slave)?;
        ensure!(
            (
                after.local_flags,
                after.input_flags,
                after.output_flags,
                after.control_flags
            ) == (
                before.local_flags,
                before.input_flags,
                before.output_flags,
                before.control_flags
            ),
            "the terminal is not as it was: {after:?}"
        );
        Ok(format!("status {status}, terminal as before"))
    })();
    // It may have ended already.
    let _ = child.kill();
    let _ = child.wait();
    result
}

fn pty() -> Outcome {
    let mut vm = tiny("pty", &echo(), "[[serial]]\nto = \"pty\"\n")?;
    let deadline = Instant::now() + SOON;
    // The process logs the name of the pty that it made.
    let name = loop {
        let errors = vm.errors();
        if let Some(at) = errors.find("/dev/pts/") {
            let name: String = errors[at..]
                .chars()
                .take_while(|c| !c.is_whitespace())
                .collect();
            if errors[at..].contains('\n') {
                break name;
            }
        }
        ensure!(Instant::now() < deadline, "no pty is named: {errors:?}");
        thread::sleep(Duration::from_millis(20));
    };
    let slave = File::options().read(true).write(true).open(&name)?;
    make_raw(&slave.as_fd().try_clone_to_owned()?)?;
    let mut console = Console::new(slave.try_clone()?, slave);
    console.send("over the pty")?;
    console.expect("over the pty", SOON)?;
    let status = {
        vm.qmp()?.execute("quit", serde_json::json!({}))?;
        vm.wait_exit(SOON)?
    };
    ensure!(status == 0, "status {status}");
    Ok(name)
}

fn make_raw(terminal: &OwnedFd) -> anyhow::Result<()> {
    let mut settings = tcgetattr(terminal)?;
    nix::sys::termios::cfmakeraw(&mut settings);
    nix::sys::termios::tcsetattr(terminal, nix::sys::termios::SetArg::TCSANOW, &settings)?;
    Ok(())
}

fn unix_socket() -> Outcome {
    let mut vm = tiny("unix", &echo(), "[[serial]]\nto = \"unix:@/serial\"\n")?;
    vm.console.send("first")?;
    vm.console.expect("first", SOON)?;
    // One client at a time; when it has gone there may be another.
    let path = vm.folder().join("serial");
    vm.console = Console::new(std::io::empty(), std::io::sink());
    let deadline = Instant::now() + SOON;
    loop {
        let mut stream = vm.connect(&path)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"second")?;
        let mut answer = [0; 6];
        if stream.read_exact(&mut answer).is_ok() {
            ensure!(&answer == b"second", "{answer:?}");
            break;
        }
        ensure!(Instant::now() < deadline, "no second client is served");
    }
    Ok("two clients in turn".into())
}

fn file() -> Outcome {
    let host = Host::get()?;
    let path = host.file("serial.log", b"left from before")?;
    let config = format!(
        "[[serial]]\nto = {}\n",
        quoted(format!("file:{}", path.display()))
    );
    let program = Program::new().print("to the file\n").halt();
    let _vm = tiny("serial-file", &program, &config)?;
    let deadline = Instant::now() + SOON;
    loop {
        let text = fs::read_to_string(&path)?;
        if text == "to the file\n" {
            return Ok(format!("{} bytes", text.len()));
        }
        ensure!(Instant::now() < deadline, "the file has {text:?}");
        thread::sleep(Duration::from_millis(20));
    }
}
