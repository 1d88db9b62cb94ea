//! From the guest to the host.

use std::io;
use std::sync::Arc;

use ::net::VNET_HEADER;
use memory::VolatileSlice;

use super::handle::Stats;
use super::worker::{BATCH, DEVICE, Flow, Next, Turn, recycle};
use crate::{Chain, Queue, QueueError};

/// Bytes of an Ethernet header: there is no shorter frame.
const ETHERNET: usize = 14;

/// A transmit queue.
pub(super) struct Tx {
    /// The host wants the virtio header.
    header: bool,
    stats: Arc<Stats>,
    /// The frame that the host had no room for.
    pending: Option<Chain>,
    /// Room for a list, empty between frames.
    pieces: Vec<VolatileSlice<'static>>,
}

impl Tx {
    pub fn new(header: bool, stats: Arc<Stats>) -> Self {
        Self {
            header,
            stats,
            pending: None,
            pieces: Vec::new(),
        }
    }

    /// Whether the chain is done with: its frame sent or thrown away.
    fn transmit(&mut self, turn: &Turn<'_>, chain: &Chain) -> Result<bool, QueueError> {
        let mut frame = chain.reader(turn.ram);
        // The driver always gives a header (VIRTIO 1.3 section 5.1.6.2).
        let body = {
            let mut body = frame.clone();
            body.skip(VNET_HEADER)?;
            body
        };
        let len = body.remaining();
        if !self.header {
            frame = body;
        }
        if len < ETHERNET || !turn.view.link_up {
            self.stats.sent.dropped();
            return Ok(true);
        }
        let mut pieces = recycle(std::mem::take(&mut self.pieces));
        for piece in frame.slices() {
            pieces.push(piece?);
        }
        let sent = turn.port.send(&pieces);
        self.pieces = recycle(pieces);
        match sent {
            Ok(()) => self.stats.sent.passed(len),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(false),
                io::ErrorKind::Interrupted => return self.transmit(turn, chain),
                // A header that makes no sense, an interface that is down: the frame is lost, as
                // frames are.
                _ => self.stats.sent.dropped(),
            },
        }
        Ok(true)
    }
}

impl Flow for Tx {
    fn turn(&mut self, turn: &mut Turn<'_>) -> Result<Next, QueueError> {
        for _ in 0..BATCH {
            let chain = match self.pending.take() {
                Some(chain) => chain,
                None => match turn.queue.pop(turn.ram)? {
                    Some(chain) => chain,
                    None => return Ok(Next::Driver),
                },
            };
            if !self.transmit(turn, &chain)? {
                self.pending = Some(chain);
                return Ok(Next::Sendable);
            }
            turn.queue.push_used(turn.ram, chain, 0)?;
            turn.used = true;
        }
        Ok(Next::Again)
    }

    fn lost(&mut self, error: &io::Error) {
        log::debug!("{DEVICE}: cannot wait for room on the host: {error}");
    }

    fn finish(&mut self, queue: &mut Queue) {
        if let Some(chain) = self.pending.take() {
            queue.undo_pop(chain);
        }
    }
}
