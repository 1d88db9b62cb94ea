//! Against real peers: libnbd's tools, nbdkit, qemu-nbd, qemu-img, qemu-io (xtask/packages.txt).

mod client;
mod hostile;
mod reconnect;
mod server;
mod tls;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::storage::memory::Memory;
use block::{Format, IoBuf, Node, OpenOptions, Raw, WriteFlags};
use event::{IoThread, IoThreadConfig};
use tempfile::TempDir;

use crate::{Address, Client, ClientOptions, Export, NbdError, Server, ServerOptions};

/// A folder on a file system that has holes.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn socket(&self) -> Address {
        Address::Unix(self.path("socket"))
    }

    fn uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{export}?socket={}",
            self.path("socket").display()
        )
    }

    /// A command in the folder. SOCKET stands for the whole path of the socket. A tilde stands for a space inside a word.
    fn command(&self, line: &str) -> Command {
        let socket = self.path("socket").display().to_string();
        let mut words = line
            .split(' ')
            .filter(|word| !word.is_empty())
            .map(|word| word.replace('~', " ").replace("SOCKET", &socket));
        let mut command = Command::new(words.next().unwrap());
        command.args(words).current_dir(self.0.path());
        command.stdin(Stdio::null());
        command
    }

    fn output(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// What a command says.
    fn run(&self, line: &str) -> String {
        let output = self.output(line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {text}{errors}");
        text
    }

    fn fails(&self, line: &str) -> String {
        let output = self.output(line);
        let text = [output.stdout, output.stderr].concat();
        assert!(!output.status.success(), "{line}");
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Starts a server of somebody else, and waits for its socket.
    fn spawn(&self, line: &str) -> Peer {
        // A server that was killed leaves its socket behind.
        _ = std::fs::remove_file(self.path("socket"));
        let peer = Peer(self.command(line).spawn().unwrap());
        let socket = self.path("socket");
        wait_for(|| std::os::unix::net::UnixStream::connect(&socket).is_ok());
        peer
    }
}

/// Another process, killed when dropped.
struct Peer(Child);

impl Peer {
    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// With the stack that every I/O thread has.
fn thread() -> IoThread {
    IoThread::spawn(IoThreadConfig::new("nbd")).unwrap()
}

/// A server with two threads.
fn server() -> Server {
    Server::new(ServerOptions::new(vec![thread(), thread()]))
}

/// A disk in memory, with its memory.
fn memory(size: usize) -> (Memory, Arc<dyn Node>) {
    let memory = Memory::new(size, false);
    let node = Arc::new(Raw::new("memory".into(), memory.clone()));
    (memory, node)
}

fn writable(name: &str, node: Arc<dyn Node>) -> Export {
    Export {
        writable: true,
        ..Export::new(name, node)
    }
}

/// A file that is open as a disk.
fn image(path: &Path, format: Format, read_only: bool) -> block::Image {
    let spec = block::DiskSpec {
        format: Some(format),
        read_only,
        ..block::DiskSpec::new(path)
    };
    let config = IoThreadConfig {
        stack_size: 4 << 20,
        ..IoThreadConfig::new("open")
    };
    IoThread::spawn(config)
        .unwrap()
        .spawn_task(move || async move {
            block::open_image(&spec, &OpenOptions::default())
                .await
                .unwrap()
        })
        .join()
        .unwrap()
}

fn open(options: ClientOptions) -> Result<Client, NbdError> {
    Client::open(options, &thread()).join().unwrap()
}

/// A disk over a client.
fn disk(client: Client) -> Arc<dyn Node> {
    Arc::new(Raw::new("remote".into(), client))
}

/// Runs a future on a thread of its own.
fn block_on<T, F>(make: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    thread()
        .spawn_task(move || Box::pin(make()))
        .join()
        .unwrap()
}

async fn read(node: &dyn Node, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let buf = IoBuf::from_vec(vec![0xee; len]);
    let (result, buf) = node.read_vectored(buf, offset).await;
    result.map(|()| buf.into_vec().unwrap_or_default())
}

async fn write(node: &dyn Node, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let buf = IoBuf::from_vec(bytes.to_vec());
    let flags = WriteFlags::default();
    node.write_vectored(buf, offset, flags).await.0
}

/// Bytes that depend on where they are.
fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}
