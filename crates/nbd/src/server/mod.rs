//! The server: exports, listeners, clients.
//!
//! ```text
//!   listener ─▶ accepting task ─▶ a connection, on one of the I/O threads ─▶ export ─▶ node
//! ```
//!
//! | file             | what                                              |
//! |------------------|---------------------------------------------------|
//! | `export.rs`      | what is offered, and who uses it                  |
//! | `negotiation.rs` | the negotiation, as a model without I/O           |
//! | `connection.rs`  | a client                                          |
//! | `requests.rs`    | carrying out requests                             |
//! | `pool.rs`        | buffers that are used again                       |
//! | `status.rs`      | answers to BLOCK_STATUS                           |

mod connection;
mod export;
mod negotiation;
mod pool;
mod requests;
mod status;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event::{
    AsyncFd, Either, IoThread, OneshotReceiver, OneshotSender, Receiver, Sender, StopSource,
    StopToken, channel, oneshot, select2,
};
pub use export::{BitmapSource, Export, Removal};

use self::export::Exports;
use crate::address::Listener as Socket;
use crate::{Address, NbdError, ServerCredentials};

/// How a server is to be.
#[derive(Clone)]
pub struct ServerOptions {
    /// The threads on which clients are served, in turn. One at least.
    pub threads: Vec<IoThread>,
    /// Clients at a time; more wait until one goes.
    pub max_connections: usize,
    /// Clients have to use TLS with these.
    pub tls: Option<ServerCredentials>,
}

impl ServerOptions {
    /// Clients at a time, when nothing else is said.
    pub const MAX_CONNECTIONS: usize = 100;

    /// Without TLS.
    #[must_use]
    pub fn new(threads: Vec<IoThread>) -> Self {
        Self {
            threads,
            max_connections: Self::MAX_CONNECTIONS,
            tls: None,
        }
    }
}

/// What is told of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// Whether clients may change it.
    pub writable: bool,
}

struct Shared {
    exports: Exports,
    threads: Vec<IoThread>,
    turn: AtomicUsize,
    max_connections: usize,
    tls: Option<ServerCredentials>,
    stop: StopSource,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    /// Clients, and listeners that have not ended yet.
    connected: usize,
    listening: usize,
    /// To be told of every client that goes.
    listeners: Vec<Sender<()>>,
    /// To be told when there is none left.
    last_gone: Vec<OneshotSender<()>>,
    /// To be told when there is neither client nor listener left.
    stopped: Vec<OneshotSender<()>>,
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Clients)) {
        let mut clients = self.clients();
        let before = clients.connected;
        change(&mut clients);
        let mut told = Vec::new();
        if clients.connected < before {
            clients
                .listeners
                .retain(|listener| listener.send(()).is_ok());
            if clients.connected == 0 {
                told.append(&mut clients.last_gone);
            }
        }
        if clients.connected == 0 && clients.listening == 0 {
            told.append(&mut clients.stopped);
        }
        drop(clients);
        told.into_iter().for_each(|sender| sender.send(()));
    }
}

/// Counts a client as long as it lives.
struct Client(Arc<Shared>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.change(|clients| clients.connected -= 1);
    }
}

/// Counts a listener as long as it lives, and takes its socket out of the file system.
struct Listener(Arc<Shared>, Option<PathBuf>);

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.1 {
            // Somebody else may have removed it already.
            _ = std::fs::remove_file(path);
        }
        self.0.change(|clients| clients.listening -= 1);
    }
}

/// Serves exports to clients. Clones are the same server, which lasts as long as its threads, or
/// until [`Server::stop`].
#[derive(Clone)]
pub struct Server(Arc<Shared>);

impl Server {
    /// A server with neither exports nor listeners.
    #[must_use]
    pub fn new(options: ServerOptions) -> Self {
        Self(Arc::new(Shared {
            exports: Exports::default(),
            threads: options.threads,
            turn: AtomicUsize::new(0),
            max_connections: options.max_connections.max(1),
            tls: options.tls,
            stop: StopSource::new().0,
            clients: Mutex::default(),
        }))
    }

    /// Offers an export from now on.
    ///
    /// # Errors
    /// There is one of that name, or a name is too long.
    pub fn add_export(&self, export: Export) -> Result<(), NbdError> {
        self.0.exports.add(export)
    }

    /// Takes an export out of the offer. What is returned comes when nobody uses it any more, and
    /// no request to its node is on its way.
    ///
    /// # Errors
    /// There is none of that name, or (softly) clients use it.
    pub fn remove_export(
        &self,
        name: &str,
        removal: Removal,
    ) -> Result<OneshotReceiver<()>, NbdError> {
        self.0.exports.remove(name, removal)
    }

    /// What is offered, in the order of the names.
    #[must_use]
    pub fn exports(&self) -> Vec<ExportInfo> {
        let tell = |export: &Export| ExportInfo {
            name: export.name.clone(),
            description: export.description.clone(),
            writable: export.is_writable(),
        };
        let all = self.0.exports.all();
        all.iter().map(|entry| tell(&entry.export)).collect()
    }

    /// How many clients there are, those that negotiate included.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.0.clients().connected
    }

    /// Takes clients at an address from now on; the address with the port that it got. A socket
    /// in the file system on which nobody listens is replaced. Blocks for a moment.
    ///
    /// # Errors
    /// The system refuses it.
    pub fn listen(&self, address: &Address) -> Result<Address, NbdError> {
        let failed = |source| NbdError::Listen {
            address: address.to_string(),
            source,
        };
        let (socket, bound) = address.listen().map_err(failed)?;
        let path = match &bound {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp { .. } => None,
        };
        let (sender, freed) = channel();
        self.0.change(|clients| {
            clients.listening += 1;
            clients.listeners.push(sender);
        });
        let listener = Listener(Arc::clone(&self.0), path);
        let stop = self.0.stop.token();
        let Some(thread) = self.0.threads.first() else {
            return Err(failed(io::Error::other("the server has no thread")));
        };
        thread
            .spawn_task(move || async move {
                let ended = select2(accept(&listener.0, &socket, freed), stop.stopped()).await;
                if let Either::A(Err(error)) = ended {
                    log::error!("cannot listen: {error}");
                }
            })
            .detach();
        Ok(bound)
    }

    /// Serves a client that is connected already.
    pub fn serve(&self, socket: OwnedFd) {
        serve(&self.0, socket);
    }

    /// Comes when a client goes and there is no other one.
    #[must_use]
    pub fn last_client_gone(&self) -> OneshotReceiver<()> {
        let (sender, receiver) = oneshot();
        self.0.clients().last_gone.push(sender);
        receiver
    }

    /// Takes no more clients and sends away those that are there; their requests are carried out.
    /// What is returned comes when nobody is left.
    pub fn stop(&self) -> OneshotReceiver<()> {
        let (sender, receiver) = oneshot();
        self.0.stop.stop();
        self.0.change(|clients| clients.stopped.push(sender));
        receiver
    }
}

fn serve(shared: &Arc<Shared>, socket: OwnedFd) {
    let turn = shared.turn.fetch_add(1, Ordering::Relaxed);
    let at = turn.checked_rem(shared.threads.len());
    let Some(thread) = at.and_then(|at| shared.threads.get(at)) else {
        return;
    };
    shared.change(|clients| clients.connected += 1);
    let client = Client(Arc::clone(shared));
    let stop: StopToken = shared.stop.token();
    thread
        .spawn_task(move || async move {
            Box::pin(connection::serve(&client.0, socket, &stop)).await;
        })
        .detach();
}

/// Accepts clients for ever.
async fn accept(shared: &Arc<Shared>, socket: &Socket, mut freed: Receiver<()>) -> io::Result<()> {
    let ready = AsyncFd::new(socket.descriptor()?)?;
    loop {
        while shared.clients().connected >= shared.max_connections {
            freed.recv().await;
        }
        while freed.try_recv().is_some() {}
        match ready.read_with(|_| socket.accept()).await {
            Ok(client) => serve(shared, client),
            Err(error) => {
                log::warn!("cannot accept a client: {error}");
                // Most likely there are no descriptors left.
                event::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}
