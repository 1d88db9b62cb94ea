//! The client's side of QMP.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::failure::{Failure, Result};

/// No command of ours takes long to answer; long work is a job.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the control socket of a machine.
pub(crate) struct Client {
    reader: BufReader<UnixStream>,
    /// What came between answers, and was not asked for yet.
    events: Vec<Value>,
}

impl Client {
    /// Connects, and hears the greeting.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| {
            let advice = match e.kind() {
                std::io::ErrorKind::NotFound => {
                    "; is the machine running, with --qmp and this path?"
                }
                std::io::ErrorKind::ConnectionRefused => {
                    "; the machine has ended without removing it"
                }
                _ => "",
            };
            Failure::Failed(format!("cannot connect: {e}{advice}"))
        };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut client = Self {
            reader: BufReader::new(stream),
            events: Vec::new(),
        };
        match client.receive()? {
            Some(greeting) if greeting.get("QMP").is_some() => Ok(client),
            _ => Err(Failure::Failed("the other side does not speak QMP".into())),
        }
    }

    /// The events that came since this was asked last.
    pub(crate) fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    /// Sends a command and waits for its answer; events in between are kept.
    pub(crate) fn call(&mut self, command: &str, arguments: Option<Value>) -> Result<Value> {
        let mut request = json!({ "execute": command });
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        let sent = self
            .reader
            .get_mut()
            .write_all(format!("{request}\n").as_bytes());
        sent.map_err(|e| Failure::Failed(format!("cannot send {command}: {e}")))?;
        loop {
            let Some(mut message) = self.receive()? else {
                // The machine may be gone before it has answered.
                return match command {
                    "quit" => Ok(json!({})),
                    _ => Err(Failure::Failed(format!(
                        "{command}: the machine has closed the connection"
                    ))),
                };
            };
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = message.get("error") {
                let word = |name: &str| {
                    error
                        .get(name)
                        .and_then(Value::as_str)
                        .unwrap_or("?")
                        .to_owned()
                };
                return Err(Failure::Failed(format!(
                    "{command}: {} ({})",
                    word("desc"),
                    word("class")
                )));
            }
            if message.get("event").is_some() {
                self.events.push(message);
            }
        }
    }

    /// The next message; `None` when the other side has closed the connection.
    fn receive(&mut self) -> Result<Option<Value>> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            Ok(_) => serde_json::from_str(&line)
                .map(Some)
                .map_err(|e| Failure::Failed(format!("the other side does not speak QMP: {e}"))),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Err(Failure::Failed(format!(
                "no answer in {} s",
                PATIENCE.as_secs()
            ))),
            Err(e) => Err(Failure::Failed(format!("cannot receive: {e}"))),
        }
    }
}
