//! Finds and runs other programs.

use std::collections::VecDeque;
use std::env;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::Error;

/// A program and the Debian package that brings it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
}

pub(crate) const MMDEBSTRAP: Program = Program {
    name: "mmdebstrap",
    package: "mmdebstrap",
};
pub(crate) const MKE2FS: Program = Program {
    name: "mke2fs",
    package: "e2fsprogs",
};
pub(crate) const TAR: Program = Program {
    name: "tar",
    package: "tar",
};
pub(crate) const FAKEROOT: Program = Program {
    name: "fakeroot",
    package: "fakeroot",
};
pub(crate) const NEWUIDMAP: Program = Program {
    name: "newuidmap",
    package: "uidmap",
};

/// Where administrators' programs live; not in every user's PATH.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

impl Program {
    /// The program's path.
    pub(crate) fn find(self) -> Result<PathBuf, Error> {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
            .map(|directory| directory.join(self.name))
            .find(|candidate| candidate.is_file())
            .ok_or(Error::MissingProgram {
                program: self.name,
                package: self.package,
            })
    }

    /// A command that runs it, speaking English.
    pub(crate) fn command(self) -> Result<Command, Error> {
        let mut command = Command::new(self.find()?);
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        Ok(command)
    }
}

/// How many of a program's last lines an error shows.
const TAIL: usize = 15;

/// Runs `command` to its end, handing every line of its standard error to `line`; its standard
/// output must not be a pipe.
pub(crate) fn run(
    command: &mut Command,
    what: &'static str,
    line: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("run", &name))?;
    let mut tail = VecDeque::with_capacity(TAIL);
    let result = read_lines(&mut child, line, &mut tail);
    let status = child.wait().map_err(Error::io("wait for", &name))?;
    result.map_err(Error::io("read messages of", &name))?;
    if status.success() {
        return Ok(());
    }
    let tail: Vec<String> = tail.into();
    Err(Error::Program {
        what,
        program: name,
        status,
        tail: tail.join("\n"),
    })
}

fn read_lines(
    child: &mut Child,
    line: &mut dyn FnMut(&str),
    tail: &mut VecDeque<String>,
) -> io::Result<()> {
    let Some(stderr) = child.stderr.take() else {
        return Ok(());
    };
    let mut reader = BufReader::new(stderr);
    let mut bytes = Vec::new();
    // A line without end must not fill the memory.
    while reader
        .by_ref()
        .take(64 << 10)
        .read_until(b'\n', &mut bytes)?
        > 0
    {
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end();
        line(text);
        if !text.is_empty() {
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(text.to_owned());
        }
        bytes.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
