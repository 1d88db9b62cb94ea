//! Log lines: time, level, where from, what.
//!
//! ```text
//!   log::warn! ─▶ [Limiter] ─▶ "2026-11-23T14:53:50.123Z WARN  virtio: ..." ─▶ stderr or a file
//!                  └ more than 10 a second from one place: folded into one line with a count
//! ```
//!
//! A guest can cause many a line; it must not fill the host's disk with them. Lines end in a
//! plain line feed also on a terminal in raw mode, whose output processing stays on.

mod limiter;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use log::{Level, LevelFilter, Log, Metadata, Record};

use self::limiter::{Limiter, Verdict};
use crate::failure::{Failure, Result};

spec::choice! {
    /// The least important lines that are logged.
    pub enum Threshold {
        /// Nothing.
        Off = "off",
        /// What failed.
        Error = "error",
        /// What is wrong, and can be gone on with.
        Warn = "warn",
        /// What a user wants to know.
        Info = "info",
        /// What helps to find an error.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

spec::spec! {
    /// What is logged, and where to.
    pub struct LogSpec("log") {
        /// The least important lines that are logged: off, error, warn, info, debug or trace.
        level: Threshold = Threshold::Info,
        /// File to append to; standard error when not given.
        file: Option<PathBuf>,
    }
}

impl From<Threshold> for LevelFilter {
    fn from(threshold: Threshold) -> Self {
        match threshold {
            Threshold::Off => Self::Off,
            Threshold::Error => Self::Error,
            Threshold::Warn => Self::Warn,
            Threshold::Info => Self::Info,
            Threshold::Debug => Self::Debug,
            Threshold::Trace => Self::Trace,
        }
    }
}

/// Logs from now on.
pub(crate) fn install(spec: &LogSpec) -> Result<()> {
    let open = |path: &PathBuf| {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|e| {
                Failure::Failed(format!("cannot open the log file {}: {e}", path.display()))
            })
    };
    let sink = match spec.file.as_ref().map(open).transpose()? {
        Some(file) => Sink::File(file),
        None => Sink::Stderr,
    };
    let logger = Logger {
        level: spec.level.into(),
        state: Mutex::new(State {
            sink,
            limiter: Limiter::default(),
        }),
    };
    log::set_max_level(logger.level);
    log::set_boxed_logger(Box::new(logger)).map_err(|e| Failure::Failed(e.to_string()))
}

enum Sink {
    Stderr,
    File(File),
}

impl Sink {
    /// In one system call, so that lines of several processes do not mix. There is nobody to
    /// tell when it fails.
    fn line(&mut self, line: &str) {
        _ = match self {
            Self::Stderr => std::io::stderr().write_all(line.as_bytes()),
            Self::File(file) => file.write_all(line.as_bytes()),
        };
    }
}

struct State {
    sink: Sink,
    limiter: Limiter,
}

impl State {
    fn write(&mut self, level: Level, target: &str, text: &dyn std::fmt::Display) {
        let time = timestamp(SystemTime::now());
        self.sink
            .line(&format!("{time} {level:5} {target}: {text}\n"));
    }

    /// Tells how many lines were folded in periods that are over.
    fn settle(&mut self, now: Option<Instant>) {
        for folded in self.limiter.settle(now) {
            let text =
                format_args!("{} more lines like: {}", folded.count, folded.last).to_string();
            self.write(folded.level, &folded.target, &text);
        }
    }
}

struct Logger {
    level: LevelFilter,
    state: Mutex<State>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.settle(Some(now));
        if let Verdict::Write = state.limiter.judge(record, now) {
            state.write(record.level(), record.target(), record.args());
        }
    }

    fn flush(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .settle(None);
    }
}

/// The time in UTC as RFC 3339 writes it, to the millisecond.
fn timestamp(time: SystemTime) -> String {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
        since.subsec_millis()
    )
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests;
