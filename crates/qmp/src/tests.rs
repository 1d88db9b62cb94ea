use proptest::prelude::*;
use serde_json::{Value, json};

use super::commands::block::BlockResize;
use super::commands::run_state::{QueryStatus, RunState, StatusInfo};
use super::*;

fn lines(session: &mut Session) -> Vec<Value> {
    let output = String::from_utf8(session.take_output()).unwrap();
    output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn negotiated() -> Session {
    let mut session = Session::new(&json!({}));
    assert!(
        session
            .receive(br#"{"execute":"qmp_capabilities"}"#)
            .is_empty()
    );
    let _ = session.take_output();
    session
}

#[test]
fn nothing_but_negotiation_is_taken_before_it() {
    let mut session = Session::new(&json!({ "package": "x" }));
    assert_eq!(
        lines(&mut session),
        [json!({"QMP": {"version": {"package": "x"}, "capabilities": []}})]
    );
    session.event(&Event::stop());
    assert!(session.receive(br#"{"execute":"stop","id":1}"#).is_empty());
    let replies = lines(&mut session);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0]["error"]["class"], "CommandNotFound");
    assert_eq!(replies[0]["id"], 1);
    assert!(
        session
            .receive(br#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#)
            .is_empty()
    );
    assert_eq!(lines(&mut session)[0]["error"]["class"], "GenericError");
    assert!(
        session
            .receive(br#"{"execute":"qmp_capabilities","id":{"a":1}}"#)
            .is_empty()
    );
    assert_eq!(lines(&mut session), [json!({"return": {}, "id": {"a": 1}})]);
    session.receive(br#"{"execute":"qmp_capabilities"}"#);
    assert_eq!(lines(&mut session)[0]["error"]["class"], "CommandNotFound");
    session.event(&Event::stop());
    assert_eq!(lines(&mut session)[0]["event"], "STOP");
}

#[test]
fn requests_come_in_pieces_and_in_bunches() {
    let mut session = negotiated();
    assert!(session.receive(b"{\"execute\": \"st").is_empty());
    let requests = session.receive(b"op\"}\r\n{\"execute\":\"cont\",\"arguments\":{}}{\"exec");
    assert_eq!(
        requests
            .iter()
            .map(|r| r.execute.as_str())
            .collect::<Vec<_>>(),
        ["stop", "cont"]
    );
    assert_eq!(session.receive(b"ute\":\"quit\"}")[0].execute, "quit");
    assert!(session.take_output().is_empty());
}

#[test]
fn nonsense_is_answered_and_the_next_line_is_heard() {
    let mut session = negotiated();
    let requests = session.receive(b"}nonsense\n{\"execute\":\"stop\"}\n");
    assert_eq!(requests[0].execute, "stop");
    assert_eq!(lines(&mut session)[0]["error"]["class"], "GenericError");
    for text in [
        r#"[1]"#,
        r#"{"arguments":{}}"#,
        r#"{"execute":1}"#,
        r#"{"execute":"stop","arguments":[]}"#,
        r#"{"execute":"stop","extra":1}"#,
    ] {
        assert!(session.receive(text.as_bytes()).is_empty());
        assert_eq!(
            lines(&mut session)[0]["error"]["class"],
            "GenericError",
            "{text}"
        );
    }
}

#[test]
fn a_table_checks_arguments_and_names() {
    let table = Table::<u32>::new()
        .on::<QueryStatus>(|calls, _| {
            *calls += 1;
            Ok(StatusInfo {
                running: false,
                status: RunState::GuestPanicked,
            })
        })
        .on::<BlockResize>(|_, resize| match resize.device {
            Some(id) => Err(QmpError::no_device(&id)),
            None => Ok(Empty {}),
        });
    let mut calls = 0;
    let status = table
        .run(&mut calls, "query-status", serde_json::Map::new())
        .unwrap();
    assert_eq!(
        (status, calls),
        (json!({"running": false, "status": "guest-panicked"}), 1)
    );
    let mut run = |name: &str, arguments: Value| {
        table
            .run(&mut calls, name, arguments.as_object().unwrap().clone())
            .map_err(|e| e.class)
    };
    assert_eq!(run("nope", json!({})), Err(ErrorClass::CommandNotFound));
    assert_eq!(
        run("query-status", json!({"x": 1})),
        Err(ErrorClass::GenericError)
    );
    assert_eq!(
        run("block_resize", json!({"device": "a", "size": 1})),
        Err(ErrorClass::DeviceNotFound)
    );
    assert_eq!(
        run("block_resize", json!({"size": "1"})),
        Err(ErrorClass::GenericError)
    );
    assert_eq!(
        run("block_resize", json!({"node-name": "a", "size": 1})),
        Ok(json!({}))
    );
    assert_eq!(
        table.names().collect::<Vec<_>>(),
        ["block_resize", "query-status"]
    );
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_never_panic(pieces: Vec<Vec<u8>>) {
        let mut session = negotiated();
        for piece in pieces {
            let _ = session.receive(&piece);
        }
    }

    #[test]
    fn the_pieces_do_not_matter(cut in 0usize..60) {
        let text = b"{\"execute\":\"stop\",\"id\":7}\n{\"execute\":\"cont\",\"id\":[]}\n";
        let cut = cut.min(text.len());
        let mut whole = negotiated();
        let mut pieces = negotiated();
        let expected = whole.receive(text);
        let mut got = pieces.receive(&text[..cut]);
        got.extend(pieces.receive(&text[cut..]));
        prop_assert_eq!(got, expected);
    }
}
