//! The worker of a queue whose chains are served one after the other.

use event::{Either, EventSource, IoThread, Remote, StopSource, StopToken, select2};
use memory::GuestAddressSpace;

use crate::queue::{Queue, QueueError, QueueState};
use crate::{QueueResources, StartError};

/// What a device does with one of its queues, on an I/O thread.
pub(crate) trait Service: Send + 'static {
    /// Name of the device in logs.
    const DEVICE: &'static str;

    /// Serves what the driver has made available: pops, reads and writes, marks used. It may
    /// leave the loop early when `stop` says so, with no chain in its hands but those that
    /// [`Service::finish`] gives back.
    async fn serve(
        &mut self,
        resources: &mut QueueResources,
        stop: &StopToken,
    ) -> Result<(), QueueError>;

    /// Gives back the chains that are held from one call to the next: the queue stops.
    fn finish(&mut self, queue: &mut Queue);
}

/// A [`Service`] that runs.
pub(crate) struct Serving {
    stop: StopSource,
    done: Remote<QueueState>,
}

impl Serving {
    /// Serves queue `index` on `thread` from now on.
    pub(crate) fn start<S: Service>(
        thread: &IoThread,
        index: u16,
        resources: QueueResources,
        service: S,
    ) -> Result<Self, StartError> {
        let (stop, token) = StopSource::new();
        let done = thread.spawn_task(move || run(resources, service, token));
        if done.is_finished() {
            return Err(StartError {
                queue: index,
                why: format!("I/O thread {:?} has ended", thread.name()),
            });
        }
        Ok(Self { stop, done })
    }

    /// Ends it after the chain in work; `None` when the thread has ended before.
    pub(crate) fn stop(self) -> Option<QueueState> {
        self.stop.stop();
        self.done.join().ok()
    }
}

async fn run<S: Service>(
    mut resources: QueueResources,
    mut service: S,
    stop: StopToken,
) -> QueueState {
    if let Err(e) = turns(&mut resources, &mut service, &stop).await {
        // Without the driver's reset nothing good can come; the ring stays as it is.
        resources.trouble.report(S::DEVICE, &e);
        stop.stopped().await;
    }
    service.finish(&mut resources.queue);
    resources.queue.save()
}

async fn turns<S: Service>(
    resources: &mut QueueResources,
    service: &mut S,
    stop: &StopToken,
) -> Result<(), Trouble> {
    let kick = EventSource::new(&resources.kick).map_err(Trouble::Kick)?;
    while !stop.is_stopped() {
        resources
            .queue
            .disable_notification(&resources.memory.memory())?;
        service.serve(resources, stop).await?;
        let ram = resources.memory.memory();
        if resources.queue.needs_notification(&ram)? {
            resources.interrupt.trigger();
        }
        let more = resources.queue.enable_notification(&ram)?;
        drop(ram);
        if more {
            continue;
        }
        match select2(stop.stopped(), kick.wait()).await {
            Either::A(()) => break,
            Either::B(rung) => rung.map_err(Trouble::Kick)?,
        }
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("cannot wait for a kick: {0}")]
    Kick(std::io::Error),
}
