//! `vireo qmp`: one command to a machine that runs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::Value;

use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output;

pub(crate) const NAME: &str = "qmp";

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
