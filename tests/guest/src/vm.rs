//! A running machine: the process, its console, its control socket.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::shell::{self, Output};
use crate::{Console, Host, Qmp};

/// How long a command in the guest may take when the test does not say.
const COMMAND: Duration = Duration::from_secs(90);

/// A process that is a machine. It does not outlive its value.
pub struct Vm {
    child: Child,
    /// The first serial port.
    pub console: Console,
    errors: Arc<Mutex<String>>,
    folder: TempDir,
    started: Instant,
}

impl Vm {
    /// Starts `vireo run` with `config`, a configuration in TOML in which `@/` stands for a fresh
    /// folder. A control socket is added.
    ///
    /// # Errors
    /// The process cannot be started or does not offer its console.
    pub fn start(config: &str) -> anyhow::Result<Self> {
        Self::start_with(config, &[])
    }

    /// As [`start`](Self::start) with more arguments.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(config: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let config = format!("{config}\n[[qmp]]\npath = \"@/qmp\"\n");
        Self::start_alone(&config, arguments)
    }

    /// As [`start_with`](Self::start_with), without a control socket.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_alone(config: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("vm-").tempdir()?;
        let config = in_folder(config, folder.path());
        let file = folder.path().join("vm.toml");
        fs::write(&file, &config)?;
        let host = Host::get()?;
        let mut command = Command::new(&host.vireo);
        command
            .args(["run", "--accel", &host.accel])
            .arg("--config")
            .arg(&file)
            .args(arguments);
        Self::spawn(command, folder, serial_socket(&config)?)
    }

    /// Starts QEMU with KVM, the first serial port at its standard input and output.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start_qemu(arguments: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("vm-").tempdir()?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-accel", "kvm", "-serial", "stdio"]);
        command.args(arguments.iter().map(|text| in_folder(text, folder.path())));
        Self::spawn(command, folder, None)
    }

    fn spawn(
        mut command: Command,
        folder: TempDir,
        socket: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let errors = Arc::new(Mutex::new(String::new()));
        if let Some(mut stderr) = child.stderr.take() {
            let errors = Arc::clone(&errors);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stderr.read(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    errors
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push_str(&text);
                }
            });
        }
        let (Some(output), Some(input)) = (child.stdout.take(), child.stdin.take()) else {
            bail!("the process has no pipes");
        };
        let mut vm = Self {
            child,
            console: Console::new(output, input),
            errors,
            folder,
            started,
        };
        if let Some(path) = socket {
            let socket = vm.connect(&path)?;
            vm.console = Console::at(socket)?;
        }
        Ok(vm)
    }

    /// Connects to a socket of the machine, waiting for it.
    ///
    /// # Errors
    /// It does not come, or the process ends.
    pub fn connect(&mut self, path: &Path) -> anyhow::Result<UnixStream> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Ok(stream),
                Err(_) if Instant::now() < deadline => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("nobody listens at {}", path.display()));
                }
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the machine ended with {status}: {}", self.errors());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The folder that is `@` in the configuration.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Time since the start of the process.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the process said on its standard error.
    #[must_use]
    pub fn errors(&self) -> String {
        self.errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A connection to the control socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn qmp(&self) -> anyhow::Result<Qmp> {
        Qmp::connect(&self.folder.path().join("qmp"), Duration::from_secs(60))
            .with_context(|| self.errors())
    }

    /// Waits for the shell of the small initramfs.
    ///
    /// # Errors
    /// It does not come in time.
    pub fn wait_shell(&mut self, within: Duration) -> anyhow::Result<()> {
        self.console
            .expect("@@SHELL@@", within)
            .with_context(|| self.errors())?;
        shell::settle(&mut self.console, within)
    }

    /// Waits for Debian's login prompt and the shell behind it, where root is logged in.
    ///
    /// # Errors
    /// It does not come in time.
    pub fn wait_login(&mut self, within: Duration) -> anyhow::Result<Duration> {
        self.console
            .expect(" login:", within)
            .with_context(|| self.errors())?;
        let login = self.age();
        self.console.expect("# ", within)?;
        shell::settle(&mut self.console, within)?;
        Ok(login)
    }

    /// Runs a command in the guest; its status is given.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn try_run(&mut self, command: &str, within: Duration) -> anyhow::Result<Output> {
        shell::run(&mut self.console, command, within)
    }

    /// Runs a command in the guest, which has to succeed; its output.
    ///
    /// # Errors
    /// It fails or does not end in time.
    pub fn run(&mut self, command: &str) -> anyhow::Result<String> {
        let Output { status, text } = self.try_run(command, COMMAND)?;
        if status != 0 {
            bail!("status {status} of {command}\n{text}");
        }
        Ok(text)
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("cannot send {signal}"))
    }

    /// Waits for the process to end by itself; its exit status, 128 + n after signal n.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait_exit(&mut self, within: Duration) -> anyhow::Result<i32> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(code(status));
            }
            if Instant::now() >= deadline {
                bail!(
                    "the process runs on after {:.0} s; its console:\n{}\nit says:\n{}",
                    within.as_secs_f64(),
                    self.console.tail(),
                    self.errors()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The exit status, or 128 + n after signal n.
#[must_use]
pub fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .or(status.signal().map(|number| 128 + number))
        .unwrap_or(255)
}

/// The unix socket to which the first serial port leads.
fn serial_socket(config: &str) -> anyhow::Result<Option<PathBuf>> {
    let table: toml::Table = config.parse().context("the test's configuration")?;
    let to = table
        .get("serial")
        .and_then(|ports| ports.get(0)?.get("to")?.as_str());
    Ok(to
        .and_then(|to| to.strip_prefix("unix:"))
        .map(PathBuf::from))
}

fn in_folder(text: &str, folder: &Path) -> String {
    text.replace("@/", &format!("{}/", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_where_the_configuration_says() {
        let config = "[[console]]\nto = \"unix:/c\"\n[[serial]]\nto = \"unix:/s\"\n";
        assert_eq!(serial_socket(config).unwrap(), Some("/s".into()));
        assert_eq!(serial_socket("[[serial]]\nto = \"stdio\"\n").unwrap(), None);
        assert_eq!(serial_socket("").unwrap(), None);
    }

    #[test]
    fn a_signal_is_a_status() {
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(15)), 143);
    }
}
