use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use event::{AsyncFd, Either, IoBuf, IoThread, Remote, StopSource, StopToken, WriteFlags, select2};
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

use crate::link::LinkEnd;
use crate::terminal::RawTerminal;
use crate::{ChardevError, Front, Link, Target};

/// Ctrl-]: leaves the console, as in telnet and virsh.
const ESCAPE: u8 = 0x1d;
/// Bytes read from the host at once.
const CHUNK: usize = 4096;
/// Bytes of input that wait for the guest at most. Reading goes on that far although the guest
/// takes nothing: Ctrl-] and a client that leaves have to be noticed when the guest hangs, too.
const INPUT_LIMIT: usize = 16 * CHUNK;

/// Called when the user leaves the console.
pub type Escape = Arc<dyn Fn() + Send + Sync>;

/// An opened chardev, ready to be started on an I/O thread, and then running until dropped.
pub struct Chardev {
    state: State,
    description: String,
}

enum State {
    Open(Box<Opened>),
    Running {
        stop: StopSource,
        task: Option<Remote<()>>,
        cleanup: Option<PathBuf>,
    },
}

struct Opened {
    host: Host,
    link: Option<LinkEnd>,
    escape: Option<Escape>,
}

enum Host {
    Null,
    File(File),
    Stream {
        input: Option<OwnedFd>,
        output: OwnedFd,
        terminal: Option<RawTerminal>,
    },
    Pty {
        master: OwnedFd,
        _slave: OwnedFd,
    },
    Socket {
        listener: UnixListener,
        path: PathBuf,
    },
}

impl Chardev {
    /// Opens `target`. `escape` is called when Ctrl-] is typed at a terminal.
    ///
    /// The returned [`Link`] goes to the front, which then goes to [`Chardev::start`].
    ///
    /// # Errors
    /// What cannot be opened, with its path.
    pub fn open(
        target: &Target,
        escape: Option<Escape>,
    ) -> Result<(Self, Arc<Link>), ChardevError> {
        let mut description = target.to_string();
        let host = match target {
            Target::Null => Host::Null,
            Target::File(path) => Host::File(File::create(path).map_err(at("create", path))?),
            Target::Stdio => open_stdio().map_err(terminal("use standard input and output"))?,
            Target::Pty => {
                let (host, name) = open_pty().map_err(terminal("make a pseudo-terminal"))?;
                description = format!("pty:{name}");
                host
            }
            Target::Unix(path) => {
                let listener = listen(path).map_err(at("listen at", path))?;
                Host::Socket {
                    listener,
                    path: path.clone(),
                }
            }
        };
        let (link, end) = Link::new();
        if matches!(host, Host::Null | Host::Socket { .. }) {
            end.discard(true);
        }
        let opened = Box::new(Opened {
            host,
            link: Some(end),
            escape,
        });
        Ok((
            Self {
                state: State::Open(opened),
                description,
            },
            link,
        ))
    }

    /// Where it leads, with the name of the pty that was made.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Moves bytes between the host and `front` on `thread` from now on.
    pub fn start(&mut self, thread: &IoThread, front: Arc<dyn Front>) {
        let State::Open(opened) = &mut self.state else {
            return;
        };
        let Some(link) = opened.link.take() else {
            return;
        };
        let host = std::mem::replace(&mut opened.host, Host::Null);
        let escape = opened.escape.take();
        let cleanup = match &host {
            Host::Socket { path, .. } => Some(path.clone()),
            _ => None,
        };
        let (stop, token) = StopSource::new();
        let description = self.description.clone();
        let task = thread.spawn_task(move || async move {
            let mut pump = Pump {
                link,
                front,
                escape,
                stop: token,
            };
            if let Err(e) = pump.run(host).await {
                log::warn!("chardev {description}: {e}");
                pump.front.connected(false);
                pump.discard_until_stopped().await;
            }
        });
        self.state = State::Running {
            stop,
            task: Some(task),
            cleanup,
        };
    }
}

impl Drop for Chardev {
    fn drop(&mut self) {
        if let State::Running {
            stop,
            task,
            cleanup,
        } = &mut self.state
        {
            stop.stop();
            if let Some(task) = task.take() {
                // Gone already means that the I/O thread has ended.
                _ = task.join();
            }
            if let Some(path) = cleanup.take() {
                _ = std::fs::remove_file(path);
            }
        }
    }
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ChardevError {
    move |source| ChardevError::Path {
        what,
        path: path.to_owned(),
        source,
    }
}

fn terminal(what: &'static str) -> impl FnOnce(io::Error) -> ChardevError {
    move |source| ChardevError::Terminal { what, source }
}

/// An open file of our own behind a standard descriptor, so that O_NONBLOCK, which belongs to
/// the open file, is not set for the shell too.
fn own(fd: impl AsFd, number: i32, write: bool) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{number}");
    let reopened = File::options()
        .read(!write)
        .write(write)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path);
    match reopened {
        Ok(file) => Ok(file.into()),
        // A socket cannot be opened by its name.
        Err(_) => fd.as_fd().try_clone_to_owned(),
    }
}

fn open_stdio() -> io::Result<Host> {
    let terminal = RawTerminal::enter()?;
    let (stdin, stdout) = (io::stdin(), io::stdout());
    // A regular file at standard output may be shared with logs: an open file of our own in
    // append mode, for which offsets do not count, writes at its end whoever wrote last.
    if File::from(stdout.as_fd().try_clone_to_owned()?)
        .metadata()?
        .is_file()
    {
        let output = File::options().append(true).open("/proc/self/fd/1")?;
        return Ok(Host::Stream {
            input: readable(&stdin)?,
            output: output.into(),
            terminal,
        });
    }
    Ok(Host::Stream {
        input: readable(&stdin)?,
        output: own(&stdout, 1, true)?,
        terminal,
    })
}

/// Standard input, unless it is something that cannot be waited for (a file, /dev/null).
fn readable(stdin: &io::Stdin) -> io::Result<Option<OwnedFd>> {
    let kind = File::from(stdin.as_fd().try_clone_to_owned()?)
        .metadata()?
        .file_type();
    let usable = stdin.is_terminal() || kind.is_fifo() || kind.is_socket();
    usable.then(|| own(stdin, 0, false)).transpose()
}

fn open_pty() -> io::Result<(Host, String)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    // As long as somebody has the other side open, the master reports no hang-up.
    let slave = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(&name)?;
    let mut termios = nix::sys::termios::tcgetattr(&slave)?;
    nix::sys::termios::cfmakeraw(&mut termios);
    nix::sys::termios::tcsetattr(&slave, nix::sys::termios::SetArg::TCSANOW, &termios)?;
    let master = master.as_fd().try_clone_to_owned()?;
    Ok((
        Host::Pty {
            master,
            _slave: slave.into(),
        },
        name,
    ))
}

/// Listens at a unix socket. What a dead process left there is removed; a live one is not.
///
/// # Errors
/// As bind(2); `AddrInUse` when somebody listens there.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let stale = path
        .symlink_metadata()
        .is_ok_and(|m| m.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
    if stale {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

struct Pump {
    link: LinkEnd,
    front: Arc<dyn Front>,
    escape: Option<Escape>,
    stop: StopToken,
}

/// How a connection ended.
#[derive(PartialEq, Eq)]
enum End {
    Stopped,
    Closed,
}

impl Pump {
    async fn run(&mut self, host: Host) -> io::Result<()> {
        match host {
            Host::Null => {
                // Somebody who takes everything and says nothing: a guest must not wait for more.
                self.front.connected(true);
                self.discard_until_stopped().await;
            }
            Host::File(file) => self.write_file(Arc::new(file)).await?,
            Host::Stream {
                input,
                output,
                terminal,
            } => {
                self.front.connected(true);
                let input = input.map(AsyncFd::new).transpose()?;
                let regular = File::from(output.try_clone()?).metadata()?.is_file();
                if regular {
                    self.write_file_and_read(Arc::new(File::from(output)), input)
                        .await?;
                } else {
                    let output = AsyncFd::new(output)?;
                    self.converse(input.as_ref(), Some(&output), terminal.is_some())
                        .await?;
                }
            }
            Host::Pty { master, _slave } => {
                let master = AsyncFd::new(master)?;
                self.front.connected(true);
                self.converse(Some(&master), Some(&master), false).await?;
            }
            Host::Socket { listener, path: _ } => self.serve(listener).await?,
        }
        Ok(())
    }

    async fn discard_until_stopped(&mut self) {
        if self.link.discard(true) {
            self.front.can_send();
        }
        self.stop.stopped().await;
    }

    /// Serves one client after the other.
    async fn serve(&mut self, listener: UnixListener) -> io::Result<()> {
        let waiting = AsyncFd::new(listener.try_clone()?)?;
        loop {
            if self.link.discard(true) {
                self.front.can_send();
            }
            let accept = waiting.read_with(|_| listener.accept());
            let client = match select2(accept, self.stop.stopped()).await {
                Either::A(client) => client?.0,
                Either::B(()) => return Ok(()),
            };
            self.link.discard(false);
            self.front.connected(true);
            let stream = AsyncFd::new(client)?;
            let end = self.converse(Some(&stream), Some(&stream), false).await;
            self.front.connected(false);
            if matches!(end, Ok(End::Stopped)) {
                return Ok(());
            }
        }
    }

    /// Moves bytes both ways until the other side closes or the chardev is stopped.
    async fn converse(
        &mut self,
        input: Option<&AsyncFd>,
        output: Option<&AsyncFd>,
        escapable: bool,
    ) -> io::Result<End> {
        let mut received: Vec<u8> = Vec::new();
        let mut open = input.is_some();
        let mut buffer = vec![0; CHUNK];
        loop {
            if !received.is_empty() {
                let taken = self.front.receive(&received).min(received.len());
                received.drain(..taken);
            }
            let pending = self.link.pending();
            let stop = self.stop.clone();
            let read = async {
                match input {
                    Some(input) if open && received.len() < INPUT_LIMIT => {
                        input.read(&mut buffer).await
                    }
                    _ => std::future::pending().await,
                }
            };
            let write = async {
                match output {
                    Some(output) if !pending.is_empty() => output.write(&pending).await,
                    _ => std::future::pending().await,
                }
            };
            let woken = self.link.woken();
            match select2(select2(read, write), select2(woken, stop.stopped())).await {
                Either::A(Either::A(Ok(0))) => {
                    open = false;
                    // A socket's client has gone; a pipe at standard input has only ended.
                    if output.is_some_and(|o| input.is_some_and(|i| std::ptr::eq(i, o))) {
                        return Ok(End::Closed);
                    }
                }
                Either::A(Either::A(Ok(count))) => {
                    let data = &buffer[..count];
                    received.extend_from_slice(
                        data.split(|b| escapable && *b == ESCAPE)
                            .next()
                            .unwrap_or(data),
                    );
                    if let (true, Some(escape)) =
                        (escapable && data.contains(&ESCAPE), &self.escape)
                    {
                        escape();
                    }
                }
                Either::A(Either::B(Ok(count))) => {
                    if self.link.written(count) {
                        self.front.can_send();
                    }
                }
                Either::A(Either::A(Err(e)) | Either::B(Err(e))) => return Err(e),
                Either::B(Either::A(())) => {}
                Either::B(Either::B(())) => {
                    self.flush(output).await;
                    return Ok(End::Stopped);
                }
            }
        }
    }

    /// Writes what the guest said last; a reader that does not read cannot hold up the end.
    async fn flush(&mut self, output: Option<&AsyncFd>) {
        let Some(output) = output else { return };
        let deadline = std::time::Duration::from_millis(500);
        while self.link.has_pending() {
            let pending = self.link.pending();
            match event::timeout(deadline, output.write(&pending)).await {
                Some(Ok(count)) => _ = self.link.written(count),
                Some(Err(_)) | None => return,
            }
        }
    }

    async fn write_file(&mut self, file: Arc<File>) -> io::Result<()> {
        self.front.connected(true);
        self.write_file_and_read(file, None).await
    }

    /// Output to a regular file, at its end, with input from elsewhere.
    async fn write_file_and_read(
        &mut self,
        file: Arc<File>,
        input: Option<AsyncFd>,
    ) -> io::Result<()> {
        let mut end = file.metadata()?.len();
        let mut buffer = vec![0; CHUNK];
        let mut received: Vec<u8> = Vec::new();
        let mut open = input.is_some();
        loop {
            let pending = self.link.pending();
            if !pending.is_empty() {
                let count = pending.len();
                let flags = WriteFlags::default();
                event::write_all_at(&file, IoBuf::from_vec(pending), end, flags)
                    .await
                    .0?;
                end += count as u64;
                if self.link.written(count) {
                    self.front.can_send();
                }
                continue;
            }
            if !received.is_empty() {
                let taken = self.front.receive(&received).min(received.len());
                received.drain(..taken);
            }
            let stop = self.stop.clone();
            if stop.is_stopped() {
                return Ok(());
            }
            let read = async {
                match &input {
                    Some(input) if open && received.len() < INPUT_LIMIT => {
                        input.read(&mut buffer).await
                    }
                    _ => std::future::pending().await,
                }
            };
            match select2(read, select2(self.link.woken(), stop.stopped())).await {
                Either::A(Ok(0)) => open = false,
                Either::A(Ok(count)) => received.extend_from_slice(&buffer[..count]),
                Either::A(Err(e)) => return Err(e),
                Either::B(_) => {}
            }
        }
    }
}
