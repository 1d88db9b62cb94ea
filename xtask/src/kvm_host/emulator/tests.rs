use std::fs::File;
use std::time::SystemTime;

use super::*;

#[test]
fn versions_are_compared_as_numbers() {
    let of = |text| version(text).unwrap();
    let (old, words) = of("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright");
    assert_eq!(words, "7.2.22");
    let (new, _) = of("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n");
    assert!(old < NEW_ENOUGH && new >= NEW_ENOUGH);
    // Between two releases.
    assert_eq!(of("QEMU emulator version 10.1.50 (v10)").0, Version(10, 1));
    for bad in ["", "QEMU emulator version", "QEMU emulator version ten"] {
        assert_eq!(version(bad), None, "{bad}");
    }
}

#[test]
fn backports_are_where_the_main_suite_is() {
    let main = "Types: deb\nURIs: http://a/debian http://b/debian\nSuites: bookworm bookworm-updates\n\
                Components: main\nSigned-By:\n -----BEGIN-----\n .\n abc\n";
    let security =
        "Types: deb\nURIs: http://a/security\nSuites: bookworm-security\nComponents: main\n";
    let text = backports(&format!("{main}\n{security}"), "bookworm");
    assert_eq!(
        text,
        format!(
            "\n{}",
            main.replace("bookworm bookworm-updates", "bookworm-backports")
        )
    );
    assert_eq!(backports(security, "bookworm"), "");
}

#[test]
fn a_refusal_is_remembered_for_a_day() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = folder.path().join("refusal");
    assert_eq!(remembered(&refusal), None);
    fs::write(&refusal, "no network").unwrap();
    assert_eq!(remembered(&refusal).as_deref(), Some("no network"));
    let before = SystemTime::now() - PATIENCE - Duration::from_secs(60);
    File::options()
        .write(true)
        .open(&refusal)
        .unwrap()
        .set_modified(before)
        .unwrap();
    assert_eq!(remembered(&refusal), None);
}

/// A folder with a shell script in the program's place.
fn unpacked(script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("usr/bin");
    fs::create_dir_all(&bin).unwrap();
    // By another process: a file that any thread here has open for writing cannot be run.
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", write, "sh", script]);
    output(command.arg(bin.join(PROGRAM))).unwrap();
    folder
}

#[test]
fn a_missing_library_is_found_out_and_said_in_one_line() {
    let message = "qemu: error while loading shared libraries: libfdt.so.1: cannot open";
    let folder = unpacked(&format!("echo '{message}' >&2; echo more >&2; exit 127"));
    let error = Emulator::unpacked(folder.path()).new_enough().unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(message) && !text.contains("more"), "{text}");
}

#[test]
fn libraries_that_came_along_are_found() {
    let folder = unpacked("echo \"QEMU emulator version 10.0.$LD_LIBRARY_PATH\"");
    let lib = folder.path().join(format!("usr/lib/{ARCH}-linux-gnu"));
    // Modules are in a folder of their own.
    fs::create_dir_all(lib.join("qemu")).unwrap();
    assert_eq!(Emulator::unpacked(folder.path()).libraries, None);
    fs::write(lib.join("libfdt.so.1"), "").unwrap();
    let (_, words) = Emulator::unpacked(folder.path()).version().unwrap();
    assert_eq!(words, format!("10.0.{}", lib.display()));
}

#[test]
fn one_that_is_too_old_or_does_not_start_is_refused() {
    let folder = unpacked("echo 'QEMU emulator version 8.2.1 (Debian)'");
    let error = Emulator::unpacked(folder.path()).new_enough().unwrap_err();
    assert!(error.to_string().contains("8.2.1"), "{error}");
    let folder = unpacked("echo \"could not load PC BIOS 'bios-256k.bin'\" >&2; exit 1");
    let error = Emulator::unpacked(folder.path()).starts().unwrap_err();
    assert!(error.to_string().contains("bios-256k"), "{error}");
}
