use super::*;

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdout(Stdio::null());
    command
}

#[test]
fn a_missing_program_names_its_package() {
    let program = Program {
        name: "no-such-program-here",
        package: "its-package",
    };
    let message = program.find().unwrap_err().to_string();
    assert_eq!(
        message,
        "no-such-program-here is not installed; on Debian: apt-get install its-package"
    );
}

#[test]
fn lines_arrive_in_order() {
    let mut lines = Vec::new();
    run(
        &mut sh("echo one >&2; echo two >&2; printf three >&2"),
        "count",
        &mut |line| lines.push(line.to_owned()),
    )
    .unwrap();
    assert_eq!(lines, ["one", "two", "three"]);
}

#[test]
fn a_failure_shows_status_and_the_last_lines_only() {
    let error = run(&mut sh("seq 1 100 >&2; exit 3"), "count", &mut |_| {}).unwrap_err();
    let Error::Program {
        what, status, tail, ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((what, status.code()), ("count", Some(3)));
    assert!(
        tail.starts_with("86\n") && tail.ends_with("\n100"),
        "{tail}"
    );
}
