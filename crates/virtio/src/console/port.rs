//! The bytes of one port, between its two queues and its chardev.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use chardev::Link;

use crate::Writer;
use crate::queue::QueueError;

/// Bytes of input that wait for the driver's buffers at most.
pub(super) const INPUT: usize = 4096;
/// Bytes of output that are kept when a queue stops with a chain that the host has not taken.
pub(super) const OUTPUT: usize = 1 << 20;

/// Wakes a worker from any thread; rung before anybody waits, it is remembered.
#[derive(Default)]
pub(super) struct Bell {
    rung: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Bell {
    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        let waker = self.waker().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits until it is rung.
    pub async fn rung(&self) {
        poll_fn(|cx| {
            let old = self.waker().replace(cx.waker().clone());
            drop(old);
            // Looked at after the waker is there: whoever rings later wakes.
            if self.rung.swap(false, Ordering::SeqCst) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

/// A place for a port, whether there is one or not: its queues exist all the time.
#[derive(Default)]
pub(super) struct PortIo {
    /// There is input, or the host can have more of it taken.
    pub input: Bell,
    /// The host takes output again.
    pub output: Bell,
    /// Output was lost. Told once: the guest could cause any number.
    lost: AtomicBool,
    bytes: Mutex<PortBytes>,
}

#[derive(Default)]
struct PortBytes {
    link: Option<Arc<Link>>,
    /// Tells the port that is here from those that were here before.
    generation: u64,
    /// The guest wants input.
    wanted: bool,
    /// The receive queue has a worker. Without one nothing is taken from the host, so that a
    /// device that is being saved stays as it is.
    served: bool,
    /// The transmit queue has a worker. Without one what was kept stays: it may have been saved,
    /// and must not be sent here as well as there.
    transmits: bool,
    /// The host was refused and waits for [`Link::resume`].
    refused: bool,
    input: VecDeque<u8>,
    output: VecDeque<u8>,
}

impl PortBytes {
    fn room(&self) -> usize {
        if self.wanted && self.served {
            INPUT.saturating_sub(self.input.len())
        } else {
            0
        }
    }

    /// The link to be told that there is room again.
    fn refused(&mut self) -> Option<Arc<Link>> {
        if self.refused && self.room() != 0 {
            self.refused = false;
            return self.link.clone();
        }
        None
    }

    /// Gives the host what was kept for it.
    fn flush(&mut self) {
        match &self.link {
            None => self.output.clear(),
            Some(link) => {
                let sent = link.send(self.output.make_contiguous());
                self.output.drain(..sent.min(self.output.len()));
            }
        }
    }

    fn send(&mut self, data: &[u8]) -> usize {
        if !self.output.is_empty() && self.transmits {
            self.flush();
        }
        match &self.link {
            None => data.len(),
            Some(_) if !self.output.is_empty() => 0,
            Some(link) => link.send(data).min(data.len()),
        }
    }
}

impl PortIo {
    fn bytes(&self) -> MutexGuard<'_, PortBytes> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A port is plugged in. Returns what its front has to show.
    pub fn attach(&self, link: Arc<Link>) -> u64 {
        let mut bytes = self.bytes();
        bytes.link = Some(link);
        bytes.generation
    }

    /// The port is gone, with all that was on its way.
    pub fn detach(&self) {
        let mut bytes = self.bytes();
        *bytes = PortBytes {
            generation: bytes.generation.wrapping_add(1),
            served: bytes.served,
            transmits: bytes.transmits,
            ..PortBytes::default()
        };
        drop(bytes);
        self.output.ring();
    }

    /// Output is lost; whether that is for the first time.
    pub fn first_loss(&self) -> bool {
        !self.lost.swap(true, Ordering::Relaxed)
    }

    /// Whether the front with this number is the port's.
    pub fn is_current(&self, generation: u64) -> bool {
        self.bytes().generation == generation
    }

    /// Input of the host; returns how much was taken.
    pub fn receive(&self, generation: u64, data: &[u8]) -> usize {
        let mut bytes = self.bytes();
        if bytes.generation != generation {
            // Nobody will ever want it.
            return data.len();
        }
        let taken = data.len().min(bytes.room());
        bytes.input.extend(&data[..taken]);
        bytes.refused |= taken < data.len();
        drop(bytes);
        if taken != 0 {
            self.input.ring();
        }
        taken
    }

    /// The host takes output again.
    pub fn can_send(&self, generation: u64) {
        let mut bytes = self.bytes();
        if bytes.generation == generation {
            if bytes.transmits {
                bytes.flush();
            }
            drop(bytes);
            self.output.ring();
        }
    }

    /// The host's client has gone. Input that no program in the guest waits for goes with it.
    pub fn client_left(&self) {
        let mut bytes = self.bytes();
        if !bytes.wanted {
            bytes.input.clear();
        }
    }

    /// Whether the guest wants input.
    pub fn set_wanted(&self, wanted: bool) {
        self.change(|bytes| bytes.wanted = wanted);
        self.input.ring();
    }

    /// Whether the receive queue has a worker.
    pub fn set_served(&self, served: bool) {
        self.change(|bytes| bytes.served = served);
    }

    fn change(&self, change: impl FnOnce(&mut PortBytes)) {
        let mut bytes = self.bytes();
        change(&mut bytes);
        let refused = bytes.refused();
        drop(bytes);
        if let Some(link) = refused {
            link.resume();
        }
    }

    /// Whether there is input for the guest.
    pub fn has_input(&self) -> bool {
        let bytes = self.bytes();
        bytes.wanted && !bytes.input.is_empty()
    }

    /// Writes as much input as there is room for.
    pub fn take_input(&self, writer: &mut Writer<'_>) -> Result<usize, QueueError> {
        let mut bytes = self.bytes();
        let (first, second) = bytes.input.as_slices();
        let mut written = writer.write(first)?;
        if written == first.len() {
            written += writer.write(second)?;
        }
        bytes.input.drain(..written);
        let refused = bytes.refused();
        drop(bytes);
        if let Some(link) = refused {
            link.resume();
        }
        Ok(written)
    }

    /// Output of the guest; returns how much the host took. When that is not all,
    /// [`PortIo::output`] rings once it takes more.
    pub fn send(&self, data: &[u8]) -> usize {
        self.bytes().send(data)
    }

    /// Whether the transmit queue has a worker, which begins with what was kept.
    pub fn set_transmits(&self, transmits: bool) {
        let mut bytes = self.bytes();
        bytes.transmits = transmits;
        if transmits {
            bytes.flush();
        }
    }

    /// Output of the guest that cannot wait, as the queue stops or there is none. Returns how
    /// much was taken or kept.
    pub fn keep(&self, data: &[u8]) -> usize {
        let mut bytes = self.bytes();
        let sent = bytes.send(data);
        let rest = &data[sent..];
        let kept = rest.len().min(OUTPUT.saturating_sub(bytes.output.len()));
        bytes.output.extend(&rest[..kept]);
        sent + kept
    }

    /// The driver is gone. What it had sent is the host's all the same.
    pub fn reset(&self) {
        let mut bytes = self.bytes();
        bytes.wanted = false;
        bytes.input.clear();
    }

    /// Input and output that are on their way.
    pub fn save(&self) -> (Vec<u8>, Vec<u8>) {
        let bytes = self.bytes();
        let all = |queue: &VecDeque<u8>| queue.iter().copied().collect();
        (all(&bytes.input), all(&bytes.output))
    }

    /// Takes over what was saved.
    pub fn restore(&self, input: &[u8], output: &[u8]) {
        let mut bytes = self.bytes();
        bytes.input = input.iter().copied().collect();
        bytes.output = output.iter().copied().collect();
    }
}
