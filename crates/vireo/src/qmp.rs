//! `vireo qmp`: one command to a machine that runs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::output;

pub(crate) const NAME: &str = "qmp";

/// No command of ours takes long to answer; long work is a job.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Sends one QMP command to a running machine and prints its answer as JSON")
        .after_help("Example: vireo qmp vm.sock query-status")
        .arg(
            Arg::new("socket")
                .value_name("SOCKET")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The socket that --qmp made"),
        )
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .required(true)
                .help("Such as query-status or system_powerdown"),
        )
        .arg(
            Arg::new("arguments")
                .value_name("JSON")
                .help("The command's arguments, a JSON object"),
        )
}

pub(crate) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let (Some(socket), Some(command)) = (
        matches.get_one::<PathBuf>("socket"),
        matches.get_one::<String>("command"),
    ) else {
        return Err(Failure::Usage("a socket and a command are needed".into()));
    };
    let arguments = matches
        .get_one::<String>("arguments")
        .map(|text| arguments(text))
        .transpose()?;
    let mut client = Client::connect(socket).map_err(|f| f.at(socket.display()))?;
    client
        .call("qmp_capabilities", None)
        .map_err(|f| f.at(socket.display()))?;
    output::print_json(&client.call(command, arguments)?)
}

fn arguments(text: &str) -> Result<Value> {
    match serde_json::from_str(text) {
        Ok(object @ Value::Object(_)) => Ok(object),
        Ok(_) => Err(Failure::Usage(format!(
            "{text}: expected a JSON object such as {{\"id\": \"disk0\"}}"
        ))),
        Err(e) => Err(Failure::Usage(format!("{text}: not JSON: {e}"))),
    }
}

struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    fn connect(socket: &Path) -> Result<Self> {
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
        };
        match client.receive()? {
            Some(greeting) if greeting.get("QMP").is_some() => Ok(client),
            _ => Err(Failure::Failed("the other side does not speak QMP".into())),
        }
    }

    /// Sends a command and waits for its answer; events in between are passed over.
    fn call(&mut self, command: &str, arguments: Option<Value>) -> Result<Value> {
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
