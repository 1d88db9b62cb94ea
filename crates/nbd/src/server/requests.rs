//! Carrying out requests.

use std::io;

use block::{IoBuf, WriteFlags, ZeroFlags};
use nix::errno::Errno;

use super::export::Export;
use super::negotiation::Context;
use super::pool;
use super::status;
use crate::protocol::{
    Dialect, LARGEST_PAYLOAD, Request, chunk, chunk_header, command, flag, simple_reply, wire_error,
};

/// What CACHE reads at once.
const CACHE_PIECE: u64 = 1 << 20;

/// A reply: a header and what goes with it, and perhaps the content of the disk behind.
pub(crate) struct Reply {
    pub(crate) head: Vec<u8>,
    /// A buffer, and how many of its bytes.
    content: Option<(IoBuf, usize)>,
}

impl Reply {
    /// What is sent behind the header.
    pub(crate) fn content(&self) -> &[u8] {
        let content = self.content.as_ref();
        let bytes = content.and_then(|(buf, len)| buf.bytes()?.get(..*len));
        bytes.unwrap_or_default()
    }

    /// It was sent.
    pub(crate) fn sent(self) {
        if let Some((buf, _)) = self.content {
            pool::give(buf);
        }
    }
}

impl From<Vec<u8>> for Reply {
    fn from(head: Vec<u8>) -> Self {
        Self {
            head,
            content: None,
        }
    }
}

/// What a connection has agreed on.
pub(crate) struct Session<'a> {
    pub(crate) export: &'a Export,
    pub(crate) dialect: Dialect,
    pub(crate) contexts: &'a [Context],
}

impl Session<'_> {
    /// Whether the request makes sense here.
    fn check(&self, request: &Request) -> io::Result<()> {
        let structured = self.dialect >= Dialect::Structured;
        let payload = match self.dialect {
            Dialect::Extended => flag::PAYLOAD_LEN,
            _ => 0,
        };
        let (changes, flags) = match request.command {
            command::READ if structured => (false, flag::DF),
            command::READ | command::FLUSH | command::CACHE => (false, 0),
            command::WRITE => (true, payload),
            command::TRIM => (true, 0),
            command::WRITE_ZEROES => (true, flag::NO_HOLE | flag::FAST_ZERO),
            command::BLOCK_STATUS if !self.contexts.is_empty() => (false, flag::REQ_ONE),
            _ => return Err(Errno::EINVAL.into()),
        };
        if request.flags & !(flags | flag::FUA) != 0 {
            return Err(Errno::EINVAL.into());
        }
        if changes && !self.export.is_writable() {
            return Err(Errno::EPERM.into());
        }
        if request.command == command::FLUSH {
            return match (request.offset, request.length) {
                (0, 0) => Ok(()),
                _ => Err(Errno::EINVAL.into()),
            };
        }
        if request.command == command::READ && request.length > LARGEST_PAYLOAD.into() {
            return Err(Errno::EOVERFLOW.into());
        }
        match request.offset.checked_add(request.length) {
            Some(end) if end <= self.export.node.size() => Ok(()),
            _ if request.command == command::WRITE => Err(Errno::ENOSPC.into()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    /// Carries out a request and says how that went.
    pub(crate) async fn carry_out(&self, request: &Request, payload: Option<IoBuf>) -> Reply {
        let done = match self.check(request) {
            Ok(()) => self.attempt(request, payload).await,
            Err(error) => Err(error),
        };
        done.unwrap_or_else(|error| self.failed(request, &error))
    }

    async fn attempt(&self, request: &Request, payload: Option<IoBuf>) -> io::Result<Reply> {
        let node = &self.export.node;
        let &Request { offset, length, .. } = request;
        let has = |flag: u16| request.flags & flag != 0;
        match request.command {
            command::READ if length != 0 => {
                let (result, buf) = node.read_vectored(pool::take(length)?, offset).await;
                result?;
                return self.content(request, buf);
            }
            command::WRITE => {
                let buf = payload.ok_or(Errno::EINVAL)?;
                if length != 0 {
                    let flags = WriteFlags {
                        fua: has(flag::FUA),
                    };
                    let (result, buf) = node.write_vectored(buf, offset, flags).await;
                    pool::give(buf);
                    result?;
                }
            }
            command::FLUSH => node.flush().await?,
            command::TRIM => {
                if length != 0 {
                    node.discard(offset, length).await?;
                }
                if has(flag::FUA) {
                    node.flush().await?;
                }
            }
            command::WRITE_ZEROES => {
                let flags = ZeroFlags {
                    may_unmap: !has(flag::NO_HOLE),
                    fua: has(flag::FUA),
                };
                // Giving space back is fast wherever it is possible; what else the host would do
                // is not known beforehand.
                if has(flag::FAST_ZERO) && !(flags.may_unmap && node.limits().can_discard) {
                    return Err(Errno::EOPNOTSUPP.into());
                }
                if length != 0 {
                    node.write_zeroes(offset, length, flags).await?;
                }
            }
            command::CACHE => {
                let end = offset.saturating_add(length);
                let mut at = offset;
                while at < end {
                    let piece = CACHE_PIECE.min(end - at);
                    let (result, buf) = node.read_vectored(pool::take(piece)?, at).await;
                    pool::give(buf);
                    result?;
                    at += piece;
                }
            }
            command::BLOCK_STATUS => return self.status(request).await,
            _ => (),
        }
        Ok(self.succeeded(request))
    }

    fn succeeded(&self, request: &Request) -> Reply {
        // Where structured replies were agreed on, a read has to have one; others are shorter
        // without.
        let simple = match self.dialect {
            Dialect::Simple => true,
            Dialect::Structured => request.command != command::READ,
            Dialect::Extended => false,
        };
        match simple {
            true => simple_reply(request.cookie, 0).into(),
            false => chunk_header(self.dialect, request, chunk::NONE, true, 0).into(),
        }
    }

    fn failed(&self, request: &Request, error: &io::Error) -> Reply {
        let number = wire_error(error);
        if self.dialect == Dialect::Simple {
            return simple_reply(request.cookie, number).into();
        }
        let text = error.to_string();
        let len = u16::try_from(text.len()).unwrap_or(0);
        let text = text.as_bytes().get(..len.into()).unwrap_or_default();
        let payload = 6 + u32::from(len);
        let mut head = chunk_header(self.dialect, request, chunk::ERROR, true, payload);
        head.extend_from_slice(&number.to_be_bytes());
        head.extend_from_slice(&len.to_be_bytes());
        head.extend_from_slice(text);
        head.into()
    }

    /// What was read. Nothing but zeros need not be sent.
    fn content(&self, request: &Request, buf: IoBuf) -> io::Result<Reply> {
        let header = |kind, len| chunk_header(self.dialect, request, kind, true, len);
        let length = u32::try_from(request.length).map_err(|_| Errno::EOVERFLOW)?;
        let len = length as usize;
        // A node gives the buffer back; one that has not has not read either.
        let bytes = buf.bytes().and_then(|bytes| bytes.get(..len));
        let bytes = bytes.ok_or(Errno::EIO)?;
        let head = if self.dialect == Dialect::Simple {
            simple_reply(request.cookie, 0)
        } else if is_zero(bytes) {
            pool::give(buf);
            let mut head = header(chunk::OFFSET_HOLE, 12);
            head.extend_from_slice(&request.offset.to_be_bytes());
            head.extend_from_slice(&length.to_be_bytes());
            return Ok(head.into());
        } else {
            let mut head = header(chunk::OFFSET_DATA, length.saturating_add(8));
            head.extend_from_slice(&request.offset.to_be_bytes());
            head
        };
        Ok(Reply {
            head,
            content: Some((buf, len)),
        })
    }

    async fn status(&self, request: &Request) -> io::Result<Reply> {
        if request.length == 0 {
            return Err(Errno::EINVAL.into());
        }
        let one = request.flags & flag::REQ_ONE != 0;
        let mut head = Vec::new();
        for (at, context) in (1..).zip(self.contexts) {
            let extents =
                status::extents(self.export, *context, request.offset, request.length, one).await?;
            let mut payload = context.id().to_be_bytes().to_vec();
            let extended = self.dialect == Dialect::Extended;
            if extended {
                let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
                payload.extend_from_slice(&count.to_be_bytes());
            }
            for (len, flags) in extents {
                if extended {
                    payload.extend_from_slice(&len.to_be_bytes());
                    payload.extend_from_slice(&flags.to_be_bytes());
                } else {
                    // The request's length has 32 bits here.
                    let narrow = |number| u32::try_from(number).unwrap_or(u32::MAX);
                    payload.extend_from_slice(&narrow(len).to_be_bytes());
                    payload.extend_from_slice(&narrow(flags).to_be_bytes());
                }
            }
            let kind = match extended {
                true => chunk::BLOCK_STATUS_EXT,
                false => chunk::BLOCK_STATUS,
            };
            let done = at == self.contexts.len();
            let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            head.extend(chunk_header(self.dialect, request, kind, done, len));
            head.extend(payload);
        }
        Ok(head.into())
    }
}

/// Whether all bytes are 0. Data mostly says no with its first ones.
fn is_zero(bytes: &[u8]) -> bool {
    let (head, rest) = bytes.split_at(bytes.len().min(16));
    head.iter().all(|byte| *byte == 0)
        && rest.chunks(4096).all(|piece| {
            let mut any = 0;
            piece.iter().for_each(|byte| any |= byte);
            any == 0
        })
}
