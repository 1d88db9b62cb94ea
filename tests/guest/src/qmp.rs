//! A QMP client as small as can be (QEMU's docs/interop/qmp-spec.rst).

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection in command mode.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    events: VecDeque<Value>,
    /// What the server said first.
    pub greeting: Value,
}

impl Qmp {
    /// Connects to the socket at `path`, waiting for it to appear, and negotiates.
    ///
    /// # Errors
    /// Nobody listens there in time, or it is no QMP.
    pub fn connect(path: &Path, within: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + within;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => {
                    return Err(error)
                        .with_context(|| format!("nobody listens at {}", path.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut qmp = Self {
            reader: BufReader::new(stream.try_clone()?),
            writer: stream,
            events: VecDeque::new(),
            greeting: Value::Null,
        };
        qmp.greeting = qmp.receive(ANSWER)?.context("no greeting")?;
        ensure!(
            qmp.greeting["QMP"]["version"]["qemu"]["major"].is_u64(),
            "no QMP greeting: {}",
            qmp.greeting
        );
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; its return value.
    ///
    /// # Errors
    /// The server's error, as "class: description".
    pub fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments, "id": command });
        writeln!(self.writer, "{request}").with_context(|| format!("cannot send {command}"))?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self
                .receive(left)?
                .with_context(|| format!("no answer to {command}"))?;
            if message.get("event").is_some() {
                self.events.push_back(message);
                continue;
            }
            ensure!(
                message["id"] == command,
                "answer to another command: {message}"
            );
            if let Some(error) = message.get("error") {
                let text = |key: &str| error[key].as_str().unwrap_or("?").to_owned();
                bail!("{}: {}", text("class"), text("desc"));
            }
            return Ok(message["return"].clone());
        }
    }

    /// The next event, whatever it is; none if none comes in time or the connection ends.
    ///
    /// # Errors
    /// What comes is no JSON.
    pub fn next_event(&mut self, within: Duration) -> anyhow::Result<Option<Value>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        self.receive(within)
    }

    /// Waits for the event `name`; earlier ones are dropped.
    ///
    /// # Errors
    /// It does not come in time.
    pub fn wait_event(&mut self, name: &str, within: Duration) -> anyhow::Result<Value> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self
                .next_event(left)?
                .with_context(|| format!("event {name} does not come"))?;
            if event["event"] == name {
                return Ok(event);
            }
        }
    }

    fn receive(&mut self, within: Duration) -> anyhow::Result<Option<Value>> {
        // A zero timeout would mean none at all.
        let within = within.max(Duration::from_millis(1));
        self.reader.get_ref().set_read_timeout(Some(within))?;
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) | Err(_) => Ok(None),
            Ok(_) => Ok(Some(serde_json::from_str(&line).with_context(|| {
                format!("the server said what is no JSON: {line:?}")
            })?)),
        }
    }
}
