//! A client: its negotiation, and then its requests, many at a time.
//!
//! ```text
//!   socket ─▶ reading task ─▶ a task for each request ─▶ queue ─▶ writing task ─▶ socket
//!                 ▲ waits while too many requests, or bytes, are on their way │
//!                 └───────────────────────────────────────────────────────────┘
//! ```

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block::IoBuf;
use event::{Either, Notify, StopToken, select2, spawn_local, timeout};

use super::Shared;
use super::export::Lease;
use super::negotiation::{
    ABSURD_OPTION, Chosen, MAX_OPTION, Negotiation, Next, Tls, greeting, refusal,
};
use super::pool;
use super::requests::{Reply, Session};
use crate::protocol::{IHAVEOPT, LARGEST_PAYLOAD, Reader, Request, command, reply};
use crate::stream::{Input, Stream};

/// Requests of a client on their way, and bytes of their payloads.
const MAX_REQUESTS: usize = 64;
const MAX_BYTES: u64 = 2 * LARGEST_PAYLOAD as u64;
/// A negotiation takes no longer.
const NEGOTIATION: Duration = Duration::from_secs(10);
/// How long a client that is sent away may take to read its last replies.
const FAREWELL: Duration = Duration::from_secs(1);
/// Replies that go out in one system call.
const BATCH: usize = 64;

/// Serves a client until it goes or is sent away.
pub(super) async fn serve(shared: &Arc<Shared>, socket: OwnedFd, stop: &StopToken) {
    let negotiation = timeout(NEGOTIATION, Box::pin(negotiate(shared, socket)));
    let negotiated = match select2(negotiation, stop.stopped()).await {
        Either::A(Some(Ok(Some(negotiated)))) => negotiated,
        Either::A(Some(Ok(None))) | Either::B(()) => return,
        Either::A(Some(Err(error))) => {
            log::info!("a client did not come to terms: {error}");
            return;
        }
        Either::A(None) => {
            log::info!("a client did not come to terms in {NEGOTIATION:?}");
            return;
        }
    };
    let (stream, input, chosen) = negotiated;
    let Some(lease) = chosen.entry.lease() else {
        return;
    };
    let removed = lease.entry().stop_token();
    let _member = pool::Member::new();
    let connection = Rc::new(Connection {
        stream,
        lease,
        chosen,
        requests: Cell::new(0),
        bytes: Cell::new(0),
        freed: Notify::new(),
        working: Cell::new(0),
        replies: RefCell::default(),
        more: Notify::new(),
        idle: Notify::new(),
        over: Cell::new(false),
        ended: Cell::new(false),
    });
    let watch = {
        let (connection, stop) = (Rc::clone(&connection), stop.clone());
        spawn_local(async move {
            select2(stop.stopped(), removed.stopped()).await;
            connection.end();
        })
    };
    let writer = spawn_local(write(Rc::clone(&connection)));
    if let Err(error) = read(&connection, input).await {
        log::info!("a client of {:?}: {error}", connection.lease.export().name);
    }
    // What was begun is completed, whether anybody wants to know or not.
    while connection.working.get() != 0 {
        connection.idle.notified().await;
    }
    connection.over.set(true);
    connection.more.notify();
    timeout(FAREWELL, writer).await;
    watch.cancel().await;
    connection.stream.close();
}

type Negotiated = (Stream, Input, Chosen);

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// `None`: the client has ended it.
async fn negotiate(shared: &Shared, socket: OwnedFd) -> io::Result<Option<Negotiated>> {
    let mut stream = Stream::new(socket)?;
    let mut input = Input::new();
    let tls = match shared.tls {
        Some(_) => Tls::Required,
        None => Tls::None,
    };
    let mut model = Negotiation::new(&shared.exports, tls);
    stream.write(&greeting()).await?;
    let Some(flags) = input.array(&stream).await? else {
        return Ok(None);
    };
    if !model.client_flags(u32::from_be_bytes(flags)) {
        return Err(bad("its flags are unknown"));
    }
    loop {
        let Some(header) = input.array::<16>(&stream).await? else {
            return Ok(None);
        };
        let mut from = Reader(&header);
        let (Some(IHAVEOPT), Some(number), Some(len)) = (from.u64(), from.u32(), from.u32()) else {
            return Err(bad("the magic number of an option is wrong"));
        };
        if len >= ABSURD_OPTION {
            return Err(bad("the length of an option is absurd"));
        }
        let (out, next) = if len > MAX_OPTION {
            input.skip(&stream, len.into()).await?;
            let out = refusal(number, reply::ERR_TOO_BIG, "that is too long");
            (out, Next::Option)
        } else {
            let data = input.bytes(&stream, len as usize).await?;
            model.option(number, &data)
        };
        stream.write(&out).await?;
        match next {
            Next::Option => (),
            Next::StartTls => {
                // What came before the handshake was said by anybody.
                if !input.is_empty() {
                    return Err(bad("something was said between STARTTLS and TLS"));
                }
                let Some(credentials) = &shared.tls else {
                    return Ok(None);
                };
                let connection = credentials.connection().map_err(io::Error::other)?;
                stream.start_tls(connection).await?;
                model.tls_started();
            }
            Next::Serve(chosen) => return Ok(Some((stream, input, chosen))),
            Next::End => {
                stream.close();
                return Ok(None);
            }
        }
    }
}

struct Connection {
    stream: Stream,
    lease: Lease,
    chosen: Chosen,
    /// Requests that were read and not yet replied to, and bytes of their payloads.
    requests: Cell<usize>,
    bytes: Cell<u64>,
    /// Some of them are done.
    freed: Notify,
    /// Requests that are being carried out.
    working: Cell<usize>,
    /// What is to be sent, with the bytes that it is counted as.
    replies: RefCell<VecDeque<(Reply, u64)>>,
    /// There are replies, or it is over.
    more: Notify,
    /// All requests were carried out.
    idle: Notify,
    /// No replies come any more.
    over: Cell<bool>,
    /// No request is to be taken any more.
    ended: Cell<bool>,
}

impl Connection {
    /// No more requests.
    fn end(&self) {
        self.ended.set(true);
        self.stream.stop_reading();
        self.freed.notify();
    }

    fn send(&self, reply: Reply, bytes: u64) {
        self.replies.borrow_mut().push_back((reply, bytes));
        self.more.notify();
    }

    fn sent(&self, requests: usize, bytes: u64) {
        self.requests
            .set(self.requests.get().saturating_sub(requests));
        self.bytes.set(self.bytes.get().saturating_sub(bytes));
        self.freed.notify();
    }

    /// Waits until one more request with this many bytes is bearable, and counts it. `false`: it
    /// is over.
    async fn admit(&self, bytes: u64) -> bool {
        while !self.ended.get() && self.is_full(bytes) {
            self.freed.notified().await;
        }
        if self.ended.get() {
            return false;
        }
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get().saturating_add(bytes));
        true
    }

    fn is_full(&self, bytes: u64) -> bool {
        let there = self.bytes.get();
        self.requests.get() >= MAX_REQUESTS || there != 0 && there.saturating_add(bytes) > MAX_BYTES
    }

    async fn carry_out(&self, request: &Request, payload: Option<IoBuf>, bytes: u64) {
        let session = Session {
            export: self.lease.export(),
            dialect: self.chosen.dialect,
            contexts: &self.chosen.contexts,
        };
        let reply = session.carry_out(request, payload).await;
        self.send(reply, bytes);
        self.working.set(self.working.get().saturating_sub(1));
        self.idle.notify();
    }
}

/// Reads requests until the client says goodbye or goes.
async fn read(connection: &Rc<Connection>, mut input: Input) -> io::Result<()> {
    let stream = &connection.stream;
    let dialect = connection.chosen.dialect;
    let mut header = vec![0; dialect.request_len()];
    loop {
        if !input.exactly(stream, &mut header).await? {
            return Ok(());
        }
        let request = Request::parse(&header, dialect);
        let request = request.ok_or_else(|| bad("the magic number of a request is wrong"))?;
        if request.command == command::DISC {
            return Ok(());
        }
        let payload = request.payload(dialect);
        if payload > LARGEST_PAYLOAD.into() {
            return Err(bad("the payload of a request is too long"));
        }
        let content = match request.command {
            command::READ => request.length.min(LARGEST_PAYLOAD.into()),
            _ => payload,
        };
        if !connection.admit(content).await {
            return Ok(());
        }
        let payload = match payload {
            0 if request.command != command::WRITE => Ok(None),
            len => receive(&mut input, stream, len).await.map(Some),
        };
        let payload = payload.inspect_err(|_| connection.sent(1, content))?;
        connection.working.set(connection.working.get() + 1);
        let connection = Rc::clone(connection);
        spawn_local(async move {
            connection.carry_out(&request, payload, content).await;
        })
        .detach();
    }
}

/// Reads a payload.
async fn receive(input: &mut Input, stream: &Stream, len: u64) -> io::Result<IoBuf> {
    let mut buf = pool::take(len)?;
    let bytes = buf
        .bytes_mut()
        .and_then(|bytes| bytes.get_mut(..len as usize));
    let bytes = bytes.ok_or(io::ErrorKind::OutOfMemory)?;
    match input.exactly(stream, bytes).await? {
        true => Ok(buf),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Sends replies until there are no more, or nobody takes them.
async fn write(connection: Rc<Connection>) {
    let mut broken = false;
    loop {
        let batch: Vec<(Reply, u64)> = {
            let mut replies = connection.replies.borrow_mut();
            let count = replies.len().min(BATCH);
            replies.drain(..count).collect()
        };
        if batch.is_empty() {
            if connection.over.get() {
                return;
            }
            connection.more.notified().await;
            continue;
        }
        if !broken {
            let mut pieces = Vec::with_capacity(batch.len() * 2);
            for (reply, _) in &batch {
                pieces.push(IoSlice::new(&reply.head));
                pieces.push(IoSlice::new(reply.content()));
            }
            if let Err(error) = connection.stream.write_slices(&mut pieces).await {
                log::info!("a client takes no replies: {error}");
                broken = true;
                connection.end();
            }
        }
        let bytes = batch.iter().map(|(_, bytes)| bytes).sum();
        connection.sent(batch.len(), bytes);
        batch.into_iter().for_each(|(reply, _)| reply.sent());
    }
}
