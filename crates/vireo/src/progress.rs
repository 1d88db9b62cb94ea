//! How far long work is: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is said where there is no terminal.
const LINE: Duration = Duration::from_secs(5);

/// A bar on a terminal, a line now and then elsewhere.
pub(crate) struct Progress {
    what: String,
    size: std::cell::Cell<u64>,
    begun: Instant,
    bar: Option<ProgressBar>,
    said: std::cell::Cell<Instant>,
}

impl Progress {
    /// Of work on `size` bytes, which is called `what`.
    pub(crate) fn new(what: &str, size: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style =
                "{msg} [{bar:40}] {percent:>3}% {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
            let bar = ProgressBar::new(size).with_message(what.to_owned());
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Self {
            what: what.to_owned(),
            size: std::cell::Cell::new(size),
            begun: Instant::now(),
            bar,
            said: std::cell::Cell::new(Instant::now()),
        }
    }

    /// There is more to do, or less, than was thought.
    pub(crate) fn set_size(&self, size: u64) {
        self.size.set(size);
        if let Some(bar) = &self.bar {
            bar.set_length(size);
        }
    }

    /// So many bytes are done.
    pub(crate) fn show(&self, done: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.said.get().elapsed() >= LINE => {
                self.said.set(Instant::now());
                self.line(done);
            }
            None => (),
        }
    }

    fn line(&self, done: u64) {
        let size = self.size.get();
        let percent = match size {
            0 => 100.0,
            size => done as f64 * 100.0 / size as f64,
        };
        let seconds = self.begun.elapsed().as_secs_f64();
        let rate = done as f64 / seconds.max(0.001);
        let left = match done {
            0 => String::new(),
            _ => format!(
                ", {:.0} s left",
                size.saturating_sub(done) as f64 / rate.max(1.0)
            ),
        };
        eprintln!(
            "{percent:3.0}% {}, {:.1} MiB/s{left}",
            self.what,
            rate / f64::from(1 << 20)
        );
    }

    /// It is over, with so many bytes done.
    pub(crate) fn end(&self, done: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.finish_and_clear();
            }
            None => self.line(done),
        }
    }
}
