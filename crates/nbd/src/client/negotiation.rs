//! The client's side of the negotiation.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::ClientOptions;
use crate::NbdError;
use crate::protocol::{
    Dialect, IHAVEOPT, LARGEST_PAYLOAD, NBDMAGIC, OLDSTYLE, REPLY_MAGIC, Reader, context,
    handshake, info, option, reply, transmission,
};
use crate::stream::{Input, Stream};

/// Bytes of a reply to an option that we take.
const MAX_REPLY: u32 = 64 << 10;
/// Replies to one option that we take.
const MAX_REPLIES: usize = 10_000;
/// An attempt to connect takes no longer.
pub(super) const ATTEMPT: Duration = Duration::from_secs(10);
/// Zeros behind the answer to EXPORT_NAME.
const ZEROES: usize = 124;

/// What an export is, as its server tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// Bytes.
    pub(super) size: u64,
    /// Transmission flags.
    pub(super) flags: u16,
    /// Offsets and lengths are multiples of this many bytes.
    pub(super) min_block: u32,
    /// A good size of requests, in bytes.
    pub(super) preferred_block: u32,
    /// Bytes of the largest payload.
    pub(super) max_payload: u32,
    pub(super) dialect: Dialect,
    /// Number of the context `base:allocation`, when it was agreed on.
    pub(super) allocation: Option<u32>,
    /// Number of the other context that the user asked for.
    pub(super) extra: Option<u32>,
}

impl Facts {
    fn new(dialect: Dialect) -> Self {
        Self {
            size: 0,
            flags: 0,
            min_block: 1,
            preferred_block: 4096,
            max_payload: LARGEST_PAYLOAD,
            dialect,
            allocation: None,
            extra: None,
        }
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.has(transmission::READ_ONLY)
    }

    /// Takes in what the server says in an INFO reply. `false`: that makes no sense.
    fn take(&mut self, data: &[u8]) -> bool {
        self.try_take(data).is_some()
    }

    fn try_take(&mut self, data: &[u8]) -> Option<()> {
        let mut from = Reader(data);
        match from.u16()? {
            info::EXPORT => {
                self.size = from.u64()?;
                self.flags = from.u16()?;
            }
            info::BLOCK_SIZE => {
                let (min, preferred, max) = (from.u32()?, from.u32()?, from.u32()?);
                let sensible = min.is_power_of_two()
                    && min <= 64 << 10
                    && preferred.is_power_of_two()
                    && preferred >= min
                    && max >= min;
                if !sensible {
                    return None;
                }
                self.min_block = min;
                self.preferred_block = preferred;
                // It may be any number, also one that is no multiple of the least.
                self.max_payload = max.min(LARGEST_PAYLOAD) / min * min;
            }
            _ => (),
        }
        Some(())
    }

    /// The size is that of a disk.
    fn check(&self) -> bool {
        self.size <= i64::MAX as u64
    }
}

/// A connection that is ready for requests.
pub(super) struct Connected {
    pub(super) stream: Stream,
    pub(super) input: Input,
    pub(super) facts: Facts,
}

/// A negotiation under way.
struct Talk<'a> {
    options: &'a ClientOptions,
    stream: Stream,
    input: Input,
}

/// A server's reply to an option.
struct Reply {
    kind: u32,
    data: Vec<u8>,
}

impl Reply {
    fn text(&self) -> String {
        let said = String::from_utf8_lossy(&self.data);
        let meaning = match self.kind {
            reply::ERR_UNSUP => "it does not know that",
            reply::ERR_POLICY => "its policy forbids that",
            reply::ERR_INVALID => "it does not understand that",
            reply::ERR_PLATFORM => "its platform has not got that",
            reply::ERR_TLS_REQD => "it demands TLS: give credentials",
            reply::ERR_UNKNOWN => "there is no such export",
            reply::ERR_SHUTDOWN => "it is shutting down",
            reply::ERR_BLOCK_SIZE_REQD => "it has unusual block sizes",
            reply::ERR_TOO_BIG => "that is too long",
            _ => "for a reason of its own",
        };
        match said.trim() {
            "" => meaning.to_owned(),
            said => format!("{meaning} ({said})"),
        }
    }
}

/// A string behind its length.
fn string(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&len.to_be_bytes(), text.as_bytes()].concat()
}

/// Connects and comes to terms.
pub(super) async fn connect(options: &ClientOptions) -> Result<Connected, NbdError> {
    let failed = |source| NbdError::Connect {
        address: options.address.to_string(),
        source,
    };
    let address = options.address.clone();
    let socket = event::unblock(move || address.connect(ATTEMPT)).await?;
    negotiate(options, socket.map_err(failed)?).await
}

/// Comes to terms over a socket.
pub(super) async fn negotiate(
    options: &ClientOptions,
    socket: OwnedFd,
) -> Result<Connected, NbdError> {
    let failed = |source| NbdError::Connect {
        address: options.address.to_string(),
        source,
    };
    let talk = Box::pin(async {
        let talk = Talk {
            options,
            stream: Stream::new(socket).map_err(failed)?,
            input: Input::new(),
        };
        talk.run().await
    });
    let timed_out = || Err(failed(io::ErrorKind::TimedOut.into()));
    event::timeout(ATTEMPT, talk)
        .await
        .unwrap_or_else(timed_out)
}

impl Talk<'_> {
    fn failed(&self) -> impl FnOnce(io::Error) -> NbdError + use<> {
        let address = self.options.address.to_string();
        move |source| NbdError::Connect { address, source }
    }

    fn breaks(&self, what: impl Into<String>) -> NbdError {
        NbdError::Protocol {
            address: self.options.address.to_string(),
            what: what.into(),
        }
    }

    fn refused(&self, what: impl Into<String>, why: String) -> NbdError {
        NbdError::Refused {
            address: self.options.address.to_string(),
            what: what.into(),
            why,
        }
    }

    async fn array<const N: usize>(&mut self) -> Result<[u8; N], NbdError> {
        let failed = self.failed();
        let array = self.input.array(&self.stream).await.map_err(failed)?;
        array.ok_or_else(|| {
            let ended = "it ended the connection in the negotiation";
            self.breaks(ended)
        })
    }

    async fn send(&mut self, number: u32, data: &[u8]) -> Result<(), NbdError> {
        let mut out = IHAVEOPT.to_be_bytes().to_vec();
        out.extend_from_slice(&number.to_be_bytes());
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(data);
        let failed = self.failed();
        self.stream.write(&out).await.map_err(failed)
    }

    async fn reply(&mut self, number: u32) -> Result<Reply, NbdError> {
        let header = self.array::<20>().await?;
        let mut from = Reader(&header);
        let fields = (from.u64(), from.u32(), from.u32(), from.u32());
        let (Some(REPLY_MAGIC), Some(to), Some(kind), Some(len)) = fields else {
            return Err(self.breaks("the magic number of a reply is wrong"));
        };
        if to != number || len > MAX_REPLY {
            return Err(self.breaks(format!("a reply to option {to} makes no sense")));
        }
        let failed = self.failed();
        let data = self.input.bytes(&self.stream, len as usize).await;
        Ok(Reply {
            kind,
            data: data.map_err(failed)?,
        })
    }

    /// Asks for something that takes or gives no data: whether the server agrees.
    async fn agree(&mut self, number: u32) -> Result<Result<(), Reply>, NbdError> {
        self.send(number, &[]).await?;
        let answer = self.reply(number).await?;
        match answer.kind {
            reply::ACK => Ok(Ok(())),
            kind if kind & reply::ERROR != 0 => Ok(Err(answer)),
            kind => Err(self.breaks(format!("a reply of type {kind} was not asked for"))),
        }
    }

    async fn run(mut self) -> Result<Connected, NbdError> {
        if u64::from_be_bytes(self.array().await?) != NBDMAGIC {
            return Err(self.breaks("it is no NBD server"));
        }
        match u64::from_be_bytes(self.array().await?) {
            IHAVEOPT => (),
            OLDSTYLE => return Err(self.breaks("it negotiates in the style of before 2011")),
            _ => return Err(self.breaks("it is no NBD server")),
        }
        let flags = u16::from_be_bytes(self.array().await?);
        let fixed = flags & handshake::FIXED_NEWSTYLE != 0;
        let answer = flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        let failed = self.failed();
        let answer = u32::from(answer).to_be_bytes();
        self.stream.write(&answer).await.map_err(failed)?;
        if self.options.tls.is_some() {
            if !fixed {
                return Err(self.refused("TLS", "its negotiation is too old".into()));
            }
            self.start_tls().await?;
        }
        let mut facts = Facts::new(Dialect::Simple);
        let no_zeroes = flags & handshake::NO_ZEROES != 0;
        if fixed {
            facts.dialect = self.dialect().await?;
            if facts.dialect != Dialect::Simple {
                self.contexts(&mut facts).await?;
            }
            if self.go(&mut facts).await? {
                return self.ready(facts);
            }
        }
        self.export_name(&mut facts, no_zeroes).await?;
        self.ready(facts)
    }

    fn ready(self, mut facts: Facts) -> Result<Connected, NbdError> {
        // What is behind the last block cannot be asked for.
        facts.size -= facts.size % u64::from(facts.min_block);
        if !facts.check() {
            return Err(self.breaks("the export's size is absurd"));
        }
        Ok(Connected {
            stream: self.stream,
            input: self.input,
            facts,
        })
    }

    async fn start_tls(&mut self) -> Result<(), NbdError> {
        if let Err(answer) = self.agree(option::STARTTLS).await? {
            return Err(self.refused("TLS", answer.text()));
        }
        if !self.input.is_empty() {
            return Err(self.breaks("something was said between STARTTLS and TLS"));
        }
        let host = self.options.tls_host();
        let connection = match &self.options.tls {
            Some(credentials) => credentials.connection(&host),
            None => return Ok(()),
        };
        let connection = connection.map_err(|why| self.refused(format!("the name {host:?}"), why));
        let connection = connection?;
        let failed = self.failed();
        self.stream.start_tls(connection).await.map_err(failed)
    }

    /// The best headers that the server has.
    async fn dialect(&mut self) -> Result<Dialect, NbdError> {
        let wanted = [
            (option::EXTENDED_HEADERS, Dialect::Extended),
            (option::STRUCTURED_REPLY, Dialect::Structured),
        ];
        for (number, dialect) in wanted {
            match self.agree(number).await? {
                Ok(()) => return Ok(dialect),
                Err(answer) if answer.kind == reply::ERR_TLS_REQD => {
                    return Err(self.refused("a connection without TLS", answer.text()));
                }
                Err(_) => (),
            }
        }
        Ok(Dialect::Simple)
    }

    async fn contexts(&mut self, facts: &mut Facts) -> Result<(), NbdError> {
        let extra = self.options.dirty_bitmap.as_deref();
        let extra = extra.map(|name| match name.contains(':') {
            true => name.to_owned(),
            false => format!("{}{name}", context::DIRTY_BITMAP),
        });
        let mut wanted = vec![context::BASE_ALLOCATION];
        wanted.extend(extra.as_deref());
        let count = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
        let mut data = string(&self.options.export);
        data.extend_from_slice(&count.to_be_bytes());
        wanted.iter().for_each(|name| data.extend(string(name)));
        self.send(option::SET_META_CONTEXT, &data).await?;
        for _ in 0..MAX_REPLIES {
            let answer = self.reply(option::SET_META_CONTEXT).await?;
            match answer.kind {
                reply::META_CONTEXT => {
                    let mut from = Reader(&answer.data);
                    let id = from.u32();
                    match std::str::from_utf8(from.0) {
                        Ok(context::BASE_ALLOCATION) => facts.allocation = id,
                        Ok(name) if Some(name) == extra.as_deref() => facts.extra = id,
                        _ => (),
                    }
                }
                // Going there says what is wrong, if anything is.
                _ => return Ok(()),
            }
        }
        Err(self.breaks("its list of contexts does not end"))
    }

    /// `false`: the server is too old for that.
    async fn go(&mut self, facts: &mut Facts) -> Result<bool, NbdError> {
        let mut data = string(&self.options.export);
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.send(option::GO, &data).await?;
        let mut told = false;
        for _ in 0..MAX_REPLIES {
            let answer = self.reply(option::GO).await?;
            match answer.kind {
                reply::INFO => {
                    if !facts.take(&answer.data) {
                        return Err(self.breaks("what it tells of the export makes no sense"));
                    }
                    told |= answer.data.starts_with(&info::EXPORT.to_be_bytes());
                }
                reply::ACK if told => return Ok(true),
                reply::ERR_UNSUP => return Ok(false),
                kind if kind & reply::ERROR != 0 => {
                    let what = format!("the export {:?}", self.options.export);
                    return Err(self.refused(what, answer.text()));
                }
                _ => break,
            }
        }
        Err(self.breaks("its answer to GO makes no sense"))
    }

    async fn export_name(&mut self, facts: &mut Facts, no_zeroes: bool) -> Result<(), NbdError> {
        let name = self.options.export.clone();
        self.send(option::EXPORT_NAME, name.as_bytes()).await?;
        // A server without the export can only end the connection.
        let header = match self.array::<10>().await {
            Err(NbdError::Protocol { .. }) => {
                let why = "it ended the connection: probably there is no such export";
                return Err(self.refused(format!("the export {name:?}"), why.into()));
            }
            other => other?,
        };
        let mut from = Reader(&header);
        facts.size = from.u64().unwrap_or_default();
        facts.flags = from.u16().unwrap_or_default();
        if !no_zeroes {
            self.array::<ZEROES>().await?;
        }
        Ok(())
    }
}
