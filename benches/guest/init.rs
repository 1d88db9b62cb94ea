//! First process of a benchmark's guest: says when it began, mounts the disk, runs the job there.
//!
//! ```text
//!  initramfs: /init, /modules/order, /modules/*.ko, /job.sh, /tools/*
//!    "@init NS"        at once; NS is the guest's own clock in nanoseconds
//!    modules           in the order of /modules/order, with parameters from the command line
//!    /dev/vda          mounted read-only, made the root
//!    /bin/sh /run/job.sh   beside it all that was in /tools
//! ```
//!
//! The word `tools` after `--` on the kernel's command line leaves this program at /run/init, where
//! `/run/init echo HOST:PORT SECONDS` sends single bytes to an echo server, one at a time, and
//! says how many per second came back. The word `mmio` there also loads virtio_mmio.
//!
//! One static program and no shell, because under emulation each process costs tens of
//! milliseconds, the same for every monitor, that would hide what is measured. Built by
//! `cargo xtask bench` with `rustc` alone.

use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

// Of the C library that std is linked with.
unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn chroot(path: *const c_char) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn clock_gettime(clock: c_int, time: *mut [i64; 2]) -> c_int;
}

const MS_RDONLY: c_ulong = 1;
const MS_MOVE: c_ulong = 8192;
const SYS_INIT_MODULE: c_long = 175;
const CLOCK_BOOTTIME: c_int = 7;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().collect();
    if let [_, word, address, seconds] = &words[..]
        && word == "echo"
    {
        return match echo(address, seconds) {
            Ok(rate) => {
                println!("{rate:.1}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                println!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    println!("@init {}", uptime());
    if let Err(error) = start(&words) {
        println!("@failed {error}");
    }
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn start(words: &[String]) -> Result<(), Box<dyn Error>> {
    mount_at(c"proc", "/proc", c"proc", 0)?;
    mount_at(c"dev", "/dev", c"devtmpfs", 0)?;
    let command_line = fs::read_to_string("/proc/cmdline")?;
    let is_said = |wanted| words.iter().any(|word| word == wanted);
    for file in fs::read_to_string("/modules/order")?.lines() {
        if is_said("mmio") || file != "virtio_mmio.ko" {
            load(file, &command_line).map_err(|e| format!("{file}: {e}"))?;
        }
    }
    // Drivers probe while they are loaded, but the disk's partitions may be read later.
    for _ in 0..2000 {
        if Path::new("/dev/vda").exists() {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    mount_at(c"/dev/vda", "/root", c"ext4", MS_RDONLY)?;
    mount_at(c"run", "/root/run", c"tmpfs", 0)?;
    fs::copy("/job.sh", "/root/run/job.sh")?;
    for tool in fs::read_dir("/tools")? {
        let tool = tool?;
        fs::copy(tool.path(), Path::new("/root/run").join(tool.file_name()))?;
    }
    if is_said("tools") {
        fs::copy("/init", "/root/run/init")?;
    }
    mount_at(c"/dev", "/root/dev", c"", MS_MOVE)?;
    mount_at(c"/proc", "/root/proc", c"", MS_MOVE)?;
    env::set_current_dir("/root")?;
    mount_at(c".", "/", c"", MS_MOVE)?;
    // SAFETY: the path is a string that ends with a zero.
    checked(unsafe { chroot(c".".as_ptr()) }.into())?;
    env::set_current_dir("/")?;
    Err(Command::new("/bin/sh")
        .arg("/run/job.sh")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .exec()
        .into())
}

/// Round trips per second.
fn echo(address: &str, seconds: &str) -> Result<f64, Box<dyn Error>> {
    let limit = Duration::from_secs_f64(seconds.parse()?);
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut count = 0.0;
    let begin = Instant::now();
    while begin.elapsed() < limit {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        count += 1.0;
    }
    Ok(count / begin.elapsed().as_secs_f64())
}

/// Time since the kernel started its clock, in nanoseconds.
fn uptime() -> i64 {
    let mut time = [0; 2];
    // SAFETY: on x86-64 a timespec is two 64-bit integers.
    unsafe { clock_gettime(CLOCK_BOOTTIME, &raw mut time) };
    time[0] * 1_000_000_000 + time[1]
}

fn mount_at(source: &CStr, target: &str, kind: &CStr, flags: c_ulong) -> Result<(), String> {
    let path = CString::new(target).map_err(|e| e.to_string())?;
    // SAFETY: all are strings that end with a zero; no data is given.
    let result = unsafe {
        mount(
            source.as_ptr(),
            path.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    checked(result.into()).map_err(|e| format!("mount {target}: {e}"))
}

/// Loads a module with the parameters that the kernel's command line has for it, as modprobe does.
fn load(file: &str, command_line: &str) -> io::Result<()> {
    let prefix = format!("{}.", file.trim_end_matches(".ko"));
    let parameters: Vec<&str> = command_line
        .split_whitespace()
        .filter_map(|word| word.strip_prefix(&prefix))
        .collect();
    let parameters = CString::new(parameters.join(" "))?;
    let image = fs::read(format!("/modules/{file}"))?;
    // SAFETY: the image and its length belong together, the parameters end with a zero.
    let result = unsafe {
        syscall(
            SYS_INIT_MODULE,
            image.as_ptr(),
            image.len(),
            parameters.as_ptr(),
        )
    };
    checked(result)
}

fn checked(result: c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
