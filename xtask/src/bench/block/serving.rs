//! Servers of an image by NBD, measured by one client: qemu-img.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// The export's URI at a socket.
pub fn uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

/// A server that runs; it ends with this value.
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // The image is a benchmark's: nothing is lost by the hard way.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// `vireo export` of a qcow2 image.
    pub fn vireo(program: &Path, image: &Path, socket: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command
            .args(["export", "--persistent", "--format", "qcow2", "--nbd"])
            .arg(format!("unix:{}", socket.display()))
            .arg(image);
        Self::start(command, socket)
    }

    /// QEMU's storage daemon with the same image, an I/O thread of its own and io_uring.
    pub fn qemu(image: &Path, socket: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new("qemu-storage-daemon");
        let file = format!(
            "driver=file,node-name=file,aio=io_uring,filename={}",
            image.display()
        );
        let server = format!("addr.type=unix,addr.path={}", socket.display());
        command.args(["--object", "iothread,id=io", "--blockdev", &file]);
        command.args(["--blockdev", "driver=qcow2,node-name=disk,file=file"]);
        command.args(["--nbd-server", &server, "--export"]);
        command.arg("type=nbd,id=export,node-name=disk,name=,writable=on,iothread=io");
        Self::start(command, socket)
    }

    fn start(mut command: Command, socket: &Path) -> anyhow::Result<Self> {
        let _ = std::fs::remove_file(socket);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut server = Self(child);
        let begin = Instant::now();
        while UnixStream::connect(socket).is_err() {
            if server.0.try_wait()?.is_some() || begin.elapsed() > Duration::from_secs(10) {
                let _ = server.0.kill();
                let errors = server.0.stderr.take().map(BufReader::new);
                let errors: Vec<String> =
                    errors.map_or_else(Vec::new, |e| e.lines().map_while(Result::ok).collect());
                ensure!(false, "{command:?} does not serve: {}", errors.join("; "));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }
}
