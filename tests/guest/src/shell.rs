//! Commands in the guest, typed at its console.
//!
//! The console also carries what the kernel says, echoes and prompts; so the shell is made quiet
//! first, and each command's output ends in a mark that no echo of the command can contain.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::Console;

/// A canonical terminal line is at most this long (termios(3), with room for what we add).
const LONGEST_LINE: usize = 3900;

/// What a command left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit status.
    pub status: i32,
    /// Standard output and error, with plain line ends, without the last one.
    pub text: String,
}

/// Turns the shell at the console into a quiet POSIX shell; returns when it answers.
///
/// # Errors
/// It does not answer in time.
pub fn settle(console: &mut Console, within: Duration) -> anyhow::Result<()> {
    // A fresh sh has no line editor, whose echo stty could not silence.
    console.send("exec env -u ENV TERM=dumb PS1= PS2= sh\n")?;
    console.send("stty -echo; PS1=; PS2=; dmesg -n 1; echo @@SET\"\"TLED@@\n")?;
    console
        .expect("@@SETTLED@@", within)
        .context("the guest's shell does not answer")?;
    Ok(())
}

/// Runs `command`, which may have several lines, and waits for its end.
///
/// # Errors
/// It does not end in time, or the console closes.
pub fn run(console: &mut Console, command: &str, within: Duration) -> anyhow::Result<Output> {
    ensure!(
        command.lines().all(|line| line.len() < LONGEST_LINE),
        "a line of the command is too long for a terminal"
    );
    // The command gets no input: it would eat the lines that follow.
    console.send(&format!(
        "echo @@BEG\"\"IN@@; (\n{command}\n) </dev/null 2>&1; echo \"@@E\"\"ND $? @@\"\n"
    ))?;
    let context = || format!("the command does not end: {command}");
    console.expect("@@BEGIN@@", within).with_context(context)?;
    let text = console.expect("@@END ", within).with_context(context)?;
    let status = console.expect(" @@", within).with_context(context)?;
    let status = status
        .parse()
        .with_context(|| format!("no exit status: {status:?}"))?;
    let text = text.replace("\r\n", "\n");
    let text = text.strip_prefix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\n').unwrap_or(text).to_owned();
    Ok(Output { status, text })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn commands_run_in_a_shell_and_give_output_and_status() {
        let mut child = Command::new("sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let input = child.stdin.take().unwrap();
        let mut console = Console::new(output, input);
        let mut run = |command: &str| run(&mut console, command, SOON).unwrap();
        assert_eq!(
            run("echo one; echo two >&2; exit 7"),
            Output {
                status: 7,
                text: "one\ntwo".into()
            }
        );
        // What reads its input finds none; the next command is not lost.
        assert_eq!(run("cat\nprintf x").text, "x");
        assert_eq!(run("true").status, 0);
        drop(console);
        child.wait().unwrap();
    }
}
