//! A pair of queues and the port that they share, on one I/O thread.

use std::rc::Rc;
use std::sync::Arc;

use ::net::{Capabilities, OpenPort};
use event::{IoThread, OneshotReceiver, OneshotSender, Receiver, Remote, Sender, oneshot};

use super::handle::Stats;
use super::model::feature;
use super::rx::Rx;
use super::shared::{Shared, Wake};
use super::tx::Tx;
use super::worker::{self, DEVICE, Worker};
use crate::{QueueResources, QueueState};

/// Which of the two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Receive,
    Transmit,
}

/// The order to serve a queue.
struct Order {
    direction: Direction,
    worker: Worker,
    features: u64,
    stats: Arc<Stats>,
    done: OneshotSender<QueueState>,
}

/// The task that owns a port.
pub(super) struct Pair {
    orders: Sender<Order>,
    pub stats: Arc<Stats>,
    /// Ends with the pair.
    _task: Remote<()>,
}

/// A queue that is served.
pub(super) struct Running {
    wake: Arc<Wake>,
    done: OneshotReceiver<QueueState>,
}

impl Pair {
    pub fn start(thread: &IoThread, port: OpenPort, capabilities: Capabilities) -> Self {
        let (orders, receiver) = event::channel();
        Self {
            orders,
            stats: Arc::default(),
            _task: thread.spawn_task(move || keep(port, capabilities, receiver)),
        }
    }

    /// Serves queue `index` of the device from now on; `None` when the thread has ended.
    pub fn serve(
        &self,
        direction: Direction,
        index: u16,
        resources: QueueResources,
        shared: &Arc<Shared>,
        features: u64,
    ) -> Option<Running> {
        let (done, receiver) = oneshot();
        let wake = Arc::<Wake>::default();
        shared.add(&wake);
        let order = Order {
            direction,
            worker: Worker {
                pair: index / 2,
                shared: Arc::clone(shared),
                wake: Arc::clone(&wake),
                resources,
            },
            features,
            stats: Arc::clone(&self.stats),
            done,
        };
        if self.orders.send(order).is_err() {
            shared.remove(&wake);
            return None;
        }
        Some(Running {
            wake,
            done: receiver,
        })
    }
}

impl Running {
    pub fn ask_to_stop(&self) {
        self.wake.stop();
    }

    /// Waits until the worker has given its queue back; `None` when it is lost.
    pub fn stop(self, shared: &Shared) -> Option<QueueState> {
        self.ask_to_stop();
        let state = self.done.wait().ok();
        shared.remove(&self.wake);
        state
    }
}

/// Opens the port and starts workers as ordered.
async fn keep(port: OpenPort, capabilities: Capabilities, mut orders: Receiver<Order>) {
    let port = port();
    while let Some(order) = orders.recv().await {
        let Order {
            direction,
            worker,
            features,
            stats,
            done,
        } = order;
        let port = match &port {
            Ok(port) => Rc::clone(port),
            Err(error) => {
                worker.resources.trouble.report(DEVICE, error);
                done.send(worker.resources.queue.save());
                continue;
            }
        };
        let header = capabilities.vnet_header;
        let task = async move {
            let state = match direction {
                Direction::Receive => {
                    let mergeable = features & feature::MRG_RXBUF != 0;
                    let rx = Rx::new(header, mergeable, capabilities.max_frame, stats);
                    worker::run(rx, port, worker).await
                }
                Direction::Transmit => worker::run(Tx::new(header, stats), port, worker).await,
            };
            done.send(state);
        };
        event::spawn_local(task).detach();
    }
}
