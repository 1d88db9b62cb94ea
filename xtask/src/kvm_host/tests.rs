use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;

use super::*;

#[test]
fn drives_are_named_after_their_file_or_as_told() {
    let drive = |text| Drive::parse(text).map(|d| (d.file.to_string_lossy().into_owned(), d.name));
    assert_eq!(
        drive("a/debian.img").unwrap(),
        ("a/debian.img".into(), "debian".into())
    );
    assert_eq!(
        drive("a,b.img,name=my-disk").unwrap(),
        ("a,b.img".into(), "my-disk".into())
    );
    for bad in [
        "x.img,name=",
        "x.img,name=a/b",
        "a,b.img",
        "x.img,name=root",
        "x,name=123456789012345678901",
    ] {
        assert!(drive(bad).is_err(), "{bad}");
    }
    assert_eq!(
        Drive {
            file: "x".into(),
            name: "my-disk".into()
        }
        .variable(),
        "VIREO_DRIVE_MY_DISK"
    );
}

#[test]
fn variables_need_a_shell_name() {
    assert_eq!(
        parse_variable("A_1=x=y").unwrap(),
        ("A_1".into(), "x=y".into())
    );
    for bad in ["A", "=x", "1A=x", "A B=x", "$(x)=1"] {
        assert!(parse_variable(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_run_script_keeps_every_word_whole() {
    let words = [
        "printf",
        "%s|",
        "a b",
        "it's",
        "$HOME",
        "",
        "line\nbreak",
        "*",
    ];
    let environment = [("ODD".to_owned(), "'; exit 9 #".to_owned())];
    let text = script::run(&words, OsStr::new("/"), &environment);
    let output = Command::new("sh")
        .arg("-c")
        .arg(OsString::from(String::from_utf8(text).unwrap()))
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"a b|it's|$HOME||line\nbreak|*|");
}

#[test]
fn busybox_and_cpio_agree_on_the_archive() {
    let mut archive = cpio::Archive::default();
    archive.directory("box");
    archive.file("box/odd size", 0o755, b"12345");
    let mut bytes = archive.finish();
    let mut second = cpio::Archive::default();
    second.file("init", 0o644, b"");
    bytes.extend(second.finish());

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive");
    fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
    // The kernel unpacks what follows the first trailer; the program stops there.
    let output = Command::new("busybox")
        .args(["cpio", "-idmF"])
        .arg(&path)
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        fs::read(directory.path().join("box/odd size")).unwrap(),
        b"12345"
    );
    assert_eq!(bytes.len() % 4, 0);
    assert_eq!(bytes.windows(10).filter(|w| w == b"TRAILER!!!").count(), 2);
}

#[test]
fn hardware_is_used_with_the_same_environment_and_status() {
    let host = HostBox {
        drives: vec![Drive {
            file: "/tmp/x.img".into(),
            name: "guest".into(),
        }],
        environment: vec![("MORE".into(), "1".into())],
        ..HostBox::default()
    };
    let command = |text: &str| ["sh", "-c", text].map(OsString::from);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let script = "echo $VIREO_KVM_HOST $VIREO_DRIVE_GUEST $MORE; echo e >&2; [ -d $VIREO_SCRATCH ] && exit 3";
    let outcome = host
        .run_directly(&command(script), Some((&mut out, &mut err)))
        .unwrap();
    assert_eq!(outcome.end, End::Exited(3));
    assert_eq!(String::from_utf8(out).unwrap(), "direct /tmp/x.img 1\n");
    assert_eq!(err, b"e\n");

    let late = HostBox {
        timeout: Duration::from_millis(200),
        ..HostBox::default()
    };
    let outcome = late
        .run_directly(
            &command("exec sleep 60"),
            Some((&mut Vec::new(), &mut Vec::new())),
        )
        .unwrap();
    assert_eq!((outcome.end, outcome.report()), (End::TimedOut, TIMED_OUT));
}
