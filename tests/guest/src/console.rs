//! What comes out of a serial port, collected by a thread, and waited for by tests.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How much of the transcript stands in an error.
const TAIL: usize = 3000;

#[derive(Default)]
struct Transcript {
    bytes: Vec<u8>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    transcript: Mutex<Transcript>,
    more: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Transcript> {
        self.transcript
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One end of a line of text: everything that was received, and a way to type.
pub struct Console {
    shared: Arc<Shared>,
    input: Box<dyn Write + Send>,
    /// How far the tests have read.
    position: usize,
    /// Cut when the console is dropped, as the collecting thread keeps it open.
    socket: Option<UnixStream>,
}

impl Console {
    /// A console that collects what `output` gives in a thread of its own.
    pub fn new(mut output: impl Read + Send + 'static, input: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let collector = Arc::clone(&shared);
        thread::spawn(move || {
            let mut buffer = vec![0; 16 << 10];
            loop {
                // A pty whose other end is closed reads as an error.
                let length = output.read(&mut buffer).unwrap_or(0);
                let mut transcript = collector.lock();
                transcript.bytes.extend_from_slice(&buffer[..length]);
                transcript.ended |= length == 0;
                collector.more.notify_all();
                if length == 0 {
                    return;
                }
            }
        });
        Self {
            shared,
            input: Box::new(input),
            position: 0,
            socket: None,
        }
    }

    /// A console at a socket, which is closed with it.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn at(socket: UnixStream) -> anyhow::Result<Self> {
        let mut console = Self::new(socket.try_clone()?, socket.try_clone()?);
        console.socket = Some(socket);
        Ok(console)
    }

    /// Types `text`.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub fn send(&mut self, text: &str) -> anyhow::Result<()> {
        self.input
            .write_all(text.as_bytes())
            .and_then(|()| self.input.flush())
            .context("cannot type at the console")
    }

    /// Waits until `text` comes and returns what came before it, without either.
    ///
    /// # Errors
    /// The time is over or the line is cut; the error has the end of the transcript.
    pub fn expect(&mut self, text: &str, within: Duration) -> anyhow::Result<String> {
        Ok(self.expect_any(&[text], within)?.1)
    }

    /// As [`expect`](Self::expect) for the first of several texts; says which one it was.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    pub fn expect_any(
        &mut self,
        texts: &[&str],
        within: Duration,
    ) -> anyhow::Result<(usize, String)> {
        let deadline = Instant::now() + within;
        let shared = Arc::clone(&self.shared);
        let mut transcript = shared.lock();
        loop {
            let fresh = &transcript.bytes[self.position..];
            let first = texts
                .iter()
                .enumerate()
                .filter_map(|(index, text)| Some((find(fresh, text.as_bytes())?, index)))
                .min();
            if let Some((at, index)) = first {
                let before = String::from_utf8_lossy(&fresh[..at]).into_owned();
                self.position += at + texts[index].len();
                return Ok((index, before));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if transcript.ended || left.is_zero() {
                let why = if transcript.ended {
                    "the console closed".to_owned()
                } else {
                    format!("{:.0} s passed", within.as_secs_f64())
                };
                bail!("{why} before {texts:?} came; last was:\n{}", tail(fresh));
            }
            transcript = shared
                .more
                .wait_timeout(transcript, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the other end closes.
    ///
    /// # Errors
    /// The time is over.
    pub fn expect_end(&mut self, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        let shared = Arc::clone(&self.shared);
        let mut transcript = shared.lock();
        while !transcript.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "the console is still open; last was:\n{}",
                    tail(&transcript.bytes)
                );
            }
            transcript = shared
                .more
                .wait_timeout(transcript, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }

    /// All that came so far, read or not.
    #[must_use]
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().bytes).into_owned()
    }

    /// The end of what came so far.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.shared.lock().bytes)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            // The other end may have closed it already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Where `needle` begins in `text`.
fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return Some(0);
    }
    text.windows(needle.len())
        .position(|window| window == needle)
}

/// The last lines, each behind a mark.
fn tail(text: &[u8]) -> String {
    let text = &text[text.len().saturating_sub(TAIL)..];
    let text = String::from_utf8_lossy(text);
    let lines: Vec<String> = text.lines().map(|line| format!("  | {line}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn texts_are_found_in_their_order_and_once() {
        let mut console = Console::new(Cursor::new(b"one two\r\nthree two".to_vec()), Vec::new());
        assert_eq!(console.expect("two", SOON).unwrap(), "one ");
        let (index, before) = console.expect_any(&["two", "three"], SOON).unwrap();
        assert_eq!((index, before.as_str()), (1, "\r\n"));
        assert_eq!(console.expect("two", SOON).unwrap(), " ");
        console.expect_end(SOON).unwrap();
        assert_eq!(console.transcript(), "one two\r\nthree two");
    }

    #[test]
    fn an_error_shows_what_came_instead() {
        let mut console = Console::new(Cursor::new(b"Kernel panic".to_vec()), Vec::new());
        let error = console.expect("login:", SOON).unwrap_err().to_string();
        assert!(error.contains("closed"), "{error}");
        assert!(error.contains("| Kernel panic"), "{error}");
    }

    #[test]
    fn waiting_has_an_end() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let mut console = Console::new(reader, Vec::new());
        let error = console.expect("x", Duration::from_millis(20)).unwrap_err();
        assert!(error.to_string().contains("passed"), "{error}");
        console.expect_end(Duration::from_millis(20)).unwrap_err();
    }
}
