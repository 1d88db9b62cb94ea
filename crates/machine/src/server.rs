//! QMP sockets: each client is a task on the control thread.

use std::cell::Cell;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use event::{AsyncFd, Either, Receiver, Sender, channel, oneshot, select2, spawn_local};
use qmp::{Event, Session};

use crate::commands;
use crate::control::Message;
use crate::error::MachineError;

/// How long clients have for reading what they were told last.
const FAREWELL: Duration = Duration::from_secs(1);

/// How many have something to be told yet: a reply, or events up to the machine's end.
#[derive(Clone, Default)]
pub(crate) struct Owed(Rc<Cell<usize>>);

/// One of them.
struct Debt(Owed);

impl Owed {
    fn debt(&self) -> Debt {
        self.0.set(self.0.get() + 1);
        Debt(self.clone())
    }

    /// Waits until everything was written, for a moment. The machine has ended.
    pub(crate) async fn paid(&self) {
        let begun = Instant::now();
        while self.0.get() != 0 && begun.elapsed() < FAREWELL {
            event::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        let owed = &self.0.0;
        owed.set(owed.get() - 1);
    }
}

/// A control socket that is listened at; its file is removed at the end.
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Somebody else may have removed it already.
        _ = std::fs::remove_file(&self.path);
    }
}

impl Server {
    /// Listens at `path`; a socket that a dead process left there is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, MachineError> {
        let listener = chardev::listen(path).map_err(MachineError::step(format!(
            "listen for QMP at {}",
            path.display()
        )))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Serves clients until the machine's inbox closes. Runs on the control thread.
    pub(crate) async fn serve(self, inbox: Sender<Message>, owed: Owed) {
        let waiting = match self.listener.try_clone().and_then(AsyncFd::new) {
            Ok(waiting) => waiting,
            Err(e) => {
                log::error!("QMP at {}: {e}", self.path.display());
                return;
            }
        };
        loop {
            match waiting.read_with(|_| self.listener.accept()).await {
                Ok((client, _)) => {
                    let (inbox, owed) = (inbox.clone(), owed.clone());
                    spawn_local(async move {
                        if let Err(e) = converse(client, inbox, owed).await {
                            log::debug!("QMP client: {e}");
                        }
                    })
                    .detach();
                }
                Err(e) => {
                    // Out of descriptors: the clients that are there are served on.
                    log::warn!("QMP at {}: {e}", self.path.display());
                    event::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Serves one client until it goes or the machine ends.
async fn converse(client: UnixStream, inbox: Sender<Message>, owed: Owed) -> std::io::Result<()> {
    let client = AsyncFd::new(client)?;
    let version = serde_json::to_value(commands::version()).unwrap_or_default();
    let mut session = Session::new(&version);
    // Events are owed until there are no more.
    let mut events: Option<Receiver<Event>> = None;
    let mut _subscription = None;
    let mut buffer = vec![0; 4096];
    loop {
        write_all(&client, &session.take_output()).await?;
        let heard = match &mut events {
            Some(events) => select2(client.read(&mut buffer), events.recv()).await,
            None => Either::A(client.read(&mut buffer).await),
        };
        let count = match heard {
            Either::A(count) => count?,
            Either::B(Some(event)) => {
                session.event(&event);
                continue;
            }
            // The machine has ended, and said so before.
            Either::B(None) => return Ok(()),
        };
        if count == 0 {
            return Ok(());
        }
        for request in session.receive(&buffer[..count]) {
            let _reply = owed.debt();
            let (reply, answer) = oneshot();
            let id = request.id.clone();
            let result = match inbox.send(Message::Qmp(request, reply)) {
                Ok(()) => answer.await,
                Err(_) => return Ok(()),
            };
            let gone = || qmp::QmpError::generic("The machine has ended");
            // Events that the command caused come before its reply, as QEMU has it.
            while let Some(event) = events.as_mut().and_then(Receiver::try_recv) {
                session.event(&event);
            }
            session.reply(id.as_ref(), result.unwrap_or_else(|_| Err(gone())));
            write_all(&client, &session.take_output()).await?;
        }
        if session.is_negotiated() && events.is_none() {
            let (sender, receiver) = channel();
            _ = inbox.send(Message::Subscribe(sender));
            events = Some(receiver);
            _subscription = Some(owed.debt());
        }
    }
}

async fn write_all(client: &AsyncFd, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let count = client.write(bytes).await?;
        bytes = &bytes[count..];
    }
    Ok(())
}
