use serde_json::{Map, Value, json};

use crate::{Event, QmpError};

/// Most bytes of one request. QEMU's own limit is 64 MiB of tokens; nothing here is near.
const LIMIT: usize = 4 << 20;

/// A command as it came, to be answered by [`Session::reply`].
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Name of the command.
    pub execute: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
    /// The client's name for the request, which the reply repeats.
    pub id: Option<Value>,
}

/// The protocol of one connection.
///
/// It begins in capabilities negotiation mode: the only command is `qmp_capabilities`, and no
/// events are sent. The session answers that command itself.
#[derive(Debug, Default)]
pub struct Session {
    input: Vec<u8>,
    output: Vec<u8>,
    negotiated: bool,
}

impl Session {
    /// A new connection; the greeting is waiting in [`Session::take_output`].
    #[must_use]
    pub fn new(version: &Value) -> Self {
        let mut session = Self::default();
        session.send(&json!({ "QMP": { "version": version, "capabilities": [] } }));
        session
    }

    /// Whether the client has negotiated, so that it hears events.
    #[must_use]
    pub fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// Takes bytes from the client; returns the requests that they complete. What cannot be
    /// understood is answered right here, and the stream is picked up again at the next line.
    pub fn receive(&mut self, bytes: &[u8]) -> Vec<Request> {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut requests = Vec::new();
        let mut rest = input.as_slice();
        while !rest.is_empty() {
            let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<Value>();
            let mut used = 0;
            let error = loop {
                match values.next() {
                    Some(Ok(value)) => {
                        used = values.byte_offset();
                        requests.extend(self.understand(value));
                    }
                    Some(Err(e)) => break e,
                    None => return requests,
                }
            };
            rest = &rest[used..];
            if error.is_eof() && rest.len() < LIMIT {
                self.input = rest.to_vec();
                break;
            }
            self.reply(
                None,
                Err(QmpError::generic(format!("JSON parse error, {error}"))),
            );
            let line = rest.iter().position(|byte| *byte == b'\n');
            rest = line.map_or(&[], |end| &rest[end + 1..]);
        }
        requests
    }

    /// Answers a request.
    pub fn reply(&mut self, id: Option<&Value>, result: Result<Value, QmpError>) {
        let mut reply = match result {
            Ok(value) => json!({ "return": value }),
            Err(error) => json!({ "error": error }),
        };
        if let Some(id) = id {
            reply["id"] = id.clone();
        }
        self.send(&reply);
    }

    /// Tells the client of an event, if it has negotiated.
    pub fn event(&mut self, event: &Event) {
        if self.negotiated {
            self.send(&event.to_json());
        }
    }

    /// The bytes to be sent to the client.
    #[must_use]
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    fn send(&mut self, value: &Value) {
        self.output.extend_from_slice(value.to_string().as_bytes());
        self.output.extend_from_slice(b"\r\n");
    }

    fn understand(&mut self, value: Value) -> Option<Request> {
        match into_request(value) {
            Err((id, error)) => {
                self.reply(id.as_ref(), Err(error));
                None
            }
            Ok(request) if request.execute == "qmp_capabilities" => {
                let result = self.negotiate(&request);
                self.reply(request.id.as_ref(), result);
                None
            }
            Ok(request) if !self.negotiated => {
                let error = QmpError::no_command(
                    "Expecting capabilities negotiation with 'qmp_capabilities'",
                );
                self.reply(request.id.as_ref(), Err(error));
                None
            }
            Ok(request) => Some(request),
        }
    }

    fn negotiate(&mut self, request: &Request) -> Result<Value, QmpError> {
        if self.negotiated {
            return Err(QmpError::no_command(
                "Capabilities negotiation is already complete, command ignored",
            ));
        }
        for (name, value) in &request.arguments {
            match (name.as_str(), value.as_array()) {
                ("enable", Some(wanted)) if wanted.is_empty() => {}
                ("enable", Some(wanted)) => {
                    return Err(QmpError::generic(format!(
                        "Capability {} is not offered",
                        wanted[0]
                    )));
                }
                ("enable", None) => {
                    return Err(QmpError::generic("Parameter 'enable' expects an array"));
                }
                _ => {
                    return Err(QmpError::generic(format!(
                        "Parameter '{name}' is unexpected"
                    )));
                }
            }
        }
        self.negotiated = true;
        Ok(json!({}))
    }
}

fn into_request(value: Value) -> Result<Request, (Option<Value>, QmpError)> {
    let Value::Object(mut members) = value else {
        return Err((None, QmpError::generic("QMP input must be a JSON object")));
    };
    let id = members.remove("id");
    let wrong = |id: &Option<Value>, desc: String| Err((id.clone(), QmpError::generic(desc)));
    let execute = match members.remove("execute") {
        Some(Value::String(name)) => name,
        Some(_) => return wrong(&id, "QMP input member 'execute' must be a string".into()),
        None => return wrong(&id, "QMP input lacks member 'execute'".into()),
    };
    let arguments = match members.remove("arguments") {
        None => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(_) => return wrong(&id, "QMP input member 'arguments' must be an object".into()),
    };
    match members.keys().next() {
        Some(name) => wrong(&id, format!("QMP input member '{name}' is unexpected")),
        None => Ok(Request {
            execute,
            arguments,
            id,
        }),
    }
}
