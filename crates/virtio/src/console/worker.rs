//! The workers of the queues: one task for each.
//!
//! ```text
//!   receiveq     [Receive]   input of the chardev  ─▶ the driver's buffers
//!   transmitq    [Transmit]  the driver's buffers  ─▶ the chardev, as it takes them
//!   control rx   [Tell]      messages of the model ─▶ the driver's buffers
//!   control tx   [Listen]    the driver's messages ─▶ the model
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use event::{EventSource, StopToken, select2, timeout, yield_now};
use memory::{GuestAddressSpace, Ram};

use super::Shared;
use super::model::Control;
use super::port::{Bell, PortIo};
use crate::queue::{Queue, QueueError, QueueState};
use crate::{Chain, QueueResources};

const DEVICE: &str = "virtio-console";

/// Bytes of output in one turn, then the thread's other tasks go first.
const TURN: usize = 256 << 10;
/// Bytes of output that are copied at once.
const CHUNK: usize = 16 << 10;
/// Linux writes to a console with interrupts off and spins until the device is done, so a host
/// that does not read would stop the guest. After this time with nothing taken the console's
/// output is thrown away until the host reads again.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a worker waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: there is more to do.
    More,
    /// The driver to make chains available.
    Chains,
    /// Its bell; chains are of no use before.
    Bell,
    /// Its bell, but not longer than until then.
    Until(Instant),
}

/// What is done with one queue.
pub(super) trait Role: Send + 'static {
    /// Rings when there is something to do without the driver's doing.
    fn bell(&self) -> &Bell;

    /// Does what can be done now.
    fn turn(&mut self, queue: &mut Queue, ram: &Ram) -> Result<Next, QueueError>;

    /// The queue stops: marks used what was popped.
    fn finish(&mut self, queue: &mut Queue, ram: &Ram) -> Result<(), QueueError>;
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("cannot wait for a kick: {0}")]
    Kick(std::io::Error),
}

/// Serves a queue until it is stopped.
pub(super) async fn run<R: Role>(
    mut role: R,
    mut resources: QueueResources,
    stop: StopToken,
) -> QueueState {
    if let Err(trouble) = serve(&mut role, &mut resources, &stop).await {
        // The queue is not touched again before the driver resets it.
        resources.trouble.report(DEVICE, &trouble);
        stop.stopped().await;
    }
    resources.queue.save()
}

async fn serve<R: Role>(
    role: &mut R,
    resources: &mut QueueResources,
    stop: &StopToken,
) -> Result<(), Trouble> {
    let kick = EventSource::new(&resources.kick).map_err(Trouble::Kick)?;
    let QueueResources {
        queue,
        memory,
        interrupt,
        ..
    } = resources;
    while !stop.is_stopped() {
        let ram = memory.memory();
        queue.disable_notification(&ram)?;
        let next = role.turn(queue, &ram);
        // The driver hears also of what was used before a chain that makes no sense.
        if queue.needs_notification(&ram)? {
            interrupt.trigger();
        }
        let next = next?;
        let again = match next {
            Next::More => true,
            Next::Chains => queue.enable_notification(&ram)?,
            Next::Bell | Next::Until(_) => false,
        };
        drop(ram);
        if again {
            yield_now().await;
            continue;
        }
        let kicked = async { kick.wait().await.map_err(Trouble::Kick) };
        let called = async {
            select2(stop.stopped(), role.bell().rung()).await;
            Ok(())
        };
        let waited = async {
            match select2(kicked, called).await {
                event::Either::A(result) | event::Either::B(result) => result,
            }
        };
        match next {
            Next::Until(then) => {
                let left = then.saturating_duration_since(Instant::now());
                timeout(left, waited).await.unwrap_or(Ok(()))?;
            }
            Next::More | Next::Chains | Next::Bell => waited.await?,
        }
    }
    let ram = memory.memory();
    role.finish(queue, &ram)?;
    if queue.needs_notification(&ram)? {
        interrupt.trigger();
    }
    Ok(())
}

/// Input of one port.
pub(super) struct Receive {
    pub shared: Arc<Shared>,
    pub port: usize,
}

impl Receive {
    fn io(&self) -> &PortIo {
        &self.shared.ports[self.port]
    }
}

impl Role for Receive {
    fn bell(&self) -> &Bell {
        &self.io().input
    }

    fn turn(&mut self, queue: &mut Queue, ram: &Ram) -> Result<Next, QueueError> {
        for _ in 0..queue.size() {
            if !self.io().has_input() {
                return Ok(Next::Bell);
            }
            let Some(chain) = queue.pop(ram)? else {
                return Ok(Next::Chains);
            };
            if chain.writable_len() == 0 {
                return Err(QueueError::TooShort {
                    wanted: 1,
                    remaining: 0,
                });
            }
            let mut writer = chain.writer(ram);
            if self.io().take_input(&mut writer)? == 0 {
                // The port was closed or taken away meanwhile.
                queue.undo_pop(chain);
                return Ok(Next::Bell);
            }
            let written = writer.written();
            queue.add_used(ram, chain, written)?;
        }
        Ok(Next::More)
    }

    fn finish(&mut self, _queue: &mut Queue, _ram: &Ram) -> Result<(), QueueError> {
        Ok(())
    }
}

/// Output of one port.
pub(super) struct Transmit {
    shared: Arc<Shared>,
    port: usize,
    /// A chain of which so many bytes are sent.
    held: Option<(Chain, usize)>,
    /// Since when the host has taken nothing, when that matters.
    stalled: Option<Instant>,
    buffer: Vec<u8>,
}

impl Transmit {
    pub fn new(shared: Arc<Shared>, port: usize) -> Self {
        Self {
            shared,
            port,
            held: None,
            stalled: None,
            buffer: Vec::new(),
        }
    }

    fn io(&self) -> &PortIo {
        &self.shared.ports[self.port]
    }

    /// The host took `taken` of `len` bytes. How many count as sent, and when to look again if
    /// there are none to send.
    fn sent(&mut self, taken: usize, len: usize) -> Result<usize, Next> {
        if taken != 0 || len == 0 {
            self.stalled = None;
            return Ok(taken);
        }
        // Only the console has a driver that waits with interrupts off.
        if self.port != 0 {
            return Err(Next::Bell);
        }
        let now = Instant::now();
        let until = *self.stalled.get_or_insert(now) + PATIENCE;
        if now < until {
            return Err(Next::Until(until));
        }
        if self.io().first_loss() {
            log::warn!("{DEVICE}: the console's output is not read; it is thrown away until it is");
        }
        Ok(len)
    }
}

impl Role for Transmit {
    fn bell(&self) -> &Bell {
        &self.io().output
    }

    fn turn(&mut self, queue: &mut Queue, ram: &Ram) -> Result<Next, QueueError> {
        let mut budget = TURN;
        let mut chains = queue.size();
        loop {
            let (chain, mut at) = match self.held.take() {
                Some(held) => held,
                None if chains == 0 => return Ok(Next::More),
                None => match queue.pop(ram)? {
                    Some(chain) => (chain, 0),
                    None => return Ok(Next::Chains),
                },
            };
            chains = chains.saturating_sub(1);
            let mut wait = None;
            while at < chain.readable_len() as usize && wait.is_none() {
                let mut reader = chain.reader(ram);
                reader.skip(at)?;
                self.buffer.resize(CHUNK, 0);
                let limit = CHUNK.min(budget);
                let len = reader.read(&mut self.buffer[..limit])?;
                let taken = self.io().send(&self.buffer[..len]);
                match self.sent(taken, len) {
                    Ok(sent) => {
                        at += sent;
                        budget -= sent;
                    }
                    Err(next) => wait = Some(next),
                }
                if budget == 0 {
                    wait = wait.or(Some(Next::More));
                }
            }
            match wait {
                Some(next) => {
                    self.held = Some((chain, at));
                    return Ok(next);
                }
                None => queue.add_used(ram, chain, 0)?,
            }
        }
    }

    /// What the host has not taken of the last chain is kept for it: the chain itself is used,
    /// as the driver expects of a queue that stops.
    fn finish(&mut self, queue: &mut Queue, ram: &Ram) -> Result<(), QueueError> {
        let Some((chain, at)) = self.held.take() else {
            return Ok(());
        };
        let mut reader = chain.reader(ram);
        reader.skip(at)?;
        while reader.remaining() != 0 {
            let len = reader.read(&mut self.buffer)?;
            if self.io().keep(&self.buffer[..len]) < len {
                if self.io().first_loss() {
                    log::warn!(
                        "{DEVICE}: output of port {} that the host had not read is lost",
                        self.port
                    );
                }
                break;
            }
        }
        queue.add_used(ram, chain, 0)
    }
}

/// Control messages to the driver.
pub(super) struct Tell {
    pub shared: Arc<Shared>,
}

impl Role for Tell {
    fn bell(&self) -> &Bell {
        &self.shared.messages
    }

    fn turn(&mut self, queue: &mut Queue, ram: &Ram) -> Result<Next, QueueError> {
        for _ in 0..queue.size() {
            if !self.shared.model().has_message() {
                return Ok(Next::Bell);
            }
            let Some(chain) = queue.pop(ram)? else {
                return Ok(Next::Chains);
            };
            let message = self.shared.model().next_message();
            let Some(message) = message else {
                queue.undo_pop(chain);
                return Ok(Next::Bell);
            };
            chain.writer(ram).write_all(&message)?;
            queue.add_used(ram, chain, message.len() as u32)?;
        }
        Ok(Next::More)
    }

    fn finish(&mut self, _queue: &mut Queue, _ram: &Ram) -> Result<(), QueueError> {
        Ok(())
    }
}

/// Control messages of the driver.
pub(super) struct Listen {
    pub shared: Arc<Shared>,
    /// Never rings.
    pub bell: Bell,
}

impl Role for Listen {
    fn bell(&self) -> &Bell {
        &self.bell
    }

    fn turn(&mut self, queue: &mut Queue, ram: &Ram) -> Result<Next, QueueError> {
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop(ram)? else {
                return Ok(Next::Chains);
            };
            let message: Control = chain.reader(ram).read_obj()?;
            queue.add_used(ram, chain, 0)?;
            self.shared.received(&message);
        }
        Ok(Next::More)
    }

    fn finish(&mut self, _queue: &mut Queue, _ram: &Ram) -> Result<(), QueueError> {
        Ok(())
    }
}
