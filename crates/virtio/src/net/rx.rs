//! From the host to the guest.
//!
//! ```text
//!   ready:  chains that were taken from the ring, as many as the next frame probably needs
//!             │ first pieces                       bounce: the rest, should it be longer
//!             ▼                                      │
//!   [ header | frame ........ | frame .... ] ◀─ receive ─▶ [ ...... ]
//!     └── used, in one go                            └─ copied into further chains
//! ```

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use ::net::VNET_HEADER;
use memory::{Ram, VolatileSlice};
use zerocopy::{Immutable, IntoBytes, little_endian as le};

use super::filter::HEAD;
use super::handle::Stats;
use super::worker::{BATCH, DEVICE, Flow, Next, Turn, recycle};
use crate::{Chain, Queue, QueueError};

/// Pieces of one receive call, the bounce buffer apart: the host takes 1024 (IOV_MAX).
const MAX_PIECES: usize = 1000;
/// A frame of the usual size, with its header.
const USUAL: usize = VNET_HEADER + 1514;
/// Bytes of an Ethernet header: there is no shorter frame.
const ETHERNET: usize = 14;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS: usize = 10;

/// struct virtio_net_hdr (VIRTIO 1.3 section 5.1.6), of a frame about which nothing is special.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    flags_to_csum_offset: [u8; NUM_BUFFERS],
    num_buffers: le::U16,
}

/// A frame that came from the host and is not yet the driver's.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Bytes, with the virtio header.
    len: usize,
    /// So many of them are in the ready chains, in front; the others are in the bounce buffer.
    direct: usize,
}

/// What became of a frame.
enum Delivered {
    Yes,
    /// The driver has to give more buffers first.
    Starved,
}

/// A receive queue.
pub(super) struct Rx {
    /// The host gives the virtio header.
    header: bool,
    /// A frame may take several chains.
    mergeable: bool,
    stats: Arc<Stats>,
    ready: VecDeque<Chain>,
    /// Writable bytes of the ready chains.
    room: usize,
    /// As long as the longest frame.
    bounce: Vec<u8>,
    /// Bytes that the next frame will probably have.
    expect: usize,
    pending: Option<Frame>,
    /// Room for a list, empty between frames.
    pieces: Vec<VolatileSlice<'static>>,
    /// It was logged that the host's end is gone.
    told: bool,
}

impl Rx {
    pub fn new(header: bool, mergeable: bool, max_frame: usize, stats: Arc<Stats>) -> Self {
        Self {
            header,
            mergeable,
            stats,
            ready: VecDeque::new(),
            room: 0,
            bounce: vec![0; max_frame],
            expect: USUAL,
            pending: None,
            pieces: Vec::new(),
            told: false,
        }
    }

    /// Takes a chain from the ring; whether there was one.
    fn take(&mut self, turn: &mut Turn<'_>) -> Result<bool, QueueError> {
        let Some(chain) = turn.queue.pop(turn.ram)? else {
            return Ok(false);
        };
        let len = chain.writable_len() as usize;
        if len < VNET_HEADER {
            return Err(QueueError::TooShort {
                wanted: VNET_HEADER,
                remaining: len,
            });
        }
        self.room += len;
        self.ready.push_back(chain);
        Ok(true)
    }

    /// Receives a frame into the ready chains, and decides whether the driver wants it.
    fn receive(&mut self, turn: &Turn<'_>) -> Result<io::Result<Option<Frame>>, QueueError> {
        let mut pieces = recycle(std::mem::take(&mut self.pieces));
        let mut direct = 0;
        let chains = if self.mergeable { self.ready.len() } else { 1 };
        'gather: for (i, chain) in self.ready.iter().take(chains).enumerate() {
            let mut writer = chain.writer(turn.ram);
            if i == 0 && !self.header {
                writer.skip(VNET_HEADER)?;
            }
            for piece in writer.slices() {
                if pieces.len() == MAX_PIECES {
                    break 'gather;
                }
                let piece = piece?;
                direct += piece.len();
                pieces.push(piece);
            }
        }
        pieces.push(VolatileSlice::from(&mut self.bounce[..]));
        let received = turn.port.receive(&pieces);
        let filter = &turn.view.filter;
        let received = received.map(|len| {
            let start = if self.header { VNET_HEADER } else { 0 };
            if len < start + ETHERNET {
                return None;
            }
            let wanted = filter.is_open() || {
                let mut head = [0; HEAD];
                let end = len.min(start + HEAD);
                let read = read(&pieces, start, &mut head[..end - start]);
                filter.accepts(&head[..read])
            };
            let before = VNET_HEADER - start;
            wanted.then_some(Frame {
                len: len + before,
                direct: (direct + before).min(len + before),
            })
        });
        self.pieces = recycle(pieces);
        Ok(received)
    }

    /// Throws away what comes while the link is down.
    fn discard(&mut self, turn: &Turn<'_>) -> io::Result<()> {
        let received = turn
            .port
            .receive(&[VolatileSlice::from(&mut self.bounce[..])]);
        received.map(|_| self.stats.received.dropped())
    }

    /// Hands a frame to the driver.
    fn deliver(&mut self, turn: &mut Turn<'_>, frame: Frame) -> Result<Delivered, QueueError> {
        while self.room < frame.len {
            let full = || {
                let held = self.ready.iter().map(|c| usize::from(c.token.descriptors));
                held.sum::<usize>() >= turn.queue.size().into()
            };
            // Where one chain must do, or all that there can be do not.
            if !self.mergeable || full() {
                self.stats.received.dropped();
                return Ok(Delivered::Yes);
            }
            if !self.take(turn)? {
                return Ok(Delivered::Starved);
            }
        }
        let mut shares = Vec::new();
        let mut left = frame.len;
        for chain in &self.ready {
            if left == 0 {
                break;
            }
            let share = left.min(chain.writable_len() as usize);
            shares.push(share);
            left -= share;
        }
        self.write_header(turn.ram, shares.len())?;
        self.write_rest(turn.ram, frame, &shares)?;
        for share in shares {
            let Some(chain) = self.ready.pop_front() else {
                break;
            };
            self.room -= chain.writable_len() as usize;
            // A chain that is shorter than 4 GiB.
            turn.queue.push_used(turn.ram, chain, share as u32)?;
            turn.used = true;
        }
        self.stats.received.passed(frame.len - VNET_HEADER);
        Ok(Delivered::Yes)
    }

    fn write_header(&self, ram: &Ram, buffers: usize) -> Result<(), QueueError> {
        let Some(first) = self.ready.front() else {
            return Ok(());
        };
        // Not more than the queue has.
        let num_buffers = le::U16::new(u16::try_from(buffers).unwrap_or(u16::MAX));
        let mut writer = first.writer(ram);
        if self.header {
            writer.skip(NUM_BUFFERS)?;
            return writer.write_obj(&num_buffers);
        }
        writer.write_obj(&Header {
            flags_to_csum_offset: [0; NUM_BUFFERS],
            num_buffers,
        })
    }

    /// Copies what is in the bounce buffer to where it belongs.
    fn write_rest(&self, ram: &Ram, frame: Frame, shares: &[usize]) -> Result<(), QueueError> {
        let rest = frame.len - frame.direct;
        let mut bounce = self.bounce.get(..rest).unwrap_or_default();
        let mut start = 0;
        for (chain, share) in self.ready.iter().zip(shares) {
            let end = start + share;
            if end > frame.direct {
                let skip = frame.direct.saturating_sub(start);
                let (now, later) = bounce.split_at(bounce.len().min(share - skip));
                let mut writer = chain.writer(ram);
                writer.skip(skip)?;
                writer.write_all(now)?;
                bounce = later;
            }
            start = end;
        }
        Ok(())
    }

    /// What to wait for after an error of the host.
    fn after(&mut self, turn: &Turn<'_>, error: &io::Error) -> Next {
        match error.kind() {
            io::ErrorKind::WouldBlock => Next::Receivable,
            io::ErrorKind::Interrupted => Next::Again,
            // Maybe because the pair is no longer in use.
            _ if turn.is_stale() => Next::Again,
            _ => {
                self.lost(error);
                Next::Settings
            }
        }
    }
}

impl Flow for Rx {
    fn turn(&mut self, turn: &mut Turn<'_>) -> Result<Next, QueueError> {
        if turn.pair >= turn.view.queue_pairs {
            return Ok(Next::Settings);
        }
        for _ in 0..BATCH {
            if let Some(frame) = self.pending.take()
                && let Delivered::Starved = self.deliver(turn, frame)?
            {
                self.pending = Some(frame);
                return Ok(Next::Driver);
            }
            if !turn.view.link_up {
                match self.discard(turn) {
                    Ok(()) => continue,
                    Err(error) => return Ok(self.after(turn, &error)),
                }
            }
            while self.ready.is_empty() || self.mergeable && self.room < self.expect {
                if !self.take(turn)? {
                    break;
                }
            }
            if self.ready.is_empty() {
                return Ok(Next::Driver);
            }
            match self.receive(turn)? {
                Ok(None) => {}
                Ok(Some(frame)) => {
                    self.expect = frame.len.max(self.expect - self.expect / 16);
                    self.pending = Some(frame);
                }
                Err(error) => return Ok(self.after(turn, &error)),
            }
        }
        Ok(Next::Again)
    }

    fn lost(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.told, true) {
            log::warn!("{DEVICE}: no more frames from the host: {error}");
        }
    }

    fn finish(&mut self, queue: &mut Queue) {
        // A frame that was not delivered is lost.
        while let Some(chain) = self.ready.pop_back() {
            queue.undo_pop(chain);
        }
    }
}

/// Reads what is in `pieces` from byte `start` on; returns how much there was.
fn read(pieces: &[VolatileSlice<'_>], mut start: usize, into: &mut [u8]) -> usize {
    let mut done = 0;
    for piece in pieces {
        if start >= piece.len() {
            start -= piece.len();
            continue;
        }
        // Checked above.
        if let Ok(rest) = piece.offset(start) {
            done += rest.copy_to(&mut into[done..]);
        }
        start = 0;
        if done == into.len() {
            break;
        }
    }
    done
}
