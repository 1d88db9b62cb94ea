//! What a build reports while it runs.

use std::fmt;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// What the build is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Looking for programs, room and package sources.
    Prepare,
    /// Fetching package lists and packages.
    Download,
    /// Unpacking and configuring packages.
    Install,
    /// Copying the recipe's files in and running its script.
    Customize,
    /// Packing and unpacking the tree.
    Pack,
    /// Writing the file system.
    FileSystem,
    /// Taking kernel and initramfs out.
    Kernel,
    /// The outputs stand under their final names.
    Done,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Prepare => "prepare",
            Self::Download => "download packages",
            Self::Install => "install packages",
            Self::Customize => "customize",
            Self::Pack => "pack",
            Self::FileSystem => "write file system",
            Self::Kernel => "extract kernel",
            Self::Done => "done",
        })
    }
}

/// One report.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// What the build is doing.
    pub stage: Stage,
    /// How much of the whole build is done, 0.0 to 1.0; never falls within one build.
    pub fraction: f64,
    /// The object at hand, for example a package's name; may be empty.
    pub detail: String,
}

/// Takes a build's reports.
///
/// Every `FnMut(&Update)` is one; `|_: &Update| {}` ignores them.
pub trait Progress {
    /// Called on the building thread for every step, up to a few hundred times.
    fn update(&mut self, update: &Update);
}

impl<F: FnMut(&Update)> Progress for F {
    fn update(&mut self, update: &Update) {
        self(update);
    }
}

/// Draws the reports as a progress bar on standard error; silent where that is no terminal.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
}

/// Steps of the drawn bar.
const STEPS: f64 = 1000.0;

impl Bar {
    /// A bar that appears with the first report.
    #[must_use]
    pub fn new() -> Self {
        let bar = ProgressBar::new(STEPS as u64);
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix:17} [{bar:30}] {percent:>3}% {elapsed:>4} {wide_msg}",
        ) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar }
    }
}

impl Default for Bar {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Bar {
    fn update(&mut self, update: &Update) {
        if update.stage == Stage::Prepare {
            // The elapsed time goes on while a stage says nothing.
            self.bar.enable_steady_tick(Duration::from_millis(250));
        }
        self.bar.set_prefix(update.stage.to_string());
        self.bar.set_message(update.detail.clone());
        self.bar
            .set_position((update.fraction.clamp(0.0, 1.0) * STEPS) as u64);
        if update.stage == Stage::Done {
            self.bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
