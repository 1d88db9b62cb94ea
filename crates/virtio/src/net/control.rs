//! The control queue (VIRTIO 1.3 section 5.1.6.5).

use std::io;
use std::sync::Arc;

use ::net::Control;
use event::StopToken;
use memory::GuestAddressSpace;

use super::model::{Effect, Settings};
use super::shared::Shared;
use super::worker::DEVICE as NET;
use crate::service::Service;
use crate::{Chain, Queue, QueueError, QueueResources};

const OK: u8 = 0;
const ERR: u8 = 1;
/// Bytes of a command at most: two address tables of several thousand entries.
const MAX_COMMAND: usize = 64 << 10;

pub(super) struct ControlQueue {
    pub shared: Arc<Shared>,
    pub backend: Arc<dyn Control>,
    pub queue_pairs: u16,
    pub features: u64,
}

impl Service for ControlQueue {
    const DEVICE: &'static str = NET;

    async fn serve(
        &mut self,
        resources: &mut QueueResources,
        stop: &StopToken,
    ) -> Result<(), QueueError> {
        while !stop.is_stopped() {
            let ram = resources.memory.memory();
            let Some(chain) = resources.queue.pop(&ram)? else {
                break;
            };
            let ack = self.answer(&chain, &ram)?;
            chain.writer(&ram).write_all(&[ack])?;
            resources.queue.add_used(&ram, chain, 1)?;
        }
        Ok(())
    }

    fn finish(&mut self, _queue: &mut Queue) {}
}

impl ControlQueue {
    fn answer(&self, chain: &Chain, ram: &memory::Ram) -> Result<u8, QueueError> {
        let mut reader = chain.reader(ram);
        let mut command = [0; 2];
        reader.read_exact(&mut command)?;
        if chain.writable_len() == 0 {
            return Err(QueueError::TooShort {
                wanted: 1,
                remaining: 0,
            });
        }
        if reader.remaining() > MAX_COMMAND {
            return Ok(ERR);
        }
        let mut data = vec![0; reader.remaining()];
        reader.read_exact(&mut data)?;
        let mut settings = self.shared.settings();
        let next = settings.command(self.features, self.queue_pairs, command, &data);
        let Some((next, effect)) = next else {
            return Ok(ERR);
        };
        match self.carry_out(&settings, &next, effect) {
            Ok(()) => {
                *settings = next;
                Ok(OK)
            }
            Err(error) => {
                // A guest can repeat this as often as it likes.
                log::debug!("{NET}: the host refuses {effect:?}: {error}");
                Ok(ERR)
            }
        }
    }

    fn carry_out(&self, now: &Settings, next: &Settings, effect: Effect) -> io::Result<()> {
        match effect {
            Effect::Settings => {}
            Effect::Offloads => self.backend.set_offloads(next.offloads(self.features))?,
            // A worker must not look at a queue of the host that is not in use.
            Effect::QueuePairs if next.queue_pairs < now.queue_pairs => {
                self.shared.publish(next);
                let done = self.backend.set_queue_pairs(next.queue_pairs);
                return done.inspect_err(|_| self.shared.publish(now));
            }
            Effect::QueuePairs => self.backend.set_queue_pairs(next.queue_pairs)?,
        }
        self.shared.publish(next);
        Ok(())
    }
}
