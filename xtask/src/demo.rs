//! `cargo xtask demo`: a Debian guest at its login prompt, from nothing.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::guest_tests::build_vireo;
use crate::kvm_host::HostBox;
use crate::{guest_image, setup};

#[derive(clap::Args)]
pub struct Args {
    /// Show the boot and power off at the login prompt, also at a terminal.
    #[arg(long)]
    batch: bool,
    /// End after this many seconds when nobody sits at a terminal.
    #[arg(long, default_value_t = 600, value_name = "S")]
    timeout: u64,
}

/// What the console shows when someone could log in.
const PROMPT: &str = " login:";

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    setup::ensure_packages()?;
    let vireo = build_vireo("release")?;
    guest_image::ensure(false)?;
    let mut host = HostBox {
        timeout: Duration::from_secs(args.timeout),
        ..HostBox::default()
    };
    host.add_guest()?;
    let interactive = !args.batch && io::stdin().is_terminal() && io::stdout().is_terminal();

    // KVM where it works, the software processor elsewhere: Vireo says which.
    host.direct = true;
    eprintln!("demo: Debian boots on Vireo");

    let script = script(&vireo.to_string_lossy(), interactive);
    let command = ["sh", "-c", &script].map(OsString::from);
    if interactive {
        eprintln!("demo: Ctrl-] leaves, poweroff ends the guest");
        host.timeout = Duration::from_secs(24 * 3600);
        let status = host.run_interactive(&command)?.report();
        return Ok(ExitCode::from(status));
    }
    let mut console = Watch {
        out: io::stdout(),
        tail: Vec::new(),
        prompt: None,
        begin: Instant::now(),
    };
    let outcome = host.run(&command, &mut console, &mut io::stderr())?;
    let status = outcome.report();
    ensure!(
        status == 0,
        "the guest's machine ended with status {status}"
    );
    let prompt = console.prompt.context("no login prompt was seen")?;
    println!(
        "\ndemo: it worked: Debian was at its login prompt after {:.0} s and powered off; {:.0} s in all",
        prompt.as_secs_f64(),
        begin.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

/// Runs the guest on a disk that may be written; with nobody at the terminal it is told to power
/// down as soon as someone could log in.
fn script(vireo: &str, interactive: bool) -> String {
    // The drive is the cached image, which stays as it is.
    let disk = "disk=$VIREO_SCRATCH/demo.img
cp --sparse=always --reflink=auto \"$VIREO_DRIVE_GUEST\" \"$disk\"
";
    let run = format!(
        "'{vireo}' run --kernel \"$VIREO_GUEST_VMLINUX\" --initrd \"$VIREO_GUEST_INITRD\" \
         --append 'console=ttyS0 root=/dev/vda rw' --memory 512M --disk \"$disk\" --net user --rng"
    );
    if interactive {
        return format!("{disk}exec {run}\n");
    }
    // SIGTERM presses the power button.
    format!(
        "{disk}cd \"$VIREO_SCRATCH\"
: > console
{{
    {run} --machine shutdown-grace=300 --pidfile pid < /dev/null
    echo $? > status
}} | tee console &
until grep -q '{PROMPT}' console || [ -e status ]; do sleep 1; done
[ -e status ] || kill -TERM $(cat pid)
wait
exit $(cat status)
"
    )
}

/// Passes the console on and notes when the login prompt comes.
struct Watch<W> {
    out: W,
    tail: Vec<u8>,
    prompt: Option<Duration>,
    begin: Instant,
}

impl<W: Write> Write for Watch<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        if self.prompt.is_none() {
            self.tail.extend_from_slice(bytes);
            if self
                .tail
                .windows(PROMPT.len())
                .any(|window| window == PROMPT.as_bytes())
            {
                self.prompt = Some(self.begin.elapsed());
            }
            let keep = self.tail.len().saturating_sub(PROMPT.len());
            self.tail.drain(..keep);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_seen_also_in_pieces() {
        let mut watch = Watch {
            out: Vec::new(),
            tail: Vec::new(),
            prompt: None,
            begin: Instant::now(),
        };
        watch.write_all(b"Welcome\r\nguest lo").unwrap();
        assert!(watch.prompt.is_none());
        watch.write_all(b"gin: root").unwrap();
        assert!(watch.prompt.is_some());
        assert_eq!(watch.out, b"Welcome\r\nguest login: root");
    }
}
