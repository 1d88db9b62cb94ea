//! The snippets on every backend that needs no other machine.

use conformance::host::Host;
use conformance::interpreter::Interpreter;
use conformance::snippet;

#[test]
fn on_the_interpreter() {
    let failures = snippet::failures(&mut Interpreter::new(), 2);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn on_the_host() {
    let failures = snippet::failures(&mut Host::new(), 1);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn all_are_there_and_have_names() {
    let all = snippet::all().expect("snippets");
    assert!(all.len() > 150, "only {}", all.len());
    for one in all {
        assert!(
            !one.name.is_empty(),
            "code {:x?} has no name",
            one.case.code
        );
    }
}

#[test]
fn what_is_written_is_read_back() {
    for one in snippet::all().expect("snippets") {
        let start = (one.case.registers.rip - conformance::CODE) as usize;
        let text = snippet::write(&one.case, &one.expected, start, one.undefined);
        let again = snippet::parse(&text).expect("a snippet").remove(0);
        let differences = one.expected.differences(&again.expected, 0);
        assert!(differences.is_empty(), "{}: {differences:?}", one.name);
        assert_eq!(again.undefined, one.undefined);
        assert_eq!(again.case.code, one.case.code);
    }
}

#[test]
fn mistakes_are_named() {
    for (text, words) in [
        ("code 9", "half a byte"),
        ("code 90\nin zax=1", "there is no zax"),
        (
            "code 90\nin xmm0=123456789012345678901234567890123",
            "half a byte",
        ),
        ("code 90\nfluff", "begins with nothing known"),
        ("in rax=1", "there is no code"),
        ("code 90\nin mem+1fff=1122", "beyond the data"),
    ] {
        let error = snippet::parse(text).err().expect(text);
        assert!(format!("{error:#}").contains(words), "{error:#}");
    }
}
