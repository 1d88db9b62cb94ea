//! Starts the box's QEMU, carries the command's output out of it, and ends it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use super::cpio::Archive;
use super::image::Image;
use super::terminal::{Interrupts, RawMode};
use super::{End, HostBox, Outcome, clock, emulator, script, terminal};
use crate::project;

/// Everything that TCG has but fast string instructions: it moves one byte after the other for REP
/// MOVSB and STOSB, and kernels clear and copy pages by these where they are said to be fast. By
/// words it is four times as fast, and closer to hardware.
const CPU: &str = "max,-erms,-fsrm";

/// The box's kernel command line: nothing to wait for, and a panic ends QEMU (-no-reboot).
///
/// A periodic tick (`highres=off nohz=off`) because QEMU's VMRUN sets a bit of the processor's
/// pending interrupts without the lock that those who raise interrupts hold: now and then one is
/// lost, and were it the timer's only shot, the box would stand still (docs/design/box.md).
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on no_timer_check tsc=reliable \
     i8042.noaux i8042.nokbd highres=off nohz=off rdinit=/init";

/// Variables that the command gets from us as they are.
const KEPT_VARIABLES: [&str; 5] = ["CARGO_", "NEXTEST", "RUST_", "TERM", "VIREO_"];

/// Where the command's output goes.
pub enum Console<'a> {
    Streams(&'a mut (dyn Write + Send), &'a mut (dyn Write + Send)),
    Terminal,
}

/// A QEMU that does not outlive us.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Everything in the box is thrown away, so nothing is lost by the hard way.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder for one run's files, with a lock that says that the run is going on.
struct RunFolder {
    directory: TempDir,
    /// Held, never written.
    _lock: File,
}

impl RunFolder {
    const LOCK: &str = "lock";

    /// Makes one in `parent`, and removes those whose process was killed.
    fn new(parent: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot use {}", parent.display());
        fs::create_dir_all(parent).with_context(context)?;
        let all = File::create(parent.join(Self::LOCK)).with_context(context)?;
        all.lock().with_context(context)?;
        for entry in fs::read_dir(parent).with_context(context)? {
            let path = entry?.path();
            let ended = File::open(path.join(Self::LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
            if ended {
                fs::remove_dir_all(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        let directory = tempfile::Builder::new().prefix("run-").tempdir_in(parent)?;
        let lock = File::create(directory.path().join(Self::LOCK))?;
        lock.lock()?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// A box that says nothing for this long has died: it says that it lives every five seconds, and
/// boots in a quarter of this on a machine that has much to do.
const SILENCE: Duration = Duration::from_secs(60);

/// What the box says on its status port.
enum Message {
    Alive,
    Started,
    Exited(u8),
}

/// Boots the box, runs `command` in it and ends it.
pub fn run(
    host: &HostBox,
    image: &Image,
    command: &[OsString],
    console: Console<'_>,
) -> anyhow::Result<Outcome> {
    // Socket names are short (108 bytes), so they do not live under the project.
    let sockets = tempfile::Builder::new().prefix("kvm-host-").tempdir()?;
    let run = RunFolder::new(&project::target()?.join("kvm-host-runs"))?;
    let shares = shares(&host.shares)?;
    let interactive = matches!(console, Console::Terminal);
    let initramfs = run.path().join("initramfs");
    let run_script = run_script(host, command, &shares, interactive)?;
    let mut bytes = fs::read(&image.initramfs).context("cannot read the box's initramfs")?;
    bytes.extend(run_archive(&run_script, &shares, interactive));
    fs::write(&initramfs, bytes).context("cannot write the box's initramfs")?;
    let scratch = run.path().join("scratch");
    make_scratch(&scratch, host.scratch_mib)?;
    let log = run.path().join("console.log");

    let ports: &[&str] = if interactive {
        &["status", "terminal"]
    } else {
        &["status", "stdout", "stderr"]
    };
    let mut listeners = Vec::new();
    for port in ports {
        let listener = UnixListener::bind(sockets.path().join(port))?;
        listener.set_nonblocking(true)?;
        listeners.push(listener);
    }
    let mut qemu = base_command(host, image, &initramfs, &log)?;
    for (name, file, snapshot) in [("root", &image.root, true), ("scratch", &scratch, false)] {
        drive(&mut qemu, name, file, snapshot)?;
    }
    for disk in &host.drives {
        drive(&mut qemu, &disk.name, &disk.file, true)?;
    }
    for (number, share) in shares.iter().enumerate() {
        let path = with_doubled_commas(share);
        let mut fsdev = OsString::from(format!(
            "local,id=share{number},security_model=none,multidevs=remap,path="
        ));
        fsdev.push(path);
        qemu.arg("-fsdev").arg(fsdev);
        qemu.arg("-device").arg(format!(
            "virtio-9p-pci,fsdev=share{number},mount_tag=share{number}"
        ));
    }
    qemu.args(["-device", "virtio-serial-pci"]);
    for port in ports {
        let mut chardev = OsString::from(format!("socket,id={port},path="));
        chardev.push(with_doubled_commas(&sockets.path().join(port)));
        let device = if *port == "terminal" {
            "virtconsole"
        } else {
            "virtserialport"
        };
        qemu.arg("-chardev")
            .arg(chardev)
            .arg("-device")
            .arg(format!("{device},chardev={port},name={port}"));
    }
    qemu.args(&host.qemu_arguments);

    let interrupts = Interrupts::watch()?;
    let begin = Instant::now();
    let mut qemu = Qemu(qemu.spawn().context("cannot start the box's QEMU")?);
    let result = attend(host, &mut qemu, &listeners, console, begin, &interrupts);
    drop(qemu);
    match result {
        Ok(Some(outcome)) => Ok(outcome),
        Ok(None) | Err(_) => {
            let text = fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let tail: Vec<&str> = text.lines().rev().take(30).collect();
            for line in tail.iter().rev() {
                eprintln!("kvm-host console: {line}");
            }
            result?;
            bail!("the box ended before the command did");
        }
    }
}

/// Follows a started QEMU to the command's end; `None` if it ended without telling a status.
fn attend(
    host: &HostBox,
    qemu: &mut Qemu,
    listeners: &[UnixListener],
    console: Console<'_>,
    begin: Instant,
    interrupts: &Interrupts,
) -> anyhow::Result<Option<Outcome>> {
    let mut streams = Vec::new();
    for listener in listeners {
        let Some(stream) = accept(listener, qemu, begin)? else {
            return Ok(None);
        };
        streams.push(stream);
    }
    let status = streams.remove(0);
    let (sender, messages) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || read_status(status, &sender));
        let mut raw_mode = None;
        match console {
            Console::Streams(out, err) => {
                for (mut stream, sink) in streams.into_iter().zip([out, err]) {
                    scope.spawn(move || copy(&mut stream, sink));
                }
            }
            Console::Terminal => {
                for stream in streams {
                    raw_mode = Some(RawMode::enter()?);
                    // This thread ends with the process: it sleeps in a read of our terminal.
                    let mut input = stream.try_clone()?;
                    thread::spawn(move || io::copy(&mut io::stdin(), &mut input));
                    let mut stream = stream;
                    scope.spawn(move || copy(&mut stream, &mut io::stdout()));
                }
            }
        }
        let outcome = wait(host.timeout, qemu, &messages, begin, interrupts);
        // The readers end when QEMU's side of the sockets closes.
        let _ = qemu.0.kill();
        let _ = qemu.0.wait();
        drop(raw_mode);
        outcome
    })
}

fn wait(
    timeout: Duration,
    qemu: &mut Qemu,
    messages: &mpsc::Receiver<Message>,
    begin: Instant,
    interrupts: &Interrupts,
) -> anyhow::Result<Option<Outcome>> {
    let mut started = None;
    let mut heard = Instant::now();
    let outcome = |end, started| {
        Some(Outcome {
            end,
            started,
            ended: begin.elapsed(),
        })
    };
    loop {
        let message = messages.recv_timeout(Duration::from_millis(50));
        if message.is_ok() {
            heard = Instant::now();
        }
        match message {
            Ok(Message::Alive) => {}
            Ok(Message::Started) => started = Some(begin.elapsed()),
            Ok(Message::Exited(status)) => return Ok(outcome(End::Exited(status), started)),
            Err(RecvTimeoutError::Timeout) => {}
            // QEMU closed the port: it is ending.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(10)),
        }
        if begin.elapsed() >= timeout {
            return Ok(outcome(End::TimedOut, started));
        }
        if interrupts.seen() {
            return Ok(outcome(End::Interrupted, started));
        }
        ensure!(
            heard.elapsed() < SILENCE,
            "the box hangs: it has said nothing for {} s",
            SILENCE.as_secs()
        );
        if qemu.0.try_wait()?.is_some() {
            // Its last message may still be under way.
            return Ok(match messages.recv_timeout(Duration::from_secs(1)) {
                Ok(Message::Exited(status)) => outcome(End::Exited(status), started),
                _ => None,
            });
        }
    }
}

/// Waits for QEMU to connect, which it does before the box boots.
fn accept(
    listener: &UnixListener,
    qemu: &mut Qemu,
    begin: Instant,
) -> anyhow::Result<Option<UnixStream>> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(Some(stream));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = qemu.0.try_wait()? {
            bail!("the box's QEMU ended with {status} before it booted");
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(60),
            "the box's QEMU does not come up"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

fn read_status(stream: UnixStream, sender: &mpsc::Sender<Message>) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let message = match line.split_once(' ') {
            None if line == "start" => Message::Started,
            None if line == "alive" => Message::Alive,
            Some(("exit", status)) => Message::Exited(status.trim().parse().unwrap_or(u8::MAX)),
            _ => continue,
        };
        if sender.send(message).is_err() {
            return;
        }
    }
}

/// Copies everything as it comes; what cannot be written is dropped, so that the box never waits
/// for a reader that is gone.
pub fn copy(from: &mut dyn Read, to: &mut dyn Write) {
    let mut buffer = vec![0; 64 << 10];
    let mut broken = false;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if !broken => {
                broken = to
                    .write_all(&buffer[..length])
                    .and_then(|()| to.flush())
                    .is_err();
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn base_command(
    host: &HostBox,
    image: &Image,
    initramfs: &Path,
    log: &Path,
) -> anyhow::Result<Command> {
    let mut serial = OsString::from("file:");
    serial.push(with_doubled_commas(log));
    // setpriv makes the kernel end QEMU should we be killed.
    let wrapper = ["setpriv", "--pdeathsig", "KILL", "--"];
    let mut command = emulator::ensure().command(&wrapper);
    command.args(["-name", "vireo-kvm-host"]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.args([
        "-machine",
        "q35,vmport=off",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        CPU,
    ]);
    command
        .arg("-smp")
        .arg(host.smp.to_string())
        .arg("-m")
        .arg(format!("{}M", host.memory_mib));
    command
        .arg("-kernel")
        .arg(&image.vmlinux)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!("{CMDLINE} tsc_early_khz={}", clock::tsc_khz()));
    command
        .arg("-serial")
        .arg(serial)
        .args(["-device", "virtio-rng-pci"]);
    // Its own process group: Ctrl-C reaches us, and we end it.
    command.stdin(Stdio::null()).process_group(0);
    // Throw-away snapshots can grow: not into a /tmp that is memory.
    if env::var_os("TMPDIR").is_none() {
        command.env("TMPDIR", "/var/tmp");
    }
    Ok(command)
}

fn drive(qemu: &mut Command, name: &str, file: &Path, snapshot: bool) -> anyhow::Result<()> {
    let file =
        fs::canonicalize(file).with_context(|| format!("no disk image {}", file.display()))?;
    let snapshot = if snapshot { "on" } else { "off" };
    let mut drive = OsString::from(format!(
        "if=none,id={name},format=raw,cache=unsafe,discard=unmap,snapshot={snapshot},file="
    ));
    drive.push(with_doubled_commas(&file));
    qemu.arg("-drive").arg(drive);
    qemu.arg("-device")
        .arg(format!("virtio-blk-pci,drive={name},serial={name}"));
    Ok(())
}

/// QEMU's options separate their parts by commas; a doubled comma is one.
fn with_doubled_commas(path: &Path) -> OsString {
    let mut bytes = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    OsStr::from_bytes(&bytes).to_owned()
}

/// The folders to share: the project, the target folder and `more`, without those inside others.
fn shares(more: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut all = vec![project::root(), project::target()?];
    all.extend(more.iter().cloned());
    let mut shares: Vec<PathBuf> = Vec::new();
    for path in all {
        // The box sees a folder where it stands outside, links and all.
        let path = std::path::absolute(&path)?;
        ensure!(path.is_dir(), "cannot share {}: no folder", path.display());
        let text = path.as_os_str().as_bytes();
        ensure!(path != Path::new("/"), "the root folder cannot be shared");
        ensure!(
            !text.contains(&b'\n'),
            "cannot share {}: a line break in its name",
            path.display()
        );
        if !shares.iter().any(|share| path.starts_with(share)) {
            shares.retain(|share| !share.starts_with(&path));
            shares.push(path);
        }
    }
    Ok(shares)
}

fn run_script(
    host: &HostBox,
    command: &[OsString],
    shares: &[PathBuf],
    interactive: bool,
) -> anyhow::Result<Vec<u8>> {
    let mut environment: Vec<(String, String)> = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| KEPT_VARIABLES.iter().any(|kept| name.starts_with(kept)))
        .filter(|(name, _)| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .collect();
    let mut set = |name: &str, value: String| environment.push((name.to_owned(), value));
    set(
        "CARGO_TARGET_DIR",
        project::target()?.to_string_lossy().into_owned(),
    );
    set("VIREO_KVM_HOST", "box".to_owned());
    set("VIREO_SCRATCH", "/scratch".to_owned());
    for disk in &host.drives {
        set(
            &disk.variable(),
            format!("/dev/disk/by-id/virtio-{}", disk.name),
        );
    }
    for (name, value) in &host.environment {
        set(name, value.clone());
    }
    let here = env::current_dir().context("no current folder")?;
    let directory = if shares.iter().any(|share| here.starts_with(share)) {
        here
    } else {
        project::root()
    };
    let mut words: Vec<OsString> = Vec::new();
    if interactive && let Some((columns, rows)) = terminal::size() {
        let size = format!("stty cols {columns} rows {rows}; exec \"$@\"");
        words.extend(["sh".into(), "-c".into(), size.into(), "sh".into()]);
    }
    words.extend(command.iter().cloned());
    Ok(script::run(&words, directory.as_os_str(), &environment))
}

fn run_archive(script: &[u8], shares: &[PathBuf], interactive: bool) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.file("init", 0o755, include_bytes!("init.sh"));
    archive.file("box/box.sh", 0o755, include_bytes!("box.sh"));
    archive.file("box/run.sh", 0o755, script);
    let mut list = Vec::new();
    for (number, share) in shares.iter().enumerate() {
        list.extend_from_slice(format!("share{number} ").as_bytes());
        list.extend_from_slice(share.as_os_str().as_bytes());
        list.push(b'\n');
    }
    archive.file("box/shares", 0o644, &list);
    if interactive {
        archive.file("box/interactive", 0o644, b"");
    }
    archive.finish()
}

/// A sparse ext4 disk for the command's big files.
fn make_scratch(path: &Path, mib: u64) -> anyhow::Result<()> {
    let output = Command::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-m",
            "0",
            "-O",
            "^has_journal",
            "-E",
            "assume_storage_prezeroed=1",
        ])
        .arg(path)
        .arg(format!("{mib}M"))
        .stdin(Stdio::null())
        .output()
        .context("cannot run mke2fs")?;
    ensure!(
        output.status.success(),
        "cannot make the scratch disk: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests;
