//! A chain of descriptors: one request of the driver, as bytes to read and bytes to write.
//!
//! ```text
//!   Chain  [ readable segments | writable segments ]
//!            └─ Reader ────────┘ └─ Writer ───────┘      Queue::add_used
//! ```

mod cursor;
mod io;
mod segments;
mod state;
#[cfg(test)]
mod tests;

use memory::Ram;

pub use cursor::{Reader, Writer};
pub use segments::Segment;
pub(crate) use segments::Segments;
pub(crate) use state::ChainState;

/// What the ring has to know to mark a chain used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// Split: index of the head descriptor. Packed: the driver's buffer ID.
    pub(crate) id: u16,
    /// Descriptors that the chain takes in the ring (not in an indirect table).
    pub(crate) descriptors: u16,
}

/// One chain of descriptors, checked: every segment is in RAM, none is empty, the readable ones
/// come first, and all together are shorter than 4 GiB.
#[derive(Debug)]
#[must_use = "a chain that is never marked used is lost to the driver"]
pub struct Chain {
    pub(crate) token: Token,
    pub(crate) segments: Segments,
    /// How many of the segments are readable.
    pub(crate) readable: usize,
    pub(crate) readable_len: u32,
    pub(crate) writable_len: u32,
}

impl Chain {
    /// The number that tells this chain from the others in flight: the head descriptor's index
    /// in a split ring, the driver's buffer ID in a packed one.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.token.id
    }

    /// The segments that the device reads.
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        self.segments
            .as_slice()
            .get(..self.readable)
            .unwrap_or_default()
    }

    /// The segments that the device writes.
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        self.segments
            .as_slice()
            .get(self.readable..)
            .unwrap_or_default()
    }

    /// Bytes that the device may read.
    #[must_use]
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes that the device may write.
    #[must_use]
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// A reader at the first readable byte.
    #[must_use]
    pub fn reader<'a>(&'a self, ram: &'a Ram) -> Reader<'a> {
        Reader::new(ram, self.readable(), self.readable_len)
    }

    /// A writer at the first writable byte.
    #[must_use]
    pub fn writer<'a>(&'a self, ram: &'a Ram) -> Writer<'a> {
        Writer::new(ram, self.writable(), self.writable_len)
    }
}
