//! A monitor that runs: what its guest says and when, and what the host says about the process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// What is kept of a guest's output for a report of what went wrong.
const TAIL: usize = 2000;

/// A monitor; ended when dropped.
pub struct Running {
    child: Child,
    /// Taken right before the program was started.
    begin: Instant,
    output: Receiver<(Instant, Vec<u8>)>,
    /// What was not yet asked for, and when its last byte came.
    pending: Vec<u8>,
    arrived: Instant,
    errors: PathBuf,
}

/// A line that begins with an @ and a word, said by the guest.
pub struct Marker {
    /// Since the program was started.
    pub at: Duration,
    /// What follows the word.
    pub rest: String,
}

impl Running {
    /// Starts `command`; what it says on standard error goes to a file in `folder`.
    pub fn start(mut command: Command, folder: &Path) -> anyhow::Result<Self> {
        let errors = folder.join("stderr");
        let stderr = File::create(&errors).context("cannot create a file for errors")?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let begin = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let (sender, output) = mpsc::channel();
        let mut stdout = child.stdout.take().context("no standard output")?;
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match stdout.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => {
                        let message = (Instant::now(), buffer[..length].to_vec());
                        if sender.send(message).is_err() {
                            return;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        });
        Ok(Self {
            child,
            begin,
            output,
            pending: Vec::new(),
            arrived: begin,
            errors,
        })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the guest says "@WORD ..." on a line, and passes over all before it.
    ///
    /// # Errors
    /// The monitor ends, the guest says "@failed", or `limit` passes, with what was said last.
    pub fn wait_for(&mut self, word: &str, limit: Duration) -> anyhow::Result<Marker> {
        match self.wait_for_any(&[word], limit)? {
            (_, Some(marker)) => Ok(marker),
            (_, None) => bail!(
                "no \"@{word}\" within {} s\n{}",
                limit.as_secs(),
                self.tail()
            ),
        }
    }

    /// Waits for the first of several words, and tells which; no marker when `limit` passes.
    pub fn wait_for_any(
        &mut self,
        words: &[&str],
        limit: Duration,
    ) -> anyhow::Result<(usize, Option<Marker>)> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some((_, _, why)) = find_line(&self.pending, "failed") {
                bail!("the guest says: {why}\n{}", self.tail());
            }
            let first = words
                .iter()
                .enumerate()
                .filter_map(|(number, word)| Some((number, find_line(&self.pending, word)?)))
                .min_by_key(|(_, (start, ..))| *start);
            if let Some((number, (_, end, rest))) = first {
                self.pending.drain(..end);
                let at = self.arrived.duration_since(self.begin);
                return Ok((number, Some(Marker { at, rest })));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.receive(left)? {
                return Ok((0, None));
            }
        }
    }

    /// Waits until the guest has said `text`, also within a line; no time when `limit` passes.
    pub fn wait_for_text(
        &mut self,
        text: &str,
        limit: Duration,
    ) -> anyhow::Result<Option<Duration>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(start) = find(&self.pending, text.as_bytes()) {
                self.pending.drain(..start + text.len());
                return Ok(Some(self.arrived.duration_since(self.begin)));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.receive(left)? {
                return Ok(None);
            }
        }
    }

    /// Waits for more output; false when there is none for so long.
    fn receive(&mut self, limit: Duration) -> anyhow::Result<bool> {
        match self.output.recv_timeout(limit) {
            Ok((when, bytes)) => {
                self.arrived = when;
                self.pending.extend(bytes);
                Ok(true)
            }
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                bail!("it ended with {status}\n{}", self.tail());
            }
        }
    }

    /// Waits as [`wait_for`](Self::wait_for) does, and calls `sample` about four times a second.
    pub fn sample_until(
        &mut self,
        word: &str,
        limit: Duration,
        mut sample: impl FnMut(),
    ) -> anyhow::Result<Marker> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            sample();
            if let (_, Some(marker)) = self.wait_for_any(&[word], Duration::from_millis(250))? {
                return Ok(marker);
            }
        }
        self.wait_for(word, Duration::ZERO)
    }

    fn tail(&self) -> String {
        let start = self.pending.len().saturating_sub(TAIL);
        let said = String::from_utf8_lossy(&self.pending[start..]);
        let errors = fs::read_to_string(&self.errors).unwrap_or_default();
        format!("{said}\n{errors}").trim().to_owned()
    }

    /// The process's memory.
    pub fn memory(&self, guest_mib: u32) -> anyhow::Result<Memory> {
        let path = format!("/proc/{}/smaps", self.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(Memory::parse(&text, guest_mib))
    }

    /// MiB that are resident beside the guest's RAM, where a monitor may have other big mappings
    /// too: caches of translated code.
    pub fn memory_beside(&self, guest_mib: u32) -> anyhow::Result<f64> {
        let path = format!("/proc/{}/smaps", self.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kib = u32::try_from(beside(&text, guest_mib)).context("too much memory")?;
        Ok(f64::from(kib) / 1024.0)
    }
}

/// KiB of smaps that are not the guest's RAM: a mapping of its size, or a memory file that is
/// called so. Memory files may be mapped twice and count once.
fn beside(smaps: &str, guest_mib: u32) -> u64 {
    let guest = u64::from(guest_mib) << 20;
    let mut is_guest = false;
    let mut is_file = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default();
        let kib = || line.split_whitespace().nth(1)?.parse::<u64>().ok();
        match key {
            "Rss:" if !is_guest && !is_file => sum += kib().unwrap_or(0),
            "Pss:" if !is_guest && is_file => sum += kib().unwrap_or(0),
            _ if !key.ends_with(':') => {
                let size = mapping_size(key).unwrap_or(0);
                is_file = line.contains(" /memfd:");
                is_guest =
                    line.contains("/memfd:guest-ram") || (guest..guest + (8 << 20)).contains(&size);
            }
            _ => {}
        }
    }
    sum
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line with "@WORD", complete with its end: start, end, the rest of the line. The
/// kernel may have written before it on the same line.
fn find_line(bytes: &[u8], word: &str) -> Option<(usize, usize, String)> {
    let marker = format!("@{word}");
    let mut from = 0;
    loop {
        let start = from + find(&bytes[from..], marker.as_bytes())?;
        let rest = start + marker.len();
        let end = rest + bytes[rest..].iter().position(|b| *b == b'\n')?;
        let text = String::from_utf8_lossy(&bytes[rest..end]);
        if text.trim_end().is_empty() || text.starts_with(' ') {
            return Some((start, end + 1, text.trim().to_owned()));
        }
        from = rest;
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|w| w == needle)
}

/// Resident memory in KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The guest's RAM.
    pub guest: u64,
    /// All else that is resident, shared libraries and the program's own text included.
    pub rest: u64,
    /// The part of `rest` that no file backs: heap, stacks, relocated data.
    pub anonymous: u64,
    /// The rest of `rest`, by file: where it goes.
    pub files: BTreeMap<String, u64>,
}

impl Memory {
    /// Of /proc/PID/smaps (proc(5)). A mapping is the guest's RAM if it is a memfd or has a
    /// quarter of its size or more: everything else in a monitor is far smaller.
    fn parse(smaps: &str, guest_mib: u32) -> Self {
        let mut memory = Self::default();
        let (mut is_guest, mut name) = (false, String::new());
        let mut resident = 0;
        for line in smaps.lines() {
            let Some((key, value)) = line.split_once(char::is_whitespace) else {
                continue;
            };
            let kib = || -> u64 {
                let number = value.trim().trim_end_matches("kB").trim();
                number.parse().unwrap_or(0)
            };
            match key {
                "Rss:" if is_guest => memory.guest += kib(),
                "Rss:" => {
                    resident = kib();
                    memory.rest += resident;
                }
                "Anonymous:" if !is_guest => {
                    let anonymous = kib();
                    memory.anonymous += anonymous;
                    if resident > anonymous {
                        *memory.files.entry(name.clone()).or_default() += resident - anonymous;
                    }
                }
                _ if !key.ends_with(':') => {
                    let size = mapping_size(key).unwrap_or(0);
                    // start-end perms offset dev inode name
                    let words: Vec<&str> = line.split_whitespace().collect();
                    name = words.get(5..).unwrap_or_default().join(" ");
                    is_guest =
                        name.starts_with("/memfd:") || size >= (u64::from(guest_mib) << 20) / 4;
                }
                _ => {}
            }
        }
        memory
    }
}

fn mapping_size(range: &str) -> Option<u64> {
    let (start, end) = range.split_once('-')?;
    let parse = |text| u64::from_str_radix(text, 16).ok();
    parse(end)?.checked_sub(parse(start)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_whole_lines_wherever_they_begin() {
        assert!(find_line(b"@init 12", "init").is_none());
        let text = b"[ 0.1] x@initial\n[ 0.2] y@init 12\r\nmore";
        let (start, end, rest) = find_line(text, "init").unwrap();
        assert_eq!(&text[start..start + 5], b"@init");
        assert_eq!(&text[end..], b"more");
        assert_eq!(rest, "12");
    }

    #[test]
    fn caches_of_code_are_not_the_guests() {
        let smaps = "\
7f0000000000-7f0020000000 rw-p 00000000 00:00 0\n\
Rss:              100000 kB\nPss:              100000 kB\n\
7f1000000000-7f1040000000 rwxp 00000000 00:00 0\n\
Rss:               30000 kB\nPss:               30000 kB\n\
7f2000000000-7f2001000000 rw-s 00000000 00:01 5      /memfd:translated (deleted)\n\
Rss:                  40 kB\nPss:                  20 kB\n\
7f3000000000-7f3001000000 r-xs 00000000 00:01 5      /memfd:translated (deleted)\n\
Rss:                  40 kB\nPss:                  20 kB\n";
        assert_eq!(beside(smaps, 512), 30_040);
    }

    #[test]
    fn memory_tells_guest_and_monitor_apart() {
        let smaps = "\
7f0000000000-7f0020000000 rw-p 00000000 00:00 0\n\
Size:             524288 kB\nRss:              100000 kB\nAnonymous:        100000 kB\n\
7f1000000000-7f1000001000 rw-s 00000000 00:01 5      /memfd:ram (deleted)\n\
Rss:                   4 kB\nAnonymous:             0 kB\n\
55d000000000-55d000100000 r-xp 00000000 08:01 7      /usr/bin/vmm\n\
Rss:                 900 kB\nAnonymous:            20 kB\n\
55d000200000-55d000300000 rw-p 00000000 00:00 0      [heap]\n\
Rss:                 300 kB\nAnonymous:           300 kB\n";
        let memory = Memory::parse(smaps, 512);
        assert_eq!(memory.guest, 100_004);
        assert_eq!(memory.rest, 1200);
        assert_eq!(memory.anonymous, 320);
        assert_eq!(memory.files["/usr/bin/vmm"], 880);
    }
}
