use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event::{Receiver, Sender};

/// Bytes of guest output that wait for the host at most.
const CAPACITY: usize = 64 << 10;

/// The guest's side of a chardev: the device that the bytes are for.
///
/// Calls come from the chardev's I/O thread.
pub trait Front: Send + Sync {
    /// Takes input from the host and returns how many bytes it took. If it took less than all,
    /// it calls [`Link::resume`] when it has room again.
    fn receive(&self, data: &[u8]) -> usize;

    /// There is room for output again after [`Link::send`] took less than it was given.
    fn can_send(&self);

    /// A client came or went. Terminals and files are always connected.
    fn connected(&self, connected: bool);
}

/// What connects a [`Front`] with its [`crate::Chardev`]; usable from any thread.
pub struct Link {
    output: Mutex<Output>,
    wake: Sender<()>,
    awake: AtomicBool,
}

#[derive(Default)]
struct Output {
    bytes: VecDeque<u8>,
    /// The front was refused and waits for [`Front::can_send`].
    starved: bool,
    /// Nobody is at the other end.
    discard: bool,
}

/// The host's side of a link.
pub(crate) struct LinkEnd {
    pub(crate) link: Arc<Link>,
    pub(crate) woken: Receiver<()>,
}

impl Link {
    pub(crate) fn new() -> (Arc<Self>, LinkEnd) {
        let (wake, woken) = event::channel();
        let link = Arc::new(Self {
            output: Mutex::default(),
            wake,
            awake: AtomicBool::new(false),
        });
        (Arc::clone(&link), LinkEnd { link, woken })
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues output of the guest; returns how many bytes fitted.
    pub fn send(&self, data: &[u8]) -> usize {
        let mut output = self.lock();
        if output.discard {
            return data.len();
        }
        let fits = data.len().min(CAPACITY.saturating_sub(output.bytes.len()));
        output.bytes.extend(&data[..fits]);
        output.starved |= fits < data.len();
        drop(output);
        self.wake();
        fits
    }

    /// The front, which had no room for input, has some again.
    pub fn resume(&self) {
        self.wake();
    }

    fn wake(&self) {
        // One message is enough until the task has looked: a guest sends byte by byte.
        if !self.awake.swap(true, Ordering::AcqRel) {
            // The task ends with the machine; then nobody needs to be woken.
            _ = self.wake.send(());
        }
    }
}

impl LinkEnd {
    /// Waits until the front has done something.
    pub(crate) async fn woken(&mut self) {
        if self.woken.recv().await.is_some() {
            self.link.awake.store(false, Ordering::Release);
        }
    }

    /// The output that waits.
    pub(crate) fn pending(&self) -> Vec<u8> {
        self.link.lock().bytes.iter().copied().collect()
    }

    /// Whether output waits.
    pub(crate) fn has_pending(&self) -> bool {
        !self.link.lock().bytes.is_empty()
    }

    /// Forgets output that was written; tells whether the front waits for room.
    pub(crate) fn written(&self, count: usize) -> bool {
        let mut output = self.link.lock();
        let count = count.min(output.bytes.len());
        output.bytes.drain(..count);
        std::mem::take(&mut output.starved)
    }

    /// From now on output is thrown away, or kept again.
    pub(crate) fn discard(&self, discard: bool) -> bool {
        let mut output = self.link.lock();
        output.discard = discard;
        if discard {
            output.bytes.clear();
        }
        std::mem::take(&mut output.starved)
    }
}
