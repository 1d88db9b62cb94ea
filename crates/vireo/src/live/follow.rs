//! A job of a machine, until its end.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::disk::{number, text};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::progress::Progress;

/// How often the machine is asked.
const TICK: Duration = Duration::from_millis(50);
/// How long the word of a job's end may be behind its end.
const LATE: Duration = Duration::from_secs(10);
/// The exit status of what Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// What to do with a job that is ready: a mirror, or a commit of the active image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenReady {
    /// The disk is led to the copy.
    Pivot,
    /// The copy is left as it is at that instant, and the disk where it is.
    Leave,
}

/// A job to begin and to follow.
pub(super) struct Job<'a> {
    /// Its name, see [`name`].
    pub id: &'a str,
    /// What it is, for people.
    pub what: String,
    pub when_ready: WhenReady,
    pub quiet: bool,
}

/// A name for a job that none has.
pub(super) fn name(client: &mut Client, kind: &str, disk: &str) -> Result<String> {
    let jobs = client.call("query-jobs", None)?;
    let first = format!("{kind}-{disk}");
    let mut more = (2_u32..).map(|number| format!("{kind}-{disk}-{number}"));
    match find(&jobs, &first) {
        None => Ok(first),
        Some(_) => Ok(more
            .find(|name| find(&jobs, name).is_none())
            .unwrap_or(first)),
    }
}

fn find<'a>(jobs: &'a Value, id: &str) -> Option<&'a Value> {
    jobs.as_array()?.iter().find(|job| text(job, "id") == id)
}

impl Job<'_> {
    /// Sends the command that begins the job, shows how far it is, and leads it to its end;
    /// Ctrl-C cancels it.
    ///
    /// # Errors
    /// It cannot begin, failed, or was cancelled.
    pub(super) fn run(self, client: &mut Client, command: &str, arguments: Value) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))
                .map_err(|error| Failure::Failed(format!("cannot wait for signals: {error}")))?;
        }
        client.take_events();
        client.call(command, Some(arguments))?;
        let progress = (!self.quiet).then(|| Progress::new(&self.what, 0));
        let mut done = 0;
        let ended = self.wait(client, &stop, &mut |at, of| {
            done = at;
            if let Some(progress) = &progress {
                progress.set_size(of);
                progress.show(at);
            }
        });
        if let Some(progress) = progress {
            progress.end(done);
        }
        ended
    }

    fn wait(
        &self,
        client: &mut Client,
        stop: &AtomicBool,
        show: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let mut cancelled = false;
        let mut told = false;
        let mut gone: Option<Instant> = None;
        loop {
            if stop.load(Ordering::Relaxed) && !cancelled {
                cancelled = true;
                // It may have ended by itself meanwhile.
                _ = client.call("job-cancel", Some(json!({ "id": self.id })));
            }
            let jobs = client.call("query-jobs", None)?;
            for event in client.take_events() {
                let data = event.get("data").cloned().unwrap_or_default();
                if text(&data, "device") != self.id {
                    continue;
                }
                match text(&event, "event") {
                    "BLOCK_JOB_COMPLETED" if data.get("error").is_some() => {
                        return Err(self.failed(text(&data, "error")));
                    }
                    "BLOCK_JOB_COMPLETED" => {
                        show(number(&data, "offset"), number(&data, "len"));
                        return Ok(());
                    }
                    "BLOCK_JOB_CANCELLED" => return Err(self.cancelled(cancelled)),
                    _ => (),
                }
            }
            if let Some(job) = find(&jobs, self.id) {
                show(
                    number(job, "current-progress"),
                    number(job, "total-progress"),
                );
                if text(job, "status") == "ready" && !told && !cancelled {
                    told = true;
                    match self.when_ready {
                        WhenReady::Pivot => {
                            client.call("job-complete", Some(json!({ "id": self.id })))
                        }
                        WhenReady::Leave => {
                            client.call("block-job-cancel", Some(json!({ "device": self.id })))
                        }
                    }?;
                }
            } else if gone.get_or_insert_with(Instant::now).elapsed() > LATE {
                return Err(self.failed("it has ended, and the machine has not said how"));
            }
            std::thread::sleep(TICK);
        }
    }

    fn failed(&self, why: &str) -> Failure {
        Failure::Failed(format!("cannot {}: {why}", self.what))
    }

    fn cancelled(&self, by_us: bool) -> Failure {
        if by_us {
            eprintln!("vireo: {}: cancelled; the disk is as it was", self.what);
            return Failure::Silent(ExitCode::from(INTERRUPTED));
        }
        Failure::Failed(format!(
            "{}: somebody else has cancelled it; the disk is as it was",
            self.what
        ))
    }
}
