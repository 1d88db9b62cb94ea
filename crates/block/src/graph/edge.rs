use std::io;
use std::sync::{Arc, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use event::{IoBuf, WriteFlags};
use nix::errno::Errno;

use super::Vertex;
use super::gate::{Closed, Gate};
use crate::sync::Mutex;
use crate::{
    BlockError, BlockStatus, Limits, Node, NodeFuture, SizeWatcher, SizeWatchers, StatusKind,
    Transfer, ZeroFlags,
};

/// What an edge says that leads nowhere: requests fail with `ENOMEDIUM`.
const NOWHERE: Limits = Limits {
    request_alignment: 512,
    memory_alignment: 512,
    logical_block_size: 512,
    physical_block_size: 512,
    discard_granularity: 512,
    can_discard: false,
};

/// A user's hold on a node, which can be led to another while requests come in.
pub struct Edge {
    gate: Arc<Gate>,
    target: ArcSwapOption<Vertex>,
    watchers: Arc<SizeWatchers>,
    /// Carries the size of the present target to the watchers.
    messenger: Mutex<Option<Arc<SizeWatcher>>>,
}

impl Edge {
    /// An edge that leads to `target`, or nowhere: a drive without a medium, an image without a
    /// backing file.
    #[must_use]
    pub fn new(target: Option<Arc<Vertex>>) -> Arc<Self> {
        let edge = Arc::new(Self {
            gate: Arc::default(),
            target: ArcSwapOption::empty(),
            watchers: Arc::default(),
            messenger: Mutex::new(None),
        });
        edge.lead(target);
        edge
    }

    /// Where it leads.
    #[must_use]
    pub fn target(&self) -> Option<Arc<Vertex>> {
        self.target.load_full()
    }

    /// Whether it leads anywhere.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.target.load().is_some()
    }

    /// Leads it elsewhere. Requests that are on their way go on where they were; [`drain`] first
    /// to have none.
    pub fn lead(&self, target: Option<Arc<Vertex>>) {
        let watchers = Arc::clone(&self.watchers);
        let messenger: Arc<SizeWatcher> = Arc::new(move |size| watchers.tell(size));
        if let Some(target) = &target {
            target.watch_size(Arc::downgrade(&messenger));
        }
        let mut held = self
            .messenger
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = self.size();
        // The old target's news are none any more.
        *held = Some(messenger);
        self.target.store(target);
        drop(held);
        let size = self.size();
        if size != before {
            self.watchers.tell(size);
        }
    }

    fn no_medium<T>() -> io::Result<T> {
        Err(Errno::ENOMEDIUM.into())
    }
}

/// Edges through which no request passes, until this is dropped.
#[must_use]
pub struct Drained {
    _closed: Vec<Closed>,
}

/// Closes the edges, and waits until no request is on its way through any of them. What comes
/// from now on waits before them.
///
/// The caller sees to it that no request through one of the edges waits for one through another
/// of them that has not entered yet: edges to the same node, or roots of different disks.
pub async fn drain(edges: impl IntoIterator<Item = Arc<Edge>>) -> Drained {
    let edges = edges.into_iter();
    let closed: Vec<Closed> = edges.map(|edge| edge.gate.begin_to_close()).collect();
    for gate in &closed {
        gate.emptied().await;
    }
    Drained { _closed: closed }
}

impl Node for Edge {
    /// The name of where it leads at present.
    fn name(&self) -> String {
        self.target
            .load()
            .as_ref()
            .map_or_else(String::new, |target| target.name())
    }

    fn size(&self) -> u64 {
        self.target
            .load()
            .as_ref()
            .map_or(0, |target| target.size())
    }

    fn limits(&self) -> Limits {
        self.target
            .load()
            .as_ref()
            .map_or(NOWHERE, |target| target.limits())
    }

    fn is_read_only(&self) -> bool {
        self.target
            .load()
            .as_ref()
            .is_none_or(|target| target.is_read_only())
    }

    fn read_vectored(&self, buf: IoBuf, offset: u64) -> NodeFuture<'_, Transfer> {
        Box::pin(async move {
            let _passage = self.gate.pass().await;
            match self.target() {
                Some(target) => target.read(buf, offset).await,
                None => (Self::no_medium(), buf),
            }
        })
    }

    fn write_vectored(
        &self,
        buf: IoBuf,
        offset: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'_, Transfer> {
        Box::pin(async move {
            let _passage = self.gate.pass().await;
            match self.target() {
                Some(target) => target.write(buf, offset, flags).await,
                None => (Self::no_medium(), buf),
            }
        })
    }

    fn flush(&self) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let _passage = self.gate.pass().await;
            match self.target() {
                Some(target) => target.driver().flush().await,
                None => Ok(()),
            }
        })
    }

    fn discard(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let _passage = self.gate.pass().await;
            match self.target() {
                Some(target) => target.give_up(offset, len).await,
                None => Self::no_medium(),
            }
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let _passage = self.gate.pass().await;
            match self.target() {
                Some(target) => target.zero(offset, len, flags).await,
                None => Self::no_medium(),
            }
        })
    }

    fn block_status(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<BlockStatus>> {
        Box::pin(async move {
            let _passage = self.gate.pass().await;
            match self.target() {
                Some(target) => target.driver().block_status(offset, len).await,
                None => Ok(BlockStatus {
                    len,
                    kind: StatusKind::Unallocated,
                    host: None,
                    depth: 0,
                }),
            }
        })
    }

    fn copy_up(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let _passage = self.gate.pass().await;
            match self.target() {
                Some(target) => target.driver().copy_up(offset, len).await,
                None => Self::no_medium(),
            }
        })
    }

    /// Closes nothing: the node may have other users.
    fn close(&self) -> NodeFuture<'_, io::Result<()>> {
        self.flush()
    }

    fn resize(&self, size: u64) -> NodeFuture<'_, Result<(), BlockError>> {
        Box::pin(async move {
            let _passage = self.gate.pass().await;
            match self.target() {
                Some(target) => target.change_size(size).await,
                None => Err(BlockError::NoMedium),
            }
        })
    }

    fn watch_size(&self, watcher: Weak<SizeWatcher>) {
        self.watchers.add(watcher);
    }
}
