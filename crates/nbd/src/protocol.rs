//! The protocol's numbers and headers, as the NetworkBlockDevice project's doc/proto.md has them.
//! All of them are big-endian. Nothing here does I/O.

use std::io;

use nix::errno::Errno;

/// What a server says first.
pub(crate) const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Begins every option of a client, and follows [`NBDMAGIC`] in newstyle negotiation.
pub(crate) const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Follows [`NBDMAGIC`] in oldstyle negotiation.
pub(crate) const OLDSTYLE: u64 = 0x0000_4202_8186_1253;
/// Begins every reply to an option.
pub(crate) const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The port of the protocol (IANA).
pub const PORT: u16 = 10809;
/// Bytes of the longest string that the protocol allows.
pub const LONGEST_STRING: usize = 4096;
/// Bytes of payload that every implementation has to take, and the most that we take or send in
/// one request or reply.
pub const LARGEST_PAYLOAD: u32 = 32 << 20;

/// Handshake flags, which both sides have.
pub(crate) mod handshake {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// Transmission flags: what an export is, and what may be asked of it.
pub(crate) mod transmission {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Options of a client in the negotiation.
pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
    pub(crate) const EXTENDED_HEADERS: u32 = 11;
}

/// Replies of a server to an option.
pub(crate) mod reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERROR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = ERROR + 1;
    pub(crate) const ERR_POLICY: u32 = ERROR + 2;
    pub(crate) const ERR_INVALID: u32 = ERROR + 3;
    pub(crate) const ERR_PLATFORM: u32 = ERROR + 4;
    pub(crate) const ERR_TLS_REQD: u32 = ERROR + 5;
    pub(crate) const ERR_UNKNOWN: u32 = ERROR + 6;
    pub(crate) const ERR_SHUTDOWN: u32 = ERROR + 7;
    pub(crate) const ERR_BLOCK_SIZE_REQD: u32 = ERROR + 8;
    pub(crate) const ERR_TOO_BIG: u32 = ERROR + 9;
}

/// What is told of an export.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Requests.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub(crate) mod flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
    /// Extended headers: the length is that of a payload.
    pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Chunks of structured replies.
pub(crate) mod chunk {
    pub(crate) const DONE: u16 = 1 << 0;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const BLOCK_STATUS_EXT: u16 = 6;
    /// Every type with this bit is an error; all begin as [`ERROR`] does.
    pub(crate) const IS_ERROR: u16 = 1 << 15;
    pub(crate) const ERROR: u16 = IS_ERROR + 1;
}

/// Status bits of `base:allocation`.
pub(crate) mod allocation {
    pub(crate) const HOLE: u64 = 1 << 0;
    pub(crate) const ZERO: u64 = 1 << 1;
}

/// The metadata contexts that we know.
pub(crate) mod context {
    pub(crate) const BASE_ALLOCATION: &str = "base:allocation";
    pub(crate) const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";
    pub(crate) const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
}

/// Which headers and replies a connection uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dialect {
    /// Simple replies.
    Simple,
    /// Structured replies.
    Structured,
    /// Extended headers, in requests too.
    Extended,
}

impl Dialect {
    /// Bytes of the header of a request.
    pub(crate) fn request_len(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 28,
            Self::Extended => 32,
        }
    }

    /// Bytes of a chunk's header.
    pub(crate) fn chunk_len(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 20,
            Self::Extended => 32,
        }
    }
}

/// Reads big-endian numbers. Beyond the end there is nothing.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string that is preceded by its length.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        if len > LONGEST_STRING {
            return None;
        }
        std::str::from_utf8(self.bytes(len)?).ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A request as it is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Request {
    /// Reads a header. `None`: it is none.
    pub(crate) fn parse(bytes: &[u8], dialect: Dialect) -> Option<Self> {
        let mut from = Reader(bytes);
        let extended = dialect == Dialect::Extended;
        let magic = match extended {
            true => EXTENDED_REQUEST_MAGIC,
            false => REQUEST_MAGIC,
        };
        if from.u32()? != magic {
            return None;
        }
        Some(Self {
            flags: from.u16()?,
            command: from.u16()?,
            cookie: from.u64()?,
            offset: from.u64()?,
            length: match extended {
                true => from.u64()?,
                false => u64::from(from.u32()?),
            },
        })
    }

    /// The header. A length that the dialect cannot say is cut; the caller sees to it that there
    /// is none.
    pub(crate) fn encode(&self, dialect: Dialect) -> Vec<u8> {
        let extended = dialect == Dialect::Extended;
        let mut out = Vec::with_capacity(dialect.request_len());
        let magic = match extended {
            true => EXTENDED_REQUEST_MAGIC,
            false => REQUEST_MAGIC,
        };
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.command.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        match extended {
            true => out.extend_from_slice(&self.length.to_be_bytes()),
            false => {
                let length = u32::try_from(self.length).unwrap_or(u32::MAX);
                out.extend_from_slice(&length.to_be_bytes());
            }
        }
        out
    }

    /// Bytes of payload behind the header.
    pub(crate) fn payload(&self, dialect: Dialect) -> u64 {
        let has_payload = match dialect {
            Dialect::Extended => self.flags & flag::PAYLOAD_LEN != 0,
            _ => self.command == command::WRITE,
        };
        if has_payload { self.length } else { 0 }
    }
}

/// The header of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// A simple reply: the error number, or 0.
    Simple {
        /// The request's.
        cookie: u64,
        /// 0: it succeeded.
        error: u32,
    },
    /// A chunk of a structured reply.
    Chunk {
        /// The request's.
        cookie: u64,
        /// See [`chunk`].
        kind: u16,
        /// The last one.
        done: bool,
        /// Bytes of payload.
        length: u64,
    },
}

impl Header {
    /// Bytes of a simple reply, the shortest header.
    pub(crate) const SIMPLE: usize = 16;

    /// Bytes of the header that begins with `bytes`, of which four are enough. `None`: nothing
    /// that the dialect has.
    pub(crate) fn len(bytes: &[u8], dialect: Dialect) -> Option<usize> {
        match (Reader(bytes).u32()?, dialect) {
            (SIMPLE_REPLY_MAGIC, Dialect::Simple | Dialect::Structured) => Some(Self::SIMPLE),
            (STRUCTURED_REPLY_MAGIC, Dialect::Structured)
            | (EXTENDED_REPLY_MAGIC, Dialect::Extended) => Some(dialect.chunk_len()),
            _ => None,
        }
    }

    /// Reads a header.
    pub(crate) fn parse(bytes: &[u8], dialect: Dialect) -> Option<Self> {
        let mut from = Reader(bytes);
        match (from.u32()?, dialect) {
            (SIMPLE_REPLY_MAGIC, Dialect::Simple | Dialect::Structured) => {
                let error = from.u32()?;
                let cookie = from.u64()?;
                Some(Self::Simple { cookie, error })
            }
            (STRUCTURED_REPLY_MAGIC, Dialect::Structured)
            | (EXTENDED_REPLY_MAGIC, Dialect::Extended) => {
                let done = from.u16()? & chunk::DONE != 0;
                let kind = from.u16()?;
                let cookie = from.u64()?;
                let length = match dialect {
                    Dialect::Extended => {
                        let _offset = from.u64()?;
                        from.u64()?
                    }
                    _ => u64::from(from.u32()?),
                };
                Some(Self::Chunk {
                    cookie,
                    kind,
                    done,
                    length,
                })
            }
            _ => None,
        }
    }
}

/// A simple reply.
pub(crate) fn simple_reply(cookie: u64, error: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(Header::SIMPLE);
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out
}

/// The header of a chunk with `length` bytes of payload, in answer to `request`.
pub(crate) fn chunk_header(
    dialect: Dialect,
    request: &Request,
    kind: u16,
    done: bool,
    length: u32,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    let extended = dialect == Dialect::Extended;
    let magic = match extended {
        true => EXTENDED_REPLY_MAGIC,
        false => STRUCTURED_REPLY_MAGIC,
    };
    let flags = if done { chunk::DONE } else { 0 };
    out.extend_from_slice(&magic.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&request.cookie.to_be_bytes());
    match extended {
        true => {
            out.extend_from_slice(&request.offset.to_be_bytes());
            out.extend_from_slice(&u64::from(length).to_be_bytes());
        }
        false => out.extend_from_slice(&length.to_be_bytes()),
    }
    out
}

/// The number on the wire for an error of the host.
pub(crate) fn wire_error(error: &io::Error) -> u32 {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let known = match errno {
        Errno::EPERM | Errno::EROFS | Errno::EACCES => Errno::EPERM,
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => Errno::ENOSPC,
        Errno::ENOMEM | Errno::EINVAL | Errno::EOVERFLOW | Errno::EOPNOTSUPP | Errno::ESHUTDOWN => {
            errno
        }
        _ => Errno::EIO,
    };
    // Linux's numbers of these are the protocol's.
    known as u32
}

/// The host's error for a number on the wire.
pub(crate) fn host_error(number: u32) -> io::Error {
    const KNOWN: [Errno; 8] = [
        Errno::EPERM,
        Errno::EIO,
        Errno::ENOMEM,
        Errno::EINVAL,
        Errno::ENOSPC,
        Errno::EOVERFLOW,
        Errno::EOPNOTSUPP,
        Errno::ESHUTDOWN,
    ];
    let known = KNOWN.into_iter().find(|errno| *errno as u32 == number);
    known.unwrap_or(Errno::EIO).into()
}
