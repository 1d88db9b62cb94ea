//! The client: a disk somewhere else, as a storage.
//!
//! | file             | what                                                   |
//! |------------------|--------------------------------------------------------|
//! | `negotiation.rs` | coming to terms with a server                          |
//! | `link.rs`        | the connection: requests, replies, connecting again    |
//! | `storage.rs`     | the storage that formats lie on                        |

mod link;
mod negotiation;
mod storage;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use block::storage::tools::Stripes;
use event::{IoBuf, IoThread, Remote, Sender, channel, oneshot};
use nix::errno::Errno;

use self::link::{Link, Order, Outcome};
use self::negotiation::{Connected, Facts};
use crate::protocol::command;
use crate::{Address, ClientCredentials, NbdError, Uri};

/// Read-modify-writes: bytes of each stripe, and how many there are.
const STRIPE: u64 = 64 << 10;
const STRIPES: usize = 64;

/// Which export, and how to reach it.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The server.
    pub address: Address,
    /// The export; the empty name is that of a server's default.
    pub export: String,
    /// Use TLS with these.
    pub tls: Option<ClientCredentials>,
    /// The name in the server's certificate. When not given: the host, or `localhost`.
    pub tls_hostname: Option<String>,
    /// Refuse to write.
    pub read_only: bool,
    /// When the server is lost: how long requests wait for it and are sent again, before they
    /// fail. It is looked for after that too.
    pub reconnect_delay: Duration,
    /// How long to wait for the server at first.
    pub open_timeout: Duration,
    /// A dirty bitmap whose status is asked for too, see [`Client::dirty`]: its name, or that of
    /// any metadata context.
    pub dirty_bitmap: Option<String>,
}

impl ClientOptions {
    /// The default export of a server, without TLS, without waiting.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            export: String::new(),
            tls: None,
            tls_hostname: None,
            read_only: false,
            reconnect_delay: Duration::ZERO,
            open_timeout: Duration::ZERO,
            dirty_bitmap: None,
        }
    }

    /// What a URI names; where it demands TLS, with `tls`, or with the credentials that it names.
    ///
    /// # Errors
    /// It demands TLS, and there are no credentials, or they make no sense.
    pub fn of_uri(uri: Uri, tls: Option<ClientCredentials>) -> Result<Self, NbdError> {
        let tls = match (uri.tls, tls, &uri.tls_certificates) {
            (false, ..) => None,
            (true, Some(tls), _) => Some(tls),
            (true, None, Some(directory)) => {
                Some(ClientCredentials::load(directory, uri.tls_verify_peer)?)
            }
            (true, None, None) => {
                return Err(NbdError::Address {
                    given: uri.address.to_string(),
                    why: "TLS is demanded: add ?tls-certificates=DIRECTORY".into(),
                });
            }
        };
        Ok(Self {
            export: uri.export,
            tls,
            tls_hostname: uri.tls_hostname,
            ..Self::new(uri.address)
        })
    }

    /// Whom the server's certificate has to name.
    fn tls_host(&self) -> String {
        match (&self.tls_hostname, &self.address) {
            (Some(name), _) => name.clone(),
            (None, Address::Tcp { host, .. }) => host.clone(),
            (None, Address::Unix(_)) => "localhost".into(),
        }
    }
}

/// An export of a server, as a storage: the bytes of a disk, or of an image in any format.
///
/// Its requests may come from any I/O thread; the connection lives on one. When the connection is
/// lost, requests that were not replied to wait for another one and are sent again
/// ([`ClientOptions::reconnect_delay`]). That is safe for a server that has kept what it
/// acknowledged: one whose machine has lost its page cache meanwhile has lost what was not
/// flushed.
pub struct Client {
    options: ClientOptions,
    facts: Facts,
    orders: Sender<Order>,
    /// Who may read, modify and write, where the server has a least block size.
    stripes: Stripes,
}

impl Client {
    /// Connects. The connection lives on `thread`; await or join what is returned.
    pub fn open(options: ClientOptions, thread: &IoThread) -> Remote<Result<Client, NbdError>> {
        let keep = thread.clone();
        thread.spawn_task(move || async move {
            let connected = Box::pin(link::open(&options)).await?;
            Self::start(options, keep, connected)
        })
    }

    /// As [`Client::open`], over a socket that is connected already. The address in the options
    /// is where to connect when that connection is lost.
    pub fn with_socket(
        socket: OwnedFd,
        options: ClientOptions,
        thread: &IoThread,
    ) -> Remote<Result<Client, NbdError>> {
        let keep = thread.clone();
        thread.spawn_task(move || async move {
            let connected = negotiation::negotiate(&options, socket).await?;
            Self::start(options, keep, connected)
        })
    }

    fn start(
        options: ClientOptions,
        thread: IoThread,
        connected: Connected,
    ) -> Result<Client, NbdError> {
        let facts = connected.facts;
        let refuse = |why| NbdError::Export {
            address: options.address.to_string(),
            name: options.export.clone(),
            why,
        };
        if facts.is_read_only() && !options.read_only {
            return Err(refuse("is read-only: open it so"));
        }
        if options.dirty_bitmap.is_some() && facts.extra.is_none() {
            return Err(refuse("has no such bitmap or metadata context"));
        }
        let (orders, receiver) = channel();
        let link = Link {
            options: options.clone(),
            facts,
            receiver,
            _thread: thread,
        };
        event::spawn_local(Box::pin(link.run(connected))).detach();
        Ok(Self {
            options,
            facts,
            orders,
            stripes: Stripes::new(STRIPE, STRIPES),
        })
    }

    /// How it was opened.
    #[must_use]
    pub fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// Whether the `len` bytes (not 0) from `offset` on are dirty in the bitmap that
    /// [`ClientOptions::dirty_bitmap`] names, and how many of them are alike.
    ///
    /// # Errors
    /// No bitmap was named (`EOPNOTSUPP`), or as any request.
    pub async fn dirty(&self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        let (flags, len) = self.status(self.facts.extra, offset, len).await?;
        Ok((flags & 1 != 0, len))
    }

    /// Flags of a context at an offset, and for how many bytes.
    async fn status(&self, context: Option<u32>, offset: u64, len: u64) -> io::Result<(u64, u64)> {
        let context = context.ok_or(Errno::EOPNOTSUPP)?;
        let block = u64::from(self.facts.min_block);
        let start = offset - offset % block;
        let end = offset.checked_add(len).ok_or(Errno::EINVAL)?;
        if len == 0 || end > self.facts.size {
            return Err(Errno::EINVAL.into());
        }
        // One block less than what the length's 32 bits can say.
        let most = u64::from(u32::MAX) / block * block - block;
        let length = (end.next_multiple_of(block).min(self.facts.size) - start).min(most);
        let flag = crate::protocol::flag::REQ_ONE;
        let outcome = self
            .order(command::BLOCK_STATUS, flag, start, length, None)
            .await;
        outcome.result?;
        let of_context = outcome.extents.iter().find(|(id, _)| *id == context);
        let first = of_context.and_then(|(_, extents)| extents.first());
        let (there, flags) = first.copied().ok_or(Errno::EIO)?;
        // Of what was told, that from the offset on.
        let there = start.saturating_add(there).saturating_sub(offset);
        match there.min(len) {
            0 => Err(Errno::EIO.into()),
            len => Ok((flags, len)),
        }
    }

    /// Has a request done.
    async fn order(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
        buf: Option<IoBuf>,
    ) -> Outcome {
        let (reply, outcome) = oneshot();
        let order = Order {
            command,
            flags,
            offset,
            length,
            buf,
            reply,
        };
        let gone = |buf| Outcome {
            result: Err(Errno::EIO.into()),
            buf,
            extents: Vec::new(),
        };
        match self.orders.send(order) {
            Ok(()) => outcome.await.unwrap_or_else(|_| gone(None)),
            Err(event::Closed(order)) => gone(order.buf),
        }
    }
}
