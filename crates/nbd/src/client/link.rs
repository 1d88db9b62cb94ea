//! The task that has the connection: sends requests, takes replies, and connects again.
//!
//! ```text
//!   requests of any thread ─▶ channel ─▶ writing ─▶ socket ─▶ reading ─▶ who waits for it
//!                                           │ in flight: all that was not replied to
//!                         the connection is lost: in flight, and sent again when there is another
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use block::storage::tools::{Parts, concatenated, zero};
use event::{
    Either, IoBuf, IoThread, Notify, OneshotSender, Receiver, select2, sleep, sleep_until,
};
use nix::errno::Errno;

use super::ClientOptions;
use super::negotiation::{Connected, Facts, connect};
use crate::NbdError;
use crate::protocol::{Dialect, Header, Reader, Request, chunk, command, flag, host_error};
use crate::stream::{Input, Stream};

/// Between two attempts to connect: the first time, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of an error's or a block status' chunk that we take.
const MAX_CHUNK: u64 = 1 << 20;
/// Requests that go out together, and bytes of which there are not many more.
const BATCH: usize = 64;
const BATCH_BYTES: u64 = 256 << 10;

/// A request to be done.
pub(super) struct Order {
    pub(super) command: u16,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// What is written, or read into.
    pub(super) buf: Option<IoBuf>,
    pub(super) reply: OneshotSender<Outcome>,
}

/// What became of it.
pub(super) struct Outcome {
    pub(super) result: io::Result<()>,
    /// The buffer back.
    pub(super) buf: Option<IoBuf>,
    /// Block status: numbers of contexts, and lengths and flags of extents.
    pub(super) extents: Vec<(u32, Vec<(u64, u64)>)>,
}

/// An order on its way.
struct Job {
    request: Request,
    parts: Option<Parts>,
    reply: OneshotSender<Outcome>,
    /// Bytes that were read.
    covered: u64,
    error: Option<io::Error>,
    extents: Vec<(u32, Vec<(u64, u64)>)>,
    /// The reply has come; the buffer is not back yet.
    early: Option<io::Result<()>>,
}

impl Job {
    fn new(order: Order, dialect: Dialect) -> Self {
        let payload = match (order.command, dialect) {
            (command::WRITE, Dialect::Extended) => flag::PAYLOAD_LEN,
            _ => 0,
        };
        Self {
            request: Request {
                flags: order.flags | payload,
                command: order.command,
                cookie: 0,
                offset: order.offset,
                length: order.length,
            },
            parts: order.buf.map(Parts::new),
            reply: order.reply,
            covered: 0,
            error: None,
            extents: Vec::new(),
            early: None,
        }
    }

    /// As if it had never been sent.
    fn forget(&mut self) {
        self.covered = 0;
        self.error = None;
        self.extents.clear();
    }

    fn finish(self, result: io::Result<()>) {
        self.reply.send(Outcome {
            result,
            buf: self.parts.map(Parts::into_whole),
            extents: self.extents,
        });
    }

    /// The bytes of the buffer for a range of the disk, which has to be in the request's.
    fn part(&self, offset: u64, len: u64) -> Option<IoBuf> {
        let start = offset.checked_sub(self.request.offset)?;
        if self.request.command != command::READ
            || len == 0
            || start.checked_add(len)? > self.request.length
        {
            return None;
        }
        let parts = self.parts.as_ref()?;
        Some(parts.part(usize::try_from(start).ok()?, usize::try_from(len).ok()?))
    }
}

/// Requests that were sent, by their cookies, which grow.
#[derive(Default)]
struct Flight {
    jobs: RefCell<BTreeMap<u64, Job>>,
    /// The last one whose bytes have all gone out: what is behind it still uses its buffer.
    sent: Cell<u64>,
    /// There are none any more.
    landed: Notify,
}

impl Flight {
    fn with<R>(&self, cookie: u64, act: impl FnOnce(&mut Job) -> R) -> io::Result<R> {
        let mut jobs = self.jobs.borrow_mut();
        let job = jobs.get_mut(&cookie).filter(|job| job.early.is_none());
        let unknown = || bad("it replies to what was not asked");
        job.map(act).ok_or_else(unknown)
    }

    /// The reply is complete.
    fn finish(&self, cookie: u64, result: io::Result<()>) {
        if cookie > self.sent.get() {
            if let Some(job) = self.jobs.borrow_mut().get_mut(&cookie) {
                job.early = Some(result);
            }
            return;
        }
        let job = self.jobs.borrow_mut().remove(&cookie);
        if let Some(job) = job {
            job.finish(result);
        }
        if self.jobs.borrow().is_empty() {
            self.landed.notify();
        }
    }

    /// Everything up to a request has gone out.
    fn sent(&self, cookie: u64) {
        let since = self.sent.replace(cookie) + 1;
        let early: Vec<(u64, io::Result<()>)> = {
            let mut jobs = self.jobs.borrow_mut();
            let jobs = jobs.range_mut(since..);
            jobs.filter_map(|(at, job)| Some((*at, job.early.take()?)))
                .collect()
        };
        for (cookie, result) in early {
            self.finish(cookie, result);
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The connection's task.
pub(super) struct Link {
    pub(super) options: ClientOptions,
    pub(super) facts: Facts,
    pub(super) receiver: Receiver<Order>,
    /// Keeps the thread alive until the task is done.
    pub(super) _thread: IoThread,
}

impl Link {
    /// Works until the client is dropped.
    pub(super) async fn run(mut self, first: Connected) {
        let mut waiting = VecDeque::new();
        let mut cookie = 0;
        let mut connected = Some(first);
        while let Some(connection) = connected.take() {
            let flight = Flight::default();
            let Connected { stream, input, .. } = connection;
            let dialect = self.facts.dialect;
            let ended = {
                let writing = write(
                    &stream,
                    dialect,
                    &mut self.receiver,
                    &mut waiting,
                    &mut cookie,
                    &flight,
                );
                select2(read(&stream, input, dialect, &flight), writing).await
            };
            stream.close();
            let why = match ended {
                // The client is gone, and everything is done.
                Either::B(Ok(())) => return,
                Either::B(Err(error)) | Either::A(error) => error,
            };
            log::warn!("the NBD server at {} is lost: {why}", self.options.address);
            let flown = std::mem::take(&mut *flight.jobs.borrow_mut());
            for (_, mut job) in flown.into_iter().rev() {
                if let Some(result) = job.early.take() {
                    job.finish(result);
                    continue;
                }
                job.forget();
                waiting.push_front(job);
            }
            connected = self.reconnect(&mut waiting).await;
        }
        for job in waiting {
            job.finish(Err(Errno::EIO.into()));
        }
    }

    /// Connects again, however long it takes. Requests wait for a while, and fail then. `None`:
    /// nobody wants it any more.
    async fn reconnect(&mut self, waiting: &mut VecDeque<Job>) -> Option<Connected> {
        let mut attempts = pin!(attempts(&self.options, self.facts));
        if !self.options.reconnect_delay.is_zero() {
            let deadline = Instant::now().checked_add(self.options.reconnect_delay);
            let patience = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            if let Either::A(connected) = select2(attempts.as_mut(), patience).await {
                return Some(connected);
            }
            log::warn!(
                "the NBD server at {} has not come back in {:?}: requests fail",
                self.options.address,
                self.options.reconnect_delay
            );
        }
        for job in waiting.drain(..) {
            job.finish(Err(Errno::EIO.into()));
        }
        loop {
            match select2(attempts.as_mut(), self.receiver.recv()).await {
                Either::A(connected) => return Some(connected),
                Either::B(None) => return None,
                Either::B(Some(order)) => {
                    Job::new(order, self.facts.dialect).finish(Err(Errno::EIO.into()));
                }
            }
        }
    }
}

/// Tries to connect until that succeeds, and the export is what it was.
async fn attempts(options: &ClientOptions, facts: Facts) -> Connected {
    let mut pause = FIRST_PAUSE;
    loop {
        match Box::pin(connect(options)).await {
            Ok(connected) if connected.facts == facts => {
                log::info!("the NBD server at {} is back", options.address);
                return connected;
            }
            Ok(_) => log::warn!(
                "the export {:?} of the NBD server at {} is not what it was",
                options.export,
                options.address
            ),
            Err(error) => log::debug!("{error}"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// As [`attempts`], the first time: for so long as the user says.
pub(super) async fn open(options: &ClientOptions) -> Result<Connected, NbdError> {
    let deadline = Instant::now().checked_add(options.open_timeout);
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match Box::pin(connect(options)).await {
            Err(error @ NbdError::Connect { .. }) => error,
            other => return other,
        };
        let late = |deadline: Instant| Instant::now() + pause > deadline;
        if deadline.is_some_and(late) {
            return Err(error);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Sends requests until nobody has any more and all are replied to.
async fn write(
    stream: &Stream,
    dialect: Dialect,
    receiver: &mut Receiver<Order>,
    waiting: &mut VecDeque<Job>,
    cookie: &mut u64,
    flight: &Flight,
) -> io::Result<()> {
    loop {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH * 2 && bytes < BATCH_BYTES {
            let job = waiting.pop_front();
            let received = || receiver.try_recv().map(|order| Job::new(order, dialect));
            let Some(mut job) = job.or_else(received) else {
                break;
            };
            *cookie += 1;
            job.request.cookie = *cookie;
            batch.push(IoBuf::from_vec(job.request.encode(dialect)));
            if let (command::WRITE, Some(parts)) = (job.request.command, &job.parts) {
                let len = usize::try_from(job.request.length).unwrap_or(usize::MAX);
                batch.push(parts.part(0, len));
                bytes = bytes.saturating_add(job.request.length);
            }
            flight.jobs.borrow_mut().insert(*cookie, job);
        }
        if !batch.is_empty() {
            stream.write_buf(concatenated(batch)).await?;
            flight.sent(*cookie);
            continue;
        }
        match receiver.recv().await {
            Some(order) => waiting.push_back(Job::new(order, dialect)),
            None => break,
        }
    }
    while !flight.jobs.borrow().is_empty() {
        flight.landed.notified().await;
    }
    let goodbye = Request {
        flags: 0,
        command: command::DISC,
        cookie: 0,
        offset: 0,
        length: 0,
    };
    // The server may have gone before.
    _ = stream.write(&goodbye.encode(dialect)).await;
    Ok(())
}

/// Takes replies until the connection is lost; says why.
async fn read(stream: &Stream, mut input: Input, dialect: Dialect, flight: &Flight) -> io::Error {
    loop {
        if let Err(error) = read_one(stream, &mut input, dialect, flight).await {
            return error;
        }
    }
}

async fn read_one(
    stream: &Stream,
    input: &mut Input,
    dialect: Dialect,
    flight: &Flight,
) -> io::Result<()> {
    let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let mut bytes = [0; 32];
    let (magic, _) = bytes.split_at_mut(4);
    if !input.exactly(stream, magic).await? {
        return Err(ended());
    }
    let wrong = || bad("the magic number of a reply is wrong");
    let len = Header::len(&bytes, dialect).ok_or_else(wrong)?;
    let rest = bytes.get_mut(4..len).ok_or_else(wrong)?;
    if !input.exactly(stream, rest).await? {
        return Err(ended());
    }
    match Header::parse(&bytes, dialect).ok_or_else(wrong)? {
        Header::Simple { cookie, error } => {
            let content = flight.with(cookie, |job| match job.request.command {
                command::READ if error == 0 => {
                    Some(job.part(job.request.offset, job.request.length))
                }
                _ => None,
            })?;
            if let Some(part) = content {
                if dialect != Dialect::Simple {
                    return Err(bad("it answers a read with a simple reply"));
                }
                input.buf(stream, &mut part.ok_or_else(wrong)?).await?;
            }
            let result = match error {
                0 => Ok(()),
                number => Err(host_error(number)),
            };
            flight.finish(cookie, result);
        }
        Header::Chunk {
            cookie,
            kind,
            done,
            length,
        } => {
            read_chunk(stream, input, flight, cookie, kind, length).await?;
            if done {
                let result = flight.with(cookie, |job| {
                    let complete = match job.request.command {
                        command::READ => job.covered == job.request.length,
                        command::BLOCK_STATUS => !job.extents.is_empty(),
                        _ => true,
                    };
                    match job.error.take() {
                        Some(error) => Ok(Err(error)),
                        None if complete => Ok(Ok(())),
                        None => Err(bad("its reply is not complete")),
                    }
                })??;
                flight.finish(cookie, result);
            }
        }
    }
    Ok(())
}

/// Reads the payload of a chunk.
async fn read_chunk(
    stream: &Stream,
    input: &mut Input,
    flight: &Flight,
    cookie: u64,
    kind: u16,
    length: u64,
) -> io::Result<()> {
    let wrong = || bad("a chunk of its reply makes no sense");
    // Somebody has to wait for it.
    flight.with(cookie, |_| ())?;
    match kind {
        chunk::NONE if length == 0 => Ok(()),
        chunk::OFFSET_DATA => {
            let len = length.checked_sub(8).ok_or_else(wrong)?;
            let offset = input.array(stream).await?.ok_or_else(wrong)?;
            let offset = u64::from_be_bytes(offset);
            let part = flight.with(cookie, |job| {
                let part = job.part(offset, len)?;
                job.covered = job.covered.saturating_add(len);
                Some(part)
            })?;
            input.buf(stream, &mut part.ok_or_else(wrong)?).await
        }
        chunk::OFFSET_HOLE if length == 12 => {
            let payload = input.array::<12>(stream).await?.ok_or_else(wrong)?;
            let mut from = Reader(&payload);
            let (Some(offset), Some(len)) = (from.u64(), from.u32()) else {
                return Err(wrong());
            };
            let part = flight.with(cookie, |job| {
                let part = job.part(offset, len.into())?;
                job.covered = job.covered.saturating_add(len.into());
                Some(part)
            })?;
            let part = part.ok_or_else(wrong)?;
            zero(&part, part.len());
            Ok(())
        }
        chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT if length <= MAX_CHUNK => {
            let payload = input.bytes(stream, length as usize).await?;
            flight.with(cookie, |job| {
                if job.request.command != command::BLOCK_STATUS {
                    return Err(wrong());
                }
                let wide = kind == chunk::BLOCK_STATUS_EXT;
                let status = extents(&payload, wide, job.request.length).ok_or_else(wrong)?;
                job.extents.push(status);
                Ok(())
            })?
        }
        kind if kind & chunk::IS_ERROR != 0 && length <= MAX_CHUNK => {
            let payload = input.bytes(stream, length as usize).await?;
            let mut from = Reader(&payload);
            let (Some(number), Some(text)) = (from.u32(), from.u16()) else {
                return Err(wrong());
            };
            let text = from.bytes(text.into()).ok_or_else(wrong)?;
            log::debug!("an NBD request failed: {}", String::from_utf8_lossy(text));
            flight.with(cookie, |job| {
                job.error.get_or_insert_with(|| host_error(number));
            })
        }
        _ => Err(wrong()),
    }
}

/// The number of a context, and lengths and flags of extents, of which there is one at least.
/// `None`: that makes no sense.
fn extents(payload: &[u8], wide: bool, length: u64) -> Option<(u32, Vec<(u64, u64)>)> {
    let mut from = Reader(payload);
    let context = from.u32()?;
    let count = if wide { Some(from.u32()?) } else { None };
    let mut extents = Vec::new();
    let mut left = length;
    while !from.is_empty() {
        let (len, flags) = match wide {
            true => (from.u64()?, from.u64()?),
            false => (u64::from(from.u32()?), u64::from(from.u32()?)),
        };
        if len == 0 {
            return None;
        }
        // The last one may reach further than was asked.
        let len = len.min(left);
        left -= len;
        if len != 0 {
            extents.push((len, flags));
        }
    }
    // Beyond the range there is nothing that we could use; how many were told is of no interest.
    let _ = count;
    (!extents.is_empty()).then_some((context, extents))
}
