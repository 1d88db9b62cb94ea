use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::net::Mac;

use super::model::feature;
use super::shared::Shared;

/// Counts what one pair of queues did.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub received: Counter,
    pub sent: Counter,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Counter {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Counter {
    /// A frame of so many bytes passed.
    pub fn passed(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A frame did not pass.
    pub fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// What passed in one direction, without virtio headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that were thrown away: the link was down, the driver's buffers too small, or the
    /// host refused them. Frames that the driver's filters kept out do not count.
    pub dropped: u64,
}

/// A network card as the control side sees it. Clones are the same card.
#[derive(Clone)]
pub struct NetHandle {
    shared: Arc<Shared>,
    stats: Vec<Arc<Stats>>,
}

impl NetHandle {
    pub(super) fn new(shared: Arc<Shared>, stats: Vec<Arc<Stats>>) -> Self {
        Self { shared, stats }
    }

    /// Plugs the cable in or pulls it, and tells the driver. While it is pulled, frames of both
    /// directions are thrown away.
    pub fn set_link(&self, up: bool) {
        let mut settings = self.shared.settings();
        if settings.link_up == up {
            return;
        }
        settings.link_up = up;
        self.shared.publish(&settings);
        drop(settings);
        self.shared.interrupt();
    }

    /// Whether the cable is plugged in.
    #[must_use]
    pub fn is_link_up(&self) -> bool {
        self.shared.settings().link_up
    }

    /// Asks the driver to tell the network where its addresses are now: after a migration. Whether
    /// it can do so; if not, somebody else has to.
    #[must_use]
    pub fn announce(&self) -> bool {
        let wanted = feature::GUEST_ANNOUNCE | feature::CTRL_VQ;
        if self.shared.features() & wanted != wanted {
            return false;
        }
        self.shared.settings().announce = true;
        self.shared.interrupt();
        true
    }

    /// The card's address, which its driver may have changed.
    #[must_use]
    pub fn mac(&self) -> Mac {
        Mac(self.shared.settings().mac)
    }

    /// What the guest has received so far.
    #[must_use]
    pub fn received(&self) -> Totals {
        self.sum(|stats| &stats.received)
    }

    /// What the guest has sent so far.
    #[must_use]
    pub fn sent(&self) -> Totals {
        self.sum(|stats| &stats.sent)
    }

    fn sum(&self, counter: impl Fn(&Stats) -> &Counter) -> Totals {
        self.stats
            .iter()
            .map(|stats| counter(stats))
            .fold(Totals::default(), |sum, counter| Totals {
                frames: sum.frames + counter.frames.load(Ordering::Relaxed),
                bytes: sum.bytes + counter.bytes.load(Ordering::Relaxed),
                dropped: sum.dropped + counter.dropped.load(Ordering::Relaxed),
            })
    }
}
