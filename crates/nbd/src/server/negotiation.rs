//! The negotiation as a model: an option comes in, replies go out, and what comes next. No I/O.

use std::sync::Arc;

use super::export::{Entry, Export, Exports};
use crate::protocol::{
    Dialect, IHAVEOPT, LARGEST_PAYLOAD, LONGEST_STRING, NBDMAGIC, REPLY_MAGIC, Reader, context,
    handshake, info, option, reply, transmission,
};

/// Bytes of an option's data that we look at.
pub(crate) const MAX_OPTION: u32 = 64 << 10;
/// What is at least as long as this is no option's data but something else.
pub(crate) const ABSURD_OPTION: u32 = 32 << 20;
/// Zeros behind the answer to EXPORT_NAME.
const ZEROES: usize = 124;
/// Requests should have at least this many bytes and be aligned to them.
const PREFERRED_BLOCK: u32 = 4096;

/// Where TLS stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    /// There is none.
    None,
    /// Nothing else is talked about before it.
    Required,
    /// It is on.
    Active,
}

/// A metadata context of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Context {
    /// `base:allocation`.
    Allocation,
    /// `qemu:allocation-depth`.
    Depth,
    /// `qemu:dirty-bitmap:NAME`: which of the export's.
    Bitmap(usize),
}

impl Context {
    /// All contexts of an export, with their names.
    fn of(export: &Export) -> Vec<(Self, String)> {
        let mut all = vec![(Self::Allocation, context::BASE_ALLOCATION.to_owned())];
        if export.allocation_depth {
            all.push((Self::Depth, context::ALLOCATION_DEPTH.to_owned()));
        }
        let bitmaps = export.bitmaps.iter().enumerate();
        all.extend(bitmaps.map(|(at, bitmap)| {
            let name = format!("{}{}", context::DIRTY_BITMAP, bitmap.name());
            (Self::Bitmap(at), name)
        }));
        all
    }

    /// Its number in replies.
    pub(crate) fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            Self::Depth => 2,
            Self::Bitmap(at) => u32::try_from(at).unwrap_or(u32::MAX).saturating_add(16),
        }
    }
}

/// What the client has decided for.
pub(crate) struct Chosen {
    pub(crate) entry: Arc<Entry>,
    pub(crate) dialect: Dialect,
    pub(crate) contexts: Vec<Context>,
}

/// What follows an option.
pub(crate) enum Next {
    /// Another one.
    Option,
    /// TLS, and then another one.
    StartTls,
    /// Requests.
    Serve(Chosen),
    /// Nothing: the connection ends.
    End,
}

/// A negotiation as far as it has come.
pub(crate) struct Negotiation<'a> {
    exports: &'a Exports,
    tls: Tls,
    no_zeroes: bool,
    dialect: Dialect,
    /// What SET_META_CONTEXT chose, and for which export.
    contexts: Option<(String, Vec<Context>)>,
}

/// The first words.
pub(crate) fn greeting() -> Vec<u8> {
    let mut out = NBDMAGIC.to_be_bytes().to_vec();
    out.extend_from_slice(&IHAVEOPT.to_be_bytes());
    let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
    out.extend_from_slice(&flags.to_be_bytes());
    out
}

/// Appends a reply to an option.
fn answer(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data);
}

/// The refusal of an option.
pub(crate) fn refusal(option: u32, kind: u32, why: &str) -> Vec<u8> {
    let mut out = Vec::new();
    answer(&mut out, option, kind, why.as_bytes());
    out
}

/// Size and transmission flags as a client sees them.
fn size_and_flags(export: &Export, dialect: Dialect) -> (u64, u16) {
    use transmission as t;
    let mut flags = t::HAS_FLAGS | t::SEND_FLUSH | t::SEND_FUA | t::SEND_CACHE;
    // A flush is one for all that was written by anybody.
    flags |= t::CAN_MULTI_CONN;
    match export.is_writable() {
        true => flags |= t::SEND_TRIM | t::SEND_WRITE_ZEROES | t::SEND_FAST_ZERO,
        false => flags |= t::READ_ONLY,
    }
    if dialect >= Dialect::Structured {
        flags |= t::SEND_DF;
    }
    (export.node.size(), flags)
}

impl<'a> Negotiation<'a> {
    pub(crate) fn new(exports: &'a Exports, tls: Tls) -> Self {
        Self {
            exports,
            tls,
            no_zeroes: false,
            dialect: Dialect::Simple,
            contexts: None,
        }
    }

    /// The client's flags. `false`: it wants what we do not know.
    pub(crate) fn client_flags(&mut self, flags: u32) -> bool {
        let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        self.no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
        flags & !known == 0
    }

    /// TLS is on: what was said before does not count any more.
    pub(crate) fn tls_started(&mut self) {
        *self = Self {
            no_zeroes: self.no_zeroes,
            ..Self::new(self.exports, Tls::Active)
        };
    }

    /// An option with its data.
    pub(crate) fn option(&mut self, number: u32, data: &[u8]) -> (Vec<u8>, Next) {
        let mut out = Vec::new();
        if self.tls == Tls::Required && !matches!(number, option::STARTTLS | option::ABORT) {
            if number == option::EXPORT_NAME {
                return (out, Next::End);
            }
            let why = "TLS has to be started first";
            return (refusal(number, reply::ERR_TLS_REQD, why), Next::Option);
        }
        let done = match number {
            option::EXPORT_NAME => return self.export_name(data),
            option::ABORT => {
                answer(&mut out, number, reply::ACK, &[]);
                return (out, Next::End);
            }
            option::INFO | option::GO => match self.info(&mut out, number, data) {
                Ok(Some(chosen)) => return (out, Next::Serve(chosen)),
                other => other.map(|_| ()),
            },
            option::STARTTLS => match self.start_tls(data) {
                Ok(()) => {
                    answer(&mut out, number, reply::ACK, &[]);
                    return (out, Next::StartTls);
                }
                Err(refused) => Err(refused),
            },
            option::LIST => self.list(&mut out, data),
            option::STRUCTURED_REPLY => self.headers(Dialect::Structured, data),
            option::EXTENDED_HEADERS => self.headers(Dialect::Extended, data),
            option::LIST_META_CONTEXT => self.meta_context(&mut out, data, false),
            option::SET_META_CONTEXT => self.meta_context(&mut out, data, true),
            _ => Err((reply::ERR_UNSUP, "there is no such option".to_owned())),
        };
        match done {
            Ok(()) => answer(&mut out, number, reply::ACK, &[]),
            Err((kind, why)) => out.extend_from_slice(&refusal(number, kind, &why)),
        }
        (out, Next::Option)
    }

    fn export_name(&mut self, data: &[u8]) -> (Vec<u8>, Next) {
        let name = std::str::from_utf8(data).ok();
        let name = name.filter(|name| name.len() <= LONGEST_STRING);
        // The protocol has no way to say no.
        let Some(entry) = name.and_then(|name| self.exports.find(name)) else {
            return (Vec::new(), Next::End);
        };
        let (size, flags) = size_and_flags(&entry.export, self.dialect);
        let mut out = size.to_be_bytes().to_vec();
        out.extend_from_slice(&flags.to_be_bytes());
        if !self.no_zeroes {
            out.resize(out.len() + ZEROES, 0);
        }
        let chosen = self.chosen(entry);
        (out, Next::Serve(chosen))
    }

    fn chosen(&mut self, entry: Arc<Entry>) -> Chosen {
        let contexts = match self.contexts.take() {
            Some((name, contexts)) if name == entry.export.name => contexts,
            _ => Vec::new(),
        };
        Chosen {
            entry,
            dialect: self.dialect,
            contexts,
        }
    }

    fn start_tls(&self, data: &[u8]) -> Result<(), Refused> {
        empty(data)?;
        match self.tls {
            Tls::Required => Ok(()),
            Tls::None => Err((reply::ERR_POLICY, "TLS is not configured".into())),
            Tls::Active => Err((reply::ERR_INVALID, "TLS is on already".into())),
        }
    }

    fn headers(&mut self, dialect: Dialect, data: &[u8]) -> Result<(), Refused> {
        empty(data)?;
        if self.dialect > dialect {
            let why = "extended headers were agreed on";
            return Err((reply::ERR_INVALID, why.into()));
        }
        self.dialect = dialect;
        Ok(())
    }

    fn list(&self, out: &mut Vec<u8>, data: &[u8]) -> Result<(), Refused> {
        empty(data)?;
        for entry in self.exports.all() {
            let name = entry.export.name.as_bytes();
            let mut data = u32::try_from(name.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes()
                .to_vec();
            data.extend_from_slice(name);
            data.extend_from_slice(entry.export.description.as_bytes());
            answer(out, option::LIST, reply::SERVER, &data);
        }
        Ok(())
    }

    fn info(
        &mut self,
        out: &mut Vec<u8>,
        number: u32,
        data: &[u8],
    ) -> Result<Option<Chosen>, Refused> {
        let mut from = Reader(data);
        let name = from.string().ok_or_else(malformed)?;
        let count = from.u16().ok_or_else(malformed)?;
        let asked: Option<Vec<u16>> = (0..count).map(|_| from.u16()).collect();
        let asked = asked.ok_or_else(malformed)?;
        if !from.is_empty() {
            return Err(malformed());
        }
        let entry = self.find(name)?;
        let export = &entry.export;
        let mut tell = |kind: u16, parts: &[&[u8]]| {
            let mut data = kind.to_be_bytes().to_vec();
            parts.iter().for_each(|part| data.extend_from_slice(part));
            answer(out, number, reply::INFO, &data);
        };
        if asked.contains(&info::NAME) {
            tell(info::NAME, &[export.name.as_bytes()]);
        }
        if asked.contains(&info::DESCRIPTION) && !export.description.is_empty() {
            tell(info::DESCRIPTION, &[export.description.as_bytes()]);
        }
        // Any offset and length is correct, whether a client asks for this or not.
        let block = export.node.limits().physical_block_size;
        let preferred = match block.is_power_of_two() {
            true => block.clamp(PREFERRED_BLOCK, LARGEST_PAYLOAD),
            false => PREFERRED_BLOCK,
        };
        let sizes = [1, preferred, LARGEST_PAYLOAD].map(u32::to_be_bytes);
        tell(info::BLOCK_SIZE, &[&sizes.concat()]);
        let (size, flags) = size_and_flags(export, self.dialect);
        tell(info::EXPORT, &[&size.to_be_bytes(), &flags.to_be_bytes()]);
        if number == option::INFO {
            return Ok(None);
        }
        answer(out, number, reply::ACK, &[]);
        Ok(Some(self.chosen(entry)))
    }

    fn find(&self, name: &str) -> Result<Arc<Entry>, Refused> {
        let unknown = || (reply::ERR_UNKNOWN, format!("there is no export {name:?}"));
        self.exports.find(name).ok_or_else(unknown)
    }

    fn meta_context(&mut self, out: &mut Vec<u8>, data: &[u8], set: bool) -> Result<(), Refused> {
        if set {
            self.contexts = None;
        }
        if self.dialect == Dialect::Simple {
            let why = "structured replies have to be agreed on first";
            return Err((reply::ERR_INVALID, why.into()));
        }
        let mut from = Reader(data);
        let name = from.string().ok_or_else(malformed)?;
        let count = from.u32().ok_or_else(malformed)?;
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(from.string().ok_or_else(malformed)?);
        }
        if !from.is_empty() {
            return Err(malformed());
        }
        let entry = self.find(name)?;
        let matches = |context: &str| match set {
            true => queries.contains(&context),
            false => queries.is_empty() || queries.iter().any(|query| lists(query, context)),
        };
        let mut chosen = Context::of(&entry.export);
        chosen.retain(|(_, name)| matches(name));
        for (context, name) in &chosen {
            let id = if set { context.id() } else { 0 };
            let data = [&id.to_be_bytes(), name.as_bytes()].concat();
            let number = match set {
                true => option::SET_META_CONTEXT,
                false => option::LIST_META_CONTEXT,
            };
            answer(out, number, reply::META_CONTEXT, &data);
        }
        if set {
            let contexts = chosen.into_iter().map(|(context, _)| context);
            self.contexts = Some((name.to_owned(), contexts.collect()));
        }
        Ok(())
    }
}

/// A reply's error, and why.
type Refused = (u32, String);

fn malformed() -> Refused {
    (
        reply::ERR_INVALID,
        "the option's data makes no sense".into(),
    )
}

fn empty(data: &[u8]) -> Result<(), Refused> {
    match data.is_empty() {
        true => Ok(()),
        false => Err((reply::ERR_INVALID, "the option takes no data".into())),
    }
}

/// Whether a question names a context, or a namespace that it is in.
fn lists(query: &str, context: &str) -> bool {
    match query {
        "base:" | "qemu:" | context::DIRTY_BITMAP => context.starts_with(query),
        exact => exact == context,
    }
}

#[cfg(test)]
#[path = "negotiation_tests.rs"]
mod tests;
