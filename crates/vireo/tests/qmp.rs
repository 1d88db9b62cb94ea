//! `vireo qmp` against a small server.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

fn qmp(socket: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vireo"))
        .arg("qmp")
        .arg(socket)
        .args(words)
        .output()
        .expect("the command starts")
}

/// Serves one client: the greeting, and these answers to its lines; returns what it sent.
fn serve(
    listener: UnixListener,
    greeting: &'static str,
    answers: &'static [&'static str],
) -> thread::JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        writeln!(client, "{greeting}").unwrap();
        let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
        let mut heard = Vec::new();
        for answer in answers {
            match lines.next() {
                Some(line) => heard.push(line.unwrap()),
                None => break,
            }
            writeln!(client, "{answer}").unwrap();
        }
        // The client's last word, or its end.
        heard.extend(lines.next().and_then(Result::ok));
        heard
    })
}

const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

#[test]
fn an_answer_is_printed_and_events_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vm.sock");
    let answers: &[&str] = &[
        r#"{"return": {}}"#,
        "{\"event\": \"STOP\", \"data\": {}}\n{\"return\": {\"status\": \"running\"}}",
    ];
    let server = serve(UnixListener::bind(&socket).unwrap(), GREETING, answers);
    let output = qmp(
        &socket,
        &["block_resize", r#"{"device": "disk0", "size": 4096}"#],
    );
    assert!(output.status.success(), "{output:?}");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["status"], "running");
    let heard = server.join().unwrap();
    assert!(heard[0].contains("qmp_capabilities"));
    let request: serde_json::Value = serde_json::from_str(&heard[1]).unwrap();
    assert_eq!(request["execute"], "block_resize");
    assert_eq!(request["arguments"]["size"], 4096);
}

#[test]
fn an_error_is_told_with_its_class() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vm.sock");
    let answers: &[&str] = &[
        r#"{"return": {}}"#,
        r#"{"error": {"class": "CommandNotFound", "desc": "no such command"}}"#,
    ];
    let server = serve(UnixListener::bind(&socket).unwrap(), GREETING, answers);
    let output = qmp(&socket, &["nonsense"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        error,
        "vireo: nonsense: no such command (CommandNotFound)\n"
    );
    server.join().unwrap();
}

#[test]
fn a_machine_that_quits_need_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let answers: &[&str] = &[r#"{"return": {}}"#];
    for (command, status) in [("quit", 0), ("stop", 1)] {
        let socket = folder.path().join(command);
        let server = serve(UnixListener::bind(&socket).unwrap(), GREETING, answers);
        assert_eq!(qmp(&socket, &[command]).status.code(), Some(status));
        server.join().unwrap();
    }
}

#[test]
fn a_socket_without_a_machine_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let error = |socket: &Path, words: &[&str], status| {
        let output = qmp(socket, words);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = folder.path().join("none.sock");
    assert!(error(&missing, &["quit"], 1).contains("is the machine running"));
    let dead = folder.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    assert!(error(&dead, &["quit"], 1).contains("has ended"));
    assert!(error(&dead, &["quit", "[1]"], 2).contains("JSON object"));

    let other = folder.path().join("other.sock");
    let server = serve(UnixListener::bind(&other).unwrap(), "220 mail", &[]);
    assert!(error(&other, &["quit"], 1).contains("does not speak QMP"));
    server.join().unwrap();
}
