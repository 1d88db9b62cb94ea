use qmp::commands::machine::QueryCpusFast;
use qmp::commands::misc::QueryVersion;
use qmp::commands::run_state::{Quit, Stop};
use qmp::{Empty, QmpError, Session, Table};
use serde_json::{Value, json};

use crate::Script;

/// A client of the control socket, whose bytes come in pieces.
pub fn qmp_session(data: &[u8]) {
    let mut script = Script::new(data);
    let table = Table::<u32>::new()
        .on(|calls, _: Stop| {
            *calls += 1;
            Ok(Empty {})
        })
        .on(|_, _: Quit| Err::<Empty, _>(QmpError::generic("not today")))
        .on(|_, _: QueryCpusFast| Ok(Vec::new()))
        .on(|_, _: QueryVersion| Err(QmpError::generic("no version")));
    let mut calls = 0;
    let mut session = Session::new(&json!({ "qemu": { "major": 9, "minor": 2, "micro": 0 } }));
    check(&session.take_output());
    while !script.is_over() {
        let len = script.u8();
        let piece = match len {
            // A client that knows how it is done, so that the fuzzer need not find it out.
            0 => br#"{"execute":"qmp_capabilities"}"#,
            n => script.bytes(n.into()),
        };
        for request in session.receive(piece) {
            assert!(session.is_negotiated());
            let result = table.run(&mut calls, &request.execute, request.arguments);
            session.reply(request.id.as_ref(), result);
        }
        check(&session.take_output());
    }
}

/// Every line that a client gets is an object.
fn check(output: &[u8]) {
    for line in output.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !line.is_empty() {
            let value: Value = serde_json::from_slice(line).expect("JSON");
            assert!(value.is_object());
        }
    }
}
