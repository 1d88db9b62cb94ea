//! What the box runs, as shell text.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// `text` as one word of a POSIX shell.
pub fn quote(text: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in text.as_bytes() {
        if byte == b'\'' {
            quoted.extend_from_slice(b"'\\''");
        } else {
            quoted.push(byte);
        }
    }
    quoted.push(b'\'');
    quoted
}

/// A script that runs `command` in `directory` with `environment` added.
pub fn run(
    command: &[impl AsRef<OsStr>],
    directory: &OsStr,
    environment: &[(String, String)],
) -> Vec<u8> {
    let mut script = b"#!/bin/sh\n".to_vec();
    for (name, value) in environment {
        script.extend_from_slice(format!("export {name}=").as_bytes());
        script.extend(quote(value.as_ref()));
        script.push(b'\n');
    }
    script.extend_from_slice(b"cd ");
    script.extend(quote(directory));
    script.extend_from_slice(b" || exit 126\nexec");
    for word in command {
        script.push(b' ');
        script.extend(quote(word.as_ref()));
    }
    script.push(b'\n');
    script
}
